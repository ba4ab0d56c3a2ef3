"""`jetrep compress`: cells resume, baselines stand beside models, tables show means over seeds."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from jetrep.errors import InputError
from jetrep.report.tables import ResultsTable
from jetrep.studies.compress import compress
from prong_jets import prong_jets, write_store

DECODER = {"n_particles": 10, "width": 8, "vectors": 4, "heads": 2, "depth": 1, "hidden": 8}
LGAE = {
    "name": "LGAE 24",
    "encoder": {"kind": "lorentz", "width": 8, "vectors": 4, "heads": 2, "depth": 1, "hidden": 8, "pooled": 4},
    "latent": 4,
    "decoder": DECODER,
}
CNNAE = {
    "name": "CNNAE",
    "encoder": {"kind": "cnnae", "pixels": 8, "channels": [4], "latent": 5},
    "decoder": {"n_particles": 10},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compress")
    settings = {
        "train": [write_store(folder / "train", prong_jets(200))],
        "test": [write_store(folder / "test", prong_jets(200, seed=1))],
        "out": folder / "out",
        "models": [LGAE, CNNAE],
        "classes": ["qcd"],
        "steps": 2,
        "batch_size": 32,
        "n_jets": [64],
        "n_jets_models": ["LGAE 24"],
        "seeds": 2,
        "n_bootstrap": 5,
        "quiet": True,
    }
    compress(**settings)
    return settings


def test_every_model_and_seed_is_there_and_baselines_keep_no_more(made):
    out = made["out"]
    numbers = pq.read_table(out / "results.parquet").to_pandas()
    own = numbers[numbers.model == numbers.of]
    assert set(own[own.n_jets.isna()].groupby("model").seed.nunique()) == {2}
    assert set(own[~own.n_jets.isna()].model) == {"LGAE 24"}
    assert set(own[own.model == "LGAE 24"]["size"]) == {24}
    beside = numbers[(numbers.model != numbers.of) & (numbers.of == "LGAE 24")]
    assert dict(beside.groupby("model")["size"].first()) == {"8 hardest particles": 24, "5 linear vectors": 21}
    curves = ("compression-mass.png", "compression-emd.png", "data-efficiency-particles.png")
    for name in (*curves, "anomaly.md", "costs.md"):
        assert (out / name).stat().st_size > 0


def test_tables_are_means_over_seeds(made):
    table = ResultsTable.load(made["out"] / "reconstruction.json")
    numbers = pq.read_table(made["out"] / "results.parquet").to_pandas()
    chosen = numbers[
        (numbers.model == "LGAE 24")
        & numbers.n_jets.isna()
        & (numbers.row == "particle Δη")
        & (numbers.metric == "IQR")
        & (numbers.domain == "qcd")
    ]
    assert len(chosen) == 2
    cell = table.cells["LGAE 24", "qcd", "Δη: IQR"]
    np.testing.assert_allclose(cell.value, chosen.value.mean())
    np.testing.assert_allclose(cell.seed_error, chosen.value.std(ddof=1))
    # Nothing was trained in a baseline: its seeds are one.
    assert table.cells["8 hardest particles", "qcd", "jet mass: IQR"].n_seeds == 1
    assert any("exact by design: LGAE 24" in note for note in table.notes)
    anomaly = ResultsTable.load(made["out"] / "anomaly.json")
    assert {"LGAE 24", "LGAE 24, decorrelated", "jet mass", "multiplicity"} <= set(anomaly.methods)
    assert {"LGAE 24, latent", "LGAE 24, latent, decorrelated", "5 linear vectors, latent"} <= set(anomaly.methods)
    scores = ResultsTable.load(made["out"] / "scores.json")
    score, latent = (scores.cells["LGAE 24", "", name].value for name in ("Hungarian", "latent Mahalanobis"))
    assert score == anomaly.cells["LGAE 24", "top", "auc"].value
    assert latent == anomaly.cells["LGAE 24, latent", "top", "auc"].value
    residuals = ResultsTable.load(made["out"] / "residuals.json")
    assert {"particle pT: median", "particle φ: IQR", "jet η: IQR"} <= set(residuals.metrics)
    # Pixels are no particles.
    assert ("CNNAE", "qcd", "particle pT: median") not in residuals.cells


def test_a_finished_study_is_not_computed_again_and_other_settings_are_refused(made, capsys):
    before = {file: file.stat().st_mtime_ns for file in made["out"].rglob("cell.json")}
    assert len(before) == 6
    compress(**{**made, "quiet": False})
    assert "0 cells to compute, 6 of 6" in capsys.readouterr().err
    assert {file: file.stat().st_mtime_ns for file in made["out"].rglob("cell.json")} == before
    with pytest.raises(InputError, match="other settings \\(steps\\)"):
        compress(**{**made, "steps": 3})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_jets_models": ["GNN"]}, "there is no model 'GNN'"),
        ({"models": [LGAE, LGAE]}, "two rows are called"),
        ({"models": [{**LGAE, "latnt": 3}]}, "latnt"),
        ({"n_jets": [8]}, "n_jets 8"),
    ],
    ids=["unknown-model", "twice", "unknown-setting", "less-than-a-batch"],
)
def test_bad_settings(made, change, message):
    with pytest.raises(InputError, match=message):
        compress(**{**made, **change})


def test_jets_to_train_on_are_not_judged_on(made):
    with pytest.raises(InputError, match="field 'test': holds the jets to train on"):
        compress(**made | {"test": [*made["test"], *made["train"]]})


def test_fewer_jets_of_a_store_in_order_of_class_are_refused(made, tmp_path):
    jets = prong_jets(200)
    in_order = write_store(tmp_path / "train", jets[np.argsort(jets.truth, kind="stable")])
    with pytest.raises(InputError, match="the first 64 jets hold none of class top"):
        compress(**{**made, "train": [in_order], "classes": None, "out": tmp_path / "out"})
