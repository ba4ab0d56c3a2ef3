"""What every source of jets yields: a bounded number of jets, and where in which file they stood."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from jetrep.errors import InputError
from jetrep.jets import Jets

__all__ = [
    "CHUNK",
    "Chunk",
    "Rows",
    "Source",
    "check_labels",
    "every_chunk",
    "existing_files",
    "four_vectors",
    "pieces",
    "without_padding",
]

CHUNK = 10_000
"""Jets of a chunk: about 10 MB ragged, 30 MB padded to 200 constituents."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive jets of one file, as they stand in it.

    A source removes no jet. It flags those that should not be used, so that whoever drops them can count them.

    Attributes:
        jets: the jets, possibly empty or with momenta that are not finite.
        file: the file they come from.
        start: index, within the file, of the first jet (in files of events: of the first event).
        flags: for each reason to drop a jet, a mask (n_jets,).
    """

    jets: Jets
    file: Path
    start: int
    flags: dict[str, NDArray[np.bool_]] = field(default_factory=dict)


class Rows(NamedTuple):
    """Jets as a file gives them, before padding is removed and labels are checked.

    Attributes:
        p4: (n, 4) numbers, (E, px, py, pz) in GeV, perhaps with padding.
        counts: (n_jets,) how many of them belong to each jet.
        labels: (n_jets,) or None.
    """

    p4: NDArray[Any]
    counts: NDArray[np.int64]
    labels: NDArray[Any] | None


class Source(Protocol):
    """Jets in files: opened and checked on construction, read in ranges of rows.

    A row is a jet, except in files of events, where it holds any number of jets. Ranges may be read in any order and
    by any process: a source can be pickled, keeps no file open, and gives the same jets for the same rows.

    Attributes:
        classes: names of the labels; empty if the jets are unlabelled.
        files: the files.
        rows: number of rows of each.
    """

    classes: tuple[str, ...]
    files: Sequence[Path]
    rows: Sequence[int]

    def read(self, file: int, start: int, stop: int) -> Iterator[Chunk]:
        """The jets in rows ``start:stop`` of the file with this index, in order.

        Raises:
            InputError: if the file proves to be damaged.
        """
        ...


def every_chunk(source: Source) -> Iterator[Chunk]:
    """All jets of all files, in order."""
    for file, rows in enumerate(source.rows):
        yield from source.read(file, 0, rows)


def pieces(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The range ``start:stop`` in consecutive pieces of at most `CHUNK` rows."""
    for begin in range(start, stop, CHUNK):
        yield begin, min(begin + CHUNK, stop)


def four_vectors(values: NDArray[Any], counts: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Constituents without padding: vectors whose four components are all zero are no particles.

    Args:
        values: (n, 4) numbers, (E, px, py, pz) in GeV.
        counts: (n_jets,) how many of them belong to each jet.

    Returns:
        p4 (n_particles, 4), and offsets (n_jets + 1,). Numbers beyond the range of float32 become infinite.
    """
    p4, offsets, _ = without_padding(values, counts)
    return p4, offsets


def without_padding(
    values: NDArray[Any], counts: NDArray[np.int64], measured: Mapping[str, NDArray[Any]] = MappingProxyType({})
) -> tuple[NDArray[np.float32], NDArray[np.int64], dict[str, NDArray[Any]]]:
    """Constituents without padding, wherever it stands, and what was measured of those that remain.

    Vectors whose four components are all zero are no particles.

    Args:
        values: (n, 4) numbers, (E, px, py, pz) in GeV.
        counts: (n_jets,) how many of them belong to each jet.
        measured: columns (n,), one value for each vector.

    Returns:
        p4 (n_particles, 4), offsets (n_jets + 1,), and the columns, (n_particles,) each. Components beyond the range
        of float32 become infinite.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        p4 = np.asarray(values, np.float32)
    ends = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    real = (p4 != 0).any(1)
    if real.all():
        return p4, ends, dict(measured)
    before = np.concatenate([[0], np.cumsum(real)])
    return p4[real], before[ends], {name: column[real] for name, column in measured.items()}


def check_labels(values: NDArray[Any], *, file: Path, field: str, start: int = 0, n_classes: int) -> NDArray[np.int64]:
    """Labels as int64.

    Args:
        values: (n_jets,) whole numbers of any type.
        file: where they come from.
        field: the column.
        start: index of the first jet within the file.
        n_classes: labels run from 0 to ``n_classes - 1``.

    Raises:
        InputError: naming the first jet whose label is no whole number, or of no class.
    """
    if values.dtype.kind not in "iufb":
        raise InputError(
            f"labels have type {values.dtype}",
            file=file,
            field=field,
            remedy="give whole numbers, 0 for the first class",
        )
    if values.ndim != 1:
        raise InputError(f"labels have shape {values.shape}", file=file, field=field, remedy="give one number a jet")
    if values.dtype.kind == "f":
        whole = np.isfinite(values) & (np.floor(values) == values)
        if not whole.all():
            at = int(np.argmin(whole))
            raise InputError(
                f"label {values[at]} is no whole number",
                file=file,
                jet=start + at,
                field=field,
                remedy="give whole numbers, 0 for the first class",
            )
    known = (values >= 0) & (values < n_classes)
    if not known.all():
        at = int(np.argmin(known))
        raise InputError(
            f"label {values[at]} is outside of the {n_classes} classes",
            file=file,
            jet=start + at,
            field=field,
            remedy=f"give labels 0 to {n_classes - 1}, or name all classes with --classes",
        )
    return values.astype(np.int64)


def existing_files(names: Sequence[Path]) -> list[Path]:
    """The files, in the order given. A name with ``*``, ``?`` or ``[`` stands for all files that it matches, sorted.

    ``**`` matches folders at any depth. A file or folder whose own name has such characters is meant literally.

    Raises:
        InputError: naming a file that does not exist or is given twice, or a pattern that matches none.
    """
    files: list[Path] = []
    seen: set[Path] = set()
    for name in names:
        for file in _named(Path(name)):
            resolved = file.resolve()
            if resolved in seen:
                raise InputError(
                    "is given twice", file=file, remedy="give each file once, also where patterns or links overlap"
                )
            seen.add(resolved)
            files.append(file)
    if not files:
        raise InputError("no files are given", field="files", remedy="name at least one")
    return files


def _named(name: Path) -> list[Path]:
    """The one file of this name, or those that match it."""
    try:
        if name.is_file():
            return [name]
        what = "is a folder" if name.is_dir() else "does not exist"
        if what == "is a folder" or not glob.has_magic(str(name)):
            raise InputError(what, file=name, remedy="give the name of a file, or a pattern such as *.root")
        # Folders that exist are literal, whatever their names; only what follows is a pattern.
        folder = next(parent for parent in name.parents if parent.is_dir() or parent == parent.parent)
        pattern = str(Path(glob.escape(str(folder))) / name.relative_to(folder))
        files = [file for file in map(Path, sorted(glob.glob(pattern, recursive=True))) if file.is_file()]
    except (OSError, ValueError) as problem:
        raise InputError(f"cannot be looked up ({problem})", file=name, remedy="check the name") from problem
    if not files:
        raise InputError(f"the pattern matches no file in {folder.resolve()}", file=name, remedy="correct the pattern")
    return files
