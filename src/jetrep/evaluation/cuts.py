"""Cuts on a score: how many jets have which score, what passes a cut, and the same of resampled jets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["ScoreCounts", "background_efficiency", "count_by_score", "resamples", "signal_efficiency"]


class ScoreCounts(NamedTuple):
    """Jets per distinct score, in descending order of score, so that a cut "score ≥ t" keeps a head of the arrays."""

    score: NDArray[np.float64]
    signal: NDArray[np.int64]
    background: NDArray[np.int64]


def count_by_score(score: NDArray[np.float64], truth: NDArray[np.bool_]) -> ScoreCounts:
    """Count (n_jets,) signal (``truth``) and background jets of each distinct score."""
    distinct, index = np.unique(-score, return_inverse=True)
    signal = np.bincount(index, weights=truth, minlength=len(distinct)).astype(np.int64)
    return ScoreCounts(-distinct, signal, np.bincount(index, minlength=len(distinct)) - signal)


def resamples(counts: ScoreCounts, n: int, rng: np.random.Generator) -> Iterator[ScoreCounts]:
    """``n`` bootstrap resamples of the jets, each class keeping its number."""

    def redraw(part: NDArray[np.int64]) -> NDArray[np.int64]:
        # Drawing jets with replacement is drawing counts per distinct score.
        jets = np.repeat(np.arange(len(part)), part)
        drawn = jets[rng.integers(0, len(jets), len(jets))]
        return np.bincount(drawn, minlength=len(part))

    for _ in range(n):
        yield ScoreCounts(counts.score, redraw(counts.signal), redraw(counts.background))


def background_efficiency(counts: ScoreCounts, efficiencies: NDArray[np.float64]) -> NDArray[np.float64]:
    """ε_B at the tightest cut whose signal efficiency is at least each of ``efficiencies``."""
    signal, background = np.cumsum(counts.signal), np.cumsum(counts.background)
    cut = np.searchsorted(signal / signal[-1], efficiencies, side="left")
    return np.asarray(background[cut] / background[-1], np.float64)


def signal_efficiency(counts: ScoreCounts, rate: float) -> tuple[float, int]:
    """ε_S at the loosest cut whose ε_B is at most ``rate``, and the number of background jets that pass it."""
    signal, background = np.cumsum(counts.signal), np.cumsum(counts.background)
    cut = int(np.searchsorted(background, rate * background[-1] * (1 + 1e-12), side="right")) - 1
    return (float(signal[cut] / signal[-1]), int(background[cut])) if cut >= 0 else (0.0, 0)
