"""What the numbers that an autoencoder keeps of a jet have to do with its observables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from sklearn.preprocessing import StandardScaler

from jetrep.encoders.autoencoder import Autoencoder
from jetrep.encoders.lorentz_decoder import LorentzAutoencoder, LorentzLatent
from jetrep.errors import InputError, at_least
from jetrep.physics.lorentz import minkowski
from jetrep.report import binning

__all__ = [
    "Correlations",
    "correlations",
    "latent_quantities",
    "mahalanobis",
    "mass_spectra",
    "signed_mass",
]


@dataclass(frozen=True)
class Correlations:
    """Pearson correlations of latent quantities with observables, and their bootstrap errors.

    Attributes:
        rows: names of the latent quantities.
        columns: names of the observables.
        r: (n_rows, n_columns); NaN where one of the two is constant.
        error: (n_rows, n_columns).
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    r: NDArray[np.float64]
    error: NDArray[np.float64]


def latent_quantities(model: Autoencoder, numbers: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """The latent of jets, by name: (n_jets,) each.

    Of a `LorentzAutoencoder`: scalars ``s1`` …, components of the vectors in the frame of the observer (``z1 E`` …, the
    first is the jet's own momentum), their sum (``Σz E`` …), squared invariant masses ``z1²`` and products ``z1·z2``.
    Of any other: the numbers ``z1`` ….

    Args:
        model: the autoencoder.
        numbers: (n_jets, size) what its `encode` gives.
    """
    if not isinstance(model, LorentzAutoencoder):
        return {f"z{i + 1}": column for i, column in enumerate(numbers.T)}
    latent = LorentzLatent.of(torch.from_numpy(numbers), model.n_scalars, model.n_vectors)
    vectors = latent.vectors
    found = {f"s{i + 1}": column for i, column in enumerate(latent.scalars.numpy().T)}
    named = [(f"z{a + 1}", vectors[:, a]) for a in range(vectors.shape[1])] + [("Σz", vectors.sum(1))]
    for name, vector in named:
        found |= {f"{name} {axis}": vector[:, k].numpy() for k, axis in enumerate(("E", "px", "py", "pz"))}
    # Products are invariant: in the rest frame of the jet no large numbers cancel.
    jet = torch.zeros_like(latent.at_rest[:, :1])
    jet[..., 0] = 1.0
    at_rest = torch.cat([jet, latent.at_rest], 1) * latent.frame.mass[:, None, None]
    for a in range(vectors.shape[1]):
        for b in range(a, vectors.shape[1]):
            name = f"z{a + 1}²" if a == b else f"z{a + 1}·z{b + 1}"
            found[name] = minkowski(at_rest[:, a], at_rest[:, b]).numpy()
    return found


def mahalanobis(
    known: NDArray[np.float64], others: Mapping[str, NDArray[np.float64]]
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """How far jets lie from background jets in the latent: squared Mahalanobis distances.

    The covariance is that of standardised quantities, shrunk as by Ledoit and Wolf (2004), once for each half of the
    known jets. These are judged by the half that they are not in, the others by the mean of both.

    Args:
        known: (n_known, k) of background jets, such as `Autoencoder.describe` gives.
        others: (n_jets, k) of other jets, by class.

    Returns:
        (n_known,), and (n_jets,) by class.

    Raises:
        InputError: if there are fewer than four known jets.
    """
    if len(known) < 4:
        raise InputError(f"{len(known)} jets have no covariance", field="jets", remedy="give four or more")
    half = np.arange(len(known)) % 2
    scales = [StandardScaler().fit(known[half == k]) for k in (0, 1)]
    fits = [LedoitWolf().fit(scale.transform(known[half == k])) for k, scale in enumerate(scales)]

    def distance(x: NDArray[np.float64], k: int) -> NDArray[np.float64]:
        return np.asarray(fits[k].mahalanobis(scales[k].transform(x)), np.float64)

    own = np.empty(len(known))
    for k in (0, 1):
        own[half == k] = distance(known[half == k], 1 - k)
    return own, {name: 0.5 * (distance(x, 0) + distance(x, 1)) for name, x in others.items()}


def signed_mass(square: NDArray[np.float64]) -> NDArray[np.float64]:
    """sgn(m²) √|m²|: the invariant mass of vectors, negative for those that are spacelike."""
    return np.sign(square) * np.sqrt(np.abs(square))


def mass_spectra(
    latent: Mapping[str, Mapping[str, NDArray[np.float64]]], *, n_bins: int = 60
) -> dict[str, tuple[NDArray[np.float64], dict[str, NDArray[np.int64]]]]:
    """Histograms of the invariant masses of the latent vectors, for each class of jets in the same bins.

    Args:
        latent: by class, `latent_quantities`.
        n_bins: number of bins, about; the outer ones also hold what lies beyond.

    Returns:
        By vector (``z1`` …), the edges of the bins in GeV (see `signed_mass`), and by class the numbers of jets; empty
        for autoencoders without vectors.
    """
    names = [name for name in next(iter(latent.values()), {}) if name.endswith("²")]
    spectra = {}
    for name in names:
        masses = {kind: signed_mass(quantities[name]) for kind, quantities in latent.items()}
        bins = binning.edges(list(masses.values()), n_bins)
        spectra[name[:-1]] = bins, {kind: binning.contents(values, bins) for kind, values in masses.items()}
    return spectra


def correlations(
    latent: Mapping[str, NDArray[np.float64]],
    observables: Mapping[str, NDArray[np.float64]],
    *,
    n_bootstrap: int = 200,
    seed: int = 0,
) -> Correlations:
    """Pearson's r of each latent quantity with each observable.

    Args:
        latent: (n_jets,) each.
        observables: (n_jets,) each.
        n_bootstrap: number of resamples of the jets.
        seed: seed of the resamples.

    Raises:
        InputError: if there are fewer than three jets.
    """
    at_least(2, n_bootstrap=n_bootstrap)
    x, y = (np.stack([np.asarray(v, np.float64) for v in group.values()], 1) for group in (latent, observables))
    n = len(x)
    if n < 3:
        raise InputError(f"{n} jets have no correlation", field="jets", remedy="give three or more")
    rng = np.random.default_rng(seed)
    value = _pearson(x, y)
    drawn = (rng.integers(0, n, n) for _ in range(n_bootstrap))
    samples = np.stack([_pearson(x[rows], y[rows]) for rows in drawn])
    return Correlations(tuple(latent), tuple(observables), value, samples.std(0, ddof=1))


def _pearson(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    standard = []
    for group in (x, y):
        spread = group.std(0)
        constant = spread <= 1e-12 * np.abs(group).max(0)
        standard.append((group - group.mean(0)) / np.where(constant, np.nan, spread))
    return np.asarray(standard[0].T @ standard[1] / len(x))
