r"""The energy mover's distance between jets (arXiv 1902.02346), the same number for every observer.

In the rest frame of the true jet, in units of its mass, a jet is a distribution of energy over directions. The distance
of two jets is the least work that turns one into the other: energy that is moved costs the distance between its
directions, energy that one jet has more than the other costs its amount,

.. math:: \min_{f \ge 0} \sum_{ij} f_{ij} |\hat n_i - \hat n_j| + \Big|\sum_i E_i - \sum_j E'_j\Big|, \qquad
   \sum_j f_{ij} \le E_i,\; \sum_i f_{ij} \le E'_j,\; \sum_{ij} f_{ij} = \min\Big(\sum_i E_i, \sum_j E'_j\Big).

The chord :math:`|\hat n_i - \hat n_j|` plays the part of the angle, with R = 1: no chord is longer than 2R, so this is
a metric. All chords from the origin have length R: the missing energy of one jet may be put there, and the distance is
that of Wasserstein, of order one, between two equal amounts of energy in three dimensions. It is infrared and collinear
safe, and blind to how the energy in one direction is divided among particles.

As all losses here (`reconstruction_losses`) these take momenta **in that frame** (`in_rest_frame`) and give one number
for a jet. Energies below zero count as zero. A particle nearly at rest has hardly a direction: below a momentum of 1e-6
it moves to the origin, which keeps gradients finite.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jetrep.objectives.reconstruction_losses import pair_distance2
from jetrep.physics.lorentz import random_directions

__all__ = ["energy_movers_distance", "sinkhorn_divergence", "sliced_energy_movers_distance"]

_MIN_MOMENTUM = 1e-6


def _energy_flow(p: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Energies (batch, n), zero where padded, and directions (batch, n, 3)."""
    momentum = p[..., 1:]
    # The square root of zero has no gradient.
    size = momentum.square().sum(-1, keepdim=True).clamp(min=_MIN_MOMENTUM**2).sqrt()
    return p[..., 0].clamp(min=0) * mask, momentum / size


