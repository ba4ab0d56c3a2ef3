"""The JetClass reader: the official schema, field by field, and files that are of another."""

import numpy as np
import pytest
from root_files import CHUNK, JET, JETCLASS, assert_same, check_pieces, jetclass_branches, lists, one_hot, read
from root_files import write_tree as write

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.jets.columns import MEASURED
from jetrep.physics import fourvector
from jetrep.sources.jetclass import CLASSES, JetClass
from random_jets import random_jets
from weaver_arrays import weaver_jets

COUNTS = (3, 1, 40, 0, 12, 7, 1, 90, 2, 5)
BRANCHES = {
    "charge": "part_charge",
    "is_charged_hadron": "part_isChargedHadron",
    "is_neutral_hadron": "part_isNeutralHadron",
    "is_photon": "part_isPhoton",
    "is_electron": "part_isElectron",
    "is_muon": "part_isMuon",
    "d0": "part_d0val",
    "d0_error": "part_d0err",
    "dz": "part_dzval",
    "dz_error": "part_dzerr",
}


@pytest.fixture
def jets() -> Jets:
    return random_jets(COUNTS)


def with_labels(jets: Jets, labels: np.ndarray | None = None) -> dict[str, object]:
    return {**jetclass_branches(jets), **one_hot(np.arange(len(jets)) if labels is None else labels)}


def test_every_field(tmp_path, jets):
    branches = with_labels(jets, np.arange(10)[::-1])
    source = JetClass([write(tmp_path / "a.root", branches)])
    got, flags = read(source)
    assert (source.rows, source.classes, flags) == ([10], CLASSES, {})
    np.testing.assert_array_equal(got.p4, jets.p4)
    np.testing.assert_array_equal(got.offsets, jets.offsets)
    assert [got.classes[label] for label in got.truth] == list(JETCLASS[::-1])
    assert list(got.measured) == list(BRANCHES)
    assert set(got.measured) <= set(MEASURED)
    for name, branch in BRANCHES.items():
        expected = np.asarray(branches[branch].layout.content.data)
        np.testing.assert_array_equal(got.measured[name], expected)
        assert got.measured[name].dtype == (np.float32 if name[:2] in ("d0", "dz") else np.int8)
    assert list(got.observers) == [f"jet_{name}" for name in JET]
    for name, values in got.observers.items():
        np.testing.assert_array_equal(values, branches[name])


def test_files_of_one_class_each_and_of_several(tmp_path, jets):
    labels = [np.full(10, 8), np.full(10, 0), np.arange(10) % 3]
    files = [write(tmp_path / f"{i}.root", with_labels(jets, label)) for i, label in enumerate(labels)]
    source = JetClass(files)
    got, _ = read(source)
    assert source.rows == [10, 10, 10]
    assert got.truth.tolist() == np.concatenate(labels).tolist()


def test_parts_of_a_file(tmp_path, jets, monkeypatch):
    check_pieces(JetClass([write(tmp_path / "a.root", with_labels(jets), per_basket=4)]), monkeypatch, {CHUNK: 2})


@pytest.mark.parametrize("written", [True, False])
def test_unlabelled(tmp_path, jets, written):
    branches = with_labels(jets) if written else jetclass_branches(jets)
    source = JetClass([write(tmp_path / "a.root", branches)], labels=False)
    got, _ = read(source)
    assert (source.classes, got.labels, len(got)) == ((), None, 10)


def test_labels_that_are_missing(tmp_path, jets):
    labelled, bare = write(tmp_path / "a.root", with_labels(jets)), write(tmp_path / "b.root", jetclass_branches(jets))
    with pytest.raises(InputError, match=r"b\.root, field 'label_QCD': the branch is missing; .*--unlabeled"):
        JetClass([labelled, bare])
    some = write(tmp_path / "c.root", {**with_labels(jets), "label_Tbl": None})
    with pytest.raises(InputError, match=r"c\.root, field 'label_Tbl': .*--unlabeled"):
        JetClass([some])


@pytest.mark.parametrize(("name", "jet", "value"), [("label_Hbb", 4, 1), ("label_H4q", 4, 0), ("label_H4q", 4, 0.5)])
def test_labels_that_are_not_one_hot(tmp_path, jets, name, jet, value):
    branches = with_labels(jets)
    branches[name] = np.where(np.arange(10) == jet, np.float32(value), branches[name])
    with pytest.raises(InputError, match=r"a\.root, jet 4, field 'label_\*': (not exactly one|no) label"):
        read(JetClass([write(tmp_path / "a.root", branches)]))


@pytest.mark.parametrize("labels", [True, False])
def test_jetclass_2_is_recognised(tmp_path, jets, labels):
    file = write(tmp_path / "a.root", {**jetclass_branches(jets), "jet_label": np.arange(10, dtype=np.int32)})
    with pytest.raises(InputError, match=r"root, field 'jet_label': is a file of JetClass-II; .*'jetclass2'"):
        JetClass([file], labels=labels)


@pytest.mark.parametrize("name", ["part_px", "part_charge", "part_isMuon", "part_dzerr", "jet_tau4", "jet_energy"])
def test_schemas_that_differ_among_files(tmp_path, jets, name):
    files = [write(tmp_path / "a.root", with_labels(jets))]
    files.append(write(tmp_path / "b.root", {**with_labels(jets), name: None}))
    with pytest.raises(InputError, match=rf"b\.root, field '{name}': the branch is missing; give an official file"):
        JetClass(files)


