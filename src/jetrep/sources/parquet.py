"""Jets in Parquet files: list columns of four-vector components, read row group by row group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jetrep.errors import InputError
from jetrep.sources._tables import Lists, Table
from jetrep.sources.chunks import CHUNK, Rows

__all__ = ["column", "length", "names", "read", "rows", "tables"]

_ENERGY = ("E", "energy", "e")
_REMEDY = "give list columns E, px, py, pz, or one list column p4 of [E, px, py, pz]"


def names(file: Path) -> tuple[str, ...]:
    """Names of the columns."""
    with _opened(file) as table:
        return tuple(table.schema_arrow.names)


def length(file: Path) -> int:
    """Number of jets; also checks that there are columns with four-vectors."""
    with _opened(file) as table:
        _components(table.schema_arrow.names, file)
        return int(table.metadata.num_rows)


def rows(file: Path) -> int:
    """Number of rows, whatever the columns are."""
    with _opened(file) as table:
        return int(table.metadata.num_rows)


def tables(file: Path, numbers: Sequence[str], lists: Sequence[str], start: int, stop: int) -> Iterator[Table]:
    """Rows ``start:stop`` of columns that the file is known to have, a chunk at a time.

    Raises:
        InputError: if a column of ``numbers`` holds anything but one number a row, or one of ``lists`` anything but a
            list of numbers.
    """
    with _opened(file) as table:
        for batch in row_range(table, [*numbers, *lists], start, stop):
            yield Table(
                start,
                {name: _plain(batch.column(name), file, name, start, what="values") for name in numbers},
                {name: _lists_of_numbers(batch.column(name), file, name, start) for name in lists},
            )
            start += batch.num_rows


def column(file: Path, name: str) -> NDArray[Any]:
    """One plain column, (n_jets,).

    Raises:
        InputError: if it is a list or text column, or has empty places.
    """
    with _opened(file) as table:
        return _plain(table.read(columns=[name]).column(name).combine_chunks(), file, name, 0)


def read(file: Path, label_column: str | None, start: int, stop: int) -> Iterator[Rows]:
    """Jets ``start:stop`` of a file, a chunk at a time.

    Raises:
        InputError: if the columns are no lists of numbers, or the lists of a jet differ in length.
    """
    with _opened(file) as table:
        components = _components(table.schema_arrow.names, file)
        wanted = [*components, *([label_column] if label_column else [])]
        for batch in row_range(table, wanted, start, stop):
            lists = [_list(batch.column(name), file, name, start) for name in components]
            counts = lists[0][1]
            for name, (_, other) in zip(components, lists, strict=True):
                if not np.array_equal(other, counts):
                    jet = int(np.argmax(other != counts))
                    raise InputError(
                        f"{other[jet]} values, but {counts[jet]} in '{components[0]}'",
                        file=file,
                        jet=start + jet,
                        field=name,
                        remedy="give lists of the same length",
                    )
            p4 = lists[0][0] if len(lists) == 1 else np.stack([values for values, _ in lists], -1)
            if p4.ndim != 2 or p4.shape[1] != 4:
                raise InputError("holds no lists of four numbers", file=file, field=components[0], remedy=_REMEDY)
            labels = _plain(batch.column(label_column), file, label_column, start) if label_column else None
            yield Rows(p4, counts, labels)
            start += len(counts)


def row_range(table: Any, columns: list[str], start: int, stop: int) -> Iterator[Any]:
    """Record batches of the rows ``start:stop`` of an open Parquet file; only the row groups they lie in are read."""
    ends = np.cumsum([table.metadata.row_group(i).num_rows for i in range(table.metadata.num_row_groups)])
    first, last = (int(np.searchsorted(ends, *at)) for at in ((start, "right"), (stop, "left")))
    row = int(ends[first - 1]) if first else 0
    for batch in table.iter_batches(CHUNK, row_groups=list(range(first, min(last + 1, len(ends)))), columns=columns):
        begin, end = max(start - row, 0), min(stop - row, batch.num_rows)
        row += batch.num_rows
        if begin < end:
            yield batch.slice(begin, end - begin)


def _components(columns: list[str], file: Path) -> list[str]:
    """The columns that hold the four-vectors: one, or four in the order E, px, py, pz."""
    for prefix in ("", "part_"):
        energy = next((prefix + name for name in _ENERGY if prefix + name in columns), None)
        momentum = [prefix + name for name in ("px", "py", "pz")]
        if energy and set(momentum) <= set(columns):
            return [energy, *momentum]
    if "p4" in columns:
        return ["p4"]
    missing = next((name for name in ("px", "py", "pz") if name not in columns), "E")
    raise InputError(f"has columns {', '.join(columns)}", file=file, field=missing, remedy=_REMEDY)


def _lists_of_numbers(array: Any, file: Path, field: str, start: int) -> Lists:
    """A column of lists of numbers or booleans."""
    array = _storage(array)
    values = _storage(array.flatten()) if _is_list(array.type) else None
    if values is not None and pa.types.is_boolean(values.type):
        _forbid_nulls(array, file, field, start)
        counts = pc.list_value_length(array).to_numpy(zero_copy_only=False).astype(np.int64)
        if values.null_count:
            raise InputError("a value is missing", file=file, field=field, remedy="fill it, or leave out the jet")
        return Lists(values.to_numpy(zero_copy_only=False), counts)
    result = Lists(*_list(array, file, field, start))
    if result.values.ndim != 1:
        raise InputError(f"is {array.type}, not lists of numbers", file=file, field=field, remedy="give one list a row")
    return result


def _list(array: Any, file: Path, field: str, start: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Flat values (n,) or (n, 4) of a list column, and the length of each list (n_jets,)."""
    array = _storage(array)
    if not _is_list(array.type):
        raise InputError(f"is {array.type}, not lists of numbers", file=file, field=field, remedy=_REMEDY)
    _forbid_nulls(array, file, field, start)
    counts = pc.list_value_length(array).to_numpy(zero_copy_only=False).astype(np.int64)
    values = _storage(array.flatten())
    if _is_list(values.type):
        vectors = pc.list_value_length(values).to_numpy(zero_copy_only=False)
        if values.null_count or (vectors != 4).any():
            raise InputError("a constituent has not four components", file=file, field=field, remedy=_REMEDY)
        return _numbers(values.flatten(), file, field).reshape(-1, 4), counts
    return _numbers(values, file, field), counts


