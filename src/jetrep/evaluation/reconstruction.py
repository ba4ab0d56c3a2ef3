"""How well jets are reconstructed: residuals of particles and of jets, with bootstrap errors over jets.

Relative residuals are (reconstructed − true)/true, always divided by the true value; where that is exactly zero there
is none, and the number of entries says so. Relative residuals of angles are large wherever the true angle is small,
whatever the model does: they are there because others published them; the absolute ones beside them say more.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from jetrep.errors import at_least
from jetrep.evaluation.comparison import Comparison
from jetrep.physics import fourvector as fv
from jetrep.report.measurement import Measurement

__all__ = ["METRICS", "Residual", "jet_residuals", "measure", "particle_residuals", "residuals"]

METRICS = ("median", "IQR", "median |r|", "mean", "std")

_INTERVAL = (15.865, 84.135)  # per cent: the central 68.27 %

Residual = tuple[NDArray[np.float64], NDArray[np.int64]]
"""Values and the jet of each."""


def _relative(true: NDArray[np.float64], difference: NDArray[np.float64], jet: NDArray[np.int64]) -> Residual:
    defined = true != 0
    return difference[defined] / true[defined], jet[defined]


def particle_residuals(comparison: Comparison) -> dict[str, Residual]:
    """Residuals of matched particles by name; none for images.

    Relative ones of pT, η and φ relative to the jet; and the absolute ones, of the share of the jet's pT, of η and φ.
    """
    if comparison.pairs is None:
        return {}
    rows, columns = comparison.pairs.T
    true, other = comparison.true.particles[rows], comparison.reconstructed.particles[columns]
    jet, difference = comparison.true.jet[rows], other - true
    difference[:, 2] = fv.delta_phi(other[:, 2], true[:, 2])
    relative = {
        f"particle {name}, relative": _relative(true[:, k], difference[:, k], jet)
        for k, name in enumerate(("pT", "η", "φ"))
    }
    absolute = ("pT / jet pT", "Δη", "Δφ")
    return relative | {f"particle {name}": (difference[:, k], jet) for k, name in enumerate(absolute)}


def jet_residuals(comparison: Comparison) -> dict[str, Residual]:
    """Residuals of jets by name: relative ones of mass, pT, η and φ; Δη, Δφ; and the difference in multiplicity."""
    true, other = comparison.true, comparison.reconstructed
    jet = np.arange(len(comparison))
    found = {}
    for name, function in (("mass", fv.mass), ("pT", fv.pt), ("η", fv.eta), ("φ", fv.phi)):
        value, difference = function(true.p4), function(other.p4) - function(true.p4)
        if name == "φ":
            difference = fv.delta_phi(function(other.p4), value)
        found[f"jet {name}, relative"] = _relative(value, difference, jet)
        if name in ("η", "φ"):
            found[f"jet Δ{name}"] = difference, jet
    found["multiplicity"] = (other.counts - true.counts).astype(np.float64), jet
    return found


def residuals(comparison: Comparison, *, n_bootstrap: int = 200, seed: int = 0) -> dict[str, dict[str, Measurement]]:
    """All residuals, as medians and interquartile ranges; and how many particles found no partner.

    Jets are drawn anew with replacement, with all their particles, which are not independent.

    Args:
        comparison: the jets.
        n_bootstrap: number of resamples, at least 2.
        seed: seed of the resamples.

    Returns:
        By quantity, then by metric (`METRICS`); the energy mover's distance of jets from their reconstructions is among
        them, if it is known. The multiplicity, a whole number, has mean and standard deviation, the
        unmatched particles ("lost", "invented") their mean number in a jet.
    """
    at_least(2, n_bootstrap=n_bootstrap)
    n = len(comparison)
    rng = np.random.default_rng(seed)
    drawn = np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(n_bootstrap)]).astype(np.float64)
    found = particle_residuals(comparison) | jet_residuals(comparison)
    multiplicity = found.pop("multiplicity")[0]
    table: dict[str, dict[str, Measurement]] = {
        name: measure(values, jet, drawn) for name, (values, jet) in found.items() if len(values)
    }
    if "emd" in comparison.distances:
        table["energy mover's distance"] = measure(comparison.distances["emd"], np.arange(n), drawn)
    per_jet = {"multiplicity": multiplicity}
    if comparison.pairs is not None:
        matched = np.bincount(comparison.true.jet[comparison.pairs[:, 0]], minlength=n)
        per_jet["lost particles"] = (comparison.true.counts - matched).astype(np.float64)
        per_jet["invented particles"] = (comparison.reconstructed.counts - matched).astype(np.float64)
    for name, values in per_jet.items():
        mean, square = drawn @ values / n, drawn @ values**2 / n
        table[name] = {
            "mean": _measurement(float(values.mean()), mean, n),
            "std": _measurement(float(values.std()), np.sqrt(np.maximum(square - mean**2, 0.0)), n),
        }
    return table


def measure(values: NDArray[np.float64], jet: NDArray[np.int64], drawn: NDArray[np.float64]) -> dict[str, Measurement]:
    """Median, interquartile range, and median of the absolute value, with errors.

    Args:
        values: (n,).
        jet: (n,) the jet of each value.
        drawn: (n_resamples, n_jets) how often each jet is in each resample.
    """
    size = np.abs(values)
    order, by_size = np.argsort(values), np.argsort(size)

    def resampled() -> Iterator[tuple[float, float, float]]:
        for times in drawn:
            low, middle, high = _quantiles(values, order, times[jet[order]], (0.25, 0.5, 0.75))
            yield middle, high - low, _quantiles(size, by_size, times[jet[by_size]], (0.5,))[0]

    samples = np.array([sample for sample in resampled() if np.isfinite(sample).all()])
    low, middle, high = np.percentile(values, [25, 50, 75])
    central = middle, high - low, np.median(size)
    return {
        name: _measurement(float(value), samples[:, k], len(values))
        for k, (name, value) in enumerate(zip(METRICS, central, strict=False))
    }


def _quantiles(
    values: NDArray[np.float64], order: NDArray[np.int64], weights: NDArray[np.float64], at: tuple[float, ...]
) -> list[float]:
    """Quantiles of weighted values, with ``weights`` in ascending order of value; NaN if nothing has a weight."""
    total = np.cumsum(weights)
    if total[-1] <= 0:
        return [np.nan] * len(at)
    place = np.searchsorted(total, np.array(at) * total[-1])
    return [float(x) for x in values[order[place]]]


def _measurement(value: float, samples: NDArray[np.float64], n: int) -> Measurement:
    low, high = np.percentile(samples, _INTERVAL)
    error = float(samples.std(ddof=1))
    return Measurement(value, error, min(value, float(low)), max(value, float(high)), n, sampling_error=error)