def test_a_renamed_tree(tmp_path, jets):
    file = write(tmp_path / "a.root", with_labels(jets), tree="Events")
    with pytest.raises(InputError, match="has no tree 'tree', only 'Events'; give an official file"):
        JetClass([file])


def test_numbers_where_lists_belong(tmp_path, jets):
    file = write(tmp_path / "a.root", {**with_labels(jets), "part_py": np.zeros(10, np.float32)})
    with pytest.raises(InputError, match="field 'part_py': the branch is float, not a list of numbers"):
        JetClass([file])


def test_lists_of_different_lengths(tmp_path, jets):
    counts = np.array(COUNTS)
    counts[[2, 4]] += (1, -1)
    d0 = lists(np.zeros(counts.sum(), np.float32), counts)
    with pytest.raises(InputError, match="field 'part_d0val': jet 2 has 41 values, but 40 in 'part_energy'"):
        read(JetClass([write(tmp_path / "a.root", {**with_labels(jets), "part_d0val": d0})]))


@pytest.mark.parametrize(("name", "value"), [("charge", 0.3), ("charge", 300), ("isPhoton", 2), ("isMuon", np.nan)])
def test_charges_and_flags_that_are_none(tmp_path, jets, name, value):
    values = np.zeros(len(jets.p4), np.float32)
    values[jets.offsets[5]] = value
    branches = {**with_labels(jets), f"part_{name}": lists(values, jets.counts)}
    with pytest.raises(InputError, match=rf"a\.root, jet 5, field 'part_{name}': holds {value}"):
        read(JetClass([write(tmp_path / "a.root", branches)]))


@pytest.mark.parametrize("name", ["d0val", "d0err", "dzval", "dzerr"])
def test_impact_parameters_that_are_not_finite_are_flagged(tmp_path, jets, name):
    values = np.zeros(len(jets.p4), np.float32)
    values[[jets.offsets[2], jets.offsets[8] - 1]] = np.nan, -np.inf
    branches = {**with_labels(jets), f"part_{name}": lists(values, jets.counts)}
    got, flags = read(JetClass([write(tmp_path / "a.root", branches)]))
    assert len(got) == 10
    assert np.flatnonzero(flags["not finite"]).tolist() == [2, 7]


def test_momenta_beyond_single_precision_are_left_to_the_store(tmp_path, jets):
    energy = jets.p4[:, 0].astype(np.float64)
    energy[jets.offsets[4]] = 1e300
    branches = {**with_labels(jets), "part_energy": lists(energy, jets.counts)}
    got, flags = read(JetClass([write(tmp_path / "a.root", branches)]))
    assert np.isinf(got[4][0, 0])
    assert flags == {}


def test_padding_in_the_middle_is_removed_with_what_was_measured(tmp_path, jets):
    branches = with_labels(jets)
    slots = np.zeros((len(jets.p4), 2), bool)
    slots[:, 0] = True  # a zero vector after each particle
    slots = slots.reshape(-1)
    for name in [name for name in branches if name.startswith("part_")]:
        values = np.asarray(branches[name].layout.content.data)
        # What padding holds beside a zero momentum must not matter.
        momentum = name in ("part_px", "part_py", "part_pz", "part_energy")
        spread = np.full(len(slots), 0 if momentum else 1).astype(values.dtype)
        spread[slots] = values
        branches[name] = lists(spread, 2 * jets.counts)
    plain, _ = read(JetClass([write(tmp_path / "a.root", with_labels(jets))]))
    padded, _ = read(JetClass([write(tmp_path / "b.root", branches)]))
    assert_same(padded, plain)


def test_masses_of_the_classes(real_data, tmp_path):
    # Public JetClass jets in the official schema: a component at the wrong place would not give these masses.
    jets = weaver_jets(real_data / "jetclass/jetclass_10class_250_kin.npz")
    got, _ = read(JetClass([write(tmp_path / "a.root", with_labels(jets, jets.truth))]))
    mass = fourvector.mass(got.jet_p4)
    for name, low, high in (("Zqq", 85, 100), ("Wqq", 75, 90), ("Tbqq", 160, 185), ("Hbb", 105, 135)):
        assert low < np.median(mass[got.truth == CLASSES.index(name)]) < high
    assert (np.abs(fourvector.pt(got.jet_p4) - 750) < 260).all()


def test_measured_columns_of_real_jets(real_data, tmp_path):
    jets = weaver_jets(real_data / "jetclass/jetclass_top_hadronic_100_full.npz")
    finite = {name: np.nan_to_num(values, posinf=0, neginf=0) for name, values in jets.measured.items()}
    branches = with_labels(jets, jets.truth)
    branches |= {BRANCHES[name]: lists(values, jets.counts) for name, values in finite.items()}
    got, flags = read(JetClass([write(tmp_path / "a.root", branches)]))
    assert not flags
    charged = got.measured["charge"] != 0
    assert (got.measured["d0"][~charged] == 0).all()
    assert (got.measured["d0_error"][charged] > 0).mean() > 0.99
    kinds = sum(got.measured[name].astype(int) for name in BRANCHES if name.startswith("is_"))
    assert (kinds == 1).all()
    assert (
        charged == (got.measured["is_charged_hadron"] + got.measured["is_electron"] + got.measured["is_muon"])
    ).all()
