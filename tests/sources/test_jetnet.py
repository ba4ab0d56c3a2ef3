"""JetNet: relative coordinates become four-vectors, the azimuth that is not stored is drawn reproducibly."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from hdf5_files import check_mutations, check_pieces, complaint_about, read, write_hdf5
from hypothesis import given
from hypothesis import strategies as st

from jetrep.errors import InputError
from jetrep.physics import fourvector
from jetrep.physics.fourvector import from_ptetaphim
from jetrep.sources.jetnet import CLASSES, JetNet, _azimuths


def fake(n: int = 20, width: int = 30, seed: int = 0) -> dict[str, np.ndarray]:
    """Jets in the official schema, some with fewer particles than fit, padding in the middle in one."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, width + 1, n)
    counts[0] = width
    mask = np.arange(width) < counts[:, None]
    mask[1, ::2] = False
    pt_rel = -np.sort(-rng.dirichlet(np.ones(width), n), axis=1)
    particles = np.stack([*rng.normal(0, 0.1, (2, n, width)), pt_rel, np.ones((n, width))], -1)
    particles[~mask] = 0
    jets = np.stack([rng.uniform(800, 1600, n), rng.uniform(-2, 2, n), rng.uniform(20, 200, n), mask.sum(1)], -1)
    return {"particle_features": particles.astype(np.float32), "jet_features": jets.astype(np.float32)}


def write(file: Path, **change) -> Path:
    return write_hdf5(file, **{**fake(), **change})


def test_relative_coordinates_become_massless_four_vectors(tmp_path):
    arrays = fake()
    jets = read(JetNet([write(tmp_path / "t.hdf5")]))
    particles, whole = arrays["particle_features"].astype(float), arrays["jet_features"].astype(float)
    mask = particles[..., 3] == 1
    np.testing.assert_array_equal(jets.counts, mask.sum(1))
    of = np.repeat(np.arange(len(jets)), jets.counts)
    p4 = jets.p4.astype(float)
    np.testing.assert_allclose(fourvector.pt(p4), particles[mask][:, 2] * whole[of, 0], rtol=1e-6)
    np.testing.assert_allclose(fourvector.eta(p4), particles[mask][:, 0] + whole[of, 1], atol=1e-6)
    np.testing.assert_allclose(p4[:, 0], np.linalg.norm(p4[:, 1:], axis=1), rtol=1e-6)
    phi = jets.observers["jet_phi"][of] + particles[mask][:, 1]
    np.testing.assert_allclose(fourvector.delta_phi(fourvector.phi(p4), phi), 0, atol=1e-6)
    for k, name in enumerate(("jet_pt", "jet_eta", "jet_mass", "jet_nparticles")):
        np.testing.assert_array_equal(jets.observers[name], arrays["jet_features"][:, k])


def test_a_known_jet_comes_back(tmp_path):
    """Two particles at ±0.4 in η around the axis, each with half of 1 TeV: the mass is 1000·sinh(0.4)."""
    particles = np.zeros((1, 30, 4), np.float32)
    particles[0, :2] = [[0.4, 0, 0.5, 1], [-0.4, 0, 0.5, 1]]
    file = write(tmp_path / "w.hdf5", particle_features=particles, jet_features=np.array([[1000, 1.5, 0, 2.0]]))
    total = read(JetNet([file])).jet_p4[0]
    assert fourvector.mass(total) == pytest.approx(1000 * np.sinh(0.4), rel=1e-5)
    assert fourvector.pt(total) == pytest.approx(1000, rel=1e-6)
    assert fourvector.rapidity(total) == pytest.approx(1.5, abs=1e-6)


def test_the_azimuth_hangs_on_seed_name_and_row_alone(tmp_path):
    (tmp_path / "other").mkdir()
    t, elsewhere, q = (write(tmp_path / name) for name in ("t.hdf5", "other/t.hdf5", "q.hdf5"))
    phi = [
        read(JetNet([file], seed=seed)).observers["jet_phi"] for file, seed in ((t, 0), (elsewhere, 0), (q, 0), (t, 1))
    ]
    np.testing.assert_array_equal(phi[0], phi[1])
    assert not np.isin(phi[0], np.concatenate(phi[2:])).any()
    # Uniform in [−π, π): recorded values guard against another generator, mean and spread against another range.
    many = _azimuths(0, "t", 0, 100_000)
    assert -np.pi <= many.min() < -3.14 < 3.14 < many.max() < np.pi
    assert abs(many.mean()) < 5 * np.pi / np.sqrt(3e5)
    np.testing.assert_allclose(many.std(), np.pi / np.sqrt(3), rtol=0.01)
    np.testing.assert_array_equal(phi[0], many[:20])


