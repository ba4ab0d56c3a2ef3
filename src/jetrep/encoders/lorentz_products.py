r"""Irreducible Lorentz tensors up to rank 2 as real arrays, and all their products.

=====  ============  =====================  ==================================
name   SL(2,C)       dimension              array (..., C channels last)
=====  ============  =====================  ==================================
S      (0,0)         1                      (..., C)
V      (½,½)         4                      (..., 4, C)
F      (1,0) ⊕ (0,1) 6                      (..., 4, 4, C), antisymmetric
T      (1,1)         9                      (..., 4, 4, C), symmetric, traceless
=====  ============  =====================  ==================================

All indices are upper; a contraction inserts the metric η. F is one complex irreducible representation: the Hodge dual
(\*F)^{μν} = ½ ε^{μνρσ} F_{ρσ}, with \*\* = −1, is its imaginary unit. Hence two independent products wherever F appears
once or twice, and linear maps of F have complex weights a + b\*.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from jetrep.physics.lorentz import METRIC

__all__ = [
    "PRODUCTS",
    "Irrep",
    "antisymmetric",
    "contract",
    "dual",
    "matmul",
    "outer",
    "product",
    "symmetric_traceless",
    "trace",
]

Irrep = Literal["S", "V", "F", "T"]

PRODUCTS: dict[tuple[Irrep, Irrep, Irrep], int] = {
    ("V", "V", "S"): 1,
    ("V", "V", "F"): 2,
    ("V", "V", "T"): 1,
    ("F", "V", "V"): 2,
    ("T", "V", "V"): 1,
    ("F", "F", "S"): 2,
    ("F", "F", "F"): 2,
    ("F", "F", "T"): 2,
    ("F", "T", "F"): 2,
    ("F", "T", "T"): 2,
    ("T", "T", "S"): 1,
    ("T", "T", "F"): 2,
    ("T", "T", "T"): 1,
}
"""(left, right, result): number of independent products. Products with S are multiples; every other one is listed."""


def _metric(like: Tensor) -> Tensor:
    return torch.tensor(METRIC, dtype=like.dtype, device=like.device)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """AηB of (..., 4, 4, C) tensors, channel by channel."""
    lowered = b * _metric(b)[:, None, None]
    return sum((a[..., :, k, None, :] * lowered[..., None, k, :, :] for k in range(4)), start=a.new_zeros(()))


def contract(a: Tensor, v: Tensor) -> Tensor:
    """Aηv of (..., 4, 4, C) and (..., 4, C)."""
    return (a * (v * _metric(v).unsqueeze(-1)).unsqueeze(-3)).sum(-2)


def outer(a: Tensor, b: Tensor) -> Tensor:
    """abᵀ of (..., 4, C) vectors: (..., 4, 4, C)."""
    return a.unsqueeze(-2) * b.unsqueeze(-3)


def trace(a: Tensor, b: Tensor) -> Tensor:
    """tr(AηBη) of (..., 4, 4, C): (..., C)."""
    eta = _metric(a)
    return (a * b.transpose(-3, -2) * (eta.unsqueeze(-1) * eta).unsqueeze(-1)).sum((-3, -2))


def antisymmetric(x: Tensor) -> Tensor:
    """X − Xᵀ on the two axes before the last."""
    return x - x.transpose(-3, -2)


def symmetric_traceless(x: Tensor) -> Tensor:
    """½(X + Xᵀ) − ¼ η tr(ηX) on the two axes before the last."""
    eta = _metric(x)
    tr = (x.diagonal(dim1=-3, dim2=-2) * eta).sum(-1)
    return 0.5 * (x + x.transpose(-3, -2)) - 0.25 * torch.diag(eta).unsqueeze(-1) * tr[..., None, None, :]


def dual(f: Tensor) -> Tensor:
    """Hodge dual of antisymmetric (..., 4, 4, C) tensors, ε^{0123} = 1."""
    # Lowering both indices of F turns the sign of the components with one time index.
    zero = torch.zeros_like(f[..., 0, 0, :])
    f01, f02, f03 = (-f[..., 0, i, :] for i in (1, 2, 3))
    f12, f13, f23 = f[..., 1, 2, :], f[..., 1, 3, :], f[..., 2, 3, :]
    rows = [
        torch.stack([zero, f23, -f13, f12], -2),
        torch.stack([-f23, zero, f03, -f02], -2),
        torch.stack([f13, -f03, zero, f01], -2),
        torch.stack([-f12, f02, -f01, zero], -2),
    ]
    return torch.stack(rows, -3)


def product(left: Irrep, a: Tensor, right: Irrep, b: Tensor, result: Irrep) -> list[Tensor]:
    """All independent products a ⊗ b → ``result``, channel by channel.

    Args:
        left: what a is.
        a: tensor as in the table of the module.
        right: what b is.
        b: the same for b.
        result: what to make.

    Returns:
        `PRODUCTS` ``[left, right, result]`` tensors.

    Raises:
        ValueError: if there is no such product in the table; F ⊗ V is, V ⊗ F is not.
    """
    match left, right, result:
        case "V", "V", "S":
            return [(a * b * _metric(a).unsqueeze(-1)).sum(-2)]
        case "V", "V", "F":
            f = antisymmetric(outer(a, b))
            return [f, dual(f)]
        case "V", "V", "T":
            return [symmetric_traceless(outer(a, b))]
        case "F", "V", "V":
            return [contract(a, b), contract(dual(a), b)]
        case "T", "V", "V":
            return [contract(a, b)]
        case "F", "F", "S":
            return [trace(a, b), trace(a, dual(b))]
        case "F", "F", "F":
            f = antisymmetric(matmul(a, b))
            return [f, dual(f)]
        case "F", "F", "T":
            return [symmetric_traceless(matmul(a, b)), symmetric_traceless(matmul(a, dual(b)))]
        case "F", "T", "F":
            f = antisymmetric(matmul(a, b))
            return [f, dual(f)]
        case "F", "T", "T":
            return [symmetric_traceless(matmul(a, b)), symmetric_traceless(matmul(dual(a), b))]
        case "T", "T", "S":
            return [trace(a, b)]
        case "T", "T", "F":
            f = antisymmetric(matmul(a, b))
            return [f, dual(f)]
        case "T", "T", "T":
            return [symmetric_traceless(matmul(a, b))]
    raise ValueError(f"there is no product {left} ⊗ {right} → {result}")
