"""On a GPU everything is what it is on a CPU, up to rounding: encoders, objectives with all they draw, whole runs."""

import copy
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from jetrep.encoders.build import KINDS, build_encoder
from jetrep.encoders.lorentz import LorentzConfig
from jetrep.encoders.lorentz_decoder import LorentzDecoderConfig
from jetrep.encoders.particle_transformer_config import ParticleTransformerConfig
from jetrep.encoders.transformer import TransformerConfig
from jetrep.features import FeatureConfig, Features
from jetrep.model import ClassifierConfig
from jetrep.objectives.autoencoding import AutoencoderConfig
from jetrep.objectives.build import OBJECTIVES, build_objective
from jetrep.objectives.masked import MaskedParticlesConfig
from jetrep.objectives.next_token import NextTokenConfig
from jetrep.objectives.self_distillation import SelfDistillation
from jetrep.objectives.tokenizer import TokenizerConfig
from jetrep.studies.probe import randomized
from jetrep.training.autoencoders import load_autoencoder
from jetrep.training.checkpoint import load_model
from jetrep.training.engine import EngineConfig, OptimizerConfig
from jetrep.training.finetune import finetune
from jetrep.training.pretrain import pretrain
from lorentz_jets import jets_of, observers, seen_by
from prong_jets import prong_jets, write_store

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")
COMPILES = pytest.mark.skipif(not os.environ.get("JETREP_TEST_COMPILE"), reason="minutes: set JETREP_TEST_COMPILE=1")

GPU = EngineConfig(accelerator="gpu", logger="none")
# Where neighbours are ranked, rounding can decide a tie; convolutions round to TF32 on a GPU.
BOUNDS = {"particlenet": 1e-2, "gnnae": 1e-2, "cnnae": 1e-3}
PLAIN = TransformerConfig(width=16, depth=2, heads=2, mlp_hidden=32)
FEW_CODES = TokenizerConfig(n_codes=16, steps=5, batch_size=16)
CHOSEN = [
    *(config() for config in OBJECTIVES if config not in (NextTokenConfig, MaskedParticlesConfig)),
    NextTokenConfig(tokenizer=FEW_CODES),
    *(MaskedParticlesConfig(target=t, n_codes=8, tokenizer=FEW_CODES) for t in ("regression", "kmeans", "vq")),
    *(MaskedParticlesConfig(target=t) for t in ("flow", "flow_matching")),
]


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.detach().cpu(), expected.detach().cpu()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-12))


@pytest.mark.parametrize("kind", list(KINDS))
def test_encoders_agree(kind):
    features = Features(FeatureConfig())
    torch.manual_seed(0)
    encoder = build_encoder(KINDS[kind](), len(features.names)).eval()
    on_gpu = copy.deepcopy(encoder).cuda()
    batch = prong_jets(16).batch()
    (here,) = encoder([features(batch)])
    (there,) = on_gpu([copy.deepcopy(features).cuda()(batch.to("cuda"))])
    bound = BOUNDS.get(kind, 1e-4)
    assert relative(there.cls, here.cls) < bound
    here.cls.square().sum().backward()
    there.cls.square().sum().backward()
    gradients = [
        (b.grad, a.grad) for a, b in zip(encoder.parameters(), on_gpu.parameters(), strict=True) if a.grad is not None
    ]
    whole = [torch.cat([x.cpu().flatten() for x in part]) for part in zip(*gradients, strict=True)]
    assert relative(*whole) < 10 * bound


@pytest.mark.parametrize("config", CHOSEN, ids=lambda c: f"{c.kind}-{getattr(c, 'target', '')}")
def test_objectives_draw_and_compute_alike(config):
    jets = prong_jets(32).leading(20).clustered()
    features = Features(FeatureConfig())
    torch.manual_seed(0)
    encoder = build_encoder(PLAIN, len(features.names))
    objective = build_objective(config, features, encoder, sample=lambda: jets).train()
    objective.zero_grad()  # of the tokeniser, from its own training
    on_gpu = copy.deepcopy(objective).cuda()
    losses = []
    for module, batch in ((objective, jets.batch()), (on_gpu, jets.batch().to("cuda"))):
        torch.manual_seed(1)
        output = module(batch, 1, 10, torch.Generator().manual_seed(2))
        output.loss.backward()
        losses.append(output.loss.detach())
    assert relative(losses[1], losses[0]) < 1e-3
    parts = [
        torch.cat([p.grad.cpu().flatten() for p in module.parameters() if p.grad is not None])
        for module in (objective, on_gpu)
    ]
    assert relative(parts[1], parts[0]) < 2e-2


