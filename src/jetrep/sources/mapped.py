"""Any ROOT, Parquet or HDF5 file of jets, through a mapping that says what stands where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.jets.columns import particle_types
from jetrep.physics.fourvector import from_ptetaphim
from jetrep.sources._columns import Columns, Part, Values, nearest, opened
from jetrep.sources._particles import from_ptyphim
from jetrep.sources._tables import Lists, not_finite, same_counts, small_integers
from jetrep.sources.chunks import Chunk, check_labels, existing_files, without_padding
from jetrep.sources.mapping import FORMATS, Column, FourVectors, JetMapping, Label, load_mapping

__all__ = ["OTHER_CLASS", "Mapped"]

Floats = NDArray[np.float64]

OTHER_CLASS = "other class"
"""Flag of jets whose label the mapping does not list."""

_FLAGS = ("is_charged_hadron", "is_neutral_hadron", "is_photon", "is_electron", "is_muon")


class Mapped:
    """Jets of files of any schema in which a row is a jet.

    Constituents are lists of any length, or arrays of fixed width with padding. Padding is where the mask is 0 or,
    without one, where pT, or E, px, py and pz, are zero. Constituents with a pT below zero get NaN for a momentum.
    Masses below zero, which rounding makes of massless particles, count as zero.

    Charges and type flags are derived from ``pdg_id``, unless they are given themselves. Jets with another measured
    column that is not finite are flagged "not finite", those whose label is not listed "other class".

    Args:
        files: ``.root``, ``.parquet`` or ``.h5`` files.
        labels: read the labels.
        mapping: YAML file, which must be given; see `jetrep.sources.mapping` and docs/own_data.md.

    Attributes:
        classes: names of the labels; empty without labels.
        files: the files.
        rows: number of jets of each.
        mapping: what the mapping says.

    Raises:
        InputError: if the mapping makes no sense or does not fit the files, or a file is missing, damaged or of another
            schema than the first.
    """

    def __init__(self, files: Sequence[Path], *, labels: bool = True, mapping: Path | None = None) -> None:
        if mapping is None:
            raise InputError(
                "no mapping is given", field="mapping", remedy="give --mapping FILE.yaml, which says what stands where"
            )
        self.mapping: JetMapping = load_mapping(mapping)
        self.files = existing_files(files)
        self._label = self.mapping.label if labels else None
        self.classes: tuple[str, ...] = self._label.classes if self._label else ()
        self._remedy = f"correct the mapping {mapping} or the file"
        self._file_labels = [_file_label(file, self._label, self.mapping.file) for file in self.files]
        self._kinds: dict[str, np.dtype[Any]] = {}
        self.rows: list[int] = []
        for i, file in enumerate(self.files):
            self.rows.append(self._checked_rows(file))
            # The first jet shows types and shapes: a mapping that does not fit should not cost an hour.
            for chunk in self.read(i, 0, min(1, self.rows[i])):
                self._kinds = self._kinds or {name: values.dtype for name, values in chunk.jets.observers.items()}

    def read(self, file: int, start: int, stop: int) -> Iterator[Chunk]:
        """Jets ``start:stop`` of one file.

        Raises:
            InputError: if the file proves to be damaged, or holds values that cannot be what the mapping says.
        """
        path = self.files[file]
        with self._opened(path) as columns:
            for part in columns.columns(self._branches(), start, stop):
                yield self._chunk(_Rows(path, part, self._remedy), self._file_labels[file])

    def _opened(self, file: Path) -> AbstractContextManager[Columns]:
        mapping = self.mapping
        format_ = mapping.format or next((kind for kind, ends in FORMATS.items() if file.suffix.lower() in ends), None)
        if format_ is None:
            raise InputError(
                f"'{file.suffix}' does not tell the kind of file", file=file, remedy="add a format to the mapping"
            )
        for key, kind in (("tree", "root"), ("group", "hdf5")):
            if getattr(mapping, key) is not None and format_ != kind:
                raise InputError(
                    f"{file} is {format_} and has no {key}", file=mapping.file, field=key, remedy="leave it out"
                )
        return opened(file, format_, tree=mapping.tree, group=mapping.group, remedy=self._remedy)

    def _columns(self) -> list[Column]:
        """All that is read."""
        vectors, mapping = self.mapping.four_vectors, self.mapping
        return [
            *vectors.components.values(),
            *vectors.relative_to.values(),
            *([vectors.mask] if vectors.mask else []),
            *mapping.measured.values(),
            *mapping.observers.values(),
            *(self._label.columns if self._label else ()),
        ]

    def _branches(self) -> list[str]:
        return list(dict.fromkeys(column.branch for column in self._columns()))

    def _checked_rows(self, file: Path) -> int:
        """Number of jets of a file that has all branches of the mapping."""
        with self._opened(file) as columns:
            names = columns.names
            for column in self._columns():
                if column.branch not in names:
                    raise InputError(
                        f"'{column.branch}' is not in {file}, where {nearest(column.branch, names)}",
                        file=self.mapping.file,
                        field=column.key,
                        remedy="name a branch, column or dataset of the files",
                    )
            return columns.count(self._branches())

    def _chunk(self, rows: _Rows, file_label: int | None) -> Chunk:
        values, counts = _momenta(rows, self.mapping.four_vectors)
        reference = next(iter(self.mapping.four_vectors.components.values()))
        raw = {name: rows.lists(column, reference) for name, column in self.mapping.measured.items()}
        p4, offsets, raw = without_padding(values, counts, raw)
        measured, flags = _measured(rows, raw, self.mapping.measured, offsets)
        observers = {name: self._observer(name, rows, column) for name, column in self.mapping.observers.items()}
        labels = None
        if self._label is not None and file_label is not None:
            labels = np.full(len(counts), file_label, np.int64)
        elif self._label is not None:
            labels, other = _labels(rows, self._label)
            flags |= {OTHER_CLASS: other} if other.any() else {}
        jets = Jets(p4, offsets, labels, self.classes, measured=measured, observers=observers)
        return Chunk(jets, rows.file, rows.start, flags)

    def _observer(self, name: str, rows: _Rows, column: Column) -> NDArray[Any]:
        values = rows.numbers(column)
        if values.dtype.kind in "bi" or (values.dtype.kind == "u" and values.dtype.itemsize < 8):
            values = values.astype(np.int64)
        elif values.dtype == np.float16:
            values = values.astype(np.float32)
        kind = self._kinds.get(name, values.dtype)
        if values.dtype != kind:
            raise InputError(
                f"is {values.dtype} here and {kind} in {self.files[0]}",
                file=rows.file,
                field=column.branch,
                remedy="write all files with the same types",
            )
        return values


class _Rows:
    """Rows of a file, as the mapping asks for them.

    Args:
        file: the file.
        part: number of the first row, and the columns.
        remedy: what to do about columns of another kind.
    """

    def __init__(self, file: Path, part: Part, remedy: str) -> None:
        self.file, (self.start, self._columns), self._remedy = file, part, remedy

    def numbers(self, column: Column) -> NDArray[Any]:
        """(n_jets,) one number for each jet."""
        values = self._columns[column.branch]
        if isinstance(values, Lists):
            width = int(values.counts[0]) if len(values.counts) else 0
            if column.column is None or values.values.ndim != 1 or (values.counts != width).any():
                hint = "; the source 'pfnano' reads NanoAOD, where a row is an event"
                raise self.error("holds lists, not one number for each jet", column, hint=hint)
            values = values.values.reshape(len(values.counts), width)
        return self._scaled(self._picked(values, column, "jet"), column)

    def lists(self, column: Column, reference: Column | None = None) -> NDArray[Any]:
        """(n,) one number for each constituent or padding; as many for each jet as in another column, if given."""
        if reference is not None:
            self.counts([reference, column])
        return self._scaled(self._picked(self._ragged(column)[0], column, "constituent"), column)

    def counts(self, columns: Sequence[Column]) -> NDArray[np.int64]:
        """(n_jets,) how many constituents and paddings there are, the same in all columns."""
        return same_counts(
            {column.branch: Lists(*self._ragged(column)) for column in columns}, file=self.file, start=self.start
        )

    def error(self, problem: str, column: Column, row: int | None = None, *, hint: str = "") -> InputError:
        """An error about a column, and perhaps the jet in a row of it."""
        jet = None if row is None else self.start + row
        return InputError(
            f"{problem} ({column.key} in the mapping)",
            file=self.file,
            jet=jet,
            field=column.branch,
            remedy=self._remedy + hint,
        )

    def _ragged(self, column: Column) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """A column flat over all jets, (n, …), and the number of entries of each jet."""
        values: Values = self._columns[column.branch]
        if isinstance(values, Lists):
            return values.values, values.counts
        if values.ndim < 2:
            raise self.error("holds one number for each jet, not one for each constituent", column)
        n, width = values.shape[:2]
        return values.reshape(n * width, *values.shape[2:]), np.full(n, width, np.int64)

    def _picked(self, values: NDArray[Any], column: Column, what: str) -> NDArray[Any]:
        """One number from each entry of an array."""
        place, records = column.column, values.dtype.names
        if isinstance(place, str):
            if place not in (records or ()):
                found = nearest(place, records) if records else "its columns have no names"
                raise self.error(f"has no column '{place}': {found}", column)
            values = values[place]
        elif place is not None:
            if records or values.ndim != 2 or not -values.shape[1] <= place < values.shape[1]:
                raise self.error(f"has {_shape(values)} for each {what}, hence no column {place}", column)
            values = values[:, place]
        if values.dtype.names or values.ndim != 1:
            raise self.error(f"has {_shape(values)}, not one number, for each {what}", column)
        return values

    def _scaled(self, values: NDArray[Any], column: Column) -> NDArray[Any]:
        return values if column.scale == 1 else values.astype(np.float64) * column.scale


def _shape(values: NDArray[Any]) -> str:
    """What an entry of an array is."""
    if values.dtype.names:
        return f"columns {', '.join(values.dtype.names)}"
    return "one number" if values.ndim == 1 else f"an array of shape {values.shape[1:]}"


def _momenta(rows: _Rows, vectors: FourVectors) -> tuple[Floats, NDArray[np.int64]]:
    """Four-vectors (n, 4) in GeV, zero where padded, and how many belong to each jet."""
    counts = rows.counts([*vectors.components.values(), *([vectors.mask] if vectors.mask else [])])
    parts = {name: rows.lists(column).astype(np.float64) for name, column in vectors.components.items()}
    if vectors.mask is not None:
        padding = rows.lists(vectors.mask) == 0
        bad = ~padding & (rows.lists(vectors.mask) != 1)
        if bad.any():
            at = int(np.argmax(bad))
            jet = int(np.searchsorted(np.cumsum(counts), at, side="right"))
            raise rows.error(f"the mask is {rows.lists(vectors.mask)[at]}, neither 0 nor 1", vectors.mask, jet)
    else:
        padding = parts["pt"] == 0 if "pt" in parts else np.zeros(len(parts["E"]), np.bool_)
    with np.errstate(all="ignore"):
        for name, column in vectors.relative_to.items():
            of_jet = np.repeat(rows.numbers(column).astype(np.float64), counts)
            parts[name] = parts[name] * of_jet if name == "pt" else parts[name] + of_jet
        p4 = _four_vectors(parts) * vectors.unit
    p4[padding] = 0
    return p4, counts


def _four_vectors(parts: Mapping[str, Floats]) -> Floats:
    """(E, px, py, pz) from the components of one of the `SYSTEMS`."""
    if "px" in parts:
        return np.stack([parts[name] for name in ("E", "px", "py", "pz")], -1)
    pt = np.where(parts["pt"] < 0, np.nan, parts["pt"])
    mass = np.maximum(parts["mass"], 0) if "mass" in parts else np.zeros_like(pt)
    if "y" in parts:
        return from_ptyphim(pt, parts["y"], parts["phi"], mass)
    p4 = from_ptetaphim(pt, parts["eta"], parts["phi"], mass)
    if "E" in parts:
        p4[:, 0] = parts["E"]
    return p4


def _measured(
    rows: _Rows, raw: Mapping[str, NDArray[Any]], columns: Mapping[str, Column], offsets: NDArray[np.int64]
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[np.bool_]]]:
    """Measured columns of real constituents, and the flags of jets in which one is not finite."""
    counts = np.diff(offsets)
    measured: dict[str, NDArray[Any]] = {}
    if "pdg_id" in raw:
        codes = raw["pdg_id"]
        with np.errstate(invalid="ignore"):
            bad = ~((np.abs(codes.astype(np.float64)) < 2**31) & (np.floor(codes) == codes))
        if bad.any():
            at = int(np.argmax(bad))
            jet = int(np.searchsorted(offsets, at, side="right")) - 1
            raise rows.error(f"{codes[at]} is no particle code", columns["pdg_id"], jet)
        measured |= {"pdg_id": codes.astype(np.int32)}
        measured |= particle_types(measured["pdg_id"])
    floats = []
    for name, values in raw.items():
        if name == "charge" or name in _FLAGS:
            low, high = (-127, 127) if name == "charge" else (0, 1)
            measured[name] = small_integers(
                Lists(values, counts), low=low, high=high, file=rows.file, field=columns[name].branch, start=rows.start
            )
        elif name != "pdg_id":
            with np.errstate(over="ignore"):
                measured[name] = values.astype(np.float32)
            floats.append(measured[name])
    return measured, not_finite(floats, offsets)


def _labels(rows: _Rows, label: Label) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(n_jets,) index of the class, and a mask of the jets that belong to none that is listed."""
    if label.one_hot:
        numbers, none = _one_hot(rows, label.columns)
    else:
        numbers = _integers(rows, label)
        none = np.zeros(len(numbers), np.bool_)
    if label.merge is None:
        return numbers, none
    known, which = np.unique(numbers, return_inverse=True)
    index = np.array([label.merge.get(int(number), -1) for number in known], np.int64)[which.reshape(-1)]
    other = none | (index < 0)
    return np.where(other, 0, index), other


