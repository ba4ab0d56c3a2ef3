"""Padded arrays as the weaver framework and the JetClass tools make them, in ``.npz`` files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.sources._tables import one_hot_labels
from jetrep.sources.chunks import Chunk, check_labels, existing_files, four_vectors, pieces
from jetrep.sources.npz import Npz

__all__ = ["WeaverArrays"]

_REMEDY = "give vectors (N, 4, P) as px, py, pz, E, and mask (N, 1, P), 1 for a particle"
_MOST_CLASSES = 1_000  # integer labels above are surely no classes but an index
_ORDER = [3, 0, 1, 2]  # of px, py, pz, E


class WeaverArrays:
    """Jets in padded arrays.

    ``vectors`` (N, 4, P) are px, py, pz, E in GeV; ``mask`` (N, 1, P) is 1 for a particle and 0 for padding, wherever
    it stands and whatever it holds: weaver may fill it with copies of particles. ``labels`` are one-hot (N, C), or
    whole numbers (N,). Other arrays are ignored: ``points`` hold sign(η_jet)·(η − η_jet) in these tools, and follow
    from the four-vectors.

    Args:
        files: ``.npz`` files.
        labels: read the labels.
        classes: their names, in order; if None, the numbers 0, 1, ….

    Attributes:
        classes: names of the labels, or () without labels.
        files: the files.
        rows: number of jets of each.

    Raises:
        InputError: if a file is missing, damaged or of another schema, or labels are missing or cannot be used.
    """

    def __init__(self, files: Sequence[Path], *, labels: bool = True, classes: Sequence[str] | None = None) -> None:
        self.files = existing_files(files)
        self.rows = [_length(file) for file in self.files]
        self.classes: tuple[str, ...] = ()
        if labels:
            kinds = [_labels_of(file, rows, classes) for file, rows in zip(self.files, self.rows, strict=True)]
            for file, kind in zip(self.files, kinds, strict=True):
                if kind.one_hot != kinds[0].one_hot or (kind.one_hot and kind.classes != kinds[0].classes):
                    raise InputError(
                        f"has other labels than {self.files[0]}: {kind}, not {kinds[0]}",
                        file=file,
                        field="labels",
                        remedy="prepare files of different schemas one by one",
                    )
            n = max(kind.classes for kind in kinds)
            self.classes = tuple(classes) if classes else tuple(str(label) for label in range(n))

    def read(self, file: int, start: int, stop: int) -> Iterator[Chunk]:
        """Jets ``start:stop`` of one file.

        Raises:
            InputError: if the file proves to be damaged, a mask is neither 0 nor 1, or a jet is not of one class.
        """
        path = self.files[file]
        with Npz(path) as archive:
            vectors, mask = archive.column("vectors", any_order=True), archive.column("mask", any_order=True)
            labels = archive.column("labels", any_order=True) if self.classes else None
            for column in (vectors, mask, labels):
                if column is not None:
                    column.skip(start)
            for begin, end in pieces(start, stop):
                n = end - begin
                real = _mask(mask.read(n), path, begin)
                p4, offsets = four_vectors(
                    vectors.read(n)[:, _ORDER].transpose(0, 2, 1)[real], np.count_nonzero(real, axis=1)
                )
                y = None if labels is None else _labels(labels.read(n), path, begin, len(self.classes))
                yield Chunk(Jets(p4, offsets, y, self.classes), path, begin)


def _length(file: Path) -> int:
    if file.suffix.lower() != ".npz":
        raise InputError(f"'{file.suffix}' is no .npz file", file=file, remedy="save the arrays with numpy.savez")
    with Npz(file, _REMEDY) as archive:
        vectors, mask = archive.column("vectors", any_order=True), archive.column("mask", any_order=True)
        if len(vectors.shape) != 3 or vectors.shape[1] != 4:
            raise InputError(f"has shape {vectors.shape}", file=file, field="vectors", remedy=_REMEDY)
        if mask.shape != (vectors.rows, 1, vectors.shape[2]):
            raise InputError(
                f"has shape {mask.shape}, and vectors {vectors.shape}", file=file, field="mask", remedy=_REMEDY
            )
        return vectors.rows


def _mask(values: NDArray[Any], file: Path, start: int) -> NDArray[np.bool_]:
    """(n_jets, P) True for particles."""
    real: NDArray[np.bool_] = values[:, 0] == 1
    other = (~real & (values[:, 0] != 0)).any(1)
    if other.any():
        at = int(np.argmax(other))
        value = values[at, 0][~real[at] & (values[at, 0] != 0)][0]
        raise InputError(f"holds {value}", file=file, jet=start + at, field="mask", remedy="give 1 or 0")
    return real


class _Labels(NamedTuple):
    """How many classes the labels of a file need, and whether they are one-hot."""

    classes: int
    one_hot: bool

    def __str__(self) -> str:
        return f"one-hot of {self.classes} classes" if self.one_hot else "whole numbers"


def _labels_of(file: Path, rows: int, classes: Sequence[str] | None) -> _Labels:
    with Npz(file) as archive:
        if "labels" not in archive.names:
            raise InputError("the labels are missing", file=file, field="labels", remedy="read with --unlabeled")
        column = archive.column("labels", any_order=True)
        if len(column.shape) not in (1, 2) or column.rows != rows:
            raise InputError(
                f"has shape {column.shape} for {rows} jets",
                file=file,
                field="labels",
                remedy="give one-hot labels (N, C), or whole numbers (N,)",
            )
        if len(column.shape) == 2:
            if classes and column.shape[1] != len(classes):
                raise InputError(
                    f"has {column.shape[1]} columns for {len(classes)} classes",
                    file=file,
                    field="labels",
                    remedy="name as many classes with --classes",
                )
            return _Labels(column.shape[1], True)
        n_classes = len(classes) if classes else _MOST_CLASSES
        whole = check_labels(column.read(rows), file=file, field="labels", n_classes=n_classes)
        return _Labels(int(whole.max(initial=-1)) + 1, False)


def _labels(values: NDArray[Any], file: Path, start: int, n_classes: int) -> NDArray[np.int64]:
    """(n_jets,) the class of each jet."""
    if values.ndim == 1:
        return check_labels(values, file=file, field="labels", start=start, n_classes=n_classes)
    return one_hot_labels(values, file=file, field="labels", start=start)
