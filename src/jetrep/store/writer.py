"""Writing a store: cluster each jet once, write shards beside the target, and let it appear only when complete."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from jetrep.errors import InputError, at_least
from jetrep.jets import Jets
from jetrep.physics.clustering import Algorithm
from jetrep.store.build import ShardBuilder, accepted, check_columns
from jetrep.store.folder import check_target, disk_errors, mark, publish, sync, tidy_up
from jetrep.store.manifest import MANIFEST, Columns, Manifest, Shard, content_hash
from jetrep.store.shard import columns_of

__all__ = ["StoreWriter", "check_classes", "manifest_of", "shard_name"]


class StoreWriter:
    """Writes jets to a new store; use it in a ``with`` block.

    Shards go to a hidden folder beside ``out``. When the block ends normally, the manifest is written, everything is
    flushed to disk, and the folder is renamed to ``out``. When the block ends by an exception, Ctrl-C included, the
    hidden folder is deleted. A process that is killed leaves only the hidden folder, which is no store, and which the
    next writer to the same place removes.

    Jets without a merge history are sorted by descending pT and clustered. Jets that have one are stored as they are.

    Args:
        out: folder of the new store.
        classes: names of the labels; empty for unlabelled jets.
        provenance: where the jets come from, for the manifest; anything that JSON can hold.
        jets_per_shard: size of the shards.
        overwrite: replace a store that already stands at ``out``.
        algorithm: clustering algorithm.
        R: radius parameter of the clustering.

    Raises:
        InputError: if ``out`` exists and may not be replaced, or cannot be written.

    Example:
        >>> with StoreWriter(Path("top"), classes=("qcd", "top"), provenance={"files": ["train.h5"]}) as writer:
        ...     writer.write(jets)
        ...     writer.drop("empty", 3)
    """

    def __init__(
        self,
        out: Path,
        *,
        classes: tuple[str, ...] = (),
        provenance: dict[str, Any],
        jets_per_shard: int = 50_000,
        overwrite: bool = False,
        algorithm: Algorithm = "kt",
        R: float = 0.8,
    ) -> None:
        self.out = Path(out).absolute()
        self.classes, self.provenance, self.overwrite = tuple(classes), provenance, overwrite
        self.algorithm, self.R = algorithm, float(R)
        check_classes(self.classes)
        at_least(1, jets_per_shard=jets_per_shard)
        self.jets_per_shard = jets_per_shard
        self.dropped: Counter[str] = Counter()
        self.manifest: Manifest | None = None
        self._shards: list[Shard] = []
        self._labels = np.zeros(len(self.classes), np.int64)
        self._columns: Columns | None = None
        self._folder = self.out.with_name(f".{self.out.name}.writing-{mark()}")
        self._shard = self._new_shard()
        check_target(self.out, overwrite=self.overwrite)

    @property
    def n_jets(self) -> int:
        """Number of jets written so far."""
        return sum(shard.jets for shard in self._shards) + self._shard.n_jets

    def __enter__(self) -> Self:
        with disk_errors(self.out):
            self.out.parent.mkdir(parents=True, exist_ok=True)
            tidy_up(self.out)
            check_target(self.out, overwrite=self.overwrite)
            self._folder.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def write(self, jets: Jets) -> None:
        """Add jets, in order.

        Args:
            jets: jets with at least one constituent each and finite momenta; labelled if the store has classes; with
                the same columns as those before.

        Raises:
            InputError: if a jet is empty or not finite, labels are missing, superfluous or of other classes, columns
                differ, or the disk is full.
        """
        jets = accepted(jets, self.classes)
        self._columns = self._columns or columns_of(jets)
        check_columns(self._columns, columns_of(jets), None)
        while len(jets):
            room = self.jets_per_shard - self._shard.n_jets
            self._shard.add(jets[:room] if len(jets) > room else jets)
            jets = jets[room:]
            if self._shard.n_jets == self.jets_per_shard:
                self._flush()

    def drop(self, reason: str, n: int) -> None:
        """Note that ``n`` jets were read but not kept."""
        if n < 0:
            raise ValueError("a negative number of jets cannot be dropped")
        if n:
            self.dropped[reason] += int(n)

    def _new_shard(self) -> ShardBuilder:
        return ShardBuilder(self._folder, n_classes=len(self.classes), algorithm=self.algorithm, R=self.R)

    def _flush(self) -> None:
        """Write the waiting jets as the next shard."""
        name = shard_name(len(self._shards))
        shard, self._shard = self._shard, self._new_shard()
        self._shards.append(shard.write(self._folder / name, name, shown=self.out / name))
        self._labels += shard.label_counts

    def _finish(self) -> None:
        if self._shard.n_jets:
            self._flush()
        self.manifest = manifest_of(
            self._shards,
            out=self.out,
            classes=self.classes,
            label_counts=self._labels.tolist(),
            dropped=self.dropped,
            columns=self._columns,
            algorithm=self.algorithm,
            R=self.R,
            provenance=self.provenance,
        )
        with disk_errors(self.out / MANIFEST):
            path = self._folder / MANIFEST
            path.write_text(self.manifest.to_json(), encoding="utf-8")
            sync(path)
            sync(self._folder)
            publish(self._folder, self.out, overwrite=self.overwrite)


def shard_name(number: int) -> str:
    """Name of the file of a shard within its store."""
    return f"shard-{number:05d}.arrow"


def check_classes(classes: Sequence[str]) -> None:
    """Whether labels can be told apart by these names.

    Raises:
        InputError: if two are the same.
    """
    if len(set(classes)) != len(classes):
        raise InputError("two classes have the same name", field="classes", remedy="name each class once")


def manifest_of(
    shards: Sequence[Shard],
    *,
    out: Path,
    classes: Sequence[str],
    label_counts: Sequence[int],
    dropped: Mapping[str, int],
    columns: Columns | None,
    algorithm: str,
    R: float,
    provenance: dict[str, Any],
) -> Manifest:
    """The manifest of a store that is made of these shards, with the sums taken and the time noted.

    Raises:
        InputError: if there are none: a store without jets is of no use.
    """
    if not shards or columns is None:
        reasons = ", ".join(f"{n} {reason}" for reason, n in dropped.items())
        raise InputError(
            f"no jets to store{f' (dropped: {reasons})' if reasons else ''}",
            file=out,
            remedy="check the input and the selection",
        )
    return Manifest(
        jets=sum(shard.jets for shard in shards),
        constituents=sum(shard.constituents for shard in shards),
        classes=tuple(classes),
        label_counts=dict(zip(classes, label_counts, strict=True)),
        dropped=dict(dropped),
        algorithm=algorithm,
        R=float(R),
        shards=tuple(shards),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        content_hash=content_hash(shards, classes, algorithm, R),
        provenance=provenance,
        measured=dict(columns["measured"]),
        observers=dict(columns["observers"]),
    )
