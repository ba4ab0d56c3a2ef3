"""Schedules over the steps of a run."""

from __future__ import annotations

import math

__all__ = ["cosine", "flat_exponential", "warmup_cosine"]


def cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from ``start`` at progress 0 to ``end`` at progress 1, constant outside."""
    progress = min(max(progress, 0.0), 1.0)
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def warmup_cosine(progress: float, warmup: float, final: float) -> float:
    """Factor on the learning rate: a cosine rise from 0 to 1 during ``warmup``, then a cosine fall to ``final``.

    Args:
        progress: fraction of the run that is done.
        warmup: fraction of the run spent rising.
        final: the factor at the end.
    """
    if progress < warmup:
        return cosine(0.0, 1.0, progress / warmup)
    return cosine(1.0, final, (progress - warmup) / max(1.0 - warmup, 1e-12))


def flat_exponential(progress: float, warmup: float, flat: float, final: float) -> float:
    """Factor on the learning rate: a cosine rise during ``warmup``, 1 until ``flat``, then exponentially to ``final``.

    With 0, 0.7 and 0.01 the recipe of Particle Transformer, arXiv 2202.03772.

    Args:
        progress: fraction of the run that is done.
        warmup: fraction of the run spent rising.
        flat: fraction of the run at which the fall begins.
        final: the factor at the end, above 0.
    """
    if progress < warmup:
        return cosine(0.0, 1.0, progress / warmup)
    fallen = min(max((progress - flat) / max(1.0 - flat, 1e-12), 0.0), 1.0)
    return math.exp(fallen * math.log(final))
