"""From stores to numbers and back: every verb that reads a trained run."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from joblib.externals.loky import get_reusable_executor

from jetrep.encoders.transformer import TransformerConfig
from jetrep.model import ClassifierConfig
from jetrep.objectives.self_distillation import PRESETS
from jetrep.physics import fourvector as fv
from jetrep.studies.embed import embed
from jetrep.studies.evaluate import _file_names, evaluate
from jetrep.studies.probe import probe
from jetrep.studies.protocol import Finetuning, Pretraining
from jetrep.studies.transfer import transfer
from jetrep.training.checkpoint import load_model, weights_hash
from jetrep.training.data import data_hashes
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
    assert {"index", "embedding", "pt", "eta", "phi", "mass", "n_constituents"} == set(bare.columns)


def test_predictions_carry_kinematics_and_observers(data, tmp_path):
    _, stores, _, tagger = data
    jets = prong_jets(60, seed=4)
    # An observer may bear the name of a column of ours.
    observers = {"event": np.arange(60, dtype=np.int64) + 10**12, "mass": np.linspace(0, 1, 60, dtype=np.float32)}
    store = write_store(tmp_path / "observed" / "test", replace(jets, observers=observers))
    out = tmp_path / "e"
    evaluate(tagger, on=[stores["test"], store], out=out, n_bootstrap=2, projection=False, max_jets=50, quiet=True)
    files = sorted((out / "predictions").iterdir())
    assert len(files) == 2
    file = next(f for f in files if "observed" in f.name)
    frame = pd.read_parquet(file)
    first = jets[:50]
    np.testing.assert_array_equal(frame["index"], np.arange(50))
    np.testing.assert_array_equal(frame["label"], first.truth)
    np.testing.assert_array_equal(frame["class"], np.array(first.classes)[first.truth])
    np.testing.assert_allclose(frame[["score_qcd", "score_top"]].sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(frame["score_top"], load_model(tagger).predict(first)[:, 1], atol=1e-6)
    np.testing.assert_allclose(frame["pt"], fv.pt(first.jet_p4), rtol=1e-6)
    np.testing.assert_allclose(frame["mass"], fv.mass(first.jet_p4), rtol=1e-5)
    np.testing.assert_array_equal(frame["n_constituents"], first.counts)
    for name, values in observers.items():
        np.testing.assert_array_equal(frame[f"observer.{name}"], values[:50])
        assert frame[f"observer.{name}"].dtype == values.dtype
    note = json.loads(pq.read_schema(file).metadata[b"jetrep"])
    assert note["data"] == data_hashes([store])
    assert note["weights"] == weights_hash(tagger)
    embedded = pd.read_parquet(embed(tagger, on=store, out=tmp_path / "o.parquet", quiet=True))
    np.testing.assert_array_equal(embedded["observer.event"], observers["event"])
    pd.testing.assert_frame_equal(embedded.drop(columns="embedding").iloc[:50], frame, rtol=1e-5, atol=1e-6)


def test_stores_get_files_of_their_own():
    assert list(_file_names(["test", "/a/b", "a_b", "../b"]).values()) == [
        *("test.parquet", "a_b.parquet", "a_b_.parquet", "b.parquet")
    ]


def study(stores, epochs, batch_size, hidden, **settings):
    """Settings of a small transfer study over two seeds, both domains of it the same jets."""
    return {
        "collisions": [stores["unlabelled"]],
        "simulation": [stores["train"]],
        "simulation_test": [stores["test"]],
        "collisions_test": [stores["test"]],
        "pretraining": Pretraining(encoder=ENCODER, objective=PRESETS["small_batch"], epochs=1, batch_size=batch_size),
        "finetuning": Finetuning(epochs=epochs, batch_size=batch_size, head=ClassifierConfig(hidden=hidden)),
        "seeds": 2,
        "engine": ENGINE,
        **settings,
    }


def test_transfer_is_complete_cached_and_resumable(data, tmp_path, monkeypatch):
    _, stores, _, _ = data
    kept = {"out": tmp_path / "study", "collisions_labelled": [stores["train"]], "max_particles": 15}
    settings = study(stores, 2, 32, (8,), n_bootstrap=20, quiet=True, **kept)
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


def test_seeds_of_a_transfer_that_are_trained_at_once_give_the_same(data, tmp_path, capfd):
    _, stores, _, _ = data
    get_reusable_executor(reuse=True).shutdown()  # processes of other tests write to where those were captured
    settings = study(stores, 1, 64, (), n_bootstrap=2)
    records = [transfer(**settings, out=tmp_path / str(jobs), jobs=jobs) for jobs in (1, 2)]
    told = [line for line in capfd.readouterr().err.splitlines() if "pretraining" in line and "seed " in line]
    assert [sum(f"seed {seed} of 2" in line for line in told) for seed in (1, 2)] == [2, 2]
    assert set(records[0]["seconds"]) == set(records[1]["seconds"])
    for row, domains in records[0]["results"].items():
        for domain, measured in domains.items():
            # Other numbers of threads add up in another order.
            value = records[1]["results"][row][domain]["auc"]["value"]
            assert value == pytest.approx(measured["auc"]["value"], abs=2e-3), (row, domain)
            one, two = ([seed["auc"]["value"] for seed in record["per_seed"][row][domain]] for record in records)
            assert two == pytest.approx(one, abs=2e-3), (row, domain)
