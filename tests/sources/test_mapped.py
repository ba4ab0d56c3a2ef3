"""Files through a mapping: the same jets in every format and coordinates, and a clear word for every mistake."""

import pickle
import re
from pathlib import Path

import awkward as ak
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uproot
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.physics import fourvector, observables
from jetrep.sources import _columns, chunks, parquet
from jetrep.sources.chunks import every_chunk
from jetrep.sources.mapped import Mapped
from jetrep.sources.mapping import load_mapping

COUNTS = np.array([3, 1, 0, 9, 2, 5])
OFFSETS = np.concatenate([[0], np.cumsum(COUNTS)])
N, WIDTH = int(COUNTS.sum()), 12
RNG = np.random.default_rng(5)


def columns_of_jets() -> dict[str, np.ndarray]:
    """Every description of the same constituents (N,), in double precision: axes with η < 0 and φ near π."""
    jet = np.repeat(np.arange(len(COUNTS)), COUNTS)
    jet_pt, jet_eta, jet_phi = RNG.uniform(300, 900, 6), RNG.uniform(-2, 2, 6), RNG.uniform(2.9, 3.1, 6)
    pt, mass = RNG.exponential(20, N) + 0.5, RNG.choice([0.13957, 0.0, 0.49368], N)
    eta, phi = jet_eta[jet] + RNG.normal(0, 0.3, N), jet_phi[jet] + RNG.normal(0, 0.3, N)
    p4 = fourvector.from_ptetaphim(pt, eta, phi, mass)
    return {
        **dict(zip(("E", "px", "py", "pz"), p4.T, strict=True)),
        "pt": pt,
        "eta": eta,
        "phi": phi,
        "mass": mass,
        "y": fourvector.rapidity(p4),
        "pt_rel": pt / jet_pt[jet],
        "eta_rel": eta - jet_eta[jet],
        "phi_rel": phi - jet_phi[jet],
        "jet_pt": jet_pt,
        "jet_eta": jet_eta,
        "jet_phi": jet_phi,
        "pdg": RNG.choice([211, -211, 22, 130, 11, -13, 0], N),
        "d0": RNG.normal(0, 0.01, N),
        "event": 2**60 + np.arange(6),
        "label": np.array([0, 2, 1, 0, 0, 2]),
        "qcd": np.array([1, 0, 0, 1, 1, 0]),
        "w": np.array([0, 0, 1, 0, 0, 0]),
        "top": np.array([0, 1, 0, 0, 0, 1]),
    }


COLUMNS = columns_of_jets()
MASSIVE = np.stack([COLUMNS[name] for name in ("E", "px", "py", "pz")], -1)
MASSLESS = fourvector.from_ptetaphim(COLUMNS["pt"], COLUMNS["eta"], COLUMNS["phi"], np.zeros(N))

SYSTEMS = {
    "cartesian": ({"E": "E", "px": "px", "py": "py", "pz": "pz"}, MASSIVE),
    "cartesian, energy": ({"energy": "E", "px": "px", "py": "py", "pz": "pz"}, MASSIVE),
    "mass": ({"pt": "pt", "eta": "eta", "phi": "phi", "mass": "mass"}, MASSIVE),
    "energy": ({"pt": "pt", "eta": "eta", "phi": "phi", "energy": "E"}, MASSIVE),
    "rapidity": ({"pt": "pt", "y": "y", "phi": "phi", "mass": "mass"}, MASSIVE),
    "massless": ({"pt": "pt", "eta": "eta", "phi": "phi"}, MASSLESS),
    "relative": (
        {
            "pt": "pt_rel",
            "eta": "eta_rel",
            "phi": "phi_rel",
            "relative_to": {"pt": "jet_pt", "eta": "jet_eta", "phi": "jet_phi"},
        },
        MASSLESS,
    ),
    "array": ({"p4": "p4", "order": ["px", "py", "pz", "E"]}, MASSIVE),
    "columns": ({"dataset": "p4", "columns": {"px": 0, "py": 1, "pz": 2, "E": -1}}, MASSIVE),
    "columns by name": ({"dataset": "records", "columns": {"pt": "pt", "eta": "eta", "phi": "phi"}}, MASSLESS),
}
FORMATS = ("root", "root padded", "root rntuple", "parquet", "parquet padded", "hdf5", "hdf5 ragged", "hdf5 group")

P4 = np.stack([COLUMNS[name] for name in ("px", "py", "pz", "E")], -1)


def padded(values: np.ndarray) -> np.ndarray:
    """(n_jets, WIDTH, …), with padding also in the middle: every jet's constituents stand in other places."""
    result = np.zeros((len(COUNTS), WIDTH, *values.shape[1:]), values.dtype)
    rng = np.random.default_rng(1)
    for jet, n in enumerate(COUNTS):
        places = np.sort(rng.choice(WIDTH, n, replace=False))
        result[jet, places] = values[OFFSETS[jet] : OFFSETS[jet + 1]]
    return result


