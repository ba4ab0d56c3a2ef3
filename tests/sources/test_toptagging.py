"""The top-tagging reader: the official schema as pandas writes it, the repacked files, duplicates, and bad files."""

import pickle
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import tables
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.physics import observables
from jetrep.physics.fourvector import from_ptetaphim
from jetrep.sources import chunks as chunks_module
from jetrep.sources.chunks import every_chunk
from jetrep.sources.toptagging import TopTagging, _splits_before

WIDTH = 200


def fake_jets(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Padded (n, 200, 4) four-vectors, counts, labels in runs of ten as in the official files."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 100, n)
    counts[0] = WIDTH
    pt = -np.sort(-rng.exponential(10, (n, WIDTH)), axis=1)
    p4 = from_ptetaphim(pt, rng.uniform(-1, 1, pt.shape), rng.uniform(-3, 3, pt.shape), np.zeros(pt.shape))
    p4[np.arange(WIDTH) >= counts[:, None]] = 0
    return p4.astype(np.float32), counts, np.arange(n) // 10 % 2


def write_official(file: Path, p4: np.ndarray, labels: np.ndarray, ttv: np.ndarray | int, **how) -> None:
    """The columns of the official files, in their order, written by pandas."""
    n = len(p4)
    names = [f"{part}_{i}" for i in range(WIDTH) for part in ("E", "PX", "PY", "PZ")]
    truth = ["truthE", "truthPX", "truthPY", "truthPZ"]
    frame = pd.DataFrame(np.hstack([p4.reshape(n, -1), np.ones((n, 4), np.float32)]), columns=names + truth)
    frame["ttv"], frame["is_signal_new"] = ttv, labels
    # The rows of the official files kept their numbers of a larger, shuffled table.
    frame.index = np.random.default_rng(1).permutation(n)
    frame.to_hdf(file, **{"key": "table", "format": "table", "complib": "blosc", "complevel": 5, **how})


def read(source: TopTagging) -> tuple[Jets, np.ndarray]:
    chunks = list(every_chunk(source))
    flags = [chunk.flags.get("duplicate", np.zeros(len(chunk.jets), bool)) for chunk in chunks]
    return Jets.concatenate([chunk.jets for chunk in chunks]), np.concatenate(flags)


@pytest.mark.parametrize("chunk", [7, 10_000])
@pytest.mark.parametrize("data_columns", [None, ["ttv", "is_signal_new"]])
def test_official_hdf5(tmp_path, monkeypatch, chunk, data_columns):
    monkeypatch.setattr(chunks_module, "CHUNK", chunk)
    p4, counts, labels = fake_jets(25)
    for name, part in (("a.h5", slice(0, 15)), ("b.h5", slice(15, 25))):
        write_official(tmp_path / name, p4[part], labels[part], 1, data_columns=data_columns)
    source = TopTagging([tmp_path / "a.h5", tmp_path / "b.h5"])
    assert (sum(source.rows), source.classes) == (25, ("qcd", "top"))
    chunks = list(every_chunk(source))
    assert max(len(part.jets) for part in chunks) <= chunk
    assert [(part.file.name, part.start) for part in chunks][-1] == ("b.h5", 7 if chunk == 7 else 0)
    jets, _ = read(source)
    np.testing.assert_array_equal(jets.counts, counts)
    np.testing.assert_array_equal(jets.labels, labels)
    assert jets.p4.tobytes() == p4[np.arange(WIDTH) < counts[:, None]].tobytes()
    unlabelled, _ = read(TopTagging([tmp_path / "a.h5"], labels=False))
    assert unlabelled.labels is None
    assert unlabelled.classes == ()


def test_every_component_in_a_column_of_its_own(tmp_path):
    p4, counts, labels = fake_jets(3)
    columns = {f"{part}_{i}": p4[:, i, k] for i in range(20) for k, part in enumerate(("E", "PX", "PY", "PZ"))}
    pd.DataFrame({**columns, "ttv": 0, "is_signal_new": labels}).to_hdf(
        tmp_path / "a.h5", key="table", format="table", data_columns=True
    )
    jets, _ = read(TopTagging([tmp_path / "a.h5"]))
    np.testing.assert_array_equal(jets.counts, np.minimum(counts, 20))
    np.testing.assert_array_equal(jets[1], p4[1, : min(counts[1], 20)])


def test_nan_is_no_padding(tmp_path):
    p4, counts, labels = fake_jets(4)
    p4[2, 0] = np.nan
    write_official(tmp_path / "a.h5", p4, labels, 0)
    jets, _ = read(TopTagging([tmp_path / "a.h5"]))
    np.testing.assert_array_equal(jets.counts, counts)
    assert np.isnan(jets[2][0]).all()


def write_duplicates(file: Path, train=(), test=(), overlap=()) -> None:
    pairs = {"train_dup": train, "test_dup": test, "train_test_overlap": overlap}
    np.savez(file, **{name: np.array(rows, np.int64).reshape(-1, 4) for name, rows in pairs.items()})


def test_the_second_of_a_pair_and_the_test_jet_of_an_overlap_are_flagged(tmp_path):
    p4, _, labels = fake_jets(40)
    ttv = np.where(np.arange(40) % 4 == 3, 1, 0)  # train and test interleaved
    train, test = np.flatnonzero(ttv == 0), np.flatnonzero(ttv == 1)
    pairs = [(i, j, labels[train[i]], labels[train[j]]) for i, j in ((2, 9), (2, 20))]
    within = [(0, 5, labels[test[0]], labels[test[5]])]
    overlap = [(1, 8, labels[train[1]], labels[test[8]]), (3, 900, 0, 0)]
    write_official(tmp_path / "a.h5", p4, labels, ttv)
    write_duplicates(tmp_path / "dup.npz", pairs, within, overlap)
    _, flagged = read(TopTagging([tmp_path / "a.h5"], duplicates=tmp_path / "dup.npz"))
    assert np.flatnonzero(flagged).tolist() == sorted([train[9], train[20], test[5], test[8]])
    write_duplicates(tmp_path / "dup.npz", overlap=[(1, 8, 0, 1 - labels[test[8]])])
    with pytest.raises(InputError, match=rf"a.h5, jet {test[8]}: has another label than listed"):
        read(TopTagging([tmp_path / "a.h5"], duplicates=tmp_path / "dup.npz"))


@pytest.mark.parametrize("data_columns", [None, ["ttv", "is_signal_new"]])
def test_jets_of_each_split_before_a_part_are_counted_piece_by_piece(tmp_path, monkeypatch, data_columns):
    monkeypatch.setattr(chunks_module, "CHUNK", 7)
    p4, _, labels = fake_jets(40)
    ttv = np.random.default_rng(1).integers(0, 3, 40)
    write_official(tmp_path / "a.h5", p4, labels, ttv, data_columns=data_columns)
    for start in (0, 1, 7, 20, 40):
        expected = {split: n for split in range(3) if (n := int((ttv[:start] == split).sum()))}
        assert _splits_before(tmp_path / "a.h5", start) == expected


def write_npz(file: Path, **change) -> Path:
    p4, counts, labels = fake_jets(12)
    arrays = {
        "p4": p4[np.arange(WIDTH) < counts[:, None]],
        "n": counts.astype(np.int16),
        "y": labels.astype(np.int8),
        "ttv": np.zeros(12, np.int8),
    }
    arrays |= change
    np.savez(file, **{name: values for name, values in arrays.items() if values is not None})
    return file


def test_official_index_of_repacked_files(tmp_path):
    write_duplicates(tmp_path / "dup.npz", train=[(0, 30_004, 0, 0)], test=[(0, 10_002, 0, 0)])
    train = write_npz(tmp_path / "top_train_03.npz")
    test = write_npz(tmp_path / "top_test_01a.npz", ttv=np.ones(12, np.int8))
    _, flagged = read(TopTagging([train, test], duplicates=tmp_path / "dup.npz"))
    assert np.flatnonzero(flagged).tolist() == [4, 12 + 2]
    nameless = write_npz(tmp_path / "jets.npz")
    assert len(read(TopTagging([nameless]))[0]) == 12
    with pytest.raises(InputError, match="does not tell which official jets"):
        TopTagging([nameless], duplicates=tmp_path / "dup.npz")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"p4": np.ones((7, 3), np.float32)}, r"field 'p4': has shape \(7, 3\)"),
        ({"p4": np.array(["a"] * 4)}, "field 'p4': has type <U1, not numbers"),
        ({"p4": None}, "field 'p4': has no array 'p4'"),
        ({"n": np.full(12, -1, np.int16)}, "jet 0, field 'n': the jet has -1 constituents"),
        ({"n": np.full(12, 3, np.int16)}, "field 'n': the jets have 36 constituents, p4 has"),
        ({"n": np.full(12, 0.5)}, "field 'n': is float64"),
        ({"y": np.full(12, 2)}, "jet 0, field 'label': label 2 is outside of the 2 classes"),
        ({"y": np.where(np.arange(12) == 5, 0.5, 0)}, "jet 5, field 'label': label 0.5 is no whole number"),
        ({"y": np.zeros(11, np.int8)}, "lengths 12, 11, 12"),
        ({"ttv": None}, "field 'ttv': has no array 'ttv'"),
    ],
)
def test_wrong_schema_npz(tmp_path, change, words):
    file = write_npz(tmp_path / "top_train_00.npz", **change)
    with pytest.raises(InputError, match=words) as caught:
        read(TopTagging([file]))
    assert str(file) in str(caught.value)


