"""Domain shift: how far apart the embeddings of two sets of jets are.

All measures standardise the embeddings first, with one mean and one variance for both domains, so none of them depends
on the scale or offset that a model happens to give its features, and different models compare. Jets of different
classes are to be compared class by class: two domains with different class fractions are shifted even where each class
agrees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom
from sklearn.linear_model import LogisticRegression

from jetrep.errors import InputError
from jetrep.report.measurement import Measurement

__all__ = ["DomainShift", "Shift", "domain_shift", "mmd2", "proxy_a_distance", "standardise", "wasserstein"]

_FOLDS = 5


@dataclass(frozen=True)
class Shift:
    """One measure of shift, beside what it would be without a shift.

    Attributes:
        measurement: the distance and its bootstrap error.
        null: its mean if both domains are the same.
        null_error: its standard deviation then, for this number of jets.
        p_value: probability of a distance at least as large if both domains are the same.
    """

    measurement: Measurement
    null: float
    null_error: float
    p_value: float

    def to_json(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return vars(self) | {"measurement": self.measurement.to_json()}


@dataclass(frozen=True)
class DomainShift:
    """Three measures of shift between two domains.

    Attributes:
        pad: proxy A-distance, 2 for domains that a plane separates, 0 for identical ones.
        mmd2: squared maximum mean discrepancy, unbiased: 0 on average for identical domains, so it can be negative.
        wasserstein: mean over dimensions of the 1-D Wasserstein-1 distance, in standard deviations.
        n_jets: number of jets of each domain that were compared.
    """

    pad: Shift
    mmd2: Shift
    wasserstein: Shift
    n_jets: int

    def to_json(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return {name: getattr(self, name).to_json() for name in ("pad", "mmd2", "wasserstein")} | {
            "n_jets": self.n_jets
        }


def domain_shift(
    source: ArrayLike, target: ArrayLike, *, seed: int = 0, n_resamples: int = 100, max_jets: int = 2000
) -> DomainShift:
    """All three measures between two sets of embeddings.

    Args:
        source: (n_source, d) embeddings.
        target: (n_target, d) embeddings.
        seed: seed of the selection of jets, the folds and the resamples.
        n_resamples: number of bootstrap resamples and of permutations.
        max_jets: at most so many jets of each domain are compared, drawn at random, the same number of each.

    Raises:
        InputError: if the dimensions differ, an embedding is not finite, or a domain has fewer than ten jets.
    """
    standardise(source, target)  # raises on bad input before jets are drawn from it
    rng = np.random.default_rng(seed)
    size = min(len(np.asarray(source)), len(np.asarray(target)), max_jets)
    a, b = (_draw(np.asarray(x), size, np.random.default_rng(seed)) for x in (source, target))
    return DomainShift(
        proxy_a_distance(a, b, seed=int(rng.integers(2**31)), n_resamples=n_resamples),
        mmd2(a, b, seed=int(rng.integers(2**31)), n_resamples=n_resamples),
        wasserstein(a, b, seed=int(rng.integers(2**31)), n_resamples=n_resamples),
        size,
    )


def _draw(x: NDArray[Any], size: int, rng: np.random.Generator) -> NDArray[Any]:
    return x if len(x) == size else x[rng.permutation(len(x))[:size]]


def standardise(*domains: ArrayLike) -> tuple[NDArray[np.float64], ...]:
    """Each domain less the common mean, over the common standard deviation; constant dimensions are dropped.

    Each domain has the same weight in mean and variance, whatever its number of jets.

    Args:
        *domains: (n, d) each, with the same d.

    Raises:
        InputError: if the dimensions differ or an embedding is not finite.
    """
    arrays = [np.asarray(x, np.float64) for x in domains]
    if any(x.ndim != 2 or len(x) == 0 or x.shape[1] != arrays[0].shape[-1] for x in arrays):
        raise InputError(
            f"embeddings have shapes {', '.join(str(x.shape) for x in arrays)}",
            field="embeddings",
            remedy="give (n_jets, d) with the same d and at least one jet",
        )
    for x in arrays:
        finite = np.isfinite(x).all(1)
        if not finite.all():
            raise InputError(
                "the embedding is NaN or infinite",
                jet=int(np.argmin(finite)),
                field="embeddings",
                remedy="check the model",
            )
    mean = np.mean([x.mean(0) for x in arrays], axis=0)
    deviation = np.sqrt(np.mean([((x - mean) ** 2).mean(0) for x in arrays], axis=0))
    # A dimension that varies by rounding alone carries no information, but would become noise of unit variance.
    size = np.max([np.abs(x).max(0) for x in arrays], axis=0)
    varies = deviation > 1e-7 * size
    return tuple((x[:, varies] - mean[varies]) / deviation[varies] for x in arrays)


def proxy_a_distance(source: ArrayLike, target: ArrayLike, *, seed: int = 0, n_resamples: int = 100) -> Shift:
    """Proxy A-distance 2(1 − 2ε), ε the held-out error of a linear classifier of the domain (Ben-David et al. 2010).

    ε is the mean of the two domains' error rates over five folds, so that every jet is judged once, by a logistic
    regression that has not seen it. Jets of equal index share a fold, so that a set compared with itself gives 0. Below
    zero, the classifier did worse than guessing. The error covers the jets that are judged, not those that are trained
    on, and is zero for domains that are separated without a mistake; null and p-value are binomial.

    Args:
        source: (n_source, d) embeddings.
        target: (n_target, d) embeddings.
        seed: seed of folds and resamples.
        n_resamples: number of bootstrap resamples.

    Raises:
        InputError: as `domain_shift`.
    """
    domains = _domains(source, target)
    rng = np.random.default_rng(seed)
    fold = rng.permutation(max(map(len, domains))) % _FOLDS
    wrong = _held_out_errors(domains, [fold[: len(x)] for x in domains])
    value = _pad([w.mean() for w in wrong])
    resampled = np.array([_pad([w[rng.integers(0, len(w), len(w))].mean() for w in wrong]) for _ in range(n_resamples)])
    null_error = float(2.0 * np.sqrt(np.mean([1.0 / len(w) for w in wrong]) / 2.0))
    judged = sum(map(len, wrong))
    right = round(judged * (1.0 - np.mean([w.mean() for w in wrong])))
    return Shift(_spread(value, resampled, judged), 0.0, null_error, float(binom.sf(right - 1, judged, 0.5)))


def _held_out_errors(
    domains: Sequence[NDArray[np.float64]], folds: Sequence[NDArray[np.int64]]
) -> list[NDArray[np.float64]]:
    """Per domain and jet: 1 if the classifier of the other folds takes it for the other domain, ½ if undecided."""
    wrong = [np.full(len(x), 0.5) for x in domains]
    if domains[0].shape[1] == 0:
        return wrong
    for k in range(_FOLDS):
        seen = [x[f != k] for x, f in zip(domains, folds, strict=True)]
        labels = np.repeat([0, 1], [len(x) for x in seen])
        # A fairly strong penalty: with few jets and many dimensions an unpenalised plane fits the noise.
        model = LogisticRegression(C=0.1, max_iter=500, class_weight="balanced")
        model.fit(np.concatenate(seen), labels)
        for domain, (x, f) in enumerate(zip(domains, folds, strict=True)):
            if not (f == k).any():
                continue
            margin = model.decision_function(x[f == k]) * (1 if domain == 1 else -1)
            wrong[domain][f == k] = np.where(np.abs(margin) < 1e-9, 0.5, margin < 0)
    return wrong


def _pad(errors: Sequence[float]) -> float:
    return float(2.0 * (1.0 - 2.0 * np.mean(errors)))


def mmd2(source: ArrayLike, target: ArrayLike, *, seed: int = 0, n_resamples: int = 100) -> Shift:
    """Unbiased squared maximum mean discrepancy with the kernel exp(−|x − y|²/d) (Gretton et al. 2012, eq. 3).

    d is the number of dimensions that vary; the mean squared distance of standardised embeddings is 2d. In a bootstrap
    resample, pairs of copies of one jet are left out, as the pair of a jet with itself is.

    Args:
        source: (n_source, d) embeddings; memory is (n_source + n_target)² doubles.
        target: (n_target, d) embeddings.
        seed: seed of the resamples.
        n_resamples: number of bootstrap resamples and of permutations.

    Raises:
        InputError: as `domain_shift`.
    """
    a, b = _domains(source, target)
    rng = np.random.default_rng(seed)
    pooled = np.concatenate([a, b])
    kernel = _kernel(pooled)
    n, total = len(a), len(pooled)
    membership = np.zeros((2, total))
    membership[0, :n], membership[1, n:] = 1.0, 1.0
    value = float(_mmd2(kernel, membership[None])[0])
    drawn = np.stack(
        [
            np.stack([np.bincount(rng.choice(np.flatnonzero(m), int(m.sum())), minlength=total) for m in membership])
            for _ in range(n_resamples)
        ]
    ).astype(np.float64)
    permuted = np.stack([membership[:, rng.permutation(total)] for _ in range(n_resamples)])
    return _against_null(value, _mmd2(kernel, drawn), _mmd2(kernel, permuted), total)


def _kernel(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """RBF kernel matrix with zero diagonal."""
    square = np.einsum("ij,ij->i", x, x)
    kernel = x @ x.T
    kernel *= 2.0
    kernel -= square
    kernel -= square[:, None]
    kernel /= max(1, x.shape[1])
    np.exp(kernel, out=kernel)
    np.fill_diagonal(kernel, 0.0)
    return kernel


def _mmd2(kernel: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """MMD² for (n, 2, n_jets) weights of the jets in the two domains."""
    w, v = weights[:, 0], weights[:, 1]
    kw, kv = w @ kernel, v @ kernel

    def pairs(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(x.sum(1) ** 2 - (x * x).sum(1))

    within = (w * kw).sum(1) / pairs(w) + (v * kv).sum(1) / pairs(v)
    return np.asarray(within - 2.0 * (v * kw).sum(1) / (w.sum(1) * v.sum(1)))


def wasserstein(source: ArrayLike, target: ArrayLike, *, seed: int = 0, n_resamples: int = 100) -> Shift:
    """Mean over dimensions of the Wasserstein-1 distance of each standardised dimension.

    It is positive even without a shift, by the fluctuations of finite samples: read it against ``null``.

    Args:
        source: (n_source, d) embeddings.
        target: (n_target, d) embeddings.
        seed: seed of the resamples.
        n_resamples: number of bootstrap resamples and of permutations.

    Raises:
        InputError: as `domain_shift`.
    """
    a, b = _domains(source, target)
    rng = np.random.default_rng(seed)
    pooled = np.concatenate([a, b])
    order = np.argsort(pooled, axis=0, kind="stable")
    gaps = np.diff(np.take_along_axis(pooled, order, 0), axis=0)
    n, m = len(a), len(b)

    def distance(weights: NDArray[np.float64]) -> float:
        """∫ |F − G| dx with the difference of the distribution functions as a running sum of signed weights."""
        if pooled.shape[1] == 0:
            return 0.0
        difference = np.cumsum(weights[order], axis=0)[:-1]
        return float(np.einsum("ij,ij->j", np.abs(difference), gaps).mean())

    sign = np.concatenate([np.full(n, 1.0 / n), np.full(m, -1.0 / m)])
    drawn = [
        distance(
            np.concatenate(
                [
                    np.bincount(rng.integers(0, n, n), minlength=n) / n,
                    -np.bincount(rng.integers(0, m, m), minlength=m) / m,
                ]
            )
        )
        for _ in range(n_resamples)
    ]
    permuted = [distance(rng.permutation(sign)) for _ in range(n_resamples)]
    return _against_null(distance(sign), np.array(drawn), np.array(permuted), n + m)


def _domains(source: ArrayLike, target: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = standardise(source, target)
    if min(len(a), len(b)) < 2 * _FOLDS:
        raise InputError(
            f"{len(a)} and {len(b)} jets are too few to compare", field="embeddings", remedy=f"give {2 * _FOLDS} each"
        )
    return a, b


def _spread(value: float, resampled: NDArray[np.float64], n: int) -> Measurement:
    # Symmetric about the value: resamples of a distance are biased upwards, so their percentiles would not be.
    error = float(resampled.std(ddof=1))
    return Measurement(value, error, value - error, value + error, n, sampling_error=error)


def _against_null(value: float, resampled: NDArray[np.float64], permuted: NDArray[np.float64], n: int) -> Shift:
    p_value = (1 + int((permuted >= value).sum())) / (1 + len(permuted))
    return Shift(_spread(value, resampled, n), float(permuted.mean()), float(permuted.std(ddof=1)), p_value)
