"""The reader of padded arrays: component order, masks, labels of two kinds, and the public JetClass samples."""

from pathlib import Path

import numpy as np
import pytest
from root_files import JETCLASS, assert_same, check_mutations, check_pieces, read

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.physics import fourvector
from jetrep.sources.weaver import WeaverArrays
from random_jets import random_jets
from weaver_arrays import weaver_jets

COUNTS = (3, 1, 8, 0, 5, 2)
CHUNK = "jetrep.sources.chunks.CHUNK"


@pytest.fixture
def jets() -> Jets:
    return random_jets(COUNTS)


def padded(jets: Jets, width: int = 8) -> dict[str, np.ndarray]:
    """vectors (N, 4, width) as px, py, pz, E; mask (N, 1, width); labels (N, 3) one-hot."""
    vectors, mask = np.zeros((len(jets), 4, width), np.float32), np.zeros((len(jets), 1, width), np.float32)
    for jet, count in enumerate(jets.counts):
        vectors[jet, :, :count] = jets[jet][:, [1, 2, 3, 0]].T
        mask[jet, 0, :count] = 1
    return {"vectors": vectors, "mask": mask, "labels": np.eye(3, dtype=np.int64)[np.arange(len(jets)) % 3]}


def save(file: Path, arrays: dict[str, np.ndarray | None]) -> Path:
    np.savez(file, **{name: values for name, values in arrays.items() if values is not None})
    return file


def test_components_and_labels(tmp_path, jets):
    source = WeaverArrays([save(tmp_path / "a.npz", {**padded(jets), "points": np.zeros(3), "weights": np.zeros(1)})])
    got, flags = read(source)
    assert (source.rows, source.classes, flags) == ([6], ("0", "1", "2"), {})
    np.testing.assert_array_equal(got.p4, jets.p4)
    np.testing.assert_array_equal(got.offsets, jets.offsets)
    assert got.truth.tolist() == [0, 1, 2, 0, 1, 2]


def test_only_the_mask_tells_what_is_padding(tmp_path, jets):
    arrays = padded(jets)
    order = np.random.default_rng(0).permuted(np.tile(np.arange(8), (6, 1)), axis=1)  # padding anywhere
    vectors = np.take_along_axis(arrays["vectors"], order[:, None], 2)
    mask = np.take_along_axis(arrays["mask"], order[:, None], 2)
    wrapped = np.where(mask == 1, vectors, vectors.max(2, keepdims=True) + 1)  # and not empty
    got, _ = read(WeaverArrays([save(tmp_path / "a.npz", {**arrays, "vectors": wrapped, "mask": mask})]))
    assert got.counts.tolist() == list(COUNTS)
    np.testing.assert_allclose(got.jet_p4, jets.jet_p4, rtol=1e-6)
    for jet in range(6):
        assert sorted(got[jet].tolist()) == sorted(jets[jet].tolist())


@pytest.mark.parametrize("kind", [np.bool_, np.int8, np.float64])
def test_masks_of_any_type(tmp_path, jets, kind):
    arrays = padded(jets)
    got, _ = read(WeaverArrays([save(tmp_path / "a.npz", {**arrays, "mask": arrays["mask"].astype(kind)})]))
    np.testing.assert_array_equal(got.p4, jets.p4)


def test_arrays_in_fortran_order(tmp_path, jets):
    arrays = {name: np.asfortranarray(values) for name, values in padded(jets).items()}
    got, _ = read(WeaverArrays([save(tmp_path / "a.npz", arrays)]))
    np.testing.assert_array_equal(got.p4, jets.p4)
    assert got.truth.tolist() == [0, 1, 2, 0, 1, 2]


def test_whole_numbers_as_labels(tmp_path, jets):
    arrays = {**padded(jets), "labels": np.array([4, 0, 1, 1, 0, 2])}
    source = WeaverArrays([save(tmp_path / "a.npz", arrays)])
    assert source.classes == ("0", "1", "2", "3", "4")
    assert read(source)[0].truth.tolist() == [4, 0, 1, 1, 0, 2]
    names = ["qcd", "w", "z", "top", "h"]
    assert WeaverArrays(source.files, classes=names).classes == tuple(names)
    with pytest.raises(InputError, match=r"a\.npz, jet 0, field 'labels': label 4 is outside of the 3 classes"):
        WeaverArrays(source.files, classes=names[:3])


def test_named_classes(tmp_path, jets):
    file = save(tmp_path / "a.npz", padded(jets))
    got, _ = read(WeaverArrays([file], classes=["qcd", "w", "top"]))
    assert got.classes == ("qcd", "w", "top")
    with pytest.raises(InputError, match=r"field 'labels': has 3 columns for 2 classes"):
        WeaverArrays([file], classes=["qcd", "top"])


