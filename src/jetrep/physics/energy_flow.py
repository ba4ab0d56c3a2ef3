r"""Energy-flow polynomials: a basis of the infrared- and collinear-safe observables of a jet (arXiv 1712.07124).

A polynomial belongs to a graph. Its vertices are sums over particles with weights :math:`z_i = p_{T,i}/\sum_j p_{T,j}`,
its edges are distances :math:`\theta_{ij} = \Delta R_{ij}` (β = 1): an edge is
:math:`\sum_{ij} z_i z_j \theta_{ij}`, a triangle :math:`\sum_{ijk} z_i z_j z_k \theta_{ij}\theta_{jk}\theta_{ki}`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jetrep.physics.fourvector import delta_phi

__all__ = ["ENERGY_FLOW", "energy_flow"]

ENERGY_FLOW = ("edge", "double edge", "wedge", "triple edge", "double edge and edge", "star", "path", "triangle")
"""All connected graphs of up to three edges, in the order of `energy_flow`."""

_BLOCK = 2_000_000  # distances held at once


def energy_flow(pt: NDArray[np.float64], eta: NDArray[np.float64], phi: NDArray[np.float64]) -> NDArray[np.float64]:
    """The polynomials of the connected graphs of up to three edges: (batch, 8), zero for an empty jet.

    Args:
        pt: (batch, n) transverse momenta, zero where padded, in any unit.
        eta: (batch, n) pseudorapidities, or rapidities, around any axis.
        phi: (batch, n) azimuths around any axis.
    """
    rows = max(1, _BLOCK // max(1, pt.shape[1] ** 2))
    parts = [_of_block(*(x[i : i + rows] for x in (pt, eta, phi))) for i in range(0, len(pt), rows)]
    return np.concatenate(parts) if parts else np.zeros((0, len(ENERGY_FLOW)))


def _of_block(pt: NDArray[np.float64], eta: NDArray[np.float64], phi: NDArray[np.float64]) -> NDArray[np.float64]:
    total = pt.sum(1, keepdims=True)
    z = np.divide(pt, total, out=np.zeros_like(pt), where=total > 0)
    # Padding has no weight; its angles must only not be such that 0 · ∞ appears.
    eta, phi = np.where(pt > 0, eta, 0.0), np.where(pt > 0, phi, 0.0)
    theta = np.hypot(eta[:, :, None] - eta[:, None], delta_phi(phi[:, :, None], phi[:, None]))
    one, two, three = ((theta**k @ z[..., None])[..., 0] for k in (1, 2, 3))
    between = (theta * z[:, None]) @ theta
    corner = ((theta * between) @ z[..., None])[..., 0]
    path = (theta @ (z * one)[..., None])[..., 0]
    return np.stack([(z * x).sum(1) for x in (one, two, one**2, three, two * one, one**3, one * path, corner)], 1)
