"""The PFNano reader: index maps, PUPPI weights, units, and that constituents add up to the jets of the file."""

from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot
from root_files import assert_same, check_mutations, check_pieces, lists, read, write_tree

from jetrep.errors import InputError
from jetrep.physics import fourvector
from jetrep.sources.pfnano import PFNano

EXAMPLE = "cms/coffea_pfnano.root"
EVENTS = "jetrep.sources.pfnano._EVENTS"

# Three events: two AK8 jets, none, one. Jets and candidates are linked in no particular order, one candidate by two.
N_JETS = np.array([2, 0, 1])
N_CANDIDATES = np.array([4, 1, 3])
JET = [[1, 0, 1, 0, 1], [], [0, 0]]
CANDIDATE = [[3, 0, 1, 2, 0], [], [2, 0]]
CODE = np.array([211, 22, -11, 130, 211, 1, 2, -13], np.int32)
CHARGE = np.array([1, 0, 1, 0, 1, 0, 0, 1], np.int32)
PT = np.array([10, 20, 30, 40, 50, 60, 70, 80], np.float32)
WEIGHT = np.array([1, 0.5, 1, 0, 1, 1, 1, 0.25], np.float32)
ERROR = np.array([0.01, -1, 0.02, np.inf, -1, -1, -1, 0.03], np.float32)


def flat(values: list[list[int]]) -> ak.Array:
    counts = [len(event) for event in values]
    return lists(np.array([v for event in values for v in event], np.int32), np.array(counts))


def branches(jets: str = "FatJet", **changes: object) -> dict[str, object]:
    """The official names; jet pT is 100, 101, … GeV."""

    def candidates(values: np.ndarray) -> ak.Array:
        return lists(values, N_CANDIDATES)

    n = N_JETS.sum()
    columns: dict[str, object] = {
        "run": np.array([1, 1, 2], np.uint32),
        "luminosityBlock": np.array([7, 8, 9], np.uint32),
        "event": np.array([10, 2**63 + 1, 12], np.uint64),
        "PFCands_pt": candidates(PT),
        "PFCands_eta": candidates(np.linspace(-2, 2, 8).astype(np.float32)),
        "PFCands_phi": candidates(np.linspace(-3, 3, 8).astype(np.float32)),
        "PFCands_mass": candidates(np.full(8, 0.1396, np.float32)),
        "PFCands_charge": candidates(CHARGE),
        "PFCands_pdgId": candidates(CODE),
        "PFCands_puppiWeight": candidates(WEIGHT),
        "PFCands_d0": candidates(np.where(ERROR > 0, 0.002, -1).astype(np.float32)),
        "PFCands_d0Err": candidates(ERROR),
        "PFCands_dz": candidates(np.where(ERROR > 0, 0.5, -1).astype(np.float32)),
        "PFCands_dzErr": candidates(2 * ERROR),
        f"{jets}PFCands_jetIdx": flat(JET),
        f"{jets}PFCands_pFCandsIdx": flat(CANDIDATE),
        f"{jets}_pt": lists(100 + np.arange(n, dtype=np.float32), N_JETS),
        f"{jets}_rawFactor": lists(np.full(n, 0.1, np.float32), N_JETS),
        f"{jets}_msoftdrop": lists(np.full(n, 80, np.float32), N_JETS) if jets == "FatJet" else None,
        **{f"{jets}_{name}": lists(np.zeros(n, np.float32), N_JETS) for name in ("eta", "phi", "mass")},
    }
    return columns | changes


def write(file: Path, columns: dict[str, object], **how) -> Path:
    return write_tree(file, columns, tree="Events", **how)


