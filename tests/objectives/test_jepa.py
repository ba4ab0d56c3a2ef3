import math
from dataclasses import replace

import pytest
import torch

from half_precision import losses_in_bfloat16
from jetrep.encoders import SIZES, ParticleNetConfig, TransformerConfig, build_encoder
from jetrep.encoders.decoder import DecoderConfig
from jetrep.encoders.particle_transformer import ParticleTransformerConfig
from jetrep.errors import InputError
from jetrep.features import FeatureConfig, Features
from jetrep.objectives.hiding import hidden_particles, survivors
from jetrep.objectives.jepa import Jepa, JepaConfig
from random_jets import random_jets

ENCODER = TransformerConfig(width=16, depth=2, heads=2, mlp_hidden=24, n_registers=1, position_bins=10)
ENCODERS = {
    "polar": ENCODER,
    "cls of jet": replace(SIZES["nano"], width=16, depth=2),
    "particle transformer": ParticleTransformerConfig(16, 2, heads=2, embed=(8,)),
    "particlenet": ParticleNetConfig(channels=((8, 8), (16, 16)), neighbours=4),
}
SMALL = JepaConfig(predictor=DecoderConfig(width=16, depth=2, heads=2, ranks=6), monitor_every=1)
BATCH = random_jets([30, 18, 9, 1, 25, 3, 2]).batch()


def objective(config=SMALL, encoder=ENCODER, apart=0.1):
    """``apart``: how far the teacher is from the student, which it starts as a copy of."""
    torch.manual_seed(0)
    features = Features(FeatureConfig())
    module = Jepa(features, build_encoder(encoder, len(features.names)), config)
    with torch.no_grad():
        for p in module.teacher.parameters():
            p.add_(apart * torch.randn_like(p))
    return module


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_teacher_is_a_copy_without_gradient_that_follows_the_student():
    module = objective(apart=0)
    for ours, theirs in zip(module.student.encoder.parameters(), module.teacher.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.data_ptr() != theirs.data_ptr()
    module(BATCH, 0, 10, generator()).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.student.parameters())
    assert all(p.grad is None and not p.requires_grad for p in module.teacher.parameters())

    old = [p.clone() for p in module.teacher.parameters()]
    with torch.no_grad():
        for p in module.student.parameters():
            p.add_(torch.randn_like(p))
    module.after_step(3, 10)
    momentum = 1 + (0.992 - 1) * (1 + math.cos(math.pi * 0.3)) / 2
    new = zip(old, module.student.encoder.parameters(), module.teacher.parameters(), strict=True)
    for before, student, teacher in new:
        torch.testing.assert_close(teacher, momentum * before + (1 - momentum) * student)
    assert module.encoder is module.teacher
    module.train()
    assert not module.teacher.training
    assert module.student.training
    assert module.ema_momentum(10, 10) == pytest.approx(1)


@pytest.mark.parametrize("loss", ["smooth_l1", "l2"])
def test_step_equals_the_scheme_written_plainly(loss):
    """Jet by jet, token by token: loss and gradients."""
    module = objective(replace(SMALL, loss=loss, beta=0.7)).eval()
    out = module(BATCH, 0, 10, generator(4))
    hidden = hidden_particles(BATCH.mask, 0.4, generator(4))
    inputs, decoder, plain = module.features(BATCH), module.student.predictor.decoder, torch.zeros(())
    for b, chosen in enumerate(hidden):
        if not chosen.any():
            continue
        jet = inputs.jets(torch.arange(b, b + 1))
        seen = module.teacher([jet])[0].tokens[0].detach()
        student = module.student.encoder([survivors(jet, chosen.unsqueeze(0))])[0]
        pt = torch.hypot(BATCH.p4[b, :, 1], BATCH.p4[b, :, 2])
        places = sorted(chosen.nonzero()[:, 0].tolist(), key=lambda i, pt=pt: -float(pt[i]))
        asked = torch.stack([decoder.ranks[min(k, 5)] for k in range(len(places))])
        x = torch.cat([decoder.of_token(student.tokens[0, BATCH.mask[b] & ~chosen]), asked]).unsqueeze(0)
        tokens = decoder.transformer(x, torch.ones(1, x.shape[1]).bool(), beside=decoder.of_cls(student.cls))
        each = []
        for i, token in zip(places, tokens[-len(places) :], strict=True):
            target = (seen[i] - seen[i].mean()) / torch.sqrt(seen[i].var(unbiased=False) + 1e-5)
            d = (module.student.predictor.output(token) - target).abs()
            smooth = torch.where(d < 0.7, d.square() / 1.4, d - 0.35)
            each.append((d.square() if loss == "l2" else smooth).mean())
        plain = plain + sum(each) / len(each) / len(BATCH)
    torch.testing.assert_close(out.loss, plain, rtol=1e-4, atol=1e-5)
    parameters = list(module.student.parameters())
    ours, slow = (
        torch.autograd.grad(x, parameters, materialize_grads=True, retain_graph=True) for x in (out.loss, plain)
    )
    for a, b in zip(ours, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=5e-3, atol=2e-3 * max(1e-3, float(b.abs().max())))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_student_sees_nothing_of_hidden_particles_and_the_teacher_does(encoder):
    module = objective(encoder=ENCODERS[encoder]).eval()
    hidden = hidden_particles(BATCH.mask, 0.4, generator())
    bent = BATCH.p4.clone()
    bent[..., 1], bent[..., 2] = BATCH.p4[..., 2], BATCH.p4[..., 1]  # another direction, the same pT
    other = replace(BATCH, p4=torch.where(hidden.unsqueeze(-1), bent, BATCH.p4))
    predictions, targets = [], []
    module.student.predictor.output.register_forward_hook(lambda _, __, out: predictions.append(out.detach()))
    module.teacher.register_forward_hook(lambda _, __, out: targets.append(out[0].at(hidden)))
    for batch in (BATCH, other):
        module(batch, 0, 10, generator())
    assert torch.equal(*predictions)
    assert not torch.allclose(*targets)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_learns(encoder):
    module = objective(encoder=ENCODERS[encoder]).train()
    module(BATCH, 0, 10, generator()).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.student.parameters())
    module.after_step(0, 10)
    for own, theirs in zip(module.teacher.buffers(), module.student.encoder.buffers(), strict=True):
        assert torch.equal(own, theirs)
    assert sum(len(group["params"]) for group in module.parameter_groups(1e-3, 0.1)) == len(
        list(module.student.parameters())
    )


