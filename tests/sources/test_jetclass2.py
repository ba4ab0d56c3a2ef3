"""The JetClass-II reader: 188 names, the seven groups, ROOT and Parquet alike, and the signs of the real files."""

from collections import Counter
from pathlib import Path

import awkward as ak
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uproot
from root_files import CHUNK, assert_same, check_mutations, check_pieces, jetclass_branches, lists, one_hot, read
from root_files import write_tree as write

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.physics import fourvector
from jetrep.sources.chunks import every_chunk
from jetrep.sources.jetclass2 import CLASSES_7, CLASSES_188, JetClass2
from jetrep.store.selection import Selection
from random_jets import random_jets

# The published list: first index, prefix, names.
NAMES = [
    (0, "X_", "bb cc ss qq bc cs bq cq sq gg ee mm tauhtaue tauhtaum tauhtauh"),
    (15, "X_YY_", "bbbb bbcc bbss bbqq bbgg bbee bbmm bbtauhtaue bbtauhtaum bbtauhtauh bbb bbc bbs bbq bbg bbe bbm"),
    (32, "X_YY_", "cccc ccss ccqq ccgg ccee ccmm cctauhtaue cctauhtaum cctauhtauh ccb ccc ccs ccq ccg cce ccm"),
    (48, "X_YY_", "ssss ssqq ssgg ssee ssmm sstauhtaue sstauhtaum sstauhtauh ssb ssc sss ssq ssg sse ssm"),
    (63, "X_YY_", "qqqq qqgg qqee qqmm qqtauhtaue qqtauhtaum qqtauhtauh qqb qqc qqs qqq qqg qqe qqm"),
    (77, "X_YY_", "gggg ggee ggmm ggtauhtaue ggtauhtaum ggtauhtauh ggb ggc ggs ggq ggg gge ggm"),
    (90, "X_YY_", "bee cee see qee gee bmm cmm smm qmm gmm"),
    (
        100,
        "X_YY_",
        "btauhtaue ctauhtaue stauhtaue qtauhtaue gtauhtaue btauhtaum ctauhtaum stauhtaum qtauhtaum gtauhtaum",
    ),
    (110, "X_YY_", "btauhtauh ctauhtauh stauhtauh qtauhtauh gtauhtauh"),
    (115, "X_YY_", "qqqb qqqc qqqs bbcq ccbs ccbq ccsq sscq qqbc qqbs qqcs bcsq bcs bcq bsq csq"),
    (131, "X_YY_", "bcev csev bqev cqev sqev qqev bcmv csmv bqmv cqmv sqmv qqmv"),
    (143, "X_YY_", "bctauev cstauev bqtauev cqtauev sqtauev qqtauev bctaumv cstaumv bqtaumv cqtaumv sqtaumv qqtaumv"),
    (155, "X_YY_", "bctauhv cstauhv bqtauhv cqtauhv sqtauhv qqtauhv"),
    (161, "QCD_", "bbccss bbccs bbcc bbcss bbcs bbc bbss bbs bb bccss bccs bcc bcss bcs bc bss bs b"),
    (179, "QCD_", "ccss ccs cc css cs c ss s light"),
]
EXAMPLE = "jetclass2/JetClassII_example"


@pytest.fixture
def jets() -> Jets:
    return random_jets((3, 1, 40, 0, 12, 7, 1, 90, 2, 5))


def branches_of(jets: Jets, labels: np.ndarray | None = None) -> dict[str, object]:
    labels = np.arange(len(jets)) * 20 if labels is None else labels
    return {**jetclass_branches(jets), "jet_label": labels.astype(np.int32)}


def write_parquet(file: Path, branches: dict[str, object]) -> Path:
    columns = {}
    for name, column in branches.items():
        columns[name] = pa.array(column) if isinstance(column, np.ndarray) else column
        if isinstance(column, ak.Array):
            columns[name] = ak.to_arrow(column, extensionarray=False)
    pq.write_table(pa.table({name: column for name, column in columns.items() if column is not None}), file)
    return file


def test_the_188_names():
    assert len(CLASSES_188) == len(set(CLASSES_188)) == 188
    for first, prefix, names in NAMES:
        expected = tuple(prefix + name for name in names.split())
        assert CLASSES_188[first : first + len(expected)] == expected


def partons(name: str) -> Counter[int]:
    """|PDG codes| in the name of a class; 1 stands for u and d, a lepton for its flavour."""
    name = name.removeprefix("X_").removeprefix("YY_")
    for tau in ("tauh", "taue", "taum"):
        name = name.replace(tau, "t")
    code = {"b": 5, "c": 4, "s": 3, "q": 1, "g": 21, "e": 11, "m": 13, "t": 15}
    return Counter(code[letter] for letter in name if letter != "v")


