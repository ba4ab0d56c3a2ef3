"""Named columns of any ROOT, Parquet or HDF5 file, whatever their shape: how a mapping sees files.

The other sources know the schema of their files, and check it as they open them. Here it is the user who knows it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol, Self

import awkward as ak
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jetrep.errors import InputError
from jetrep.sources import parquet
from jetrep.sources._hdf5 import Hdf5, blocks
from jetrep.sources._hdf5 import Table as Dataset
from jetrep.sources._root import Tree, _readable
from jetrep.sources._tables import Lists
from jetrep.sources._yaml import short
from jetrep.sources.chunks import CHUNK

__all__ = ["Columns", "Part", "Values", "nearest", "opened"]

Values = NDArray[Any] | Lists
"""A column: an array whose first axis are the rows, or lists, whose values may have a second axis. Numbers, or records
of numbers."""

Part = tuple[int, dict[str, Values]]
"""Number of the first row, and columns of the rows from there."""


class Columns(Protocol):
    """A file that is open."""

    @property
    def names(self) -> Sequence[str]:
        """What is there."""
        ...

    def count(self, names: Sequence[str]) -> int:
        """The number of rows of these columns, which must be there."""
        ...

    def columns(self, names: Sequence[str], start: int, stop: int) -> Iterator[Part]:
        """Rows ``start:stop`` of columns, a bounded number at a time."""
        ...


def opened(
    file: Path, format_: str, *, tree: str | None, group: str | None, remedy: str
) -> AbstractContextManager[Columns]:
    """A file, opened for reading.

    Args:
        file: the file.
        format_: "root", "parquet" or "hdf5".
        tree: tree of a ROOT file; None for its only one.
        group: group of an HDF5 file; None for its root.
        remedy: what to do about a file that holds something else.

    Raises:
        InputError: if it is damaged, of another format, or has no such tree or group.
    """
    if format_ == "root":
        return _Root(file, tree or "", remedy=remedy)
    if format_ == "hdf5":
        return _Hdf5(file, group, remedy)
    return _parquet(file, remedy)


def nearest(name: str, names: Sequence[str]) -> str:
    """A hint at what may be meant by a name that is not among others."""
    near = difflib.get_close_matches(name, names, 1, 0.0)
    return f"the nearest name is '{near[0]}'" if near else "there is none at all"


class _Root(Tree):
    """A tree or RNTuple, with branches of any shape."""

    def __enter__(self) -> Self:
        return self

    def _find(self, name: str) -> Any:
        with _readable(self.file):
            kinds = self._directory.classnames(cycle=False).items()
        # RNTuple is ROOT's newer kind of table, which is read in the same way.
        trees = [str(key) for key, kind in kinds if str(kind).startswith(("TTree", "TNtuple", "ROOT::RNTuple"))]
        if not name and len(trees) != 1:
            what = f"holds the trees {', '.join(trees)}" if trees else "holds no tree"
            raise InputError(what, file=self.file, field="tree", remedy="name one in the mapping")
        if name and name not in trees:
            return super()._find(name)  # raises
        with _readable(self.file):
            return self._directory[name or trees[0]]

    def count(self, names: Sequence[str]) -> int:
        return self.rows

    def columns(self, names: Sequence[str], start: int, stop: int) -> Iterator[Part]:
        for begin, rows, arrays in self.arrays(names, start, stop, CHUNK):
            part = {}
            for name in names:
                with _readable(self.file, name):
                    part[name] = _checked(self._column(arrays[name], name, begin), rows)
            yield begin, part

    def _column(self, array: Any, name: str, start: int) -> Values:
        layout = array.layout
        if not isinstance(layout, ak.contents.ListOffsetArray):
            return self._block(layout, name)
        counts, content = self._lists(layout, name)
        return Lists(self._block(content, name), counts)

    def _lists(self, layout: Any, name: str) -> tuple[NDArray[np.int64], Any]:
        if layout.parameter("__array__") is not None:
            self._refuse("text", name)
        offsets = np.asarray(layout.offsets.data, np.int64)
        counts = np.diff(offsets)
        if offsets[0] < 0 or counts.min(initial=0) < 0 or offsets[-1] > layout.content.length:
            raise ValueError("the lengths of the lists make no sense")
        return counts, layout.content[offsets[0] : offsets[-1]]

    def _block(self, layout: Any, name: str) -> NDArray[Any]:
        """Numbers, or vectors of numbers of one length."""
        if isinstance(layout, ak.contents.ListOffsetArray):
            counts, content = self._lists(layout, name)
            width = int(counts[0]) if len(counts) else 0
            if (counts != width).any():
                self._refuse("lists of lists of different length", name)
            return self._block(content, name).reshape(len(counts), width)
        if not isinstance(layout, ak.contents.NumpyArray | ak.contents.RegularArray):
            self._refuse(str(layout.form.type), name)
        return np.asarray(ak.to_numpy(layout))

    def _refuse(self, what: str, name: str) -> None:
        raise InputError(f"holds {what}, not numbers", file=self.file, field=name, remedy=self._remedy)


class _Hdf5(Hdf5):
    """A group of datasets."""

    def __init__(self, file: Path, group: str | None, remedy: str) -> None:
        super().__init__(file, remedy)
        self._whole = self._file
        try:
            for name in group.strip("/").split("/") if group else ():
                self._file = self._group(name)
        except BaseException:
            self.__exit__()
            raise

    def _group(self, name: str) -> Any:
        names = self.names
        with self.readable(name):
            # Links may lead to other files.
            here = name in names and isinstance(self._file.get(name, getlink=True), h5py.HardLink)
            inner = self._file[name] if here else None
        if not isinstance(inner, h5py.Group):
            raise InputError(
                f"has no group '{name}', only {', '.join(map(short, names)) or 'nothing'}",
                file=self.file,
                field="group",
                remedy=self.remedy,
            )
        return inner

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file = self._whole
        super().__exit__(*error)

    def count(self, names: Sequence[str]) -> int:
        return self.rows(*(self._open(name) for name in names))

    def columns(self, names: Sequence[str], start: int, stop: int) -> Iterator[Part]:
        datasets = {name: self._open(name) for name in names}
        for begin, end in blocks(start, stop, sum(dataset.row_bytes for dataset in datasets.values())):
            part: dict[str, Values] = {}
            for name, dataset in datasets.items():
                values = dataset.read(begin, end)
                with self.readable(name):
                    part[name] = _ragged(values) if values.dtype.kind == "O" else values
            yield begin, part

    def _open(self, name: str) -> Dataset:
        dataset = self._dataset(name)
        with self.readable(name):
            shape, dtype, inner = dataset.shape, dataset.dtype, h5py.check_vlen_dtype(dataset.dtype)
        ragged = isinstance(inner, np.dtype) and inner.kind in "biuf" and shape is not None and len(shape) == 1
        if not shape or not (ragged or _numeric(dtype)):
            raise self.error(f"is {dtype} of shape {shape}, not a table of numbers", name)
        return Dataset(self, name, dataset, shape, dtype)


def _ragged(values: NDArray[Any]) -> Lists:
    """HDF5's lists of any length."""
    counts = np.array([len(row) for row in values], np.int64)
    return Lists(np.concatenate([np.zeros(0, values[0].dtype) if len(values) else np.zeros(0), *values]), counts)


