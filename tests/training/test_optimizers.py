"""Optimisers equal slow ones written out, and a run with any of them goes on after a stop as if there had been none."""

import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from jetrep.encoders.transformer import TransformerConfig
from jetrep.errors import InputError
from jetrep.objectives.schedules import flat_exponential
from jetrep.objectives.supervised import Supervised
from jetrep.training.engine import EngineConfig
from jetrep.training.finetune import finetune
from jetrep.training.optimizers import OptimizerConfig, build_optimizer, schedule
from jetrep.training.run import run_settings, settings_of
from prong_jets import prong_jets, write_store

ENCODER = TransformerConfig(width=16, depth=2, heads=2, mlp_hidden=16, n_registers=1, position_bins=8, dropout=0.1)
ENGINE = EngineConfig(accelerator="cpu", log_every=1, checkpoint_every=3, logger="none")
NAMES = ["adamw", "ranger", "lion", "muon"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("data") / "store", prong_jets(96))


@pytest.mark.parametrize("name", NAMES)
def test_resumed_equals_uninterrupted(tmp_path, store, monkeypatch, name):
    """Stopped between two pulls of Lookahead, and in the exponential fall; the state was written at step 9 of 15."""
    optimizer = OptimizerConfig(name=name, schedule="flat_exponential", flat=0.4, layer_decay=0.8, lr=3e-3)
    settings = {"encoder": ENCODER, "batch_size": 16, "epochs": 3, "engine": ENGINE, "optimizer": optimizer}
    finetune([store], out=tmp_path / "whole", quiet=True, **settings)
    original = Supervised.after_step

    def after_step(self, at, total):
        if at == 9:
            monkeypatch.setattr(Supervised, "after_step", original)
            raise KeyboardInterrupt

    monkeypatch.setattr(Supervised, "after_step", after_step)
    for _ in range(2):
        try:
            finetune([store], out=tmp_path / "stopped", quiet=True, **settings)
        except KeyboardInterrupt:
            assert (tmp_path / "stopped" / "resume.ckpt").exists()
    whole, resumed = (load_file(tmp_path / run / "model.safetensors") for run in ("whole", "stopped"))
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items())
    logs = [(tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in ("whole", "stopped")]
    lines = [[(entry["loss"], entry["lr"]) for entry in map(json.loads, log)] for log in logs]
    assert lines[0] == lines[1]
    assert len(lines[0]) == 15


def groups(*shapes, name="block 1", decay=0.1, lr=0.01):
    torch.manual_seed(5)
    parameters = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes]
    return parameters, [{"params": parameters, "lr": lr, "weight_decay": decay, "name": name}]


def gradients(step, parameters):
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(p.shape, generator=generator, dtype=p.dtype) * (1 + step % 3) for p in parameters]


def run_steps(optimizer, parameters, steps):
    for step in range(steps):
        for parameter, gradient in zip(parameters, gradients(step, parameters), strict=True):
            parameter.grad = gradient
        optimizer.step()


def test_ranger_is_rectified_adam_with_lookahead():
    """arXiv 1908.03265, algorithm 2, pulled to slow weights every six steps: arXiv 1907.08610."""
    parameters, given = groups((3, 4), (5,))
    slow = [p.detach().clone() for p in parameters]
    fast = [p.detach().clone() for p in parameters]
    run_steps(build_optimizer(OptimizerConfig(name="ranger", lr=0.01), given), parameters, 20)

    b1, b2, eps, lr, decay = 0.95, 0.999, 1e-5, 0.01, 0.1
    m, v = ([torch.zeros_like(p) for p in fast] for _ in range(2))
    longest = 2 / (1 - b2) - 1
    for t in range(1, 21):
        length = longest - 2 * t * b2**t / (1 - b2**t)
        for k, g in enumerate(gradients(t - 1, fast)):
            m[k], v[k] = b1 * m[k] + (1 - b1) * g, b2 * v[k] + (1 - b2) * g**2
            fast[k] = fast[k] * (1 - lr * decay)
            mean = m[k] / (1 - b1**t)
            if length > 5:
                top = (length - 4) * (length - 2) * longest
                rectified = math.sqrt(top / ((longest - 4) * (longest - 2) * length))
                fast[k] = fast[k] - lr * rectified * mean * math.sqrt(1 - b2**t) / (v[k].sqrt() + eps)
            else:
                fast[k] = fast[k] - lr * mean
            if t % 6 == 0:
                slow[k] = slow[k] + 0.5 * (fast[k] - slow[k])
                fast[k] = slow[k].clone()
    for parameter, expected in zip(parameters, fast, strict=True):
        torch.testing.assert_close(parameter.data, expected, rtol=1e-9, atol=1e-9)


def test_lion_is_the_sign_of_an_interpolated_moment():
    """arXiv 2302.06675."""
    parameters, given = groups((3, 4), (5,))
    expected = [p.detach().clone() for p in parameters]
    run_steps(build_optimizer(OptimizerConfig(name="lion", lr=0.01), given), parameters, 7)
    moments = [torch.zeros_like(p) for p in expected]
    for step in range(7):
        for k, g in enumerate(gradients(step, expected)):
            update = torch.sign(0.9 * moments[k] + 0.1 * g)
            expected[k] = expected[k] - 0.01 * (update + 0.1 * expected[k])
            moments[k] = 0.99 * moments[k] + 0.01 * g
    for parameter, value in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.data, value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (6, 20)], ids=["square", "tall", "wide"])