def test_names_tell_what_was_generated(real_data):
    # A jet may have lost partons of the decay, but a parton in its name must have been there.
    with uproot.open(f"{real_data / EXAMPLE}.root:tree") as tree:
        names = ("jet_label", "aux_genpart_pid", "aux_genpart_isResDecayProd", "aux_genpart_isQcdParton")
        labels, codes, resonant, qcd = (tree[name].array().to_list() for name in names)
    for label, pid, decay, parton in zip(labels, codes, resonant, qcd, strict=True):
        name = CLASSES_188[label]
        assert name.startswith("QCD_") == (not any(decay))
        if name.startswith("QCD_"):
            heavy = Counter(abs(code) for code, is_parton in zip(pid, parton, strict=True) if is_parton)
            for letter, code in (("b", 5), ("c", 4), ("s", 3)):
                assert min(heavy[code], 2) == name.removeprefix("QCD_light").removeprefix("QCD_").count(letter)
        else:
            flavour = {1: 1, 2: 1}
            there = Counter(flavour.get(abs(c), abs(c)) for c, is_decay in zip(pid, decay, strict=True) if is_decay)
            assert partons(name) <= there


def test_root_and_parquet_hold_the_same_jets(real_data):
    # Types as well: a store must not depend on the format that its jets came from.
    files = [real_data / f"{EXAMPLE}{suffix}" for suffix in (".root", ".parquet")]
    for options in ({}, {"grouping": "7"}, {"labels": False}):
        (root, flags), (parquet, others) = (read(JetClass2([file], **options)) for file in files)
        assert_same(root, parquet)
        assert flags.keys() == others.keys()
        for name in flags:
            np.testing.assert_array_equal(flags[name], others[name])
    both = JetClass2(files)
    assert both.rows == [100, 100]
    assert len(read(both)[0]) == 200


def test_real_jets(real_data):
    jets, flags = read(JetClass2([real_data / f"{EXAMPLE}.root"]))
    observed = jets.observers
    assert (len(jets), len(jets.p4), flags) == (100, 4529, {})
    assert len(set(jets.truth.tolist())) == 60
    assert (jets.truth >= 161).sum() == 21
    np.testing.assert_array_equal(jets.counts, observed["jet_nparticles"])
    np.testing.assert_allclose(fourvector.pt(jets.jet_p4), observed["jet_pt"], rtol=1e-6)
    np.testing.assert_allclose(fourvector.delta_phi(fourvector.phi(jets.jet_p4), observed["jet_phi"]), 0, atol=1e-6)
    np.testing.assert_allclose(jets.jet_p4[:, 0], observed["jet_energy"], rtol=0.05)
    kinds = ("is_charged_hadron", "is_neutral_hadron", "is_photon", "is_electron", "is_muon")
    assert (sum(jets.measured[kind].astype(int) for kind in kinds) == 1).all()
    neutral = jets.measured["charge"] == 0
    np.testing.assert_array_equal(neutral, jets.measured["is_neutral_hadron"] + jets.measured["is_photon"] == 1)
    for name in ("d0", "d0_error", "dz", "dz_error"):
        assert not jets.measured[name][neutral].any()
        assert jets.measured[name][~neutral].all()


def test_the_sign_of_deta_in_files(real_data):
    """Why ``part_deta`` is not read: it is reflected for jets with η < 0, and nothing else in a file is."""
    jets, _ = read(JetClass2([real_data / f"{EXAMPLE}.root"]))
    with uproot.open(f"{real_data / EXAMPLE}.root:tree") as tree:
        deta, dphi = (ak.to_numpy(ak.flatten(tree[f"part_{name}"].array())) for name in ("deta", "dphi"))
    jet = np.repeat(np.arange(100), jets.counts)
    eta, phi = jets.observers["jet_eta"][jet], jets.observers["jet_phi"][jet]
    unsigned = fourvector.eta(jets.p4) - eta
    assert (eta < 0).mean() > 0.4
    np.testing.assert_allclose(deta, np.sign(eta) * unsigned, atol=1e-6)
    np.testing.assert_allclose(dphi, fourvector.delta_phi(fourvector.phi(jets.p4), phi), atol=1e-5)
    assert np.abs(deta - unsigned)[eta < 0].max() > 0.5


def test_seven_groups(tmp_path):
    jets = random_jets((3,) * 188)
    file = write(tmp_path / "a.root", branches_of(jets, np.arange(188)))
    got, flags = read(JetClass2([file], grouping="7"))
    group = {0: 0, 12: 1, 13: 2, 14: 3, 70: 4, 127: 4, 3: 5, **dict.fromkeys(range(161, 188), 6)}
    np.testing.assert_array_equal(flags["other class"], [label not in group for label in range(188)])
    kept = ~flags["other class"]
    assert got.truth[kept].tolist() == [group[label] for label in sorted(group)]
    assert got.classes == CLASSES_7
    # The store counts them, and a choice of classes does not let them in again.
    for classes, n in ((None, 34), (("X_bb",), 1), (("QCD",), 27), (CLASSES_7, 34)):
        (chunk,) = every_chunk(JetClass2([file], grouping="7"))
        jets, read_jets, dropped = Selection(classes=classes).apply(chunk)
        assert (len(jets), read_jets, dropped) == (n, 188, {"other class": 188 - n})


