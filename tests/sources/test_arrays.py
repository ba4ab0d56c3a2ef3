"""The user's own arrays: every documented form gives the same jets, every mistake its own message."""

import shutil
from pathlib import Path

import awkward as ak
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.physics import observables
from jetrep.sources import chunks, parquet
from jetrep.sources.arrays import Arrays
from jetrep.sources.chunks import every_chunk

COUNTS = np.array([3, 1, 0, 12, 2, 5])
OFFSETS = np.concatenate([[0], np.cumsum(COUNTS)])
LABELS = np.array([0, 2, 1, 0, 0, 2])
P4 = np.random.default_rng(3).normal(size=(COUNTS.sum(), 4)).astype(np.float32) ** 2


def read(source: Arrays) -> Jets:
    return Jets.concatenate([chunk.jets for chunk in every_chunk(source)])


def save(file: Path, **arrays) -> Path:
    np.savez(file, **{"p4": P4, "n": COUNTS, **arrays} if "offsets" not in arrays else {"p4": P4, **arrays})
    return file


def complaint_about(file: Path) -> str | None:
    try:
        read(Arrays([file]))
    except InputError as problem:
        return str(problem)
    return None


def lists(values: np.ndarray, offsets: np.ndarray = OFFSETS, large: bool = False) -> pa.Array:
    kind, index = (pa.LargeListArray, pa.int64()) if large else (pa.ListArray, pa.int32())
    return kind.from_arrays(pa.array(offsets, index), pa.array(values))


def save_parquet(file: Path, **columns) -> Path:
    pq.write_table(pa.table(columns), file, row_group_size=4)
    return file


def components(names=("E", "px", "py", "pz"), **how) -> dict[str, pa.Array]:
    return {name: lists(np.ascontiguousarray(P4[:, k]), **how) for k, name in enumerate(names)}


def vectors(kind: str) -> pa.Array:
    if kind == "fixed":
        return pa.ListArray.from_arrays(OFFSETS.astype(np.int32), pa.FixedSizeListArray.from_arrays(P4.ravel(), 4))
    inner = pa.ListArray.from_arrays(np.arange(0, 4 * len(P4) + 1, 4, dtype=np.int32), pa.array(P4.ravel()))
    return pa.LargeListArray.from_arrays(OFFSETS, inner)


WAYS = {
    "npz with n": lambda folder: save(folder / "a.npz", y=LABELS),
    "npz with n as int8": lambda folder: save(folder / "a.npz", n=COUNTS.astype(np.int8), y=LABELS.astype(np.uint8)),
    "npz with offsets": lambda folder: save(folder / "a.npz", offsets=OFFSETS, y=LABELS.astype(float)),
    "npz big-endian": lambda folder: save(folder / "a.npz", p4=P4.astype(">f8"), y=LABELS.astype(">i4")),
    "components": lambda folder: save_parquet(folder / "a.parquet", **components(), y=LABELS),
    "energy, large lists": lambda folder: save_parquet(
        folder / "a.parquet", **components(("energy", "px", "py", "pz"), large=True), y=LABELS
    ),
    "weaver's names": lambda folder: save_parquet(
        folder / "a.pq", **components(("part_energy", "part_px", "part_py", "part_pz")), y=LABELS.astype(np.int8)
    ),
    "p4 of fixed lists": lambda folder: save_parquet(folder / "a.parquet", p4=vectors("fixed"), y=LABELS),
    "p4 of lists": lambda folder: save_parquet(folder / "a.parquet", p4=vectors("free"), y=LABELS),
}


@pytest.mark.parametrize("chunk", [1, 4, 10_000])
@pytest.mark.parametrize("way", WAYS)
def test_all_forms_give_the_same_jets(tmp_path, monkeypatch, way, chunk):
    monkeypatch.setattr(chunks, "CHUNK", chunk)
    monkeypatch.setattr(parquet, "CHUNK", chunk)
    file = WAYS[way](tmp_path)
    source = Arrays([file, Path(shutil.copy(file, tmp_path / f"again{file.suffix}"))])
    assert sum(source.rows) == 12
    assert source.classes == ("0", "1", "2")
    jets = read(source)
    np.testing.assert_array_equal(jets.p4, np.concatenate([P4, P4]))
    np.testing.assert_array_equal(jets.counts, np.concatenate([COUNTS, COUNTS]))
    np.testing.assert_array_equal(jets.labels, np.concatenate([LABELS, LABELS]))
    named = Arrays([file], label_column="y", classes=["qcd", "w", "top"])
    assert read(named).classes == named.classes == ("qcd", "w", "top")
    assert read(Arrays([file], labels=False)).labels is None


