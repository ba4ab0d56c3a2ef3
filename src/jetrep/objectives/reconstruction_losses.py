r"""How far a reconstructed jet is from the true one: the same number for every observer.

The distance between two momenta is that between them in the rest frame of the true jet, with four-velocity u:

.. math:: d_u^2(p, q) = 2 (u\cdot\Delta)^2 - \Delta\cdot\Delta, \qquad \Delta = p - q,

invariant, positive, zero only at p = q. In the rest frame it is the Euclidean distance, which is what all losses here
compute: they take momenta **in that frame**, in units of the jet mass (`RestFrame.to_rest`, `in_rest_frame`).

Each loss gives one number for a jet, a sum over particles; padding takes no part. A set without particles that is
compared with one that has some counts each of these as far away as it is from zero.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from jetrep.physics.lorentz import RestFrame, minkowski

__all__ = [
    "assignment",
    "chamfer",
    "hungarian",
    "in_rest_frame",
    "invariant_distance2",
    "mse",
    "pair_distance2",
    "presence_loss",
]


def invariant_distance2(p: Tensor, q: Tensor, u: Tensor) -> Tensor:
    """d²_u of momenta (..., 4) and a four-velocity (..., 4), by its definition: (...), in the square of their units.

    For highly boosted jets it is a difference of large numbers: boost first (`in_rest_frame`), then compare.
    """
    difference = p - q
    return 2 * minkowski(u, difference).square() - minkowski(difference, difference)


def in_rest_frame(true: Tensor, other: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets of momenta in the rest frame of the true jet, in units of its mass, float64.

    Args:
        true: (batch, n, 4) momenta in GeV.
        other: (batch, m, 4) momenta in GeV.
        mask: (batch, n) bool, True for a real particle of the true jet.
    """
    frame = RestFrame.of(true.double().masked_fill(~mask.unsqueeze(-1), 0.0).sum(1))
    return frame.to_rest(true), frame.to_rest(other)


def pair_distance2(p: Tensor, q: Tensor) -> Tensor:
    """Squared Euclidean distances (batch, n, m), by differences: those of close momenta keep their digits."""
    return sum(
        ((p[..., k].unsqueeze(2) - q[..., k].unsqueeze(1)).square() for k in range(p.shape[-1])), p.new_zeros(())
    )


def _nearest(p: Tensor, q: Tensor, index: Tensor, p_mask: Tensor, q_mask: Tensor) -> Tensor:
    """Sum over p of the squared distance to the q of ``index``, or to zero if there is no q."""
    found = q.gather(1, index.unsqueeze(-1).expand(-1, -1, q.shape[-1])) * q_mask.any(1)[:, None, None]
    return ((p - found).square().sum(-1) * p_mask).sum(1)


def chamfer(p: Tensor, q: Tensor, p_mask: Tensor, q_mask: Tensor) -> Tensor:
    """½ (Σ_i min_j d²(p_i, q_j) + Σ_j min_i d²(p_i, q_j)): (batch,).

    Only the nearest pairs are differentiated; on a tie, the first of them.

    Args:
        p: (batch, n, 4) momenta in the rest frame.
        q: (batch, m, 4) the same of the other set.
        p_mask: (batch, n) bool, True for a real particle.
        q_mask: (batch, m) bool.
    """
    with torch.no_grad():
        distance = pair_distance2(p, q)
        to_q = distance.masked_fill(~q_mask.unsqueeze(1), torch.inf).argmin(2)
        to_p = distance.masked_fill(~p_mask.unsqueeze(2), torch.inf).argmin(1)
    return 0.5 * (_nearest(p, q, to_q, p_mask, q_mask) + _nearest(q, p, to_p, q_mask, p_mask))


