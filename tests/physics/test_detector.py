"""The parametric detector: conservation, acceptance, thresholds, and resolutions that are those it was given."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from jetrep.physics import fourvector
from jetrep.physics.detector import (
    NEUTRAL_HADRON,
    PHOTON,
    TRACK,
    Calorimeter,
    Detector,
    Tracker,
    TrackZone,
    Zone,
    charge,
    deposit,
)
from jetrep.physics.detector_presets import DETECTORS

# Sees everything exactly: no smearing, no threshold, no field, all tracks found.
PERFECT = Detector(
    "perfect",
    tracker=Tracker((TrackZone(2.5, 1.0, 1.0, 0.0, 0.0),), pt_min=0.0),
    electromagnetic=Calorimeter((Zone(5.0, 0.02, 0.02, 0.0, 0.0, 0.0),), 0.0, 0.0),
    hadronic=Calorimeter((Zone(5.0, 0.1, 0.1, 0.0, 0.0, 0.0),), 0.0, 0.0),
)
STABLE = np.array([11, -11, 13, 22, 130, 211, -211, 321, 2112, 2212, 12, 14])
MASSES = {11: 0.000511, 13: 0.10566, 22: 0.0, 130: 0.4976, 211: 0.13957, 321: 0.4937, 2112: 0.93957, 2212: 0.93827}


def _events(seed: int, sizes: list[int], eta_max: float = 4.5) -> tuple[NDArray, NDArray, NDArray]:
    rng = np.random.default_rng(seed)
    n = sum(sizes)
    pdg = rng.choice(STABLE, n)
    mass = np.array([MASSES.get(abs(int(code)), 0.0) for code in pdg])
    p4 = fourvector.from_ptetaphim(
        rng.exponential(5.0, n) + 0.05, rng.uniform(-eta_max, eta_max, n), rng.uniform(-np.pi, np.pi, n), mass
    )
    return p4, pdg, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _one(pdg: int, n: int, pt: float, eta: float = 0.3, phi: float = 0.5) -> tuple[NDArray, NDArray, NDArray]:
    """``n`` events of one particle each."""
    mass = np.full(n, MASSES[abs(pdg)])
    p4 = fourvector.from_ptetaphim(np.full(n, pt), np.full(n, eta), np.full(n, phi), mass)
    return p4, np.full(n, pdg), np.arange(n + 1)


sizes = st.lists(st.integers(0, 60), min_size=1, max_size=5)
seeds = st.integers(0, 2**32 - 1)


@settings(deadline=None)
@given(seeds, sizes)
def test_towers_hold_exactly_the_energy_of_their_event(seed: int, sizes: list[int]) -> None:
    p4, _, _ = _events(seed, sizes)
    event = np.repeat(np.arange(len(sizes)), sizes)
    for calorimeter in (DETECTORS["cms"].hadronic, DETECTORS["atlas"].electromagnetic):
        assert calorimeter is not None
        towers = deposit(calorimeter, p4[:, 0], fourvector.eta(p4), fourvector.phi(p4), event)
        np.testing.assert_allclose(
            np.bincount(towers.event, towers.energy, len(sizes)), np.bincount(event, p4[:, 0], len(sizes)), rtol=1e-12
        )
        # every deposit lies within its tower
        hit = towers.of_hit
        assert np.all(np.abs(fourvector.eta(p4) - towers.eta[hit]) <= towers.d_eta[hit] / 2 + 1e-9)
        d_phi = fourvector.delta_phi(fourvector.phi(p4), towers.phi[hit])
        assert np.all(np.abs(d_phi) <= towers.d_phi[hit] / 2 + 1e-9)
        assert np.array_equal(towers.event[hit], event)


@settings(deadline=None)
@given(seeds, sizes)
def test_a_perfect_detector_conserves_visible_energy(seed: int, sizes: list[int]) -> None:
    """Tracks and the towers' excess over them must add up to what went in, whatever shares a tower."""
    p4, pdg, offsets = _events(seed, sizes)
    seen = PERFECT(p4, pdg, offsets, np.random.default_rng(seed))
    # muons are seen by the tracker only
    visible = ~np.isin(np.abs(pdg), (12, 14)) & ~((np.abs(pdg) == 13) & (np.abs(fourvector.eta(p4)) > 2.5))
    for j in range(len(sizes)):
        part = slice(offsets[j], offsets[j + 1])
        found = seen.p4[seen.offsets[j] : seen.offsets[j + 1], 0].sum()
        assert found == pytest.approx(p4[part, 0][visible[part]].sum(), rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(seeds, sizes)
@pytest.mark.parametrize("name", DETECTORS)
def test_objects_are_physical_and_reproducible(name: str, seed: int, sizes: list[int]) -> None:
    p4, pdg, offsets = _events(seed, sizes)
    first, again = (DETECTORS[name](p4, pdg, offsets, np.random.default_rng(seed)) for _ in range(2))
    np.testing.assert_array_equal(first.p4, again.p4)
    assert np.isfinite(first.p4).all()
    assert np.all(first.p4[:, 0] > 0)
    assert np.all(fourvector.mass2(first.p4) > -1e-9 * first.p4[:, 0] ** 2)
    assert first.offsets[0] == 0
    assert first.offsets[-1] == len(first.p4) == len(first.kind)
    assert np.all(np.diff(first.offsets) >= 0)


def test_events_do_not_mix() -> None:
    p4, pdg, _ = _events(3, [40])
    together = PERFECT(p4, pdg, np.array([0, 0, 15, 40, 40]), np.random.default_rng(0))
    for begin, end, j in ((0, 15, 1), (15, 40, 2)):
        alone = PERFECT(p4[begin:end], pdg[begin:end], np.array([0, end - begin]), np.random.default_rng(0))
        mine = together.p4[together.offsets[j] : together.offsets[j + 1]]
        assert mine[:, 0].sum() == pytest.approx(alone.p4[:, 0].sum(), rel=1e-12)
        assert len(mine) == len(alone.p4)
    assert together.offsets[1] == 0
    assert together.offsets[4] == together.offsets[3]


@pytest.mark.parametrize("name", ["cms", "atlas"])
@pytest.mark.parametrize(("pdg", "kind"), [(211, TRACK), (22, PHOTON), (130, NEUTRAL_HADRON)])
def test_each_particle_becomes_its_kind_of_object(name: str, pdg: int, kind: int) -> None:
    seen = DETECTORS[name](*_one(pdg, 400, 60.0), np.random.default_rng(1))
    share = np.mean(seen.kind == kind)
    assert share > 0.8 if pdg == 211 else share == 1.0


@pytest.mark.parametrize("name", ["cms", "atlas"])
@pytest.mark.parametrize(("pdg", "part"), [(22, "electromagnetic"), (130, "hadronic")])
@pytest.mark.parametrize("eta", [0.4, 2.2])
def test_calorimeters_have_the_resolution_they_were_given(name: str, pdg: int, part: str, eta: float) -> None:
    n, energy = 20_000, 80.0
    calorimeter: Calorimeter = getattr(DETECTORS[name], part)
    p4, code, offsets = _one(pdg, n, float(np.sqrt(energy**2 - MASSES[pdg] ** 2) / np.cosh(eta)), eta)
    seen = DETECTORS[name](p4, code, offsets, np.random.default_rng(2)).p4[:, 0]
    # at the centre of the tower, where the resolution is evaluated
    tower = deposit(calorimeter, p4[:1, 0], np.array([eta]), np.array([0.5]), np.zeros(1, np.int64))
    sigma = float(calorimeter.resolution(np.array([energy]), tower.eta)[0])
    assert len(seen) == n
    assert seen.mean() == pytest.approx(energy, abs=5 * sigma / np.sqrt(n))
    assert seen.std() == pytest.approx(sigma, rel=5 / np.sqrt(2 * n))


@pytest.mark.parametrize(("name", "eta"), [("cms", 0.3), ("cms", 1.8), ("atlas", 1.0)])
def test_tracks_have_the_resolution_and_efficiency_they_were_given(name: str, eta: float) -> None:
    """Muons leave nothing in the calorimeters, so what they show is the tracker alone."""
    n, pt = 20_000, 40.0
    tracker = DETECTORS[name].tracker
    assert tracker is not None
    seen = DETECTORS[name](*_one(13, n, pt, eta), np.random.default_rng(3))
    efficiency = float(tracker.efficiency(np.array([pt]), np.array([eta]))[0])
    sigma = float(tracker.resolution(np.array([pt]), np.array([eta]))[0])
    assert len(seen.p4) / n == pytest.approx(efficiency, abs=5 * np.sqrt(efficiency * (1 - efficiency) / n))
    measured = fourvector.pt(seen.p4) / pt
    assert measured.mean() == pytest.approx(1.0, abs=5 * sigma / np.sqrt(n))
    assert measured.std() == pytest.approx(sigma, rel=5 / np.sqrt(2 * n) + sigma)
    np.testing.assert_allclose(fourvector.eta(seen.p4), eta, atol=1e-6)


@pytest.mark.parametrize("name", ["cms", "atlas"])
def test_particle_flow_is_better_than_either_of_its_parts(name: str) -> None:
    """A charged hadron is measured twice, and the mean of both beats the worse and does not fall behind the better."""
    n, pt, eta = 20_000, 60.0, 0.3
    detector = DETECTORS[name]
    assert detector.tracker is not None
    assert detector.hadronic is not None
    seen = detector(*_one(211, n, pt, eta), np.random.default_rng(4))
    p4, counts = seen.p4, np.diff(seen.offsets)
    alone = (counts == 1)[np.repeat(np.arange(n), counts)] & (seen.kind == TRACK)
    energy = pt * np.cosh(eta)
    track = float(detector.tracker.resolution(np.array([pt]), np.array([eta]))[0])
    tower = float(detector.hadronic.resolution(np.array([energy]), np.array([eta]))[0]) / energy
    spread = p4[alone, 0].std() / energy
    assert spread < 1.05 * min(track, tower)


@pytest.mark.parametrize("name", ["cms", "atlas"])
def test_thresholds_and_acceptance(name: str) -> None:
    detector = DETECTORS[name]
    assert detector.tracker is not None
    p4, pdg, offsets = _events(5, [4000] * 5, eta_max=7.0)
    seen = detector(p4, pdg, offsets, np.random.default_rng(5))
    eta = np.abs(fourvector.eta(seen.p4))
    assert np.all(eta[seen.kind == TRACK] < 2.5)
    for kind, calorimeter in ((PHOTON, detector.electromagnetic), (NEUTRAL_HADRON, detector.hadronic)):
        assert calorimeter is not None
        edge = calorimeter.zones[-1].eta_max + calorimeter.zones[-1].d_eta
        assert np.any(eta[seen.kind == kind] > 2.5)
        assert np.all(eta[seen.kind == kind] < edge)
        assert np.all(seen.p4[seen.kind == kind, 0] > calorimeter.energy_min)


def test_neutrinos_are_never_seen_and_particles_beyond_the_acceptance_neither() -> None:
    for detector in (*DETECTORS.values(), PERFECT):
        for code, eta in ((12, 0.0), (-14, 1.0), (16, 2.0), (22, 5.5), (211, -6.0)):
            p4 = fourvector.from_ptetaphim(*(np.full(50, x) for x in (20.0, eta, 1.0, 0.0)))
            seen = detector(p4, np.full(50, code), np.arange(51), np.random.default_rng(0))
            assert len(seen.p4) == 0, (detector.name, code)


def test_the_field_deflects_by_charge_and_stops_soft_particles() -> None:
    tracker = DETECTORS["cms"].tracker
    assert tracker is not None
    # Radius of curvature pT / (0.3 B): a particle reaches the wall at R if its circle is wider than R / 2.
    limit = 0.299792458 * 3.8 * 1.29 / 2
    sine = tracker.deflection(np.array([limit * 0.99, limit * 1.01, 2 * limit]), np.zeros(3))
    assert sine[0] > 1 > sine[1]
    assert np.arcsin(sine[2]) == pytest.approx(np.pi / 6, rel=1e-6)
    # Without tracks, opposite charges of the same direction are found in opposite towers.
    blind = replace(
        PERFECT, tracker=replace(tracker, zones=(TrackZone(2.5, 0.0, 0.0, 0.0, 0.0),), pt_min=0.0, field=3.8)
    )
    phi = {q: fourvector.phi(blind(*_one(q * 211, 1, 2 * limit), np.random.default_rng(0)).p4)[0] for q in (1, -1)}
    assert phi[1] == pytest.approx(0.5 - np.pi / 6, abs=0.06)
    assert phi[-1] == pytest.approx(0.5 + np.pi / 6, abs=0.06)


def test_massless_detectors_give_massless_objects() -> None:
    p4, pdg, offsets = _events(7, [200, 300])
    for name in ("massless", "atlas"):
        seen = DETECTORS[name](p4, pdg, offsets, np.random.default_rng(0))
        np.testing.assert_allclose(seen.p4[:, 0], np.linalg.norm(seen.p4[:, 1:], axis=1), rtol=1e-12)
    ideal = DETECTORS["none"](p4, pdg, offsets, np.random.default_rng(0))
    visible = ~np.isin(pdg, (12, 14))
    np.testing.assert_array_equal(ideal.p4, p4[visible])


def test_charges_are_those_of_the_particle_data() -> None:
    pythia8mc = pytest.importorskip("pythia8mc")
    data = pythia8mc.Pythia("", False).particleData
    hadrons = [111, 130, 211, 221, 310, 311, 313, 321, 323, 411, 421, 431, 443, 511, 521, 531, 541, 553]
    baryons = [1114, 2112, 2114, 2212, 2214, 2224, 3112, 3122, 3212, 3222, 3312, 3322, 3334, 4122, 4232, 5122, 5132]
    codes = np.array([1, 2, 5, 6, 11, 12, 13, 15, 16, 21, 22, 23, 24, 25, *hadrons, *baryons])
    for sign in (1, -1):
        expected = [data.charge(int(sign * code)) if sign > 0 or data.hasAnti(int(code)) else None for code in codes]
        for code, got, want in zip(codes, charge(sign * codes), expected, strict=True):
            if want is not None:
                assert got == pytest.approx(want, abs=1e-12), sign * code
    assert charge(np.array([1000020040, -1000020040])).tolist() == [2, -2]