def test_a_grouping_that_is_none(tmp_path, jets):
    file = write(tmp_path / "a.root", branches_of(jets))
    with pytest.raises(InputError, match="field 'grouping': is '8'; give 188 or 7"):
        JetClass2([file], grouping="8")


@pytest.mark.parametrize("written", [True, False])
@pytest.mark.parametrize("writer", [write, write_parquet])
def test_unlabelled(tmp_path, jets, writer, written):
    suffix = "root" if writer is write else "parquet"
    file = writer(tmp_path / f"a.{suffix}", branches_of(jets) if written else jetclass_branches(jets))
    for grouping in ("188", "7"):
        source = JetClass2([file], labels=False, grouping=grouping)
        got, flags = read(source)
        assert (source.classes, got.labels, len(got), flags) == ((), None, 10, {})


@pytest.mark.parametrize("suffix", [".root", ".parquet"])
def test_parts_of_a_file(real_data, monkeypatch, suffix):
    bounds = {CHUNK: 17, "jetrep.sources.parquet.CHUNK": 17}
    check_pieces(JetClass2([real_data / f"{EXAMPLE}{suffix}"], grouping="7"), monkeypatch, bounds)


@pytest.mark.parametrize("writer", [write, write_parquet])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"part_pz": None}, "field 'part_pz': the (branch|column) is missing; give an official file"),
        ({"jet_tau1": None}, "field 'jet_tau1': the (branch|column) is missing"),
        ({"jet_label": None}, "field 'jet_label': the labels are missing; .*--unlabeled"),
        ({"jet_label": None, **one_hot(np.arange(10))}, "is a file of JetClass; read it with the source 'jetclass'"),
        ({"part_px": np.zeros(10, np.float32)}, "field 'part_px': (the branch )?is float, not .*lists? of numbers"),
        ({"jet_label": np.full(10, 188, np.int32)}, "jet 0, field 'jet_label': label 188 is outside of the 188"),
        ({"jet_label": np.full(10, -1, np.int32)}, "jet 0, field 'jet_label': label -1 is outside"),
        ({"part_dzval": lists(np.ones(12, np.float32), [3] * 4 + [0] * 6)}, "'part_dzval': jet 1 has 3 values, but 1"),
    ],
)
def test_other_schemas(tmp_path, jets, writer, change, message):
    file = writer(tmp_path / ("a.root" if writer is write else "a.parquet"), {**branches_of(jets), **change})
    with pytest.raises(InputError, match=rf"a\.(root|parquet).*{message}"):
        read(JetClass2([file]))


@pytest.mark.parametrize(
    ("name", "column", "message"),
    [
        ("part_px", pa.array([[[1.0]]] * 10), "field 'part_px'"),
        ("part_px", pa.array([["a"]] * 10), "field 'part_px': holds string, not numbers"),
        ("part_px", pa.array([None, *[[1.0]] * 9]), "jet 0, field 'part_px': the value is missing"),
        ("part_isMuon", pa.array([None, *[[True]] * 9]), "jet 0, field 'part_isMuon': the value is missing"),
        ("part_isMuon", pa.array([[None], *[[True]] * 9]), "field 'part_isMuon': a value is missing"),
        ("part_px", pa.array([[[1.0, 2.0, 3.0, 4.0]]] * 10), "field 'part_px': is list.*, not lists of numbers"),
        ("jet_pt", pa.array(["a"] * 10), "field 'jet_pt': values are string, not numbers; give one number a row"),
        ("jet_pt", pa.array([1.0] * 9 + [None]), "jet 9, field 'jet_pt': the value is missing"),
        ("jet_label", pa.array([1.5] * 10), "jet 0, field 'jet_label': label 1.5 is no whole number"),
    ],
)
def test_parquet_columns_of_other_types(tmp_path, jets, name, column, message):
    file = write_parquet(tmp_path / "a.parquet", {**branches_of(jets), name: column})
    with pytest.raises(InputError, match=rf"a\.parquet.*{message}"):
        read(JetClass2([file]))


def test_empty_places_among_momenta_are_not_finite(tmp_path):
    jets = random_jets((1,) * 10)
    file = write_parquet(tmp_path / "a.parquet", {**branches_of(jets), "part_px": pa.array([[None], *[[1.0]] * 9])})
    got, _ = read(JetClass2([file]))
    assert np.isnan(got[0][0, 1])


def test_files_of_both_formats_must_agree(tmp_path, jets):
    root = write(tmp_path / "a.root", branches_of(jets))
    parquet = write_parquet(tmp_path / "b.parquet", {**branches_of(jets), "part_isPhoton": None})
    with pytest.raises(InputError, match=r"b\.parquet, field 'part_isPhoton': the column is missing"):
        JetClass2([root, parquet])


@pytest.mark.parametrize("suffix", [".root", ".parquet"])
def test_damaged_files(real_data, tmp_path, suffix):
    check_mutations(real_data / f"{EXAMPLE}{suffix}", tmp_path, lambda file: JetClass2([file]), range(64))
