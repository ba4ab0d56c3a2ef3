"""Conditions on jets: what they mean, how jets that fail are counted, what is said of mistakes."""

import math
import operator
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.sources.chunks import Chunk
from jetrep.store import StoreWriter
from jetrep.store.selection import Selection

OPERATORS = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


def chunk_of(p4, counts, *, observers=None, labels=None, classes=(), flags=None) -> Chunk:
    offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    jets = Jets(np.asarray(p4, np.float32).reshape(-1, 4), offsets, labels, classes, observers=observers or {})
    return Chunk(jets, Path("a.root"), 0, flags or {})


def jet(pt: float, eta: float = 0.0, phi: float = 0.0, mass: float = 0.0) -> list[float]:
    """A jet of one particle."""
    pz = pt * math.sinh(eta)
    return [math.hypot(pt, pz, mass), pt * math.cos(phi), pt * math.sin(phi), pz]


ONES = [jet(400, 1.5, 0.5, 80), jet(500, -1.0, -3.0, 0), jet(600, 2.5, 2.0, 173), jet(700, -2.2, 0.0, 20)]


def kept(chunk: Chunk, *where: str, **settings) -> list[int]:
    """Indices of the jets that fulfil all conditions, by the number that each carries as an observer."""
    numbered = Jets(
        chunk.jets.p4,
        chunk.jets.offsets,
        chunk.jets.labels,
        chunk.jets.classes,
        observers={**chunk.jets.observers, "number": np.arange(len(chunk.jets))},
    )
    jets, n, dropped = Selection(where=where, **settings).apply(Chunk(numbered, chunk.file, 0, chunk.flags))
    assert n == len(chunk.jets) == len(jets) + sum(dropped.values())
    return jets.observers["number"].tolist()


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("pt > 550", [2, 3]),
        ("pt<=550.5", [0, 1]),
        ("eta < 0", [1, 3]),
        ("abs(eta) < 2", [0, 1]),
        ("  eta>=-1.5e0 ", [0, 1, 2]),
        ("phi < -1", [1]),
        ("mass >= 30", [0, 2]),
        ("mass < 1", [1]),
        ("n_constituents == 1", [0, 1, 2, 3]),
        ("n_constituents != 1", []),
        ("n_constituents > .5", [0, 1, 2, 3]),
    ],
)
def test_each_quantity_is_that_of_the_jet(condition, expected):
    assert kept(chunk_of(ONES, [1, 1, 1, 1]), condition) == expected


def test_quantities_are_of_the_sum_of_all_constituents_whatever_is_kept_of_them():
    # Back to back in φ: 300 GeV against 100 GeV give a jet of 200 GeV, pT sums 400, the hardest alone 300.
    chunk = chunk_of([jet(300), jet(100, phi=math.pi), jet(250)], [2, 1])
    assert kept(chunk, "pt < 220", max_particles=1) == [0]
    assert kept(chunk, "n_constituents > 1", max_particles=1) == [0]
    jets, _, _ = Selection(max_particles=1, where=("n_constituents > 1",)).apply(chunk)
    assert jets.counts.tolist() == [1]


def test_the_first_condition_that_fails_is_counted():
    chunk = chunk_of(
        [*ONES, jet(450, 0, 0, 0), [math.nan] * 4],
        [1, 1, 1, 1, 0, 1, 1],
        labels=np.array([0, 1, 0, 1, 0, 0, 0]),
        classes=("qcd", "top"),
        flags={"duplicate": np.array([False, False, True, False, False, False, False])},
    )
    selection = Selection(("qcd",), drop_invalid=True, where=("pt>420", "mass >= 30", "pt > 1e3"))
    jets, n, dropped = selection.apply(chunk)
    assert (len(jets), n) == (0, 7)
    assert list(dropped) == ["duplicate", "other class", "invalid", "empty", "not pt > 420", "not mass >= 30"]
    assert list(dropped.values()) == [1, 2, 1, 1, 1, 1]


