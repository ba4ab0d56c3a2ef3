"""From the coordinates and particle codes of data sets to four-vectors and the columns of `jetrep.jets.columns`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from particle import InvalidParticle, Particle, ParticleNotFound

from jetrep.jets.columns import particle_types

__all__ = [
    "UNKNOWN_CODE",
    "Flat",
    "code_columns",
    "flat",
    "from_ptyphim",
    "jets_with",
    "masses",
    "massless",
    "particle_flow_codes",
    "whole_codes",
]

Floats = NDArray[np.float64]

UNKNOWN_CODE = "unknown particle code"
"""Flag of jets with a constituent whose code stands for no known particle."""

_NEUTRINOS = (12, 14, 16)


class Flat(NamedTuple):
    """The particles of padded jets, one after the other.

    Attributes:
        particles: (n_particles, n_columns) float64.
        counts: (n_jets,) how many belong to each jet.
        jet: (n_particles,) the jet of each.
    """

    particles: Floats
    counts: NDArray[np.int64]
    jet: NDArray[np.int64]


def flat(padded: NDArray[Any], real: NDArray[np.bool_]) -> Flat:
    """The particles of padded jets (n_jets, width, n_columns) where ``real`` (n_jets, width), wherever they stand."""
    counts = real.sum(1, dtype=np.int64)
    with np.errstate(all="ignore"):
        particles = padded[real].astype(np.float64)
    return Flat(particles, counts, np.repeat(np.arange(len(counts)), counts))


def massless(pt: Floats, eta: Floats, phi: Floats) -> Floats:
    """Four-vectors (n, 4) of massless particles from pT (GeV), pseudorapidity and azimuth, (n,) each.

    For massless particles rapidity and pseudorapidity are the same. See `from_ptyphim`.
    """
    return from_ptyphim(pt, eta, phi, np.zeros(1))


def from_ptyphim(pt: Floats, y: Floats, phi: Floats, mass: Floats) -> Floats:
    r"""Four-vectors (n, 4) from pT, **rapidity**, azimuth and mass (GeV), (n,) each.

    .. math:: m_T = \sqrt{p_T^2 + m^2}, \quad E = m_T \cosh y, \quad p_z = m_T \sinh y

    Masses below zero, which rounding makes of massless particles, count as zero. Where pT is below zero, which no
    momentum is, all components are NaN, so that nobody takes it for a particle on the other side.
    """
    with np.errstate(all="ignore"):
        pt = np.where(pt < 0, np.nan, pt)
        transverse = np.hypot(pt, np.maximum(mass, 0))
        return np.stack([transverse * np.cosh(y), pt * np.cos(phi), pt * np.sin(phi), transverse * np.sinh(y)], -1)


def whole_codes(values: NDArray[Any]) -> NDArray[np.int32]:
    """Particle codes (n,) that a file holds as numbers of any type; 0 for what is no whole number."""
    with np.errstate(invalid="ignore"):
        fits = (np.abs(values) < 2**31) & (np.floor(values) == values)
    return np.where(fits, values, 0).astype(np.int32)


def particle_flow_codes(values: NDArray[Any]) -> NDArray[np.int32]:
    """Codes (n,) of CMS particle flow, with the deposits in the forward calorimeter under codes of particles.

    CMS gives 1 to hadronic and 2 to electromagnetic deposits there, the codes of quarks: read as neutral hadrons
    (130) and photons (22).
    """
    codes = whole_codes(values)
    codes[codes == 1] = 130
    codes[codes == 2] = 22
    return codes


def code_columns(codes: NDArray[np.int32]) -> dict[str, NDArray[Any]]:
    """Charge, type flags and ``pdg_id`` of particles (n,)."""
    return {**particle_types(codes), "pdg_id": codes}


def masses(codes: NDArray[np.int32]) -> tuple[Floats, NDArray[np.bool_]]:
    """Masses (n,) in GeV of particles with these codes, after the Particle Data Group, and which codes are known.

    Particles of unknown codes get the mass 0.
    """
    kinds, which = np.unique(codes, return_inverse=True)
    values = [_mass(int(code)) for code in kinds]
    known = np.array([value is not None for value in values], np.bool_)
    table = np.array([value or 0.0 for value in values], np.float64)
    return table[which.reshape(-1)], known[which.reshape(-1)]


@lru_cache(maxsize=4096)
def _mass(code: int) -> float | None:
    if abs(code) in _NEUTRINOS:
        return 0.0
    try:
        mass = Particle.from_pdgid(code).mass
    except (ParticleNotFound, InvalidParticle):
        return None
    return None if mass is None else float(mass) / 1000


def jets_with(particles: NDArray[np.bool_], jet: NDArray[np.int64], n_jets: int) -> NDArray[np.bool_]:
    """(n_jets,) which jets have one of the particles that the mask (n_particles,) marks; ``jet`` tells whose it is."""
    return np.bincount(jet[particles], minlength=n_jets) > 0