def _numbers(values: Any, file: Path, field: str) -> NDArray[Any]:
    """Numbers, as they are; empty places become NaN."""
    values = _storage(values)
    if not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type)):
        raise InputError(f"holds {values.type}, not numbers", file=file, field=field, remedy=_REMEDY)
    result: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return result


def _plain(array: Any, file: Path, field: str, start: int, *, what: str = "labels") -> NDArray[Any]:
    array = _storage(array)
    kind = array.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise InputError(
            f"{what} are {kind}, not numbers",
            file=file,
            field=field,
            remedy="give whole numbers, 0 for the first class" if what == "labels" else "give one number a row",
        )
    _forbid_nulls(array, file, field, start)
    result: NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return result


def _forbid_nulls(array: Any, file: Path, field: str, start: int) -> None:
    if array.null_count:
        jet = int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))
        raise InputError(
            "the value is missing", file=file, jet=start + jet, field=field, remedy="fill it, or leave out the jet"
        )


def _storage(array: Any) -> Any:
    """Plain Arrow arrays under awkward's and other extension types."""
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with pq.ParquetFile(file) as table:
            yield table
    except (pa.ArrowException, OSError, ValueError) as problem:
        reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise InputError(
            f"is truncated, damaged, or no Parquet file ({reason})", file=file, remedy="write or copy it again"
        ) from problem
