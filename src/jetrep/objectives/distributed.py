"""Sums and gathers over all ranks of a distributed run; in a run of one process they do nothing.

With these, a loss over R ranks of B jets equals that over one rank of R · B jets, in value and gradient, once the
ranks' losses and gradients are averaged, as distributed data parallel training does.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["all_max", "all_sum", "gather", "rank", "world_size"]


def world_size() -> int:
    """Number of ranks, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this rank, 0 without a process group."""
    return dist.get_rank() if world_size() > 1 else 0


def all_sum(x: Tensor) -> Tensor:
    """Sum over ranks, without gradient."""
    return _reduced(x, dist.ReduceOp.SUM)


def all_max(x: Tensor) -> Tensor:
    """Maximum over ranks, without gradient."""
    return _reduced(x, dist.ReduceOp.MAX)


def _reduced(x: Tensor, operation: Any) -> Tensor:
    if world_size() == 1:
        return x.detach()
    x = x.detach().clone()
    dist.all_reduce(x, operation)
    return x


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:
        ctx.dim, ctx.size = dim, x.shape[dim]
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts, dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # Every rank's loss depends on this rank's part.
        total = all_sum(grad)
        return total.narrow(ctx.dim, rank() * ctx.size, ctx.size), None


def gather(x: Tensor, dim: int = 0) -> Tensor:
    """The tensors of all ranks, which must have one shape, joined along ``dim``; gradients flow to all ranks."""
    if world_size() == 1:
        return x
    gathered: Tensor = _Gather.apply(x, dim)  # type: ignore[no-untyped-call]
    return gathered
