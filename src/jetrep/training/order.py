"""In which order jets are shown: a pseudo-random order of all of them for each epoch, read window by window."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jetrep.store.gather import Blocks

__all__ = ["Epoch", "Order", "bucketed"]

# What numbers are drawn for, as the last word of their seed.
_JETS, _BLOCKS, _OFFSET, _BUCKETS = 0, 1, 2, 3


def _generator(seed: int, epoch: int, window: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng((seed, epoch, window, purpose))


@dataclass(frozen=True, eq=False)
class Epoch:
    """The order of one epoch.

    Attributes:
        order: what it is an epoch of.
        number: which one.
        members: (n_groups, n_windows) the blocks of each window, ascending; `Order.n_blocks` and above stand for none.
        starts: (n_windows + 1,) position, within the epoch, of the first jet of each window.
        weight: (n_windows + 1,) summed weight of the jets before each window, in units of jets of the epoch.
        offset: where the comb of systematic sampling begins, from 0 to 1.
    """

    order: Order
    number: int
    members: NDArray[np.int64]
    starts: NDArray[np.int64]
    weight: NDArray[np.float64] | None = None
    offset: float = 0.0

    def blocks(self, window: int) -> NDArray[np.int64]:
        """The blocks that a window is made of, ascending."""
        members = self.members[:, window]
        return members[members < len(self.order.blocks)]

    def jets(self, window: int) -> NDArray[np.int64]:
        """(n,) numbers, within the pool, of the jets of these blocks, in the order in which they are fetched."""
        blocks = self.order.blocks[self.blocks(window)]
        return np.concatenate(
            [np.arange(first, first + n) for first, n in zip(blocks.first, blocks.sizes, strict=True)]
        )

    def picks(self, window: int) -> NDArray[np.int64]:
        """(n,) which of the jets of a window are shown, in which order, by their place among `jets`."""
        draws = int(self.starts[window + 1] - self.starts[window])
        if self.weight is not None and self.order.weights is not None:
            weights = self.order.weights[self.jets(window)].astype(np.float64)
            comb = np.arange(self.starts[window], self.starts[window + 1]) + self.offset
            ends = self.weight[window] + np.cumsum(weights) * self.order.scale
            # Rounding must not lead beyond the last jet that may be drawn.
            last = int(np.flatnonzero(weights)[-1]) if draws else 0
            drawn = np.minimum(np.searchsorted(ends, comb, side="right"), last)
        else:
            drawn = np.arange(draws)
        return drawn[_generator(self.order.seed, self.number, window, _JETS).permutation(draws)]


class Order:
    """A pseudo-random order of the jets of a pool for every epoch, as a function of (seed, epoch).

    The pool is divided into as many groups of consecutive blocks as a window has blocks, and each window takes one
    block of each group at random. So every window covers the whole pool evenly, however that is sorted, and reads it
    from its beginning to its end. Within a window, the order of the jets is random.

    If all jets fit into one window, an epoch is a random permutation of them.

    Args:
        blocks: all blocks of the pool.
        window: most jets of a window, but for the size of a block; 0 for all.
        seed: determines every epoch.
        weights: (n_jets,) how often each jet is to be shown, up to a factor: an epoch then shows as many jets as
            before, but jet i on average N w_i / Σw times, rounded up or down at random (systematic sampling).
    """

    def __init__(self, blocks: Blocks, window: int, seed: int, weights: NDArray[np.float32] | None = None) -> None:
        self.blocks, self.seed, self.weights = blocks, seed, weights
        self.n_jets = int(blocks.sizes.sum())
        self.n_windows = max(1, min(-(-self.n_jets // window), len(blocks))) if window else 1
        self._block_weights = blocks.sizes.astype(np.float64)
        if weights is not None and len(blocks):
            self._block_weights = np.add.reduceat(weights.astype(np.float64), blocks.first)
        self.scale = self.n_jets / max(float(self._block_weights.sum()), 1e-300)

    def epoch(self, number: int) -> Epoch:
        """The order of an epoch."""
        n_groups = -(-len(self.blocks) // self.n_windows)
        members = np.arange(n_groups * self.n_windows).reshape(n_groups, self.n_windows)
        if self.n_windows > 1:
            members = _generator(self.seed, number, 0, _BLOCKS).permuted(members, axis=1)
        if self.weights is None:
            return Epoch(self, number, members, self._cumulated(self._block_weights, members).astype(np.int64))
        weight = self._cumulated(self._block_weights, members)
        weight *= self.n_jets / weight[-1]
        offset = float(_generator(self.seed, number, 0, _OFFSET).random())
        # Window w shows those k for which k + offset lies between its bounds.
        starts = np.clip(np.ceil(weight - offset), 0, self.n_jets).astype(np.int64)
        return Epoch(self, number, members, starts, weight, offset)

    def _cumulated(self, values: NDArray[np.float64], members: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n_windows + 1,) sums of the values of the blocks in all windows before each."""
        per_block = np.append(values, 0.0)[np.minimum(members, len(values))]
        return np.concatenate([[0.0], np.cumsum(per_block.sum(0))])


def bucketed(
    picks: NDArray[np.int64],
    counts: NDArray[np.int64],
    start: int,
    batch_size: int,
    batches: int,
    rng_key: tuple[int, int, int],
) -> NDArray[np.int64]:
    """Picks rearranged such that each batch holds jets of similar numbers of constituents.

    In every group of consecutive batches that lie wholly within the window, jets are sorted by length, cut into
    batches, and the batches are shuffled. Jets that share a batch with another window stay as they are.

    Args:
        picks: (n,) jets in random order.
        counts: number of constituents of each jet that picks refer to.
        start: position of the first pick, within the epoch.
        batch_size: jets of a batch.
        batches: batches of a group.
        rng_key: seed, epoch and window.
    """
    picks = picks.copy()
    rng = _generator(*rng_key, _BUCKETS)
    first = -start % batch_size
    n_batches = max(0, len(picks) - first) // batch_size
    for begin in range(0, n_batches, batches):
        end = min(begin + batches, n_batches)
        group = slice(first + begin * batch_size, first + end * batch_size)
        own = picks[group]
        by_length = own[np.argsort(counts[own], kind="stable")].reshape(end - begin, batch_size)
        picks[group] = by_length[rng.permutation(end - begin)].reshape(-1)
    return picks
