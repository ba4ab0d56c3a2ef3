"""Probes of frozen embeddings: one function and one set of choices for all methods, so that their scores compare."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.physics.fourvector import mass

__all__ = ["PROBES", "ProbeKind", "observable_baseline", "observables", "probe"]

ProbeKind = Literal["knn", "logistic", "bdt"]
PROBES: tuple[ProbeKind, ...] = ("knn", "logistic", "bdt")

_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
_FOLDS = 3


def probe(
    train_x: ArrayLike,
    train_y: ArrayLike,
    test_x: ArrayLike,
    kind: ProbeKind,
    *,
    seed: int = 0,
    n_neighbours: int = 20,
) -> NDArray[np.float64]:
    """Train a simple classifier on embeddings as they are, and score other embeddings with it.

    - ``knn``: the nearest neighbours by Euclidean distance of features standardised on the training jets, votes
      weighted by inverse distance. (Not cosine: it would ignore the radial direction, which for a baseline of a few
      observables is half of the information. Unweighted votes would allow only ``n_neighbours`` + 1 different scores.)
    - ``logistic``: logistic regression on standardised features; the inverse L2 strength is chosen among 0.001 … 10
      by three-fold cross-validation of the log-loss within the training jets.
    - ``bdt``: histogram gradient-boosted trees, scikit-learn's defaults with early stopping on a tenth of the training
      jets.

    The result is the same for the same ``seed``, and does not change if all embeddings are multiplied by a constant.

    Args:
        train_x: (n_train, d) embeddings.
        train_y: (n_train,) integer labels 0 … n_classes − 1, each of which must occur.
        test_x: (n_test, d) embeddings to score.
        kind: the classifier.
        seed: seed of the fold and validation splits.
        n_neighbours: for ``knn``; all training jets if there are fewer.

    Returns:
        (n_test,) probability of class 1 if there are two classes, else (n_test, n_classes) probabilities.

    Raises:
        InputError: if shapes disagree, an embedding is not finite, a class has no jet, or ``kind`` is unknown.
    """
    x, y, test = np.asarray(train_x, np.float64), np.asarray(train_y), np.asarray(test_x, np.float64)
    _check(x, y, test)
    model = _model(kind, int(np.bincount(y).min()), len(y), seed, n_neighbours)
    # The matrices are small: threads of the linear algebra would wait for each other more than they work.
    with threadpool_limits(1, user_api="blas"):
        probabilities = np.asarray(model.fit(x, y).predict_proba(test), np.float64)
    return probabilities[:, 1] if probabilities.shape[1] == 2 else probabilities


def _model(kind: str, smallest_class: int, n_train: int, seed: int, n_neighbours: int) -> Any:
    if kind == "knn":
        nearest = KNeighborsClassifier(n_neighbors=min(n_neighbours, n_train), weights="distance")
        return make_pipeline(StandardScaler(), nearest)
    if kind == "logistic":
        linear = make_pipeline(StandardScaler(), LogisticRegression(solver="newton-cholesky", max_iter=100))
        if smallest_class < _FOLDS:
            return linear  # too few jets to hold some out
        folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
        return GridSearchCV(linear, {"logisticregression__C": _STRENGTHS}, scoring="neg_log_loss", cv=folds)
    if kind == "bdt":
        return HistGradientBoostingClassifier(
            max_iter=300, early_stopping=smallest_class >= 50, validation_fraction=0.1, random_state=seed
        )
    raise InputError(f"no probe is called '{kind}'", field="kind", remedy=f"use one of {', '.join(PROBES)}")


def _check(x: NDArray[np.float64], y: NDArray[Any], test: NDArray[np.float64]) -> None:
    if x.ndim != 2 or y.shape != (len(x),) or test.ndim != 2 or test.shape[1] != x.shape[1]:
        raise InputError(
            f"embeddings {x.shape}, labels {y.shape} and test embeddings {test.shape} do not fit together",
            field="embeddings",
            remedy="give (n_train, d), (n_train,) and (n_test, d)",
        )
    for name, part in (("train_x", x), ("test_x", test)):
        finite = np.isfinite(part).all(1)
        if not finite.all():
            raise InputError(
                "the embedding is NaN or infinite", jet=int(np.argmin(finite)), field=name, remedy="check the model"
            )
    if not np.issubdtype(y.dtype, np.integer) or len(y) == 0 or y.min() < 0:
        raise InputError("labels must be integers from 0", field="train_y", remedy="give the index of the class")
    counts = np.bincount(y)
    if len(counts) < 2 or (counts == 0).any():
        raise InputError(
            f"jets per class are {counts.tolist()}", field="train_y", remedy="give training jets of each class"
        )


def observables(jets: Jets) -> NDArray[np.float64]:
    """(n_jets, 2): jet mass in GeV and number of constituents, the two observables that any tagger must beat."""
    return np.stack([np.asarray(mass(jets.jet_p4), np.float64), jets.counts.astype(np.float64)], 1)


def observable_baseline(train: Jets, test: Jets, kind: ProbeKind = "bdt", *, seed: int = 0) -> NDArray[np.float64]:
    """`probe` on (jet mass, multiplicity) in place of embeddings.

    Args:
        train: labelled jets.
        test: jets to score.
        kind: the classifier.
        seed: seed of its splits.

    Returns:
        Scores, as `probe` gives them.

    Raises:
        InputError: if ``train`` has no labels.
    """
    if train.labels is None:
        raise InputError("the training jets have no labels", field="labels", remedy="give labelled jets")
    return probe(observables(train), train.labels, observables(test), kind, seed=seed)
