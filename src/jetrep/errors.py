"""Errors whose message is meant for the user: one line that names the place and the remedy."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

__all__ = ["InputError", "JetrepError", "at_least"]


class JetrepError(Exception):
    """Base of all errors that the command line prints as one line, without a traceback."""


class InputError(JetrepError):
    """Something in the user's data or settings cannot be used.

    Args:
        problem: what is wrong, in one sentence without a final stop.
        remedy: what the user can do about it.
        file: the file at fault.
        jet: index of the jet at fault within that file.
        field: the column, key or setting at fault.
    """

    def __init__(
        self,
        problem: str,
        *,
        remedy: str,
        file: str | Path | None = None,
        jet: int | None = None,
        field: str | None = None,
    ) -> None:
        place = ", ".join(
            part
            for part in (
                str(file) if file is not None else "",
                f"jet {jet}" if jet is not None else "",
                f"field '{field}'" if field is not None else "",
            )
            if part
        )
        super().__init__(f"{place + ': ' if place else ''}{problem}; {remedy}")
        self.problem, self.remedy = problem, remedy
        self.file, self.jet, self.field = file, jet, field

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are pickled by their positional arguments; this one comes back whole from a worker process.
        again = partial(type(self), self.problem, remedy=self.remedy, file=self.file, jet=self.jet, field=self.field)
        return again, ()


def at_least(minimum: float, **settings: float | None) -> None:
    """Refuse settings below ``minimum``, NaN among them; None stands for a setting that was not given.

    Raises:
        InputError: naming the first of them.
    """
    for name, value in settings.items():
        if value is not None and not value >= minimum:
            raise InputError(f"is {value}", field=name, remedy=f"give {minimum} or more")
