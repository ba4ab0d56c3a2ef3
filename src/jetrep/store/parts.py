"""Preparation in parts: a part is a run of rows that becomes one shard, wherever and whenever that is done.

A part is a pure function of the source, the settings and its rows. Its shard, and then a record of it, appear in the
work folder whole or not at all. So parts can be made in any order, by any process, and again after an accident.
"""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from jetrep.errors import InputError
from jetrep.physics.clustering import Algorithm
from jetrep.sources.chunks import Source
from jetrep.store.build import ShardBuilder, accepted
from jetrep.store.folder import disk_errors, write_json
from jetrep.store.manifest import Columns, Shard, file_hash
from jetrep.store.selection import Selection

__all__ = ["Job", "Part", "Record", "identity", "load_records", "make_part", "split_rows", "versions"]

Span = tuple[int, int, int]
"""(file, start, stop): rows ``start:stop`` of the file with this index."""


@dataclass(frozen=True)
class Part:
    """Rows that become one shard.

    Attributes:
        number: which part it is, from 0.
        spans: the rows, in order.
    """

    number: int
    spans: tuple[Span, ...]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(stop - start for _, start, stop in self.spans)


@dataclass(frozen=True)
class Job:
    """What all parts have in common; can be pickled.

    Attributes:
        source: the open source.
        selection: which jets to keep.
        classes: classes of the store; empty to leave the labels out.
        algorithm: clustering algorithm.
        R: radius parameter of the clustering.
        folder: the work folder.
        out: the store, for messages.
        threads: threads of the clustering; all cores, if None.
    """

    source: Source
    selection: Selection
    classes: tuple[str, ...]
    algorithm: Algorithm
    R: float
    folder: Path
    out: Path
    threads: int | None = None


@dataclass(frozen=True)
class Record:
    """What became of a part.

    Attributes:
        number: which part.
        spans: its rows.
        files: size and time of change of the file of each span, when it was read.
        limit: it was told to stop after keeping this many jets; None if not.
        read: number of jets that were read.
        dropped: how many of them were not kept, by reason.
        label_counts: jets of each class, among those kept.
        columns: names and types of what stands beside the four-vectors; None if there was nothing to read.
        shard: the file that holds the jets, in the work folder; None if none was kept.
        hashes: hash of each file that begins in this part, by its index.
        versions: of the programs that decide the bytes of a shard.
    """

    number: int
    spans: tuple[Span, ...]
    files: tuple[tuple[int, int], ...]
    limit: int | None
    read: int
    dropped: dict[str, int]
    label_counts: tuple[int, ...]
    columns: Columns | None
    shard: Shard | None
    hashes: dict[int, str]
    versions: dict[str, str]

    @property
    def jets(self) -> int:
        """Number of jets that were kept."""
        return self.shard.jets if self.shard else 0

    def serves(self, limit: int | None) -> bool:
        """Whether the part, made anew with this limit, would be the same."""
        if limit == self.limit:
            return True
        # It ran to its end and would do so again. A part that keeps exactly as many as it may stops at the last.
        to_the_end = self.limit is None or self.jets < self.limit
        return to_the_end and (limit is None or self.jets < limit)

    @classmethod
    def load(cls, file: Path) -> Record:
        """Read a record; any exception means that it is none."""
        content = json.loads(file.read_text(encoding="utf-8"))
        shard = content.pop("shard")
        content |= {name: tuple(tuple(row) for row in content[name]) for name in ("spans", "files")}
        content["label_counts"] = tuple(content["label_counts"])
        content["hashes"] = {int(index): digest for index, digest in content["hashes"].items()}
        return cls(shard=None if shard is None else Shard(**shard | {"origin": ()}), **content)


def split_rows(rows: Sequence[int], size: int) -> list[Part]:
    """Consecutive parts of ``size`` rows (the last may have fewer), without regard to where files end.

    Args:
        rows: number of rows of each file.
        size: rows of a part.
    """
    parts: list[Part] = []
    spans: list[Span] = []
    room = size
    for file, length in enumerate(rows):
        start = 0
        while start < length:
            stop = min(length, start + room)
            spans.append((file, start, stop))
            room -= stop - start
            start = stop
            if not room:
                parts.append(Part(len(parts), tuple(spans)))
                spans, room = [], size
    return parts if not spans else [*parts, Part(len(parts), tuple(spans))]


