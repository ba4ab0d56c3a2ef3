"""The containers: exchange with awkward, selection, concatenation, padding, and what they refuse."""

from dataclasses import replace
from itertools import pairwise

import awkward as ak
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from jetrep.errors import InputError
from jetrep.jets import JetBatch, Jets
from jetrep.physics import fourvector as fv
from jetrep.views.rg import ALL, subjets

CLASSES = ("qcd", "top")


def make(counts: list[int], *, seed: int = 0, labelled: bool = True, clustered: bool = True) -> Jets:
    rng = np.random.default_rng(seed)
    n = sum(counts)
    p4 = fv.from_ptetaphim(
        np.exp(rng.normal(1, 1, n)), rng.normal(0, 0.4, n), rng.normal(0, 0.4, n), np.full(n, 0.14)
    ).astype(np.float32)
    labels = rng.integers(0, 2, len(counts)) if labelled else None
    jets = Jets(p4, np.concatenate([[0], np.cumsum(counts)]), labels, CLASSES if labelled else ())
    return jets.clustered() if clustered else jets


def assert_same(a: Jets, b: Jets) -> None:
    assert_array_equal(a.p4, b.p4)
    assert_array_equal(a.offsets, b.offsets)
    assert (a.labels is None) == (b.labels is None)
    if a.labels is not None:
        assert_array_equal(a.labels, b.labels)
    assert a.classes == b.classes
    assert (a.history is None) == (b.history is None)
    if a.history is not None and b.history is not None:
        for name in ("order", "join", "d_ij", "offsets"):
            assert_array_equal(getattr(a.history, name), getattr(b.history, name))


def with_columns(jets: Jets) -> Jets:
    """The jets with a measured column that says which constituent it is, and an observer that says which jet."""
    particle, jet = np.arange(len(jets.p4), dtype=np.int16), np.arange(len(jets)) / 2
    return replace(jets, measured={"number": particle}, observers={"half": jet})


def shares_memory(array: ak.Array, p4: np.ndarray) -> bool:
    return np.shares_memory(np.asarray(array.layout.content.contents[0].data), p4)


def test_arrays_are_used_as_they_are() -> None:
    p4, offsets = np.ones((3, 4), np.float32), np.array([0, 3])
    jets = Jets(p4, offsets)
    assert jets.p4 is p4
    assert jets.offsets is offsets
    assert Jets(p4.astype(np.float64), [0, 3]).p4.dtype == np.float32


def test_awkward_view_copies_nothing_and_comes_back() -> None:
    jets = make([4, 0, 7, 1], labelled=False, clustered=False)
    array = jets.to_awkward()
    assert shares_memory(array, jets.p4)
    assert ak.num(array).tolist() == [4, 0, 7, 1]
    assert array.px[2, 3] == jets[2][3, fv.PX]
    assert_same(Jets.from_awkward(array), jets)
    # Any arrangement in memory will do.
    assert_same(Jets.from_awkward(array[::-1]), jets[::-1])
    assert_same(Jets.from_awkward(array[2:]), jets[2:])


@pytest.mark.parametrize("energy", ["E", "energy", "e", "t"])
def test_awkward_energy_goes_by_several_names(energy: str) -> None:
    record = ak.zip({energy: [[3.0]], "px": [[1.0]], "py": [[2.0]], "pz": [[0.5]]})
    jets = Jets.from_awkward(record, labels=np.array([1]), classes=CLASSES)
    assert_array_equal(jets.p4, [[3.0, 1.0, 2.0, 0.5]])
    assert_array_equal(jets.labels, [1])


@pytest.mark.parametrize("missing", ["E", "px", "pz"])
def test_awkward_without_a_component_is_refused(missing: str) -> None:
    columns = {name: [[1.0]] for name in ("E", "px", "py", "pz") if name != missing}
    with pytest.raises(InputError, match=f"field '{missing}'"):
        Jets.from_awkward(ak.zip(columns))


def test_jet_p4_is_summed_in_double_precision() -> None:
    # In single precision 1e-8 is lost beside 1, however often it is added.
    p4 = np.full((20_001, 4), 1e-8, np.float32)
    p4[0] = 1.0
    jets = Jets(p4, np.array([0, 0, 20_001]))
    np.testing.assert_allclose(jets.jet_p4, [[0] * 4, [1.0002] * 4], rtol=1e-7)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.data())
