"""Pythia and Herwig after Delphes: relative coordinates, coded kinds of particles, classes from the names."""

from pathlib import Path

import numpy as np
import pytest
from hdf5_files import check_mutations, check_pieces, complaint_about, flags, read, write_npz

from jetrep.errors import InputError
from jetrep.physics import fourvector
from jetrep.sources.omnifold import CLASSES, OmniFold

# Stated once more, so that a slip in the reader's own table shows.
KINDS = {0.0: 22, 0.1: 211, 0.2: -211, 0.3: 130, 0.4: 11, 0.5: -11, 0.6: 13, 0.7: -13, 0.8: 321, 0.9: -321}
KINDS |= {1.0: 2212, 1.1: -2212, 1.2: 2112, 1.3: -2112}
MASS = {22: 0, 211: 0.13957, 130: 0.49761, 11: 0.000511, 13: 0.10566, 321: 0.49368, 2212: 0.93827, 2112: 0.93957}
OBSERVABLES = ("mults", "lhas", "widths", "ang2s", "tau2s", "sdms", "zgs")


def fake(n: int = 20, width: int = 25, seed: int = 0) -> dict[str, np.ndarray]:
    """Both levels; the jets are the sums of their particles, in float32 as in the files."""
    arrays = {}
    for k, level in enumerate(("gen", "sim")):
        rng = np.random.default_rng((seed, k))
        numbers = rng.choice(list(KINDS) if level == "gen" else list(KINDS)[:8], (n, width))
        codes = np.vectorize(KINDS.get)(numbers)
        mass = np.vectorize(MASS.get)(np.abs(codes))
        if level == "sim":
            mass = np.where(np.isin(codes, (22, 130)), 0, mass)
        pt, y, phi = (
            rng.exponential(12, (n, width)) + 0.5,
            rng.normal(0, 0.2, (n, width)),
            rng.normal(0, 0.2, (n, width)),
        )
        real = np.arange(width) < rng.integers(1, width + 1, n)[:, None]
        real[1] = np.arange(width) % 2 == 1
        m_t = np.hypot(pt, mass)
        axis = rng.uniform(-2, 2, n), rng.uniform(0, 2 * np.pi, n)
        y, phi = y + axis[0][:, None], phi + axis[1][:, None]
        p4 = np.stack([m_t * np.cosh(y), pt * np.cos(phi), pt * np.sin(phi), m_t * np.sinh(y)], -1)
        total = (p4 * real[..., None]).sum(1)
        jets = np.stack([f(total) for f in (fourvector.pt, fourvector.rapidity, fourvector.phi, fourvector.mass)], -1)
        particles = np.stack([pt / 100, y - jets[:, None, 1], fourvector.delta_phi(phi, jets[:, None, 2]), numbers], -1)
        particles[~real] = 0
        arrays |= {f"{level}_jets": jets.astype(np.float32), f"{level}_particles": particles.astype(np.float32)}
        arrays |= {f"{level}_{name}": rng.uniform(size=n).astype(np.float32) for name in OBSERVABLES}
        arrays[f"{level}_mults"] = real.sum(1)
    arrays["gen_Zs"] = np.zeros((n, 3), np.float32)
    return arrays


def write(file: Path, **change) -> Path:
    return write_npz(file, **{**fake(), **change})


@pytest.mark.parametrize(("level", "prefix"), [("detector", "sim"), ("generator", "gen")])
def test_constituents_add_up_to_their_jet(tmp_path, level, prefix):
    arrays = fake()
    jets = read(OmniFold([write(tmp_path / "Herwig_Zjet_pTZ-200GeV_0.npz")], level=level))
    np.testing.assert_array_equal(jets.counts, arrays[f"{prefix}_mults"])
    total = jets.jet_p4
    for k, (name, function) in enumerate(
        (
            *(("jet_pt", fourvector.pt), ("jet_y", fourvector.rapidity)),
            *(("jet_phi", fourvector.phi), ("jet_m", fourvector.mass)),
        )
    ):
        np.testing.assert_array_equal(jets.observers[name], arrays[f"{prefix}_jets"][:, k])
        np.testing.assert_allclose(function(total), jets.observers[name], rtol=2e-4, atol=2e-5)
    np.testing.assert_array_equal(jets.observers["jet_sdmass"], arrays[f"{prefix}_sdms"])
    np.testing.assert_array_equal(jets.observers["jet_zg"], arrays[f"{prefix}_zgs"])


def test_units_and_signs(tmp_path):
    """A π⁻ of 25 GeV, 0.1 above its jet in y and 0.2 beyond it in φ."""
    change = {
        "gen_jets": np.array([[200, 1.0, 3.1, 10.0]]),
        "gen_particles": np.array([[[0, 0, 0, 0], [0.25, 0.1, 0.2, 0.2]]]),
        **{f"gen_{name}": None for name in OBSERVABLES},
    }
    jets = read(OmniFold([write(tmp_path / "a.npz", **change)], level="generator"))
    p4 = jets.p4.astype(float)[0]
    assert fourvector.pt(p4) == pytest.approx(25, rel=1e-6)
    assert fourvector.rapidity(p4) == pytest.approx(1.1, abs=1e-5)
    assert fourvector.phi(p4) == pytest.approx(3.3 - 2 * np.pi, abs=1e-6)
    assert p4[0] == pytest.approx(np.hypot(25, 0.13957) * np.cosh(1.1), rel=1e-6)
    assert jets.measured["pdg_id"].tolist() == [-211]
    assert jets.measured["charge"].tolist() == [-1]
    assert set(jets.observers) == {"jet_pt", "jet_y", "jet_phi", "jet_m"}


