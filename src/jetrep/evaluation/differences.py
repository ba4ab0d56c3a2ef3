"""Errors of the differences between taggers that were judged on the same jets.

What the jets have in common cancels in a difference, so its error is smaller than the errors of both in quadrature.
``taggers`` are the scores of both, once for each training seed: the error is that of their mean difference, as far as
the finite number of jets makes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jetrep.errors import InputError
from jetrep.evaluation.cuts import ScoreCounts, background_efficiency
from jetrep.evaluation.multiclass import auc_contributions, checked_probabilities, delong_error

__all__ = ["accuracy_difference_error", "auc_difference_error", "rejection_difference_error"]


def accuracy_difference_error(taggers: Sequence[tuple[ArrayLike, ArrayLike]], labels: ArrayLike) -> float:
    """Error of the difference of two accuracies.

    Args:
        taggers: (n_jets, n_classes) probabilities of both, for each training seed.
        labels: (n_jets,) index of the true class.
    """
    y = np.asarray(labels)
    right = [[checked_probabilities(p, labels)[0].argmax(1) == y for p in pair] for pair in taggers]
    difference = np.mean([ours.astype(float) - theirs for ours, theirs in right], axis=0)
    return float(difference.std() / math.sqrt(len(y)))


def auc_difference_error(taggers: Sequence[tuple[ArrayLike, ArrayLike]], labels: ArrayLike) -> float:
    """Error of the difference of two macro-averaged AUCs: that of `macro_auc`, for what each jet contributes to it.

    Args:
        taggers: (n_jets, n_classes) probabilities of both, for each training seed.
        labels: (n_jets,) index of the true class; each class must occur.
    """
    pairs = [[auc_contributions(*checked_probabilities(p, labels))[1] for p in pair] for pair in taggers]
    return delong_error(np.mean([ours - theirs for ours, theirs in pairs], axis=0), np.asarray(labels))


def rejection_difference_error(
    taggers: Sequence[tuple[ArrayLike, ArrayLike]],
    truth: ArrayLike,
    *,
    efficiency: float = 0.5,
    n_bootstrap: int = 200,
    seed: int = 0,
) -> float:
    """Error of the difference of two background rejections, by resampling the jets, the same for both taggers.

    As for one rejection, 1/ε_B is linear in ε_B here, so that it stays finite where a resample has no background left.

    Args:
        taggers: (n_jets,) scores of both, for each training seed.
        truth: (n_jets,) True for signal.
        efficiency: ε_S of the rejections.
        n_bootstrap: number of resamples, each class keeping its number.
        seed: seed of the resamples.

    Raises:
        InputError: if no background jet passes a cut, so that its rejection has a limit alone.
    """
    is_signal, grid = np.asarray(truth, bool), np.array([efficiency])
    # Jets by rank, best first; equal scores share one.
    ranked = [[np.unique(-np.asarray(scores, np.float64), return_inverse=True) for scores in pair] for pair in taggers]

    def background_rates(times: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n_seeds, 2) ε_B if each jet occurs so many ``times``."""

        def one(distinct: NDArray[np.float64], rank: NDArray[np.int64]) -> float:
            signal, background = (np.bincount(rank, times * part).astype(np.int64) for part in (is_signal, ~is_signal))
            return float(background_efficiency(ScoreCounts(-distinct, signal, background), grid)[0])

        return np.array([[one(*scores) for scores in pair] for pair in ranked])

    rates = background_rates(np.ones(len(is_signal), np.int64))
    if not rates.all():
        raise InputError("no background jet passes a cut", field="taggers", remedy="use a looser efficiency")
    rng = np.random.default_rng(seed)
    classes = [np.flatnonzero(is_signal), np.flatnonzero(~is_signal)]
    differences = []
    for _ in range(n_bootstrap):
        drawn = np.concatenate([jets[rng.integers(0, len(jets), len(jets))] for jets in classes])
        resampled = background_rates(np.bincount(drawn, minlength=len(is_signal)))
        differences.append(np.diff(resampled / rates**2).mean())
    return float(np.std(differences, ddof=1))
