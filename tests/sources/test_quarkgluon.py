"""Quark and gluon jets of EnergyFlow: rapidities with masses, codes, both orders in memory."""

from pathlib import Path

import numpy as np
import pytest
from hdf5_files import check_mutations, check_pieces, complaint_about, read, write_npz
from hdf5_files import flags as flags_of

from jetrep.errors import InputError
from jetrep.physics import fourvector
from jetrep.sources.quarkgluon import CLASSES, QuarkGluon

CODES = np.array([22, 211, -211, 321, -321, 130, 2112, -2112, 2212, -2212, 11, -11, 13, -13])
MASSES = np.array([0, 0.13957, 0.13957, 0.49368, 0.49368, 0.49761, *[0.93957] * 2, *[0.93827] * 2])


def fake(n: int = 20, width: int = 40, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    pt = rng.exponential(10, (n, width)) + 0.1
    X = np.stack([pt, rng.uniform(-1.7, 1.7, pt.shape), rng.uniform(0, 7, pt.shape), rng.choice(CODES, pt.shape)], -1)
    counts = rng.integers(1, width + 1, n)
    X[np.arange(width) >= counts[:, None]] = 0
    X[1, ::2] = 0  # padding in the middle
    return {"X": X, "y": (np.arange(n) % 3 == 0).astype(float)}


def write(file: Path, **change) -> Path:
    return write_npz(file, **{**fake(), **change})


def test_stored_rapidity_pt_and_masses_come_back(tmp_path):
    X = fake()["X"]
    jets = read(QuarkGluon([write(tmp_path / "QG_jets.npz")]))
    real = X[X[..., 0] > 0]
    p4 = jets.p4.astype(float)
    np.testing.assert_array_equal(jets.counts, (X[..., 0] > 0).sum(1))
    np.testing.assert_allclose(fourvector.pt(p4), real[:, 0], rtol=1e-6)
    np.testing.assert_allclose(0.5 * np.log((p4[:, 0] + p4[:, 3]) / (p4[:, 0] - p4[:, 3])), real[:, 1], atol=2e-5)
    np.testing.assert_allclose(fourvector.delta_phi(fourvector.phi(p4), real[:, 2]), 0, atol=1e-6)
    mass = dict(zip(CODES.tolist(), [*MASSES, *[0.000511] * 2, *[0.10566] * 2], strict=True))
    expected = np.array([mass[int(code)] for code in real[:, 3]])
    # E − |p| is a small difference of float32: m² is known to about 1e-6 E².
    np.testing.assert_allclose(p4[:, 0] ** 2 - (p4[:, 1:] ** 2).sum(1), expected**2, atol=1e-6 * p4[:, 0].max() ** 2)
    slow = p4[:, 0] < 5
    np.testing.assert_allclose(fourvector.mass2(p4[slow]), expected[slow] ** 2, atol=2e-5)
    assert expected[slow].max() > 0.9


def test_taking_rapidity_for_pseudorapidity_would_show(tmp_path):
    """A proton of pT 1 GeV at y = 1.5 has η = 1.84 and twice the energy that it would have as a massless particle."""
    X = np.zeros((1, 5, 4))
    X[0, 2] = [1, 1.5, 0.3, 2212]
    p4 = read(QuarkGluon([write(tmp_path / "a.npz", X=X, y=[1])])).p4[0].astype(float)
    m_t = np.sqrt(1 + 0.938272**2)
    np.testing.assert_allclose(p4, [m_t * np.cosh(1.5), np.cos(0.3), np.sin(0.3), m_t * np.sinh(1.5)], rtol=1e-6)
    assert fourvector.eta(p4) == pytest.approx(np.arcsinh(m_t * np.sinh(1.5)))
    assert fourvector.rapidity(p4) == pytest.approx(1.5, abs=1e-6)


def test_measured_columns_stand_beside_their_particles(tmp_path):
    X = fake()["X"]
    jets = read(QuarkGluon([write(tmp_path / "a.npz")]))
    codes = X[X[..., 0] > 0][:, 3].astype(int)
    np.testing.assert_array_equal(jets.measured["pdg_id"], codes)
    charged = {211, 321, 2212, -11, -13}
    charge = [1 if code in charged else -1 if -code in charged else 0 for code in codes]
    np.testing.assert_array_equal(jets.measured["charge"], charge)
    np.testing.assert_array_equal(jets.measured["is_photon"], codes == 22)
    np.testing.assert_array_equal(jets.measured["is_muon"], np.abs(codes) == 13)
    np.testing.assert_array_equal(jets.measured["is_neutral_hadron"], np.isin(np.abs(codes), (130, 2112)))
    kinds = ("is_charged_hadron", "is_neutral_hadron", "is_photon", "is_electron", "is_muon")
    np.testing.assert_array_equal(sum(jets.measured[kind] for kind in kinds), 1)


def test_labels(tmp_path):
    source = QuarkGluon([write(tmp_path / "a.npz"), write(tmp_path / "b.npz", y=np.zeros(20, np.int8))])
    assert source.classes == CLASSES == ("gluon", "quark")
    jets = read(source)
    np.testing.assert_array_equal(jets.labels[:20], fake()["y"])
    assert jets.labels[20:].max() == 0
    bare = write(tmp_path / "c.npz", y=None)
    assert read(QuarkGluon([bare], labels=False)).labels is None
    with pytest.raises(InputError, match=r"c.npz, field 'y': has no array 'y', only X; give an official file"):
        QuarkGluon([bare])


@pytest.mark.parametrize("order", ["C", "F", "float32", "big-endian", "stored"])
def test_every_way_to_write_the_array(tmp_path, monkeypatch, order):
    arrays = fake()
    X = arrays["X"].astype(np.float32)
    X = {"F": np.asfortranarray(X), "float32": X, "big-endian": X.astype(">f8")}.get(order, X.astype(float))
    file = tmp_path / "a.npz"
    (np.savez if order == "stored" else np.savez_compressed)(file, X=X, y=arrays["y"])
    reference = write_npz(tmp_path / "b.npz", X=arrays["X"].astype(np.float32), y=arrays["y"])
    np.testing.assert_array_equal(read(QuarkGluon([file])).p4, read(QuarkGluon([reference])).p4)
    check_pieces(QuarkGluon([file]), monkeypatch)


def test_unknown_codes_are_flagged(tmp_path):
    X = fake()["X"]
    X[3, 0, 3], X[5, 1, 3], X[7, 0, 3], X[9, 0, 3] = 987654321, 211.5, np.nan, 0
    X[[3, 5, 7, 9], :2, 0] = 1
    source = QuarkGluon([write(tmp_path / "a.npz", X=X)])
    flagged = flags_of(source)["unknown particle code"]
    assert np.flatnonzero(flagged).tolist() == [3, 5, 7, 9]
    assert np.isfinite(read(source).p4).all()


def test_impossible_momenta_are_left_for_the_selection(tmp_path):
    X = fake()["X"]
    X[2, 0, 0], X[4, 0, 0], X[6, 0, 1] = -3, np.nan, 1e4
    X[6, 0, 0] = 1
    jets = read(QuarkGluon([write(tmp_path / "a.npz", X=X)]))
    assert [j for j in range(20) if not np.isfinite(jets[j]).all()] == [2, 4, 6]


BAD = [
    ({"X": None}, "field 'X': has no array 'X', only y"),
    ({"X": np.zeros((20, 40, 3))}, r"field 'X': has shape \(20, 40, 3\), not \(jets, particles, 4\)"),
    ({"X": np.zeros((20, 4))}, r"field 'X': has shape \(20, 4\)"),
    ({"X": np.array([{}])}, "field 'X': has type object, not numbers"),
    ({"y": np.zeros(19)}, r"field 'y': has shape \(19,\) for 20 jets"),
    ({"y": np.full(20, 2)}, "jet 0, field 'y': label 2 is outside of the 2 classes"),
    ({"y": np.where(np.arange(20) == 7, 0.5, 1)}, "jet 7, field 'y': label 0.5 is no whole number"),
]


@pytest.mark.parametrize(("change", "words"), BAD)
def test_wrong_schema(tmp_path, change, words):
    file = write(tmp_path / "a.npz", **change)
    with pytest.raises(InputError, match=words) as caught:
        read(QuarkGluon([file]))
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("order", "CF")
def test_mutations(tmp_path, order):
    file = tmp_path / "a.npz"
    np.savez(file, X=np.array(fake(6, 8)["X"], order=order), y=fake(6)["y"])
    check_mutations(file, lambda file: QuarkGluon([file]))


def test_every_byte_of_a_header(tmp_path):
    """Headers are parsed as Python literals, which fails in many ways."""
    file = tmp_path / "a.npz"
    np.savez(file, X=np.array(fake(2, 2)["X"], order="F"), y=fake(2)["y"])
    content = file.read_bytes()
    begin = content.index(b"{'descr'")
    for place in range(begin - 10, begin + 75):
        for byte in b"('}L\x00\xff\n":
            file.write_bytes(content[:place] + bytes([byte]) + content[place + 1 :])
            complaint = complaint_about(lambda: QuarkGluon([file]))
            assert complaint is None or "\n" not in complaint


def test_real_jets(tmp_path, real_data):
    """The public converted jets, turned back into the official schema as photons, whose η is y."""
    with np.load(real_data / "quarkgluon" / "quarkgluon_2000_kin.npz") as data:
        px, py, pz, energy = np.moveaxis(data["vectors"].astype(float), 1, 0)
        mask, labels = data["mask"][:, 0] == 1, data["labels"]
    p4 = np.stack([energy, px, py, pz], -1)
    X = np.stack([fourvector.pt(p4), fourvector.eta(p4), fourvector.phi(p4), np.full(px.shape, 22)], -1)
    X[~mask] = 0
    jets = read(QuarkGluon([write(tmp_path / "QG_jets.npz", X=X, y=labels)]))
    np.testing.assert_allclose(jets.p4, p4[mask], rtol=1e-4, atol=1e-4)
    mass, pt = fourvector.mass(jets.jet_p4), fourvector.pt(jets.jet_p4)
    quark = jets.labels == 1
    assert jets.classes[1] == "quark"
    assert quark.sum() == 990
    assert jets.counts[quark].mean() == pytest.approx(33.8, abs=0.05)
    assert jets.counts[~quark].mean() == pytest.approx(53.4, abs=0.05)
    assert np.median(mass[quark]) == pytest.approx(26.2, abs=0.2)
    assert np.median(mass[~quark]) == pytest.approx(41.4, abs=0.2)
    assert 499 < pt.min() < pt.max() < 551
    # With masses, the same pT and rapidities give heavier jets: a pion of 0.5 GeV has 4 % more energy.
    X[mask, 3] = 211
    pions = read(QuarkGluon([write(tmp_path / "QG_jets.npz", X=X, y=labels)]))
    heavier = fourvector.mass(pions.jet_p4) / mass - 1
    assert (heavier > 0).all()
    assert 0.01 < np.median(heavier) < 0.25
    np.testing.assert_allclose(fourvector.pt(pions.jet_p4), pt, rtol=1e-5)
