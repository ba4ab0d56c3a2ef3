"""Rounding after the Particle Data Group, limits, JSON."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetrep.errors import InputError
from jetrep.report.measurement import Measurement, format_measurement, pdg_round


@pytest.mark.parametrize(
    ("value", "error", "expected"),
    [
        # The three examples of the Review of Particle Physics.
        (0.827, 0.119, ("0.83", "0.12")),
        (0.827, 0.367, ("0.8", "0.4")),
        (0.827, 0.96, ("0.8", "1.0")),
        (418.0, 354.0, ("420", "350")),
        (418.0, 355.0, ("400", "400")),
        (418.0, 47.0, ("420", "50")),
        (0.98404, 0.000949, ("0.9840", "0.0009")),
        (0.98404, 0.000951, ("0.9840", "0.0010")),
        (9.99, 0.09999, ("9.99", "0.10")),
        (12345.0, 951.0, ("12300", "1000")),
        (-0.0001, 0.02, ("0.000", "0.020")),
        (1.0, 0.0, ("1.000", "0.000")),
        (0.123456, math.nan, ("0.1235", "?")),
        (math.nan, 0.1, ("nan", "?")),
    ],
)
def test_rounding(value, error, expected):
    assert pdg_round(value, error) == expected


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e5))
def test_rounding_keeps_two_digits_of_the_error_or_one_and_matches_them(value, error):
    text, error_text = pdg_round(value, error)
    # No more than 5 % of the error is lost on the error, 15 % where one digit is kept (355 → 400).
    assert abs(float(error_text) - error) <= 0.15 * error
    assert abs(float(text) - value) <= 0.5 * error
    assert len(text.partition(".")[2]) == len(error_text.partition(".")[2])
    assert len(error_text.replace(".", "").strip("0")) <= 2


def test_text_of_a_measurement():
    one = Measurement(0.98404, 0.0008, 0.983, 0.985)
    assert str(one) == "0.9840 ± 0.0008"
    seeds = Measurement(0.98, 0.0036, 0.97, 0.99, sampling_error=0.002, seed_error=0.003, n_seeds=3)
    assert format_measurement(seeds) == "0.980 ± 0.004"
    assert format_measurement(seeds, "seeds") == "0.9800 ± 0.0030"
    assert format_measurement(seeds, "both") == "0.9800 ± 0.0030 ± 0.0020"
    assert format_measurement(one, "both") == str(one)


@given(st.floats(1.0, 1e7))
def test_a_limit_is_never_rounded_up(value):
    text = str(Measurement(value, math.nan, value, math.inf, 0, limit=True))
    assert text.startswith("> ")
    assert 0.9 * value <= float(text[2:]) <= value * (1 + 1e-12)


@given(st.builds(Measurement, *[st.floats() for _ in range(4)], st.none() | st.integers(0, 9), st.booleans()))
def test_json_round_trip(measurement):
    record = json.loads(json.dumps(measurement.to_json(), allow_nan=False))
    again = Measurement.from_json(record)
    for name in ("value", "error", "low", "high"):
        before, after = getattr(measurement, name), getattr(again, name)
        assert before == after or not np.isfinite(before)
    assert (again.n, again.limit) == (measurement.n, measurement.limit)


def test_a_malformed_record_is_refused():
    for record in ({"value": 1.0}, {"value": "x", "error": 0, "low": 0, "high": 0}, {}):
        with pytest.raises(InputError, match="measurement"):
            Measurement.from_json(record)
    with pytest.raises(InputError, match="colour"):
        Measurement.from_json({"value": 1, "error": 1, "low": 1, "high": 1, "colour": "red"})
