r"""Anomaly detection: jets that a model trained on one class reconstructs badly, and what of that is only their mass.

**Rule.** The score is the distance on which the model was trained, larger = more anomalous. It is chosen before any
label is read; the other distances stand beside it for comparison. Each is non-negative and zero only for a perfect
reconstruction. With one score, the AUC of all signals together is the mean of theirs, weighted by their numbers.

**Decorrelation.** A score is replaced by its quantile among the validation jets of the background whose masses are
nearest, as many above as below: :math:`F(s\,|\,m)`, known from background alone. A function of the mass alone becomes a
constant. Where fewer validation jets lie on one side, fewer are taken on the other; beyond all of them the score is ½,
not extrapolated. Jets of equal score share the quantile in their middle: a score of few values, as the multiplicity,
stays correlated with the mass, and the divergence that is measured tells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import jensenshannon

from jetrep.errors import InputError, at_least
from jetrep.evaluation.tagging import working_points
from jetrep.report.measurement import Measurement

__all__ = [
    "BACKGROUND_RATES",
    "AnomalySample",
    "anomaly_metrics",
    "decorrelate",
    "mass_sculpting",
    "neighbours",
    "reweighted_auc",
]

BACKGROUND_RATES = (1e-1, 1e-2, 1e-3)
_BLOCK = 4_000_000
_MASS_BINS = 20
_INTERVAL = (15.865, 84.135)  # per cent: the central 68.27 %


@dataclass(frozen=True)
class AnomalySample:
    """Jets on which a score is judged.

    Attributes:
        signal: (n_jets,) index into ``signals``; −1 for background.
        mass: (n_jets,) in GeV.
        signals: names.
    """

    signal: NDArray[np.int64]
    mass: NDArray[np.float64]
    signals: tuple[str, ...]

    def __post_init__(self) -> None:
        present = set(self.signal.tolist())
        if -1 not in present or len(present) < 2:
            raise InputError(
                "needs jets of the background and of a signal", field="label", remedy="give a store with both"
            )

    def against(self, name: str | None) -> NDArray[np.bool_]:
        """(n_jets,) the background and one signal, or all if None."""
        return (self.signal < 0) | (self.signal >= 0 if name is None else self.signal == self.signals.index(name))


def neighbours(n_validation: int) -> int:
    """Validation jets that a conditional quantile rests on: a twentieth of them, from 20 to 2000."""
    return min(n_validation, max(20, min(2000, n_validation // 20)))


def decorrelate(
    score: ArrayLike, mass: ArrayLike, validation_score: ArrayLike, validation_mass: ArrayLike, *, k: int | None = None
) -> NDArray[np.float64]:
    """Conditional quantiles of scores given the mass, in (0, 1): (n_jets,); see the module.

    Args:
        score: (n_jets,).
        mass: (n_jets,).
        validation_score: (n_validation,) of background jets that are not among the others.
        validation_mass: (n_validation,).
        k: number of validation jets that a quantile rests on; `neighbours` of them by default.

    Raises:
        InputError: if there are no validation jets, or a score is not finite.
    """
    s, m = np.asarray(score, np.float64), np.asarray(mass, np.float64)
    known, at = np.asarray(validation_score, np.float64), np.asarray(validation_mass, np.float64)
    if not len(known):
        raise InputError("there are no validation jets", field="validation", remedy="give background jets")
    for values in (s, m, known, at):
        if not np.isfinite(values).all():
            raise InputError(
                "a score or mass is NaN or infinite",
                jet=int(np.argmin(np.isfinite(values))),
                field="score",
                remedy="check the model and its input",
            )
    k = neighbours(len(known)) if k is None else k
    at_least(2, k=k)
    order = np.argsort(at, kind="stable")
    known, at = known[order], at[order]
    # In the middle of those of equal mass, so that as many lie above as below.
    place = (np.searchsorted(at, m, side="left") + np.searchsorted(at, m, side="right")) // 2
    half = np.minimum(k // 2, np.minimum(place, len(at) - place))
    window = np.arange(-(k // 2), k // 2)
    quantile = np.empty(len(s))
    for start in range(0, len(s), max(1, _BLOCK // len(window))):
        rows = slice(start, start + max(1, _BLOCK // len(window)))
        used = (window >= -half[rows, None]) & (window < half[rows, None])
        near = known[np.clip(place[rows, None] + window, 0, len(known) - 1)]
        below = ((near < s[rows, None]) & used).sum(1) + 0.5 * ((near == s[rows, None]) & used).sum(1)
        quantile[rows] = (below + 0.5) / (2 * half[rows] + 1)
    return quantile


def anomaly_metrics(
    score: ArrayLike,
    sample: AnomalySample,
    *,
    background_rates: Sequence[float] = BACKGROUND_RATES,
    n_bootstrap: int = 200,
    seed: int = 0,
) -> dict[str, dict[str, Measurement]]:
    """What a score does for each signal and for all together ("combined").

    Args:
        score: (n_jets,) larger = more anomalous.
        sample: the jets.
        background_rates: ε_B at which ε_S is given; those below one background jet are left out.
        n_bootstrap: number of resamples.
        seed: seed of the resamples.

    Returns:
        By signal and metric: "auc"; "ε_S at ε_B = 0.1" and so on; "auc in mass window", of jets within the central
        68 % of the signal's masses; "auc at equal mass", of signal jets weighted to the masses of the background.
    """
    values = np.asarray(score, np.float64)
    table: dict[str, dict[str, Measurement]] = {}
    for name in (*sample.signals, None) if len(sample.signals) > 1 else sample.signals:
        chosen = sample.against(name)
        truth, mass = sample.signal[chosen] >= 0, sample.mass[chosen]
        auc, _, efficiencies = working_points(
            values[chosen], truth, background_rates=background_rates, n_bootstrap=n_bootstrap, seed=seed
        )
        row = {"auc": auc} | {f"ε_S at ε_B = {rate:g}": m for rate, m in efficiencies.items()}
        low, high = np.percentile(mass[truth], _INTERVAL)
        window = (mass >= low) & (mass <= high)
        if truth[window].any() and not truth[window].all():
            row["auc in mass window"] = working_points(
                values[chosen][window], truth[window], background_rates=(), n_bootstrap=n_bootstrap, seed=seed
            )[0]
        row["auc at equal mass"] = reweighted_auc(values[chosen], truth, mass, n_bootstrap=n_bootstrap, seed=seed)
        table[name or "combined"] = row
    return table


def _mass_bins(background: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inner edges of bins that hold equal numbers of background jets; fewer where masses are equal."""
    n = max(2, min(_MASS_BINS, len(background) // 20))
    return np.unique(np.quantile(background, np.arange(1, n) / n))


def reweighted_auc(
    score: ArrayLike, truth: NDArray[np.bool_], mass: NDArray[np.float64], *, n_bootstrap: int = 200, seed: int = 0
) -> Measurement:
    """AUC with signal jets weighted to the mass distribution of the background, in up to 20 bins of equal background.

    Bins that hold no signal jets are left out, their background jets too: ``n`` is the number of jets that count.
    Within a bin, mass and signal are still correlated.

    Args:
        score: (n_jets,).
        truth: (n_jets,) True for signal.
        mass: (n_jets,).
        n_bootstrap: number of resamples.
        seed: seed of the resamples.
    """
    edges = _mass_bins(mass[~truth])
    place = np.searchsorted(edges, mass, side="right")
    _, rank = np.unique(np.asarray(score, np.float64), return_inverse=True)

    def auc(times: NDArray[np.float64]) -> tuple[float, int]:
        """Of jets that are there several times: their AUC, and the number of different jets that count."""
        signal, background = (
            np.bincount(place[truth == kind], times[truth == kind], len(edges) + 1) for kind in (True, False)
        )
        both = (signal > 0) & (background > 0)
        ratio = np.divide(background, signal, out=np.zeros(len(signal)), where=both)
        s, b = times * truth * ratio[place], times * ~truth * both[place]
        if not both.any():
            return np.nan, 0
        per_score, known = np.bincount(rank, s), np.bincount(rank, b)
        below = np.cumsum(known) - 0.5 * known
        # Sums of weights round differently in each resample; a score without information has no error.
        return round(float(per_score @ below / (s.sum() * b.sum())), 12), int(((s + b) > 0).sum())

    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(truth), np.flatnonzero(~truth)]

    def resampled() -> NDArray[np.float64]:
        rows = np.concatenate([g[rng.integers(0, len(g), len(g))] for g in groups])
        return np.bincount(rows, minlength=len(truth)).astype(np.float64)

    drawn = np.array([auc(resampled())[0] for _ in range(n_bootstrap)])
    return _measured(*auc(np.ones(len(truth))), drawn)


def mass_sculpting(
    score: ArrayLike,
    mass: ArrayLike,
    *,
    background_rates: Sequence[float] = BACKGROUND_RATES[:2],
    n_bootstrap: int = 200,
    seed: int = 0,
) -> dict[str, Measurement]:
    """How a cut on the score shapes the mass of the background: Jensen–Shannon divergence in bits.

    Between the mass distributions of the jets that pass and of those that fail, in 20 bins of equal numbers. A cut that
    knows nothing gives "floor", not zero, since those that pass are few.

    Args:
        score: (n_background,).
        mass: (n_background,).
        background_rates: shares of the jets that pass.
        n_bootstrap: number of resamples.
        seed: seed of the resamples.

    Returns:
        "JSD at ε_B = 0.1" and "floor at ε_B = 0.1", and so on; rates below ten jets are left out.
    """
    values, m = np.asarray(score, np.float64), np.asarray(mass, np.float64)
    place, rng = np.searchsorted(_mass_bins(m), m, side="right"), np.random.default_rng(seed)
    n = len(values)

    def divergence(passing: NDArray[np.bool_], bins: NDArray[np.int64]) -> float:
        counts = [np.bincount(bins[passing == kind], minlength=_MASS_BINS) for kind in (True, False)]
        return float(jensenshannon(*counts, base=2) ** 2)

    table = {}
    for rate in background_rates:
        n_pass = round(rate * n)
        if n_pass < 10 or n_pass > n - 10:
            continue
        # Jets of equal score in random order, so that the share that passes is the same for every score.
        order = np.lexsort((rng.random(n), -values))
        passing = np.zeros(n, np.bool_)
        passing[order[:n_pass]] = True
        drawn = [rng.integers(0, n, n) for _ in range(n_bootstrap)]
        samples = np.array([divergence(passing[rows], place[rows]) for rows in drawn])
        error = float(samples.std(ddof=1))
        value = divergence(passing, place)
        table[f"JSD at ε_B = {rate:g}"] = Measurement(
            value, error, value - error, value + error, n_pass, sampling_error=error
        )
        random = np.array([divergence(rng.permutation(passing), place) for _ in range(n_bootstrap)])
        table[f"floor at ε_B = {rate:g}"] = _measured(float(random.mean()), n_pass, random)
    return table


def _measured(value: float, n: int, samples: NDArray[np.float64]) -> Measurement:
    samples = samples[np.isfinite(samples)]
    if not len(samples):
        return Measurement(value, np.nan, value, value, n)
    low, high = (float(x) for x in np.percentile(samples, _INTERVAL))
    error = float(samples.std(ddof=1)) if len(samples) > 1 else np.nan
    return Measurement(value, error, min(value, low), max(value, high), n, sampling_error=error)


def size_weighted_mean(aucs: Mapping[str, float], sizes: Mapping[str, int]) -> float:
    """AUC of all signals together, from that of each: the same number as the AUC of their union."""
    return sum(aucs[name] * sizes[name] for name in aucs) / sum(sizes[name] for name in aucs)
