"""A number with its spread, and how to print the two: with digits that match."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from jetrep.errors import InputError

__all__ = ["Measurement", "format_measurement", "pdg_round"]


@dataclass(frozen=True)
class Measurement:
    """A measured value, its error, and what they rest on.

    Attributes:
        value: the central value, or the bound if ``limit``.
        error: total standard error; NaN if ``limit``. The quadratic sum of the two components below where both exist.
        low: lower end of the 68.27 % interval; equal to ``value`` if ``limit``.
        high: upper end of it; infinite if it is not bounded.
        n: number of jets that the value rests on (for a rejection: the background jets that pass), if known.
        limit: True if ``value`` is a lower limit because there was nothing to count.
        sampling_error: component from the finite number of jets (bootstrap).
        seed_error: component from the training seed: standard deviation over seeds with ddof = 1; None for one seed.
        n_seeds: number of trained models behind the value.
    """

    value: float
    error: float
    low: float
    high: float
    n: int | None = None
    limit: bool = False
    sampling_error: float | None = None
    seed_error: float | None = None
    n_seeds: int = 1

    def to_json(self) -> dict[str, Any]:
        """Plain types for JSON, which knows no infinity or NaN: they become None."""
        return {key: _finite_or_none(value) for key, value in vars(self).items()}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Measurement:
        """The inverse of `to_json`.

        Raises:
            InputError: if the record lacks a key or has an unknown one.
        """
        record = dict(record)
        try:
            for key, missing in (("value", math.nan), ("error", math.nan), ("low", -math.inf), ("high", math.inf)):
                record[key] = missing if record[key] is None else float(record[key])
            return cls(**record)
        except (KeyError, TypeError, ValueError) as problem:
            raise InputError(
                f"not a measurement ({problem})", field="measurement", remedy="give value, error, low and high"
            ) from problem

    def __str__(self) -> str:
        return format_measurement(self)


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _error_decimals(error: float) -> int:
    """Decimal places of an error under the rule of the Particle Data Group (negative: tens, hundreds …).

    Of the three leading digits of the error, 100–354 keep two digits, 355–949 one, and 950–999 become 1000 and keep
    two (Review of Particle Physics, Introduction, section "Rounding").
    """
    exponent = math.floor(math.log10(error))
    leading = round(error / 10.0 ** (exponent - 2))
    if leading >= 1000:  # 0.09999 has the leading digits 1000, one decade up
        leading, exponent = leading // 10, exponent + 1
    if leading <= 354:
        return 1 - exponent
    return -exponent


def _fixed(number: float, decimals: int) -> str:
    """``number`` rounded to ``decimals`` places; zeros stand in for digits left of the point that are not known."""
    text = f"{round(number, decimals):.{max(0, decimals)}f}"
    return text[1:] if text.startswith("-") and not text.strip("-0.") else text


def pdg_round(value: float, *errors: float) -> tuple[str, ...]:
    """Value and errors as text with matching digits; the smallest error that is not zero sets the number of digits.

    Without an error that is finite and positive, the value keeps four significant digits.

    Args:
        value: the value.
        *errors: its errors.

    Returns:
        The value and each of the errors; "?" stands for an error that is not finite.
    """
    usable = [error for error in errors if math.isfinite(error) and error > 0]
    if not math.isfinite(value):
        return (str(value), *("?" for _ in errors))
    four_digits = 3 - (math.floor(math.log10(abs(value))) if value else 0)
    decimals = _error_decimals(min(usable)) if usable else four_digits
    return (_fixed(value, decimals), *(_fixed(e, decimals) if math.isfinite(e) else "?" for e in errors))


def format_measurement(measurement: Measurement, errors: str = "total") -> str:
    """A measurement as text: ``0.9840 ± 0.0010``, or ``> 1700`` for a limit.

    Args:
        measurement: what to print.
        errors: ``total`` error; ``seeds``: the spread over training seeds alone (the total if there is one seed);
            ``both``: ± seeds ± sampling, in this order.
    """
    m = measurement
    if m.limit:
        # Two digits, rounded down: a lower limit must not claim more than it knows.
        unit = 10.0 ** (math.floor(math.log10(m.value)) - 1) if m.value > 0 else 1.0
        return f"> {math.floor(m.value / unit) * unit:g}"
    if errors == "both" and m.seed_error is not None and m.sampling_error is not None:
        return " ± ".join(pdg_round(m.value, m.seed_error, m.sampling_error))
    if errors == "seeds" and m.seed_error is not None:
        return " ± ".join(pdg_round(m.value, m.seed_error))
    return " ± ".join(pdg_round(m.value, m.error)[: 2 if math.isfinite(m.error) else 1])
