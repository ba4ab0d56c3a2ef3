"""Tagging metrics with their errors: accuracy, ROC AUC, background rejection.

The background rejection at signal efficiency ε is 1/ε_B at the tightest cut "score ≥ t" whose signal efficiency is at
least ε. The cut runs over the scores that occur, with no interpolation between them, so jets of equal score pass
or fail together and the rejection is never better than what a cut on this sample gives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta
from sklearn.metrics import roc_auc_score, roc_curve

from jetrep.errors import InputError
from jetrep.evaluation.cuts import ScoreCounts, background_efficiency, count_by_score, resamples, signal_efficiency
from jetrep.report.measurement import Measurement

__all__ = [
    "METRICS",
    "TaggingMetrics",
    "combine",
    "combine_measurements",
    "discriminant",
    "multiclass_metrics",
    "rejection_curve",
    "rejection_curve_band",
    "tagging_metrics",
    "working_points",
]

METRICS = ("accuracy", "auc", "rejection_30", "rejection_50")
EFFICIENCIES = (0.3, 0.5)
CONFIDENCE_OF_LIMIT = 0.95
_INTERVAL = (15.865, 84.135)  # per cent: the central 68.27 %


@dataclass(frozen=True)
class TaggingMetrics:
    """How well scores separate signal from background, or the mean of that over training seeds.

    Attributes:
        accuracy: share of jets on the right side of the threshold.
        auc: area under the ROC curve; jets of equal score count one half.
        rejection_30: 1/ε_B at signal efficiency 0.3; its ``n`` is the number of background jets that pass.
        rejection_50: the same at 0.5.
        n_signal: number of signal jets.
        n_background: number of background jets.
    """

    accuracy: Measurement
    auc: Measurement
    rejection_30: Measurement
    rejection_50: Measurement
    n_signal: int
    n_background: int

    def measurements(self) -> dict[str, Measurement]:
        """The metrics by name, in the order of `METRICS`."""
        return {name: getattr(self, name) for name in METRICS}

    def to_json(self) -> dict[str, Any]:
        """Plain types for JSON; what is not finite becomes None."""
        counts = {"n_signal": self.n_signal, "n_background": self.n_background}
        return {name: m.to_json() for name, m in self.measurements().items()} | counts

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> TaggingMetrics:
        """The inverse of `to_json`.

        Raises:
            InputError: if a metric is missing or malformed.
        """
        missing = [f.name for f in fields(cls) if f.name not in record]
        if missing:
            raise InputError("the metric is missing", field=missing[0], remedy="give the output of `to_json`")
        measurements = [Measurement.from_json(record[name]) for name in METRICS]
        return cls._of(measurements, int(record["n_signal"]), int(record["n_background"]))

    @classmethod
    def _of(cls, measurements: Sequence[Measurement], n_signal: int, n_background: int) -> TaggingMetrics:
        accuracy, auc, rejection_30, rejection_50 = measurements
        return cls(accuracy, auc, rejection_30, rejection_50, n_signal, n_background)


def tagging_metrics(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    signal: int = 1,
    background: int | Sequence[int] = 0,
    threshold: float = 0.5,
    n_bootstrap: int = 200,
    seed: int = 0,
) -> TaggingMetrics:
    """Accuracy, AUC and background rejection, with errors from a stratified bootstrap.

    Signal and background jets are drawn anew with replacement, each class keeping its number. ``low`` and ``high`` are
    the central 68.27 % of the resamples, widened to the value where it lies outside. The error of a rejection is the
    relative error of ε_B over the resamples times the value, which stays finite when a resample has no background jet
    left; if almost none has one, the error is Poisson's and ``low`` the exact binomial bound.

    If no background jet passes, the rejection is a lower limit (``limit=True``) at 95 % confidence: the ε_B for
    which seeing none of n_B jets has probability 5 %, 1/ε_B = 1/(1 − 0.05^(1/n_B)) ≈ n_B/3.0.

    Args:
        scores: (n_jets,) score that rises with signal-likeness, or (n_jets, n_classes) class probabilities, from
            which p_S/(p_S + p_B) is formed for the jets of the two classes.
        labels: (n_jets,) integer labels.
        signal: label of the signal.
        background: label or labels of the background; jets of other labels are left out.
        threshold: the score above which a jet is called signal for the accuracy: 0.5 for probabilities, 0 for logits.
        n_bootstrap: number of resamples, at least 2.
        seed: seed of the resamples.

    Raises:
        InputError: if shapes disagree, a score is not finite, or a class has no jets.
    """
    if n_bootstrap < 2:
        raise InputError(f"{n_bootstrap} resamples give no error", field="n_bootstrap", remedy="take at least 2")
    score, truth = discriminant(scores, labels, signal=signal, background=background)
    counts = count_by_score(score, truth)
    n_signal, n_background = int(truth.sum()), int((~truth).sum())

    accuracy = float(np.mean((score > threshold) == truth))
    auc = float(roc_auc_score(truth, score))
    false_positive, true_positive, _ = roc_curve(truth, score, drop_intermediate=False)
    passing = [
        round(false_positive[np.argmax(true_positive >= efficiency)] * n_background) for efficiency in EFFICIENCIES
    ]

    resampled = np.array(
        [_evaluate(sample, threshold) for sample in resamples(counts, n_bootstrap, np.random.default_rng(seed))]
    )
    rejections = [_rejection(n, n_background, resampled[:, 2 + i] * n_background) for i, n in enumerate(passing)]
    measurements = [
        _measurement(accuracy, resampled[:, 0], len(score)),
        _measurement(auc, resampled[:, 1], len(score)),
        *rejections,
    ]
    return TaggingMetrics._of(measurements, n_signal, n_background)


def discriminant(
    scores: ArrayLike, labels: ArrayLike, *, signal: int = 1, background: int | Sequence[int] = 0
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The jets of signal and background alone: one score each, and whether they are signal.

    Args:
        scores: (n_jets,) scores, returned as they are, or (n_jets, n_classes) probabilities, turned into
            p_S/(p_S + p_B) with p_B summed over the background classes; ½ where both are zero.
        labels: (n_jets,) integer labels.
        signal: label of the signal.
        background: label or labels of the background.

    Returns:
        Scores (n_selected,) and truth (n_selected,), in the order of the jets.

    Raises:
        InputError: if shapes disagree, a score is not finite, a probability is negative, or a class has no jets.
    """
    score, label = np.asarray(scores, np.float64), np.asarray(labels)
    backgrounds = [background] if isinstance(background, int | np.integer) else list(background)
    if label.ndim != 1 or score.ndim not in (1, 2) or len(score) != len(label):
        raise InputError(
            f"scores have shape {score.shape} and labels {label.shape}",
            field="scores",
            remedy="give (n_jets,) or (n_jets, n_classes) scores and (n_jets,) labels",
        )
    if signal in backgrounds:
        raise InputError(f"class {signal} is signal and background", field="background", remedy="name two classes")
    finite = np.isfinite(score)
    if not finite.all():
        jet = int(np.argmin(finite if score.ndim == 1 else finite.all(1)))
        raise InputError(
            "the score is NaN or infinite", jet=jet, field="scores", remedy="check the model and its input"
        )
    selected = (label == signal) | np.isin(label, backgrounds)
    truth = label[selected] == signal
    for name, present in (("signal", truth.any()), ("background", (~truth).any())):
        if not present:
            raise InputError(f"there is no {name} jet", field="labels", remedy="give jets of both classes")
    if score.ndim == 1:
        return score[selected], truth
    classes = [signal, *backgrounds]
    if not 0 <= min(classes) <= max(classes) < score.shape[1] or (score < 0).any():
        raise InputError(
            f"{score.shape[1]} columns of scores are not probabilities of classes {classes}",
            field="scores",
            remedy="give one column of probabilities for each class",
        )
    p_signal, p_background = score[selected, signal], score[np.ix_(selected, backgrounds)].sum(1)
    total = p_signal + p_background
    return np.divide(p_signal, total, out=np.full(len(total), 0.5), where=total > 0), truth


