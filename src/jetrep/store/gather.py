"""Jets of many shards as one long list, of which blocks are copied into memory while the rest stays on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numba
import numpy as np
from numpy.typing import NDArray

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.physics.clustering import MergeHistory, common_clustering
from jetrep.store.reader import Store
from jetrep.store.shard import MappedShard

__all__ = ["Blocks", "JetPool", "Part"]

_MAPPED = 128
"""Shards that stay mapped, and files that stay open, at a time; to map one again costs about a millisecond."""


@dataclass(frozen=True, eq=False)
class Part:
    """Jets of one shard, or of one table in memory.

    Attributes:
        n: how many of its jets belong to the pool.
        source: the table, or the store and the number of the shard.
        selected: one bit for each jet of the source, set for those that belong to the pool; without it they are the
            first ``n``.
        labels: what each label of the source is called in the pool; None keeps labels as they are.
    """

    n: int
    source: Jets | tuple[Store, int]
    selected: NDArray[np.uint8] | None = None
    labels: NDArray[np.int64] | None = None

    def rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """Where in the source the jets ``start:stop`` of this part stand, in order."""
        if self.selected is None:
            return np.arange(start, stop)
        return np.flatnonzero(np.unpackbits(self.selected))[start:stop]


@dataclass(frozen=True, eq=False)
class Blocks:
    """Runs of consecutive jets of a pool; none reaches from one part into the next.

    Attributes:
        part: (n_blocks,) which part.
        start: (n_blocks,) first jet within the part.
        stop: (n_blocks,) the one after the last.
        first: (n_blocks,) number of the first jet in the pool.
    """

    part: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    first: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.part)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(n_blocks,) number of jets."""
        return self.stop - self.start

    def __getitem__(self, which: NDArray[np.int64] | slice) -> Blocks:
        return Blocks(self.part[which], self.start[which], self.stop[which], self.first[which])