@pytest.mark.parametrize("wrapped", [False, True])
def test_awkward_writes_what_we_read(tmp_path, wrapped):
    fields = {name: ak.unflatten(P4[:, k].copy(), COUNTS) for k, name in enumerate(("E", "px", "py", "pz"))}
    ak.to_parquet(ak.zip({**fields, "label": LABELS}, depth_limit=1), tmp_path / "a.parquet", extensionarray=wrapped)
    read_back = read(Arrays([tmp_path / "a.parquet"]))
    np.testing.assert_array_equal(read_back.p4, P4)
    np.testing.assert_array_equal(read_back.labels, LABELS)


def test_padding_is_removed_and_nan_is_not(tmp_path):
    padded = np.zeros((2, 5, 4), np.float32)
    padded[0, :3], padded[1, 1], padded[1, 3] = 1, 2, [0, 0, np.nan, 0]
    np.savez(tmp_path / "a.npz", p4=padded.reshape(-1, 4), n=[5, 5])
    jets = read(Arrays([tmp_path / "a.npz"]))
    assert jets.counts.tolist() == [3, 2]
    np.testing.assert_array_equal(jets[1], padded[1, [1, 3]])


def test_numbers_beyond_float32_become_infinite_without_a_warning(tmp_path):
    save(tmp_path / "a.npz", p4=np.where(np.arange(len(P4))[:, None] == 4, 1e300, P4.astype(float)))
    assert np.isinf(read(Arrays([tmp_path / "a.npz"])).p4).all(1).tolist() == [i == 4 for i in range(len(P4))]


def test_labels_are_in_all_files_or_in_none(tmp_path):
    labelled, bare = save(tmp_path / "a.npz", y=LABELS), save(tmp_path / "b.npz")
    assert read(Arrays([bare])).labels is None
    with pytest.raises(InputError, match=r"b.npz, field 'y': has no labels 'y', only p4, n; .*--unlabeled"):
        Arrays([labelled, bare])
    with pytest.raises(InputError, match=r"a.npz, field 'flavour': has no labels 'flavour', only p4, n, y"):
        Arrays([labelled], label_column="flavour")
    with pytest.raises(InputError, match="has no column y, label, labels for the classes qcd, top"):
        Arrays([bare], classes=["qcd", "top"])
    assert len(read(Arrays([labelled, bare], labels=False))) == 12


BAD_NPZ = [
    ({"p4": P4[:, :3]}, r"field 'p4': has shape \(23, 3\)"),
    ({"p4": np.asfortranarray(P4)}, "field 'p4': is in Fortran order"),
    ({"p4": P4.astype(complex)}, "field 'p4': has type complex128, not numbers"),
    ({"p4": np.array([{}])}, "field 'p4': has type object, not numbers"),
    ({"p4": np.float32(1)}, "field 'p4': is a single number"),
    ({"n": COUNTS.astype(float)}, "field 'n': is float64 of shape"),
    ({"n": COUNTS[:, None]}, "field 'n': is int64 of shape"),
    ({"n": COUNTS - 1}, "jet 2, field 'n': the jet has -1 constituents"),
    ({"n": COUNTS + 1}, "field 'n': the jets have 29 constituents, p4 has 23"),
    ({"n": np.array([2**62, 2**62, 2**62, 2**62, 0, 23])}, "field 'n': the jets have 18446744073709551616"),
    ({"offsets": OFFSETS[1:]}, "field 'offsets': the offsets do not begin with 0"),
    ({"offsets": OFFSETS[[0, 2, 1, 3, 4, 5, 6]]}, "jet 1, field 'offsets': the jet has -1 constituents"),
    ({"offsets": OFFSETS[:-1]}, "field 'offsets': the jets have 18 constituents, p4 has 23"),
    ({"y": LABELS[:-1]}, "field 'y': 5 labels for 6 jets"),
    ({"y": LABELS - 1}, "jet 0, field 'y': label -1 is outside"),
    ({"y": LABELS + 0.5}, "jet 0, field 'y': label 0.5 is no whole number"),
    ({"y": np.where(LABELS == 2, np.nan, 0)}, "jet 1, field 'y': label nan is no whole number"),
    ({"y": np.array(list("abcabc"))}, "field 'y': has type <U1, not numbers"),
    ({"y": np.eye(6)}, r"field 'y': labels have shape \(6, 6\)"),
]