def multiclass_metrics(
    scores: ArrayLike,
    labels: ArrayLike,
    classes: Sequence[str],
    *,
    background: int = 0,
    n_bootstrap: int = 200,
    seed: int = 0,
) -> dict[str, TaggingMetrics]:
    """`tagging_metrics` of each class that has jets against one background class, by the name of the class.

    Args:
        scores: (n_jets, n_classes) probabilities.
        labels: (n_jets,) index into ``classes``.
        classes: names.
        background: index of the background class.
        n_bootstrap: number of resamples.
        seed: seed of the resamples.
    """
    present = {int(label) for label in np.unique(np.asarray(labels))} - {background}
    return {
        classes[i]: tagging_metrics(scores, labels, signal=i, background=background, n_bootstrap=n_bootstrap, seed=seed)
        for i in sorted(present)
    }


def combine(seeds: Sequence[TaggingMetrics]) -> TaggingMetrics:
    """The mean of each metric over models that differ by their training seed, judged on the same jets.

    The seed error is the standard deviation over the models with ddof = 1: the spread to expect of one training. All
    models see the same jets, so their sampling errors are common and do not shrink in the mean: the sampling error is
    their root mean square. The total error is the quadratic sum. ``n`` is the smallest count among the models.

    Where any model has only a limit, so has the mean: the smallest of the exact binomial lower limits of the models at
    95 % confidence, below which their mean does not lie if none of them does.

    Raises:
        InputError: if there is nothing to combine, or the models were judged on different numbers of jets.
    """
    if not seeds:
        raise InputError("there are no metrics to combine", field="seeds", remedy="give at least one")
    if len({(m.n_signal, m.n_background) for m in seeds}) > 1:
        raise InputError(
            "the seeds were judged on different jets", field="seeds", remedy="use one test set for all of them"
        )
    combined = [combine_measurements([m.measurements()[name] for m in seeds]) for name in METRICS]
    return TaggingMetrics._of(combined, seeds[0].n_signal, seeds[0].n_background)


