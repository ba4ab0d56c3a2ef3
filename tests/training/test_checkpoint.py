import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from jetrep.encoders.transformer import TransformerConfig
from jetrep.errors import InputError
from jetrep.features import FeatureConfig
from jetrep.jets import Jets
from jetrep.model import ClassifierConfig, JetModel, ModelConfig
from jetrep.training.checkpoint import load_model, model_record, save_model
from prong_jets import prong_jets

CONFIG = ModelConfig(
    features=FeatureConfig(names="kin_p4", standardization="data"),
    encoder=TransformerConfig(width=16, depth=1, heads=2, mlp_hidden=16, n_registers=2, position_bins=8),
    head=ClassifierConfig(hidden=(8,)),
    pooling="mean",
    n_subjets=5,
    max_particles=12,
    classes=("qcd", "top"),
)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(1)
    model = JetModel(CONFIG)
    model.features.fit(prong_jets(40))
    save_model(model, tmp_path / "run", provenance={"seed": 1})
    return model.eval(), tmp_path / "run"


def test_round_trip_keeps_settings_constants_and_predictions(saved):
    model, run = saved
    loaded = load_model(run)
    assert loaded.config == CONFIG
    jets = prong_jets(20, seed=5)
    assert np.array_equal(loaded.predict(jets), model.predict(jets))
    assert torch.equal(loaded.features.mean, model.features.mean)
    assert model_record(run)["provenance"] == {"seed": 1}
    assert {file.name for file in run.iterdir()} == {"model.safetensors", "model.json"}


def test_records_from_before_there_was_an_option_still_load(saved):
    _, run = saved
    record = json.loads((run / "model.json").read_text())
    assert record["config"]["features"].pop("scale_pt") is None
    (run / "model.json").write_text(json.dumps(record))
    assert load_model(run).config == CONFIG
    scaled = JetModel(replace(CONFIG, features=replace(CONFIG.features, scale_pt=500.0)))
    save_model(scaled, run / "scaled", provenance={})
    assert load_model(run / "scaled").config.features.scale_pt == 500


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["config"]["encoder"].update(widht=3), "widht"),
        (lambda r: r["config"]["encoder"].update(norm="os.system"), "norm"),
        (lambda r: r["config"]["encoder"].update(width=32), "do not fit"),
        (lambda r: r.update(schema_version=99), "newer jetrep"),
        (lambda r: r.update(format="other"), "not the record"),
    ],
)
def test_a_record_that_cannot_be_used_says_why(saved, change, message):
    _, run = saved
    record = json.loads((run / "model.json").read_text())
    change(record)
    (run / "model.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=message):
        load_model(run)


def test_damaged_weights(saved):
    _, run = saved
    data = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"model\.safetensors"):
        load_model(run)


def test_no_model(tmp_path):
    with pytest.raises(InputError, match="no trained model"):
        load_model(tmp_path)


def test_order_of_jets_survives_inference(saved):
    model, _ = saved
    jets = prong_jets(30, seed=2)
    order = np.random.default_rng(0).permutation(30)
    np.testing.assert_allclose(model.embed(jets[order], batch_size=7), model.embed(jets)[order], atol=1e-5)


@pytest.mark.parametrize("algorithm", ["kt", "cambridge", "antikt"])
def test_jets_that_are_cut_are_clustered_as_they_were(algorithm):
    """So what is seen of a jet does not depend on whether a long one is beside it."""
    jets = prong_jets(12, seed=3)
    plain = JetModel(replace(CONFIG, n_subjets=4, max_particles=int(jets.counts.max()) - 1))
    short = jets[jets.counts < jets.counts.max()].clustered(algorithm=algorithm, R=0.6)
    whole = jets.clustered(algorithm=algorithm, R=0.6)
    expected, found = (plain.view(part) for part in (short, whole[jets.counts < jets.counts.max()]))
    cut = plain.view(whole)[jets.counts < jets.counts.max()]
    for view in (found, cut):
        assert (view.history.algorithm, view.history.R) == (algorithm, 0.6)
        np.testing.assert_allclose(view.subjets(4).p4, expected.subjets(4).p4, rtol=1e-5, atol=1e-3)
    mixed = Jets.concatenate([short, jets.clustered(algorithm="kt", R=1.0)])
    with pytest.raises(InputError, match="clustered differently"):
        plain.view(mixed)
