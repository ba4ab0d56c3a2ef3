"""Histogram bins that people would choose: round edges, no outlier that squeezes everything else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["contents", "edges", "ticks"]


def edges(samples: Sequence[NDArray[Any]], n_bins: int) -> NDArray[np.float64]:
    """Common bin edges for several samples.

    The range holds 99.6 % of all values; the width is 1, 2, 2.5 or 5 times a power of ten. Integers get bins that are a
    whole number wide and centred on integers.

    Args:
        samples: arrays of finite numbers.
        n_bins: at most about this many bins; at least one.
    """
    values = np.concatenate([np.ravel(sample) for sample in samples])
    if values.size == 0:
        return np.array([0.0, 1.0])
    low, high = (float(x) for x in np.percentile(values, [0.2, 99.8]))
    if values.dtype.kind in "iu":
        whole = max(1, math.ceil((high - low + 1) / n_bins))
        count = max(1, math.ceil((high - math.floor(low) + 1) / whole))
        return math.floor(low) - 0.5 + whole * np.arange(count + 1, dtype=np.float64)
    # Below this, neighbouring edges would be the same number.
    spread = max(high - low, 1e-6 * max(abs(low), abs(high), 1e-300))
    width = _round_up(spread / n_bins)
    first, last = math.floor(low / width), math.ceil(high / width)
    return np.arange(first, max(last, first + 1) + 1, dtype=np.float64) * width


def contents(values: NDArray[Any], bins: NDArray[np.float64]) -> NDArray[np.int64]:
    """Entries of each bin; the first and the last also hold what lies beyond, so that nothing is lost."""
    place = np.searchsorted(bins, values, side="right") - 1
    return np.bincount(np.clip(place, 0, len(bins) - 2), minlength=len(bins) - 1)


def ticks(low: float, high: float, n: int) -> NDArray[np.float64]:
    """Round numbers between ``low`` and ``high``, at most about ``n``."""
    step = _round_up((high - low) / max(n, 1))
    return np.arange(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1, dtype=np.float64) * step


def _round_up(width: float) -> float:
    """The next number of the form (1, 2, 2.5 or 5) × 10^k."""
    scale = 10.0 ** math.floor(math.log10(width))
    return next((step * scale for step in (1, 2, 2.5, 5) if step * scale >= width * (1 - 1e-9)), 10 * scale)