@settings(max_examples=50, deadline=None)
def test_selections_agree_with_one_by_one(counts: list[int], data: st.DataObject) -> None:
    jets = make(counts)
    n = len(counts)
    start, stop = data.draw(st.integers(-n - 1, n + 1)), data.draw(st.integers(-n - 1, n + 1))
    step = data.draw(st.sampled_from([None, 1, 2, -1, -3]))
    rows = data.draw(st.lists(st.integers(-n, n - 1), max_size=6))
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    for index in (slice(start, stop, step), np.array(rows, np.int64), rows, mask):
        part = jets[index]
        chosen = np.arange(n)[np.asarray(index, np.int64) if isinstance(index, list) else index]
        assert len(part) == len(chosen)
        assert_array_equal(part.labels, jets.labels[chosen])
        for i, jet in enumerate(chosen):
            assert_array_equal(part[i], jets[int(jet)])
        assert_same(part, Jets(part.p4, part.offsets, part.labels, part.classes).clustered())


def test_contiguous_slices_are_views() -> None:
    jets = make([4, 3, 5])
    part = jets[1:]
    assert np.shares_memory(part.p4, jets.p4)
    assert np.shares_memory(part.history.order, jets.history.order)
    assert_array_equal(part.offsets, [0, 3, 8])
    with pytest.raises(IndexError):
        jets[3]


@given(st.lists(st.lists(st.integers(0, 6), max_size=4), min_size=1, max_size=4), st.booleans(), st.booleans())
@settings(max_examples=30, deadline=None)
def test_concatenation_undoes_slicing(parts: list[list[int]], labelled: bool, clustered: bool) -> None:
    whole = make([n for part in parts for n in part], labelled=labelled, clustered=clustered)
    edges = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
    pieces = [whole[int(a) : int(b)] for a, b in pairwise(edges)]
    assert_same(Jets.concatenate(pieces), whole)


def test_concatenation_drops_a_partial_history_and_refuses_mixed_labels() -> None:
    a = make([3, 2])
    assert Jets.concatenate([a, make([4], clustered=False)]).history is None
    with pytest.raises(InputError, match="labels"):
        Jets.concatenate([a, make([4], labelled=False)])
    with pytest.raises(InputError, match="classes"):
        Jets.concatenate([a, a.with_labels(a.labels, ("top", "qcd"))])


@given(st.lists(st.integers(0, 12), min_size=1, max_size=6), st.integers(1, 8))
@settings(max_examples=30, deadline=None)
def test_leading_keeps_the_hardest(counts: list[int], n: int) -> None:
    jets = make(counts, clustered=False)
    leading = jets.leading(n)
    assert_array_equal(leading.counts, np.minimum(counts, n))
    for i in range(len(jets)):
        expected = np.sort(fv.pt(jets[i].astype(np.float64)))[::-1][:n]
        assert_array_equal(fv.pt(leading[i].astype(np.float64)), expected)
    assert_array_equal(jets.sorted_by_pt().counts, counts)


def test_subjets_conserve_momentum_and_labels() -> None:
    jets = make([12, 0, 2, 30])
    coarse = jets.subjets(4)
    assert_array_equal(coarse.counts, [4, 0, 2, 4])
    np.testing.assert_allclose(coarse.jet_p4, jets.jet_p4, rtol=1e-6, atol=1e-5)
    assert_array_equal(coarse.labels, jets.labels)
    assert coarse.history is None
    assert_array_equal(jets.subjets(d_cut=np.inf).counts, [1, 0, 1, 1])
    with pytest.raises(InputError, match="history"):
        coarse.subjets(2)
    with pytest.raises(InputError):
        jets.subjets(2, d_cut=3.0)


def test_batch_pads_with_zeros_and_loses_nothing() -> None:
    jets = make([3, 0, 5, 1])
    batch = jets.batch()
    assert batch.p4.shape == (4, 5, 4)
    assert batch.counts.tolist() == [3, 0, 5, 1]
    assert_array_equal(batch.p4[batch.mask].numpy(), jets.p4)
    assert not batch.p4[~batch.mask].any()
    np.testing.assert_allclose(batch.jet_p4.numpy(), jets.jet_p4, rtol=1e-6)
    assert_array_equal(batch.labels.numpy(), jets.labels)
    assert_array_equal(batch.order[batch.mask].numpy(), jets.history.order)
    assert_array_equal(batch.join[batch.mask].numpy(), jets.history.join)
    # Padding points at itself and begins no subjet.
    assert_array_equal(batch.order[1].numpy(), range(5))
    assert (batch.join[~batch.mask] == -1).all()


