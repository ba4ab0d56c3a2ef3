"""Embeddings seen in two dimensions."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from jetrep.errors import InputError
from jetrep.evaluation.shift import standardise

__all__ = ["project"]

_DIMENSIONS_FOR_TSNE = 50


def project(
    embeddings: ArrayLike, method: Literal["pca", "tsne"] = "pca", *, seed: int = 0, perplexity: float = 30.0
) -> NDArray[np.float64]:
    """Coordinates of standardised embeddings in a plane.

    Several domains must be projected together, as one array: separate projections do not compare. t-SNE starts from
    the principal components, keeps the first 50 of them, and takes a few seconds per 1,000 jets on one core.

    Args:
        embeddings: (n_jets, d).
        method: ``pca``, the first two principal components, or ``tsne``.
        seed: seed of t-SNE.
        perplexity: of t-SNE; lowered to a third of the number of jets where there are few.

    Returns:
        (n_jets, 2).

    Raises:
        InputError: if there are fewer than three jets, an embedding is not finite, or the method is unknown.
    """
    (x,) = standardise(embeddings)
    if len(x) < 3:
        raise InputError(f"{len(x)} jets span no plane", field="embeddings", remedy="give at least three")
    if x.shape[1] == 1:
        x = np.concatenate([x, np.zeros_like(x)], 1)
    if method == "pca":
        return np.asarray(PCA(2, svd_solver="full").fit_transform(x), np.float64)
    if method != "tsne":
        raise InputError(f"no projection is called '{method}'", field="method", remedy="use pca or tsne")
    if x.shape[1] > _DIMENSIONS_FOR_TSNE:
        x = PCA(min(_DIMENSIONS_FOR_TSNE, len(x)), svd_solver="full").fit_transform(x)
    tsne = TSNE(2, init="pca", perplexity=min(perplexity, (len(x) - 1) / 3), random_state=seed)
    return np.asarray(tsne.fit_transform(x), np.float64)