def test_wrong_schema_hdf5(tmp_path):
    def complaint(name: str) -> str:
        with pytest.raises(InputError) as caught:
            read(TopTagging([tmp_path / name]))
        assert str(tmp_path / name) in str(caught.value)
        return str(caught.value)

    p4, _, labels = fake_jets(4)
    write_official(tmp_path / "key.h5", p4, labels, 0, key="jets")
    assert "no pandas table under the key 'table'" in complaint("key.h5")
    write_official(tmp_path / "fixed.h5", p4, labels, 0, format="fixed", complib=None, complevel=None)
    assert "no pandas table under the key" in complaint("fixed.h5")
    pd.DataFrame({"E_0": [1.0], "PX_0": [1.0]}).to_hdf(tmp_path / "few.h5", key="table", format="table")
    assert "field 'PY_0': the column is missing" in complaint("few.h5")
    with tables.open_file(str(tmp_path / "group.h5"), "w") as hdf5:
        hdf5.create_array("/table", "table", np.zeros(3), createparents=True)
    assert "no pandas table under the key" in complaint("group.h5")
    (tmp_path / "text.h5").write_text("E,px,py,pz\n")
    assert "no HDF5 file" in complaint("text.h5")
    assert "does not exist" in complaint("missing.h5")
    assert "is a folder" in complaint(".")
    write_official(tmp_path / "label.h5", p4, labels + 3, 0)
    assert "jet 0, field 'label': label 3 is outside" in complaint("label.h5")


