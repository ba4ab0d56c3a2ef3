"""The top-tagging reference set: the official HDF5 files, and ``.npz`` files with the same jets without padding.

G. Kasieczka, T. Plehn, J. Thompson, M. Russell, "Top Quark Tagging Reference Dataset", doi:10.5281/zenodo.2603256;
arXiv:1902.09914. Pythia 8 at 14 TeV, Delphes (ATLAS card), anti-kT jets with R = 0.8 and 550 < pT < 650 GeV, |η| < 2.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401 - registers Blosc, with which the official files are compressed
import numpy as np
from numpy.typing import NDArray

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.sources.chunks import Chunk, check_labels, existing_files, four_vectors, pieces
from jetrep.sources.npz import Npz, counts_of

__all__ = ["CLASSES", "TopTagging"]

CLASSES = ("qcd", "top")

_TRAIN, _TEST = 0, 1  # values of the column ``ttv``; 2 is the validation split
_PARTS = ("E", "PX", "PY", "PZ")
_SHARD_JETS = 10_000
_OFFICIAL = "give an official file of zenodo.org/records/2603256"


class TopTagging:
    """Jets of the top-tagging reference set.

    HDF5 files hold a pandas table under the key ``table``: columns E_i, PX_i, PY_i, PZ_i (zero-padded), the top
    quark's truthE …, the split ``ttv`` and the label ``is_signal_new`` (1 = top). ``.npz`` files hold ``p4``
    (ΣN, 4), ``n``, ``y`` and ``ttv``.

    Args:
        files: ``.h5`` or ``.npz`` files.
        labels: read the labels.
        duplicates: ``.npz`` file with ``train_dup``, ``test_dup`` and ``train_test_overlap``, rows (i, j, y_i, y_j) of
            official indices. The second jet of each pair within a split, and the test jet of each overlap, are
            flagged "duplicate".

    Attributes:
        classes: ("qcd", "top"), or () without labels.
        files: the files.
        rows: number of jets of each.

    Raises:
        InputError: if a file is missing, damaged or of another schema.
    """

    def __init__(self, files: Sequence[Path], *, labels: bool = True, duplicates: Path | None = None) -> None:
        self.files = existing_files(files)
        self.classes: tuple[str, ...] = CLASSES if labels else ()
        self._duplicates = None if duplicates is None else _Duplicates(duplicates)
        self.rows = [_length(file) for file in self.files]
        if self._duplicates is not None:
            for file in self.files:
                _first_index(file)

    def read(self, file: int, start: int, stop: int) -> Iterator[Chunk]:
        """Jets ``start:stop`` of one file.

        Raises:
            InputError: if the file proves to be damaged, or a label is not 0 or 1.
        """
        path = self.files[file]
        seen = _splits_before(path, start) if self._duplicates is not None else {}
        for p4, counts, y, ttv in _read(path, start, stop):
            p4, offsets = four_vectors(p4, counts)
            labels = check_labels(y, file=path, field="label", start=start, n_classes=len(CLASSES))
            flags = {}
            if self._duplicates is not None:
                index = _official_index(ttv, _first_index(path), seen)
                flags["duplicate"] = self._duplicates.among(ttv, index, labels, path, start)
            jets = Jets(p4, offsets, labels if self.classes else None, self.classes)
            yield Chunk(jets, path, start, flags)
            start += len(jets)


Rows = tuple[NDArray[Any], NDArray[np.int64], NDArray[Any], NDArray[Any]]


def _length(file: Path) -> int:
    if file.suffix == ".npz":
        with Npz(file) as archive:
            for name in ("p4", "n", "y", "ttv"):
                archive.column(name)
            return archive.column("n").rows
    with _table(file) as table:
        _columns(table, file)
        return len(table)


def _read(file: Path, start: int, stop: int) -> Iterator[Rows]:
    """Four-vectors (n, 4), constituents per jet, label, split of jets ``start:stop``: a chunk of jets at a time."""
    return _read_npz(file, start, stop) if file.suffix == ".npz" else _read_hdf5(file, start, stop)


def _splits_before(file: Path, start: int) -> dict[int, int]:
    """Number of jets of each split among the first ``start`` of a file."""
    if file.suffix == ".npz":
        with Npz(file) as archive:
            ttv = archive.whole("ttv")[:start]
    else:
        with _table(file) as table:
            field, place = _columns(table, file)["ttv"]
            # This field alone, a piece at a time: the others are all that is in the file.
            parts = [table.fields(field)[begin:end] for begin, end in pieces(0, start)]
            ttv = np.concatenate([np.zeros(0), *(part if place is None else part[:, place] for part in parts)])
    splits, counts = np.unique(ttv, return_counts=True)
    return dict(zip(splits.tolist(), counts.tolist(), strict=True))


def _read_npz(file: Path, start: int, stop: int) -> Iterator[Rows]:
    with Npz(file) as archive:
        p4 = archive.column("p4")
        if len(p4.shape) != 2 or p4.shape[1] != 4:
            raise InputError(
                f"has shape {p4.shape}", file=file, field="p4", remedy="give (N, 4) numbers: E, px, py, pz"
            )
        counts, y, ttv = counts_of(archive, p4.rows), archive.whole("y"), archive.whole("ttv")
        if not len(counts) == len(y) == len(ttv):
            raise InputError(
                f"n, y and ttv have lengths {len(counts)}, {len(y)}, {len(ttv)}", file=file, remedy=_OFFICIAL
            )
        p4.skip(int(counts[:start].sum()))
        for begin, end in pieces(start, stop):
            part = slice(begin, end)
            yield p4.read(int(counts[part].sum())), counts[part], y[part], ttv[part]


def _read_hdf5(file: Path, start: int, stop: int) -> Iterator[Rows]:
    with _table(file) as table:
        columns = _columns(table, file)
        width = sum(name.startswith("E_") for name in columns)
        names = [f"{part}_{i}" for i in range(width) for part in _PARTS]
        for begin, end in pieces(start, stop):
            rows = table[begin:end]
            p4 = _values(rows, names, columns).reshape(-1, 4)
            counts = np.full(len(rows), width, np.int64)
            label, ttv = (_values(rows, [name], columns)[:, 0] for name in ("is_signal_new", "ttv"))
            yield p4, counts, label, ttv


@contextmanager
def _table(file: Path) -> Iterator[Any]:
    """The table that pandas wrote under the key ``table``."""
    try:
        with h5py.File(file, "r") as hdf5:
            yield hdf5.get("table/table")
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, EOFError) as problem:
        raise InputError(
            "is truncated, damaged, or no HDF5 file", file=file, remedy="download it again and compare its checksum"
        ) from problem


def _columns(table: Any, file: Path) -> dict[str, tuple[str, int | None]]:
    """Where each column stands: the field of the table, and the place within it if pandas put several into one."""
    if not isinstance(table, h5py.Dataset) or table.ndim != 1 or table.dtype.names is None:
        raise InputError("has no pandas table under the key 'table'", file=file, field="table", remedy=_OFFICIAL)
    columns: dict[str, tuple[str, int | None]] = {}
    for field in table.dtype.names:
        if table.dtype[field].shape == ():
            columns[field] = (field, None)
        elif len(table.dtype[field].shape) == 1:
            names = _unpickled_names(table.attrs.get(f"{field}_kind"))
            columns |= {name: (field, place) for place, name in enumerate(names[: table.dtype[field].shape[0]])}
    width = max(1, sum(name.startswith("E_") for name in columns))
    wanted = [f"{part}_{i}" for i in range(width) for part in _PARTS] + ["is_signal_new", "ttv"]
    for name in wanted:
        if name not in columns:
            raise InputError("the column is missing", file=file, field=name, remedy=_OFFICIAL)
        if table.dtype[columns[name][0]].base.kind not in "iufb":
            raise InputError("the column holds no numbers", file=file, field=name, remedy=_OFFICIAL)
    return columns


class _NamesOnly(pickle.Unpickler):
    """pandas pickles the names of the columns; a pickle from elsewhere may hold names, and never run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name}")


