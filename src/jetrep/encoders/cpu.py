"""The layers of a pre-norm transformer as autograd functions made for CPUs.

Composed of stock operations, a layer on a CPU spends most of its time on memory: temporaries of tens of megabytes are
fetched from the system and zeroed page by page. Here the rows are worked through in blocks that stay in the cache;
what is cheap to compute again (norms, activations) is not kept. Matrix products run in the
given ``dtype`` (bfloat16 under autocast: four times the rate of float32 where the processor has the instructions),
norms and the residual stream in that of the input; weight gradients are summed over blocks in float32.
In bfloat16 the stock backward of attention is several times slower than the float32 one; the explicit one below is not.

The affine part of a norm, LayerScale, and the 1/√(head dim) of attention act linearly on neighbouring weights: callers
fold them into these, so no function here knows of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from jetrep.encoders.packing import Group, Packing, Reading

__all__ = ["attention", "feed_forward", "norm_linear", "residual_linear"]

_BLOCK = 1024


def _blocks(rows: int) -> Iterator[slice]:
    for start in range(0, rows, _BLOCK):
        yield slice(start, min(rows, start + _BLOCK))


def _standardize(x: Tensor, eps: float, center: bool) -> tuple[Tensor, Tensor]:
    """Rows over their root mean square, or with ``center`` over their standard deviation; and one over that."""
    if center:
        normal, _, inverse = torch.native_layer_norm(x, x.shape[-1:], None, None, eps)
        return normal, inverse
    inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return x * inverse, inverse


def _standardize_backward(grad: Tensor, normal: Tensor, inverse: Tensor, center: bool) -> Tensor:
    """Gradient with respect to the rows, from ``grad`` with respect to the standardised rows (overwritten)."""
    along = torch.linalg.vecdot(grad, normal).div_(grad.shape[-1]).unsqueeze_(-1)
    if center:
        grad -= grad.mean(-1, keepdim=True)
    return grad.addcmul_(normal, along, value=-1).mul_(inverse)


class _NormLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor, eps: float, center: bool, dtype: torch.dtype) -> Tensor:
        w, b = w.to(dtype), b.to(dtype)
        out = torch.empty(len(x), len(w), dtype=dtype)
        for rows in _blocks(len(x)):
            normal, _ = _standardize(x[rows], eps, center)
            torch.addmm(b, normal.to(dtype), w.t(), out=out[rows])
        ctx.save_for_backward(x, w)
        ctx.eps, ctx.center = eps, center
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        gx = torch.empty_like(x)
        gw, gb = x.new_zeros(w.shape), x.new_zeros(len(w))
        for rows in _blocks(len(x)):
            normal, inverse = _standardize(x[rows], ctx.eps, ctx.center)
            g = grad[rows]
            gw += g.t() @ normal.to(w.dtype)
            gb += g.sum(0, dtype=x.dtype)
            gx[rows] = _standardize_backward((g @ w).to(x.dtype), normal, inverse, ctx.center)
        return gx, gw, gb, None, None, None


class _ResidualLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, w: Tensor, b: Tensor) -> Tensor:
        w, b = w.to(a.dtype), b.to(a.dtype)
        out = torch.empty_like(x)
        for rows in _blocks(len(x)):
            torch.add(x[rows], torch.addmm(b, a[rows], w.t()), out=out[rows])
        ctx.save_for_backward(a, w)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, w = ctx.saved_tensors
        ga, gw = torch.empty_like(a), grad.new_zeros(w.shape)
        for rows in _blocks(len(a)):
            g = grad[rows].to(w.dtype)
            gw += g.t() @ a[rows]
            torch.mm(g, w, out=ga[rows])
        return grad, ga, gw, grad.sum(0)


def _activation(u: Tensor, gated: bool) -> Tensor:
    if not gated:
        return F.gelu(u)
    gate, value = u.chunk(2, -1)
    return F.silu(gate).mul_(value)


def _activation_backward(u: Tensor, grad: Tensor, gated: bool) -> tuple[Tensor, Tensor]:
    """The activation once more, and the gradient with respect to ``u``."""
    if not gated:
        return F.gelu(u), torch.ops.aten.gelu_backward(grad, u)
    gate, value = u.chunk(2, -1)
    silu = F.silu(gate)
    gu = torch.empty_like(u)
    torch.mul(grad, silu, out=gu[:, gate.shape[1] :])
    torch.ops.aten.silu_backward.grad_input(grad * value, gate, grad_input=gu[:, : gate.shape[1]])
    return silu.mul_(value), gu


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w1: Tensor,
        b1: Tensor,
        w2: Tensor,
        b2: Tensor,
        eps: float,
        center: bool,
        gated: bool,
        dtype: torch.dtype,
        keep: bool,
    ) -> Tensor:
        w1, b1, w2, b2 = (t.to(dtype) for t in (w1, b1, w2, b2))
        out, hidden = torch.empty_like(x), []
        for rows in _blocks(len(x)):
            normal, _ = _standardize(x[rows], eps, center)
            u = torch.addmm(b1, normal.to(dtype), w1.t())
            torch.add(x[rows], torch.addmm(b2, _activation(u, gated), w2.t()), out=out[rows])
            if keep:
                hidden.append(u)
        ctx.save_for_backward(x, w1, w2, *hidden)
        ctx.eps, ctx.center, ctx.gated = eps, center, gated
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w1, w2, *hidden = ctx.saved_tensors
        gx = torch.empty_like(x)
        gw1, gb1, gw2 = (x.new_zeros(shape) for shape in (w1.shape, len(w1), w2.shape))
        for rows, u in zip(_blocks(len(x)), hidden, strict=True):
            g = grad[rows].to(w2.dtype)
            h, gu = _activation_backward(u, g @ w2, ctx.gated)
            gw2 += g.t() @ h
            normal, inverse = _standardize(x[rows], ctx.eps, ctx.center)
            gw1 += gu.t() @ normal.to(w1.dtype)
            gb1 += gu.sum(0, dtype=x.dtype)
            inner = _standardize_backward((gu @ w1).to(x.dtype), normal, inverse, ctx.center)
            torch.add(grad[rows], inner, out=gx[rows])
        return gx, gw1, gb1, gw2, grad.sum(0), None, None, None, None, None


def _split_heads(rows: Tensor, group: Group, heads: int, parts: int) -> Tensor:
    """(n · length, parts · d) → (parts, n · heads, length, head dim)."""
    shaped = rows.view(group.n, group.length, parts, heads, -1).permute(2, 0, 3, 1, 4)
    return shaped.reshape(parts, group.n * heads, group.length, -1)


def _join_heads(x: Tensor, group: Group, parts: int) -> Tensor:
    """The inverse of `_split_heads`."""
    shaped = x.view(parts, group.n, -1, group.length, x.shape[-1]).permute(1, 3, 0, 2, 4)
    return shaped.reshape(group.n * group.length, -1)


def _probabilities(q: Tensor, k: Tensor, group: Group) -> Tensor:
    scores = torch.bmm(q, k.transpose(1, 2))
    if group.bias is not None:
        scores.view(group.n, -1, *scores.shape[1:]).add_(group.bias)
    return torch.softmax(scores, -1)


class _Attention(torch.autograd.Function):
    """Queries of a group stand in a group of their own, `Reading.groups`, if not all of them are wanted."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, packing: Packing, reading: Reading | None, heads: int, keep: bool) -> Tensor:
        d = qkv.shape[1] // 3
        out = qkv.new_empty(len(qkv) if reading is None else len(reading.rows), d)
        kept: list[Tensor] = []
        for group, asking in zip(packing.groups, reading.groups if reading else packing.groups, strict=True):
            rows = qkv[group.start : group.stop]
            if reading is None:
                q, k, v = _split_heads(group.padded(rows), group, heads, 3)
            else:
                k, v = _split_heads(group.padded(rows[:, d:]), group, heads, 2)
                asked = qkv[:, :d].index_select(0, reading.rows[asking.start : asking.stop])
                (q,) = _split_heads(asking.padded(asked), asking, heads, 1)
            p = _probabilities(q, k, group)
            out[asking.start : asking.stop] = asking.unpadded(_join_heads(torch.bmm(p, v), asking, 1))
            if keep:
                kept += [q, k, v, p]
        ctx.save_for_backward(*kept)
        ctx.packing, ctx.reading, ctx.heads, ctx.shape = packing, reading, heads, qkv.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept, reading, d = iter(ctx.saved_tensors), ctx.reading, grad.shape[1]
        gqkv = grad.new_empty(ctx.shape)
        if reading is not None:
            gqkv[:, :d] = 0
        for group, asking in zip(ctx.packing.groups, (reading or ctx.packing).groups, strict=True):
            q, k, v, p = (next(kept) for _ in range(4))
            (g,) = _split_heads(asking.padded_with_zeros(grad[asking.start : asking.stop]), asking, ctx.heads, 1)
            gs = torch.ops.aten._softmax_backward_data(torch.bmm(g, v.transpose(1, 2)), p, -1, p.dtype)
            rows, of_q = gqkv[group.start : group.stop], 1 if reading is None else 0
            parts = k.new_empty(of_q + 2, *k.shape)
            torch.bmm(gs.transpose(1, 2), q, out=parts[of_q])
            torch.bmm(p.transpose(1, 2), g, out=parts[of_q + 1])
            if reading is None:
                torch.bmm(gs, k, out=parts[0])
                rows.copy_(group.unpadded(_join_heads(parts, group, 3)))
            else:
                rows[:, d:] = group.unpadded(_join_heads(parts, group, 2))
                gq = asking.unpadded(_join_heads(torch.bmm(gs, k), asking, 1))
                gqkv[:, :d].index_copy_(0, reading.rows[asking.start : asking.stop], gq)
        return gqkv, None, None, None, None


