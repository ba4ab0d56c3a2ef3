"""Random masks over particles, for objectives that predict what is hidden."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["random_particles"]


def random_particles(mask: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """Chooses particles of each jet at random, without replacement.

    Of a jet with n particles, k = clip(⌊fraction · n⌋, 1, n − 1) are chosen; none if n ≤ 1.

    Args:
        mask: (batch, n) bool, True for a real particle.
        fraction: fraction of the particles to choose.
        generator: where the numbers come from; they are drawn on its device.

    Returns:
        (batch, n) bool, True for a chosen particle.
    """
    count = mask.sum(1)
    # The small excess keeps fraction · n = 3 from becoming 2 by rounding.
    k = torch.floor(count.double() * fraction + 1e-9).long().clamp(min=1)
    k = torch.minimum(k, count - 1).clamp(min=0)
    draws = torch.rand(mask.shape, generator=generator, device=generator.device).to(mask.device)
    rank = draws.masked_fill(~mask, torch.inf).argsort(1).argsort(1)
    return (rank < k.unsqueeze(1)) & mask
