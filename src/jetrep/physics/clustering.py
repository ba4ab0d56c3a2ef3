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
wherever ``join >= n - N``. That is a gather, a cumulative sum and a scatter, on whole batches and on any device, and
all three arrays share the offsets of the particles, so that they are stored and padded like any particle property.

**Measure.** Generalised kT in the E-scheme (four-momenta add up), on rapidity y and azimuth φ:

.. math:: d_{ij} = \min(p_{Ti}^{2p}, p_{Tj}^{2p})\,\Delta R_{ij}^2 / R^2,\qquad
          \Delta R_{ij}^2 = (y_i - y_j)^2 + (\phi_i - \phi_j)^2

with p = 1 (kT, Catani et al. 1993; Ellis and Soper 1993), 0 (Cambridge/Aachen, hep-ph/9707323) or −1 (anti-kT,
0802.1189), or any other exponent.

**No beam distance.** The constituents are given as one jet, so every one of them belongs to it and merging goes on
until one node is left. R then scales all d_ij alike and changes neither the order of the merges nor the subjets; it
only gives ``d_cut`` its meaning. An inclusive algorithm, such as FastJet's, also knows d_iB = pT_i^2p. The two agree
merge by merge if the beam never wins: let i be the pseudojet of smallest pT^2p and j any other; then
d_ij = d_iB ΔR²_ij / R² < d_iB as soon as ΔR_ij < R. The rapidity of a sum of four-momenta lies between those of
its terms and |Δφ| ≤ π, so R² > (y_max − y_min)² + π², taken over the constituents, suffices for any p. FastJet
accepts radii up to 1000, which is beyond that for all particles that are not exactly parallel to the beam.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

from jetrep.errors import InputError
from jetrep.machine import cores
from jetrep.physics import _cuts, _recombination

__all__ = ["Algorithm", "MergeHistory", "cluster", "common_clustering"]

Algorithm = Literal["kt", "cambridge", "antikt"]
T = TypeVar("T")

_EXPONENTS = {"kt": 1.0, "cambridge": 0.0, "antikt": -1.0}

# Work is handed to threads in pieces of about this many particles: large against the cost of a hand-over (tens of
# microseconds), small enough that threads finish together.
_PIECE = 50_000


