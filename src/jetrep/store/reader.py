"""Reading a store: memory-mapped jets, checked against the manifest before anybody relies on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.physics.clustering import Algorithm
from jetrep.store.manifest import Manifest, Shard, file_hash
from jetrep.store.shard import MappedShard, columns_of, map_shard

__all__ = ["Store"]

_REMEDY = "prepare the store again, or restore the file from a copy"


class Store:
    """Jets on disk.

    Opening reads the manifest and looks at the size of every shard, so it costs nothing even for large stores. A
    shard is mapped into memory when it is used, and its hash is checked the first time (about 0.1 s/GB once the file
    is in the page cache; otherwise the disk's own speed), so that no damaged file ever reaches a model.

    Args:
        path: folder that `StoreWriter` wrote.
        check: compare the hash of each shard with the manifest on first use. Sizes and counts are always compared.

    Raises:
        InputError: if the folder is no store, the manifest is damaged or of a newer schema, or a shard is missing
            or truncated.
    """

    def __init__(self, path: Path | str, *, check: bool = True) -> None:
        self.path = Path(path)
        self.manifest = Manifest.load(self.path)
        self._unchecked = {shard.file for shard in self.manifest.shards} if check else set()
        for shard in self.manifest.shards:
            self._check_size(shard)

    def __len__(self) -> int:
        return self.manifest.jets

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, {len(self)} jets, {len(self.manifest.shards)} shards)"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels; empty if the jets are unlabelled."""
        return self.manifest.classes

    @property
    def labelled(self) -> bool:
        """Whether every jet has a label."""
        return bool(self.classes)

    @property
    def content_hash(self) -> str:
        """Hash of all that a reader gets: to be noted beside every number derived from this store."""
        return self.manifest.content_hash

    def shards(self) -> Iterator[Jets]:
        """The jets of one shard after the other, as views of the mapped files.

        Raises:
            InputError: if a shard is damaged.
        """
        for shard in self.manifest.shards:
            yield self._read(shard)

    def jets(self, max_jets: int | None = None) -> Jets:
        """The first ``max_jets`` jets (all, if None).

        Jets of a single shard are views of the mapped file: nothing is copied, pages are read when touched, and
        processes share them. Jets of several shards are copied into one array.

        Raises:
            InputError: if a shard is damaged, or ``max_jets`` is not positive.
        """
        if max_jets is not None and max_jets < 1:
            raise InputError(
                f"max_jets is {max_jets}", file=self.path, field="max_jets", remedy="give a positive number"
            )
        wanted = len(self) if max_jets is None else min(max_jets, len(self))
        parts: list[Jets] = []
        for shard in self.manifest.shards:
            if wanted == 0:
                break
            part = self._read(shard)
            if len(part) > wanted:  # a slice has offsets of its own
                part = part[:wanted]
            wanted -= len(part)
            parts.append(part)
        return Jets.concatenate(parts)

    def map(self, shard: int, *, check: bool = True) -> MappedShard:
        """One shard, mapped into memory, with the means to give that memory back.

        Args:
            shard: its number in the manifest.
            check: False to put off the comparison of its hash to the next use: for a first look at a few of its
                values, which must not cost the time to read all of it.

        Raises:
            InputError: if the shard is damaged.
        """
        return self._map(self.manifest.shards[shard], check)

    def verify(self) -> None:
        """Check everything: every byte against the hashes, every merge history, the counts of labels.

        Raises:
            InputError: naming the shard, and the jet where there is one, at the first disagreement.
        """
        labels = np.zeros(len(self.classes), np.int64)
        for shard in self.manifest.shards:
            self._unchecked.add(shard.file)
            jets = self._read(shard)
            self._check_values(jets, shard)
            if jets.labels is not None:
                labels += np.bincount(jets.labels, minlength=len(self.classes))
        if labels.tolist() != list(self.manifest.label_counts.values()):
            raise InputError(
                f"the labels count {labels.tolist()}, the manifest says {self.manifest.label_counts}",
                file=self.path,
                remedy=_REMEDY,
            )

    def _check_size(self, shard: Shard) -> None:
        file = self.path / shard.file
        try:
            size = file.stat().st_size
        except OSError:
            raise InputError("the shard is missing", file=file, remedy=_REMEDY) from None
        if size != shard.bytes:
            what = "truncated" if size < shard.bytes else "damaged"
            raise InputError(f"the shard is {what} ({size} of {shard.bytes} bytes)", file=file, remedy=_REMEDY)

    def _read(self, shard: Shard) -> Jets:
        return self._map(shard, True).jets

    def _map(self, shard: Shard, check: bool) -> MappedShard:
        file = self.path / shard.file
        self._check_size(shard)
        if check and shard.file in self._unchecked:
            if file_hash(file) != shard.hash:
                raise InputError("the shard is damaged: its hash disagrees", file=file, remedy=_REMEDY)
            self._unchecked.discard(shard.file)
        mapped = map_shard(file, self.classes)
        jets = mapped.jets
        if jets.history is not None:  # which knows how it came about
            algorithm = cast(Algorithm, self.manifest.algorithm)
            history = replace(jets.history, algorithm=algorithm, R=self.manifest.R)
            mapped = replace(mapped, jets=(jets := replace(jets, history=history)))
        if (len(jets), len(jets.p4)) != (shard.jets, shard.constituents):
            raise InputError(
                f"{len(jets)} jets with {len(jets.p4)} constituents, the manifest says {shard.jets} "
                f"with {shard.constituents}",
                file=file,
                remedy=_REMEDY,
            )
        if columns_of(jets) != {"measured": self.manifest.measured, "observers": self.manifest.observers}:
            raise InputError("the columns are not those that the manifest lists", file=file, remedy=_REMEDY)
        return mapped

    def _check_values(self, jets: Jets, shard: Shard) -> None:
        """Finite momenta, no empty jets, and (order, join) permutations within each jet."""
        history = jets.history
        assert history is not None  # read_shard never returns jets without
        counts = jets.counts
        jet = np.repeat(np.arange(len(jets)), counts)
        place = np.arange(len(jets.p4)) - jets.offsets[jet]
        size = counts[jet]
        bad = ~np.isfinite(jets.p4).all(1)
        for values in (history.order, history.join):
            inside = (values >= 0) & (values < size)
            seen = np.zeros(len(values), np.bool_)
            seen[jets.offsets[jet[inside]] + values[inside]] = True
            bad |= ~inside | ~seen
        bad |= (place == 0) & (history.join != size - 1)
        if bad.any() or not counts.all():
            at = int(jet[np.argmax(bad)]) if bad.any() else int(np.argmin(counts))
            raise InputError("not a jet with a merge history", file=self.path / shard.file, jet=at, remedy=_REMEDY)