def test_index_maps(tmp_path):
    got, flags = read(PFNano([write(tmp_path / "a.root", branches("Jet"))], collection="ak4"))
    # Jet by jet, in the order of the links: event 0 has candidates 0 to 3, event 2 has 5 to 7.
    which = [0, 2, 3, 1, 0, 7, 5]
    assert got.counts.tolist() == [2, 3, 2]
    np.testing.assert_allclose(fourvector.pt(got.p4), PT[which], rtol=1e-6)
    np.testing.assert_allclose(fourvector.eta(got.p4), np.linspace(-2, 2, 8)[which], atol=1e-6)
    np.testing.assert_allclose(fourvector.mass(got.p4.astype(np.float64)), 0.1396, atol=0.2)
    assert got.measured["charge"].tolist() == CHARGE[which].tolist()
    assert got.measured["puppi_weight"].tolist() == WEIGHT[which].tolist()
    assert not flags


def test_puppi_weights_scale_and_drop_candidates(tmp_path):
    got, _ = read(PFNano([write(tmp_path / "a.root", branches())]))
    # Candidate 3 of event 0 has weight 0: no constituent, and the columns of the others stay with them.
    which = [0, 2, 1, 0, 7, 5]
    assert got.counts.tolist() == [2, 2, 2]
    np.testing.assert_allclose(fourvector.pt(got.p4), (PT * WEIGHT)[which], rtol=1e-6)
    assert got.measured["puppi_weight"].tolist() == WEIGHT[which].tolist()
    assert got.measured["charge"].tolist() == CHARGE[which].tolist()
    assert got.measured["is_muon"].tolist() == [0, 0, 0, 0, 1, 0]
    assert got.measured["is_electron"].tolist() == [0, 1, 0, 0, 0, 0]
    assert got.measured["is_photon"].tolist() == [0, 0, 1, 0, 0, 0]


def test_observers_belong_to_their_jets(tmp_path):
    source = PFNano([write(tmp_path / "a.root", branches())])
    got, _ = read(source)
    assert (source.rows, source.classes, got.labels) == ([3], (), None)
    assert got.observers["jet_pt"].tolist() == [100, 101, 102]
    assert got.observers["run"].tolist() == [1, 1, 2]
    assert got.observers["luminosityBlock"].tolist() == [7, 7, 9]
    assert got.observers["event"].tolist() == [10, 10, 12]
    assert got.observers["msoftdrop"].tolist() == [80, 80, 80]
    assert list(got.observers)[:5] == ["jet_pt", "jet_eta", "jet_phi", "jet_mass", "raw_factor"]


def test_deposits_in_the_forward_calorimeter_are_no_quarks(tmp_path):
    links = {"JetPFCands_jetIdx": flat([[], [], [0, 0]]), "JetPFCands_pFCandsIdx": flat([[], [], [0, 1]])}
    got, _ = read(PFNano([write(tmp_path / "a.root", branches("Jet", **links))], collection="ak4"))
    assert got.counts.tolist() == [0, 0, 2]
    assert got.measured["pdg_id"].tolist() == [130, 22]
    assert got.measured["charge"].tolist() == [0, 0]
    assert got.measured["is_neutral_hadron"].tolist() == [1, 0]
    assert got.measured["is_photon"].tolist() == [0, 1]
    assert got.measured["is_charged_hadron"].tolist() == [0, 0]


def test_impact_parameters_in_mm_and_only_of_tracks(tmp_path):
    got, flags = read(PFNano([write(tmp_path / "a.root", branches("Jet"))], collection="ak4"))
    track = np.isin(got.measured["puppi_weight"], (1, 0.25)) & (got.measured["charge"] != 0)
    np.testing.assert_allclose(got.measured["d0"], np.where(track, 0.02, 0), rtol=1e-6)
    np.testing.assert_allclose(got.measured["dz"], np.where(track, 5, 0), rtol=1e-6)
    error = np.array([0.1, 0.2, 0, 0, 0.1, 0.3, 0])
    np.testing.assert_allclose(got.measured["d0_error"], error, rtol=1e-6)
    np.testing.assert_allclose(got.measured["dz_error"], 2 * error, rtol=1e-6)
    assert not flags


