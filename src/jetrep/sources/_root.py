"""Trees in ROOT files, read range by range through uproot: only the branches wanted, a bounded number of rows."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uproot
from numpy.typing import NDArray

from jetrep.errors import InputError
from jetrep.sources._tables import Lists, Table
from jetrep.sources.chunks import CHUNK

__all__ = ["Tree"]

_NUMBER, _LIST, _INTEGERS = "one number", "a list of numbers", "a list of integers"
_AGAIN = "download it again and compare its checksum"


class Tree:
    """A tree of a ROOT file, opened for reading; use it in a ``with`` block.

    Args:
        file: the file.
        name: name of the tree.
        remedy: what to do about a file that holds something else.

    Attributes:
        names: its branches.
        rows: number of its entries.

    Raises:
        InputError: if the file is no ROOT file, damaged, or has no such tree; it names the trees that are there.
    """

    def __init__(self, file: Path, name: str, *, remedy: str) -> None:
        self.file, self._remedy = file, remedy
        with _readable(file):
            # A mapping: in a plain name, uproot takes what follows a colon for the name of the tree.
            self._directory = uproot.open(
                {str(file): None}, handler=uproot.MemmapSource, object_cache=None, array_cache=None
            )
        try:
            self._check_length()
            self._tree = self._find(name)
            with _readable(file):
                self.names = tuple(str(branch) for branch in self._tree.keys(recursive=False))
                self.rows = int(self._tree.num_entries)
            if self.rows < 0:
                raise InputError(f"claims to have {self.rows} entries", file=file, field=name, remedy=_AGAIN)
        except BaseException:
            self._directory.close()
            raise

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *error: object) -> None:
        self._directory.close()

    def _check_length(self) -> None:
        """What is missing from a transfer that was cut off may be a basket that is needed only after hours."""
        with _readable(self.file):
            there, expected = self.file.stat().st_size, int(self._directory.file.fEND)
        if there < expected:
            raise InputError(f"is truncated: {there} of {expected} bytes", file=self.file, remedy=_AGAIN)

    def _find(self, name: str) -> Any:
        with _readable(self.file):
            kinds = {str(key): str(kind) for key, kind in self._directory.classnames(cycle=False).items()}
        trees = [key for key, kind in kinds.items() if kind.startswith(("TTree", "TNtuple"))]
        if name in trees:
            with _readable(self.file, name):
                return self._directory[name]
        if name in kinds:
            problem = f"'{name}' is a {kinds[name]}, not a TTree"
        else:
            problem = f"has no tree '{name}', only {', '.join(repr(tree) for tree in trees) or 'none at all'}"
        raise InputError(problem, file=self.file, field=name, remedy=self._remedy)

    def require(
        self,
        *,
        numbers: Sequence[str] = (),
        lists: Sequence[str] = (),
        integers: Sequence[str] = (),
        remedy: str | None = None,
    ) -> None:
        """Check that branches are there, and what they hold.

        Args:
            numbers: branches with one number for each entry.
            lists: branches with a list of numbers for each entry.
            integers: branches with a list of integers for each entry.
            remedy: what to do if they are not, if it differs from that of the tree.

        Raises:
            InputError: naming the first branch that is missing or holds something else.
        """
        for names, wanted in ((numbers, (_NUMBER,)), (lists, (_LIST, _INTEGERS)), (integers, (_INTEGERS,))):
            for name in names:
                if name not in self.names:
                    raise InputError("the branch is missing", file=self.file, field=name, remedy=remedy or self._remedy)
                with _readable(self.file, name):
                    branch = self._tree[name]
                    found, kind = _kind(branch.interpretation), str(branch.typename)
                if found not in wanted:
                    raise InputError(
                        f"the branch is {kind}, not {wanted[0]} for each entry",
                        file=self.file,
                        field=name,
                        remedy=remedy or self._remedy,
                    )

    def read(
        self, numbers: Sequence[str], lists: Sequence[str], start: int, stop: int, *, step: int | None = None
    ) -> Iterator[Table]:
        """Entries ``start:stop``, at most ``step`` (`CHUNK`, if None) at a time.

        Raises:
            InputError: if a branch is damaged.
        """
        for begin, rows, arrays in self.arrays({*numbers, *lists}, start, stop, step or CHUNK):
            with _readable(self.file, _entries(begin, rows)):
                table = Table(
                    begin,
                    {name: _numbers(arrays[name], rows) for name in numbers},
                    {name: _lists(arrays[name], rows) for name in lists},
                )
            yield table

    def arrays(
        self, names: Collection[str], start: int, stop: int, step: int
    ) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """Entries ``start:stop`` of some branches, at most ``step`` at a time: the first, their number, awkward arrays.

        Raises:
            InputError: if a branch is damaged.
        """
        self._check_range(start, stop)
        with _readable(self.file):
            # By filter, not by expression: expressions go through the aliases that a file brings along.
            steps = self._tree.iterate(
                filter_name=lambda name: name in names,
                entry_start=start,
                entry_stop=stop,
                step_size=step,
                library="ak",
                how=dict,
            )
        while start < stop:
            rows = min(step, stop - start)
            with _readable(self.file, _entries(start, rows)):
                arrays: dict[str, Any] = next(steps, {})
            yield start, rows, arrays
            start += rows

    def _check_range(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.rows:
            raise InputError(
                f"has {self.rows} entries now, and {start} to {stop} were asked for",
                file=self.file,
                remedy="leave files alone while they are read",
            )


def _kind(interpretation: Any) -> str | None:
    """What a branch holds for each entry, if it is something that we read."""
    if isinstance(interpretation, uproot.AsJagged):
        return {"f": _LIST, "b": _LIST, "i": _INTEGERS, "u": _INTEGERS}.get(_plain(interpretation.content))
    return _NUMBER if _plain(interpretation) in "biuf" else None


def _plain(interpretation: Any) -> str:
    """The kind of number, as NumPy abbreviates it, or "V" for anything else."""
    if type(interpretation) is not uproot.AsDtype:  # its subclasses pack bits, or share a basket
        return "V"
    dtype = interpretation.to_dtype
    return str(dtype.kind) if dtype.shape == () and dtype.names is None else "V"


def _numbers(array: Any, rows: int) -> NDArray[Any]:
    values = np.asarray(array.layout.data)
    if values.shape != (rows,):
        raise ValueError(f"{len(values)} values in {rows} entries")
    return values


def _lists(array: Any, rows: int) -> Lists:
    offsets = np.asarray(array.layout.offsets.data, np.int64)
    counts = np.diff(offsets)
    values = np.asarray(array.layout.content.data)
    if len(counts) != rows:
        raise ValueError(f"{len(counts)} lists in {rows} entries")
    if offsets[0] < 0 or offsets[-1] > len(values) or counts.min(initial=0) < 0 or values.ndim != 1:
        raise ValueError("the lengths of the lists make no sense")
    return Lists(values[offsets[0] : offsets[-1]], counts)


def _entries(start: int, rows: int) -> str:
    return f"entries {start} to {start + rows - 1}"


@contextmanager
def _readable(file: Path, field: str | None = None) -> Iterator[None]:
    """The many ways in which a damaged file shows itself, as one: uproot lets nearly any exception through."""
    try:
        yield
    except InputError:
        raise
    except PermissionError as problem:
        raise InputError(f"cannot be read ({problem.strerror})", file=file, remedy="check its permissions") from problem
    except Exception as problem:
        first = next((line.strip() for line in str(problem).splitlines() if line.strip()), "")
        reason = f"{type(problem).__name__}: {first[:100]}" if first else type(problem).__name__
        raise InputError(
            f"is truncated, damaged, or no ROOT file ({reason})", file=file, field=field, remedy=_AGAIN
        ) from problem