def versions() -> dict[str, str]:
    """The programs that decide the bytes of a shard."""
    return {name: version(name) for name in ("jetrep", "numpy", "numba", "pyarrow")}


def make_part(job: Job, part: Part, limit: int | None, advance: Callable[[int], object] = lambda rows: None) -> Record:
    """Read the rows of a part, keep what is selected, cluster it, and write shard and record to the work folder.

    Args:
        job: what all parts have in common.
        part: the rows.
        limit: stop after keeping this many jets.
        advance: called now and then with the number of rows that were read since.

    Raises:
        InputError: if the input or the settings cannot be used, or the disk is full.
    """
    # Before anything is read: a file that changes while it is read gives a record that matches no file.
    files = tuple(identity(job.source.files[file]) for file, _, _ in part.spans)
    hashes = {file: file_hash(job.source.files[file]) for file, start, _ in part.spans if start == 0}
    builder = ShardBuilder(
        job.folder, n_classes=len(job.classes), algorithm=job.algorithm, R=job.R, threads=job.threads
    )
    read, dropped = 0, Counter[str]()
    for file, start, stop in part.spans:
        at = start
        for chunk in job.source.read(file, start, stop):
            advance(chunk.start - at)
            at = chunk.start
            jets, n, why = job.selection.apply(chunk, None if limit is None else limit - builder.n_jets)
            builder.add(accepted(jets if job.classes else jets.with_labels(None), job.classes), chunk.file)
            read += n
            dropped.update(why)
            if builder.n_jets == limit:
                break
        advance(stop - at)
        if builder.n_jets == limit:
            break
    if read != builder.n_jets + dropped.total():
        raise AssertionError(f"{read} jets read, {builder.n_jets} kept, {dict(dropped)} dropped")
    shard = None
    if builder.n_jets:
        # A name of its own for each attempt: the shard of a record is never replaced by that of another.
        name = f"part-{part.number:05d}-{secrets.token_hex(4)}.arrow"
        shard = builder.write(job.folder / name, name, shown=job.out / name)
    record = Record(
        number=part.number,
        spans=part.spans,
        files=files,
        limit=limit,
        read=read,
        dropped=dict(dropped),
        label_counts=tuple(builder.label_counts.tolist()),
        columns=builder.columns,
        shard=shard,
        hashes=hashes,
        versions=versions(),
    )
    with disk_errors(job.out):
        write_json(job.folder / _name(part.number), asdict(record))
    return record


def identity(file: Path) -> tuple[int, int]:
    """Size and time of the last change (ns) of a file: what tells that it is still the same.

    Raises:
        InputError: if it is gone.
    """
    try:
        facts = file.stat()
    except OSError as problem:
        raise InputError(
            f"cannot be read ({problem.strerror})", file=file, remedy="leave files alone while they are prepared"
        ) from problem
    return facts.st_size, facts.st_mtime_ns


def load_records(job: Job, parts: Sequence[Part]) -> dict[int, Record]:
    """The finished parts in the work folder, by number: those whose files and rows are still the same."""
    records = {}
    for part in parts:
        try:
            record = Record.load(job.folder / _name(part.number))
            same = (
                record.spans == part.spans
                and record.files == tuple(identity(job.source.files[file]) for file, _, _ in part.spans)
                and record.versions == versions()
                and len(record.label_counts) == len(job.classes)
                and (record.shard is None or _size(job.folder / record.shard.file) == record.shard.bytes)
            )
        except (InputError, OSError, ValueError, TypeError, KeyError, AttributeError):
            continue  # not there, or damaged by a power cut
        if same:
            records[part.number] = record
    return records


def _size(file: Path) -> int:
    return file.stat().st_size


def _name(number: int) -> str:
    return f"part-{number:05d}.json"