@pytest.mark.parametrize("labels", [None, np.zeros((2, 2, 2)), np.array(["a"])])
def test_unlabelled(tmp_path, jets, labels):
    source = WeaverArrays([save(tmp_path / "a.npz", {**padded(jets), "labels": labels})], labels=False)
    got, _ = read(source)
    assert (source.classes, got.labels) == ((), None)
    np.testing.assert_array_equal(got.p4, jets.p4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vectors": None}, "field 'vectors': has no array 'vectors', only mask, labels; give vectors"),
        ({"mask": None}, "field 'mask': has no array 'mask', only vectors, labels; give vectors"),
        ({"labels": None}, "field 'labels': the labels are missing; read with --unlabeled"),
        ({"vectors": np.zeros((6, 8, 4), np.float32)}, r"field 'vectors': has shape \(6, 8, 4\); give vectors"),
        ({"vectors": np.zeros((6, 4), np.float32)}, r"field 'vectors': has shape \(6, 4\)"),
        ({"mask": np.zeros((6, 8))}, r"field 'mask': has shape \(6, 8\), and vectors \(6, 4, 8\)"),
        ({"mask": np.zeros((5, 1, 8))}, r"field 'mask': has shape \(5, 1, 8\)"),
        ({"mask": np.full((6, 1, 8), 0.5)}, r"jet 0, field 'mask': holds 0.5; give 1 or 0"),
        ({"mask": np.full((6, 1, 8), np.nan)}, r"jet 0, field 'mask': holds nan"),
        ({"labels": np.zeros((6, 3))}, "jet 0, field 'labels': no label is set"),
        ({"labels": np.ones((6, 3))}, "jet 0, field 'labels': not exactly one label"),
        ({"labels": np.zeros(5, int)}, r"field 'labels': has shape \(5,\) for 6 jets"),
        ({"labels": np.zeros((6, 1, 1))}, r"field 'labels': has shape \(6, 1, 1\) for 6 jets"),
        ({"labels": np.full(6, 0.5)}, "jet 0, field 'labels': label 0.5 is no whole number"),
        ({"vectors": np.array(["a"] * 6)}, "field 'vectors': has type <U1, not numbers"),
    ],
)
def test_other_schemas(tmp_path, jets, change, message):
    with pytest.raises(InputError, match=rf"a\.npz.*{message}"):
        read(WeaverArrays([save(tmp_path / "a.npz", {**padded(jets), **change})]))


@pytest.mark.parametrize("labels", [np.zeros(6, int), np.eye(4)[[0] * 6]])
def test_labels_that_differ_among_files(tmp_path, jets, labels):
    files = [save(tmp_path / "a.npz", padded(jets)), save(tmp_path / "b.npz", {**padded(jets), "labels": labels})]
    with pytest.raises(InputError, match=r"b\.npz, field 'labels': has other labels than .*a\.npz: "):
        WeaverArrays(files)


def test_files_of_another_kind(tmp_path):
    (tmp_path / "a.root").write_bytes(b"root")
    with pytest.raises(InputError, match=r"a\.root: '\.root' is no \.npz file"):
        WeaverArrays([tmp_path / "a.root"])


def test_parts_of_a_file(tmp_path, jets, monkeypatch):
    check_pieces(WeaverArrays([save(tmp_path / "a.npz", padded(jets))]), monkeypatch, {CHUNK: 2})


@pytest.mark.parametrize("name", ["10class_250_kin", "top_hadronic_100_full"])
def test_public_samples(real_data, name):
    file = real_data / f"jetclass/jetclass_{name}.npz"
    got, _ = read(WeaverArrays([file], classes=JETCLASS))
    expected = weaver_jets(file)
    assert_same(got, Jets(expected.p4, expected.offsets, expected.labels, JETCLASS))
    pt, mass = fourvector.pt(got.jet_p4), fourvector.mass(got.jet_p4)
    assert (np.abs(pt - 750) < 251).all()
    assert 155 < np.median(mass[got.truth == JETCLASS.index("Tbqq")]) < 185
    assert (got.p4[:, 0] > 0).all()


def test_quark_and_gluon_samples(real_data):
    jets, _ = read(WeaverArrays([real_data / "quarkgluon/quarkgluon_2000_kin.npz"], classes=["gluon", "quark"]))
    assert np.bincount(jets.truth).tolist() == [1010, 990]
    pt = fourvector.pt(jets.jet_p4)
    assert (pt.min() > 500) & (pt.max() < 550)
    gluon = jets.truth == 0
    assert jets.counts[gluon].mean() > jets.counts[~gluon].mean() + 15


def test_damaged_files(tmp_path):
    file = save(tmp_path / "a.npz", padded(random_jets((5,) * 200)))
    (tmp_path / "damaged").mkdir()
    check_mutations(file, tmp_path / "damaged", lambda path: WeaverArrays([path]), range(80))
