"""Rank-2 tensors beside the vectors: antisymmetric F and symmetric traceless T, and how they mix with vectors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from jetrep.encoders.lorentz_products import (
    antisymmetric,
    contract,
    dual,
    matmul,
    outer,
    symmetric_traceless,
    trace,
)
from jetrep.physics.lorentz import METRIC

__all__ = ["TensorMixer", "Tensors", "tensor_norm2"]


class Tensors(NamedTuple):
    """Rank-2 tensors of particles.

    Attributes:
        f: (batch, n, 4, 4, C) antisymmetric.
        t: (batch, n, 4, 4, C) symmetric and traceless.
    """

    f: Tensor
    t: Tensor

    @classmethod
    def zeros(cls, v: Tensor, channels: int) -> Tensors:
        """No tensors yet, beside vectors (batch, n, 4, C1)."""
        zero = v.new_zeros(*v.shape[:2], 4, 4, channels)
        return cls(zero, zero)


def tensor_norm2(x: Tensor, u: Tensor) -> Tensor:
    """Squared Frobenius norm in the rest frame of u (..., 4, 1), of tensors (..., 4, 4, C): (..., C).

    Indices are lowered with 2uu − η (both u lowered), which is positive definite and the identity in that frame.
    """
    eta = torch.tensor(METRIC, dtype=x.dtype, device=x.device)
    low = u.squeeze(-1) * eta
    positive = 2 * low.unsqueeze(-1) * low.unsqueeze(-2) - torch.diag(eta)
    half = (positive.unsqueeze(-1).unsqueeze(-1) * x.unsqueeze(-4)).sum(-3)  # G_{μρ} X^{ρσ}
    full = (half.unsqueeze(-3) * positive[..., None, :, :, None]).sum(-2)  # and its second index
    return (full * x).sum((-3, -2)).clamp(min=0)


def _normalised(x: Tensor, u: Tensor) -> Tensor:
    return x * torch.rsqrt(tensor_norm2(x, u).mean(-1) + 1e-6)[..., None, None, None]


class TensorMixer(nn.Module):
    """Messages of tensors, products among them and of vectors, and what tensors give back to vectors and scalars.

    Args:
        vectors: channels of vectors.
        tensors: channels of F and of T.
        heads: weights w_ij; ``tensors`` is a multiple of it.
    """

    def __init__(self, vectors: int, tensors: int, heads: int) -> None:
        super().__init__()
        self.heads, self.tensors = heads, tensors
        self.pair = nn.Linear(vectors, 2 * tensors, bias=False)
        self.onto = nn.Linear(vectors, tensors, bias=False)
        # Real weights of x and of its dual: complex weights of F.
        self.mix_f = nn.Linear(2 * 5 * tensors, tensors, bias=False)
        self.mix_t = nn.Linear(6 * tensors, tensors, bias=False)
        self.give = nn.Linear(3 * tensors, 2 * vectors, bias=False)

    @property
    def invariants(self) -> int:
        """Number of scalars that it makes: tr FF, tr F*F and tr TT of each channel."""
        return 3 * self.tensors

    def _messages(self, x: Tensors, w: Tensor, share: Tensor) -> list[Tensor]:
        """Σ_j w_ij of both tensors."""
        both = torch.cat([x.f, x.t], -2).flatten(2, 3)  # (batch, n, 32, C)
        packed = torch.unflatten(both, -1, (self.heads, -1)).transpose(2, 3).flatten(3)
        sums = (w @ (packed * share.unsqueeze(-1)).transpose(1, 2)).transpose(1, 2)
        merged = torch.unflatten(sums, -1, (32, -1)).transpose(2, 3).flatten(3)
        return list(torch.unflatten(merged, 2, (4, 8)).chunk(2, -2))

    def forward(
        self, x: Tensors, v: Tensor, u: Tensor, w: Tensor, share: Tensor
    ) -> tuple[Tensors, list[Tensor], Tensor]:
        """One layer.

        Args:
            x: tensors of the particles.
            v: (batch, n, 4, C1) normalised vectors.
            u: (batch, 1, 4, 1) four-velocity of the jet.
            w: (batch, heads, n, n) weights.
            share: (batch, n, 1) one over the number of particles, zero for padding.

        Returns:
            The tensors after it; two sets of vectors with as many channels as ``v``; (batch, n, `invariants`).
        """
        f, t = _normalised(x.f, u), _normalised(x.t, u)
        f_sum, t_sum = self._messages(Tensors(f, t), w, share)
        ab = outer(*self.pair(v).chunk(2, -1))
        ff, ft, tt = matmul(f, f_sum), matmul(f, t_sum), matmul(t, t_sum)
        new_f = torch.cat([f_sum, *(antisymmetric(y) for y in (ab, ff, ft, tt))], -1)
        sym = [symmetric_traceless(y) for y in (ab, ff, ft, matmul(dual(f), t_sum), tt)]
        x = Tensors(
            x.f + self.mix_f(torch.cat([new_f, dual(new_f)], -1)), x.t + self.mix_t(torch.cat([t_sum, *sym], -1))
        )
        f, t, onto = _normalised(x.f, u), _normalised(x.t, u), self.onto(v)
        star = dual(f)
        given = self.give(torch.cat([contract(f, onto), contract(star, onto), contract(t, onto)], -1))
        return x, list(given.chunk(2, -1)), torch.cat([trace(f, f), trace(f, star), trace(t, t)], -1)