@contextmanager
def _parquet(file: Path, remedy: str) -> Iterator[Columns]:
    with parquet._opened(file) as table:
        yield _Parquet(file, table, remedy)


class _Parquet:
    """Columns of a Parquet file."""

    def __init__(self, file: Path, table: Any, remedy: str) -> None:
        self.file, self._table, self._remedy = file, table, remedy
        self.names: tuple[str, ...] = tuple(table.schema_arrow.names)

    def count(self, names: Sequence[str]) -> int:
        return int(self._table.metadata.num_rows)

    def columns(self, names: Sequence[str], start: int, stop: int) -> Iterator[Part]:
        for batch in parquet.row_range(self._table, list(names), start, stop):
            yield start, {name: self._column(batch.column(name), name, start) for name in names}
            start += batch.num_rows

    def _column(self, array: Any, name: str, start: int) -> Values:
        array = parquet._storage(array)
        if not parquet._is_list(array.type):
            return self._block(array, name, start)
        parquet._forbid_nulls(array, self.file, name, start)
        counts = pc.list_value_length(array).to_numpy(zero_copy_only=False).astype(np.int64)
        return Lists(self._block(parquet._storage(array.flatten()), name), counts)

    def _block(self, array: Any, name: str, start: int | None = None) -> NDArray[Any]:
        """Numbers, vectors of numbers of one length, or records of numbers. Empty places are NaN, or an error."""
        kind = array.type
        if pa.types.is_floating(kind):
            result: NDArray[Any] = array.to_numpy(zero_copy_only=False)
            return result
        if array.null_count:
            if start is not None:
                parquet._forbid_nulls(array, self.file, name, start)
            raise InputError("a value is missing", file=self.file, field=name, remedy="fill it, or leave out the jet")
        if pa.types.is_struct(kind):
            fields = {field.name: self._block(parquet._storage(array.field(field.name)), name) for field in kind}
            records = np.empty(len(array), [(part, values.dtype, values.shape[1:]) for part, values in fields.items()])
            for part, values in fields.items():
                records[part] = values
            return records
        if parquet._is_list(kind):
            lengths = pc.list_value_length(array).to_numpy(zero_copy_only=False)
            width = int(lengths[0]) if len(lengths) else 0
            if (lengths == width).all():
                return self._block(parquet._storage(array.flatten()), name).reshape(len(array), width)
        elif pa.types.is_integer(kind) or pa.types.is_boolean(kind):
            return np.asarray(array.to_numpy(zero_copy_only=False))
        raise InputError(f"holds {kind}, not numbers", file=self.file, field=name, remedy=self._remedy)


def _checked(values: Values, rows: int) -> Values:
    found = len(values.counts if isinstance(values, Lists) else values)
    if found != rows:
        raise ValueError(f"{found} values in {rows} entries")
    return values


def _numeric(dtype: np.dtype[Any]) -> bool:
    if dtype.names is not None:
        return all(dtype[name].base.kind in "biuf" for name in dtype.names)
    return dtype.kind in "biuf"