def _integers(rows: _Rows, label: Label) -> NDArray[np.int64]:
    """A column of integers: indices of the classes, or any that are then merged into those."""
    (column,) = label.columns
    values = rows.numbers(column)
    if label.merge is not None:
        with np.errstate(invalid="ignore"):
            bad = ~((np.abs(values.astype(np.float64)) < 2**63) & (np.floor(values) == values))
        if bad.any():
            row = int(np.argmax(bad))
            raise rows.error(f"the label {values[row]} is no integer", column, row)
        return values.astype(np.int64)
    file, field = rows.file, column.branch
    try:
        return check_labels(values, file=file, field=field, start=rows.start, n_classes=len(label.classes))
    except InputError as error:
        remedy = "name all classes in the mapping, or list the integers to be used under label.merge"
        raise InputError(error.problem, file=file, jet=error.jet, field=field, remedy=remedy) from None


def _one_hot(rows: _Rows, columns: Sequence[Column]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The position of the 1, and a mask of the jets that have none."""
    values = np.stack([rows.numbers(column) for column in columns], -1)
    bad = ((values != 0) & (values != 1)).any(1) | ((values != 0).sum(1) > 1)
    if bad.any():
        row = int(np.argmax(bad))
        found = ", ".join(f"{column.branch} = {value}" for column, value in zip(columns, values[row], strict=True))
        raise rows.error(f"the label is not one 1 among zeros, but {found}", columns[0], row)
    return values.argmax(1), (values == 0).all(1)


def _file_label(file: Path, label: Label | None, mapping: Path) -> int | None:
    """The class of all jets of a file, if its name tells it."""
    if label is None or not label.patterns:
        return None
    fits = [i for i, patterns in enumerate(label.patterns) if any(file.match(pattern) for pattern in patterns)]
    if len(fits) != 1:
        found = " and ".join(label.classes[i] for i in fits) or "no class"
        raise InputError(
            f"{file} fits the patterns of {found}",
            file=mapping,
            field="label.file_pattern",
            remedy="give patterns of which each file fits exactly one",
        )
    return fits[0]
