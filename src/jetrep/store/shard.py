"""One shard: an Arrow IPC file whose columns map into memory as the arrays of `Jets`.

A shard holds one uncompressed record batch. Row j is jet j:

==================  =====================================  =====================================================
column              Arrow type                             content
==================  =====================================  =====================================================
``p4``              large_list<fixed_size_list<float>[4]>  constituents, (E, px, py, pz) in GeV, descending pT
``order``           large_list<int32>                      merge history (see `physics.clustering`)
``join``            large_list<int32>                      merge history
``d_ij``            large_list<float>                      merge history
``label``           int64                                  index into the classes; absent if unlabelled
``measured.NAME``   large_list<number>                     `Jets.measured`, one column each; absent if there is none
``observer.NAME``   number                                 `Jets.observers`, one column each; absent if there is none
==================  =====================================  =====================================================

The four components of a constituent lie side by side, so the child buffer of ``p4`` *is* the (n, 4) array that
everything else works on. A column for each component would have to be interleaved, hence copied, on every read.
"""

from __future__ import annotations

import json
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.physics.clustering import MergeHistory
from jetrep.store.manifest import SCHEMA, Columns

__all__ = ["MappedShard", "columns_of", "map_shard", "read_shard", "write_shard"]

_P4 = pa.list_(pa.field("component", pa.float32(), nullable=False), 4)
_REMEDY = "prepare the store again, or restore the file from a copy"


def _large_list(item: pa.DataType, name: str) -> pa.DataType:
    return pa.large_list(pa.field(name, item, nullable=False))


_COLUMNS = {
    "p4": _large_list(_P4, "constituent"),
    "order": _large_list(pa.int32(), "particle"),
    "join": _large_list(pa.int32(), "merge"),
    "d_ij": _large_list(pa.float32(), "distance"),
}


_MEASURED, _OBSERVER = "measured.", "observer."


def _schema(columns: dict[str, pa.DataType], metadata: dict[str, Any] | None = None) -> pa.Schema:
    note = {"jetrep": json.dumps(metadata)} if metadata else None
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()], note)


def _expected(schema: pa.Schema, labelled: bool) -> pa.Schema:
    """The schema that a shard with the extra columns of ``schema`` must have."""
    columns = {**_COLUMNS, "label": pa.int64()} if labelled else dict(_COLUMNS)
    for name, kind in zip(schema.names, schema.types, strict=True):
        if name.startswith(_MEASURED) and pa.types.is_large_list(kind) and _is_number(kind.value_type):
            columns[name] = _large_list(kind.value_type, "constituent")
        elif name.startswith(_OBSERVER) and _is_number(kind):
            columns[name] = kind
    return _schema(columns)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def columns_of(jets: Jets) -> Columns:
    """Names and NumPy types of measured columns and observers."""
    return {
        "measured": {name: values.dtype.name for name, values in jets.measured.items()},
        "observers": {name: values.dtype.name for name, values in jets.observers.items()},
    }


def write_shard(path: Path, jets: Jets, *, algorithm: str, R: float) -> None:
    """Write clustered jets as one shard.

    Args:
        path: the file.
        jets: the jets, with their histories.
        algorithm: clustering algorithm, noted in the file so that a shard explains itself when read elsewhere.
        R: its radius parameter.

    Raises:
        OSError: whatever the file system says.
    """
    history = jets.history
    if history is None:
        raise ValueError("jets have not been clustered")
    offsets = pa.array(jets.offsets)
    flat = {
        "p4": pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(jets.p4).reshape(-1)), type=_P4),
        "order": _plain(history.order),
        "join": _plain(history.join),
        "d_ij": _plain(history.d_ij),
        **{_MEASURED + name: _plain(values) for name, values in jets.measured.items()},
    }
    kinds = {name: _COLUMNS.get(name) or _large_list(values.type, "constituent") for name, values in flat.items()}
    columns = {name: pa.LargeListArray.from_arrays(offsets, values, type=kinds[name]) for name, values in flat.items()}
    if jets.labels is not None:
        columns["label"] = pa.array(jets.labels)
    columns |= {_OBSERVER + name: _plain(values) for name, values in jets.observers.items()}
    note = {
        "schema": SCHEMA,
        "p4": "E, px, py, pz in GeV",
        "classes": jets.classes,
        "clustering": {"algorithm": algorithm, "R": R},
    }
    schema = _schema({name: values.type for name, values in columns.items()}, note)
    batch = pa.record_batch(list(columns.values()), schema=schema)
    # No compression: a compressed buffer cannot be mapped.
    options = pa.ipc.IpcWriteOptions(compression=None)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema, options=options) as writer:
        writer.write_batch(batch)


