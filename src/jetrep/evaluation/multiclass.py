"""Metrics of a tagger of several classes as a whole: accuracy and the macro-averaged one-vs-one AUC."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jetrep.errors import InputError
from jetrep.report.measurement import Measurement

__all__ = ["accuracy", "auc_contributions", "checked_probabilities", "confusion", "delong_error", "macro_auc"]


def confusion(probabilities: ArrayLike, labels: ArrayLike) -> NDArray[np.int64]:
    """(n_classes, n_classes) number of jets by true class (row) and by class of the largest probability (column)."""
    p, y = checked_probabilities(probabilities, labels)
    n = p.shape[1]
    return np.bincount(y * n + p.argmax(1), minlength=n * n).reshape(n, n)


def accuracy(probabilities: ArrayLike, labels: ArrayLike) -> Measurement:
    """Share of jets whose most probable class is the true one, with its binomial error."""
    matrix = confusion(probabilities, labels)
    n = int(matrix.sum())
    value = float(np.trace(matrix) / n)
    return _symmetric(value, math.sqrt(value * (1 - value) / n), n)


def macro_auc(probabilities: ArrayLike, labels: ArrayLike) -> Measurement:
    """Mean AUC over all ordered pairs of classes (Hand and Till, Machine Learning 45 (2001) 171), with DeLong's error.

    For a pair (j, k), the jets of the two classes are told apart by p_j. The AUCs are averages over pairs of jets of
    the same sample, hence correlated; DeLong's variance (Biometrics 44 (1988) 837) of their mean is the sum over
    classes of the variance of what each jet contributes, over the number of jets. Jets of equal score count one half.

    Args:
        probabilities: (n_jets, n_classes).
        labels: (n_jets,) index of the true class; each class must occur.
    """
    p, y = checked_probabilities(probabilities, labels)
    value, contribution = auc_contributions(p, y)
    return _symmetric(value, delong_error(contribution, y), len(y))


def auc_contributions(p: NDArray[np.float64], y: NDArray[np.int64]) -> tuple[float, NDArray[np.float64]]:
    """The macro-averaged AUC, and (n_jets,) DeLong's components of it, whose scatter is its error.

    The component of a jet is, summed over the pairs of classes that it is in and divided by their number, the share of
    the other class that stands on the right side of it.

    Args:
        p: (n_jets, n_classes) probabilities, as `checked_probabilities` returns them.
        y: (n_jets,) index of the true class; each class must occur.
    """
    n_classes = p.shape[1]
    rows = [np.flatnonzero(y == k) for k in range(n_classes)]
    if any(len(part) == 0 for part in rows):
        raise InputError("a class has no jets", field="labels", remedy="give jets of every class")
    contribution, value = np.zeros(len(y)), 0.0
    pairs = n_classes * (n_classes - 1)
    for j, k in permutations(range(n_classes), 2):
        above, below = p[rows[j], j], p[rows[k], j]
        won = _share_below(above, below)
        contribution[rows[j]] += won / pairs
        contribution[rows[k]] += (1 - _share_below(below, above)) / pairs
        value += float(won.mean()) / pairs
    return value, contribution


def delong_error(contribution: NDArray[np.float64], y: NDArray[np.int64]) -> float:
    """DeLong's error of a macro-averaged AUC or of a difference, from (n_jets,) components and (n_jets,) classes."""
    parts = [contribution[y == k] for k in np.unique(y)]
    return math.sqrt(sum(float(part.var(ddof=1)) / len(part) for part in parts if len(part) > 1))


def _share_below(x: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) share of ``others`` below each of ``x``, equal ones counted one half."""
    ordered = np.sort(others)
    lower, upper = np.searchsorted(ordered, x, "left"), np.searchsorted(ordered, x, "right")
    return np.asarray(0.5 * (lower + upper) / len(others), np.float64)


def _symmetric(value: float, error: float, n: int) -> Measurement:
    return Measurement(value, error, value - error, value + error, n, sampling_error=error)


def checked_probabilities(probabilities: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(n_jets, n_classes) probabilities and (n_jets,) labels as arrays.

    Raises:
        InputError: if they do not fit together, or a probability is not finite.
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(labels, np.int64)
    if p.ndim != 2 or p.shape[1] < 2 or y.shape != (len(p),) or len(y) == 0 or not 0 <= y.min() <= y.max() < p.shape[1]:
        raise InputError(
            f"probabilities {p.shape} and labels {y.shape} do not fit together",
            field="probabilities",
            remedy="give (n_jets, n_classes) and (n_jets,) labels from 0",
        )
    if not np.isfinite(p).all():
        jet = int(np.argmin(np.isfinite(p).all(1)))
        raise InputError("a probability is NaN or infinite", jet=jet, field="probabilities", remedy="check the model")
    return p, y
