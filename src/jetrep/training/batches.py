"""Training batches as a pure function of (seed, step): what makes a resumed run equal an uninterrupted one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from jetrep.errors import InputError
from jetrep.jets import JetBatch, Jets

__all__ = ["ShuffledBatches"]


@dataclass
class ShuffledBatches:
    """An endless stream of batches: every epoch is a new permutation of all jets, cut into batches of equal size.

    Memberships change from epoch to epoch; the last, incomplete batch of an epoch is left out. The global batch at a
    step does not depend on the number of ranks: rank r takes every ``world_size``-th jet of it, from the r-th on.

    Args:
        jets: the training set.
        batch_size: jets in the global batch, over all ranks.
        seed: seed of the permutations.
        rank: this process.
        world_size: number of processes.

    Raises:
        InputError: if there are fewer jets than one batch, or the batch cannot be shared evenly.
    """

    jets: Jets
    batch_size: int
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    _epoch: tuple[int, NDArray[np.int64]] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.batch_size % self.world_size:
            raise InputError(
                f"a batch of {self.batch_size} jets cannot be shared by {self.world_size} processes",
                field="batch_size",
                remedy="choose a positive multiple",
            )
        if len(self.jets) < self.batch_size:
            raise InputError(
                f"{len(self.jets)} jets are fewer than one batch of {self.batch_size}",
                field="batch_size",
                remedy="choose a smaller batch or give more jets",
            )

    @property
    def steps_per_epoch(self) -> int:
        """Number of full batches in one pass over the jets."""
        return len(self.jets) // self.batch_size

    def rows(self, step: int) -> NDArray[np.int64]:
        """The jets of this rank at ``step``, counted from the start of training."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, np.random.default_rng((self.seed, epoch)).permutation(len(self.jets))
        start = position * self.batch_size
        return self._epoch[1][start : start + self.batch_size][self.rank :: self.world_size]

    def from_step(self, start: int) -> Iterator[JetBatch]:
        """Batches of this rank from step ``start`` on, for ever."""
        step = start
        while True:
            yield self.jets.batch(self.rows(step))
            step += 1
