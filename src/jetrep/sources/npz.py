"""Reading ``.npz`` archives piece by piece: ``numpy.load`` would hold each array in memory as a whole."""

from __future__ import annotations

import math
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from jetrep.errors import InputError

__all__ = ["Column", "Npz", "counts_of"]

_REMEDY = "save it again with numpy.savez"
_ARRAYS = "give p4 (N, 4) as E, px, py, pz, with n or offsets"
_SKIP = 1 << 22
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    ValueError,
    NotImplementedError,
    SyntaxError,
    tokenize.TokenError,
    TypeError,
    OverflowError,
    MemoryError,
)


class Npz:
    """An archive of arrays, opened for reading; use it in a ``with`` block.

    Args:
        file: the archive.
        remedy: what the user can do if an array is missing.

    Raises:
        InputError: if the file is no archive of arrays, or truncated.
    """

    def __init__(self, file: Path, remedy: str = _ARRAYS) -> None:
        self.file, self._remedy = file, remedy
        with _readable(file):
            self._archive = zipfile.ZipFile(file)
        self.names = tuple(name.removesuffix(".npy") for name in self._archive.namelist() if name.endswith(".npy"))

    def __enter__(self) -> Npz:
        return self

    def __exit__(self, *error: object) -> None:
        self._archive.close()

    def column(self, name: str, *, any_order: bool = False) -> Column:
        """An array, to be read from its beginning.

        Args:
            name: its name.
            any_order: take arrays in Fortran order too, whose rows are scattered: each piece that is read passes over
                the whole array once.

        Raises:
            InputError: if there is no such array, or it cannot be read row by row.
        """
        if name not in self.names:
            raise InputError(
                f"has no array '{name}', only {', '.join(self.names) or 'nothing'}",
                file=self.file,
                field=name,
                remedy=self._remedy,
            )
        with _readable(self.file, name):
            return Column(self.file, name, lambda: self._archive.open(f"{name}.npy"), any_order=any_order)

    def whole(self, name: str) -> NDArray[Any]:
        """An array, all of it."""
        column = self.column(name)
        return column.read(column.rows)


class Column:
    """One array of an archive, read row by row.

    Attributes:
        shape: its shape.
        dtype: its type.
        rows: length of its first axis.
    """

    def __init__(self, file: Path, name: str, open_stream: Callable[[], IO[bytes]], *, any_order: bool = False) -> None:
        self.file, self.name, self._open, self._stream = file, name, open_stream, open_stream()
        shape, fortran_order, dtype = _header(self._stream)
        if dtype.hasobject or dtype.kind not in "biuf":
            raise InputError(f"has type {dtype}, not numbers", file=file, field=name, remedy=_REMEDY)
        # Only for vectors are both orders the same.
        self._scattered = fortran_order and len(shape) > 1
        if not shape or (self._scattered and not any_order):
            what = "is a single number" if not shape else "is in Fortran order"
            raise InputError(what, file=file, field=name, remedy="save it with numpy.ascontiguousarray")
        self.shape: tuple[int, ...] = shape
        self.dtype: np.dtype[Any] = dtype
        self.rows = shape[0]
        self._row = 0

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def read(self, rows: int) -> NDArray[Any]:
        """The next ``rows`` rows, shape (rows, …)."""
        self._row += rows
        with _readable(self.file, self.name):
            if self._scattered:
                return self._gather(rows)
            return self._next(self._stream, rows * math.prod(self.shape[1:])).reshape(rows, *self.shape[1:])

    def _gather(self, rows: int) -> NDArray[Any]:
        """The ``rows`` rows before the present one from an array in Fortran order: a part of each of its columns."""
        if not rows:
            return np.empty((0, *self.shape[1:]), self.dtype)
        with self._open() as stream:
            _header(stream)
            columns = []
            for _ in range(math.prod(self.shape[1:])):
                self._pass(stream, (self._row - rows) * self.dtype.itemsize)
                columns.append(self._next(stream, rows))
                self._pass(stream, (self.rows - self._row) * self.dtype.itemsize)
        gathered = np.array(columns, self.dtype).reshape(*self.shape[:0:-1], rows)
        return np.ascontiguousarray(gathered.T)

    def _next(self, stream: IO[bytes], numbers: int) -> NDArray[Any]:
        content = stream.read(numbers * self.dtype.itemsize)
        if len(content) != numbers * self.dtype.itemsize:
            raise EOFError("the array is shorter than its header says")
        return np.frombuffer(content, self.dtype).astype(self.dtype.newbyteorder("="), copy=False)

    def skip(self, rows: int) -> None:
        """Pass over the next ``rows`` rows."""
        self._row += rows
        if not self._scattered:
            with _readable(self.file, self.name):
                self._pass(self._stream, rows * self.row_bytes)

    @staticmethod
    def _pass(stream: IO[bytes], size: int) -> None:
        while size:
            content = stream.read(min(size, _SKIP))
            if not content:
                raise EOFError("the array is shorter than its header says")
            size -= len(content)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran order, and type of the array that begins here."""
    version = npy.read_magic(stream)
    header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if header is None:
        raise ValueError(f"version {version} of the .npy format")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers that Python 2 wrote
        shape, fortran_order, dtype = header(stream)
    if any(length < 0 for length in shape):
        raise ValueError(f"shape {shape}")
    return shape, fortran_order, dtype


def counts_of(archive: Npz, n_particles: int) -> NDArray[np.int64]:
    """Constituents of each jet, (n_jets,), from the array ``n``, or else from ``offsets``.

    Args:
        archive: the file.
        n_particles: the number of particles that they must add up to.

    Raises:
        InputError: naming the jet, if the numbers are negative, not whole, or do not add up.
    """
    name = next((name for name in ("n", "offsets") if name in archive.names), None)
    if name is None:
        archive.column("n")  # raises
    assert name is not None
    values = archive.whole(name)
    place: dict[str, Any] = {"file": archive.file, "field": name}
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise InputError(f"is {values.dtype} of shape {values.shape}", **place, remedy="give whole numbers, one axis")
    values = values.astype(np.int64)
    if name == "offsets":
        if len(values) == 0 or values[0] != 0:
            raise InputError("the offsets do not begin with 0", **place, remedy="give (n_jets + 1,) offsets from 0")
        values = np.diff(values)
    if (values < 0).any():
        jet = int(np.argmax(values < 0))
        raise InputError(
            f"the jet has {values[jet]} constituents", **place, jet=jet, remedy="give counts ≥ 0, increasing offsets"
        )
    # Of 2^63 particles, only nonsense has more: the sum in floating point cannot wrap around.
    if values.sum(dtype=np.float64) != n_particles:
        raise InputError(
            f"the jets have {values.sum(dtype=np.float64):.0f} constituents, p4 has {n_particles}",
            **place,
            remedy="let them add up to the rows of p4",
        )
    return values


@contextmanager
def _readable(file: Path, field: str | None = None) -> Iterator[None]:
    """The many ways in which a damaged archive shows itself, as one."""
    try:
        yield
    except _DAMAGED as problem:
        what = " ".join(str(problem).split())
        raise InputError(
            f"is truncated, damaged, or no .npz archive ({what})", file=file, field=field, remedy=_REMEDY
        ) from problem
    except RuntimeError as problem:  # an encrypted archive
        raise InputError(f"cannot be read ({problem})", file=file, field=field, remedy=_REMEDY) from problem
    except OSError as problem:
        raise InputError(
            f"cannot be read ({problem.strerror or problem})", file=file, field=field, remedy="check the file"
        ) from problem
