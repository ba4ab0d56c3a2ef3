"""The user's own jets: ``.npz`` files with flat four-vectors, and Parquet files with list columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.sources import parquet
from jetrep.sources.chunks import Chunk, Rows, check_labels, existing_files, four_vectors, pieces
from jetrep.sources.npz import Npz, counts_of

__all__ = ["Arrays"]

_LABELS = ("y", "label", "labels")  # looked for, in this order, if the user names no column


class Arrays:
    """Jets from the user's files, all labelled or all unlabelled.

    ``.npz``: ``p4`` (N, 4) as E, px, py, pz in GeV, all jets one after the other; ``n`` (n_jets,), constituents of each
    jet, or ``offsets`` (n_jets + 1,); labels (n_jets,), optional.

    ``.parquet``: a row is a jet; list columns ``E`` (or ``energy``, ``e``), ``px``, ``py``, ``pz`` (with or without the
    prefix ``part_``), or one column ``p4`` of lists of [E, px, py, pz]; a column of labels, optional.

    Constituents whose four components are all zero are padding.

    Args:
        files: ``.npz`` and ``.parquet`` files.
        label_column: name of the labels; if None, ``y``, ``label`` or ``labels``, if the files have it.
        classes: names of the labels 0, 1, …; if None, the numbers themselves.
        labels: read the labels.

    Attributes:
        classes: names of the labels; empty without labels.
        files: the files.
        rows: number of jets of each.

    Raises:
        InputError: if a file is missing, damaged or of another schema, or labels are missing or cannot be used.
    """

    def __init__(
        self,
        files: Sequence[Path],
        *,
        label_column: str | None = None,
        classes: Sequence[str] | None = None,
        labels: bool = True,
    ) -> None:
        self.files = existing_files(files)
        names = [_names(file) for file in self.files]
        self._column = _label_column(self.files, names, label_column) if labels else None
        if self._column is None and labels and classes:
            raise InputError(
                f"has no column {', '.join(_LABELS)} for the classes {', '.join(classes)}",
                file=self.files[0],
                field="label_column",
                remedy="name the column with --label-column, or leave out --classes",
            )
        self.classes = tuple(classes or ()) if self._column else ()
        self.rows = [_length(file) for file in self.files]
        highest = -1
        # All labels are looked at before the work begins: they are small, and a bad one should not cost an hour.
        for file in self.files if self._column else ():
            if self._column:
                highest = max(highest, _highest_label(file, self._column, len(self.classes) or None))
        if self._column and not self.classes:
            self.classes = tuple(str(label) for label in range(highest + 1))

    def read(self, file: int, start: int, stop: int) -> Iterator[Chunk]:
        """Jets ``start:stop`` of one file.

        Raises:
            InputError: if the file proves to be damaged.
        """
        path = self.files[file]
        for rows in _read(path, self._column, start, stop):
            p4, offsets = four_vectors(rows.p4, rows.counts)
            labels = None
            if rows.labels is not None and self._column:
                labels = check_labels(
                    rows.labels, file=path, field=self._column, start=start, n_classes=len(self.classes)
                )
            yield Chunk(Jets(p4, offsets, labels, self.classes), path, start)
            start += len(rows.counts)


def _is_parquet(file: Path) -> bool:
    if file.suffix.lower() in (".parquet", ".pq"):
        return True
    if file.suffix.lower() == ".npz":
        return False
    raise InputError(f"'{file.suffix}' is no known kind of file", file=file, remedy="give .npz or .parquet files")


def _names(file: Path) -> tuple[str, ...]:
    if _is_parquet(file):
        return parquet.names(file)
    with Npz(file) as archive:
        return archive.names


def _length(file: Path) -> int:
    if _is_parquet(file):
        return parquet.length(file)
    with Npz(file) as archive:
        return len(counts_of(archive, archive.column("p4").rows))


def _label_column(files: Sequence[Path], names: Sequence[tuple[str, ...]], wanted: str | None) -> str | None:
    """The column that holds the labels in all files, or None if no file has one."""
    column = wanted or next((name for name in _LABELS if any(name in has for has in names)), None)
    if column is None:
        return None
    for file, has in zip(files, names, strict=True):
        if column not in has:
            raise InputError(
                f"has no labels '{column}', only {', '.join(has)}",
                file=file,
                field=column,
                remedy="name the column with --label-column, or give --unlabeled",
            )
    return column


def _highest_label(file: Path, column: str, n_classes: int | None) -> int:
    """The highest label of a file, −1 if it holds no jets; all labels must be whole numbers ≥ 0."""
    if _is_parquet(file):
        values = parquet.column(file, column)
    else:
        with Npz(file) as archive:
            values = archive.whole(column)
    labels = check_labels(values, file=file, field=column, n_classes=n_classes or _MOST_CLASSES)
    return int(labels.max(initial=-1))


_MOST_CLASSES = 1_000  # more, without names, are surely no classes but an index


def _read(file: Path, column: str | None, start: int, stop: int) -> Iterator[Rows]:
    read = parquet.read if _is_parquet(file) else _read_npz
    return read(file, column, start, stop)


def _read_npz(file: Path, column: str | None, start: int, stop: int) -> Iterator[Rows]:
    with Npz(file) as archive:
        p4 = archive.column("p4")
        if len(p4.shape) != 2 or p4.shape[1] != 4:
            raise InputError(
                f"has shape {p4.shape}", file=file, field="p4", remedy="give (N, 4) numbers: E, px, py, pz"
            )
        counts = counts_of(archive, p4.rows)
        labels = archive.whole(column) if column else None
        if labels is not None and labels.shape != counts.shape:
            raise InputError(
                f"{labels.size} labels for {len(counts)} jets", file=file, field=column, remedy="give one label a jet"
            )
        p4.skip(int(counts[:start].sum()))
        for begin, end in pieces(start, stop):
            n = counts[begin:end]
            yield Rows(p4.read(int(n.sum())), n, None if labels is None else np.asarray(labels[begin:end]))