def write(folder: Path, way: str, columns: dict[str, np.ndarray], name: str = "a") -> Path:
    """Columns (N,) or (N, 4) of constituents, and (6,) of jets, as a file."""
    per_constituent = {key: values for key, values in columns.items() if len(values) == N}
    per_jet = {key: values for key, values in columns.items() if len(values) != N}
    records = np.zeros(N, [("pt", "f8"), ("eta", "f8"), ("phi", "f8")])
    for key in records.dtype.names:
        records[key] = columns.get(key, 0)
    if way.startswith("root"):
        file = folder / f"{name}.root"
        tree = {
            key: padded(values) if "padded" in way or values.ndim > 1 else ak.unflatten(values, COUNTS)
            for key, values in per_constituent.items()
        }
        with uproot.recreate(file) as root:
            (root.mkrntuple if "rntuple" in way else root.mktree)("jets", {**tree, **per_jet})
    elif way.startswith("parquet"):
        file = folder / f"{name}.parquet"
        if "padded" in way:
            lists = {key: pa.array(padded(values).tolist()) for key, values in per_constituent.items()}
        else:
            offsets = pa.array(OFFSETS.astype(np.int32))
            lists = {
                key: pa.ListArray.from_arrays(offsets, pa.array(list(values)))
                for key, values in per_constituent.items()
            }
            flat = pa.StructArray.from_arrays([records[key] for key in records.dtype.names], records.dtype.names)
            lists["records"] = pa.ListArray.from_arrays(offsets, flat)
        pq.write_table(pa.table({**lists, **per_jet}), file, row_group_size=4)
    else:
        file = folder / f"{name}.h5"
        with h5py.File(file, "w") as hdf5:
            group = hdf5.create_group("some/group") if "group" in way else hdf5
            for key, values in [*per_constituent.items(), ("records", records)]:
                if "ragged" in way and values.ndim == 1 and values.dtype.names is None:
                    rows = np.empty(len(COUNTS), object)
                    rows[:] = np.split(values, OFFSETS[1:-1])
                    group.create_dataset(key, data=rows, dtype=h5py.vlen_dtype(values.dtype))
                else:
                    group.create_dataset(key, data=padded(values))
            for key, values in per_jet.items():
                group.create_dataset(key, data=values.astype(values.dtype.newbyteorder(">")))
    return file


def mapping_file(folder: Path, text: object, name: str = "mapping.yaml") -> Path:
    file = folder / name
    file.write_text(text if isinstance(text, str) else yaml.safe_dump(text, sort_keys=False))
    return file


def read(source: Mapped) -> Jets:
    return Jets.concatenate([chunk.jets for chunk in every_chunk(source)])


EVERYTHING = {
    "measured": {
        "pdg_id": "pdg",
        "d0": {"branch": "d0", "scale": 10},
        "my_column": {"branch": "eta", "scale": "1e-1"},  # as YAML reads a number without a point
    },
    "observers": {"event": "event", "jet_pt_tev": {"branch": "jet_pt", "scale": 0.001}},
    "label": {"branch": "label", "classes": ["qcd", "w", "top"]},
}


@pytest.mark.parametrize("chunk", [4, 10_000])
@pytest.mark.parametrize("way", FORMATS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_the_same_jets_from_every_format_and_coordinates(tmp_path, monkeypatch, system, way, chunk):
    for module in (chunks, parquet, _columns):
        monkeypatch.setattr(module, "CHUNK", chunk)
    vectors, expected = SYSTEMS[system]
    if system == "columns by name" and ("root" in way or way == "parquet padded"):
        pytest.skip("no records in this format")
    if "p4" in vectors or "dataset" in vectors:
        # Such arrays are written with a fixed width, and all other columns of the file with them.
        way = {"root": "root padded", "root rntuple": "root rntuple padded", "hdf5 ragged": "hdf5"}.get(way, way)
    mapping = {"four_vectors": vectors, **EVERYTHING}
    if "group" in way:
        mapping["group"] = "some/group"
    source = Mapped([write(tmp_path, way, {**COLUMNS, "p4": P4})], mapping=mapping_file(tmp_path, mapping))
    assert source.classes == ("qcd", "w", "top")
    assert source.rows == [6]
    jets = read(pickle.loads(pickle.dumps(source)))

    np.testing.assert_array_equal(jets.counts, COUNTS)
    np.testing.assert_allclose(jets.p4, expected, rtol=3e-7, atol=1e-6)
    np.testing.assert_array_equal(jets.labels, COLUMNS["label"])
    np.testing.assert_array_equal(jets.measured["pdg_id"], COLUMNS["pdg"])
    np.testing.assert_array_equal(
        jets.measured["charge"], [{211: 1, -211: -1, 11: -1, -13: 1}.get(i, 0) for i in COLUMNS["pdg"]]
    )
    np.testing.assert_array_equal(jets.measured["is_muon"], np.abs(COLUMNS["pdg"]) == 13)
    np.testing.assert_allclose(jets.measured["d0"], 10 * COLUMNS["d0"], rtol=1e-6)
    np.testing.assert_allclose(jets.measured["my_column"], 0.1 * COLUMNS["eta"], rtol=1e-6)
    np.testing.assert_array_equal(jets.observers["event"], COLUMNS["event"])  # exact beyond 2^53
    np.testing.assert_allclose(jets.observers["jet_pt_tev"], COLUMNS["jet_pt"] / 1000)
    # Ranges of rows, in any order, give the same.
    for start, stop in ((4, 6), (0, 1), (1, 5), (3, 3)):
        part = list(source.read(0, start, stop))
        assert sum(len(chunk.jets) for chunk in part) == stop - start
        if part:
            assert part[0].start == start
            np.testing.assert_array_equal(Jets.concatenate([c.jets for c in part]).p4, jets[start:stop].p4)


def complaint_about(action) -> str | None:
    try:
        action()
    except InputError as problem:
        return str(problem)
    return None


def simple(tmp_path, mapping=None, **columns):
    """A Parquet file of these columns of jets, (pt, eta, phi) among them, through a mapping."""
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), file)
    mapping = {"four_vectors": {"pt": "pt", "eta": "eta", "phi": "phi"}} | (mapping or {})
    return Mapped([file], mapping=mapping_file(tmp_path, mapping))


AXES = {"pt": [[100.0, 50.0], [200.0]], "eta": [[0.5, -0.5], [1.0]], "phi": [[0.0, 3.0], [-3.0]]}


