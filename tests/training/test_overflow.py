"""Steps whose gradient is not finite."""

import json
import math
from dataclasses import replace

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.utils.data import DataLoader

from jetrep.encoders.build import build_encoder
from jetrep.encoders.particlenet import ParticleNetConfig
from jetrep.encoders.transformer import TransformerConfig
from jetrep.errors import InputError
from jetrep.features import FeatureConfig, Features
from jetrep.model import ClassifierConfig, JetModel, ModelConfig
from jetrep.objectives.base import StepOutput
from jetrep.objectives.build import OBJECTIVES, build_objective
from jetrep.objectives.next_token import NextTokenConfig
from jetrep.objectives.self_distillation import HeadConfig, SelfDistillation, SelfDistillationConfig
from jetrep.objectives.supervised import Supervised
from jetrep.objectives.tokenizer import TokenizerConfig
from jetrep.training.checkpoint import load_model
from jetrep.training.engine import EngineConfig, OptimizerConfig, TrainingModule
from jetrep.training.pretrain import pretrain
from prong_jets import prong_jets, write_store

ENCODERS = {
    "transformer": TransformerConfig(width=16, depth=1, heads=2, mlp_hidden=16),
    "particlenet": ParticleNetConfig(channels=((8,), (8,)), neighbours=3),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("data") / "train", prong_jets(64))


def run(store, out, encoder="transformer", steps=8, precision="32-true", **settings):
    engine = EngineConfig(accelerator="cpu", logger="none", log_every=1, precision=precision)
    objective = SelfDistillationConfig(head=HeadConfig(n_prototypes=32))
    common = {"batch_size": 16, "objective": objective, "encoder": ENCODERS[encoder], "quiet": True}
    return pretrain([store], out=out, steps=steps, engine=engine, **common, **settings)


def poison(monkeypatch, steps, factor=math.inf):
    """The loss of some steps is multiplied, and what the batch leaves in running statistics is not finite."""
    original = SelfDistillation.forward

    def forward(self, batch, step, total_steps, generator):
        out = original(self, batch, step, total_steps, generator)
        if step not in steps:
            return out
        for buffer in self.buffers():
            if buffer.is_floating_point():
                buffer.data.fill_(math.nan)
        loss = out.loss * factor
        return StepOutput(loss, out.metrics | {"loss": loss.detach()})

    monkeypatch.setattr(SelfDistillation, "forward", forward)


def states(monkeypatch):
    """Everything that training changes, after each step."""
    seen = []
    original = TrainingModule.optimizer_step

    def optimizer_step(self, *args, **kwargs):
        original(self, *args, **kwargs)
        moments = {
            f"{i} {name}": value
            for i, state in self.optimizers().optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }
        seen.append({name: x.clone() for name, x in (self.objective.state_dict() | moments).items()})

    monkeypatch.setattr(TrainingModule, "optimizer_step", optimizer_step)
    return seen


def logged(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("factor", [math.inf, math.nan])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_step_that_overflows_leaves_no_trace(store, tmp_path, monkeypatch, encoder, factor):
    poison(monkeypatch, {3}, factor)
    seen = states(monkeypatch)
    folder = run(store, tmp_path / "run", encoder)
    assert seen[2].keys() == seen[3].keys()
    assert all(torch.equal(seen[2][name], seen[3][name]) for name in seen[2])
    assert not all(torch.equal(seen[3][name], seen[4][name]) for name in seen[3])
    assert all(x.isfinite().all() for x in seen[-1].values())
    assert [line.get("skipped_steps", 0) for line in logged(folder)] == [0, 0, 0, 1, 1, 1, 1, 1]
    assert all(x.isfinite().all() for x in load_model(folder).state_dict().values())


def test_half_precision_finds_the_scale_of_its_loss():
    """It begins at 2 ** 16, too large for a loss of this size; on a GPU the engine asks for the same plugin."""
    torch.manual_seed(0)
    model = JetModel(ModelConfig(encoder=ENCODERS["transformer"], head=ClassifierConfig(), classes=("qcd", "top")))
    objective = Supervised(model, torch.tensor([1.0, 1.0]))
    forward = objective.forward
    objective.forward = lambda *args: StepOutput(forward(*args).loss * 1000)
    module = TrainingModule(objective, OptimizerConfig(), 24, 0)
    steps = []
    module.configure_gradient_clipping = lambda *args, **kwargs: (
        TrainingModule.configure_gradient_clipping(module, *args, **kwargs),
        steps.append(module.skipped),
    )
    before = [p.clone() for p in objective.parameters()]
    trainer = L.Trainer(
        accelerator="cpu",
        plugins=[MixedPrecision("16-mixed", "cpu")],
        max_steps=24,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader([prong_jets(16).batch()] * 24, batch_size=None, collate_fn=lambda batch: batch)
    trainer.fit(module, train_dataloaders=loader)
    assert steps[0] == 1
    assert steps[-1] == steps[-6] < 20
    assert all(p.isfinite().all() for p in objective.parameters())
    assert not all(torch.equal(a, b) for a, b in zip(before, objective.parameters(), strict=True))


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_reduced_precision_trains(store, tmp_path, precision):
    folder = run(store, tmp_path / "run", precision=precision)
    assert all(math.isfinite(line["loss"]) for line in logged(folder))


def test_too_many_in_a_row_end_the_run(store, tmp_path, monkeypatch):
    poison(monkeypatch, set(range(5, 100)))
    with pytest.raises(InputError, match=r"24 gradients in a row were not finite, up to step 29; .*smaller") as error:
        run(store, tmp_path / "run", steps=100)
    assert error.value.file == str(tmp_path / "run")
    assert not (tmp_path / "run" / "model.json").exists()


def test_a_run_does_not_end_in_steps_that_diverge(store, tmp_path, monkeypatch):
    poison(monkeypatch, {6, 7})
    with pytest.raises(InputError, match="training has diverged: the loss is inf at step 8"):
        run(store, tmp_path / "run")


def test_weights_that_are_not_finite_are_not_saved(store, tmp_path, monkeypatch):
    original = SelfDistillation.after_step

    def after_step(self, step, total_steps):
        original(self, step, total_steps)
        if step == 7:
            next(self.encoder.parameters()).data.fill_(math.inf)

    monkeypatch.setattr(SelfDistillation, "after_step", after_step)
    with pytest.raises(InputError, match="the weights are not finite after step 8"):
        run(store, tmp_path / "run")
    assert not (tmp_path / "run" / "model.json").exists()


@pytest.mark.parametrize("config", [kind() for kind in OBJECTIVES], ids=lambda config: config.kind)
def test_a_forward_pass_that_overflows_is_told_by_the_loss(config):
    """Nothing raises before, monitors included: the engine then skips the step."""
    if isinstance(config, NextTokenConfig):
        config = replace(config, tokenizer=TokenizerConfig(n_codes=16, steps=2))
    jets = prong_jets(64)
    features = Features(FeatureConfig(), fit_on=jets)
    module = build_objective(
        config, features, build_encoder(ENCODERS["transformer"], len(features.names)), sample=lambda: jets
    )
    for parameter in (*module.trained.parameters(), *module.encoder.parameters()):  # the teacher's, if there is one
        parameter.data.fill_(math.inf)
    out = module(jets[:16].batch(), 9, 20, torch.Generator().manual_seed(0))
    assert not out.loss.isfinite()
