"""Cuts of a merge tree: from a history to subjets, on the host, for a whole batch of jets. Compiled by Numba."""

from __future__ import annotations

from typing import Any

from numba import njit

__all__ = ["label_particles", "leading_merges", "pairs", "sum_subjets"]


@njit(cache=True, nogil=True)
def leading_merges(d_ij: Any, offsets: Any, d_cut: float, jets: tuple[int, int], merged: Any) -> None:
    """Number of leading merges of each jet with d_ij ≤ d_cut, written to ``merged``.

    They end at the first merge beyond ``d_cut``: what is merged later, if at a smaller distance, stays apart.
    """
    for jet in range(jets[0], jets[1]):
        start, stop = offsets[jet], offsets[jet + 1]
        k = start
        while k < stop - 1 and d_ij[k] <= d_cut:
            k += 1
        merged[jet] = k - start


@njit(cache=True, nogil=True)
def sum_subjets(
    p4: Any,
    order: Any,
    join: Any,
    offsets: Any,
    merged: Any,
    cut_offsets: Any,
    jets: tuple[int, int],
    sums: Any,
    sort: bool,
) -> None:
    """Sums of the members of each subjet, accumulated in double precision.

    Args:
        p4: (n_particles, 4) float32 or float64.
        order: (n_particles,) see `MergeHistory`.
        join: (n_particles,) see `MergeHistory`.
        offsets: (n_jets + 1,) of the particles.
        merged: (n_jets,) number of merges that the cut keeps.
        cut_offsets: (n_jets + 1,) of the subjets.
        jets: first jet and the one after the last.
        sums: (n_subjets, 4), written.
        sort: in descending pT, else from left to right in the dendrogram.
    """
    for jet in range(jets[0], jets[1]):
        start, n = offsets[jet], offsets[jet + 1] - offsets[jet]
        first, subjet = cut_offsets[jet], cut_offsets[jet] - 1
        e, px, py, pz = 0.0, 0.0, 0.0, 0.0
        for position in range(start, start + n):
            if join[position] >= merged[jet]:
                if subjet >= first:
                    _insert(sums, first, subjet, e, px, py, pz, sort)
                subjet += 1
                e, px, py, pz = 0.0, 0.0, 0.0, 0.0
            particle = start + order[position]
            e += p4[particle, 0]
            px += p4[particle, 1]
            py += p4[particle, 2]
            pz += p4[particle, 3]
        if n > 0:
            _insert(sums, first, subjet, e, px, py, pz, sort)


@njit(cache=True, nogil=True, forceinline=True)
def _insert(sums: Any, first: int, place: int, e: float, px: float, py: float, pz: float, sort: bool) -> None:
    """Puts a subjet into ``sums[first:place + 1]``, of which all but the last are filled and in order."""
    if sort:
        pt2 = px * px + py * py
        while place > first:
            other = float(sums[place - 1, 1]) ** 2 + float(sums[place - 1, 2]) ** 2
            if other >= pt2:
                break
            for k in range(4):
                sums[place, k] = sums[place - 1, k]
            place -= 1
    sums[place, 0], sums[place, 1], sums[place, 2], sums[place, 3] = e, px, py, pz


@njit(cache=True, nogil=True)
def label_particles(order: Any, join: Any, offsets: Any, merged: Any, jets: tuple[int, int], labels: Any) -> None:
    """Writes for each particle the number of its subjet, from left to right in the dendrogram."""
    for jet in range(jets[0], jets[1]):
        start = offsets[jet]
        subjet = -1
        for position in range(start, offsets[jet + 1]):
            if join[position] >= merged[jet]:
                subjet += 1
            labels[start + order[position]] = subjet


@njit(cache=True, nogil=True)
def pairs(order: Any, join: Any, offsets: Any, working: Any, left: Any, right: Any) -> None:
    """Writes the node ids that each merge joins, ``left[k]`` and ``right[k]``; −1 in the last place of each jet.

    Args:
        order: (n_particles,) see `MergeHistory`.
        join: (n_particles,) see `MergeHistory`.
        offsets: (n_jets + 1,).
        working: (4, largest jet) int64 scratch.
        left: (n_particles,) written.
        right: (n_particles,) written.
    """
    where, node, begin, end = working[0], working[1], working[2], working[3]
    for jet in range(len(offsets) - 1):
        start, n = offsets[jet], offsets[jet + 1] - offsets[jet]
        if n == 0:
            continue
        # The runs that exist at any time are described at their first position (node, end) and last position (begin).
        for i in range(n):
            where[join[start + i]] = i
            node[i], begin[i], end[i] = order[start + i], i, i
        for k in range(n - 1):
            second = where[k]
            first = begin[second - 1]
            left[start + k], right[start + k] = node[first], node[second]
            node[first] = n + k
            end[first] = end[second]
            begin[end[first]] = first
        left[start + n - 1] = right[start + n - 1] = -1