def test_kinds_of_particles(tmp_path):
    particles = fake()["gen_particles"]
    numbers = np.round(particles[particles[..., 0] > 0][:, 3].astype(float), 1)
    measured = read(OmniFold([write(tmp_path / "a.npz")], level="generator")).measured
    codes = np.array([KINDS[float(number)] for number in numbers])
    assert set(codes) == set(KINDS.values())
    np.testing.assert_array_equal(measured["pdg_id"], codes)
    np.testing.assert_array_equal(measured["is_photon"], codes == 22)
    np.testing.assert_array_equal(measured["is_electron"], np.abs(codes) == 11)
    np.testing.assert_array_equal(measured["is_neutral_hadron"], np.isin(np.abs(codes), (130, 2112)))
    np.testing.assert_array_equal(measured["charge"][codes == 11], -1)


def test_unknown_kinds_are_flagged(tmp_path):
    particles = fake()["sim_particles"]
    for jet, number in ((2, 1.4), (5, 0.15), (7, -0.1), (9, np.nan)):
        particles[jet, 0] = [0.1, 0, 0, number]
    source = OmniFold([write(tmp_path / "a.npz", sim_particles=particles)])
    assert np.flatnonzero(flags(source)["unknown particle code"]).tolist() == [2, 5, 7, 9]


def test_classes_from_the_names(tmp_path):
    files = [write(tmp_path / f"{name}_Zjet_pTZ-200GeV_3.npz") for name in ("Pythia26", "Herwig", "pythia21")]
    source = OmniFold(files)
    assert source.classes == CLASSES == ("Herwig", "Pythia21", "Pythia25", "Pythia26")
    assert read(source).labels.reshape(3, 20).T.tolist() == [[3, 0, 1]] * 20
    bare = write(tmp_path / "jets.npz")
    assert (OmniFold([bare]).classes, read(OmniFold([bare])).labels) == ((), None)
    assert read(OmniFold([*files, bare], labels=False)).labels is None
    assert "jets.npz: the name tells no class" in complaint_about(lambda: OmniFold([*files, bare]))
    assert OmniFold([write(tmp_path / "Pythia2_x.npz")]).classes == ()


@pytest.mark.parametrize("level", ["detector", "generator"])
def test_ranges(tmp_path, monkeypatch, level):
    files = [write(tmp_path / "Herwig_0.npz"), write_npz(tmp_path / "Pythia21_0.npz", **fake(7, 12, seed=1))]
    check_pieces(OmniFold(files, level=level), monkeypatch)


def test_fortran_order_and_other_bytes(tmp_path):
    arrays = fake()
    particles = np.asfortranarray(arrays["sim_particles"].astype(">f8"))
    other = write(tmp_path / "b.npz", sim_particles=particles, sim_lhas=arrays["sim_lhas"].astype(">f4"))
    a, b = (read(OmniFold([file])) for file in (write(tmp_path / "a.npz"), other))
    np.testing.assert_array_equal(a.p4, b.p4)
    assert b.observers["jet_lha"].dtype.isnative
    np.testing.assert_array_equal(a.observers["jet_lha"], b.observers["jet_lha"])


BAD = [
    ({"sim_particles": None}, "field 'sim_particles': has no array 'sim_particles', only gen_jets"),
    ({"sim_jets": None}, "field 'sim_jets': has no array 'sim_jets'"),
    ({"sim_jets": np.zeros((20, 3))}, r"field 'sim_jets': has shape \(20, 3\), not \(jets, 4\)"),
    ({"sim_particles": np.zeros((20, 25, 5))}, r"has shape \(20, 25, 5\), not \(jets, particles, 4\)"),
    ({"sim_particles": np.zeros((19, 25, 4))}, "field 'sim_particles': has 19 rows, sim_jets 20"),
    ({"sim_lhas": np.zeros((20, 2))}, r"field 'sim_lhas': has shape \(20, 2\), not \(jets,\)"),
    ({"sim_particles": np.array([None] * 20)}, "has type object, not numbers"),
]


@pytest.mark.parametrize(("change", "words"), BAD)
def test_wrong_schema(tmp_path, change, words):
    file = write(tmp_path / "a.npz", **change)
    with pytest.raises(InputError, match=words) as caught:
        read(OmniFold([file]))
    assert str(file) in str(caught.value)


def test_mixed_files_and_levels(tmp_path):
    files = [write(tmp_path / "a.npz"), write(tmp_path / "b.npz", sim_zgs=None)]
    assert "b.npz: has other arrays than" in complaint_about(lambda: OmniFold(files))
    assert "field 'level': is 'sim'; give 'detector'" in complaint_about(lambda: OmniFold(files, level="sim"))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_mutations(tmp_path, save):
    file = tmp_path / "Herwig_0.npz"
    save(file, **fake(6, 8))
    check_mutations(file, lambda file: OmniFold([file]))