def combine_measurements(parts: Sequence[Measurement]) -> Measurement:
    """The mean of one metric over models, as in `combine`."""
    if len(parts) == 1:
        return parts[0]
    values = np.array([m.value for m in parts])
    mean, spread = float(values.mean()), float(values.std(ddof=1)) if np.ptp(values) else 0.0
    counts = [m.n for m in parts if m.n is not None]
    n = min(counts) if counts else None
    if any(m.limit for m in parts):
        bound = min(_lower_limit(m) for m in parts)
        return Measurement(bound, math.nan, bound, math.inf, n, limit=True, n_seeds=len(parts))
    sampling = math.sqrt(np.mean([m.error**2 for m in parts]))
    below = math.hypot(spread, float(np.mean([m.value - m.low for m in parts])))
    above = math.hypot(spread, float(np.mean([m.high - m.value for m in parts])))
    return Measurement(
        mean,
        math.hypot(spread, sampling),
        mean - below,
        mean + above,
        n,
        sampling_error=sampling,
        seed_error=spread,
        n_seeds=len(parts),
    )


def _lower_limit(rejection: Measurement) -> float:
    """What a rejection exceeds at 95 % confidence (Clopper and Pearson)."""
    passing = rejection.n or 0
    if rejection.limit or not passing:
        return rejection.value
    n_background = round(rejection.value * passing)
    if passing == n_background:
        return 1.0
    return float(1.0 / beta.ppf(CONFIDENCE_OF_LIMIT, passing + 1, n_background - passing))


def working_points(
    score: ArrayLike,
    truth: ArrayLike,
    *,
    efficiency: float = 0.5,
    background_rates: Sequence[float] = (0.01, 0.001),
    n_bootstrap: int = 200,
    seed: int = 0,
) -> tuple[Measurement, Measurement, dict[float, Measurement]]:
    """AUC, background rejection at one ε_S, and ε_S at given ε_B, with errors from a stratified bootstrap.

    ε_S at ε_B is that of the loosest cut "score ≥ t" whose background efficiency is at most ε_B. A rate below one
    background jet is not measured.

    Args:
        score: (n_jets,) score that rises with signal-likeness.
        truth: (n_jets,) True for signal.
        efficiency: ε_S of the rejection.
        background_rates: the ε_B.
        n_bootstrap: number of resamples, at least 2.
        seed: seed of the resamples.

    Returns:
        The AUC; the rejection, as in `tagging_metrics`; and ε_S by ε_B, its ``n`` the background jets that pass.
    """
    counts = count_by_score(*discriminant(score, np.asarray(truth, np.int64)))
    n_signal, n_background = int(counts.signal.sum()), int(counts.background.sum())
    rates = [rate for rate in background_rates if rate * n_background >= 1]
    grid = np.array([efficiency])

    def measure(sample: ScoreCounts) -> list[float]:
        passing = float(background_efficiency(sample, grid)[0])
        return [_evaluate(sample, 0.5)[1], passing, *(signal_efficiency(sample, rate)[0] for rate in rates)]

    values = measure(counts)
    resampled = np.array([measure(sample) for sample in resamples(counts, n_bootstrap, np.random.default_rng(seed))])
    auc = _measurement(values[0], resampled[:, 0], n_signal + n_background)
    rejection = _rejection(round(values[1] * n_background), n_background, resampled[:, 1] * n_background)
    efficiencies = {
        rate: _measurement(values[2 + i], resampled[:, 2 + i], signal_efficiency(counts, rate)[1])
        for i, rate in enumerate(rates)
    }
    return auc, rejection, efficiencies