@given(start=st.integers(0, 50), length=st.integers(0, 20))
def test_azimuths_of_a_range_are_those_of_the_whole(start, length):
    np.testing.assert_array_equal(_azimuths(3, "g", start, start + length), _azimuths(3, "g", 0, 70)[start:][:length])


def test_the_class_is_in_the_name(tmp_path):
    files = [write(tmp_path / name) for name in ("z.hdf5", "g.hdf5", "q.hdf5")]
    source = JetNet(files)
    assert source.classes == CLASSES == ("g", "q", "t", "w", "z")
    assert np.unique(read(source).labels).tolist() == [0, 1, 4]
    np.testing.assert_array_equal(read(source).labels[:20], 4)
    nameless = write(tmp_path / "jets.hdf5")
    with pytest.raises(
        InputError, match=r"jets.hdf5: the name tells no class, which are g, q, t, w, z; name it g.hdf5"
    ):
        JetNet([nameless])
    unlabelled = read(JetNet([nameless], labels=False))
    assert (unlabelled.labels, unlabelled.classes) == (None, ())


def test_150_particles_and_no_mixture(tmp_path):
    wide = write_hdf5(tmp_path / "g150.hdf5", **fake(width=150))
    jets = read(JetNet([wide]))
    assert jets.counts.max() == 150
    assert jets.labels.tolist() == [0] * 20
    with pytest.raises(InputError, match=r"has up to 150 particles a jet, .*q.hdf5 up to 30; give files of JetNet30"):
        JetNet([write(tmp_path / "q.hdf5"), wide])


def test_ranges(tmp_path, monkeypatch):
    check_pieces(JetNet([write(tmp_path / "t.hdf5"), write_hdf5(tmp_path / "w.hdf5", **fake(7, seed=1))]), monkeypatch)


def test_blocks_stay_small_whatever_the_width(tmp_path, monkeypatch):
    source = JetNet([write(tmp_path / "t.hdf5")])
    whole = read(source)
    monkeypatch.setattr("jetrep.sources._hdf5._BLOCK", 5 * 30 * 4 * 4)
    chunks = list(source.read(0, 0, 20))
    assert [len(chunk.jets) for chunk in chunks] == [5, 5, 5, 5]
    np.testing.assert_array_equal(np.concatenate([chunk.jets.p4 for chunk in chunks]), whole.p4)


def test_impossible_momenta_are_left_for_the_selection(tmp_path):
    """A negative pT would otherwise be a particle on the other side."""
    arrays = fake()
    arrays["particle_features"][3, 0, 2] = -0.1
    arrays["particle_features"][4, 0, 0] = np.nan
    arrays["jet_features"][5, 1] = np.inf
    jets = read(JetNet([write_hdf5(tmp_path / "t.hdf5", **arrays)]))
    bad = [int(j) for j in range(20) if not np.isfinite(jets[j]).all()]
    assert bad == [3, 4, 5]
    assert np.isnan(jets[3][0]).all()


BAD = [
    ({"particle_features": None}, "field 'particle_features': has no dataset 'particle_features', only jet_features"),
    ({"jet_features": None}, "has no dataset 'jet_features', only particle_features"),
    ({"particle_features": np.zeros((20, 30, 3))}, r"has shape \(20, 30, 3\), not \(jets, particles, 4\)"),
    ({"particle_features": np.zeros(20)}, r"has shape \(20,\), not \(jets, particles, 4\)"),
    ({"jet_features": np.zeros((20, 5))}, r"has shape \(20, 5\), not \(jets, 4\)"),
    ({"jet_features": np.zeros((19, 4))}, "particle_features, jet_features have lengths 20, 19"),
    ({"jet_features": np.array([["a"] * 4] * 20, "S")}, "holds |S1, not numbers"),
    ({"jet_features": np.zeros((20, 4), complex)}, "holds complex128, not numbers"),
    ({"particle_features": np.full((20, 30, 4), 0.5)}, "jet 0, field 'particle_features': the mask is neither 0 nor 1"),
]


