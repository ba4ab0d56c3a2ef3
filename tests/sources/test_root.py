"""Trees are read in ranges as they stand, and whatever is wrong with them is told in one line."""

from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from root_files import lists, write_tree

from jetrep.errors import InputError
from jetrep.sources._root import Tree
from jetrep.sources._tables import Lists, not_finite, one_hot_labels, same_counts, small_integers

COUNTS = np.array([3, 0, 5, 1, 0, 0, 2, 4, 1, 7, 0, 2])
VALUES = np.arange(COUNTS.sum(), dtype=np.float32)
NUMBERS = np.arange(len(COUNTS), dtype=np.int32)


def opened(file: Path, tree: str = "tree") -> Tree:
    return Tree(file, tree, remedy="give another file")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # uproot takes what follows a colon in a name for a tree.
    path = tmp_path_factory.mktemp("root") / "with:colon.root"
    branches = {"x": lists(VALUES, COUNTS), "n": NUMBERS, "unread": lists(-VALUES, COUNTS)}
    return write_tree(path, branches, per_basket=5)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, 12), st.integers(0, 12), st.integers(1, 13))
def test_ranges_are_parts_of_the_whole(file, a, b, step):
    start, stop = min(a, b), max(a, b)
    with opened(file) as tree:
        tables = list(tree.read(["n"], ["x"], start, stop, step=step))
    assert [table.start for table in tables] == list(range(start, stop, step))
    assert all(table.numbers.keys() == {"n"} and table.lists.keys() == {"x"} for table in tables)
    offsets = np.concatenate([[0], np.cumsum(COUNTS)])
    joined = {
        "n": [value for table in tables for value in table.numbers["n"].tolist()],
        "counts": [count for table in tables for count in table.lists["x"].counts.tolist()],
        "x": [value for table in tables for value in table.lists["x"].values.tolist()],
    }
    assert joined["n"] == NUMBERS[start:stop].tolist()
    assert joined["counts"] == COUNTS[start:stop].tolist()
    assert joined["x"] == VALUES[offsets[start] : offsets[stop]].tolist()


def test_values_have_the_byte_order_of_the_machine(file):
    with opened(file) as tree:
        (table,) = tree.read(["n"], ["x"], 0, 12)
    assert table.numbers["n"].dtype == np.int32
    assert table.lists["x"].values.dtype == np.float32


def test_a_tree_without_entries(tmp_path):
    empty = write_tree(tmp_path / "empty.root", {"x": lists(VALUES, COUNTS)[:0], "n": NUMBERS[:0]})
    with opened(empty) as tree:
        tree.require(numbers=["n"], lists=["x"])
        assert tree.rows == 0
        assert list(tree.read(["n"], ["x"], 0, 0)) == []


def test_a_renamed_tree_is_named(file):
    with pytest.raises(InputError, match=r"with:colon.root, field 'Tree': has no tree 'Tree', only 'tree'; give ano"):
        opened(file, "Tree")


def test_what_is_no_tree(tmp_path):
    with uproot.recreate(tmp_path / "histogram.root") as root:
        root["tree"] = np.histogram(VALUES)
    with pytest.raises(InputError, match="'tree' is a TH1D, not a TTree"):
        opened(tmp_path / "histogram.root")
    with pytest.raises(InputError, match="has no tree 'Events', only none at all"):
        opened(tmp_path / "histogram.root", "Events")


@pytest.mark.parametrize(
    ("kind", "branch", "message"),
    [
        ("numbers", "missing", "field 'missing': the branch is missing; give another file"),
        ("lists", "missing", "field 'missing': the branch is missing; give another file"),
        ("numbers", "x", r"field 'x': the branch is float\[\], not one number for each entry"),
        ("lists", "n", "field 'n': the branch is int32_t, not a list of numbers for each entry"),
        ("integers", "x", r"field 'x': the branch is float\[\], not a list of integers for each entry"),
        ("numbers", "vector", r"the branch is float\[3\], not one number"),
        ("lists", "vector", r"the branch is float\[3\], not a list of numbers"),
        ("lists", "flags", None),
        ("integers", "whole", None),
        ("lists", "whole", None),
        ("integers", "flags", "not a list of integers"),
    ],
)
def test_what_a_branch_holds(tmp_path, kind, branch, message):
    n = len(COUNTS)
    branches = {
        "x": lists(VALUES, COUNTS),
        "n": NUMBERS,
        "flags": lists(VALUES > 3, COUNTS),
        "whole": lists(VALUES.astype(np.int32), COUNTS),
    }
    types = {name: ak.type(c).content if isinstance(c, ak.Array) else c.dtype for name, c in branches.items()}
    with uproot.recreate(tmp_path / "kinds.root") as root:
        tree = root.mktree("tree", {**types, "vector": np.dtype(("f4", (3,)))})
        tree.extend({**branches, "vector": np.zeros((n, 3), np.float32)})
    with opened(tmp_path / "kinds.root") as tree:
        if message is None:
            tree.require(**{kind: [branch]})
        else:
            with pytest.raises(InputError, match=message):
                tree.require(**{kind: [branch]})


