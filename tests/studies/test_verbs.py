"""From stores to numbers and back: every verb that reads a trained run."""

import json

import numpy as np
import pandas as pd
import pytest

from jetrep.encoders.transformer import TransformerConfig
from jetrep.model import ClassifierConfig
from jetrep.objectives.self_distillation import PRESETS
from jetrep.studies.embed import embed
from jetrep.studies.evaluate import evaluate
from jetrep.studies.probe import probe
from jetrep.studies.protocol import Finetuning, Pretraining
from jetrep.studies.transfer import transfer
from jetrep.training.checkpoint import load_model
from jetrep.training.engine import EngineConfig
from jetrep.training.finetune import finetune
from jetrep.training.pretrain import pretrain
from prong_jets import prong_jets, write_store

ENCODER = TransformerConfig(width=16, depth=1, heads=2, mlp_hidden=16, n_registers=1, position="none")
ENGINE = EngineConfig(accelerator="cpu", logger="none")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    stores = {
        "train": write_store(folder / "train", prong_jets(300)),
        "test": write_store(folder / "test", prong_jets(200, seed=1)),
        # The same labels under class indices in another order.
        "turned": write_store(folder / "turned", turned(prong_jets(200, seed=1))),
        "unlabelled": write_store(folder / "unlabelled", prong_jets(200, seed=2).with_labels(None)),
    }
    settings = {"encoder": ENCODER, "engine": ENGINE, "batch_size": 32, "epochs": 5, "quiet": True}
    run = pretrain([stores["unlabelled"]], out=folder / "run", **settings)
    tagger = finetune([stores["train"]], out=folder / "tagger", **settings)
    return folder, stores, run, tagger


def turned(jets):
    return jets.with_labels(1 - jets.truth, jets.classes[::-1])


def test_evaluate(data, tmp_path):
    _, stores, _, tagger = data
    record = evaluate(tagger, on=[stores["test"], stores["turned"]], out=tmp_path / "e", n_bootstrap=20, quiet=True)
    assert json.loads((tmp_path / "e" / "evaluation.json").read_text()) == record
    domains = record["results"]["top against qcd"]
    # Classes are matched by name, so the order in which a store lists them changes nothing.
    assert domains["test"] == domains["turned"]
    assert domains["test"]["auc"]["value"] > 0.9
    scores = load_model(tagger).predict(prong_jets(200, seed=1))[:, 1]
    accuracy = np.mean((scores > 0.5) == prong_jets(200, seed=1).truth)
    assert domains["test"]["accuracy"]["value"] == pytest.approx(accuracy)
    for name in ("roc.png", "scores.png", "embedding.png", "evaluation.md"):
        assert (tmp_path / "e" / name).stat().st_size > 100
    assert record["provenance"]["data"].keys() == {str(stores["test"]), str(stores["turned"])}


def test_probe_with_baselines(data, tmp_path):
    _, stores, run, _ = data
    record = probe(
        run, train=[stores["train"]], on=[stores["test"]], kinds=["logistic"], out=tmp_path / "p.json", quiet=True
    )
    assert set(record["results"]) == {"frozen, logistic", "random weights, logistic", "mass, multiplicity, logistic"}
    # Three prongs have mass, one has not.
    assert record["results"]["mass, multiplicity, logistic"]["test"]["auc"]["value"] > 0.99
    assert json.loads((tmp_path / "p.json").read_text()) == record


def test_embed(data, tmp_path):
    _, stores, run, tagger = data
    frame = pd.read_parquet(embed(tagger, on=stores["test"], out=tmp_path / "e.parquet", quiet=True))
    jets = prong_jets(200, seed=1)
    model = load_model(tagger)
    np.testing.assert_allclose(np.stack(frame["embedding"]), model.embed(jets), atol=1e-5)
    np.testing.assert_allclose(frame[["score_qcd", "score_top"]].to_numpy(), model.predict(jets), atol=1e-5)
    assert list(frame["class"][:4]) == ["qcd", "top", "qcd", "top"]
    np.testing.assert_array_equal(frame["n_constituents"], jets.counts)
    bare = pd.read_parquet(embed(run, on=stores["unlabelled"], out=tmp_path / "u.parquet", quiet=True))
    assert {"embedding", "pt", "eta", "phi", "mass", "n_constituents"} == set(bare.columns)


def test_transfer_is_complete_cached_and_resumable(data, tmp_path, monkeypatch):
    _, stores, _, _ = data
    settings = {
        "collisions": [stores["unlabelled"]],
        "simulation": [stores["train"]],
        "simulation_test": [stores["test"]],
        "collisions_test": [stores["test"]],
        "collisions_labelled": [stores["train"]],
        "pretraining": Pretraining(encoder=ENCODER, objective=PRESETS["small_batch"], epochs=1, batch_size=32),
        "finetuning": Finetuning(epochs=2, batch_size=32, head=ClassifierConfig(hidden=(8,))),
        "seeds": 2,
        "n_bootstrap": 20,
        "max_particles": 15,
        "engine": ENGINE,
        "out": tmp_path / "study",
        "quiet": True,
    }
    record = transfer(**settings)
    assert len(record["results"]) == 12
    for row, domains in record["results"].items():
        frozen = "probe" in row or "mass" in row
        assert set(domains) == {"simulation", "collisions"} | ({"collisions, own labels"} if frozen else set())
        # Both domains are the same store here, so every number must be the same in both.
        assert domains["simulation"] == domains["collisions"]
        for measured in domains.values():
            assert measured["auc"]["n_seeds"] == 2
    for name in ("results.json", "results.md", "results.png", "roc.png", "scores.png", "embedding.png"):
        assert (tmp_path / "study" / name).exists()

    monkeypatch.setattr("jetrep.studies.protocol.finetune", lambda *_, **__: pytest.fail("trained again"))
    weights = [tmp_path / "study" / f"seed-{seed}" / "pretrain" / "model.safetensors" for seed in range(2)]
    before = [file.stat().st_mtime_ns for file in weights]
    assert transfer(**settings)["results"] == record["results"]
    assert [file.stat().st_mtime_ns for file in weights] == before