def test_mev(tmp_path):
    gev = read(simple(tmp_path, **AXES))
    mev = read(simple(tmp_path, {"four_vectors": {"pt": "pt", "eta": "eta", "phi": "phi", "unit": "MeV"}}, **AXES))
    np.testing.assert_allclose(gev.p4, 1000 * mev.p4, rtol=1e-6)
    np.testing.assert_allclose(observables.pt(gev)[1], 200, rtol=1e-6)


def test_the_mask_decides_and_not_where_padding_stands(tmp_path):
    """Padding that repeats real constituents, padding of NaN, and none at the end."""
    columns = {
        "pt": [[100.0, 100.0, 50.0], [np.nan, 20.0, 7.0]],
        "eta": [[0.5, 0.5, -0.5], [np.nan, 1.0, 1.0]],
        "phi": [[0.0, 0.0, 3.0], [np.nan, 2.0, 2.0]],
        "real": [[1, 0, 1], [0, 1, 0]],
        "charge": [[1.0, -99.0, -1.0], [np.nan, 0.0, -99.0]],
    }
    vectors = {"pt": "pt", "eta": "eta", "phi": "phi", "mask": "real"}
    jets = read(simple(tmp_path, {"four_vectors": vectors, "measured": {"charge": "charge"}}, **columns))
    assert jets.counts.tolist() == [2, 1]
    np.testing.assert_allclose(fourvector.pt(jets.p4), [100, 50, 20], rtol=1e-6)
    assert jets.measured["charge"].tolist() == [1, -1, 0]
    with pytest.raises(InputError, match=r"jet 1, field 'real': the mask is 3, neither 0 nor 1"):
        simple(tmp_path, {"four_vectors": vectors}, **{**columns, "real": [[1, 0, 1], [0, 3, 0]]}).read(
            0, 0, 2
        ).__next__()


def test_padding_next_to_relative_coordinates_stays_padding(tmp_path):
    vectors = {"pt": "pt", "eta": "eta", "phi": "phi", "relative_to": {"pt": "jpt", "eta": "jeta"}}
    columns = {"pt": [[0.5, 0.0, 0.25]], "eta": [[0.1, 0.0, -0.1]], "phi": [[0.0, 0.0, 0.0]]}
    jets = read(simple(tmp_path, {"four_vectors": vectors}, **columns, jpt=[1000.0], jeta=[-1.5]))
    np.testing.assert_allclose(fourvector.pt(jets.p4), [500, 250], rtol=1e-6)
    np.testing.assert_allclose(fourvector.eta(jets.p4), [-1.4, -1.6], rtol=1e-6)


def test_impossible_momenta_are_left_to_the_selection(tmp_path):
    jets = read(simple(tmp_path, pt=[[-999.0, 5.0], [np.inf]], eta=[[0.0, 1e4], [0.0]], phi=[[0.0, 0.0], [0.0]]))
    assert jets.counts.tolist() == [2, 1]
    assert (~np.isfinite(jets.p4)).any(1).tolist() == [True, True, True]


def test_what_is_given_wins_over_what_the_particle_code_says(tmp_path):
    columns = {**AXES, "pdg": [[211, 22], [130]], "q": [[-1, 0], [0]]}
    jets = read(simple(tmp_path, {"measured": {"charge": "q", "pdg_id": "pdg"}}, **columns))
    assert jets.measured["charge"].tolist() == [-1, 0, 0]
    assert jets.measured["is_charged_hadron"].tolist() == [1, 0, 0]
    assert jets.measured["is_photon"].tolist() == [0, 1, 0]


def test_measured_columns_that_are_not_finite_are_flagged(tmp_path):
    source = simple(tmp_path, {"measured": {"d0": "d0"}}, **AXES, d0=[[0.0, 1.0], [np.nan]])
    (chunk,) = every_chunk(source)
    assert {reason: mask.tolist() for reason, mask in chunk.flags.items()} == {"not finite": [False, True]}


def labelled(tmp_path, label, **columns):
    (chunk,) = every_chunk(simple(tmp_path, {"label": label}, **AXES, **columns))
    return chunk


def test_merged_labels(tmp_path):
    label = {"branch": "y", "merge": {161: "qcd", -1: "top", 187: "qcd"}}
    chunk = labelled(tmp_path, label, y=[187, -1])
    assert (chunk.jets.classes, chunk.jets.labels.tolist(), chunk.flags) == (("qcd", "top"), [0, 1], {})
    chunk = labelled(tmp_path, {**label, "classes": ["top", "qcd"]}, y=[3.0, 161.0])
    assert chunk.jets.classes == ("top", "qcd")
    assert chunk.jets.labels[1] == 1
    assert chunk.flags["other class"].tolist() == [True, False]


def test_one_hot_labels(tmp_path):
    columns = {"is_a": [True, False], "is_b": [False, True], "is_c": [False, False]}
    chunk = labelled(tmp_path, {"one_hot": ["is_a", "is_b", "is_c"]}, **columns)
    assert (chunk.jets.classes, chunk.jets.labels.tolist(), chunk.flags) == (("is_a", "is_b", "is_c"), [0, 1], {})
    chunk = labelled(tmp_path, {"one_hot": ["is_c", "is_a"], "classes": ["c", "a"]}, **columns)
    assert chunk.jets.labels[0] == 1
    assert chunk.flags["other class"].tolist() == [False, True]  # a jet of a class that is not listed
    chunk = labelled(tmp_path, {"one_hot": ["is_a", "is_b"], "merge": {1: "b", 0: "all"}}, **columns)
    assert (chunk.jets.classes, chunk.jets.labels.tolist()) == (("b", "all"), [1, 0])
    chunk = labelled(tmp_path, {"one_hot": ["is_a", "is_c"], "merge": {0: "a", 1: "c"}}, **columns)
    assert chunk.flags["other class"].tolist() == [False, True]
    array = {"y": [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]}
    chunk = labelled(
        tmp_path,
        {"one_hot": [{"dataset": "y", "column": -1}, {"dataset": "y", "column": 0}], "classes": ["c", "a"]},
        **array,
    )
    assert chunk.jets.labels.tolist() == [0, 1]