def norm_linear(x: Tensor, w: Tensor, b: Tensor, *, eps: float, center: bool, dtype: torch.dtype) -> Tensor:
    """norm(x) wᵀ + b: (rows, d) → (rows, c) in ``dtype``; the norm is a layer norm if ``center``, else an RMS norm."""
    with torch.autocast("cpu", enabled=False):
        return _apply(_NormLinear, x, w, b, eps, center, dtype)


def residual_linear(x: Tensor, a: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Returns x + a wᵀ + b, with the product in the type of ``a``."""
    with torch.autocast("cpu", enabled=False):
        return _apply(_ResidualLinear, x, a, w, b)


def feed_forward(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    eps: float,
    center: bool,
    gated: bool,
    dtype: torch.dtype,
) -> Tensor:
    """Returns x + act(norm(x) w1ᵀ + b1) w2ᵀ + b2; act is SwiGLU (first half the gate) if ``gated``, else GELU."""
    with torch.autocast("cpu", enabled=False):
        return _apply(_FeedForward, x, w1, b1, w2, b2, eps, center, gated, dtype, torch.is_grad_enabled())


def attention(qkv: Tensor, packing: Packing, reading: Reading | None, heads: int) -> Tensor:
    """Self-attention within each sequence: (T, 3d) → (T, d), or (R, d) for the tokens of ``reading``.

    Queries already carry 1/√(head dim).
    """
    with torch.autocast("cpu", enabled=False):
        return _apply(_Attention, qkv, packing, reading, heads, torch.is_grad_enabled())


def _apply(function: type[torch.autograd.Function], *args: object) -> Tensor:
    result: Tensor = function.apply(*args)  # type: ignore[no-untyped-call]
    return result