@pytest.mark.parametrize(("change", "words"), BAD_NPZ, ids=lambda value: str(value)[:40])
def test_bad_npz(tmp_path, change, words):
    file = save(tmp_path / "a.npz", **change)
    with pytest.raises(InputError, match=words) as caught:
        read(Arrays([file]))
    assert str(file) in str(caught.value)


def test_labels_outside_of_the_named_classes(tmp_path):
    with pytest.raises(InputError, match="jet 1, field 'y': label 2 is outside of the 2 classes"):
        Arrays([save(tmp_path / "a.npz", y=LABELS)], classes=["qcd", "top"])


short = {**components(), "py": lists(P4[:-1, 2].copy(), np.minimum(OFFSETS, len(P4) - 1))}
BAD_PARQUET = [
    ({"E": P4[:6, 0], "px": P4[:6, 0], "py": P4[:6, 0], "pz": P4[:6, 0]}, "field 'E': is float, not lists"),
    ({**components(), "px": lists(np.array(["a"] * len(P4)))}, "field 'px': holds string, not numbers"),
    ({"p4": lists(P4[:, 0].copy())}, "field 'p4': holds no lists of four numbers"),
    ({"p4": pa.array([[[1.0, 2.0, 3.0]]])}, "field 'p4': a constituent has not four components"),
    ({"p4": pa.array([[[1.0, 2.0, 3.0, 4.0]], None])}, "jet 1, field 'p4': the value is missing"),
    ({"E": components()["E"], "px": components()["px"]}, "field 'py': has columns E, px"),
    (short, "jet 5, field 'py': 4 values, but 5 in 'E'"),
    ({**components(), "label": pa.array([0, 1, None, 0, 0, 0])}, "jet 2, field 'label': the value is missing"),
    ({**components(), "label": pa.array(list("abcdef"))}, "field 'label': labels are string, not numbers"),
    ({**components(), "label": lists(P4[:, 0].copy())}, "field 'label': labels are list<.*, not numbers"),
    ({**components(), "label": LABELS - 0.5}, "jet 0, field 'label': label -0.5 is no whole number"),
]


@pytest.mark.parametrize(("columns", "words"), BAD_PARQUET, ids=lambda value: str(value)[:40] * isinstance(value, str))
def test_bad_parquet(tmp_path, columns, words):
    file = save_parquet(tmp_path / "a.parquet", **columns)
    with pytest.raises(InputError, match=words) as caught:
        read(Arrays([file]))
    assert str(file) in str(caught.value)


def test_a_missing_number_in_a_list_is_not_finite(tmp_path):
    columns = {name: pa.array([[1.0, 2.0], [3.0, None if name == "py" else 4.0]]) for name in ("E", "px", "py", "pz")}
    jets = read(Arrays([save_parquet(tmp_path / "a.parquet", **columns)]))
    assert np.isnan(jets.p4).sum(1).tolist() == [0, 0, 0, 1]


def test_unknown_files(tmp_path):
    (tmp_path / "a.csv").write_text("E,px,py,pz")
    with pytest.raises(InputError, match=r"a.csv: '.csv' is no known kind of file; give .npz or .parquet"):
        Arrays([tmp_path / "a.csv"])
    with pytest.raises(InputError, match="no files are given"):
        Arrays([])


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), way=st.sampled_from(sorted(WAYS)))
def test_damaged_files_never_crash(tmp_path, data, way):
    file = WAYS[way](tmp_path)
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(0, len(content))) :]
    file.write_bytes(content)
    complaint = complaint_about(file)
    assert complaint is None or (str(file) in complaint and "\n" not in complaint)


def test_real_parquet_jets(real_data):
    """JetClass-II's example: our sums agree with the pT and multiplicity that its makers stored."""
    file = real_data / "jetclass2" / "JetClassII_example.parquet"
    jets = read(Arrays([file], label_column="jet_label", classes=[str(i) for i in range(188)]))
    stored = pq.read_table(file, columns=["jet_pt", "jet_nparticles", "jet_label"])
    np.testing.assert_array_equal(jets.counts, stored["jet_nparticles"])
    np.testing.assert_array_equal(jets.labels, stored["jet_label"])
    np.testing.assert_allclose(observables.pt(jets), stored["jet_pt"], rtol=1e-3)