def mse(p: Tensor, q: Tensor, p_mask: Tensor, q_mask: Tensor) -> Tensor:
    """Σ_i d²(p_i, q_i) of particles at the same place, a missing one counting as zero: (batch,).

    Args:
        p: (batch, n, 4) momenta in the rest frame.
        q: (batch, n, 4) the same of the other set.
        p_mask: (batch, n) bool, True for a real particle.
        q_mask: (batch, n) bool.
    """
    return (p * p_mask.unsqueeze(-1) - q * q_mask.unsqueeze(-1)).square().sum((1, 2))


def hungarian(p: Tensor, q: Tensor, p_mask: Tensor, q_mask: Tensor) -> Tensor:
    """`mse` after the assignment of particles that makes it smallest: (batch,).

    A particle without a partner, where the sets differ in number, is assigned to zero.

    Args:
        p: (batch, n, 4) momenta in the rest frame.
        q: (batch, m, 4) the same of the other set.
        p_mask: (batch, n) bool, True for a real particle.
        q_mask: (batch, m) bool.
    """
    width = max(p.shape[1], q.shape[1])
    p = F.pad(p * p_mask.unsqueeze(-1), (0, 0, 0, width - p.shape[1]))
    q = F.pad(q * q_mask.unsqueeze(-1), (0, 0, 0, width - q.shape[1]))
    # A loss that is not finite is told by whoever trains, not by the assignment.
    index = assignment(pair_distance2(p, q).detach().nan_to_num(nan=1e9, posinf=1e9))
    return (p - q.gather(1, index.unsqueeze(-1).expand(-1, -1, q.shape[-1]))).square().sum((1, 2))


def assignment(cost: Tensor) -> Tensor:
    """The permutation of columns of smallest total cost, for each matrix: (batch, n, n) → (batch, n) int64.

    Raises:
        ValueError: if a cost is not finite.
    """
    matrices = cost.detach().double().cpu().numpy()
    if not np.isfinite(matrices).all():
        raise ValueError("the costs of an assignment must be finite")
    return torch.from_numpy(_assignments(np.ascontiguousarray(matrices))).to(cost.device)


@numba.njit(cache=True, nogil=True)
def _assignments(cost: NDArray[np.float64]) -> NDArray[np.int64]:
    """Shortest augmenting paths with potentials (Jonker and Volgenant 1987), O(n³) for each matrix."""
    batch, n = cost.shape[0], cost.shape[1]
    result = np.empty((batch, n), np.int64)
    for b in range(batch):
        # Column n stands for "no column": rows start there. row_of[j] is the row that holds column j, −1 for none.
        row_potential, column_potential = np.zeros(n), np.zeros(n + 1)
        row_of = np.full(n + 1, -1)
        for start in range(n):
            row_of[n] = start
            j = n
            shortest, before = np.full(n, np.inf), np.full(n, n)
            seen = np.zeros(n + 1, np.bool_)
            while row_of[j] != -1:
                seen[j] = True
                i, delta, following = row_of[j], np.inf, -1
                for k in range(n):
                    if not seen[k]:
                        reduced = cost[b, i, k] - row_potential[i] - column_potential[k]
                        if reduced < shortest[k]:
                            shortest[k] = reduced
                            before[k] = j
                        if shortest[k] < delta:
                            delta = shortest[k]
                            following = k
                for k in range(n + 1):
                    if seen[k]:
                        row_potential[row_of[k]] += delta
                        column_potential[k] -= delta
                    elif k < n:
                        shortest[k] -= delta
                j = following
            while j != n:
                row_of[j] = row_of[before[j]]
                j = before[j]
        for j in range(n):
            result[b, row_of[j]] = j
    return result


def presence_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Binary cross entropy of the presence of slots, summed over slots: (batch,). Slot i is real if i < multiplicity.

    Args:
        logits: (batch, slots) of the presence head.
        mask: (batch, n) bool, True for a real particle.
    """
    target = torch.arange(logits.shape[1], device=logits.device) < mask.sum(1, keepdim=True)
    return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none").sum(1)
