"""The one progress bar of the project: on standard error, quiet in logs, absent for short work."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(
    iterable: Iterable[Any] | None = None,
    *,
    description: str,
    total: int | None = None,
    unit: str = "jet",
    quiet: bool = False,
) -> tqdm[Any]:
    """A progress bar over ``iterable``, or one to be advanced by ``bar.update(n)``.

    It appears after two seconds. In a terminal it is redrawn in place and vanishes when done; in a log file it is
    printed every 15 seconds, and stays.

    Args:
        iterable: what to iterate over; ``None`` for a bar that is advanced by hand.
        description: what is being done.
        total: number of units of work, if known.
        unit: the unit of work.
        quiet: show nothing.
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        iterable,
        desc=description,
        total=total,
        unit=f" {unit}s",
        unit_scale=True,
        delay=2.0,
        mininterval=0.2 if terminal else 15.0,
        leave=not terminal,
        disable=quiet,
        dynamic_ncols=terminal,
        file=sys.stderr,
    )