def complaint_about(file: Path) -> str | None:
    try:
        read(TopTagging([file]))
    except InputError as problem:
        return str(problem)
    return None


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(["npz", "packed"]))
def test_mutated_npz_never_crashes(tmp_path, data, kind):
    file = write_npz(tmp_path / "top_train_00.npz")
    if kind == "packed":
        arrays = dict(np.load(file))
        np.savez_compressed(file, **arrays)
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(len(content) // 2, len(content))) :]
    file.write_bytes(content)
    complaint = complaint_about(file)
    assert complaint is None or (str(file) in complaint and "\n" not in complaint)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), cut=st.floats(0, 0.999))
def test_damaged_hdf5_never_crashes(tmp_path, data, cut):
    file, damaged = tmp_path / "a.h5", tmp_path / "damaged.h5"
    if not file.exists():
        p4, _, labels = fake_jets(20)
        write_official(file, p4, labels, 0)
    content = bytearray(file.read_bytes())
    damaged.write_bytes(content[: int(cut * len(content))])
    assert "truncated" in complaint_about(damaged)
    for _ in range(data.draw(st.integers(1, 20))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged.write_bytes(content)
    complaint = complaint_about(damaged)
    assert complaint is None or (str(damaged) in complaint and "\n" not in complaint)


def test_column_names_cannot_run_code(tmp_path):
    """pandas pickles them, so a file from elsewhere could bring any pickle."""
    p4, _, labels = fake_jets(4)
    write_official(tmp_path / "a.h5", p4, labels, 0)
    trap = b"cos\nmkdir\n(V" + str(tmp_path / "caught").encode() + b"\ntR."
    with h5py.File(tmp_path / "a.h5", "a") as hdf5:
        hdf5["table/table"].attrs["values_block_0_kind"] = np.bytes_(trap)
    assert "field 'E_0': the column is missing" in complaint_about(tmp_path / "a.h5")
    assert not (tmp_path / "caught").exists()
    pickle.loads(trap)  # it would have worked
    assert (tmp_path / "caught").exists()


def test_real_jets_are_what_they_should_be(real_data):
    """Energy first: with the components in another order, jets would have absurd masses."""
    folder = real_data / "toptagging"
    jets, flagged = read(
        TopTagging([folder / "top_test_00.npz", folder / "top_test_01a.npz"], duplicates=folder / "duplicates.npz")
    )
    assert len(jets) == 15_000
    assert int(jets.labels.sum()) == 7_480
    pt, mass = observables.pt(jets), observables.mass(jets)
    assert pt.min() > 549.5
    assert pt.max() < 650.5
    assert 170 < np.median(mass[jets.labels == 1]) < 177
    assert 75 < np.median(mass[jets.labels == 0]) < 90
    # 15 overlaps with the training jets and 3 pairs lie within these files.
    assert int(flagged.sum()) == 18
    second = {tuple(jets[int(j)][0]) for j in np.flatnonzero(flagged)}
    rest = {tuple(jets[int(j)][0]) for j in np.flatnonzero(~flagged)}
    assert len(second & rest) == 3
