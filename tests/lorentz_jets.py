"""Jets of massless particles in float64, where observers can be compared."""

import torch
from torch import Tensor

from jetrep.physics.lorentz import random_lorentz, transform


def jets_of(counts: list[int], seed: int = 0, width: int | None = None) -> tuple[Tensor, Tensor]:
    """Collimated jets of some hundred GeV: (batch, n, 4) float64, zero where padded, and the mask."""
    generator = torch.Generator().manual_seed(seed)
    n = width or max(counts)
    momentum = 0.2 * torch.randn(len(counts), n, 3, dtype=torch.float64, generator=generator)
    momentum[..., 2] += 2
    energy = 100 * torch.rand(len(counts), n, 1, dtype=torch.float64, generator=generator).pow(3) + 0.5
    direction = momentum / momentum.norm(dim=-1, keepdim=True)
    mask = torch.arange(n) < torch.tensor(counts).unsqueeze(1)
    return torch.cat([energy, energy * direction], -1) * mask.unsqueeze(-1), mask


def observers(n: int, gamma: float, seed: int = 0) -> Tensor:
    """(n, 1, 4, 4) random transformations with one Lorentz factor, to act on the particles of n jets."""
    return random_lorentz(torch.full((n,), gamma), torch.Generator().manual_seed(seed)).unsqueeze(1)


def seen_by(matrices: Tensor, p4: Tensor) -> Tensor:
    """The momenta for other observers."""
    return transform(matrices, p4)