def _unpickled_names(attribute: Any) -> list[str]:
    """The column names in an attribute of the table; empty if there are none."""
    if not isinstance(attribute, bytes):
        return []
    try:
        names = _NamesOnly(io.BytesIO(attribute), encoding="latin1").load()
    except Exception:  # a damaged pickle can raise anything
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def _values(rows: NDArray[Any], names: Sequence[str], columns: dict[str, tuple[str, int | None]]) -> NDArray[Any]:
    """Columns as one array (n_rows, n_names); at once where they stand together, as they do in official files."""
    fields, places = zip(*(columns[name] for name in names), strict=True)
    if len(set(fields)) == 1 and None not in places:
        return np.asarray(rows[fields[0]][:, list(places)])
    parts = []
    for name in names:
        field, place = columns[name]
        parts.append(rows[field] if place is None else rows[field][:, place])
    return np.stack(parts, -1)


def _first_index(file: Path) -> int | None:
    """Official index of a file's first jet within its split; None for HDF5, where each split begins with 0."""
    if file.suffix != ".npz":
        return None
    match = re.fullmatch(r".*_(\d+)a?", file.stem)
    if match is None:
        raise InputError(
            "the name does not tell which official jets these are, so no duplicates can be found",
            file=file,
            remedy="name it top_train_00.npz, top_test_01a.npz …, or leave out --duplicates",
        )
    return int(match[1]) * _SHARD_JETS


