"""Building blocks of `JetTransformer`: the pre-norm block on packed tokens, and the polar position embedding."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jetrep.encoders import cpu
from jetrep.encoders.packing import Packing, Reading

__all__ = ["Block", "PolarEmbedding", "build_norm"]


def build_norm(kind: Literal["rmsnorm", "layernorm"], width: int) -> nn.RMSNorm | nn.LayerNorm:
    """The norm over ``width`` features, eps 1e-5."""
    return nn.RMSNorm(width, eps=1e-5) if kind == "rmsnorm" else nn.LayerNorm(width, eps=1e-5)


def _compute_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class Block(nn.Module):
    r"""Pre-norm transformer block.

    :math:`x \leftarrow x + \gamma_1 A(N(x))`, then :math:`x \leftarrow x + \gamma_2 M(N(x))`.

    On a CPU it runs through `jetrep.encoders.cpu`, elsewhere (and with dropout) through stock operations; both give the
    same result.

    Args:
        width: features of a token.
        heads: attention heads.
        mlp_hidden: hidden features of the feed-forward network (for SwiGLU, of each half).
        mlp: "swiglu" or "gelu".
        norm: "rmsnorm" or "layernorm".
        layer_scale: initial value of the γ, or None for blocks without them.
        dropout: on both branches, in training.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_hidden: int,
        mlp: Literal["swiglu", "gelu"],
        norm: Literal["rmsnorm", "layernorm"],
        layer_scale: float | None,
        dropout: float,
    ) -> None:
        super().__init__()
        self.heads, self.gated, self.dropout = heads, mlp == "swiglu", dropout
        self.norm1, self.norm2 = build_norm(norm, width), build_norm(norm, width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1 = nn.Linear(width, (2 if self.gated else 1) * mlp_hidden)
        self.fc2 = nn.Linear(mlp_hidden, width)
        if layer_scale is None:
            self.gamma1 = self.gamma2 = None
        else:
            self.gamma1 = nn.Parameter(torch.full((width,), layer_scale))
            self.gamma2 = nn.Parameter(torch.full((width,), layer_scale))

    def forward(self, x: Tensor, packing: Packing, reading: Reading | None = None) -> Tensor:
        """(T, width) packed tokens → (T, width), or (R, width) if only some of them are read afterwards."""
        if x.device.type == "cpu" and not (self.training and self.dropout) and not torch.compiler.is_compiling():
            return self._on_cpu(x, packing, reading)
        return self.plain(x, packing, reading)

    def plain(self, x: Tensor, packing: Packing, reading: Reading | None = None) -> Tensor:
        """The block in stock operations: any device, any autocast."""
        mixed = self.proj(self._attention(self.qkv(self.norm1(x)), packing, reading))
        x = (x if reading is None else x.index_select(0, reading.rows)) + self._branch(mixed, self.gamma1)
        hidden = self.fc1(self.norm2(x))
        if self.gated:
            gate, value = hidden.chunk(2, -1)
            hidden = F.silu(gate) * value
        else:
            hidden = F.gelu(hidden)
        return x + self._branch(self.fc2(hidden), self.gamma2)

    def _branch(self, x: Tensor, gamma: Tensor | None) -> Tensor:
        x = F.dropout(x, self.dropout, self.training)
        return x if gamma is None else x * gamma

    def _attention(self, qkv: Tensor, packing: Packing, reading: Reading | None) -> Tensor:
        d = qkv.shape[1] // 3
        asked = qkv[:, :d] if reading is None else qkv[:, :d].index_select(0, reading.rows)
        mixed = []
        for group, asking in zip(packing.groups, (reading or packing).groups, strict=True):
            queries = asking.padded(asked[asking.start : asking.stop])
            q = queries.reshape(asking.n, asking.length, self.heads, -1).transpose(1, 2)
            padded = group.padded(qkv[group.start : group.stop, d:])
            k, v = padded.reshape(group.n, group.length, 2, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
            bias = None if group.bias is None else group.bias.to(q.dtype)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
            mixed.append(asking.unpadded(out.transpose(1, 2).reshape(asking.n * asking.length, -1)))
        return torch.cat(mixed)

    def _folded(self, norm: nn.RMSNorm | nn.LayerNorm, linear: nn.Linear) -> tuple[Tensor, Tensor]:
        """Weight and bias of ``linear`` after the affine part of ``norm``."""
        bias: Tensor = linear.bias
        if isinstance(norm, nn.LayerNorm):
            bias = bias + linear.weight @ norm.bias
        return linear.weight * norm.weight, bias

    def _on_cpu(self, x: Tensor, packing: Packing, reading: Reading | None) -> Tensor:
        dtype, center = _compute_dtype(x), isinstance(self.norm1, nn.LayerNorm)
        with torch.autocast("cpu", enabled=False):
            w, b = self._folded(self.norm1, self.qkv)
            # 1/√(head dim) goes into the queries.
            scale = torch.ones(3, len(w) // 3, 1, dtype=w.dtype)
            scale[0] = 1 / math.sqrt(len(w) // 3 / self.heads)
            w, b = w * scale.view(-1, 1), b * scale.view(-1)
            w1, b1 = self._folded(self.norm2, self.fc1)
            proj, fc2 = (
                (linear.weight, linear.bias)
                if gamma is None
                else (linear.weight * gamma.unsqueeze(1), linear.bias * gamma)
                for linear, gamma in ((self.proj, self.gamma1), (self.fc2, self.gamma2))
            )
        eps = self.norm1.eps or 0.0
        qkv = cpu.norm_linear(x, w, b, eps=eps, center=center, dtype=dtype)
        mixed = cpu.attention(qkv, packing, reading, self.heads)
        x = cpu.residual_linear(x if reading is None else x.index_select(0, reading.rows), mixed, *proj)
        return cpu.feed_forward(x, w1, b1, *fc2, eps=eps, center=center, gated=self.gated, dtype=dtype)


class PolarEmbedding(nn.Module):
    r"""A learned vector for each cell of a polar grid around the jet axis.

    Radial bins are logarithmic, :math:`i_r = \mathrm{round}\left((n-1)\,\frac{\ln(1 + r/s)}{\ln(1 + R/s)}\right)`,
    clamped to the last; angular bins are cyclic,
    :math:`i_\varphi = \mathrm{round}\left(n\,\frac{\varphi + \pi}{2\pi}\right) \bmod n`, so that −π and π are the
    same cell.

    Args:
        width: features of a token.
        bins: n, along each axis.
        r_scale: s, the median radius of particles, in standardised units.
        r_max: R, radius of the last bin: their 99th percentile.
    """

    def __init__(self, width: int, bins: int = 100, r_scale: float = 0.96, r_max: float = 5.6) -> None:
        super().__init__()
        self.bins, self.r_scale, self.r_max = bins, r_scale, r_max
        self.table = nn.Parameter(torch.empty(bins * bins, width))
        nn.init.normal_(self.table, std=0.02)

    def cells(self, coordinates: Tensor) -> Tensor:
        """(..., 2) standardised (Δη, Δφ) → (...) index of the cell, i_r · n + i_φ."""
        with torch.autocast(coordinates.device.type, enabled=False):
            x, y = coordinates.float().unbind(-1)
            radius = torch.log1p(torch.hypot(x, y) / self.r_scale) / math.log1p(self.r_max / self.r_scale)
            i_r = ((self.bins - 1) * radius).round().clamp(max=self.bins - 1).long()
            i_phi = (self.bins * (torch.atan2(y, x) + math.pi) / (2 * math.pi)).round().long() % self.bins
        return i_r * self.bins + i_phi

    def forward(self, coordinates: Tensor) -> Tensor:
        """(..., 2) standardised (Δη, Δφ) → (..., width)."""
        return F.embedding(self.cells(coordinates), self.table)