def test_muon_turns_a_gradient_into_an_orthogonal_matrix(shape):
    """U·Vᵀ of its singular vectors, with singular values near 1, at the root mean square of a step of AdamW, 0.2."""
    (parameter,), given = groups(shape, decay=0.0)
    before = parameter.detach().clone()
    run_steps(build_optimizer(OptimizerConfig(name="muon", lr=0.01), given), [parameter], 1)
    update = (before - parameter.data) / (0.01 * 0.2 * math.sqrt(max(shape)))
    (gradient,) = gradients(0, [parameter])
    u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
    inner = u.T @ update @ vh.T  # diagonal in the basis of the gradient
    values = inner.diagonal()
    assert 0.6 < values.min() <= values.max() < 1.3
    assert (inner - torch.diag(values)).abs().max() < 0.05  # bfloat16
    assert (update**2).mean().sqrt() * 0.2 * math.sqrt(max(shape)) == pytest.approx(0.2, rel=0.25)


def test_muon_is_that_of_torch():
    """Which takes one matrix after the other, in bfloat16; rates and decay differ between layers."""
    ours, theirs = [], []
    for target in (ours, theirs):
        for layer, (lr, decay) in enumerate(((0.01, 0.1), (0.02, 0.0)), 1):
            target += groups((8, 24), (8, 24), (20, 6), name=f"block {layer}", lr=lr, decay=decay)[1]
    start = [p.detach().clone() for group in ours for p in group["params"]]
    optimizers = (
        build_optimizer(OptimizerConfig(name="muon"), ours),
        torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw"),
    )
    moved = []
    for optimizer, target in zip(optimizers, (ours, theirs), strict=True):
        parameters = [p for group in target for p in group["params"]]
        run_steps(optimizer, parameters, 6)
        assert all(p.grad is not None for p in parameters)
        moved.append(torch.cat([(p.data - before).flatten() for p, before in zip(parameters, start, strict=True)]))
    assert (moved[0] - moved[1]).norm() < 0.01 * moved[1].norm()


def test_muon_leaves_what_has_no_gradient():
    (first, second), given = groups((8, 8), (8, 8))
    before = second.detach().clone()
    first.grad = torch.ones_like(first)
    build_optimizer(OptimizerConfig(name="muon"), given).step()
    assert torch.equal(second, before)
    assert not torch.equal(first, before)


def test_muon_is_for_matrices_of_blocks_alone():
    """Everything else moves as with AdamW, at the rate and decay of its group."""
    shapes = [(4, 6), (6,), (1, 6), (2, 3, 4)]
    given, expected = [], []
    for target in (given, expected):
        for name, lr, decay in (("stem", 1e-3, 0.0), ("block 1", 2e-3, 0.1), ("head", 4e-3, 0.2)):
            target += groups(*shapes, name=name, lr=lr, decay=decay)[1]
    for target, name in ((given, "muon"), (expected, "adamw")):
        optimizer = build_optimizer(OptimizerConfig(name=name), [dict(group) for group in target])
        for group in target:
            for parameter, gradient in zip(group["params"], gradients(3, group["params"]), strict=True):
                parameter.grad = gradient
        optimizer.step()
        assert sum(len(group["params"]) for group in optimizer.param_groups) == 12
    for ours, theirs in zip(given, expected, strict=True):
        for shape, p, q in zip(shapes, ours["params"], theirs["params"], strict=True):
            assert torch.equal(p, q) == (ours["name"] != "block 1" or shape != (4, 6))


def test_muon_scales_and_unscales_gradients_as_one_optimiser():
    """A loss scaler sees all parameters, and a step with an overflow is skipped for all of them."""
    parameters, given = groups((4, 4), (4,))
    optimizer = build_optimizer(OptimizerConfig(name="muon", lr=0.1), given)
    before = [p.detach().clone() for p in parameters]
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for overflow in (True, False):
        loss = sum((p.float() ** 2).sum() for p in parameters) * (math.inf if overflow else 1.0)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert all(torch.equal(p, q) for p, q in zip(parameters, before, strict=True)) == overflow


def test_flat_then_exponential():
    """After Particle Transformer: seven tenths at the peak, then to a hundredth."""
    config = OptimizerConfig(schedule="flat_exponential", warmup=0.0, final_lr=0.01)
    factor = schedule(config, 100)
    assert {factor(step) for step in range(70)} == {1.0}
    ratios = [factor(step + 1) / factor(step) for step in range(69, 99)]
    assert ratios == pytest.approx([0.01 ** (1 / 30)] * 30)
    assert factor(99) == pytest.approx(0.01)
    assert flat_exponential(0.05, 0.1, 0.5, 0.01) == pytest.approx(0.5)


def test_record_of_settings_is_that_of_runs_from_before(store):
    """Betas and ε are written out, and what came later is left out while it has its default."""
    known = {
        "lr": 1e-3, "weight_decay": 0.05, "betas": [0.9, 0.999], "eps": 1e-6,
        "layer_decay": 1.0, "warmup": 0.1, "final_lr": 0.05, "clip": 3.0,
    }  # fmt: skip
    assert settings_of(OptimizerConfig()) == known
    recorded = run_settings("finetune", {"data": [store], "optimizer": OptimizerConfig(name="ranger"), "quiet": True})
    assert recorded["optimizer"] == known | {"name": "ranger", "betas": [0.95, 0.999], "eps": 1e-5}
    assert replace(OptimizerConfig(), name="lion").resolved().betas == (0.9, 0.99)
    assert asdict(OptimizerConfig(betas=(0.8, 0.9), name="ranger").resolved())["betas"] == (0.8, 0.9)


@pytest.mark.parametrize(
    ("settings", "field"),
    [({"final_lr": 0.0}, "final_lr"), ({"flat": 0.05}, "flat"), ({"flat": 1.5}, "flat"), ({"eps": -1.0}, "eps")],
)
def test_impossible_settings(settings, field):
    with pytest.raises(InputError, match=field):
        OptimizerConfig(schedule="flat_exponential", **settings)