def test_jets_that_a_source_flags_as_of_another_class_stay_out():
    chunk = chunk_of(
        ONES, [1] * 4, labels=np.zeros(4, np.int64), classes=("qcd", "top"), flags={"other class": np.arange(4) > 2}
    )
    assert Selection(("qcd",)).apply(chunk)[2] == {"other class": 1}
    assert Selection(("top",)).apply(chunk)[2] == {"other class": 4}


def test_an_invalid_jet_is_an_error_unless_it_is_to_be_dropped():
    chunk = chunk_of([ONES[0], [math.inf, 1, 0, 0]], [1, 1])
    with pytest.raises(InputError, match="jet 1, field 'E'"):
        Selection(where=("pt > 500",)).apply(chunk)


def test_observers():
    big = 2**53 + 1
    observers = {
        "msd": np.array([80, np.nan, 173, 20], np.float32),
        "event": np.array([big, big - 1, 3, 4]),
        "tag": np.array([True, False, True, False]),
        "tenth": np.array([0.1, 0.2, 0.1, np.nan], np.float32),
    }
    chunk = chunk_of(ONES, [1, 1, 1, 1], observers=observers)
    assert kept(chunk, "observer:msd > 30") == [0, 2]
    assert kept(chunk, "observer:msd <= 30") == [3]
    assert kept(chunk, "observer:msd != 20") == [0, 2]  # the jet without a mass fulfils nothing
    assert kept(chunk, f"observer:event == {big}") == [0]  # exactly, although a double cannot hold it
    assert kept(chunk, f"observer:event < {10**30}") == [0, 1, 2, 3]
    assert kept(chunk, "observer:tag == 1") == [0, 2]
    assert kept(chunk, "observer:tag>-1") == [0, 1, 2, 3]
    assert kept(chunk, "observer:tenth == 0.1") == [0, 2]  # as the file holds it
    assert kept(chunk, "observer:tenth < 1e300") == [0, 1, 2]
    assert kept(chunk, "observer:msd > 30", "observer:event > 3") == [0]


def test_missing_observers_are_named_with_those_there_are():
    chunk = chunk_of(ONES, [1, 1, 1, 1], observers={"msd": np.ones(4), "tau1": np.ones(4)})
    with pytest.raises(InputError, match=r"a.root, field 'where': has no observer 'mass', only msd, tau1;"):
        Selection(where=("observer:mass > 3",)).apply(chunk)
    with pytest.raises(InputError, match="no observer 'mass', only none"):
        Selection(where=("observer:mass > 3",)).apply(chunk_of(ONES, [1, 1, 1, 1]))
    with pytest.raises(InputError, match="observer 'msd' is <U1, not numbers"):
        Selection(where=("observer:msd > 3",)).apply(chunk_of(ONES, [1] * 4, observers={"msd": np.array(list("abcd"))}))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pt",
        "pt >",
        "pt > x",
        "pt > 5 GeV",
        "pt >> 5",
        "pt = 5",
        "pt => 5",
        "5 < pt",
        "2 < pt < 5",
        "energy > 5",
        "PT > 5",
        "label == top",
        "pt > inf",
        "pt > nan",
        "pt > 1e999",
        "pt > 1" + "0" * 400,
        "observer: > 5",
        "observer > 5",
        "abs(pt) > 5",
        "pt > 5 and mass > 3",
        "pt > 5, mass > 3",
        "pt > __import__('os').getpid()",
        "pt > 5\nmass > 3",
        "pt > 1_000",
        "pt > 0x10",
        "pt > \u0663",
    ],
)
def test_what_is_no_condition_is_refused_with_the_vocabulary(text):
    with pytest.raises(InputError, match="field 'where'") as complaint:
        Selection(where=(text,))
    for word in ("pt, eta, abs(eta), phi, mass, n_constituents", "observer:NAME", "< <= > >= == !=", "--select"):
        assert word in str(complaint.value)


