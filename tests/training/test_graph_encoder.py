"""Verbs that train, on an encoder that is no transformer."""

import json

import numpy as np
import pytest
import torch

from jetrep.encoders import ParticleNet, ParticleNetConfig
from jetrep.errors import InputError
from jetrep.features import FeatureConfig, Features
from jetrep.model import JetModel, ModelConfig
from jetrep.objectives.self_distillation import PRESETS, SelfDistillation
from jetrep.studies.probe import randomized
from jetrep.training.checkpoint import load_model, save_model
from jetrep.training.engine import EngineConfig
from jetrep.training.finetune import finetune
from jetrep.training.pretrain import pretrain
from prong_jets import prong_jets, write_store

CONFIG = ParticleNetConfig(4, ((16, 16), (16, 24)))
SETTINGS = {"engine": EngineConfig(accelerator="cpu", logger="none"), "batch_size": 32, "quiet": True}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("data") / "train", prong_jets(300))


def test_a_tagger_from_scratch_learns(store, tmp_path):
    run = finetune([store], out=tmp_path / "run", encoder=CONFIG, epochs=5, **SETTINGS)
    model = load_model(run)
    assert isinstance(model.encoder, ParticleNet)
    assert model.config.encoder == CONFIG
    # There is one pooled vector, so that nothing is given to the head twice.
    assert (model.config.pooling, model.head.layers[0].in_features) == ("cls", 24)
    jets = prong_jets(200, seed=1)
    assert (model.predict(jets).argmax(1) == jets.truth).mean() > 0.95
    other = randomized(model, 1)
    assert isinstance(other.encoder, ParticleNet)
    assert not np.allclose(other.embed(jets), model.embed(jets))


def test_pretraining_and_fine_tuning(store, tmp_path):
    run = pretrain([store], out=tmp_path / "run", encoder=CONFIG, epochs=2, **SETTINGS)
    # The norms of the encoder that is kept have seen jets.
    assert load_model(run).encoder.norm.running_mean.abs().max() > 0.1
    model = load_model(finetune([store], from_run=run, out=tmp_path / "tuned", epochs=2, **SETTINGS))
    jets = prong_jets(200, seed=1)
    assert (model.predict(jets).argmax(1) == jets.truth).mean() > 0.9


def test_self_distillation_reaches_all_of_the_student_and_moves_the_statistics_of_the_teacher():
    torch.manual_seed(0)
    features = Features(FeatureConfig())
    module = SelfDistillation(features, ParticleNet(CONFIG, 7), PRESETS["small_batch"]).train()
    batch = prong_jets(16).batch()
    out = module(batch, 0, 10, torch.Generator().manual_seed(0))
    out.loss.backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.any() for p in module.student.encoder.parameters())
    module.after_step(0, 10)
    own, students = module.teacher.encoder.norm, module.student.encoder.norm
    assert torch.equal(own.running_mean, students.running_mean)
    assert own.running_mean.any()
    named = [id(p) for group in module.parameter_groups(1e-3, 0.1, 0.9) for p in group["params"]]
    assert sorted(named) == sorted(id(p) for p in module.student.parameters())


@pytest.mark.parametrize("names", ["kinpid", "full"])
def test_views_of_subjets_have_no_measured_columns(store, tmp_path, names):
    with pytest.raises(InputError, match=r"needs charge.* lack"):
        pretrain([store], out=tmp_path / "run", features=FeatureConfig(names), **SETTINGS)
    with pytest.raises(InputError, match="which subjets lack"):
        finetune([store], out=tmp_path / "run", features=FeatureConfig(names), n_subjets=4, **SETTINGS)
    with pytest.raises(InputError, match="'charge'"):
        finetune([store], out=tmp_path / "run", features=FeatureConfig(names), **SETTINGS)


def test_records_name_the_kind_and_old_ones_without_are_transformers(tmp_path):
    save_model(JetModel(ModelConfig(encoder=CONFIG)), tmp_path / "graph", provenance={})
    assert load_model(tmp_path / "graph").config.encoder == CONFIG
    old = JetModel(ModelConfig())
    save_model(old, tmp_path / "old", provenance={})
    file = tmp_path / "old" / "model.json"
    record = json.loads(file.read_text())
    assert record["config"]["encoder"].pop("kind") == "transformer"
    del record["config"]["features"]["signed_eta"]
    file.write_text(json.dumps(record))
    assert load_model(tmp_path / "old").config == old.config
    record["config"]["encoder"]["kind"] = "perceiver"
    file.write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"'perceiver'.*known: transformer"):
        load_model(tmp_path / "old")
    record["config"]["encoder"]["kind"] = "particlenet"
    file.write_text(json.dumps(record))
    with pytest.raises(InputError, match="configuration cannot be used"):
        load_model(tmp_path / "old")
