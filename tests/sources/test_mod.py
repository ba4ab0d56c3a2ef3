"""CMS Open Data in the MOD format: ragged jets, columns by name, one selection for collisions and simulation."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from hdf5_files import check_mutations, check_pieces, complaint_about, flags, read, write_hdf5

from jetrep.errors import InputError
from jetrep.physics import fourvector
from jetrep.sources.mod import CmsOpenData

PARTICLE = ("pt", "y", "phi", "m", "pid", "vertex")
JET = ("jet_pt", "jet_y", "jet_phi", "jet_m", "jet_eta")
GEN_JET = tuple(f"gen_{name}" for name in JET)
COLUMNS = {
    "cms": (("fn", "rn", "lbn", "evn", "npv", "quality"), (*JET, "jec", "jet_area", "jet_max_nef", "weight")),
    "sim": (
        ("fn", "rn", "lbn", "evn", "npv", "quality", "hard_pid"),
        (*JET, "jec", "jet_area", "jet_max_nef", *GEN_JET, "hard_pt", "hard_y", "hard_phi", "weight"),
    ),
    "gen": (("fn", "rn", "lbn", "evn", "hard_pid"), (*JET, "hard_pt", "hard_y", "hard_phi", "weight")),
}


def particles(
    n: int, rng: np.random.Generator, empty: tuple[int, ...] = ()
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Particles of n jets, their index, and the jets (pT, y, φ, m, η) that they add up to."""
    counts = rng.integers(5, 40, n)
    counts[list(empty)] = 0
    index = np.concatenate([[0], np.cumsum(counts)])
    total = index[-1]
    kinds = {211: 0.13957, -211: 0.13957, 22: 0.0, 130: 0.49761, 1: 0.0}
    pid = rng.choice(list(kinds), total)
    of = np.repeat(np.arange(n), counts)
    y, phi = rng.uniform(-1.6, 1.6, n)[of], rng.uniform(-3, 3, n)[of]
    columns = [
        rng.exponential(25, total) + 1,
        y + rng.normal(0, 0.15, total),
        phi + rng.normal(0, 0.15, total),
        np.array([kinds[int(code)] for code in pid]),
        pid.astype(float),
        np.where(np.isin(np.abs(pid), 211), rng.integers(-1, 5, total), 0).astype(float),
    ]
    pt, rapidity, azimuth, mass = columns[:4]
    m_t = np.hypot(pt, mass)
    p4 = [m_t * np.cosh(rapidity), pt * np.cos(azimuth), pt * np.sin(azimuth), m_t * np.sinh(rapidity)]
    jets = np.stack([np.bincount(of, component, n) for component in p4], -1)
    kinematics = [
        f(jets) for f in (fourvector.pt, fourvector.rapidity, fourvector.phi, fourvector.mass, fourvector.eta)
    ]
    return np.stack(columns, -1), index.astype(np.uint32), np.stack(kinematics, -1)


