"""The hls4ml reader: columns by name, padding anywhere, one-hot classes."""

from pathlib import Path

import numpy as np
import pytest
from hdf5_files import check_mutations, check_pieces, read, write_hdf5

from jetrep.errors import InputError
from jetrep.physics import fourvector
from jetrep.physics.fourvector import from_ptetaphim
from jetrep.sources.hls4ml import CLASSES, Hls4ml

PARTICLE = [
    *("j1_px", "j1_py", "j1_pz", "j1_e", "j1_erel", "j1_pt", "j1_ptrel", "j1_eta", "j1_etarel", "j1_etarot"),
    *("j1_phi", "j1_phirel", "j1_phirot", "j1_deltaR", "j1_costheta", "j1_costhetarel", "j1_pdgid"),
]
JET = ["j_zlogz", "j_pt", "j_eta", "j_mass", *[f"j_other_{i}" for i in range(49)]]
JET += ["j_g", "j_q", "j_w", "j_z", "j_t", "j_undef"]


def official(p4: np.ndarray, labels: np.ndarray, *, codes: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Padded (n, width, 4) four-vectors in the official schema; 17 names for 16 columns, as in the files."""
    n, width = p4.shape[:2]
    particles = np.full((n, width, 16 if codes is None else 17), 7.0)
    particles[..., [3, 0, 1, 2]] = p4
    particles[..., 5], particles[..., 7] = fourvector.pt(p4), fourvector.eta(p4)
    if codes is not None:
        particles[..., 16] = codes
    particles[(p4 == 0).all(-1)] = 0
    jets = np.random.default_rng(2).normal(size=(n, 59))
    jets[:, -6:] = 0
    jets[np.arange(n), labels - 6] = 1
    total = p4.sum(1)
    jets[:, 1], jets[:, 2], jets[:, 3] = fourvector.pt(total), fourvector.eta(total), fourvector.mass(total)
    return {
        "jetConstituentList": particles,
        "jets": jets,
        "particleFeatureNames": np.array(PARTICLE, "S"),
        "jetFeatureNames": np.array(JET, "S"),
    }


def fake(n: int = 20, width: int = 30, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    pt = rng.exponential(20, (n, width))
    p4 = from_ptetaphim(pt, rng.normal(0, 0.5, pt.shape), rng.normal(0, 0.5, pt.shape), rng.uniform(0, 1, pt.shape))
    p4[rng.uniform(size=pt.shape) < 0.3] = 0  # anywhere
    return p4, rng.integers(0, 5, n)


def write(file: Path, **change) -> Path:
    return write_hdf5(file, **{**official(*fake()), **change})


def test_four_vectors_classes_and_observers(tmp_path):
    p4, labels = fake()
    jets = read(Hls4ml([write(tmp_path / "a.h5")]))
    real = (p4 != 0).any(-1)
    np.testing.assert_array_equal(jets.counts, real.sum(1))
    np.testing.assert_array_equal(jets.p4, p4[real].astype(np.float32))
    assert jets.classes == CLASSES == ("g", "q", "W", "Z", "t")
    np.testing.assert_array_equal(jets.labels, labels)
    np.testing.assert_allclose(jets.observers["jet_mass"], fourvector.mass(jets.jet_p4), rtol=1e-4)
    np.testing.assert_allclose(jets.observers["jet_pt"], fourvector.pt(jets.jet_p4), rtol=1e-5)
    np.testing.assert_allclose(jets.observers["jet_eta"], fourvector.eta(jets.jet_p4), atol=1e-5)
    assert jets.measured == {}
    assert read(Hls4ml([tmp_path / "a.h5"], labels=False)).labels is None


def test_columns_are_found_by_name(tmp_path):
    arrays = official(*fake())
    order = np.random.default_rng(4).permutation(16)
    shuffled = {
        "jetConstituentList": arrays["jetConstituentList"][..., order],
        "particleFeatureNames": arrays["particleFeatureNames"][order],
        "jets": arrays["jets"][:, ::-1],
        "jetFeatureNames": arrays["jetFeatureNames"][::-1],
    }
    straight, other = (read(Hls4ml([write(tmp_path / f"{k}.h5", **change)])) for k, change in enumerate(({}, shuffled)))
    np.testing.assert_array_equal(straight.p4, other.p4)
    np.testing.assert_array_equal(straight.labels, other.labels)
    np.testing.assert_array_equal(straight.observers["jet_mass"], other.observers["jet_mass"])


def test_files_without_names_have_the_official_order(tmp_path):
    nameless = write(tmp_path / "a.h5", particleFeatureNames=None, jetFeatureNames=None)
    jets, named = read(Hls4ml([nameless])), read(Hls4ml([write(tmp_path / "b.h5")]))
    np.testing.assert_array_equal(jets.p4, named.p4)
    np.testing.assert_array_equal(jets.labels, named.labels)
    assert jets.observers == {}
    with pytest.raises(InputError, match=r"b.h5: has other columns than"):
        Hls4ml([nameless, tmp_path / "b.h5"])


def test_particle_codes_where_the_file_has_them(tmp_path):
    p4, labels = fake()
    codes = np.random.default_rng(5).choice([22, 211, -211, 11, 130], p4.shape[:2])
    jets = read(Hls4ml([write_hdf5(tmp_path / "a.h5", **official(p4, labels, codes=codes))]))
    expected = codes[(p4 != 0).any(-1)]
    np.testing.assert_array_equal(jets.measured["pdg_id"], expected)
    np.testing.assert_array_equal(
        jets.measured["charge"], np.sign(expected) * np.isin(np.abs(expected), 211) - (expected == 11)
    )


def test_ranges(tmp_path, monkeypatch):
    check_pieces(Hls4ml([write(tmp_path / "a.h5"), write_hdf5(tmp_path / "b.h5", **official(*fake(5)))]), monkeypatch)


@pytest.mark.filterwarnings("error")
def test_any_nan_is_left_for_the_selection(tmp_path):
    """A signalling NaN, which only damage makes, would warn when it is converted."""
    arrays = official(*fake())
    numbers = arrays["jetConstituentList"].view(np.uint64)
    numbers[3, 0, 0], numbers[3, 0, 1] = 0x7FF0000000000001, 0x7FF8000000000000
    jets = read(Hls4ml([write_hdf5(tmp_path / "a.h5", **arrays)]))
    assert [j for j in range(20) if not np.isfinite(jets[j]).all()] == [3]


def flagged(*columns: int) -> np.ndarray:
    jets = official(*fake())["jets"]
    jets[3, -6:] = 0
    jets[3, list(columns)] = 1
    return jets


BAD = [
    (
        {"jetConstituentList": None},
        "has no dataset 'jetConstituentList', only jetFeatureNames, jets, particleFeatureNames",
    ),
    ({"jets": None}, "has no dataset 'jets'"),
    ({"jets": np.zeros((19, 59))}, "jetConstituentList, jets have lengths 20, 19"),
    ({"jetConstituentList": np.zeros((20, 16))}, r"has shape \(20, 16\), not \(jets, particles, columns\)"),
    ({"jetConstituentList": np.zeros((20, 30, 12)), "particleFeatureNames": None}, "has 12 columns, and no names in"),
    ({"particleFeatureNames": np.array(["j1_px", "j1_py", "j1_pz"], "S")}, "has no column 'j1_e'"),
    ({"particleFeatureNames": np.zeros(17)}, "field 'particleFeatureNames': is truncated, damaged"),
    ({"jetFeatureNames": np.array(JET[:-4], "S")}, "has no column 'j_w' for its class"),
    ({"jets": np.zeros((20, 4)), "jetFeatureNames": None}, "has 4 columns, too few for the classes"),
    ({"jets": flagged(-1)}, "jet 3, field 'jets': the jet is not of exactly one class of g, q, W, Z, t"),
    ({"jets": flagged(-6, -2)}, "jet 3, field 'jets': the jet is not of exactly one class"),
]


@pytest.mark.parametrize(("change", "words"), BAD)
def test_wrong_schema(tmp_path, change, words):
    file = write(tmp_path / "a.h5", **change)
    with pytest.raises(InputError, match=words) as caught:
        read(Hls4ml([file]))
    assert str(file) in str(caught.value)


def test_mutations(tmp_path):
    check_mutations(write(tmp_path / "a.h5"), lambda file: Hls4ml([file]))


def test_real_jets_have_the_masses_of_their_classes(tmp_path, real_data):
    """pT, Δη, Δφ of real particles, put around an axis at η = φ = 0 and written to the official schema."""
    pt, eta, phi = np.moveaxis(np.load(real_data / "hls4ml" / "x_test_32const.npy").astype(float), -1, 0)
    labels = np.load(real_data / "hls4ml" / "y_test_16const.npy").argmax(1)
    p4 = from_ptetaphim(pt, eta, phi, np.zeros(pt.shape))
    p4[pt <= 0] = 0
    jets = read(Hls4ml([write_hdf5(tmp_path / "a.h5", **official(p4, labels))]))
    assert np.bincount(jets.labels).tolist() == [574, 583, 576, 632, 635]
    assert (jets.counts.min(), jets.counts.max()) == (6, 32)
    mass = fourvector.mass(jets.jet_p4)
    medians = dict(zip(jets.classes, (float(np.median(mass[jets.labels == k])) for k in range(5)), strict=True))
    assert medians == pytest.approx({"g": 57, "q": 35, "W": 77, "Z": 87, "t": 136}, abs=0.6)
    # A quarter of the jets have an empty slot before a particle: the last particle would be lost to a count.
    empty = pt <= 0
    assert (empty[:, :-1] & ~empty[:, 1:]).any(1).sum() > 100