@pytest.mark.parametrize("optimizer", ["ranger", "muon"])
@pytest.mark.parametrize(
    ("precision", "compiled"),
    [("bf16-mixed", False), ("16-mixed", False), pytest.param("bf16-mixed", True, marks=COMPILES)],
)
def test_a_tagger_learns_in_half_precision(tmp_path, precision, compiled, optimizer):
    store = write_store(tmp_path / "data", prong_jets(600))
    encoder = ParticleTransformerConfig(width=16, depth=2, heads=2, class_depth=1, embed=(16,), pair_hidden=(8,))
    run = finetune(
        [store],
        out=tmp_path / "run",
        encoder=encoder,
        head=ClassifierConfig(hidden=()),
        optimizer=OptimizerConfig(name=optimizer, lr=5e-3),
        epochs=8,
        batch_size=50,
        engine=replace(GPU, precision=precision, compile=compiled),
        quiet=True,
    )
    tests = prong_jets(400, seed=1)
    model = load_model(run)
    here, there = model.predict(tests), model.cuda().predict(tests)
    assert np.mean(here.argmax(1) == tests.truth) > 0.9
    np.testing.assert_allclose(there, here, atol=1e-3)
    tuned = finetune([store], out=tmp_path / "tuned", from_run=run, epochs=1, batch_size=50, engine=GPU, quiet=True)
    assert np.mean(load_model(tuned).predict(tests).argmax(1) == tests.truth) > 0.9


def test_a_random_encoder_stands_on_the_device_of_the_other(tmp_path):
    store = write_store(tmp_path / "data", prong_jets(64))
    run = pretrain([store], out=tmp_path / "run", encoder=PLAIN, steps=2, batch_size=32, engine=GPU, quiet=True)
    model = randomized(load_model(run).cuda(), seed=0)
    assert model.embed(prong_jets(8)).shape == (8, 32)


def test_a_run_can_be_repeated(tmp_path):
    store = write_store(tmp_path / "data", prong_jets(64))
    settings = {"encoder": PLAIN, "batch_size": 32, "engine": GPU, "quiet": True}
    run = pretrain([store], out=tmp_path / "run", steps=6, **settings)
    again = pretrain([store], out=tmp_path / "again", steps=6, **settings)
    first, second = (load_model(path).embed(prong_jets(8)) for path in (run, again))
    np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-4)


def test_a_stopped_run_goes_on(tmp_path, monkeypatch):
    """As a whole one ends, up to the order of sums; the state was written at step 4 of 9."""
    store = write_store(tmp_path / "data", prong_jets(96))
    settings = {
        "encoder": PLAIN,
        "batch_size": 32,
        "steps": 9,
        "engine": replace(GPU, checkpoint_every=4),
        "quiet": True,
    }
    whole = pretrain([store], out=tmp_path / "whole", **settings)
    after_step = SelfDistillation.after_step

    def stop(self, at, total):
        if at == 6:
            monkeypatch.setattr(SelfDistillation, "after_step", after_step)
            raise KeyboardInterrupt
        after_step(self, at, total)

    monkeypatch.setattr(SelfDistillation, "after_step", stop)
    with pytest.raises(KeyboardInterrupt):
        pretrain([store], out=tmp_path / "stopped", **settings)
    assert (tmp_path / "stopped" / "resume.ckpt").exists()
    resumed = pretrain([store], out=tmp_path / "stopped", **settings)
    first, second = (load_model(path).embed(prong_jets(8)) for path in (whole, resumed))
    np.testing.assert_allclose(second, first, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=COMPILES)])
def test_the_lorentz_autoencoder_stays_equivariant(tmp_path, compiled):
    store = write_store(tmp_path / "data", prong_jets(64))
    run = pretrain(
        [store],
        out=tmp_path / "run",
        encoder=LorentzConfig(width=8, depth=1, pooled=4),
        objective=AutoencoderConfig(decoder=LorentzDecoderConfig(n_particles=30, width=8, depth=1)),
        steps=3,
        batch_size=32,
        engine=replace(GPU, compile=compiled),
        quiet=True,
    )
    autoencoder = load_autoencoder(run).cuda()
    p4, mask = (x.cuda() for x in jets_of([20] * 100))
    matrix = observers(100, 50.0).cuda()
    with torch.no_grad():
        here = seen_by(matrix, autoencoder(p4, mask).p4)
        there = autoencoder(seen_by(matrix, p4), mask).p4
    error = (there - here).flatten(1).norm(dim=1) / here.flatten(1).norm(dim=1)
    assert there.is_cuda
    assert error.median() < 2e-6
