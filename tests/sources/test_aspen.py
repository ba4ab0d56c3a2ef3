"""Aspen Open Jets: PUPPI weights, lengths in mm, candidates without a track, no labels."""

from pathlib import Path

import numpy as np
import pytest
from hdf5_files import check_mutations, check_pieces, read, write_hdf5

from jetrep.errors import InputError
from jetrep.physics import fourvector
from jetrep.physics.fourvector import from_ptetaphim
from jetrep.sources.aspen import AspenOpenJets

CODES = np.array([211, -211, 130, 22, 11, 13, 1, 2])
CHARGES = np.array([1, -1, 0, 0, -1, -1, 0, 0])


def fake(n: int = 20, width: int = 150, seed: int = 0) -> dict[str, np.ndarray]:
    """Jets in the schema of the files: candidates px, py, pz, E, d0 …, sorted by pT, zero-padded."""
    rng = np.random.default_rng(seed)
    pt = -np.sort(-rng.exponential(8, (n, width)) - 0.3, axis=1)
    p4 = from_ptetaphim(pt, rng.normal(0, 0.4, pt.shape), rng.normal(1, 0.4, pt.shape), np.full(pt.shape, 0.1396))
    kind = rng.integers(0, len(CODES), pt.shape)
    candidates = np.zeros((n, width, 11), np.float32)
    candidates[..., [3, 0, 1, 2]] = p4
    candidates[..., 4:8] = np.abs(rng.normal(0, 0.01, (n, width, 4)))
    candidates[CHARGES[kind] == 0, 4:8] = -1  # what CMS gives to candidates without a track
    candidates[..., 8], candidates[..., 9] = CHARGES[kind], CODES[kind]
    candidates[..., 10] = rng.choice([0, 0.25, 1], pt.shape, p=[0.2, 0.3, 0.5])
    counts = rng.integers(1, width, n)
    counts[0] = width
    candidates[np.arange(width) >= counts[:, None]] = 0
    candidates[1, 3] = 0  # in the middle
    total = candidates[..., [3, 0, 1, 2]].astype(float).sum(1)
    kinematics = np.stack(
        [fourvector.pt(total), fourvector.eta(total), fourvector.phi(total), fourvector.mass(total)], -1
    )
    tagging = np.concatenate([(candidates[..., 3] > 0).sum(1)[:, None], rng.uniform(size=(n, 12))], 1)
    events = np.stack([np.full(n, 281_976), np.arange(n), 3_000_000_000 + np.arange(n)], -1)
    return {
        "event_info": events,
        "jet_kinematics": kinematics.astype(np.float32),
        "PFCands": candidates,
        "jet_tagging": tagging.astype(np.float32),
    }


def write(file: Path, **change) -> Path:
    return write_hdf5(file, **{**fake(), **change})


def candidates_of(arrays: dict[str, np.ndarray], puppi: bool) -> np.ndarray:
    candidates = arrays["PFCands"]
    return candidates[(candidates[..., 3] > 0) & ((candidates[..., 10] > 0) | (not puppi))].astype(float)


@pytest.mark.parametrize("puppi", [True, False])
def test_four_vectors(tmp_path, puppi):
    real = candidates_of(fake(), puppi)
    jets = read(AspenOpenJets([write(tmp_path / "a.h5")], puppi=puppi))
    weight = real[:, 10] if puppi else 1
    for k, column in enumerate((3, 0, 1, 2)):
        np.testing.assert_allclose(jets.p4[:, k], real[:, column] * weight, rtol=1e-6)
    np.testing.assert_allclose(jets.measured["puppi_weight"], real[:, 10])
    assert (jets.measured["puppi_weight"].min() == 0) != puppi
    kept = (fake()["PFCands"][..., 3] > 0).sum(1)
    np.testing.assert_array_equal(jets.observers["n_constituents"], kept)
    assert (jets.counts < kept).any() == puppi
    if not puppi:
        np.testing.assert_allclose(jets.observers["jet_sdmass"], fourvector.mass(jets.jet_p4), rtol=1e-3, atol=0.02)


