"""Collimated jets in the barrel, and jets that are hardly jets, for networks that look at pT, η and φ."""

import torch
from torch import Tensor

from lorentz_jets import jets_of

DEGENERATE = ("none", "one", "identical", "soft", "space-like", "back-to-back", "at rest", "along the beam")


def central_jets(counts: list[int], seed: int = 0, width: int | None = None) -> tuple[Tensor, Tensor]:
    """Massless particles around the x axis, with an axis of their own for each jet: (batch, n, 4) float64, mask."""
    p4, mask = jets_of(counts, seed, width)
    p4 = 10 * p4[..., [0, 3, 1, 2]]
    angle = torch.linspace(-3.0, 3.3, len(counts), dtype=torch.float64).unsqueeze(1)
    x, y = p4[..., 1], p4[..., 2]
    turned = x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()
    return torch.stack([p4[..., 0], *turned, p4[..., 3]], -1), mask


def degenerate_jets(kind: str, energy: float) -> tuple[Tensor, Tensor]:
    """Two float32 jets, the second of them empty."""
    p4, mask = torch.zeros(2, 6, 4), torch.zeros(2, 6, dtype=torch.bool)
    if kind != "none":
        mask[0, : 1 if kind == "one" else 5] = True
        p4[0] = energy * torch.tensor([1.0, 0.6, 0.0, 0.8])
    if kind == "soft":
        p4[0, 1:] *= 1e-12
    if kind == "space-like":
        p4[0, :, 0] *= 1 - 1e-6
    if kind == "back-to-back":
        mask[0, 4] = False
        p4[0, 1:4:2, 1:] *= -1
    if kind == "at rest":
        p4[0, :, 1:] = 0
    if kind == "along the beam":
        p4[0] = energy * torch.tensor([1.0, 0.0, 0.0, -1.0])
    return p4, mask
