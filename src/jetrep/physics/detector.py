r"""A parametric detector: stable particles in, particle-flow objects out, for a batch of events at once.

What a fast detector simulation must do to a jet, and no more: charged particles become tracks with an efficiency and a
momentum resolution; photons, electrons and hadrons deposit their energy in the towers of two calorimeters; towers are
smeared and cut; and particle flow keeps from each tower only what its tracks do not explain. The simplifications:

- No showers, no material, no decays in flight: a particle deposits all its energy in one tower, photons and electrons
  in the electromagnetic calorimeter, hadrons in the hadronic one; muons and neutrinos leave none.
- The magnetic field moves the impact point of charged particles on the calorimeter, and those that curl up inside
  the field leave no deposit. Tracks keep the direction at the vertex.
- Smearing is log-normal, so that energies stay positive and keep their mean.
- A tower's object sits at a random point of the tower: its granularity is a resolution, not a lattice.

**Particle flow.** Let E be the smeared energy of a tower with resolution σ, and T the summed energy of the tracks that
point at it, with resolution σ_T. If the excess E − T is above the tower's energy threshold and above k√(σ² + σ_T²), it
becomes a neutral object, and the tracks are kept as measured. Otherwise there is no evidence of a neutral particle,
tower and tracks measure the same energy, and the tracks are rescaled to the inverse-variance mean of both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jetrep.physics import fourvector
from jetrep.physics.fourvector import PX, PY, PZ, E

__all__ = [
    "NEUTRAL_HADRON",
    "PHOTON",
    "TRACK",
    "Calorimeter",
    "Detector",
    "Objects",
    "Towers",
    "TrackZone",
    "Tracker",
    "Zone",
    "charge",
    "deposit",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_ELECTRON, _MUON, _PHOTON = 11, 13, 22
_NEUTRINOS = (12, 14, 16)

TRACK, PHOTON, NEUTRAL_HADRON = 0, 1, 2
"""Kinds of reconstructed objects."""


class Zone(NamedTuple):
    r"""Parameters that hold up to a pseudorapidity, for calorimeters.

    Energy resolution :math:`\sigma^2 = (cE)^2 + s^2E + n^2`, energies in GeV.
    """

    eta_max: float
    d_eta: float
    d_phi: float
    stochastic: float
    noise: float
    constant: float


class TrackZone(NamedTuple):
    r"""Parameters that hold up to a pseudorapidity, for tracks.

    Momentum resolution :math:`(\sigma_{p_T}/p_T)^2 = a^2 + (b\,p_T)^2`, p_T in GeV.
    """

    eta_max: float
    efficiency_soft: float
    efficiency_hard: float
    a: float
    b: float


@dataclass(frozen=True)
class Calorimeter:
    """One calorimeter: zones from the centre outwards, and the cuts on its towers.

    Attributes:
        zones: granularity and resolution by |η|; particles beyond the last zone are lost.
        energy_min: smallest energy of a tower, and of a neutral object, GeV.
        significance_min: the same in units of its resolution.
    """

    zones: tuple[Zone, ...]
    energy_min: float
    significance_min: float

    def resolution(self, energy: Floats, eta: Floats) -> Floats:
        """Absolute energy resolution in GeV of towers of this energy at this pseudorapidity."""
        zone = np.array(self.zones)[_zone_of(eta, self.zones)]
        sigma: Floats = np.sqrt((zone[:, 5] * energy) ** 2 + zone[:, 3] ** 2 * energy + zone[:, 4] ** 2)
        return sigma


@dataclass(frozen=True)
class Tracker:
    """The tracker and the field around it.

    Attributes:
        zones: efficiencies and momentum resolution by |η|; no tracks beyond the last zone.
        pt_min: no tracks below, GeV.
        pt_hard: where the efficiency changes from soft to hard, GeV.
        field: magnetic field along the beam, T.
        radius, half_length: extent of the field in front of the calorimeter, m.
    """

    zones: tuple[TrackZone, ...]
    pt_min: float = 0.1
    pt_hard: float = 1.0
    field: float = 0.0
    radius: float = 1.2
    half_length: float = 3.0

    def efficiency(self, pt: Floats, eta: Floats) -> Floats:
        """Probability that a charged particle is reconstructed."""
        index = _zone_of(eta, self.zones)
        zone = np.array(self.zones)[index]
        found = np.where(pt > self.pt_hard, zone[:, 2], zone[:, 1])
        return np.where((pt > self.pt_min) & (np.abs(eta) < self.zones[-1].eta_max), found, 0.0)

    def resolution(self, pt: Floats, eta: Floats) -> Floats:
        """Relative resolution of the transverse momentum."""
        zone = np.array(self.zones)[_zone_of(eta, self.zones)]
        relative: Floats = np.hypot(zone[:, 3], zone[:, 4] * pt)
        return relative

    def deflection(self, pt: Floats, eta: Floats) -> Floats:
        """Sine of the angle |Δφ| between vertex direction and impact point; above 1 the particle never arrives."""
        radius = np.minimum(self.radius, self.half_length / np.maximum(np.abs(np.sinh(eta)), 1e-9))
        return 0.5 * 0.299792458 * self.field * radius / np.maximum(pt, 1e-9)


class Objects(NamedTuple):
    """Reconstructed objects of a batch of events.

    Attributes:
        p4: (n_objects, 4) float64, E, px, py, pz in GeV.
        kind: (n_objects,) int8, `TRACK`, `PHOTON` or `NEUTRAL_HADRON`.
        offsets: (n_events + 1,) int64.
    """

    p4: Floats
    kind: NDArray[np.int8]
    offsets: Ints


class Towers(NamedTuple):
    """Towers with energy, sorted by event; ``of_hit`` gives the tower of each deposit, −1 outside the acceptance."""

    energy: Floats
    eta: Floats
    phi: Floats
    d_eta: Floats
    d_phi: Floats
    event: Ints
    of_hit: Ints


@dataclass(frozen=True)
class Detector:
    r"""A detector: with ``tracker`` and calorimeters, or, without them, an ideal one that sees all but neutrinos.

    Attributes:
        name: what it is called.
        eta_max: acceptance of the ideal detector; the others have that of their zones.
        tracker, electromagnetic, hadronic: all three or none.
        massless: give every object the energy E = \|p\|, as data sets without particle masses do.
    """

    name: str
    eta_max: float = 5.0
    tracker: Tracker | None = None
    electromagnetic: Calorimeter | None = None
    hadronic: Calorimeter | None = None
    massless: bool = False

    def __call__(self, p4: Floats, pdg: Ints, offsets: Ints, rng: np.random.Generator) -> Objects:
        """Reconstruct a batch of events.

        Args:
            p4: (n_particles, 4) stable particles, E, px, py, pz in GeV.
            pdg: (n_particles,) PDG codes.
            offsets: (n_events + 1,) event j owns ``p4[offsets[j]:offsets[j + 1]]``.
            rng: source of all randomness.
        """
        event = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        eta = fourvector.eta(p4)
        seen = ~np.isin(np.abs(pdg), _NEUTRINOS) & (np.abs(eta) < self.eta_max)
        p4, pdg, event = p4[seen], pdg[seen], event[seen]
        if self.tracker is None or self.electromagnetic is None or self.hadronic is None:
            kind = np.where(charge(pdg) != 0, TRACK, np.where(pdg == _PHOTON, PHOTON, NEUTRAL_HADRON))
            found, owner = p4, event
        else:
            found, kind, owner = _particle_flow(self.tracker, self.electromagnetic, self.hadronic, p4, pdg, event, rng)
        if self.massless:
            found = found.copy()
            found[:, E] = np.linalg.norm(found[:, 1:], axis=1)
        by_event = np.argsort(owner, kind="stable")
        counts = np.bincount(owner, minlength=len(offsets) - 1)
        return Objects(
            found[by_event], kind[by_event].astype(np.int8), np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        )


def charge(pdg: Ints) -> Floats:
    """Electric charge in units of e from the PDG code: leptons, bosons, and hadrons through their quark digits."""
    codes, where = np.unique(pdg, return_inverse=True)
    return np.array([_charge_of(int(code)) for code in codes])[where].reshape(np.shape(pdg))


def _charge_of(code: int) -> float:
    sign, code = (1, code) if code > 0 else (-1, -code)
    if code in (11, 13, 15):
        return -sign
    if code in (24, 37):
        return sign
    if code < 100:
        return sign * (0.0 if code > 6 or code == 0 else (2 / 3 if code % 2 == 0 else -1 / 3))

    def quark(digit: int) -> float:
        return 2 / 3 if digit % 2 == 0 else -1 / 3

    # K0L and K0S are 130 and 310, whose digits are no quarks in order
    if code in (130, 310):
        return 0.0
    q1, q2, q3 = code // 1000 % 10, code // 100 % 10, code // 10 % 10
    if code > 1_000_000_000:  # nuclei 10LZZZAAAI
        return sign * (code // 10_000 % 1000)
    if q1:
        return sign * round(quark(q1) + quark(q2) + quark(q3))
    # A positive meson code has its heavier quark as quark if that is up-like, as antiquark if it is down-like.
    direction = 1 if q2 % 2 == 0 else -1
    return sign * round(direction * (quark(q2) - quark(q3)))


def _zone_of(eta: Floats, zones: tuple[Zone, ...] | tuple[TrackZone, ...]) -> Ints:
    """Index of the zone of each |η|; the last one also beyond its end."""
    index = np.searchsorted([zone.eta_max for zone in zones], np.abs(eta), side="right")
    return np.minimum(index, len(zones) - 1)


def deposit(calorimeter: Calorimeter, energy: Floats, eta: Floats, phi: Floats, event: Ints) -> Towers:
    """Sum deposits into towers, without any smearing.

    Args:
        calorimeter: its granularity is used.
        energy: (n,) energy of each deposit, GeV.
        eta: (n,) pseudorapidity.
        phi: (n,) azimuth.
        event: (n,) event number.
    """
    zone_index = _zone_of(eta, calorimeter.zones)
    zone = np.array(calorimeter.zones)[zone_index]
    # whole number of towers around the circle
    n_phi = np.rint(2 * np.pi / zone[:, 2]).astype(np.int64)
    i_eta = np.floor(eta / zone[:, 1]).astype(np.int64)
    i_phi = np.floor((phi + np.pi) * (n_phi / (2 * np.pi))).astype(np.int64) % n_phi
    # Fields of the key: event, zone (4), η (±2^13), φ (2^14).
    key = (((event * 16 + zone_index) << 14) + (i_eta + (1 << 13)) << 14) + i_phi
    inside = np.abs(eta) < calorimeter.zones[-1].eta_max
    _, first, tower = np.unique(key[inside], return_index=True, return_inverse=True)
    of_hit = np.full(len(eta), -1, np.int64)
    of_hit[inside] = tower
    first = np.flatnonzero(inside)[first]
    d_eta, d_phi = zone[first, 1], 2 * np.pi / n_phi[first]
    return Towers(
        energy=_totals(tower, energy[inside], len(first)),
        eta=(i_eta[first] + 0.5) * d_eta,
        phi=(i_phi[first] + 0.5) * d_phi - np.pi,
        d_eta=d_eta,
        d_phi=d_phi,
        event=event[first],
        of_hit=of_hit,
    )


def _totals(index: Ints, values: Floats, n: int) -> Floats:
    # bincount gives integers if there is nothing to count, weights or not
    return np.bincount(index, values, n).astype(np.float64)


def _smear(mean: Floats, sigma: Floats, rng: np.random.Generator) -> Floats:
    """Log-normal numbers with this mean and standard deviation; zero where the mean is zero."""
    relative2 = np.divide(sigma, mean, out=np.zeros_like(mean), where=mean > 0) ** 2
    width = np.sqrt(np.log1p(relative2))
    smeared: Floats = mean * np.exp(width * rng.standard_normal(len(mean)) - 0.5 * width**2)
    return smeared


def _particle_flow(
    tracker: Tracker,
    electromagnetic: Calorimeter,
    hadronic: Calorimeter,
    p4: Floats,
    pdg: Ints,
    event: Ints,
    rng: np.random.Generator,
) -> tuple[Floats, Ints, Ints]:
    """Four-vectors, kinds and events of the reconstructed objects, unsorted."""
    pt, eta, phi, q = fourvector.pt(p4), fourvector.eta(p4), fourvector.phi(p4), charge(pdg)
    tracked = (q != 0) & (rng.random(len(p4)) < tracker.efficiency(pt, eta))
    resolution = tracker.resolution(pt, eta)
    scale = np.where(tracked, _smear(np.ones(len(p4)), resolution, rng), 1.0)

    sine = np.where(q != 0, tracker.deflection(pt, eta), 0.0)
    arrives = (sine < 1) & (np.abs(pdg) != _MUON)
    impact = fourvector.delta_phi(phi - np.sign(q) * np.arcsin(np.minimum(sine, 1.0)), np.zeros(1))
    in_em = np.isin(np.abs(pdg), (_ELECTRON, _PHOTON))

    found, kinds, owners = [], [], []
    for calorimeter, kind, here in ((electromagnetic, PHOTON, in_em), (hadronic, NEUTRAL_HADRON, ~in_em)):
        hit = np.flatnonzero(arrives & here)
        towers = deposit(calorimeter, p4[hit, E], eta[hit], impact[hit], event[hit])
        points = tracked[hit] & (towers.of_hit >= 0)
        track, tower = hit[points], towers.of_hit[points]
        neutral, factor = _explain(
            calorimeter, towers, tower, scale[track] * p4[track, E], resolution[track] * p4[track, E], rng
        )
        scale[track] *= factor
        keep = neutral > 0
        found.append(_tower_p4(towers, neutral, rng)[keep])
        kinds.append(np.full(int(keep.sum()), kind))
        owners.append(towers.event[keep])
    return (
        np.concatenate([_scaled(p4[tracked], scale[tracked]), *found]),
        np.concatenate([np.full(int(tracked.sum()), TRACK), *kinds]),
        np.concatenate([event[tracked], *owners]),
    )


def _explain(
    calorimeter: Calorimeter,
    towers: Towers,
    tower: Ints,
    track_energy: Floats,
    track_sigma: Floats,
    rng: np.random.Generator,
) -> tuple[Floats, Floats]:
    """Particle flow in one calorimeter.

    Args:
        calorimeter: for its resolution and cuts.
        towers: true deposits.
        tower: (n_tracks,) tower at which each track points.
        track_energy: (n_tracks,) measured energy, GeV.
        track_sigma: (n_tracks,) its resolution, GeV.
        rng: randomness.

    Returns:
        (n_towers,) energy of the neutral object of each tower, or zero; (n_tracks,) factor on each track's momentum.
    """
    n = len(towers.energy)
    measured = _smear(towers.energy, calorimeter.resolution(towers.energy, towers.eta), rng)
    sigma = calorimeter.resolution(measured, towers.eta)
    fires = (measured > calorimeter.energy_min) & (measured > calorimeter.significance_min * sigma)
    measured = np.where(fires, measured, 0.0)
    tracks = _totals(tower, track_energy, n)
    variance = _totals(tower, track_sigma**2, n)
    excess = measured - tracks
    neutral = (excess > calorimeter.energy_min) & (excess > calorimeter.significance_min * np.sqrt(sigma**2 + variance))
    # Both measure the same energy: weights 1/σ². A silent tower says nothing.
    total = np.where(fires, sigma**2 + variance, 0.0)
    best = np.divide(tracks * sigma**2 + measured * variance, total, out=tracks.copy(), where=total > 0)
    factor = np.divide(best, tracks, out=np.ones(n), where=(tracks > 0) & ~neutral)
    return np.where(neutral, excess, 0.0), factor[tower]


def _tower_p4(towers: Towers, energy: Floats, rng: np.random.Generator) -> Floats:
    """Massless four-vectors from random points of the towers."""
    n = len(energy)
    eta = towers.eta + towers.d_eta * (rng.random(n) - 0.5)
    phi = towers.phi + towers.d_phi * (rng.random(n) - 0.5)
    pt = energy / np.cosh(eta)
    return fourvector.from_ptetaphim(pt, eta, phi, np.zeros(n))


def _scaled(p4: Floats, factor: Floats) -> Floats:
    """Momenta times ``factor`` at fixed mass."""
    out = p4 * factor[:, None]
    out[:, E] = np.sqrt(np.sum(out[:, [PX, PY, PZ]] ** 2, axis=1) + fourvector.mass(p4) ** 2)
    return out
