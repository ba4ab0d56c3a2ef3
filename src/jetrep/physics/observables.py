r"""Observables of whole jets, for all jets of a `Jets` at once.

Each function takes a `Jets` and returns one number per jet, shape ``(n_jets,)``. A jet without constituents has all
observables zero.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from jetrep.physics import fourvector

__all__ = ["OBSERVABLES", "RaggedJets", "eta", "mass", "multiplicity", "phi", "pt", "pt_dispersion", "width"]


class RaggedJets(Protocol):
    """What the observables need to know of a jet container; `jetrep.jets.Jets` is one."""

    @property
    def p4(self) -> NDArray[np.float32]:
        """(n_particles, 4) constituents."""
        ...

    @property
    def offsets(self) -> NDArray[np.int64]:
        """(n_jets + 1,) where each jet begins."""
        ...

    @property
    def counts(self) -> NDArray[np.int64]:
        """(n_jets,) number of constituents."""
        ...

    @property
    def jet_p4(self) -> NDArray[np.float64]:
        """(n_jets, 4) summed four-momenta."""
        ...


def pt(jets: RaggedJets) -> NDArray[np.float64]:
    """Transverse momentum of the constituents' sum, GeV."""
    return fourvector.pt(jets.jet_p4)


def eta(jets: RaggedJets) -> NDArray[np.float64]:
    """Pseudorapidity of the constituents' sum."""
    return fourvector.eta(jets.jet_p4)


def phi(jets: RaggedJets) -> NDArray[np.float64]:
    """Azimuth of the constituents' sum, in (−π, π]."""
    return fourvector.phi(jets.jet_p4)


def mass(jets: RaggedJets) -> NDArray[np.float64]:
    """Invariant mass of the constituents' sum, GeV."""
    return fourvector.mass(jets.jet_p4)


def multiplicity(jets: RaggedJets) -> NDArray[np.int64]:
    """Number of constituents."""
    return jets.counts


def width(jets: RaggedJets) -> NDArray[np.float64]:
    r"""Girth: pT-weighted mean distance from the jet axis, :math:`\sum_i p_{T,i}\,\Delta R_i / \sum_i p_{T,i}`.

    Distances are in pseudorapidity and azimuth around the summed momentum (Gallicchio and Schwartz, arXiv:1106.3076).
    """
    jet = _jet_of_particle(jets)
    p4 = jets.p4.astype(np.float64)
    weight = fourvector.pt(p4)
    distance = np.hypot(fourvector.eta(p4) - eta(jets)[jet], fourvector.delta_phi(fourvector.phi(p4), phi(jets)[jet]))
    return _ratio(_sum(jet, weight * distance, len(jets.counts)), _sum(jet, weight, len(jets.counts)))


def pt_dispersion(jets: RaggedJets) -> NDArray[np.float64]:
    r"""Fragmentation: :math:`p_T^D = \sqrt{\sum_i p_{T,i}^2} / \sum_i p_{T,i}`; 1 for a single constituent."""
    jet = _jet_of_particle(jets)
    weight = fourvector.pt(jets.p4.astype(np.float64))
    n = len(jets.counts)
    return _ratio(np.sqrt(_sum(jet, weight**2, n)), _sum(jet, weight, n))


OBSERVABLES = {
    "pt": pt,
    "eta": eta,
    "mass": mass,
    "multiplicity": multiplicity,
    "width": width,
    "pt_dispersion": pt_dispersion,
}
"""Observables by name."""


def _jet_of_particle(jets: RaggedJets) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(jets.counts)), jets.counts)


def _sum(jet: NDArray[np.int64], values: NDArray[np.float64], n_jets: int) -> NDArray[np.float64]:
    return np.bincount(jet, values, n_jets).astype(np.float64)


def _ratio(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)