@dataclass(frozen=True, eq=False)
class MappedShard:
    """A shard in mapped memory. Files are unmapped when nobody holds their arrays any more.

    Attributes:
        jets: views of the mapped file, read-only.
        memory: the mapping.
    """

    jets: Jets
    memory: mmap.mmap

    def will_need(self, values: NDArray[Any]) -> None:
        """Tell the system that these values, a part of the mapped file, are about to be read.

        It begins to read them in one go instead of page by page; this returns at once.
        """
        if values.nbytes and hasattr(mmap, "MADV_WILLNEED"):
            base = np.frombuffer(self.memory, np.uint8).ctypes.data
            start = (values.ctypes.data - base) // mmap.PAGESIZE * mmap.PAGESIZE
            self.memory.madvise(mmap.MADV_WILLNEED, start, values.ctypes.data - base + values.nbytes - start)

    def release(self) -> None:
        """Give the pages that were read back to the system; they are read again where they are used again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self.memory.madvise(mmap.MADV_DONTNEED)


def read_shard(path: Path, classes: tuple[str, ...]) -> Jets:
    """Map a shard into memory; the arrays of the result are views of the mapped file, read-only.

    Args:
        path: the file.
        classes: names of its labels; empty if it must be unlabelled.

    Raises:
        InputError: if the file is missing, truncated or of another schema.
    """
    return map_shard(path, classes).jets


def map_shard(path: Path, classes: tuple[str, ...]) -> MappedShard:
    """`read_shard`, together with the mapping, for those who read more than fits into memory."""
    try:
        with path.open("rb") as file:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(memory)))
        batch = reader.get_batch(0) if reader.num_record_batches == 1 else None
        names = batch.schema.names if batch is not None else []  # fails if one is no text
    except FileNotFoundError:
        raise InputError("the shard is missing", file=path, remedy=_REMEDY) from None
    except (OSError, pa.ArrowException, ValueError) as problem:
        raise InputError("the shard is truncated or damaged", file=path, remedy=_REMEDY) from problem
    if batch is None or set(batch.schema) != set(_expected(batch.schema, bool(classes))):
        raise InputError("the columns are not those of a jetrep shard", file=path, remedy=_REMEDY)
    offsets = _offsets(batch, path)
    order, join, d_ij = (_view(batch.column(name).values, path) for name in ("order", "join", "d_ij"))
    history = MergeHistory(order, join, d_ij, offsets)
    p4 = _view(batch.column("p4").values.values, path).reshape(-1, 4)
    labels = _view(batch.column("label"), path) if classes else None
    extra = {name: batch.column(name) for name in names}
    measured = {n.removeprefix(_MEASURED): _view(c.values, path) for n, c in extra.items() if n.startswith(_MEASURED)}
    observers = {n.removeprefix(_OBSERVER): _view(c, path) for n, c in extra.items() if n.startswith(_OBSERVER)}
    try:
        return MappedShard(Jets(p4, offsets, labels, classes, history, measured, observers), memory)
    except InputError as problem:
        raise InputError(f"the shard is damaged ({problem})", file=path, remedy=_REMEDY) from problem


def _plain(values: NDArray[Any]) -> Any:
    return pa.array(np.ascontiguousarray(values))


def _view(values: Any, path: Path) -> NDArray[Any]:
    """The numbers of an Arrow array, where they are. Arrow's own ``to_numpy`` loads pandas, and its 40 MB, for this."""
    if values.null_count:
        raise InputError("the columns have gaps", file=path, remedy=_REMEDY)
    kind = np.dtype(values.type.to_pandas_dtype())
    if not len(values):
        return np.empty(0, kind)
    return np.frombuffer(values.buffers()[1], kind, len(values), values.offset * kind.itemsize)


def _offsets(batch: Any, path: Path) -> NDArray[np.int64]:
    """The common offsets of the list columns."""
    try:
        batch.validate()
        lists = [column for column in batch.columns if pa.types.is_large_list(column.type)]
        offsets = [_view(column.offsets, path) for column in lists]
        lengths = [len(column.values) for column in lists]
    except pa.ArrowException as problem:
        raise InputError("the shard is damaged", file=path, remedy=_REMEDY) from problem
    same = all(np.array_equal(offsets[0], other) for other in offsets[1:]) and len(set(lengths)) == 1
    if not same or any(column.null_count for column in batch.columns):
        raise InputError("the columns belong to different jets", file=path, remedy=_REMEDY)
    result: NDArray[np.int64] = offsets[0]
    return result