def test_labels_by_the_name_of_the_file(tmp_path):
    names = ("QCD_1.parquet", "TTbar_1.parquet", "run/QCD_2.parquet")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table(AXES), tmp_path / name)
    vectors = {"pt": "pt", "eta": "eta", "phi": "phi"}
    label = {"file_pattern": {"top": "TT*", "qcd": ["QCD_1*", "run/QCD*"]}, "classes": ["qcd", "top"]}
    mapping = mapping_file(tmp_path, {"four_vectors": vectors, "label": label})
    source = Mapped([tmp_path / name for name in names], mapping=mapping)
    assert source.classes == ("qcd", "top")
    assert read(source).labels.tolist() == [0, 0, 1, 1, 0, 0]
    assert read(Mapped(source.files, mapping=mapping, labels=False)).labels is None
    for patterns, words in (({"top": "TT*"}, "fits the patterns of no class"), ({"a": "*", "b": "QCD*"}, "of a and b")):
        mapping = mapping_file(tmp_path, {"four_vectors": vectors, "label": {"file_pattern": patterns}})
        with pytest.raises(InputError, match=rf"mapping.yaml, field 'label.file_pattern': .*QCD_1.parquet .*{words}"):
            Mapped(source.files, mapping=mapping)


def test_without_labels_their_branch_need_not_exist(tmp_path):
    mapping = {"label": {"branch": "y", "classes": ["a", "b"]}}
    with pytest.raises(InputError, match="'y' is not in"):
        simple(tmp_path, mapping, **AXES)
    source = Mapped([tmp_path / "a.parquet"], mapping=tmp_path / "mapping.yaml", labels=False)
    assert source.classes == ()
    assert read(source).labels is None


UNEVEN = [[[1, 2], [3]], [[5, 6]]]
PAIRS = [[[1, 2], [3, 4]], [[5, 6]]]