@dataclass(frozen=True, eq=False)
class MergeHistory:
    """Merge histories of a batch of jets (see the module for the representation).

    Attributes:
        order: (n_particles,) int32, local particle indices in dendrogram order.
        join: (n_particles,) int32, merge number at each boundary.
        d_ij: (n_particles,) float32, distance measure of each merge, ∞ in the last place of each jet.
        offsets: (n_jets + 1,) int64, jet j owns ``offsets[j]:offsets[j + 1]`` of each array.
        algorithm: what the jets were clustered with; None if some were clustered differently.
        R: its radius parameter.
    """

    order: NDArray[np.int32]
    join: NDArray[np.int32]
    d_ij: NDArray[np.float32]
    offsets: NDArray[np.int64]
    algorithm: Algorithm | float | None = "kt"
    R: float = 0.8

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def n_subjets(self, d_cut: float) -> NDArray[np.int64]:
        """(n_jets,) number of subjets at ``d_cut``; zero for an empty jet."""
        merged = self._merged(None, d_cut)
        return np.asarray(np.diff(self.offsets) - merged, np.int64)

    def subjets(
        self,
        p4: NDArray[Any],
        *,
        n: int | None = None,
        d_cut: float | None = None,
        threads: int | None = None,
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Four-momenta of the subjets at one cut of the tree, for all jets, without clustering again.

        Exactly one of ``n`` and ``d_cut`` says where to cut. As in FastJet's exclusive jets, ``d_cut`` undoes every
        merge from the first with d_ij > ``d_cut`` on, so the number of subjets is the number of particles minus the
        number of merges whose running maximum of d_ij is at most ``d_cut``.

        Args:
            p4: (n_particles, 4) the particles that were clustered, E, px, py, pz in GeV.
            n: number of subjets; a jet with fewer particles gives all of them.
            d_cut: distance at which to cut, in GeV² for kT.
            threads: number of threads (as in `cluster`).

        Returns:
            (n_subjets, 4) sums of the members, added up in double precision and rounded once to the type of ``p4``,
            in descending pT within each jet; and their (n_jets + 1,) int64 offsets.

        Raises:
            InputError: if ``p4`` does not belong to this history, or the cut is not a cut.
        """
        p4 = _checked_p4(p4, self.offsets)
        merged = self._merged(n, d_cut)
        offsets = _offsets(np.diff(self.offsets) - merged)
        sums = np.empty((int(offsets[-1]), 4), p4.dtype)
        arrays = (p4, self.order, self.join, self.offsets, merged, offsets)
        _in_pieces(self.offsets, lambda jets: _cuts.sum_subjets(*arrays, jets, sums, True), threads)
        return sums, offsets

    def subjet_index(
        self, *, n: int | None = None, d_cut: float | None = None, p4: NDArray[Any] | None = None
    ) -> NDArray[np.int32]:
        """(n_particles,) int32, for each particle the number of its subjet within its jet.

        Args:
            n: number of subjets (see `subjets`).
            d_cut: or the distance at which to cut.
            p4: the particles that were clustered. With them, number i is the i-th of `subjets` at the same cut;
                without, subjets are numbered from left to right in the dendrogram.
        """
        merged = self._merged(n, d_cut)
        labels = np.empty(len(self.order), np.int32)
        arrays = (self.order, self.join, self.offsets)
        _in_pieces(self.offsets, lambda jets: _cuts.label_particles(*arrays, merged, jets, labels), None)
        if p4 is None:
            return labels
        p4 = _checked_p4(p4, self.offsets)
        counts = np.diff(self.offsets) - merged
        offsets = _offsets(counts)
        sums = np.empty((int(offsets[-1]), 4), p4.dtype)
        _cuts.sum_subjets(p4, *arrays, merged, offsets, (0, len(self)), sums, False)
        pt2 = sums[:, 1].astype(np.float64) ** 2 + sums[:, 2].astype(np.float64) ** 2
        rank = np.empty(len(sums), np.int32)
        rank[np.lexsort((-pt2, np.repeat(np.arange(len(self)), counts)))] = np.arange(len(sums))
        rank -= np.repeat(offsets[:-1], counts).astype(np.int32)
        first_subjet: NDArray[np.int64] = np.repeat(offsets[:-1], np.diff(self.offsets))
        return np.asarray(rank[labels + first_subjet], np.int32)

    def merges(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The pairs that were merged: node ids ``left`` and ``right``, both (n_particles,) int32.

        In a jet of n particles, nodes 0 … n−1 are the particles, and merge k, at place k, makes node n + k.
        ``left`` is what lies on the left in the dendrogram, the harder of the two. The last place of each jet, where
        nothing is merged, holds −1.
        """
        largest = int(np.diff(self.offsets).max(initial=0))
        left, right = np.empty(len(self.order), np.int32), np.empty(len(self.order), np.int32)
        _cuts.pairs(self.order, self.join, self.offsets, np.empty((4, largest), np.int64), left, right)
        return left, right

    def validate(self) -> None:
        """Checks that these are histories, as for ones that come from elsewhere than `cluster`.

        Raises:
            InputError: naming the first jet whose ``order`` or ``join`` is not a permutation, or whose ``d_ij`` is
                not a number, negative, or does not end with ∞.
        """
        offsets = np.asarray(self.offsets)
        if offsets.ndim != 1 or not len(offsets) or offsets[0] != 0 or np.any(np.diff(offsets) < 0):
            raise InputError("offsets do not increase from 0", field="offsets", remedy="cluster the jets again")
        for name in ("order", "join", "d_ij"):
            shape = getattr(self, name).shape
            if shape != (offsets[-1],):
                raise InputError(
                    f"shape {shape} instead of ({offsets[-1]},)", field=name, remedy="cluster the jets again"
                )
        counts = np.diff(offsets)
        jet = np.repeat(np.arange(len(self)), counts)
        local = np.arange(len(jet)) - offsets[:-1][jet]
        last = local == counts[jet] - 1
        bad = {
            "order": self.order[np.lexsort((self.order, jet))] != local,
            "join": (self.join[np.lexsort((self.join, jet))] != local)
            | ((local == 0) & (self.join != counts[jet] - 1)),
            "d_ij": np.where(last, self.d_ij != np.inf, ~((self.d_ij >= 0) & (self.d_ij < np.inf))),
        }
        for name, where in bad.items():
            if np.any(where):
                raise InputError(
                    "the merge history is damaged",
                    jet=int(jet[np.argmax(where)]),
                    field=name,
                    remedy="cluster the jets again",
                )

    def _merged(self, n: int | None, d_cut: float | None) -> NDArray[np.int64]:
        """(n_jets,) number of merges that a cut keeps."""
        if (n is None) == (d_cut is None):
            raise InputError("a cut needs either n or d_cut", field="n", remedy="give exactly one of them")
        if n is not None:
            if n < 1:
                raise InputError(f"cannot cut a jet into {n} subjets", field="n", remedy="give n of at least 1")
            return np.asarray(np.maximum(np.diff(self.offsets) - n, 0), np.int64)
        if d_cut is None or np.isnan(d_cut):
            raise InputError("d_cut is not a number", field="d_cut", remedy="give a distance")
        merged = np.empty(len(self), np.int64)
        _cuts.leading_merges(self.d_ij, self.offsets, float(d_cut), (0, len(self)), merged)
        return merged


def cluster(
    p4: NDArray[Any],
    offsets: NDArray[Any],
    *,
    algorithm: Algorithm | float = "kt",
    R: float = 0.8,
    threads: int | None = None,
) -> MergeHistory:
    """Clusters the constituents of each jet into one node and keeps the whole history.

    Distances are computed in double precision. Every finite input is defined: a particle along the beam gets a very
    large rapidity, E < |p| counts as massless, and equal distances are resolved by the order of the input.

    Args:
        p4: (n_particles, 4) float32 or float64, E, px, py, pz in GeV, all jets one after the other.
        offsets: (n_jets + 1,) integers, jet j owns ``p4[offsets[j]:offsets[j + 1]]``. Jets may be empty.
        algorithm: ``"kt"``, ``"cambridge"`` (Cambridge/Aachen), ``"antikt"``, or the exponent p.
        R: radius parameter; it scales d_ij only (see the module).
        threads: number of threads, by default all cores that this process may use, and at most
            ``NUMBA_NUM_THREADS`` of the environment. No thread outlives the call.

    Raises:
        InputError: on wrong shapes, settings, or a momentum that is NaN, infinite or beyond 1e70 GeV (names the jet).
    """
    exponent = _EXPONENTS.get(algorithm) if isinstance(algorithm, str) else float(algorithm)
    if exponent is None or not np.isfinite(exponent):
        raise InputError(
            f"unknown algorithm {algorithm!r}",
            field="algorithm",
            remedy=f"choose from {', '.join(_EXPONENTS)}, or give the exponent p as a number",
        )
    # Beyond these R² or 1 / R² is not a number.
    if not 1e-150 < R < 1e150:
        raise InputError(f"R = {R} is not a radius", field="R", remedy="give a positive number")
    offsets = _checked_offsets(offsets)
    p4 = _checked_p4(p4, offsets)
    order, join = np.empty(len(p4), np.int32), np.empty(len(p4), np.int32)
    d_ij = np.empty(len(p4), np.float32)

    def work(jets: tuple[int, int]) -> int:
        largest = int(np.diff(offsets[jets[0] : jets[1] + 1]).max(initial=0))
        working = _recombination.scratch(largest)
        return int(_recombination.cluster_range(p4, offsets, jets, exponent, R, working, order, join, d_ij))

    unusable = [jet for jet in _in_pieces(offsets, work, threads) if jet >= 0]
    if unusable:
        raise InputError(
            "a momentum is NaN, infinite or beyond any scale",
            jet=min(unusable),
            field="p4",
            remedy="drop or repair the jet",
        )
    return MergeHistory(order, join, d_ij, offsets, algorithm, R)


def common_clustering(histories: Sequence[MergeHistory]) -> tuple[Algorithm | float | None, float]:
    """Algorithm and R of all of them; None for the algorithm if they differ."""
    first = histories[0]
    alike = all((other.algorithm, other.R) == (first.algorithm, first.R) for other in histories)
    return first.algorithm if alike else None, first.R


def _checked_offsets(offsets: NDArray[Any]) -> NDArray[np.int64]:
    offsets = np.ascontiguousarray(offsets, dtype=np.int64)
    if offsets.ndim != 1 or not len(offsets) or offsets[0] != 0 or np.any(np.diff(offsets) < 0):
        raise InputError(
            "offsets do not increase from 0", field="offsets", remedy="give (n_jets + 1,) increasing integers"
        )
    return offsets


def _checked_p4(p4: NDArray[Any], offsets: NDArray[np.int64]) -> NDArray[Any]:
    p4 = np.asarray(p4)
    p4 = np.ascontiguousarray(p4, dtype=p4.dtype if p4.dtype in (np.float32, np.float64) else np.float64)
    if p4.shape != (offsets[-1], 4):
        raise InputError(
            f"four-vectors have shape {p4.shape}, the offsets ask for ({offsets[-1]}, 4)",
            field="p4",
            remedy="give E, px, py, pz of the particles that the offsets count",
        )
    return p4


def _offsets(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def _threads() -> int:
    """Cores that this process may use. Numba's setting counts, since job schedulers and joblib set it for us."""
    return max(1, min(cores(), int(numba.config.NUMBA_NUM_THREADS)))  # type: ignore[attr-defined]


def _in_pieces(offsets: NDArray[np.int64], work: Callable[[tuple[int, int]], T], threads: int | None) -> list[T]:
    """Calls ``work((first, after_last))`` for ranges of jets that together are all jets, on several threads.

    The kernels release the interpreter lock, so plain threads scale like Numba's own ``prange``. Unlike the
    latter's OpenMP or workqueue pools, they may be used after a fork (in the workers of a data loader) and from
    several threads at once.
    """
    n_jets = len(offsets) - 1
    threads = _threads() if threads is None else threads
    pieces = min(n_jets, -(-int(offsets[-1]) // _PIECE))
    if threads <= 1 or pieces <= 1:
        return [work((0, n_jets))]
    # Equal numbers of particles, since jets differ in size.
    bounds = np.searchsorted(offsets, np.linspace(0, offsets[-1], pieces + 1)[1:-1])
    edges = np.concatenate([[0], bounds, [n_jets]])
    ranges = [(int(a), int(b)) for a, b in pairwise(edges) if a < b]
    with ThreadPoolExecutor(min(threads, len(ranges))) as pool:
        return list(pool.map(work, ranges))