def _official_index(ttv: NDArray[Any], first: int | None, seen: dict[int, int]) -> NDArray[np.int64]:
    """Index of each jet within its split; ``seen`` counts the jets of each split so far in this file."""
    index = np.zeros(len(ttv), np.int64)
    for split in np.unique(ttv).tolist():
        here = ttv == split
        index[here] = (first or 0) + seen.get(split, 0) + np.arange(here.sum())
        seen[split] = seen.get(split, 0) + int(here.sum())
    return index


class _Duplicates:
    """Jets that occur a second time, by split and official index, with the label they must have."""

    def __init__(self, file: Path) -> None:
        self.file = existing_files([file])[0]
        with Npz(self.file) as archive:
            within = {_TRAIN: self._pairs(archive, "train_dup"), _TEST: self._pairs(archive, "test_dup")}
            overlap = self._pairs(archive, "train_test_overlap")
        again = {_TRAIN: within[_TRAIN], _TEST: np.concatenate([within[_TEST], overlap])}
        self._labels = {
            split: dict(zip(pairs[:, 1].tolist(), pairs[:, 3].tolist(), strict=True)) for split, pairs in again.items()
        }

    def _pairs(self, archive: Npz, name: str) -> NDArray[Any]:
        pairs = archive.whole(name)
        if pairs.ndim != 2 or pairs.shape[1] != 4 or pairs.dtype.kind not in "iu":
            raise InputError(
                f"has shape {pairs.shape}", file=self.file, field=name, remedy="give integer rows (i, j, y_i, y_j)"
            )
        return pairs.astype(np.int64)

    def among(
        self, ttv: NDArray[Any], index: NDArray[np.int64], labels: NDArray[np.int64], file: Path, start: int
    ) -> NDArray[np.bool_]:
        """(n_jets,) mask of the jets that occur a second time.

        Raises:
            InputError: if such a jet has another label than listed: then the list belongs to other files.
        """
        mask = np.zeros(len(index), np.bool_)
        for split, expected in self._labels.items():
            for jet in np.flatnonzero((ttv == split) & np.isin(index, list(expected))).tolist():
                if labels[jet] != expected[int(index[jet])]:
                    raise InputError(
                        f"has another label than listed in {self.file}",
                        file=file,
                        jet=start + jet,
                        remedy="give the list of duplicates of these very files",
                    )
                mask[jet] = True
        return mask