def test_a_track_without_a_finite_impact_parameter_is_flagged(tmp_path):
    d0 = np.zeros(8, np.float32)
    d0[7] = np.nan
    file = write(tmp_path / "a.root", branches(PFCands_d0=lists(d0, N_CANDIDATES)))
    got, flags = read(PFNano([file]))
    assert len(got) == 3
    assert flags["not finite"].tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("name", "event", "value", "message"),
    [
        ("jetIdx", 0, 2, "index 2 in event 0, which has 2 jets"),
        ("jetIdx", 2, -1, "index -1 in event 2, which has 1 jets"),
        ("pFCandsIdx", 0, 4, "index 4 in event 0, which has 4 candidates"),
        ("pFCandsIdx", 2, -5, "index -5 in event 2, which has 3 candidates"),
    ],
)
def test_indices_that_point_nowhere(tmp_path, name, event, value, message):
    index = [list(values) for values in (JET if name == "jetIdx" else CANDIDATE)]
    index[event][-1] = value
    file = write(tmp_path / "a.root", branches(**{f"FatJetPFCands_{name}": flat(index)}))
    with pytest.raises(InputError, match=rf"a\.root, field 'FatJetPFCands_{name}': {message}"):
        read(PFNano([file]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"PFCands_puppiWeight": None}, "field 'PFCands_puppiWeight': the branch is missing; give NanoAOD"),
        ({"FatJetPFCands_jetIdx": None}, "field 'FatJetPFCands_jetIdx': the branch is missing"),
        ({"FatJet_rawFactor": None}, "field 'FatJet_rawFactor': the branch is missing"),
        ({"event": None}, "field 'event': the branch is missing"),
        ({"run": lists(np.zeros(3), [1, 1, 1])}, "field 'run': the branch is double.*, not one number"),
        ({"PFCands_pdgId": lists(PT, N_CANDIDATES)}, "'PFCands_pdgId': .*float.*, not a list of integers"),
        ({"FatJetPFCands_jetIdx": lists(np.zeros(7), [5, 0, 2])}, "'FatJetPFCands_jetIdx': .*, not a list of integers"),
        ({"PFCands_dz": lists(PT, [4, 2, 2])}, "field 'PFCands_dz': event 1 has 2 values, but 1 in 'PFCands_pt'"),
        ({"FatJet_eta": lists(PT[:3], [2, 1, 0])}, "'FatJet_eta': event 1 has 1 values, but 0 in 'FatJet_pt'"),
        ({"FatJetPFCands_pFCandsIdx": flat([[0], [0], [0]])}, "event 0 has 1 values, but 5 in 'FatJetPFCands_jetIdx'"),
        ({"PFCands_charge": lists(CHARGE + 7, N_CANDIDATES)}, "field 'PFCands_charge': holds 8"),
    ],
)
def test_other_schemas(tmp_path, change, message):
    with pytest.raises(InputError, match=rf"a\.root.*{message}"):
        read(PFNano([write(tmp_path / "a.root", branches(**change))]))


def test_a_collection_that_is_none(tmp_path):
    file = write(tmp_path / "a.root", branches())
    with pytest.raises(InputError, match="field 'collection': is 'ak15'; give ak8 or ak4"):
        PFNano([file], collection="ak15")
    with pytest.raises(InputError, match="the branch is missing"):
        PFNano([file], collection="ak4")


def test_a_branch_that_only_some_files_have(tmp_path):
    files = [write(tmp_path / "a.root", branches()), write(tmp_path / "b.root", branches(FatJet_msoftdrop=None))]
    with pytest.raises(InputError, match=r"b\.root, field 'FatJet_msoftdrop': only some of the files"):
        PFNano(files)
    got, _ = read(PFNano(files[1:]))
    assert "msoftdrop" not in got.observers


