"""Anomaly scores of an autoencoder beside those of its baselines, as they are and decorrelated from the jet mass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jetrep.evaluation.anomaly import (
    BACKGROUND_RATES,
    AnomalySample,
    anomaly_metrics,
    decorrelate,
    mass_sculpting,
    neighbours,
)
from jetrep.evaluation.comparison import Comparison
from jetrep.evaluation.latent import mahalanobis
from jetrep.evaluation.scores import DISTANCES
from jetrep.physics import fourvector as fv
from jetrep.progress import progress
from jetrep.report.measurement import Measurement

__all__ = ["LATENT", "anomaly_tables", "score_of"]

LATENT = "latent Mahalanobis"
"""How the distance in the latent is called in tables; see `jetrep.evaluation.latent.mahalanobis`."""

_MIN_LATENT = 20  # validation jets
_SCORES = {"mixture": "hungarian", "sinkhorn": "emd", "sliced": "emd"}


class _Score(NamedTuple):
    """Of the jets of all classes, one after the other, and of validation jets of the background."""

    values: NDArray[np.float64]
    known: NDArray[np.float64]


def score_of(loss: str | None, comparison: Comparison) -> str:
    """The distance that a loss is, or comes nearest to: images by their pixels, the others Chamfer if unknown."""
    wanted = "image" if comparison.pairs is None else _SCORES.get(loss or "", loss or "chamfer")
    return wanted if wanted in comparison.distances else "chamfer"


def anomaly_tables(
    models: Mapping[str, Mapping[str, Comparison]],
    validation: Mapping[str, Comparison],
    score: str,
    *,
    n_bootstrap: int = 200,
    seed: int = 0,
    quiet: bool = True,
) -> tuple[dict[str, NDArray[np.float64]], dict[str, dict[str, dict[str, dict[str, Measurement]]]]]:
    """All scores as they are and decorrelated from the mass: of the model, of baselines, mass and multiplicity.

    Args:
        models: by name ("" for the model itself) and class, the background first.
        validation: by the same names, validation jets of the background.
        score: the distance that counts; others of the model, and that in the latent, stand beside it.
        n_bootstrap: number of resamples.
        seed: seed of the resamples.
        quiet: show no progress.

    Returns:
        Scores (n_jets,) of the jets of all classes by row; and by table ("anomaly", "decorrelation"), row, domain and
        metric the measurements.
    """
    own, known = models[""], validation[""]
    kinds = list(own)
    mass = _of_all(own, lambda c: fv.mass(c.true.p4))
    sample = AnomalySample(np.repeat(np.arange(len(kinds)) - 1, [len(c) for c in own.values()]), mass, tuple(kinds[1:]))
    known_mass = fv.mass(known.true.p4)
    scores = {
        row: found for name, c in models.items() for row, found in _scores(name, c, validation[name], score).items()
    }
    scores["jet mass"] = _Score(mass, known_mass)
    scores["multiplicity"] = _Score(
        _of_all(own, lambda c: c.true.counts.astype(np.float64)), known.true.counts.astype(np.float64)
    )
    # Beyond one in as many jets as a quantile rests on, a quantile knows nothing.
    rates = [rate for rate in BACKGROUND_RATES if rate * neighbours(len(known_mass)) >= 1]
    rows: dict[str, NDArray[np.float64]] = {}
    tables: dict[str, dict[str, dict[str, dict[str, Measurement]]]] = {"anomaly": {}, "decorrelation": {}}
    for name, (values, at_background) in progress(scores.items(), description="anomalies", unit="score", quiet=quiet):
        flat = decorrelate(values, mass, at_background, known_mass)
        for row, found, at in ((name, values, BACKGROUND_RATES), (f"{name}, decorrelated", flat, rates)):
            rows[row] = found
            tables["anomaly"][row] = anomaly_metrics(
                found, sample, background_rates=at, n_bootstrap=n_bootstrap, seed=seed
            )
            background = sample.signal < 0
            sculpted = mass_sculpting(found[background], mass[background], n_bootstrap=n_bootstrap, seed=seed)
            if sculpted:
                tables["decorrelation"][row] = {kinds[0]: sculpted}
    return rows, tables


def _scores(model: str, comparisons: Mapping[str, Comparison], validation: Comparison, score: str) -> dict[str, _Score]:
    """By row: all distances of the model itself, of a baseline the one that counts; and both in the latent."""
    wanted = validation.distances if not model else [score] if score in validation.distances else []
    behind = f", {model}" if model else ""
    found = {
        f"{DISTANCES[name]}{' (score)' if name == score and not model else ''}{behind}": _Score(
            np.concatenate([c.distances[name] for c in comparisons.values()]), validation.distances[name]
        )
        for name in wanted
    }
    if validation.described.shape[1] and len(validation) >= _MIN_LATENT:
        known, others = mahalanobis(validation.described, {kind: c.described for kind, c in comparisons.items()})
        found[f"{LATENT}{behind}"] = _Score(np.concatenate(list(others.values())), known)
    return found


def _of_all(
    comparisons: Mapping[str, Comparison], function: Callable[[Comparison], NDArray[np.float64]]
) -> NDArray[np.float64]:
    return np.concatenate([function(c) for c in comparisons.values()])
