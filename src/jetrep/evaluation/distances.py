r"""Distances between distributions of true and of reconstructed jets: Wasserstein, Fréchet, kernel.

Each compares the reconstructions of one random half of the jets with the other half of the true jets, many times over,
and is the mean. The two are samples of different jets, as in comparisons of generated with simulated jets (arXiv
2211.10295), and the same procedure with true jets in both places gives the **floor**, what a perfect reconstruction
has. The error is that of the finite number of jets, halves included: jackknife that deletes a tenth of the jets,
with their reconstructions, from all halves.

The Fréchet physics distance (FPD) is extrapolated to infinitely many jets, linearly in 1/N (arXiv 1911.07023,
2211.10295). The kernel physics distance (KPD) is unbiased, with the polynomial kernel of fourth order. Both see
`comparison.FEATURES` in units of the standard deviation of true jets. Both can be negative within errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from jetrep.errors import InputError
from jetrep.evaluation.comparison import Comparison, Set
from jetrep.physics import fourvector as fv
from jetrep.report.measurement import Measurement

__all__ = ["distribution_distances", "fpd", "kpd"]

_POINTS = 8  # of the extrapolation
_LARGEST_KERNEL = 1000
_GROUPS = 10  # of the jackknife

Halves = Callable[[NDArray[np.int64], NDArray[np.int64]], float]
"""The distance of some true jets from some others, given by their numbers."""


def distribution_distances(
    comparison: Comparison, *, n_repeats: int = 20, max_jets: int = 20_000, seed: int = 0
) -> dict[str, dict[str, Measurement]]:
    """By distance, "distance" between true and reconstructed jets and its "floor" between true and true ones.

    Wasserstein-1 distances of particles (pT, η, φ relative to the jet; not for images) and of the jet mass (GeV); FPD
    and KPD.

    Args:
        comparison: the jets.
        n_repeats: number of random halves.
        max_jets: use at most this many, drawn at random.
        seed: seed of the halves.

    Raises:
        InputError: if there are fewer than 40 jets.
    """
    n = min(len(comparison), max_jets)
    if n < 40:
        raise InputError(f"{n} jets are too few to compare distributions", field="jets", remedy="give 40 or more")
    rng = np.random.default_rng(seed)
    true, other = comparison.true, comparison.reconstructed
    shift, scale = true.features.mean(0), true.features.std(0)
    # An observable that is the same for all true jets tells nothing, and has no unit.
    kept = scale > 1e-12 * np.abs(shift)

    def features(x: Set, jets: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy((x.features[jets][:, kept] - shift[kept]) / scale[kept])

    each = np.arange(len(comparison))
    measures: dict[str, Callable[[Set], Halves]] = {
        "W1 jet mass [GeV]": lambda other: _wasserstein(fv.mass(true.p4), each, fv.mass(other.p4), each),
        "FPD": lambda other: lambda i, j: fpd(features(true, i), features(other, j)),
        "KPD": lambda other: lambda i, j: kpd(features(true, i), features(other, j)),
    }
    if comparison.pairs is not None:
        particles = {
            f"W1 particle {name}": lambda other, k=k: _wasserstein(
                true.particles[:, k], true.jet, other.particles[:, k], other.jet
            )
            for k, name in enumerate(("pT", "η", "φ"))
        }
        measures = particles | measures
    orders = [rng.permutation(len(comparison))[:n] for _ in range(n_repeats)]
    group = rng.permutation(len(comparison)) % _GROUPS
    table: dict[str, dict[str, Measurement]] = {}
    for name, measure_for in measures.items():
        half = min(n // 2, _LARGEST_KERNEL) if name == "KPD" else n // 2
        for what, other in (("distance", comparison.reconstructed), ("floor", true)):
            halves = [(order[:half], order[half : 2 * half]) for order in orders]
            value, error = _over_halves(measure_for(other), halves, group)
            table.setdefault(name, {})[what] = Measurement(
                value, error, value - error, value + error, n, sampling_error=error
            )
    return table


def _over_halves(
    measure: Halves, halves: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]], group: NDArray[np.int64]
) -> tuple[float, float]:
    """The mean over halves and its error; ``group`` (n_jets,) tells which jets are deleted together."""
    numbers = np.unique(group)
    without = [np.mean([measure(i[group[i] != g], j[group[j] != g]) for i, j in halves]) for g in numbers]
    error = np.sqrt(len(numbers) - 1) * np.std(without)
    return float(np.mean([measure(i, j) for i, j in halves])), float(error)


def _wasserstein(
    a: NDArray[np.float64], a_jet: NDArray[np.int64], b: NDArray[np.float64], b_jet: NDArray[np.int64]
) -> Halves:
    """The Wasserstein-1 distance of the values of some jets from those of others; NaN if there are none.

    All values are sorted once, for all halves.

    Args:
        a: (n,) values of true jets.
        a_jet: (n,) the jet of each.
        b: (m,) values of the others.
        b_jet: (m,) the jet of each.
    """
    n_jets = 1 + max(int(jet.max(initial=-1)) for jet in (a_jet, b_jet))
    counts = [np.bincount(jet, minlength=n_jets) for jet in (a_jet, b_jet)]
    values = np.concatenate([a, b])
    order = np.argsort(values)
    gaps, jet = np.diff(values[order]), np.concatenate([a_jet, b_jet + n_jets])[order]

    def distance(i: NDArray[np.int64], j: NDArray[np.int64]) -> float:
        of_a, of_b = counts[0][i].sum(), counts[1][j].sum()
        if not (of_a and of_b):
            return np.nan
        weights = np.zeros(2 * n_jets)
        weights[i], weights[n_jets + j] = 1 / of_a, -1 / of_b
        return float(np.abs(np.cumsum(weights[jet])[:-1]) @ gaps)

    return distance


class _Identity(nn.Identity):
    """Features that are features already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def fpd(a: torch.Tensor, b: torch.Tensor) -> float:
    """Fréchet distance of (n, d) and (n, d) features, extrapolated to n → ∞ linearly in 1/n.

    The first n/5 to all n of the rows enter the fit.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance  # slow to import

    metric = FrechetInceptionDistance(feature=_Identity(a.shape[1]), normalize=True).set_dtype(torch.float64)
    n = min(len(a), len(b))
    sizes = np.unique(np.round(1 / np.linspace(5 / n, 1 / n, _POINTS)).astype(np.int64))
    values = []
    for size in sizes:
        metric.reset()
        metric.update(a[:size], real=True)
        metric.update(b[:size], real=False)
        values.append(float(metric.compute()))
    return float(np.polynomial.Polynomial.fit(1 / sizes, values, 1).convert().coef[0])


def kpd(a: torch.Tensor, b: torch.Tensor) -> float:
    """Unbiased squared maximum mean discrepancy of (n, d) and (n, d) features, with the kernel (a·b/d + 1)⁴."""
    from torchmetrics.image.kid import poly_mmd

    return float(poly_mmd(a, b, degree=4))
