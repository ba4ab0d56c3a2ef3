"""The clustering kernel: generalised-kT sequential recombination of one jet at a time, compiled by Numba.

The measure is d_ij = min(w_i, w_j) ΔR²_ij / R² with w = pT^2p. If (i, j) is the closest pair and w_i ≤ w_j, then
j is the *geometric* nearest neighbour of i: a nearer l would give d_il ≤ w_i ΔR²_il < d_ij. So every pseudojet only
keeps its nearest neighbour (the lemma of Cacciari and Salam, hep-ph/0512210), and a merge costs one sweep over the
active pseudojets plus a rescan of those few whose neighbour was consumed.

All loops run over the contiguous slots 0 … m−1 (a consumed slot is refilled with the last one) and are written
without branches so that LLVM vectorises them. The scratch memory is a record of fixed-size arrays: their distances in
memory are compile-time constants, so that the vectoriser needs no aliasing checks, and it stays in the L1 cache.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["cluster_range", "scratch"]

# Components beyond this (GeV) are refused; weights and distances of all others stay finite. No float32 reaches it.
_LARGEST = 1e70
# A pseudojet exactly along the beam is put at this rapidity, plus its |pz| to keep two of them apart, as in FastJet.
_BEAM_RAPIDITY = 1e5
_LARGEST_WEIGHT = 1e140
_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
# NaN never occurs (the input is checked) and the sign of zero does not matter: then a minimum is one instruction.
# Nothing else is relaxed: sums are neither contracted nor reordered, and distances are the same on every processor.
_MINIMA = {"nnan", "nsz"}
# Loops run to the next multiple of this, over padding, so that none has a scalar remainder: 4 × 8 doubles of AVX-512.
_STRIDE = 32
# Padding lies far from everything, finite when squared.
_FAR_RAPIDITY = 1e150

_SMALLEST_CAPACITY = 256
_CACHE_LINE = 64


@cache
def _scratch_type(capacity: int) -> np.dtype[Any]:
    # Eight more than a power of two, so that the arrays do not compete for the same cache sets.
    length = capacity + 8
    # The bits of a non-negative double, read as an integer, have the same order, and LLVM vectorises the minimum of
    # integers only. So the two arrays of which minima are taken can be read as both.
    floats = ("e", "px", "py", "pz", "pt2", "weight", "rapidity", "phi", "nn_dr2", "nn_d", "dr2")
    integers = ("nn", "head", "tail", "next_particle", "join_before")
    names = [*floats, *integers, "nn_d_bits", "dr2_bits"]
    place = {name: 8 * length * row for row, name in enumerate((*floats, *integers))}
    place |= {"nn_d_bits": place["nn_d"], "dr2_bits": place["dr2"]}
    return np.dtype(
        {
            "names": names,
            "formats": [(np.float64 if name in floats else np.int64, (length,)) for name in names],
            "offsets": [place[name] for name in names],
            "itemsize": 8 * length * (len(floats) + len(integers)),
        }
    )


def scratch(largest: int) -> NDArray[Any]:
    """Working memory for jets of at most ``largest`` particles: a record array of length one.

    Capacities grow by factors of four, so that few variants of the kernel are ever compiled.
    """
    capacity = _SMALLEST_CAPACITY
    while capacity < largest:
        capacity *= 4
    layout = _scratch_type(capacity)
    raw = np.empty(layout.itemsize + _CACHE_LINE, np.uint8)
    # Vectors that straddle cache lines cost twice as much.
    start = -raw.ctypes.data % _CACHE_LINE
    return raw[start : start + layout.itemsize].view(layout)


@njit(cache=True, nogil=True)
def _usable(p4: Any, start: int, stop: int) -> bool:
    for i in range(start, stop):
        for k in range(4):
            if not abs(p4[i, k]) < _LARGEST:
                return False
    return True


@njit(cache=True, nogil=True, fastmath=_MINIMA, forceinline=True)
def _kinematics(s: Any, i: int, exponent: float) -> tuple[float, float, float]:
    """Rapidity, azimuth in [0, 2π] and weight of slot i from its four-momentum; pT² is stored."""
    px, py, pz, e = s.px[i], s.py[i], s.pz[i], s.e[i]
    pt2 = px * px + py * py
    s.pt2[i] = pt2
    if exponent == 1.0:
        weight = pt2
    elif exponent == 0.0:
        weight = 1.0
    elif pt2 == 0.0:
        weight = 0.0 if exponent > 0.0 else _LARGEST_WEIGHT
    elif exponent == -1.0:
        weight = 1.0 / pt2
    else:
        weight = pt2**exponent
    weight = min(weight, _LARGEST_WEIGHT)
    phi = math.atan2(py, px) if pt2 > 0.0 else 0.0
    phi = phi + 2.0 * math.pi if phi < 0.0 else phi
    # m² < 0 by rounding counts as massless.
    mt2 = pt2 + max((e + pz) * (e - pz) - pt2, 0.0)
    abs_pz = abs(pz)
    rapidity = _BEAM_RAPIDITY + abs_pz
    if mt2 > 0.0:
        rapidity = -0.5 * math.log(mt2 / max((e + abs_pz) * (e + abs_pz), mt2))
    return (rapidity if pz >= 0.0 else -rapidity), phi, weight


@njit(cache=True, nogil=True, forceinline=True)
def _padded(m: int) -> int:
    return (m + _STRIDE - 1) // _STRIDE * _STRIDE


@njit(cache=True, nogil=True, forceinline=True)
def _make_padding(s: Any, i: int) -> None:
    """Makes slot i one that nothing is near to and that never changes: nothing is nearer to it than −∞."""
    s.rapidity[i], s.phi[i], s.weight[i] = _FAR_RAPIDITY, 0.0, 0.0
    s.nn[i], s.nn_dr2[i], s.nn_d[i] = -2, -np.inf, np.inf


@njit(cache=True, nogil=True, forceinline=True)
def _smallest(bits: Any, m: int) -> int:
    """Place of the minimum. Two passes over the cache line: each of them vectorises, one that does both does not."""
    least = bits[0]
    for i in range(_padded(m)):
        least = bits[i] if bits[i] < least else least
    place = 0
    for i in range(_padded(m)):
        place = i if bits[i] == least else place
    return place


@njit(cache=True, nogil=True, fastmath=_MINIMA, forceinline=True)
def _rescan(s: Any, i: int, m: int) -> None:
    """Finds the nearest neighbour of slot i among slots 0 … m−1."""
    rapidity, phi = s.rapidity[i], s.phi[i]
    for j in range(_padded(m)):
        dy = s.rapidity[j] - rapidity
        dphi = abs(s.phi[j] - phi)
        dphi = min(dphi, 2.0 * math.pi - dphi)
        dr2 = dy * dy + dphi * dphi
        s.dr2[j] = np.inf if j == i else dr2
    place = _smallest(s.dr2_bits, m)
    nearest = s.dr2[place]
    s.nn[i] = place
    s.nn_dr2[i] = nearest
    s.nn_d[i] = nearest * min(s.weight[i], s.weight[place])


@njit(cache=True, nogil=True, fastmath=_MINIMA, forceinline=True)
def _meet(s: Any, new: int, gone: int, last: int, m: int, kinematics: tuple[float, float, float]) -> None:
    """Puts a pseudojet into slot ``new`` and makes it and slots 0 … m−1 known to each other.

    Those whose neighbour was ``new`` (what was there before) or ``gone`` are orphans, marked by −1 unless the new
    pseudojet is as near; ``last`` has moved to ``gone``. The kinematics are stored at the end only: a vector load
    that overlaps a scalar just written would wait for it.
    """
    rapidity, phi, weight = kinematics
    for i in range(_padded(m)):
        dy = s.rapidity[i] - rapidity
        dphi = abs(s.phi[i] - phi)
        dphi = min(dphi, 2.0 * math.pi - dphi)
        dr2 = dy * dy + dphi * dphi
        old_dr2 = s.nn_dr2[i]
        nn = s.nn[i]
        # An orphan whose new neighbour is no farther than the old one was needs no search.
        orphan = (nn == new) | (nn == gone)
        nearer = dr2 <= old_dr2
        nn = gone if nn == last else nn
        nn = -1 if orphan else nn
        s.nn[i] = new if nearer else nn
        s.nn_dr2[i] = dr2 if nearer else old_dr2
        s.nn_d[i] = dr2 * min(s.weight[i], weight) if nearer else s.nn_d[i]
        s.dr2[i] = np.inf if i == new else dr2
    place = _smallest(s.dr2_bits, m)
    nearest = s.dr2[place]
    s.nn[new] = place
    s.nn_dr2[new] = nearest
    s.nn_d[new] = nearest * min(weight, s.weight[place])
    s.rapidity[new], s.phi[new], s.weight[new] = rapidity, phi, weight


@njit(cache=True, nogil=True, forceinline=True)
def _load(s: Any, p4: Any, start: int, n: int, exponent: float) -> None:
    for i in range(n):
        s.e[i], s.px[i], s.py[i], s.pz[i] = p4[start + i, 0], p4[start + i, 1], p4[start + i, 2], p4[start + i, 3]
        s.head[i] = s.tail[i] = i
        s.next_particle[i] = -1
    for i in range(n):
        s.rapidity[i], s.phi[i], s.weight[i] = _kinematics(s, i, exponent)
        s.nn[i] = 0
        s.nn_dr2[i] = np.inf
        s.nn_d[i] = np.inf
    for i in range(n, _padded(n)):
        _make_padding(s, i)


@njit(cache=True, nogil=True, forceinline=True)
def _move(s: Any, source: int, target: int) -> None:
    s.e[target], s.px[target], s.py[target], s.pz[target] = s.e[source], s.px[source], s.py[source], s.pz[source]
    s.pt2[target], s.weight[target] = s.pt2[source], s.weight[source]
    s.rapidity[target], s.phi[target] = s.rapidity[source], s.phi[source]
    s.nn[target], s.nn_dr2[target], s.nn_d[target] = s.nn[source], s.nn_dr2[source], s.nn_d[source]
    s.head[target], s.tail[target] = s.head[source], s.tail[source]


@njit(cache=True, nogil=True, forceinline=True)
def _merge(s: Any, i: int, j: int, k: int) -> None:
    """Adds slot j to slot i (merge k): four-momenta add up, the two runs of the dendrogram become one, harder first."""
    first, second = (i, j) if s.pt2[i] >= s.pt2[j] else (j, i)
    s.next_particle[s.tail[first]] = s.head[second]
    s.join_before[s.head[second]] = k
    s.head[i], s.tail[i] = s.head[first], s.tail[second]
    s.e[i] += s.e[j]
    s.px[i] += s.px[j]
    s.py[i] += s.py[j]
    s.pz[i] += s.pz[j]


@njit(cache=True, nogil=True, forceinline=True)
def _cluster_jet(
    s: Any, p4: Any, start: int, n: int, exponent: float, inverse_r2: float, order: Any, join: Any, d_ij: Any
) -> None:
    _load(s, p4, start, n, exponent)
    for i in range(1, n):
        _meet(s, i, i, i, i, (s.rapidity[i], s.phi[i], s.weight[i]))
    for k in range(n - 1):
        m = n - k
        i = _smallest(s.nn_d_bits, m)
        d = s.nn_d[i]
        j = s.nn[i]
        i, j = min(i, j), max(i, j)
        d_ij[start + k] = min(d * inverse_r2, _LARGEST_FLOAT32)
        _merge(s, i, j, k)
        _move(s, m - 1, j)
        _make_padding(s, m - 1)
        _meet(s, i, j, m - 1, m - 1, _kinematics(s, i, exponent))
        for orphan in range(m - 1):
            if s.nn[orphan] < 0:
                _rescan(s, orphan, m - 1)
    particle = s.head[0]
    s.join_before[particle] = n - 1
    for position in range(n):
        order[start + position] = particle
        join[start + position] = s.join_before[particle]
        particle = s.next_particle[particle]
    d_ij[start + n - 1] = np.inf


@njit(cache=True, nogil=True)
def cluster_range(
    p4: Any,
    offsets: Any,
    jets: tuple[int, int],
    exponent: float,
    R: float,
    working: Any,
    order: Any,
    join: Any,
    d_ij: Any,
) -> int:
    """Clusters jets ``jets[0]`` … ``jets[1] - 1`` into ``order``, ``join`` and ``d_ij``.

    Args:
        p4: (n_particles, 4) float32 or float64, E, px, py, pz in GeV.
        offsets: (n_jets + 1,) int64.
        jets: first jet and the one after the last.
        exponent: p of the measure: 1 kT, 0 Cambridge/Aachen, −1 anti-kT.
        R: radius parameter.
        working: from `scratch`, for at least the largest of these jets.
        order: (n_particles,) int32, written.
        join: (n_particles,) int32, written.
        d_ij: (n_particles,) float32, written.

    Returns:
        −1, or the first jet with a component that is not a usable number; it and the jets after it are not clustered.
    """
    s = working[0]
    for jet in range(jets[0], jets[1]):
        start, n = offsets[jet], offsets[jet + 1] - offsets[jet]
        if not _usable(p4, start, start + n):
            return jet
        if n > 0:
            _cluster_jet(s, p4, start, n, exponent, 1.0 / (R * R), order, join, d_ij)
    return -1