def test_lengths_are_in_mm_and_zero_without_a_track(tmp_path):
    real = candidates_of(fake(), True)
    measured = read(AspenOpenJets([write(tmp_path / "a.h5")])).measured
    track = real[:, 8] != 0
    for k, name in ((4, "d0"), (5, "d0_error"), (6, "dz"), (7, "dz_error")):
        np.testing.assert_allclose(measured[name][track], 10 * real[track, k], rtol=1e-6)
        assert (measured[name][~track] == 0).all()
    assert 0.05 < np.median(measured["d0"][track]) < 0.15  # mm


def test_types_of_particles(tmp_path):
    real = candidates_of(fake(), True)
    measured = read(AspenOpenJets([write(tmp_path / "a.h5")])).measured
    code = real[:, 9].astype(int)
    np.testing.assert_array_equal(measured["charge"], real[:, 8])
    np.testing.assert_array_equal(measured["pdg_id"], np.select([code == 1, code == 2], [130, 22], code))
    np.testing.assert_array_equal(measured["is_neutral_hadron"], np.isin(code, (130, 1)))
    np.testing.assert_array_equal(measured["is_photon"], np.isin(code, (22, 2)))
    np.testing.assert_array_equal(measured["is_charged_hadron"], np.abs(code) == 211)


def test_collisions_have_no_labels_and_exact_event_numbers(tmp_path):
    source = AspenOpenJets([write(tmp_path / "a.h5")], labels=True)
    jets = read(source)
    assert source.classes == jets.classes == ()
    assert jets.labels is None
    arrays = fake()
    for k, name in enumerate(("run", "lumi", "event")):
        np.testing.assert_array_equal(jets.observers[name], arrays["event_info"][:, k])
    assert jets.observers["event"].max() == 3_000_000_019
    for k, name in enumerate(("jet_pt", "jet_eta", "jet_phi", "jet_sdmass")):
        np.testing.assert_array_equal(jets.observers[name], arrays["jet_kinematics"][:, k])
    for k in range(1, 5):
        np.testing.assert_array_equal(jets.observers[f"jet_tau{k}"], arrays["jet_tagging"][:, k])


def test_ranges(tmp_path, monkeypatch):
    check_pieces(AspenOpenJets([write(tmp_path / "a.h5"), write_hdf5(tmp_path / "b.h5", **fake(5))]), monkeypatch)


def test_impossible_numbers_are_left_for_the_selection(tmp_path):
    arrays = fake()
    arrays["PFCands"][3, 0, 10] = np.nan
    arrays["PFCands"][4, 0, 0] = np.inf
    arrays["PFCands"][5, 0, 9] = np.nan
    jets = read(AspenOpenJets([write_hdf5(tmp_path / "a.h5", **arrays)]))
    assert [j for j in range(20) if not np.isfinite(jets[j]).all()] == [3, 4]


BAD = [
    ({"PFCands": None}, "has no dataset 'PFCands', only event_info, jet_kinematics, jet_tagging"),
    ({"PFCands": np.zeros((20, 150, 10))}, r"has shape \(20, 150, 10\), not \(jets, candidates, 11\)"),
    ({"event_info": None}, "has no dataset 'event_info'"),
    ({"event_info": np.zeros((20, 2))}, r"has shape \(20, 2\), not \(jets, 3\)"),
    ({"jet_kinematics": np.zeros((12, 4))}, "have lengths 20, 20, 12, 20"),
    ({"jet_tagging": np.zeros((20, 4))}, "has 4 columns, fewer than 5"),
]


@pytest.mark.parametrize(("change", "words"), BAD)
def test_wrong_schema(tmp_path, change, words):
    file = write(tmp_path / "a.h5", **change)
    with pytest.raises(InputError, match=words) as caught:
        read(AspenOpenJets([file]))
    assert str(file) in str(caught.value)


def test_mutations(tmp_path):
    check_mutations(write(tmp_path / "a.h5"), lambda file: AspenOpenJets([file]))