def fake(kind: str, n: int = 20, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    names = COLUMNS[kind]
    pfcs, pfcs_index, jets = particles(n, rng)
    gens, gens_index, gen_jets = particles(n, rng, empty=(4,) if kind == "sim" else ())
    gen_jets[gens_index[1:] == gens_index[:-1]] = -1
    if kind == "gen":
        jets = gen_jets
    values = {
        **dict(zip(JET, jets.T, strict=True)),
        **dict(zip(GEN_JET, gen_jets.T, strict=True)),
        "rn": 163_000 + np.arange(n),
        "lbn": np.arange(n),
        "evn": 2**40 + np.arange(n),
        "npv": np.full(n, 7),
        "quality": np.where(np.arange(n) % 5 == 2, 1, 3),
        "hard_pid": rng.choice([21, 1, -2], n),
        "jec": rng.uniform(1.0, 1.1, n),
        "weight": rng.exponential(1e-5, n),
    }
    tables = [np.stack([values.get(name, np.zeros(n)) for name in part], -1) for part in names]
    arrays = {
        "jets_i": tables[0].astype(np.int64),
        "jets_f": tables[1],
        "filenames": np.array(["AOD.root"], "S"),
    }
    if kind != "gen":
        arrays |= {"pfcs": pfcs, "pfcs_index": pfcs_index}
    if kind != "cms":
        arrays |= {"gens": gens, "gens_index": gens_index}
    return arrays | {"attributes": {"jets_i": names[0], "jets_f": names[1], "pfcs": PARTICLE, "gens": PARTICLE}}


def write(file: Path, kind: str = "sim", **change) -> Path:
    return write_hdf5(file, **{**fake(kind), **change})


LEVELS = [("cms", "detector"), ("sim", "detector"), ("sim", "generator"), ("gen", "generator")]


@pytest.mark.parametrize(("kind", "level"), LEVELS)
def test_constituents_add_up_to_their_jet(tmp_path, kind, level):
    """Rapidities and masses are exact, so the jet is, in every component; as η they would not be."""
    arrays = fake(kind)
    source = CmsOpenData([write(tmp_path / "a.h5", kind)], level=level)
    jets = read(source)
    assert (source.classes, jets.labels) == ((), None)
    table, index = ("pfcs", "pfcs_index") if level == "detector" else ("gens", "gens_index")
    np.testing.assert_array_equal(jets.offsets, arrays[index])
    np.testing.assert_allclose(fourvector.pt(jets.p4), arrays[table][:, 0], rtol=1e-5)
    total, full = jets.jet_p4, jets.counts > 0
    for name, function in (
        *(("jet_pt", fourvector.pt), ("jet_y", fourvector.rapidity), ("jet_phi", fourvector.phi)),
        *(("jet_m", fourvector.mass), ("jet_eta", fourvector.eta)),
    ):
        np.testing.assert_allclose(function(total)[full], jets.observers[name][full], rtol=1e-4, atol=1e-5)
    assert full.all() == ((kind, level) != ("sim", "generator"))


def test_columns_are_found_by_their_names(tmp_path):
    arrays = fake("sim")
    names = arrays.pop("attributes")
    order = {name: np.random.default_rng(k).permutation(len(cols)) for k, (name, cols) in enumerate(names.items())}
    shuffled = {name: arrays[name][:, order[name]] for name in names}
    attributes = {name: tuple(np.array(cols)[order[name]]) for name, cols in names.items()}
    other = write_hdf5(tmp_path / "b.h5", **{**arrays, **shuffled}, attributes=attributes)
    a, b = (CmsOpenData([file]) for file in (write(tmp_path / "a.h5"), other))
    np.testing.assert_array_equal(read(a).p4, read(b).p4)
    assert list(read(a).observers) == list(read(b).observers)
    for name, values in read(a).observers.items():
        np.testing.assert_array_equal(values, read(b).observers[name])
    for name, values in flags(a).items():
        np.testing.assert_array_equal(values, flags(b)[name])


def test_observers(tmp_path):
    common = {"jet_pt", "jet_y", "jet_phi", "jet_m", "jet_eta", "weight", "run", "lumi", "event"}
    for kind, extra in (("cms", {"npv", "quality", "jec", "jet_area"}), ("gen", {"hard_pid"})):
        level = "detector" if kind == "cms" else "generator"
        jets = read(CmsOpenData([write(tmp_path / f"{kind}.h5", kind)], level=level))
        assert set(jets.observers) == common | extra
        arrays = fake(kind)
        np.testing.assert_array_equal(jets.observers["weight"], arrays["jets_f"][:, -1])
        np.testing.assert_array_equal(jets.observers["event"], 2**40 + np.arange(20))
    sim = read(CmsOpenData([write(tmp_path / "sim.h5")]))
    assert set(sim.observers) == common | {"npv", "quality", "jec", "jet_area", "hard_pid"}


def test_momenta_are_not_corrected(tmp_path):
    jets = read(CmsOpenData([write(tmp_path / "a.h5", "cms")]))
    ratio = fourvector.pt(jets.jet_p4) / (jets.observers["jet_pt"] * jets.observers["jec"])
    assert (ratio < 1).all()
    np.testing.assert_allclose(ratio * jets.observers["jec"], 1, rtol=1e-4)


def test_measured(tmp_path):
    pfcs = fake("cms")["pfcs"]
    measured = read(CmsOpenData([write(tmp_path / "a.h5", "cms")])).measured
    code = pfcs[:, 4].astype(int)
    np.testing.assert_array_equal(measured["vertex"], pfcs[:, 5])
    assert set(measured["vertex"]) == {-1, 0, 1, 2, 3, 4}
    np.testing.assert_array_equal(measured["charge"], np.where(np.abs(code) == 211, np.sign(code), 0))
    np.testing.assert_array_equal(measured["is_photon"], code == 22)
    np.testing.assert_array_equal(measured["is_neutral_hadron"], np.isin(code, (130, 1)))


def changed(kind: str, **columns: tuple[int, float]) -> dict:
    """The tables of jets with one number of a column changed."""
    arrays = fake(kind)
    names = COLUMNS[kind]
    arrays["jets_f"][:, names[1].index("jet_pt")] = 400
    for column, (jet, value) in columns.items():
        table, k = ("jets_i", 0) if column in names[0] else ("jets_f", 1)
        arrays[table][jet, names[k].index(column)] = value
    return {name: arrays[name] for name in ("jets_i", "jets_f")}


def test_the_selection_of_the_paper_is_flagged(tmp_path):
    tables = changed("cms", jet_eta=(1, -1.95), quality=(3, 1), jet_pt=(6, 340.0), jec=(8, 0.9))
    flagged = flags(CmsOpenData([write(tmp_path / "a.h5", "cms", **tables)]))
    assert {name: np.flatnonzero(mask).tolist() for name, mask in flagged.items()} == {
        "eta of 1.9 or more": [1],
        "corrected pT of 375 GeV or less": [6, 8],
        "quality below medium": [2, 3, 7, 12, 17],
    }


def test_both_levels_of_simulation_keep_the_same_jets(tmp_path):
    file = write(tmp_path / "a.h5", "sim", **changed("sim", jet_eta=(1, 1.9), gen_jet_eta=(5, 2.4)))
    detector, generator = (flags(CmsOpenData([file], level=level)) for level in ("detector", "generator"))
    for name, mask in detector.items():
        np.testing.assert_array_equal(mask, generator[name])
    assert np.flatnonzero(detector["eta of 1.9 or more"]).tolist() == [1]
    assert np.flatnonzero(generator["no generator jet"]).tolist() == [4]
    assert set(generator) - set(detector) == {"no generator jet"}
    only = flags(CmsOpenData([write(tmp_path / "b.h5", "gen")], level="generator"))
    assert set(only) == {"eta of 1.9 or more", "corrected pT of 375 GeV or less"}


def test_levels_and_kinds_of_files(tmp_path):
    cms, sim, gen = (write(tmp_path / f"{kind}.h5", kind) for kind in ("cms", "sim", "gen"))
    assert "has no particles at generator level; read it at detector level" in complaint_about(
        lambda: CmsOpenData([cms], level="generator")
    )
    assert "has no particles at detector level; read it at generator level" in complaint_about(
        lambda: CmsOpenData([gen])
    )
    assert "sim.h5: is another kind of file than" in complaint_about(lambda: CmsOpenData([cms, sim]))
    assert "gen.h5: is another kind of file than" in complaint_about(lambda: CmsOpenData([sim, gen], level="generator"))
    assert "field 'level': is 'reco'; give 'detector' or 'generator'" in complaint_about(
        lambda: CmsOpenData([sim], level="reco")
    )


@pytest.mark.parametrize(("kind", "level"), LEVELS)
def test_ranges(tmp_path, monkeypatch, kind, level):
    files = [write(tmp_path / "a.h5", kind), write_hdf5(tmp_path / "b.h5", **fake(kind, 5, seed=3))]
    check_pieces(CmsOpenData(files, level=level), monkeypatch)


def broken_index(jet: int, value: int) -> np.ndarray:
    index = fake("sim")["pfcs_index"].astype(np.int64)
    index[jet] = value
    return index


PFCS = fake("sim")["pfcs"]
BAD = [
    ({"jets_i": None}, "has no dataset 'jets_i'"),
    ({"jets_f": fake("sim")["jets_f"][:19]}, "jets_i, jets_f have lengths 20, 19"),
    ({"pfcs_index": None}, "has no dataset 'pfcs_index'"),
    ({"pfcs_index": np.zeros(20, int)}, "has 20 entries for 20 jets"),
    ({"pfcs_index": np.zeros(21)}, "holds no whole numbers"),
    ({"pfcs_index": broken_index(20, 5)}, "runs from 0 to 5, not from 0 to"),
    ({"pfcs_index": broken_index(7, 0)}, "jet 6, field 'pfcs_index': the jet has -"),
    ({"pfcs_index": broken_index(7, 10**6)}, "jet 6, field 'pfcs_index': the jet has 99"),
    ({"attributes": {}}, "field '(pfcs|jets_i|jets_f)': has no attribute 'cols'"),
    ({"pfcs": PFCS[:, :5]}, "has 5 columns and 6 names in 'cols'"),
]


@pytest.mark.parametrize(("change", "words"), BAD)
def test_wrong_schema(tmp_path, change, words):
    file = write(tmp_path / "a.h5", **change)
    with pytest.raises(InputError, match=words) as caught:
        read(CmsOpenData([file]))
    assert str(file) in str(caught.value)


def test_renamed_columns(tmp_path):
    for table, old, words in (
        ("pfcs", "y", "field 'pfcs': has no column 'y'"),
        ("jets_f", "weight", "field 'weight': the column is missing from jets_i and jets_f"),
        ("jets_f", "jec", "field 'jec': the column is missing"),
        ("jets_i", "quality", "field 'quality': the column is missing"),
    ):
        names = fake("sim")["attributes"]
        names[table] = tuple("other" if name == old else name for name in names[table])
        file = write(tmp_path / f"{old}.h5", attributes=names)
        with pytest.raises(InputError, match=words):
            CmsOpenData([file])


def test_names_of_columns_that_are_no_names(tmp_path):
    file = write(tmp_path / "a.h5")
    with h5py.File(file, "a") as hdf5:
        hdf5["pfcs"].attrs["cols"] = 3.0
    assert "field 'pfcs': is truncated, damaged" in complaint_about(lambda: CmsOpenData([file]))


@pytest.mark.parametrize("level", ["detector", "generator"])
def test_mutations(tmp_path, level):
    check_mutations(write(tmp_path / "a.h5"), lambda file: CmsOpenData([file], level=level))
