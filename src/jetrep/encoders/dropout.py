"""Dropout that is cheap on CPUs, where drawing one random number for each element takes as long as a matrix product."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["dropout"]

_LEVELS = 1 << 16


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Zero each element with probability ``p`` and divide the others by 1 − p; nothing outside of training.

    On a CPU four elements share one 64-bit random number, so that p is rounded to a multiple of 1/65536. Drawn from
    torch's global generator.
    """
    if not training or p == 0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p)
    numbers = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(1 << 63), None)
    sixteen = numbers.view(torch.int16)[: x.numel()].view(x.shape)
    dropped = round(p * _LEVELS)
    keep = (sixteen >= dropped - _LEVELS // 2).to(x.dtype)
    return x * keep.mul_(_LEVELS / (_LEVELS - dropped))