def test_batch_of_a_selection_is_the_batch_of_the_selected() -> None:
    jets = make([3, 8, 5, 1])
    for index in (slice(2, None), [3, 0], np.array([True, False, True, False])):
        one, other = jets.batch(index), jets[index].batch()
        for name in ("p4", "mask", "jet_p4", "labels", "order", "join"):
            assert torch.equal(getattr(one, name), getattr(other, name))
    bare = make([2, 3], labelled=False, clustered=False).batch().to("cpu")
    assert isinstance(bare, JetBatch)
    assert bare.labels is None
    assert bare.order is None
    assert len(bare) == 2


@pytest.mark.parametrize(
    ("arguments", "field", "jet"),
    [
        ((np.ones((3, 3)), [0, 3]), "p4", None),
        ((np.ones((3, 4)), [0, 2]), "offsets", None),
        ((np.ones((3, 4)), [1, 3]), "offsets", None),
        ((np.ones((3, 4)), []), "offsets", None),
        ((np.ones((3, 4)), [0, 3, 2, 3]), "offsets", 1),
        ((np.ones((3, 4)), [0, 3], [0, 1]), "labels", None),
        ((np.ones((3, 4)), [0, 1, 3], [0, 2], CLASSES), "labels", 1),
        ((np.ones((3, 4)), [0, 1, 3], [-1, 0], CLASSES), "labels", 0),
    ],
)
def test_what_is_not_jets_is_refused(arguments: tuple, field: str, jet: int | None) -> None:
    with pytest.raises(InputError) as error:
        Jets(*arguments)
    assert (error.value.field, error.value.jet) == (field, jet)


@given(counts=st.lists(st.integers(0, 9), min_size=1, max_size=12), data=st.data())
@settings(max_examples=40, deadline=None)
def test_columns_stay_with_their_constituents_and_jets(counts: list[int], data: st.DataObject) -> None:
    jets = with_columns(make(counts))
    rows = data.draw(st.lists(st.integers(0, len(jets) - 1), max_size=8))
    for index in (np.array(rows, np.int64), slice(1, None, 2), slice(0, 3), np.arange(len(jets)) % 2 == 0):
        part = jets[index]
        assert_array_equal(part.observers["half"], np.arange(len(jets))[index] / 2)
        assert_array_equal(part.p4, jets.p4[part.measured["number"]])
    leading = jets.leading(3)
    assert_array_equal(leading.p4, jets.p4[leading.measured["number"]])
    twice = Jets.concatenate([jets, jets])
    assert_array_equal(twice.p4, jets.p4[twice.measured["number"]])
    assert twice.measured["number"].dtype == np.int16
    batch = jets.batch()
    number = batch.measured["number"]
    assert number.dtype == torch.float32
    assert_array_equal(batch.p4[batch.mask].numpy(), jets.p4[number[batch.mask].int().numpy()])
    assert (number[~batch.mask] == 0).all()


def test_views_of_subjets_have_no_measured_columns() -> None:
    jets = with_columns(make([5, 2]))
    assert not jets.subjets(2).measured
    assert not subjets(jets.batch(), 2).measured
    assert "number" in subjets(jets.batch(), ALL).measured
    assert "half" in jets.subjets(2).observers


def test_columns_of_the_wrong_length_and_different_columns_are_refused() -> None:
    jets = make([3, 2])
    with pytest.raises(InputError, match="measured 'charge' has shape \\(2,\\) for 5 constituents"):
        replace(jets, measured={"charge": np.zeros(2)})
    with pytest.raises(InputError, match="observers 'weight' has shape \\(5,\\) for 2 jets"):
        replace(jets, observers={"weight": np.zeros(5)})
    with pytest.raises(InputError, match="only some of the parts have the measured number"):
        Jets.concatenate([jets, with_columns(jets)])
