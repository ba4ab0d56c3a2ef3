r"""Sequential recombination with the full merge history: one clustering serves every scale of a jet.

**Representation.** A jet of n particles is merged n − 1 times. Instead of a list of (left, right) pairs, the history is
kept as the dendrogram read from left to right, with three numbers for each particle:

``order``
    a permutation of 0 … n−1: the particles in dendrogram order, so that every node of the tree is a contiguous run;
``join``
    for the particle at position i > 0, the number k (0 … n−2) of the merge that joins the run ending before i with
    the run beginning at i; at i = 0 the merge that never happens, n − 1;
``d_ij``
    at position k, the distance measure of merge k; at n − 1, infinity.

The two forms carry the same information (:meth:`MergeHistory.merges` gives the pairs back). This one makes
any cut of the tree a comparison: the view with N subjets is what exists after n − N merges, so a new subjet begins
wherever ``join >= n - N``. That is a gather, a cumulative sum and a scatter, on whole batches and on any device, and all
three arrays share the offsets of the particles, so that they are stored and padded like any particle property.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["MergeHistory"]


@dataclass(frozen=True)
class MergeHistory:
    """Merge histories of a batch of jets (see the module for the representation).

    Attributes:
        order: (n_particles,) int32, local particle indices in dendrogram order.
        join: (n_particles,) int32, merge number at each boundary.
        d_ij: (n_particles,) float32, distance measure of each merge, ∞ in the last place of each jet.
        offsets: (n_jets + 1,) int64, jet j owns ``offsets[j]:offsets[j + 1]`` of each array.
    """

    order: NDArray[np.int32]
    join: NDArray[np.int32]
    d_ij: NDArray[np.float32]
    offsets: NDArray[np.int64]
