"""How often each jet is shown: balanced classes, or a flat distribution in (pT, mass)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.physics import fourvector as fv
from jetrep.store.gather import JetPool

__all__ = ["Balance", "balancing_weights", "balancing_weights_of", "class_weights"]

Balance = Literal["none", "classes", "pt_mass", "classes_pt_mass"]


def balancing_weights(
    pool: JetPool, balance: Balance, *, pt_bins: int = 20, mass_bins: int = 20, max_repeats: float = 10.0
) -> NDArray[np.float32] | None:
    """A weight for each jet of a pool, or None if all count the same; see `balancing_weights_of`.

    Momenta need one pass over all shards. The result takes 4 bytes a jet.

    Raises:
        InputError: if classes are to be balanced and the jets are unlabelled.
    """
    if balance == "none":
        return None
    labels = pool.labels() if balance != "pt_mass" else None
    if balance == "classes":
        return balancing_weights_of(labels, None, None, max_repeats=max_repeats)
    p4 = pool.jet_p4()
    return balancing_weights_of(
        labels, fv.pt(p4), fv.mass(p4), pt_bins=pt_bins, mass_bins=mass_bins, max_repeats=max_repeats
    )


def balancing_weights_of(
    labels: NDArray[np.int64] | None,
    pt: NDArray[np.floating] | None,
    mass: NDArray[np.floating] | None,
    *,
    pt_bins: int = 20,
    mass_bins: int = 20,
    max_repeats: float = 10.0,
) -> NDArray[np.float32]:
    """Weights such that every class, and within it every bin of (pT, mass) that is not empty, weighs the same.

    Bins are of equal width between the 0.5 % and 99.5 % quantiles of all jets, in pT and in mass; what lies beyond
    counts to the outermost bins.

    Args:
        labels: (n_jets,) or None to count all jets as one class.
        pt: (n_jets,) transverse momenta, or None for no bins.
        mass: (n_jets,) masses, in the same unit.
        pt_bins: number of bins in pT.
        mass_bins: number of bins in mass.
        max_repeats: no weight is above this multiple of the mean: what a jet of a rare kind may at most be repeated in
            an epoch. Kinds of jets that need more stay rarer than the others.

    Returns:
        (n_jets,) weights of mean 1.
    """
    if max_repeats < 1:
        raise InputError(f"is {max_repeats}", field="max_repeats", remedy="give 1 or more")
    n = len(labels) if labels is not None else len(pt) if pt is not None else 0
    classes = np.zeros(n, np.int64) if labels is None else labels
    kind = classes
    if pt is not None and mass is not None:
        kind = (classes * pt_bins + _bins(pt, pt_bins)) * mass_bins + _bins(mass, mass_bins)
    kinds, which, counts = np.unique(kind, return_inverse=True, return_counts=True)
    # Each class weighs the same, and so does each kind within its class.
    of_class = kinds // (pt_bins * mass_bins) if pt is not None else kinds
    _, family, size = np.unique(of_class, return_inverse=True, return_counts=True)
    weights = (1.0 / (counts * size[family]))[which.reshape(-1)]
    # What is cut off is given to the others, which may lift some of them to the limit in turn.
    for _ in range(100):
        weights *= n / weights.sum()
        if (weights <= max_repeats * (1 + 1e-9)).all():
            break
        weights = np.minimum(weights, max_repeats)
    return weights.astype(np.float32)


def class_weights(jets: Jets, shown: NDArray[np.floating] | None = None) -> Tensor:
    """Weights in the loss that make every class count the same, with mean 1 over what is shown.

    Args:
        jets: labelled jets.
        shown: (n_jets,) how often each is shown, up to a factor; equally often by default.

    Returns:
        (n_classes,) float32, zero for a class without jets.
    """
    counts = np.bincount(jets.truth, weights=shown, minlength=len(jets.classes))
    present = counts > 0
    weights = np.where(present, counts.sum() / (present.sum() * np.where(present, counts, 1)), 0.0)
    return torch.as_tensor(weights, dtype=torch.float32)


def _bins(values: NDArray[np.floating], n: int) -> NDArray[np.int64]:
    """(n_jets,) number of the bin of each value."""
    low, high = np.quantile(values, [0.005, 0.995])
    width = (high - low) / n or 1.0
    return np.asarray(np.clip((values - low) / width, 0, n - 1), np.int64)
