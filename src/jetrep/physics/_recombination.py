"""The clustering kernel: generalised-kT sequential recombination of one jet at a time, compiled by Numba.

The measure is d_ij = min(w_i, w_j) ΔR²_ij / R² with w = pT^2p. If (i, j) is the closest pair and w_i ≤ w_j, then
j is the *geometric* nearest neighbour of i: a nearer l would give d_il ≤ w_i ΔR²_il < d_ij. So every pseudojet only
keeps its nearest neighbour (the lemma of Cacciari and Salam, hep-ph/0512210), and a merge costs one sweep over the
active pseudojets plus a rescan of those few whose neighbour was consumed.

Written for vector units, which do most of the work here:

- Active pseudojets fill the slots 0 … m−1 (a consumed slot is refilled with the last one). Loops over them have no
  branches, and run on to a multiple of eight over padding, so that no scalar remainder is left.
- The scratch memory is a record of arrays of fixed size. Their distances in memory are compile-time constants, so
  the vectoriser needs no aliasing checks, and everything stays in the L1 cache.
- A minimum and its place are found as one: the bits of a non-negative double order like an integer, and the slot
  replaces the lowest of them (nine, for jets of up to 256 particles). Values that agree to better than 1e-13 thereby
  count as equal, and the lowest slot is taken. Values that are stored or summed never lose a bit.
- A vector load that overlaps a scalar written just before has to wait for it. So slots are changed before the
  transcendental functions of a merge are computed, and results are stored after the sweep.
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
_STRIDE = 8
# Padding lies far from everything, finite when squared.
_FAR_RAPIDITY = 1e150
_LARGEST_KEY = 0x7FFFFFFFFFFFFFFF

_SMALLEST_CAPACITY = 256
_CACHE_LINE = 64


@cache
def _scratch_type(capacity: int) -> np.dtype[Any]:
    # Eight more than a power of two, so that the arrays do not compete for the same cache sets.
    length = capacity + 8
    floats = ("e", "px", "py", "pz", "pt2", "weight", "rapidity", "phi", "nn_dr2", "nn_d")
    integers = ("nn", "head", "tail", "next_particle", "join_before")
    return np.dtype([(name, np.float64, length) for name in floats] + [(name, np.int64, length) for name in integers])


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


@njit(cache=True, nogil=True, fastmath=_MINIMA, forceinline=True)
def _key(value: float, slot: int, slots: int) -> Any:
    """A non-negative value and its slot as one integer, in the order of the values; ``key & slots`` is the slot."""
    return (np.float64(value).view(np.int64) & ~slots) | slot


@njit(cache=True, nogil=True, fastmath=_MINIMA, forceinline=True)
def _dr2(s: Any, i: int, rapidity: float, phi: float) -> Any:
    dy = s.rapidity[i] - rapidity
    dphi = abs(s.phi[i] - phi)
    dphi = min(dphi, 2.0 * math.pi - dphi)
    return dy * dy + dphi * dphi


@njit(cache=True, nogil=True, fastmath=_MINIMA, forceinline=True)
def _set_neighbour(s: Any, i: int, nn: int, kinematics: tuple[float, float, float], slots: int) -> Any:
    """Makes slot nn the nearest neighbour of slot i, whose kinematics are given; returns the key of their distance."""
    rapidity, phi, weight = kinematics
    dr2 = _dr2(s, nn, rapidity, phi)
    d = dr2 * min(s.weight[nn], weight)
    s.nn[i], s.nn_dr2[i], s.nn_d[i] = nn, dr2, d
    return _key(d, i, slots)


@njit(cache=True, nogil=True, fastmath=_MINIMA, forceinline=True)
def _rescan(s: Any, i: int, m: int, slots: int) -> Any:
    """Finds the nearest neighbour of slot i among slots 0 … m−1; returns the key of their distance."""
    rapidity, phi = s.rapidity[i], s.phi[i]
    nearest = _LARGEST_KEY
    for j in range(_padded(m)):
        dr2 = _dr2(s, j, rapidity, phi)
        dr2 = np.inf if j == i else dr2
        key = _key(dr2, j, slots)
        nearest = key if key < nearest else nearest
    return _set_neighbour(s, i, nearest & slots, (rapidity, phi, s.weight[i]), slots)


@njit(cache=True, nogil=True, fastmath=_MINIMA, forceinline=True)
def _meet(
    s: Any, new: int, gone: int, last: int, m: int, kinematics: tuple[float, float, float], slots: int
) -> tuple[int, int]:
    """Fills slot ``new``, so far padding, with a pseudojet, and makes it and the slots 0 … m−1 known to each other.

    Slots whose neighbour was ``new`` (what was there before) or ``gone`` have lost it. Unless the new pseudojet is as
    near, they are orphans, marked by neighbour −1. What was in ``last`` is now in ``gone``.

    Returns:
        The key of the smallest d_ij, leaving out orphans, and the number of orphans.
    """
    rapidity, phi, weight = kinematics
    nearest = closest = _LARGEST_KEY
    orphans = 0
    for i in range(_padded(m)):
        dr2 = _dr2(s, i, rapidity, phi)
        old_dr2, nn = s.nn_dr2[i], s.nn[i]
        lost = (nn == new) | (nn == gone)
        nearer = dr2 <= old_dr2
        orphan = (dr2 > old_dr2) & lost
        nn = gone if nn == last else nn
        nn = -1 if lost else nn
        d = dr2 * min(s.weight[i], weight) if nearer else s.nn_d[i]
        d = np.inf if orphan else d
        s.nn[i] = new if nearer else nn
        s.nn_dr2[i] = dr2 if nearer else old_dr2
        s.nn_d[i] = d
        key = _key(dr2, i, slots)
        nearest = key if key < nearest else nearest
        key = _key(d, i, slots)
        closest = key if key < closest else closest
        orphans += 1 if orphan else 0
    key = _set_neighbour(s, new, nearest & slots, kinematics, slots)
    s.rapidity[new], s.phi[new], s.weight[new] = rapidity, phi, weight
    return min(key, closest), orphans


@njit(cache=True, nogil=True, forceinline=True)
def _load(s: Any, p4: Any, start: int, n: int, exponent: float) -> None:
    for i in range(n):
        s.e[i], s.px[i], s.py[i], s.pz[i] = p4[start + i, 0], p4[start + i, 1], p4[start + i, 2], p4[start + i, 3]
        s.head[i] = s.tail[i] = i
        s.next_particle[i] = -1
    for i in range(n):
        s.rapidity[i], s.phi[i], s.weight[i] = _kinematics(s, i, exponent)
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
    s: Any,
    p4: Any,
    start: int,
    n: int,
    exponent: float,
    inverse_r2: float,
    slots: int,
    order: Any,
    join: Any,
    d_ij: Any,
) -> None:
    _load(s, p4, start, n, exponent)
    closest = _LARGEST_KEY
    for i in range(n):
        closest = min(closest, _rescan(s, i, n, slots))
    for k in range(n - 1):
        m = n - k
        i = closest & slots
        d = s.nn_d[i]
        j = s.nn[i]
        i, j = min(i, j), max(i, j)
        d_ij[start + k] = min(d * inverse_r2, _LARGEST_FLOAT32)
        _merge(s, i, j, k)
        _move(s, m - 1, j)
        _make_padding(s, m - 1)
        _make_padding(s, i)
        closest, orphans = _meet(s, i, j, m - 1, m - 1, _kinematics(s, i, exponent), slots)
        orphan = 0
        while orphans > 0:
            if s.nn[orphan] < 0:
                closest = min(closest, _rescan(s, orphan, m - 1, slots))
                orphans -= 1
            orphan += 1
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
    # The bits that number a slot: one less than the next power of two.
    slots = 1
    while slots < len(s.nn):
        slots *= 2
    slots -= 1
    for jet in range(jets[0], jets[1]):
        start, n = offsets[jet], offsets[jet + 1] - offsets[jet]
        if not _usable(p4, start, start + n):
            return jet
        if n > 0:
            _cluster_jet(s, p4, start, n, exponent, 1.0 / (R * R), slots, order, join, d_ij)
    return -1