def test_steps_are_determined_by_the_generator():
    module = objective()
    first, again = module(BATCH, 0, 10, generator(5)), module(BATCH, 0, 10, generator(5))
    assert torch.equal(first.loss, again.loss)
    state = torch.get_rng_state()
    assert not torch.equal(module(BATCH, 0, 10, generator(6)).loss, first.loss)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("counts", [[1, 1, 1], [0, 5, 1], [2]])
def test_jets_of_none_one_or_two_particles_and_batches_of_one(counts):
    module = objective()
    out = module(random_jets(counts).batch(), 0, 10, generator())
    out.loss.backward()
    assert out.loss.isfinite()
    if max(counts) < 2:
        assert float(out.loss.detach()) == 0
    # Distributed training waits for the gradient of every parameter.
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.student.parameters())


def test_it_trains_under_bfloat16_towards_a_teacher_that_stands_still():
    module = objective()
    losses = losses_in_bfloat16(module, BATCH)
    assert losses[-1] < 0.8 * losses[0]


def test_collapse_is_seen():
    module = objective()
    metrics = {name: float(x) for name, x in module(BATCH, 0, 10, generator()).metrics.items()}
    assert {"loss", "hidden", "feature_rank", "cls_std", "token_rank", "target_std"} <= set(metrics)
    assert not any(x.requires_grad for x in module(BATCH, 0, 10, generator()).metrics.values())
    assert not module.alarms(metrics)
    flat = objective()
    with torch.no_grad():  # a teacher that says the same of all
        flat.teacher.stem.weight.zero_()
        flat.teacher.position.table.zero_()
    metrics = {name: float(x) for name, x in flat(BATCH, 0, 10, generator()).metrics.items()}
    assert metrics["token_rank"] < 1.5
    assert metrics["target_std"] < 0.02
    found = " ".join(flat.alarms(metrics))
    assert "the same for all particles" in found
    assert "effective dimensions" in found
    seldom = objective(replace(SMALL, monitor_every=4))
    assert [s for s in range(9) if "token_rank" in seldom(BATCH, s, 10, generator()).metrics] == [3, 7]


def test_learning_rates_fall_from_predictor_to_stem():
    module = objective()
    rates = {group["name"]: group["lr"] for group in module.parameter_groups(3e-3, 0.05, 0.9)}
    below = {"stem": 3e-3 * 0.9**3, "block 1": 3e-3 * 0.9**2, "block 2": 3e-3 * 0.9}
    assert rates == pytest.approx({**below, "predictor": 3e-3})
    assert set(module.parts()) == {"encoder", "predictor"}


@pytest.mark.parametrize(
    "changes", [{"mask_fraction": 0.0}, {"mask_fraction": 1.0}, {"ema": 1.1}, {"beta": 0.0}, {"monitor_every": 0}]
)
def test_settings_that_make_no_sense_are_refused(changes):
    with pytest.raises(InputError):
        replace(SMALL, **changes)