# What is added to the mapping, its measured columns, what is added to the file; the complaint.
BAD_FILES = {
    "missing": (
        ({}, {"d0": "do"}, {"do_": [[0.0, 0.0], [0.0]]}),
        r"mapping.yaml, field 'measured.d0': 'do' is not in .*a.parquet, where the nearest name is 'do_'",
    ),
    "lengths": (({}, {"d0": "d"}, {"d": [[0.0], [0.0]]}), "field 'd': jet 0 has 1 values, but 2 in 'pt'"),
    "per jet": (
        ({}, {"d0": "d"}, {"d": [0.0, 1.0]}),
        r"holds one number for each jet, not one for each constituent \(measured.d0 in the mapping\)",
    ),
    "text": (({}, {"d0": "d"}, {"d": [["a", "b"], ["c"]]}), "field 'd': holds string, not numbers"),
    "code": (({}, {"pdg_id": "d"}, {"d": [[211.5, 1], [2]]}), "jet 0, field 'd': 211.5 is no particle code"),
    "flag": (({}, {"is_muon": "d"}, {"d": [[1, 0], [7]]}), "jet 1, field 'd': holds 7"),
    "column": (
        ({}, {"d0": {"branch": "d", "column": 2}}, {"d": PAIRS}),
        r"has an array of shape \(2,\) for each constituent, hence no column 2",
    ),
    "named column": (({}, {"d0": {"branch": "d", "column": "x"}}, {"d": PAIRS}), "no column 'x': its columns have no"),
    "no column": (({}, {"d0": "d"}, {"d": PAIRS}), r"an array of shape \(2,\), not one number, for each constituent"),
    "uneven": (({}, {"d0": "d"}, {"d": UNEVEN}), "field 'd': holds list<.*>, not numbers"),
    "null": (({}, {}, {"pt": [[1.0, 2.0], None]}), "jet 1, field 'pt': the value is missing"),
    "null code": (({}, {"pdg_id": "d"}, {"d": [[1, 2], [None]]}), "field 'd': a value is missing"),
    "observer": (({"observers": {"x": "pt"}}, {}, {}), r"'pt': holds lists, not one number for each jet \(observers.x"),
    "label": (
        ({"label": {"branch": "y", "classes": ["a"]}}, {}, {"y": [0, 1]}),
        "jet 1, field 'y': label 1 is outside of the 1 classes; name all classes in the mapping",
    ),
    "whole": (
        ({"label": {"branch": "y", "merge": {0: "a"}}}, {}, {"y": [0.0, 0.5]}),
        "jet 1, field 'y': the label 0.5 is no integer",
    ),
    "two": (
        ({"label": {"one_hot": ["y", "z"]}}, {}, {"y": [0, 1], "z": [1, 1]}),
        "jet 1, field 'y': the label is not one 1 among zeros, but y = 1, z = 1",
    ),
    "soft": (
        ({"label": {"one_hot": ["y", "z"]}}, {}, {"y": [0, 0.3], "z": [1, 0.7]}),
        "jet 1, field 'y': the label is not one 1",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_files_that_do_not_fit_the_mapping(tmp_path, case):
    (more, measured, columns), words = BAD_FILES[case]
    with pytest.raises(InputError, match=words) as complaint:
        read(simple(tmp_path, {**more, "measured": measured}, **{**AXES, **columns}))
    assert "\n" not in str(complaint.value)


def test_files_must_be_alike(tmp_path):
    mapping = mapping_file(
        tmp_path, {"four_vectors": {"pt": "pt", "eta": "eta", "phi": "phi"}, "observers": {"m": "m"}}
    )
    tables = {"a": {"m": [1.0, 2.0]}, "ints": {"m": [1, 2]}, "none": {}}
    for name, columns in tables.items():
        pq.write_table(pa.table({**AXES, **columns}), tmp_path / f"{name}.parquet")
    for name, words in (("ints", "field 'm': is int64 here and float64 in"), ("none", "'m' is not in .*none.parquet")):
        with pytest.raises(InputError, match=words):
            Mapped([tmp_path / "a.parquet", tmp_path / f"{name}.parquet"], mapping=mapping)


def test_trees_and_groups(tmp_path):
    columns = {name: COLUMNS[name] for name in ("pt", "eta", "phi")}
    root, hdf5 = write(tmp_path, "root", columns), write(tmp_path, "hdf5 group", columns)
    with uproot.update(root) as file:
        file.mktree("another", {"x": np.arange(3)})
    vectors = {"four_vectors": {"pt": "pt", "eta": "eta", "phi": "phi"}}
    assert len(read(Mapped([root], mapping=mapping_file(tmp_path, {**vectors, "tree": "jets"})))) == 6
    for file, more, words in (
        (root, {}, "field 'tree': holds the trees jets, another; name one"),
        (root, {"tree": "jet"}, "field 'jet': has no tree 'jet', only 'jets', 'another'"),
        (root, {"group": "a"}, "field 'group': .*a.root is root and has no group"),
        (root, {"format": "parquet"}, "a.root: is truncated, damaged, or no Parquet file"),
        (root, {"format": "hdf5"}, "a.root: is truncated, damaged, or no HDF5 file"),
        (hdf5, {"format": "root"}, "a.h5: is truncated, damaged, or no ROOT file"),
        (hdf5, {}, "'pt' is not in .*a.h5, where the nearest name is 'some'"),
        (hdf5, {"group": "some/grou"}, "field 'group': has no group 'grou', only group"),
        (hdf5, {"group": "some/group/pt"}, "has no group 'pt'"),
        (hdf5, {"tree": "a"}, "is hdf5 and has no tree"),
    ):
        with pytest.raises(InputError, match=words) as complaint:
            Mapped([file], mapping=mapping_file(tmp_path, {**vectors, **more}))
        assert "\n" not in str(complaint.value)


def test_datasets_of_different_length(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"], file["y"], file["text"] = np.ones((5, 3, 3)), np.zeros(4), np.array([b"a"] * 5)
        file["link"] = h5py.ExternalLink("elsewhere.h5", "x")
    vectors = {"dataset": "x", "columns": {"pt": 0, "eta": 1, "phi": 2}}
    for observer, words in (
        ("y", "x, y have lengths 5, 4"),
        ("text", "not a table of numbers"),
        ("link", "other file"),
    ):
        mapping = mapping_file(tmp_path, {"four_vectors": vectors, "observers": {"o": observer}})
        with pytest.raises(InputError, match=words):
            Mapped([tmp_path / "a.h5"], mapping=mapping)


GOOD = {"four_vectors": {"pt": "a", "eta": "b", "phi": "c"}}


def with_vectors(**more):
    return {"four_vectors": {**GOOD["four_vectors"], **more}}


BAD_MAPPINGS = [
    ("", "field 'mapping': is nothing"),
    ("just text", "field 'mapping': is 'just text'"),
    ([1], "field 'mapping': is a list"),
    ({}, "field 'four_vectors': is missing"),
    ({**GOOD, "mesured": {}}, "field 'mesured': there is no key 'mesured'; the nearest is 'measured', and all are"),
    ({**GOOD, "jets": "events"}, "field 'jets': there is no key"),
    ({**GOOD, 5: 5}, "field '5': there is no key '5'"),
    ({**GOOD, "format": "rot"}, "field 'format': there is no 'rot'; the nearest is 'root'"),
    ({**GOOD, "format": ["root"]}, "field 'format': there is no 'a list'"),
    ({**GOOD, "format": "root", "group": "g"}, "field 'group': a root file has no group"),
    ({**GOOD, "tree": 3}, "field 'tree': is '3'; give a name"),
    (with_vectors(ptt="x"), r"field 'four_vectors.ptt': there is no key 'ptt'; the nearest is 'pt'"),
    (with_vectors(mass=["m"]), r"field 'four_vectors.mass': is a list"),
    (with_vectors(px="x"), r"field 'four_vectors': pt, eta, phi, px define no four-vector; give \(E, px, py, pz\) or"),
    (with_vectors(y="x", mass="m"), "define no four-vector"),
    (with_vectors(p4="x", order=["E"]), "field 'four_vectors': gives p4, pt, eta, phi; give either p4 and order"),
    (with_vectors(order=["E"]), "field 'four_vectors.order': 'p4' and 'order' belong together"),
    (with_vectors(unit="TeV"), "field 'four_vectors.unit': there is no 'TeV'; the nearest is"),
    (with_vectors(mask={"branch": "m", "scale": 2}), "field 'four_vectors.mask.scale': there is no key"),
    (with_vectors(relative_to={"y": "jy"}), "field 'four_vectors.relative_to': there is no component 'y'"),
    (
        with_vectors(mass="m", relative_to={"pt": "j"}),
        "field 'four_vectors.relative_to.pt': a relative pt stands beside",
    ),
    ({"four_vectors": {}}, "field 'four_vectors': gives nothing"),
    ({"four_vectors": {"E": "a", "energy": "a", "px": "b", "py": "c", "pz": "d"}}, "E and energy are the same"),
    ({"four_vectors": {"p4": "x"}}, "field 'four_vectors.order': 'p4' and 'order' belong together"),
    ({"four_vectors": {"p4": "x", "order": ["px", "py", "pz", "e"]}}, "field 'four_vectors.order': there is no 'e'"),
    ({"four_vectors": {"p4": "x", "order": ["px", "px"]}}, "field 'four_vectors.order': names 'px' twice"),
    ({"four_vectors": {"dataset": "x", "columns": {"pt": 1.5}}}, "field 'four_vectors.columns.pt': is '1.5'"),
    ({**GOOD, "measured": ["d0"]}, "field 'measured': is a list"),
    ({**GOOD, "measured": {"d 0": "x"}}, "field 'measured': 'd 0' is no name"),
    ({**GOOD, "measured": {"d0": {"brunch": "x"}}}, "field 'measured.d0.brunch': .* the nearest is 'branch'"),
    ({**GOOD, "measured": {"d0": {"scale": 2}}}, "field 'measured.d0': gives no branch"),
    ({**GOOD, "measured": {"d0": {"branch": "x", "dataset": "x"}}}, "field 'measured.d0': gives branch and dataset"),
    ({**GOOD, "measured": {"d0": {"branch": "x", "scale": 0}}}, "field 'measured.d0.scale': is '0'"),
    ({**GOOD, "measured": {"d0": {"branch": "x", "scale": True}}}, "field 'measured.d0.scale': is true"),
    ({**GOOD, "measured": {"d0": {"branch": "x", "scale": float("nan")}}}, "field 'measured.d0.scale'"),
    ({**GOOD, "observers": {"m": None}}, "field 'observers.m': is nothing"),
    ({**GOOD, "label": "y"}, "field 'label': is 'y'; give some of the keys branch"),
    ({**GOOD, "label": {}}, "field 'label': gives no label; give exactly one of branch, one_hot, file_pattern"),
    ({**GOOD, "label": {"branch": "y", "one_hot": ["a"]}}, "field 'label': gives branch and one_hot"),
    ({**GOOD, "label": {"branch": "y"}}, "field 'label.classes': the classes have no names"),
    ({**GOOD, "label": {"branch": "y", "classes": ["a", True]}}, r"field 'label.classes\[1\]': is true; .*in quotes"),
    ({**GOOD, "label": {"branch": "y", "classes": ["a", "a"]}}, "field 'label.classes': names 'a' twice"),
    ({**GOOD, "label": {"branch": "y", "classes": []}}, "field 'label.classes': is an empty list"),
    ({**GOOD, "label": {"branch": "y", "merge": {"0": "a"}}}, "field 'label.merge': '0' is no integer"),
    ({**GOOD, "label": {"branch": "y", "merge": {}}}, "field 'label.merge': is an empty mapping"),
    ({**GOOD, "label": {"branch": "y", "merge": {0: "ab"}, "classes": ["abc"]}}, "label.merge': .*nearest is 'abc'"),
    ({**GOOD, "label": {"branch": "y", "merge": {0: "a"}, "classes": ["a", "b"]}}, "no integer is given for the class"),
    ({**GOOD, "label": {"one_hot": ["a", "a"]}}, "field 'label.one_hot': names a branch twice"),
    ({**GOOD, "label": {"one_hot": ["a", "b"], "classes": ["x"]}}, "names 1 classes for 2 branches"),
    ({**GOOD, "label": {"file_pattern": {"a": "*"}, "merge": {0: "a"}}}, "field 'label.merge': goes with"),
    ({**GOOD, "label": {"file_pattern": {"a": "*"}, "classes": ["a", "b"]}}, "no pattern is given for the class 'b'"),
    (
        "label: {branch: a}\nlabel: {branch: b}\n",
        "field 'mapping': is no plain YAML, line 2: the key 'label' is given twice",
    ),
    ("four_vectors: {pt: a, pt: b}", "the key 'pt' is given twice"),
    ("tree: !!python/object/apply:os.system ['touch ran']", "could not determine a constructor for the tag"),
    ("tree: !!python/name:os.system", "could not determine a constructor"),
    ("a: [", "field 'mapping': is no plain YAML, line 1"),
    ("a: &x [*x]\n<<: *x", "a key is no plain text"),
    ("? [a]\n: b", "a key is no plain text"),
    ("[" * 20_000, "is no plain YAML"),
    ("a: b\n" * 300_000, "is too long for a mapping"),
    ("tree: \x07", "is no plain YAML"),
    (
        "measured: {d0: {branch: x, scale: 0x" + "f" * 9000 + "}}\nfour_vectors: {pt: a, eta: b, phi: c}",
        "a huge number",
    ),
    ("!!set {a, b}", "field 'mapping': is a set"),
]


@pytest.mark.parametrize(("content", "words"), BAD_MAPPINGS, ids=range(len(BAD_MAPPINGS)))
def test_mappings_that_make_no_sense(tmp_path, monkeypatch, content, words):
    monkeypatch.chdir(tmp_path)
    file = mapping_file(tmp_path, content)
    with pytest.raises(InputError, match=words) as complaint:
        Mapped([], mapping=file)
    assert str(complaint.value).startswith(str(file))
    assert "\n" not in str(complaint.value)
    assert len(str(complaint.value)) < 1000
    assert [path.name for path in tmp_path.iterdir()] == ["mapping.yaml"]


def test_files_that_are_no_mapping(tmp_path):
    with pytest.raises(InputError, match="field 'mapping': no mapping is given"):
        Mapped([tmp_path / "a.root"])
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    for name, words in (
        ("no.yaml", "cannot be read .No such file"),
        (".", "Is a directory"),
        ("binary", "no plain YAML"),
    ):
        with pytest.raises(InputError, match=words):
            load_mapping(tmp_path / name)


WORDS = (
    "format tree group four_vectors measured observers label pt eta phi mass E px py pz y p4 order dataset columns "
    "relative_to unit mask branch column scale one_hot file_pattern classes merge d0 pdg_id"
)
KEYS = st.sampled_from(WORDS.split(" ")) | st.text(max_size=5)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.dates()
    | st.binary(max_size=4)
    | st.sampled_from(["root", "GeV", "MeV", "a", "pt", "E"])
)
NESTED = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(KEYS | st.integers(), inner, max_size=6)
        | st.fixed_dictionaries({"pt": inner, "eta": inner, "phi": inner})
    ),
    max_leaves=20,
)
SECTIONS = st.fixed_dictionaries(
    {"four_vectors": NESTED | st.just(GOOD["four_vectors"])},
    optional=dict.fromkeys(("format", "tree", "group", "measured", "observers", "label", "x"), NESTED),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(SECTIONS | NESTED)
@example({**GOOD, "label": {"branch": "y", "merge": {2**70: "a"}}})
@example({**GOOD, "label": {"one_hot": [{"branch": "a", "column": 2**40}]}})
def test_no_mapping_crashes(tmp_path, content):
    file = mapping_file(tmp_path, content)
    complaint = complaint_about(lambda: load_mapping(file))
    assert complaint is None or (complaint.startswith(str(file)) and "\n" not in complaint)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")))
def test_no_text_crashes(tmp_path, content):
    file = tmp_path / "mapping.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError):
        load_mapping(file)


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    mapping = mapping_file(folder, {"four_vectors": SYSTEMS["mass"][0], **EVERYTHING})
    return mapping, {
        way: write(folder, way, COLUMNS).read_bytes() for way in ("root", "root rntuple", "parquet", "hdf5")
    }


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.sampled_from(["root", "root rntuple", "parquet", "hdf5"]), st.data())
def test_damaged_files_crash_nothing(whole_files, tmp_path, way, data):
    mapping, files = whole_files
    content = bytearray(files[way])
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=8)):
        content[at] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]
    file = tmp_path / {"root": "a.root", "root rntuple": "a.root", "parquet": "a.parquet", "hdf5": "a.h5"}[way]
    file.write_bytes(content)
    complaint = complaint_about(lambda: read(Mapped([file], mapping=mapping)))
    assert complaint is None or (str(file) in complaint and "\n" not in complaint)