@pytest.mark.parametrize("content", [b"", b"not ROOT", bytes(1000)])
def test_what_is_no_root_file(tmp_path, content):
    (tmp_path / "a.root").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.root: is truncated, damaged, or no ROOT file .*; download it again"):
        opened(tmp_path / "a.root")


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.99])
def test_a_file_that_ends_early(file, tmp_path, kept):
    content = file.read_bytes()
    (tmp_path / "a.root").write_bytes(content[: int(kept * len(content))])
    with pytest.raises(InputError, match=rf"a\.root: is truncated: \d+ of {len(content)} bytes; download it again"):
        opened(tmp_path / "a.root")


def test_a_corrupted_basket_is_found_when_it_is_read(tmp_path):
    rng = np.random.default_rng(0)
    counts = np.full(2000, 10)
    content = rng.integers(0, 9, counts.sum()).astype(np.float32)  # can be compressed, and so has a checksum
    path = write_tree(tmp_path / "a.root", {"x": lists(content, counts), "y": lists(content, counts)}, per_basket=500)
    with uproot.open(path) as root:
        key = root["tree"]["x"].basket_key(2)
        place = key.fSeekKey + key.fNbytes // 2
    data = bytearray(path.read_bytes())
    data[place : place + 8] = b"\xff" * 8
    path.write_bytes(data)
    with opened(path) as tree:
        tree.require(lists=["x", "y"])
        assert sum(len(t.lists["y"].counts) for t in tree.read([], ["y"], 0, 2000)) == 2000
        assert sum(len(t.lists["x"].counts) for t in tree.read([], ["x"], 0, 1000)) == 1000
        with pytest.raises(InputError, match=r"a\.root, field 'entries 1000 to 1499': is truncated, damaged"):
            list(tree.read([], ["x"], 0, 2000, step=500))


def test_a_file_that_became_shorter(file):
    with opened(file) as tree, pytest.raises(InputError, match="has 12 entries now, and 10 to 13 were asked for"):
        list(tree.read(["n"], [], 10, 13))


def test_lists_of_different_lengths_name_the_jet():
    counts = np.array([2, 1, 3])
    columns = {"px": Lists(VALUES[:6], counts), "py": Lists(VALUES[:6], np.array([2, 2, 2]))}
    with pytest.raises(InputError, match=r"a\.root, field 'py': jet 11 has 2 values, but 1 in 'px'"):
        same_counts(columns, file=Path("a.root"), start=10)
    assert same_counts({"px": columns["px"]}, file=Path("a.root"), start=10) is counts


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int32, np.uint8, np.bool_])
def test_flags_of_any_type(kind):
    column = Lists(np.array([1, 0, 1]).astype(kind), np.array([1, 2]))
    flags = small_integers(column, file=Path("a.root"), field="flag", start=0)
    assert flags.dtype == np.int8
    assert flags.tolist() == [1, 0, 1]


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf, -1, 2, 257, -255])
def test_what_is_no_flag_names_the_jet(value):
    column = Lists(np.array([1, 0, 1, value], np.float32), np.array([1, 0, 2, 1]))
    with pytest.raises(InputError, match=r"a\.root, jet 13, field 'flag': holds .*; give whole numbers from 0 to 1"):
        small_integers(column, file=Path("a.root"), field="flag", start=10)


def test_charges_may_be_negative():
    column = Lists(np.array([-1.0, 2.0]), np.array([2]))
    assert small_integers(column, low=-3, high=3, file=Path("a"), field="charge", start=0).tolist() == [-1, 2]


def test_one_hot_labels_of_any_type():
    one_hot = np.eye(3)[[2, 0, 1]]
    for kind in (np.bool_, np.float32, np.int32):
        labels = one_hot_labels(one_hot.astype(kind), file=Path("a"), field="label", start=0)
        assert labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0, 0, 0], "jet 11, field 'label': no label is set"),
        ([1, 0, 1], "jet 11, field 'label': not exactly one label"),
        ([0, 2, 0], "not exactly one label"),
        ([0, 0.5, 0.5], "not exactly one label"),
        ([np.nan, 1, 0], "not exactly one label"),
    ],
)
def test_labels_that_are_not_one_hot(row, message):
    with pytest.raises(InputError, match=message):
        one_hot_labels(np.array([[1, 0, 0], row], np.float32), file=Path("a"), field="label", start=10)


def test_jets_with_a_number_that_is_not_finite_are_flagged():
    offsets = np.array([0, 0, 2, 2, 5])
    good, bad = np.zeros(5), np.array([0, 0, 0, np.nan, np.inf])
    assert not_finite([good], offsets) == {}
    assert not_finite([good, bad], offsets)["not finite"].tolist() == [False, False, False, True]
    assert not_finite([np.array([np.inf, 0, 0, 0, 0])], offsets)["not finite"].tolist() == [False, True, False, False]
