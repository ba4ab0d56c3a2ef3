"""Columns of a file, whatever its format: numbers, and lists of numbers as one flat array with counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jetrep.errors import InputError

__all__ = ["Lists", "Table", "not_finite", "one_hot_labels", "same_counts", "small_integers"]


class Lists(NamedTuple):
    """A column of lists: one list for each row.

    Attributes:
        values: (n,) all values, row after row.
        counts: (rows,) how many of them belong to each row.
    """

    values: NDArray[Any]
    counts: NDArray[np.int64]


class Table(NamedTuple):
    """Consecutive rows of a file.

    Attributes:
        start: index of the first row within the file.
        numbers: columns of one number a row, (rows,) each.
        lists: columns of one list a row.
    """

    start: int
    numbers: dict[str, NDArray[Any]]
    lists: dict[str, Lists]


def same_counts(lists: Mapping[str, Lists], *, file: Path, start: int, row: str = "jet") -> NDArray[np.int64]:
    """Lengths of the lists, (rows,), which must be the same in all columns.

    Args:
        lists: columns that describe the same things, at least one.
        file: where they come from.
        start: index of the first row within the file.
        row: what a row is called.

    Raises:
        InputError: naming the first row in which they differ.
    """
    (first, (_, counts)), *others = lists.items()
    for name, (_, other) in others:
        if not np.array_equal(other, counts):
            at = int(np.argmax(other != counts))
            raise InputError(
                f"{row} {start + at} has {other[at]} values, but {counts[at]} in '{first}'",
                file=file,
                field=name,
                remedy="the file is damaged or was skimmed wrongly: write or download it again",
            )
    return counts


def small_integers(
    lists: Lists, *, low: int = 0, high: int = 1, file: Path, field: str, start: int
) -> NDArray[np.int8]:
    """Charges and flags as int8, whichever type the file has for them.

    Args:
        lists: the column.
        low: the lowest value allowed.
        high: the highest, at most 127.
        file: where it comes from.
        field: its name.
        start: index of the first jet within the file.

    Raises:
        InputError: naming the first jet with a number that is not whole, or out of range.
    """
    values = lists.values
    if values.dtype == np.bool_:
        return values.view(np.int8)
    with np.errstate(invalid="ignore", over="ignore"):
        result = values.astype(np.int8)
    bad = (result != values) | (result < low) | (result > high)
    if bad.any():
        at = int(np.argmax(bad))
        raise InputError(
            f"holds {values[at]}",
            file=file,
            jet=start + int(np.searchsorted(np.cumsum(lists.counts), at, side="right")),
            field=field,
            remedy=f"give whole numbers from {low} to {high}",
        )
    return result


def one_hot_labels(one_hot: NDArray[Any], *, file: Path, field: str, start: int) -> NDArray[np.int64]:
    """The class of each jet, (n_jets,), from one-hot labels (n_jets, n_classes) of any numeric type.

    Raises:
        InputError: naming the first jet that is not of exactly one class.
    """
    good = ((one_hot == 0) | (one_hot == 1)).all(1) & ((one_hot != 0).sum(1) == 1)
    if not good.all():
        at = int(np.argmin(good))
        found = {place: one_hot[at, place].item() for place in np.flatnonzero(one_hot[at] != 0).tolist()}
        raise InputError(
            f"not exactly one label is set to 1, but by index {found}" if found else "no label is set",
            file=file,
            jet=start + at,
            field=field,
            remedy="give one-hot labels, or read with --unlabeled",
        )
    label: NDArray[np.int64] = one_hot.argmax(1)
    return label


def not_finite(columns: Iterable[NDArray[Any]], offsets: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
    """The flag "not finite" of jets in which a measured number is NaN or infinite, if there are such jets.

    Args:
        columns: (n_particles,) each.
        offsets: (n_jets + 1,) where jets begin and end.
    """
    bad = np.zeros(int(offsets[-1]), np.bool_)
    for column in columns:
        bad |= ~np.isfinite(column)
    if not bad.any():
        return {}
    flag = np.zeros(len(offsets) - 1, np.bool_)
    flag[np.searchsorted(offsets, np.flatnonzero(bad), side="right") - 1] = True
    return {"not finite": flag}
