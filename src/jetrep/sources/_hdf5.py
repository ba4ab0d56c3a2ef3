"""HDF5 files of jets: opened on demand, checked table by table, read in blocks of rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401 - registers the compression filters that HDF5 itself lacks
import numpy as np
from numpy.typing import NDArray

from jetrep.errors import InputError
from jetrep.sources.chunks import pieces

__all__ = ["Hdf5", "Table", "blocks"]

_BLOCK = 1 << 25
"""Bytes of a table that are read at once."""
_CACHE = 1 << 24
"""Bytes of decompressed pieces that HDF5 keeps, so that those on the border of two blocks are decompressed once."""

# What h5py raises where a file is damaged: the same damage comes as any of them.
_DAMAGED = (OSError, RuntimeError, KeyError, ValueError, TypeError, EOFError, MemoryError, OverflowError)


class Hdf5:
    """An HDF5 file, opened for reading; use it in a ``with`` block.

    Args:
        file: the file.
        remedy: what the user can do if the file is of another schema.

    Raises:
        InputError: if the file is truncated, damaged, or no HDF5 file.
    """

    def __init__(self, file: Path, remedy: str) -> None:
        self.file, self.remedy = file, remedy
        with self.readable():
            self._file = h5py.File(file, "r", rdcc_nbytes=_CACHE)

    def __enter__(self) -> Hdf5:
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(*_DAMAGED):
            self._file.close()

    @property
    def names(self) -> tuple[str, ...]:
        """What stands at the root of the file."""
        with self.readable():
            # h5py gives names that are no text as bytes.
            return tuple(_text(name) for name in self._file)

    def table(self, name: str, *axes: int | str) -> Table:
        """A table of numbers.

        Args:
            name: its name.
            axes: for each axis its length, or a word for what runs along it if the length is free.

        Raises:
            InputError: if there is no such table, or it is of another type or shape.
        """
        dataset = self._dataset(name)
        with self.readable(name):
            shape, dtype = dataset.shape, dataset.dtype
        wanted = f"({', '.join(map(str, axes))}{',' if len(axes) == 1 else ''})"
        if dtype.names is not None or dtype.kind not in "iufb":
            raise self.error(f"holds {dtype}, not numbers", name)
        if (
            shape is None
            or len(shape) != len(axes)
            or any(isinstance(length, int) and length != n for n, length in zip(shape, axes, strict=True))
        ):
            raise self.error(f"has shape {shape}, not {wanted}", name)
        if math.prod(shape[1:]) * dtype.itemsize > _BLOCK:
            raise self.error(f"has shape {shape}, more numbers in a row than any jet", name)
        return Table(self, name, dataset, shape, dtype)

    def strings(self, name: str) -> tuple[str, ...] | None:
        """A list of strings, or None if the file has none of this name."""
        if name not in self.names:
            return None
        dataset = self._dataset(name)
        with self.readable(name):
            return _decoded(dataset[()])

    def rows(self, *tables: Table) -> int:
        """The number of rows, which must be the same for all these tables.

        Raises:
            InputError: if it is not.
        """
        if len({table.rows for table in tables}) > 1:
            names, lengths = ", ".join(table.name for table in tables), ", ".join(str(table.rows) for table in tables)
            raise self.error(f"{names} have lengths {lengths}")
        return tables[0].rows

    def error(self, problem: str, field: str | None = None, jet: int | None = None) -> InputError:
        """An error about this file."""
        return InputError(problem, file=self.file, jet=jet, field=field, remedy=self.remedy)

    @contextmanager
    def readable(self, field: str | None = None) -> Iterator[None]:
        """The many ways in which a damaged file shows itself, as one."""
        try:
            yield
        except _DAMAGED as problem:
            raise InputError(
                "is truncated, damaged, or no HDF5 file",
                file=self.file,
                field=field,
                remedy="download it again and compare its checksum",
            ) from problem

    def _dataset(self, name: str) -> Any:
        names = self.names
        if name not in names:
            listed = ", ".join(_printable(other) for other in names) or "nothing"
            raise self.error(f"has no dataset '{name}', only {listed}", name)
        with self.readable(name):
            link = self._file.get(name, getlink=True)
            dataset = self._file[name] if isinstance(link, h5py.HardLink) else None
            kind = type(dataset)
            elsewhere = dataset is None or (kind is h5py.Dataset and (dataset.is_virtual or dataset.external))
        if elsewhere:
            # HDF5 fills in zeros for files that it does not find.
            raise InputError(
                "only points to other files", file=self.file, field=name, remedy="give those files themselves"
            )
        if kind is not h5py.Dataset:
            raise self.error("is a group, no dataset", name)
        return dataset


class Table:
    """A table of numbers in an HDF5 file.

    Attributes:
        name: its name.
        shape: its shape.
        rows: length of its first axis.
    """

    def __init__(self, hdf5: Hdf5, name: str, dataset: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.name, self.shape, self.rows = name, shape, shape[0]
        self._hdf5, self._dataset, self._dtype = hdf5, dataset, dtype

    @property
    def kind(self) -> str:
        """What its numbers are: "i", "u", "f" or "b", as in NumPy."""
        return self._dtype.kind

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return math.prod(self.shape[1:]) * self._dtype.itemsize

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows ``start:stop``, in the byte order of this machine.

        Raises:
            InputError: if the file proves to be damaged, or to be shorter than it was.
        """
        with self._hdf5.readable(self.name):
            values = np.asarray(self._dataset[start:stop])
            if len(values) != stop - start:
                raise EOFError("fewer rows than there were")
        return values.astype(values.dtype.newbyteorder("="), copy=False)

    def attribute(self, name: str) -> tuple[str, ...]:
        """A list of strings that is attached to the table.

        Raises:
            InputError: if there is none.
        """
        with self._hdf5.readable(self.name):
            value = self._dataset.attrs.get(name)
        if value is None:
            raise self._hdf5.error(f"has no attribute '{name}'", self.name)
        with self._hdf5.readable(self.name):
            return _decoded(value)


def blocks(start: int, stop: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """The range ``start:stop`` in consecutive pieces, none longer than a chunk, and few enough bytes each."""
    step = max(1, _BLOCK // max(1, row_bytes))
    for begin, end in pieces(start, stop):
        for first in range(begin, end, step):
            yield first, min(first + step, end)


def _decoded(values: Any) -> tuple[str, ...]:
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "SUO":
        raise ValueError("no list of strings")
    return tuple(_text(value) for value in array.tolist())


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _printable(name: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in name)
