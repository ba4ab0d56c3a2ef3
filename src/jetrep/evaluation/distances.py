r"""Distances between distributions of true and of reconstructed jets: Wasserstein, Fréchet, kernel.

Each compares the reconstructions of one random half of the jets with the other half of the true jets, many times over.
The two are independent samples, as in comparisons of generated with simulated jets (arXiv 2211.10295), and the same
procedure with true jets in both places gives the **floor**, what a perfect reconstruction has. The standard deviation
over the halves is the standard error of the mean over them (jackknife that deletes half).

The Fréchet physics distance (FPD) is extrapolated to infinitely many jets, linearly in 1/N (arXiv 1911.07023,
2211.10295). The kernel physics distance (KPD) is unbiased, with the polynomial kernel of fourth order. Both see
`comparison.FEATURES` in units of the standard deviation of true jets. Both can be negative within errors.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance
from torch import nn

from jetrep.errors import InputError
from jetrep.evaluation.comparison import Comparison, Set
from jetrep.physics import fourvector as fv
from jetrep.report.measurement import Measurement

__all__ = ["distribution_distances", "fpd", "kpd"]

_POINTS = 8  # of the extrapolation
_LARGEST_KERNEL = 2000

Halves = Callable[[Set, NDArray[np.int64], Set, NDArray[np.int64]], float]


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

    def of_particles(k: int) -> Halves:
        def distance(a: Set, i: NDArray[np.int64], b: Set, j: NDArray[np.int64]) -> float:
            first, second = (_particles(x, jets)[:, k] for x, jets in ((a, i), (b, j)))
            return float(wasserstein_distance(first, second)) if len(first) and len(second) else np.nan

        return distance

    measures: dict[str, Halves] = {
        "W1 jet mass [GeV]": lambda a, i, b, j: float(wasserstein_distance(fv.mass(a.p4[i]), fv.mass(b.p4[j]))),
        "FPD": lambda a, i, b, j: fpd(features(a, i), features(b, j)),
        "KPD": lambda a, i, b, j: kpd(features(a, i[:_LARGEST_KERNEL]), features(b, j[:_LARGEST_KERNEL])),
    }
    if comparison.pairs is not None:
        measures = {f"W1 particle {name}": of_particles(k) for k, name in enumerate(("pT", "η", "φ"))} | measures
    orders = [rng.permutation(len(comparison))[:n] for _ in range(n_repeats)]
    table = {}
    for name, measure in measures.items():
        size = min(n // 2, _LARGEST_KERNEL) if name == "KPD" else n // 2
        values = np.array(
            [[measure(true, o[: n // 2], s, o[n // 2 : 2 * (n // 2)]) for s in (other, true)] for o in orders]
        )
        # Deleting all but ``size`` jets instead of half of them.
        errors = values.std(0, ddof=1) * np.sqrt(size / (len(comparison) - size))
        table[name] = {
            what: Measurement(float(v), float(e), float(v - e), float(v + e), n, sampling_error=float(e))
            for what, v, e in zip(("distance", "floor"), values.mean(0), errors, strict=True)
        }
    return table


def _particles(jets: Set, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n, 3) particles of the chosen jets."""
    wanted = np.zeros(len(jets.counts), np.bool_)
    wanted[chosen] = True
    return jets.particles[wanted[jets.jet]]


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