@pytest.mark.parametrize(("change", "words"), BAD)
def test_wrong_schema(tmp_path, change, words):
    file = write(tmp_path / "t.hdf5", **change)
    with pytest.raises(InputError, match=words) as caught:
        read(JetNet([file]))
    assert str(file) in str(caught.value)
    assert "6975118" in str(caught.value)


def test_files_that_are_none(tmp_path):
    (tmp_path / "t.hdf5").write_text("eta,phi,pt\n")
    assert "is truncated, damaged, or no HDF5 file" in complaint_about(lambda: JetNet([tmp_path / "t.hdf5"]))
    assert "does not exist" in complaint_about(lambda: JetNet([tmp_path / "q.hdf5"]))
    with h5py.File(tmp_path / "g.hdf5", "w") as hdf5:
        hdf5.create_group("particle_features")
        hdf5["jet_features"] = np.zeros((3, 4))
    assert "is a group, no dataset" in complaint_about(lambda: JetNet([tmp_path / "g.hdf5"]))


def test_a_file_that_points_elsewhere_is_refused(tmp_path):
    """HDF5 reads zeros where a file that it points to is missing, and those would be empty jets."""
    whole = write(tmp_path / "t.hdf5")
    with h5py.File(tmp_path / "q.hdf5", "w") as hdf5:
        hdf5["particle_features"] = h5py.ExternalLink(str(whole), "particle_features")
        hdf5["jet_features"] = np.zeros((20, 4))
    layout = h5py.VirtualLayout((20, 30, 4), np.float32)
    layout[:] = h5py.VirtualSource(str(whole), "particle_features", (20, 30, 4))
    with h5py.File(tmp_path / "g.hdf5", "w") as hdf5:
        hdf5.create_virtual_dataset("particle_features", layout)
        hdf5["jet_features"] = np.zeros((20, 4))
    for name in ("q", "g"):
        assert "only points to other files" in complaint_about(lambda name=name: JetNet([tmp_path / f"{name}.hdf5"]))


def test_a_file_that_became_shorter(tmp_path):
    source = JetNet([write(tmp_path / "t.hdf5")])
    write_hdf5(tmp_path / "t.hdf5", **fake(12))
    with pytest.raises(InputError, match="truncated"):
        read(source)


def test_mutations(tmp_path):
    check_mutations(write(tmp_path / "t.hdf5"), lambda file: JetNet([file]))


def test_jets_of_top_tagging_survive_the_way_through_relative_coordinates(tmp_path, real_data):
    """Real top jets, written in JetNet's coordinates: the masses of the 30 hardest come back, whatever the azimuth."""
    with np.load(real_data / "toptagging" / "top_test_00.npz") as data:
        p4, n, y = data["p4"], data["n"].astype(np.int64), data["y"]
    ends = np.cumsum(n)
    tops = np.flatnonzero(y == 1)[:300]
    particles, whole, masses = np.zeros((300, 30, 4)), np.zeros((300, 4)), []
    for j, jet in enumerate(tops):
        constituents = p4[ends[jet] - n[jet] : ends[jet]].astype(float)
        axis, kept = constituents.sum(0), constituents[:30]
        pt, eta, phi = fourvector.pt(kept), fourvector.eta(kept), fourvector.phi(kept)
        d_phi = fourvector.delta_phi(phi, fourvector.phi(axis))
        particles[j, : len(kept)] = np.stack(
            [eta - fourvector.eta(axis), d_phi, pt / fourvector.pt(axis), np.ones(len(kept))], -1
        )
        whole[j] = fourvector.pt(axis), fourvector.eta(axis), fourvector.mass(axis), len(kept)
        masses.append(fourvector.mass(from_ptetaphim(pt, eta, phi, np.zeros(len(kept))).sum(0)))
    jets = read(JetNet([write(tmp_path / "t.hdf5", particle_features=particles, jet_features=whole)]))
    np.testing.assert_allclose(fourvector.mass(jets.jet_p4), masses, rtol=1e-3)
    assert 160 < np.median(fourvector.mass(jets.jet_p4)) < 178