def documented() -> list[str]:
    page = Path(__file__).parents[2] / "docs" / "own_data.md"
    return re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def test_the_examples_of_the_documentation(tmp_path):
    """They are read as they stand, from files as they describe them."""
    cms, flat, vectors = (mapping_file(tmp_path, text, f"{i}.yaml") for i, text in enumerate(documented()))
    names = load_mapping(cms).four_vectors.components | load_mapping(cms).measured
    tree = {column.branch: ak.unflatten(np.full(4, 11.0), [3, 1]) for column in names.values()}
    tree |= {name: np.array([500.0, 600.0]) for name in ("fj_pt", "fj_sdmass", "event_no")}
    tree |= {"label_QCD": np.array([0, 0]), "label_Hbb": np.array([1, 0]), "label_Hcc": np.array([0, 0])}
    with uproot.recreate(tmp_path / "a.root") as file:
        file.mktree("deepntuplizer/tree", tree)
    (chunk,) = every_chunk(Mapped([tmp_path / "a.root"], mapping=cms))
    assert chunk.jets.classes == ("QCD", "Hbb", "Hcc")
    assert chunk.jets.labels[0] == 1
    assert chunk.flags["other class"].tolist() == [False, True]
    assert (chunk.jets.measured["d0"] == 110).all()
    assert (chunk.jets.measured["is_electron"] == 1).all()

    (tmp_path / "dijets").mkdir()
    with h5py.File(tmp_path / "dijets" / "a.h5", "w") as file:
        particles = np.zeros((2, 150, 11), np.float32)
        particles[:, 3, [0, 1, 8, -1]] = 0.5, 0.1, -1, 1
        file["data/v2/particles"], file["data/v2/jets"] = particles, [[8e5, 1, 2, 9e4]] * 2
    jets = read(Mapped([tmp_path / "dijets" / "*.h5"], mapping=flat))
    np.testing.assert_allclose(observables.pt(jets), 400, rtol=1e-6)
    np.testing.assert_allclose(observables.eta(jets), 1.1, rtol=1e-6)
    assert (jets.classes, jets.labels.tolist()) == (("qcd", "top"), [0, 0])
    assert (jets.observers["mass"].tolist(), jets.measured["charge"].tolist()) == ([90, 90], [-1, -1])

    columns = {
        "constituents": [[[3.0, 4.0, 0.0, 5.0]], [[3.0, 4.0, 12.0, 13.0]]],
        "weight": [1.0, 2.0],
        "truth": [6, 0],
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    jets = read(Mapped([tmp_path / "a.parquet"], mapping=vectors))
    np.testing.assert_array_equal(jets.p4, [[5, 3, 4, 0], [13, 3, 4, 12]])
    assert (jets.classes, jets.labels.tolist()) == (("qcd", "top"), [1, 0])


JETCLASS2 = {
    "four_vectors": {"energy": "part_energy", "px": "part_px", "py": "part_py", "pz": "part_pz"},
    "measured": {
        "charge": "part_charge",
        "is_muon": "part_isMuon",
        "is_electron": "part_isElectron",
        "d0": "part_d0val",
        "d0_error": "part_d0err",
        "dz": "part_dzval",
        "dz_error": "part_dzerr",
    },
    "observers": {"jet_sdmass": "jet_sdmass", "jet_nparticles": "jet_nparticles", "jet_pt": "jet_pt"},
    "label": {"branch": "jet_label", "classes": [f"c{i}" for i in range(188)]},
}


@pytest.mark.parametrize("ending", ["root", "parquet"])
def test_the_example_of_jetclass2_is_what_its_own_source_reads(real_data, tmp_path, ending):
    from jetrep.sources.jetclass2 import JetClass2

    file = real_data / "jetclass2" / f"JetClassII_example.{ending}"
    mapped = read(Mapped([file], mapping=mapping_file(tmp_path, JETCLASS2)))
    theirs = Jets.concatenate([chunk.jets for chunk in every_chunk(JetClass2([file]))])
    np.testing.assert_array_equal(mapped.p4, theirs.p4)
    np.testing.assert_array_equal(mapped.offsets, theirs.offsets)
    np.testing.assert_array_equal(mapped.labels, theirs.labels)
    for name, values in mapped.measured.items():
        np.testing.assert_array_equal(values, theirs.measured[name], err_msg=name)
    np.testing.assert_array_equal(mapped.observers["jet_nparticles"], mapped.counts)
    np.testing.assert_allclose(observables.pt(mapped), mapped.observers["jet_pt"], rtol=1e-3)


def test_jetclass2_by_angles_and_merged(real_data, tmp_path):
    """Relative coordinates of the file, with its sign of Δη undone by hand, sum to the same jets."""
    table = pq.read_table(real_data / "jetclass2" / "JetClassII_example.parquet")
    flip = np.sign(table["jet_eta"].to_numpy())
    p4 = [ak.from_arrow(table[f"part_{name}"]) for name in ("energy", "px", "py", "pz")]
    eta = ak.from_arrow(table["part_deta"]) * flip
    columns = {"pt": np.hypot(p4[1], p4[2]), "e": p4[0], "deta": eta, "dphi": ak.from_arrow(table["part_dphi"])}
    axes = {name: ak.from_arrow(table[name]) for name in ("jet_eta", "jet_phi", "jet_label")}
    ak.to_parquet(ak.zip({**columns, **axes}, depth_limit=1), tmp_path / "a.parquet", extensionarray=False)
    mapping = {
        "four_vectors": {
            "pt": "pt",
            "eta": "deta",
            "phi": "dphi",
            "energy": "e",
            "relative_to": {"eta": "jet_eta", "phi": "jet_phi"},
        },
        "label": {"branch": "jet_label", "merge": {i: "QCD" if i >= 161 else "res" for i in range(15, 188)}},
    }
    (chunk,) = every_chunk(Mapped([tmp_path / "a.parquet"], mapping=mapping_file(tmp_path, mapping)))
    direct = np.stack([ak.to_numpy(ak.flatten(part)) for part in p4], -1)
    np.testing.assert_allclose(chunk.jets.p4, direct, rtol=2e-4, atol=2e-3)
    labels = table["jet_label"].to_numpy()
    assert chunk.jets.classes == ("res", "QCD")
    np.testing.assert_array_equal(chunk.flags.get("other class", np.zeros(100, bool)), labels < 15)
    np.testing.assert_array_equal(chunk.jets.labels[labels >= 15], labels[labels >= 15] >= 161)
    assert (chunk.jets.labels == 1).sum() == 21


def test_hls4ml_arrays(real_data, tmp_path):
    """Slots that are empty anywhere, and masses that belong to the classes: 57, 35, 77, 87, 136 GeV at the median."""
    x = np.load(real_data / "hls4ml" / "x_test_32const.npy", allow_pickle=False)
    y = np.load(real_data / "hls4ml" / "y_test_16const.npy", allow_pickle=False)
    with h5py.File(tmp_path / "hls4ml.h5", "w") as file:
        file["particles"], file["labels"] = x, y
    names = ["g", "q", "W", "Z", "t"]
    mapping = {
        "four_vectors": {"dataset": "particles", "columns": {"pt": 0, "eta": 1, "phi": 2}},
        "label": {"one_hot": [{"dataset": "labels", "column": i} for i in range(5)], "classes": names},
    }
    jets = read(Mapped([tmp_path / "hls4ml.h5"], mapping=mapping_file(tmp_path, mapping)))
    np.testing.assert_array_equal(jets.counts, (x[..., 0] > 0).sum(1))
    assert (jets.counts.min(), jets.counts.max()) == (6, 32)
    assert np.bincount(jets.labels).tolist() == [574, 583, 576, 632, 635]
    np.testing.assert_allclose(
        np.bincount(np.repeat(np.arange(3000), jets.counts), fourvector.pt(jets.p4)), x[..., 0].sum(1), rtol=1e-5
    )
    medians = [np.median(observables.mass(jets)[jets.labels == i]) for i in range(5)]
    np.testing.assert_allclose(medians, [57, 35, 77, 87, 136], atol=1)


def test_events_are_refused_with_a_word_on_what_reads_them(real_data, tmp_path):
    """A row of NanoAOD is an event: its jets are lists, so no number for each jet is there."""
    mapping = {
        "tree": "Events",
        "four_vectors": {"pt": "PFCands_pt", "eta": "PFCands_eta", "phi": "PFCands_phi", "mass": "PFCands_mass"},
        "observers": {"jet_pt": "FatJet_pt"},
    }
    with pytest.raises(InputError, match=r"field 'FatJet_pt': holds lists, .*; the source 'pfnano' reads NanoAOD"):
        Mapped([real_data / "cms" / "coffea_pfnano.root"], mapping=mapping_file(tmp_path, mapping))
