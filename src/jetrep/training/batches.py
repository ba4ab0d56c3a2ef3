"""Training batches as a pure function of (seed, step): what makes a resumed run equal an uninterrupted one."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from jetrep.errors import InputError, at_least
from jetrep.jets import JetBatch, Jets
from jetrep.jets.batch import gathered
from jetrep.store.gather import JetPool
from jetrep.training.order import Epoch, Order, bucketed
from jetrep.training.sampling import Balance, balancing_weights

__all__ = ["LoadingConfig", "ShuffledBatches"]


@dataclass(frozen=True)
class LoadingConfig:
    """In which order, how often and how padded jets are shown.

    Attributes:
        block: consecutive jets that are read together.
        window: blocks that are shuffled together, and held in memory; 0 for all.
        bucket: sort the jets of this many batches by length, so that little is padded; 0 for random batches.
        width: pad every batch to this many particles; 0 pads to the longest jet of the batch.
        balance: show each class equally often ("classes"), or each bin of jet pT and mass that is not empty
            ("pt_mass"), or both, bins within classes ("classes_pt_mass").
        pt_bins: bins of pT, of equal width between the 0.5 % and 99.5 % quantiles.
        mass_bins: bins of mass, likewise.
        max_repeats: how often a jet of a rare kind may be shown in an epoch.
    """

    block: int = 1024
    window: int = 64
    bucket: int = 0
    width: int = 0
    balance: Balance = "none"
    pt_bins: int = 20
    mass_bins: int = 20
    max_repeats: float = 10.0

    def __post_init__(self) -> None:
        for name in ("block", "pt_bins", "mass_bins", "max_repeats"):
            at_least(1, **{f"loading.{name}": getattr(self, name)})
        for name in ("window", "bucket", "width"):
            at_least(0, **{f"loading.{name}": getattr(self, name)})

    def weights(self, jets: JetPool) -> NDArray[np.float32] | None:
        """How often each jet is shown, up to a factor; None for equally often. See `balancing_weights`."""
        return balancing_weights(
            jets, self.balance, pt_bins=self.pt_bins, mass_bins=self.mass_bins, max_repeats=self.max_repeats
        )


@dataclass(frozen=True, eq=False)
class _Window:
    """Jets of one window, which of them are shown in which order, and the position of the first in the epoch."""

    jets: Jets
    picks: NDArray[np.int64]
    start: int


@dataclass
class ShuffledBatches:
    """An endless stream of batches: every epoch is a new random order of all jets, cut into batches of equal size.

    Jets at rest are read window by window (`jetrep.training.order.Order`): at most two windows are in memory, and a
    batch may straddle two. Jets in memory are one window. Memberships change from epoch to epoch; the last, incomplete
    batch of an epoch is left out. The global batch at a step does not depend on the number of ranks: rank r takes every
    ``world_size``-th jet of it, from the r-th on.

    Args:
        jets: the training set, in memory or at rest.
        batch_size: jets in the global batch, over all ranks.
        seed: seed of the order.
        rank: this process.
        world_size: number of processes.
        loading: windows, buckets, padding. Its ``balance`` is what ``weights`` were made for.
        weights: (n_jets,) how often each jet is to be shown, up to a factor; equally often by default.
        prefetch: batches that are made ahead, by a thread, while another thread reads the next window; 0 makes
            everything in the thread that asks. The batches are the same.

    Raises:
        InputError: if there are fewer jets than one batch, or the batch cannot be shared evenly.
    """

    jets: Jets | JetPool
    batch_size: int
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    loading: LoadingConfig = LoadingConfig()
    weights: NDArray[np.float32] | None = field(default=None, repr=False)
    prefetch: int = 1

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
        if self.weights is not None and len(self.weights) != len(self.jets):
            raise InputError(
                f"{len(self.weights)} weights for {len(self.jets)} jets", field="weights", remedy="give one a jet"
            )
        self.pool = JetPool.of(self.jets) if isinstance(self.jets, Jets) else self.jets
        window = 0 if self.pool.in_memory else self.loading.window * self.loading.block
        self._order = Order(self.pool.blocks(self.loading.block), window, self.seed, self.weights)
        self._epochs: dict[int, Epoch] = {}
        self._windows: dict[tuple[int, int], Future[_Window]] = {}
        self._fetched: Jets | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Number of full batches in one pass over the jets."""
        return len(self.jets) // self.batch_size

    def rows(self, step: int) -> NDArray[np.int64]:
        """The jets of this rank at ``step``, counted from the start of training, by their number in the set.

        Nothing is read, unless batches are bucketed by length.
        """
        epoch, parts = self._parts(step)
        rows = []
        for window, positions in parts:
            picks = self._window(epoch.number, window).picks if self.loading.bucket else epoch.picks(window)
            rows.append(epoch.jets(window)[picks[positions - epoch.starts[window]]])
        return np.concatenate(rows)

    def batch(self, step: int) -> JetBatch:
        """The batch of this rank at ``step``.

        Raises:
            InputError: if a shard is damaged, or a jet does not fit into the width asked for.
        """
        return self._batch(step, None)

    def probe(self) -> None:
        """Make the first batch, so that what is wrong with it shows before anything is written."""
        self.batch(0)
        self._windows.clear()

    def share(self, rank: int, world_size: int) -> ShuffledBatches:
        """The same batches, of which ``rank`` of ``world_size`` processes gets its part."""
        own = replace(self, rank=rank, world_size=world_size)
        own._fetched = self._fetched  # a pool of one window is read once
        return own

    def from_step(self, start: int) -> Iterator[JetBatch]:
        """Batches of this rank from step ``start`` on, for ever.

        Raises:
            InputError: if a shard is damaged, or a jet does not fit into the width asked for.
        """
        step = start
        own = self.share(self.rank, self.world_size)  # windows of its own, for its own threads
        if self.prefetch == 0:
            while True:
                yield own.batch(step)
                step += 1
        maker, reader = ThreadPoolExecutor(1, "batches"), ThreadPoolExecutor(1, "windows")
        ahead: deque[Future[JetBatch]] = deque()
        try:
            while True:
                while len(ahead) <= self.prefetch:
                    ahead.append(maker.submit(own._batch, step, reader))
                    step += 1
                yield ahead.popleft().result()
        finally:
            for executor in (maker, reader):
                executor.shutdown(cancel_futures=True)

    def _parts(self, step: int) -> tuple[Epoch, list[tuple[int, NDArray[np.int64]]]]:
        """The epoch of a step, and in which windows of it this rank finds its jets, at which positions."""
        number, place = divmod(step, self.steps_per_epoch)
        if number not in self._epochs:
            # Two are needed at a time: the next one begins before this one ends.
            self._epochs = {n: e for n, e in self._epochs.items() if abs(n - number) <= 1}
            self._epochs[number] = self._order.epoch(number)
        epoch = self._epochs[number]
        positions = np.arange(place * self.batch_size + self.rank, (place + 1) * self.batch_size, self.world_size)
        windows = np.searchsorted(epoch.starts, positions, side="right") - 1
        return epoch, [(int(w), positions[windows == w]) for w in np.unique(windows)]

    def _batch(self, step: int, reader: ThreadPoolExecutor | None) -> JetBatch:
        epoch, parts = self._parts(step)
        needed = {(epoch.number, window) for window, _ in parts}
        last = parts[-1][0]
        coming = (epoch.number, last + 1) if last + 1 < self._order.n_windows else (epoch.number + 1, 0)
        self._windows = {key: found for key, found in self._windows.items() if key in needed or key == coming}
        windows = [self._window(epoch.number, window, reader) for window, _ in parts]
        if reader is not None and len(parts) == 1:  # else there are two in memory already
            self._ask_for(*coming, reader)
        found = [
            (window.jets, window.picks[positions - window.start])
            for window, (_, positions) in zip(windows, parts, strict=True)
        ]
        return gathered(found, self.loading.width)

    def _window(self, epoch: int, window: int, reader: ThreadPoolExecutor | None = None) -> _Window:
        return self._ask_for(epoch, window, reader).result()

    def _ask_for(self, epoch: int, window: int, reader: ThreadPoolExecutor | None) -> Future[_Window]:
        key = (epoch, window)
        if key not in self._windows:
            if epoch not in self._epochs:
                self._epochs[epoch] = self._order.epoch(epoch)
            made: Future[_Window] = Future()
            if reader is not None:
                made = reader.submit(self._read, self._epochs[epoch], window)
            else:
                made.set_result(self._read(self._epochs[epoch], window))
            self._windows[key] = made
        return self._windows[key]

    def _read(self, epoch: Epoch, window: int) -> _Window:
        jets = self._fetched
        if jets is None:
            jets = self.pool.fetch(self._order.blocks[epoch.blocks(window)])
            if self._order.n_windows == 1:
                self._fetched = jets  # the same in every epoch
        picks, start = epoch.picks(window), int(epoch.starts[window])
        if self.loading.bucket:
            key = (self.seed, epoch.number, window)
            picks = bucketed(picks, jets.counts, start, self.batch_size, self.loading.bucket, key)
        return _Window(jets, picks, start)