class JetPool:
    """Jets of any number of shards, without loading them.

    Memory for each shard that has not been touched: a few hundred bytes, and one bit a jet if jets are selected.

    Args:
        parts: where the jets are, in order.
        classes: names of their labels; without them, jets have no labels.
        history: whether merge histories come along. Distances d_ij do not: they are NaN.
        columns: which `Jets.measured` come along; observers never do.
        max_particles: keep only this many constituents of each jet, those of the highest pT. Jets that lose some are
            clustered again, as they were.

    Raises:
        InputError: if a table in memory has no such measured column.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        *,
        classes: tuple[str, ...] = (),
        history: bool = True,
        columns: tuple[str, ...] = (),
        max_particles: int | None = None,
    ) -> None:
        self.parts, self.classes = tuple(parts), classes
        self.history, self.columns = history, columns
        self.max_particles = max_particles
        self._ends = np.cumsum([0, *(part.n for part in self.parts)])
        self._mapped: dict[int, tuple[Jets, MappedShard]] = {}

    @classmethod
    def of(cls, jets: Jets) -> Self:
        """Jets in memory, with all that they have but the observers."""
        return cls(
            [Part(len(jets), jets)],
            classes=jets.classes,
            history=jets.history is not None,
            columns=tuple(jets.measured),
        )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getstate__(self) -> dict[str, Any]:
        # Mappings belong to a process.
        return self.__dict__ | {"_mapped": {}}

    @property
    def in_memory(self) -> bool:
        """Whether the jets are one table in memory, of which nothing has to be copied."""
        return len(self.parts) == 1 and isinstance(self.parts[0].source, Jets) and self.max_particles is None

    def blocks(self, size: int) -> Blocks:
        """All jets in blocks of ``size``; the last block of each part may be smaller."""
        starts = [np.arange(0, part.n, size) for part in self.parts]
        part = np.repeat(np.arange(len(self.parts)), [len(s) for s in starts])
        start = np.concatenate([np.zeros(0, np.int64), *starts])
        stop = np.minimum(start + size, np.array([p.n for p in self.parts], np.int64)[part])
        return Blocks(part, start, stop, self._ends[part] + start)

    def fetch(self, blocks: Blocks) -> Jets:
        """The jets of these blocks, one block after the other.

        Blocks are read in the order given, each from its beginning to its end, into memory of their own, and the pages
        of a shard are given back once they are copied. Only jets in memory, and those of a single shard that is
        fetched as a whole, are not copied.

        Raises:
            InputError: if a shard is damaged.
        """
        if len(blocks) and (blocks.part == blocks.part[0]).all():
            part, (jets, _) = self.parts[blocks.part[0]], self._table(int(blocks.part[0]))
            untouched = part.selected is None and part.labels is None and self.max_particles is None
            if untouched and blocks.sizes.sum() == part.n == len(jets):
                return jets
        pieces = [
            self._piece(int(part), self.parts[part].rows(start, stop))
            for part, start, stop in zip(blocks.part, blocks.start, blocks.stop, strict=True)
        ]
        return self._gather(pieces)

    def sample(self, n: int) -> Jets:
        """Every k-th jet, with k so large that there are at most ``n``; without histories.

        Hashes of shards are not checked for this: it reads a few pages of each and leaves the rest for later.
        """
        chosen = np.arange(0, len(self), -(-len(self) // n) or 1)
        pieces = []
        for index in range(len(self.parts)):
            own = chosen[np.searchsorted(chosen, self._ends[index]) : np.searchsorted(chosen, self._ends[index + 1])]
            if len(own):
                rows = self.parts[index].rows(0, self.parts[index].n)[own - self._ends[index]]
                pieces.append(self._piece(index, rows, check=False))
        return self._gather(pieces, history=False)

    def labels(self) -> NDArray[np.int64]:
        """(n_jets,) the label of every jet, of which nothing else is read; None of them is checked by a hash.

        Raises:
            InputError: if the jets are unlabelled.
        """
        if not self.classes:
            raise InputError("the jets are unlabelled", field="label", remedy="use labelled stores")
        found = np.empty(len(self), np.int64)
        for index, part in enumerate(self.parts):
            own = self._table(index, check=False)[0].truth[part.rows(0, part.n)]
            found[self._ends[index] : self._ends[index + 1]] = own if part.labels is None else part.labels[own]
        return found

    def jet_p4(self) -> NDArray[np.float32]:
        """(n_jets, 4) the four-momentum of every jet, of all its constituents: one pass over all shards."""
        found = np.empty((len(self), 4), np.float32)
        for index, part in enumerate(self.parts):
            jets, mapped = self._table(index)
            found[self._ends[index] : self._ends[index + 1]] = jets.jet_p4[part.rows(0, part.n)]
            if mapped is not None:
                mapped.release()
        return found

    def _table(self, index: int, check: bool = True) -> tuple[Jets, MappedShard | None]:
        """The jets of a part's source, with the columns of this pool."""
        source = self.parts[index].source
        if isinstance(source, Jets):
            return self._bare(source), None
        found = self._mapped.pop(index, None) if check else None
        if found is None:
            mapped = source[0].map(source[1], check=check)
            # Opening has read the offsets of all columns.
            mapped.release()
            found = self._bare(mapped.jets), mapped
        if check:
            self._mapped[index] = found
            while len(self._mapped) > _MAPPED:
                self._mapped.pop(next(iter(self._mapped)), None)
        return found

    def _bare(self, jets: Jets) -> Jets:
        missing = [name for name in self.columns if name not in jets.measured]
        if missing:
            raise InputError(
                f"the jets have no measured column '{missing[0]}'",
                field=missing[0],
                remedy="prepare them from a data set that has it",
            )
        return replace(
            jets,
            labels=jets.labels if self.classes else None,
            history=jets.history if self.history else None,
            measured={name: jets.measured[name] for name in self.columns},
            observers={},
        )

    def _piece(self, index: int, rows: NDArray[np.int64], check: bool = True) -> _Piece:
        """These rows of a part's source; the disk begins to read them."""
        jets, mapped = self._table(index, check)
        if mapped is not None and len(rows):
            constituents = slice(jets.offsets[rows[0]], jets.offsets[rows[-1] + 1])
            arrays = [jets.p4, *jets.measured.values()]
            if jets.history is not None:
                arrays += [jets.history.order, jets.history.join]
            for array in arrays if check else ():
                mapped.will_need(array[constituents])
        labels = None
        if jets.labels is not None:
            table = self.parts[index].labels
            labels = jets.labels[rows] if table is None else table[jets.labels[rows]]
        piece = _Piece(jets, rows, labels, mapped)
        return piece if self.max_particles is None else self._leading(piece, self.max_particles)

    def _leading(self, piece: _Piece, n: int) -> _Piece:
        """The piece with jets of no more than ``n`` constituents."""
        rows = piece.rows
        long = np.flatnonzero(piece.jets.offsets[rows + 1] - piece.jets.offsets[rows] > n)
        if not len(long):
            return piece
        jets = self._gather([piece])
        cut = jets[long].leading(n)
        if jets.history is not None:
            cut = cut.clustered_like(jets.history)
        rows = np.arange(len(rows))
        rows[long] = len(rows) + np.arange(len(long))
        return _Piece(Jets.concatenate([jets, cut]), rows, piece.labels, None)

    def _gather(self, pieces: Sequence[_Piece], history: bool = True) -> Jets:
        """All pieces, one after the other, copied."""
        counts = [piece.jets.offsets[piece.rows + 1] - piece.jets.offsets[piece.rows] for piece in pieces]
        offsets = np.cumsum(np.concatenate([np.zeros(1, np.int64), *counts]))
        size = int(offsets[-1])
        p4 = np.empty((size, 4), np.float32)
        order = join = None
        histories = [piece.jets.history for piece in pieces if piece.jets.history is not None]
        if self.history and history:
            order, join = np.empty(size, np.int32), np.empty(size, np.int32)
        measured = {
            name: np.empty(size, np.result_type(*(piece.jets.measured[name].dtype for piece in pieces)))
            for name in self.columns
        }
        first = 0
        for i, piece in enumerate(pieces):
            jets, at = piece.jets, offsets[first : first + len(piece.rows) + 1]
            first += len(piece.rows)
            _copy(jets.p4, jets.offsets, piece.rows, p4, at)
            if order is not None and join is not None and jets.history is not None:
                _copy(jets.history.order, jets.offsets, piece.rows, order, at)
                _copy(jets.history.join, jets.offsets, piece.rows, join, at)
            for name, column in measured.items():
                _copy(jets.measured[name], jets.offsets, piece.rows, column, at)
            last_of_shard = i + 1 == len(pieces) or pieces[i + 1].mapped is not piece.mapped
            if piece.mapped is not None and last_of_shard:
                piece.mapped.release()
        labels = [piece.labels for piece in pieces if piece.labels is not None]
        return Jets(
            p4,
            offsets,
            np.concatenate(labels) if labels else None,
            self.classes,
            None
            if order is None or join is None
            else MergeHistory(order, join, _no_distances(size), offsets, *common_clustering(histories)),
            measured,
        )


@dataclass(frozen=True, eq=False)
class _Piece:
    """Rows of a table, what they are called, and the mapping that they are read from, if there is one."""

    jets: Jets
    rows: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    mapped: MappedShard | None


def _no_distances(n: int) -> NDArray[np.float32]:
    # One number that stands for all of them.
    return np.broadcast_to(np.float32(np.nan), (n,))


@numba.njit(cache=True, nogil=True)
def _copy(source: Any, offsets: Any, rows: Any, target: Any, at: Any) -> None:
    """The constituents of the jets ``rows`` of ``source`` to the places ``at`` (n_rows + 1,) of ``target``."""
    for i in range(len(rows)):
        start = offsets[rows[i]]
        target[at[i] : at[i + 1]] = source[start : start + at[i + 1] - at[i]]
