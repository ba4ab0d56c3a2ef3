"""Observables of whole jets against definitions, and their invariances."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jetrep.jets import Jets
from jetrep.physics import observables


def _jets(seed: int, n_jets: int = 7) -> Jets:
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 12, n_jets)
    counts[0] = 1
    n = counts.sum()
    axis = np.repeat(rng.uniform(-1.5, 1.5, n_jets), counts), np.repeat(rng.uniform(-np.pi, np.pi, n_jets), counts)
    pt, eta, phi = rng.exponential(30, n) + 0.1, axis[0] + rng.normal(0, 0.2, n), axis[1] + rng.normal(0, 0.2, n)
    p3 = np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)], -1)
    energy = np.hypot(np.linalg.norm(p3, axis=1), rng.uniform(0, 1, n))
    return Jets(np.column_stack([energy, p3]), np.concatenate([[0], np.cumsum(counts)]))


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_kinematics_are_those_of_the_summed_vector(seed: int) -> None:
    jets = _jets(seed)
    for j in range(len(jets)):
        e, px, py, pz = jets[j].astype(np.float64).sum(0)
        assert observables.pt(jets)[j] == pytest.approx(np.hypot(px, py), rel=1e-12)
        assert observables.phi(jets)[j] == pytest.approx(np.arctan2(py, px), abs=1e-12)
        assert observables.eta(jets)[j] == pytest.approx(np.arctanh(pz / np.sqrt(px**2 + py**2 + pz**2)), abs=1e-9)
        m2 = e**2 - px**2 - py**2 - pz**2
        # a single float32 particle may be space-like by rounding, which counts as massless
        assert observables.mass(jets)[j] ** 2 == pytest.approx(max(m2, 0.0), abs=1e-9 * e**2)
        assert observables.multiplicity(jets)[j] == len(jets[j])


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-np.pi, np.pi), st.floats(0.1, 10))
def test_shapes_do_not_depend_on_azimuth_or_energy_scale(seed: int, angle: float, scale: float) -> None:
    jets = _jets(seed)
    c, s = np.cos(angle), np.sin(angle)
    rotation = np.array([[1, 0, 0, 0], [0, c, -s, 0], [0, s, c, 0], [0, 0, 0, 1]])
    turned = Jets(scale * jets.p4.astype(np.float64) @ rotation.T, jets.offsets)
    for name in ("width", "pt_dispersion", "eta"):
        values = observables.OBSERVABLES[name]
        np.testing.assert_allclose(values(turned), values(jets), rtol=1e-4, atol=1e-5)
    # The components are rounded anew to single precision, which hides masses below 3e-3 of the energy.
    before, after, energy = observables.mass(jets), observables.mass(turned) / scale, jets.jet_p4[:, 0]
    light = before < 3e-3 * energy
    np.testing.assert_allclose(after[~light], before[~light], rtol=2e-3, atol=0.02)
    np.testing.assert_array_less(after[light], 3.1e-3 * energy[light] + 1e-9)


def test_shapes_of_known_jets() -> None:
    # Two equal particles at η = ±0.3, and a single one.
    p4 = [[10 * np.cosh(0.3), 10, 0, 10 * np.sinh(0.3)], [10 * np.cosh(0.3), 10, 0, -10 * np.sinh(0.3)], [5, 0, 5, 0]]
    jets = Jets(np.array(p4), np.array([0, 2, 3, 3]))
    np.testing.assert_allclose(observables.width(jets), [0.3, 0, 0], atol=1e-6)
    np.testing.assert_allclose(observables.pt_dispersion(jets), [np.sqrt(0.5), 1, 0], rtol=1e-6)
    # two massless particles: m² = 2 pT² (cosh Δη − cos Δφ)
    np.testing.assert_allclose(observables.mass(jets), [np.sqrt(200 * (np.cosh(0.6) - 1)), 0, 0], atol=1e-3)


@pytest.mark.parametrize("name", list(observables.OBSERVABLES))
def test_empty_jets_have_no_size(name: str) -> None:
    jets = Jets(np.zeros((0, 4)), np.zeros(4, np.int64))
    np.testing.assert_array_equal(observables.OBSERVABLES[name](jets), np.zeros(3))
