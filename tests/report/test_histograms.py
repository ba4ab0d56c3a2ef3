"""Histograms: every value is counted, edges are round, and drawings are what the numbers say."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from jetrep.report import binning
from jetrep.report.histograms import Distribution, histograms
from jetrep.report.terminal import TerminalHistogram, class_rows, key_values

finite = st.floats(-1e6, 1e6, allow_nan=False).map(np.float64)


@given(
    samples=st.lists(st.lists(finite, max_size=50).map(np.array), min_size=1, max_size=3),
    n_bins=st.integers(1, 80),
)
def test_nothing_is_lost_and_edges_are_round(samples, n_bins):
    samples = [np.asarray(sample, np.float64) for sample in samples]
    edges = binning.edges(samples, n_bins)
    widths = np.diff(edges)
    assert (widths > 0).all()
    assert len(widths) <= n_bins + 1
    if sum(map(len, samples)):
        digits = widths[0] / 10 ** np.floor(np.log10(widths[0]) + 1e-9)
        assert min(abs(digits - nice) for nice in (1, 2, 2.5, 5, 10)) < 1e-2
    for sample in samples:
        assert binning.contents(sample, edges).sum() == len(sample)


@given(values=st.lists(st.integers(0, 300), min_size=1, max_size=60), n_bins=st.integers(5, 60))
def test_bins_of_integers_are_centred_on_integers(values, n_bins):
    edges = binning.edges([np.array(values)], n_bins)
    np.testing.assert_array_equal(edges % 1, 0.5)
    assert len(edges) - 1 <= n_bins + 1
    if max(values) - min(values) < n_bins:
        expected = [values.count(int(edge + 0.5)) for edge in edges[:-1]]
        if len(values) < 400:  # the percentiles are then the extremes, up to rounding to the bin
            assert sum(binning.contents(np.array(values), edges)) == len(values)
            assert list(binning.contents(np.array(values), edges))[1:-1] == expected[1:-1]


@given(low=st.floats(-1e4, 1e4), span=st.floats(1e-2, 1e4), n=st.integers(2, 9))
def test_ticks_lie_within_and_are_not_too_many(low, span, n):
    ticks = binning.ticks(low, low + span, n)
    assert len(ticks) <= n + 1
    assert ((ticks >= low - 1e-6 * span) & (ticks <= low + span * (1 + 1e-6))).all()


def draw(renderable, width: int = 100, encoding: str = "utf-8") -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=stream, width=width).print(renderable)
    stream.seek(0)
    return stream.read()


def test_bars_are_as_high_as_the_bins_are_full():
    values = np.repeat([10, 11, 12, 13], [8, 4, 1, 0]).astype(np.int64)
    text = draw(TerminalHistogram("n", {"all": np.append(values, [13] * 6)}, height=1))
    assert text.splitlines()[1].split()[:2] == ["all", "█▄▁▆"]
    tall = draw(TerminalHistogram("n", {"all": np.append(values, [13] * 6)}, height=2)).splitlines()
    assert tall[1].strip() == "█  ▄"
    assert tall[2].split()[1] == "██▂█"


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_it_fits_the_terminal_and_its_alphabet(width, encoding):
    rng = np.random.default_rng(0)
    samples = {"qcd": rng.exponential(50, 500), "top": rng.normal(170, 20, 500), "none": np.zeros(0)}
    lines = draw(TerminalHistogram("mass", samples), width, encoding).splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0] == "mass"
    assert any(line.startswith("none") for line in lines)


def test_the_smallest_classes_are_summed():
    rows = class_rows({f"c{i}": i for i in range(20)}, most=3)
    assert rows == {
        "class c19": "19 jets (10.0%)",
        "class c18": "18 jets (9.5%)",
        "class c17": "17 jets (8.9%)",
        "17 more classes": "136 jets (71.6%)",
    }


def test_names_with_brackets_are_no_markup():
    assert "[bold]" in draw(key_values("t", {"[bold]": "x"}))


def test_the_figure_holds_fractions_and_their_errors():
    samples = {"qcd": np.repeat([1.0, 2.0], [30, 70]), "top": np.full(50, 2.0)}
    figure = histograms([Distribution("x", samples), Distribution("y", samples)], title="both")
    assert len(figure.axes) == 2
    line = figure.axes[0].patches[0]
    assert line.get_data().values.sum() == pytest.approx(1)
    band = figure.axes[0].patches[1].get_data()
    np.testing.assert_allclose((band.values - band.baseline).max(), 2 * np.sqrt(70) / 100)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["qcd (100)", "top (50)"]