def rejection_curve(scores: ArrayLike, labels: ArrayLike, efficiencies: ArrayLike) -> NDArray[np.float64]:
    """1/ε_B at each signal efficiency; infinite where no background jet passes.

    Args:
        scores: (n_jets,) scores.
        labels: (n_jets,) 1 for signal, 0 for background.
        efficiencies: (n_points,) signal efficiencies in [0, 1].

    Returns:
        (n_points,) rejections.
    """
    counts = count_by_score(*discriminant(scores, labels))
    with np.errstate(divide="ignore"):
        return 1.0 / background_efficiency(counts, np.asarray(efficiencies, np.float64))


def rejection_curve_band(
    scores: ArrayLike, labels: ArrayLike, efficiencies: ArrayLike, *, n_bootstrap: int = 200, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper end of the 68.27 % bootstrap interval of `rejection_curve`, each of shape (n_points,)."""
    counts = count_by_score(*discriminant(scores, labels))
    grid, rng = np.asarray(efficiencies, np.float64), np.random.default_rng(seed)
    resampled = np.array([background_efficiency(s, grid) for s in resamples(counts, n_bootstrap, rng)])
    low, high = np.percentile(resampled, _INTERVAL, axis=0)
    with np.errstate(divide="ignore"):
        return 1.0 / high, 1.0 / low


def _evaluate(counts: ScoreCounts, threshold: float) -> tuple[float, ...]:
    """Accuracy, AUC and ε_B at each of `EFFICIENCIES`."""
    signal, background = counts.signal, counts.background
    n_signal, n_background = signal.sum(), background.sum()
    called = counts.score > threshold
    accuracy = (signal[called].sum() + background[~called].sum()) / (n_signal + n_background)
    below = n_background - np.cumsum(background)
    auc = np.dot(signal, below + 0.5 * background) / (n_signal * n_background)
    return float(accuracy), float(auc), *background_efficiency(counts, np.array(EFFICIENCIES))


def _measurement(value: float, resampled: NDArray[np.float64], n: int) -> Measurement:
    low, high = np.percentile(resampled, _INTERVAL)
    error = float(resampled.std(ddof=1))
    return Measurement(value, error, min(value, float(low)), max(value, float(high)), n, sampling_error=error)


def _rejection(passing: int, n_background: int, resampled: NDArray[np.float64]) -> Measurement:
    """The rejection for ``passing`` background jets of ``n_background``, given the numbers in the resamples."""
    if passing == 0:
        bound = 1.0 / -math.expm1(math.log(1.0 - CONFIDENCE_OF_LIMIT) / n_background)
        return Measurement(bound, math.nan, bound, math.inf, 0, limit=True)
    value = n_background / passing
    fewest, most = (float(edge) for edge in np.percentile(resampled, _INTERVAL))
    error = value * float(resampled.std(ddof=1)) / passing
    if most == 0:
        # Next to no resample keeps a background jet, so they say nothing: Poisson error, exact binomial bound.
        error = value / math.sqrt(passing)
        bound = beta.ppf(_INTERVAL[1] / 100, passing + 1, n_background - passing) if passing < n_background else 1.0
        most = n_background * float(bound)
    low, high = n_background / most, n_background / fewest if fewest > 0 else math.inf
    return Measurement(value, error, min(value, low), max(value, high), passing, sampling_error=error)