def test_events_without_jets(tmp_path):
    nothing = {name: column[1:2] for name, column in branches().items()}
    got, flags = read(PFNano([write(tmp_path / "a.root", nothing)]))
    assert (len(got), len(got.p4), flags) == (0, 0, {})
    assert set(got.measured) >= {"charge", "d0", "pdg_id"}


def test_a_file_of_jets_is_refused(real_data):
    with pytest.raises(InputError, match="has no tree 'Events', only 'tree'; give NanoAOD"):
        PFNano([real_data / "jetclass2/JetClassII_example.root"])


def skimmed(source: Path, file: Path, collection: str = "ak8") -> Path:
    """The branches that are read, of real events: a file of 1800 branches takes long to open."""
    with uproot.open(source) as root:
        wanted = branches("FatJet" if collection == "ak8" else "Jet")
        names = [name for name, column in wanted.items() if column is not None]
        return write(file, {name: root["Events"][name].array() for name in names}, per_basket=4)


@pytest.mark.parametrize(("collection", "n", "median"), [("ak8", 24, 0.9998), ("ak4", 64, 0.9999)])
def test_constituents_add_up_to_the_jets(real_data, collection, n, median):
    """Closure on CMS simulation: PUPPI weights are needed for AK8 (1.0024 without), and for AK4 none are."""
    jets, _ = read(PFNano([real_data / EXAMPLE], collection=collection))
    assert len(jets) == n
    total, seen = jets.jet_p4, jets.observers
    raw = 1 - seen["raw_factor"]
    ratio = fourvector.pt(total) / (seen["jet_pt"] * raw)
    assert round(float(np.median(ratio)), 4) == median
    assert np.abs(ratio - 1).max() < 0.003
    np.testing.assert_allclose(fourvector.eta(total), seen["jet_eta"], atol=1e-3)
    np.testing.assert_allclose(fourvector.delta_phi(fourvector.phi(total), seen["jet_phi"]), 0, atol=1e-3)
    assert abs(np.median(fourvector.mass(total) / (seen["jet_mass"] * raw)) - 1) < 0.001


def test_candidates_of_real_jets(real_data):
    jets, flags = read(PFNano([real_data / EXAMPLE], collection="ak4"))
    assert not flags
    columns = jets.measured
    kinds = ("is_charged_hadron", "is_neutral_hadron", "is_photon", "is_electron", "is_muon")
    assert (sum(columns[kind].astype(int) for kind in kinds) == 1).all()
    assert set(np.abs(columns["pdg_id"]).tolist()) <= {11, 13, 22, 130, 211}
    np.testing.assert_array_equal(columns["charge"] == 0, np.isin(columns["pdg_id"], (22, 130)))
    track = columns["d0_error"] > 0
    assert not columns["d0"][~track].any()
    assert (columns["charge"][track] != 0).all()
    # The tracker resolves some tens of µm: 0.02 to 0.05 in mm, while the same numbers in cm would be 2 to 5 µm.
    assert 0.01 < np.median(columns["d0_error"][track]) < 0.1
    assert 0.01 < np.median(np.abs(columns["d0"][track])) < 0.1


@pytest.mark.parametrize("collection", ["ak8", "ak4"])
def test_parts_of_a_file(real_data, tmp_path, monkeypatch, collection):
    file = skimmed(real_data / EXAMPLE, tmp_path / "a.root", collection)
    check_pieces(PFNano([file], collection=collection), monkeypatch, {EVENTS: 2})


def test_damaged_files(real_data, tmp_path):
    small = skimmed(real_data / EXAMPLE, tmp_path / "small.root")
    assert_same(read(PFNano([small]))[0], read(PFNano([real_data / EXAMPLE]))[0])
    (tmp_path / "damaged").mkdir()
    check_mutations(small, tmp_path / "damaged", lambda file: PFNano([file]), range(52))
    check_mutations(real_data / EXAMPLE, tmp_path / "damaged", lambda file: PFNano([file]), range(52, 64))