@given(st.text(max_size=30) | st.from_regex(r"(pt|observer:\w+|mass) ?(<|>|=|!)+ ?[\d.e+-]+", fullmatch=True))
def test_no_text_is_understood_half(text):
    try:
        (condition,) = Selection(where=(text,))._conditions
    except InputError:
        return
    assert "".join(condition.text.split()) == "".join(text.split())
    assert float(condition.text.split()[-1]) == condition.bound


def test_selections_travel_to_other_processes():
    selection = Selection(where=("pt > 500", "observer:msd < 3"))
    again = pickle.loads(pickle.dumps(selection))
    assert again == selection
    assert again._conditions == selection._conditions


def oracle(constituents: list[list[float]], observer: float, quantity: str) -> float:
    """A quantity of one jet, with sums in plain Python."""
    if quantity.startswith("observer:"):
        return observer
    if quantity == "n_constituents":
        return len(constituents)
    e, px, py, pz = (math.fsum(component) for component in zip(*constituents, strict=True))
    pt = math.hypot(px, py)
    return {
        "pt": pt,
        "eta": math.asinh(pz / pt),
        "abs(eta)": abs(math.asinh(pz / pt)),
        "phi": math.atan2(py, px),
        "mass": math.sqrt(max(e * e - px * px - py * py - pz * pz, 0.0)),
    }[quantity]


PARTICLES = st.builds(
    jet,
    st.floats(1, 500, width=32),
    st.floats(-2.5, 2.5, width=32),
    st.floats(-1, 1, width=32),
    st.floats(0.5, 20, width=32),
)
JETS = st.lists(
    st.tuples(st.lists(PARTICLES, max_size=4), st.one_of(st.floats(-5, 5), st.just(math.nan))), min_size=1, max_size=12
)
CONDITIONS = st.lists(
    st.tuples(
        st.sampled_from(["pt", "eta", "abs(eta)", "phi", "mass", "n_constituents", "observer:x"]),
        st.sampled_from(list(OPERATORS)),
        st.floats(-3, 300).map(lambda bound: round(bound, 2)),
    ),
    max_size=4,
)


@given(JETS, CONDITIONS, st.one_of(st.none(), st.integers(1, 6)))
def test_against_a_slow_reading_of_the_rules(jets, conditions, limit):
    p4 = np.array([p for constituents, _ in jets for p in constituents], np.float32).reshape(-1, 4)
    counts = [len(constituents) for constituents, _ in jets]
    chunk = chunk_of(p4, counts, observers={"x": np.array([x for _, x in jets])})
    where = tuple(f"{quantity}{sign}{bound}" for quantity, sign, bound in conditions)

    expected, number, read = Counter(), [], 0
    for i, (_, observer) in enumerate(jets):
        if limit is not None and len(number) == limit:
            break
        read += 1
        constituents = chunk.jets[i].astype(np.float64).tolist()
        if not constituents:
            expected["empty"] += 1
            continue
        for quantity, sign, bound in conditions:
            value = oracle(constituents, observer, quantity)
            # Rounding decides about values at the bound itself; it is not what is tested here.
            if quantity in ("pt", "eta", "abs(eta)", "phi", "mass") and math.isclose(value, bound, abs_tol=1e-3):
                return
            if math.isnan(value) or not OPERATORS[sign](value, bound):
                expected[f"not {quantity} {sign} {bound}"] += 1
                break
        else:
            number.append(i)

    result, n, dropped = Selection(where=where).apply(chunk, limit)
    assert (n, dropped) == (read, dict(expected))
    np.testing.assert_array_equal(result.p4, chunk.jets[number].p4)
    assert n == len(result) + sum(dropped.values())


def test_a_store_without_jets_tells_why(tmp_path):
    writer = StoreWriter(tmp_path / "s", provenance={})
    jets, _, dropped = Selection(where=("pt > 550", "mass > 200")).apply(chunk_of(ONES, [1, 1, 1, 1, 0]))

    def store():
        with writer:
            writer.write(jets)
            for reason, n in dropped.items():
                writer.drop(reason, n)

    with pytest.raises(InputError, match=r"no jets to store \(dropped: 1 empty, 2 not pt > 550, 2 not mass > 200\)"):
        store()