def _balanced(p: Tensor, q: Tensor, p_mask: Tensor, q_mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Energies (batch, n + 1) of equal sum and directions (batch, n + 1, 3) of both; missing energy at the origin."""
    (a, x), (b, y) = _energy_flow(p, p_mask), _energy_flow(q, q_mask)
    missing = (b.sum(1) - a.sum(1)).unsqueeze(1)
    origin = x.new_zeros(len(x), 1, 3)
    a, b = torch.cat([a, missing.clamp(min=0)], 1), torch.cat([b, (-missing).clamp(min=0)], 1)
    return a, torch.cat([x, origin], 1), b, torch.cat([y, origin], 1)


def _chords(x: Tensor, y: Tensor) -> Tensor:
    """Distances (batch, n, m); equal points have no gradient."""
    squared = pair_distance2(x, y)
    same = squared <= 1e-30
    return squared.masked_fill(same, 1.0).sqrt().masked_fill(same, 0.0)


def energy_movers_distance(p: Tensor, q: Tensor, p_mask: Tensor, q_mask: Tensor) -> Tensor:
    """The distance itself, by network simplex (POT), jet by jet on the CPU: (batch,). It is differentiable.

    Args:
        p: (batch, n, 4) momenta in the rest frame.
        q: (batch, m, 4) the same of the other set.
        p_mask: (batch, n) bool, True for a real particle.
        q_mask: (batch, m) bool.
    """
    import ot  # takes two seconds, and few objectives transport energy

    # The solver wants weights that agree to the last digit.
    a, x, b, y = _balanced(p.double().cpu(), q.double().cpu(), p_mask.cpu(), q_mask.cpu())
    total, cost = a.sum(1), _chords(x, y)
    distances = []
    for i in range(len(a)):
        rows, columns = (weights[i].detach() > 0 for weights in (a, b))
        if not rows.any():
            distances.append(total[i])  # no energy at all
            continue
        shares = a[i, rows] / total[i], b[i, columns] / b[i].sum()
        distances.append(total[i] * ot.emd2(*shares, cost[i][rows][:, columns], numItermax=1_000_000))
    return torch.stack(distances).to(p) if distances else p.new_zeros(0)


def sinkhorn_divergence(
    p: Tensor, q: Tensor, p_mask: Tensor, q_mask: Tensor, epsilon: float = 0.02, max_iter: int = 200
) -> Tensor:
    r"""The distance with an entropy of weight ε, less its value for equal jets (arXiv 1810.08278): (batch,).

    :math:`W_\epsilon(p, q) - \frac12 W_\epsilon(p, p) - \frac12 W_\epsilon(q, q)`: positive, zero only at equality, and
    the distance itself for ε → 0. In batches on any device, in float64, by POT's iteration in the logarithms.

    Args:
        p: (batch, n, 4) momenta in the rest frame.
        q: (batch, m, 4) the same of the other set.
        p_mask: (batch, n) bool, True for a real particle.
        q_mask: (batch, m) bool.
        epsilon: weight of the entropy, a chord: directions closer than this blur. Halve it, and double ``max_iter``.
        max_iter: iterations at most.
    """
    import ot.batch

    a, x, b, y = _balanced(p.double(), q.double(), p_mask, q_mask)
    total = a.sum(1).clamp(min=1e-30)
    a, b = (weights / total.unsqueeze(1) for weights in (a, b))

    def entropic(a: Tensor, x: Tensor, b: Tensor, y: Tensor) -> Tensor:
        # Out of reach, so that what has no energy takes no part in the first iterations either.
        absent = (a <= 0).unsqueeze(2) | (b <= 0).unsqueeze(1)
        cost = _chords(x, y).masked_fill(absent, 1e3)
        with torch.no_grad():
            weights = a.clamp(min=1e-30), b.clamp(min=1e-30)  # they have to have a logarithm
            found = ot.batch.solve_batch(cost, epsilon, *weights, max_iter=max_iter, tol=1e-9, method="log_sinkhorn")
            plan, (u, v) = found.plan, found.potentials
        # Not differentiated through the iteration: at its end, the value moves as plan and potentials tell.
        moved = (plan * (cost - cost.detach())).sum((1, 2))
        of_weights = (u * (a - a.detach())).sum(1) + (v * (b - b.detach())).sum(1)
        value: Tensor = found.value + moved + epsilon * of_weights
        return value

    divergence = entropic(a, x, b, y) - 0.5 * (entropic(a, x, a, x) + entropic(b, y, b, y))
    return (total * divergence).to(p.dtype)


def sliced_energy_movers_distance(
    p: Tensor, q: Tensor, p_mask: Tensor, q_mask: Tensor, axes: Tensor | None = None
) -> Tensor:
    """Twice the mean, over axes, of the distance of the energies along an axis: (batch,), by sorting.

    Along an axis, energy never has farther to go than in space, and half as far in the mean over all axes. So over all
    axes this is at most the distance, and equals it for two jets of one particle each.

    Args:
        p: (batch, n, 4) momenta in the rest frame.
        q: (batch, m, 4) the same of the other set.
        p_mask: (batch, n) bool, True for a real particle.
        q_mask: (batch, m) bool.
        axes: (axes, 3) unit vectors; by default 32 that torch's global generator draws.
    """
    if axes is None:
        axes = random_directions(32)
    a, x, b, y = _balanced(p, q, p_mask, q_mask)
    points, energy = torch.cat([x, y], 1), torch.cat([a, -b], 1)
    with torch.autocast(points.device.type, enabled=False):  # small distances are differences of large numbers
        along, order = (axes.to(points) @ points.mT).sort(-1)
    excess = energy.unsqueeze(1).expand_as(along).gather(-1, order).cumsum(-1)
    return 2 * (excess[..., :-1].abs() * along.diff(dim=-1)).sum(-1).mean(-1)
