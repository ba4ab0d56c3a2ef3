import math
from dataclasses import replace

import pytest
import torch

from half_precision import losses_in_bfloat16
from jetrep.encoders import HeadConfig, JetTransformer, TransformerConfig
from jetrep.errors import InputError
from jetrep.features import FeatureConfig, Features
from jetrep.objectives import PRESETS, SelfDistillation, SelfDistillationConfig
from jetrep.objectives.losses import koleo_loss, sinkhorn
from jetrep.views.masking import random_particles
from jetrep.views.rg import ALL, subjets
from random_jets import random_jets

ENCODER = TransformerConfig(width=16, depth=2, heads=2, mlp_hidden=24, n_registers=1, position_bins=10)
SMALL = replace(PRESETS["g2"], head=HeadConfig(n_prototypes=12), monitor_every=1)


def objective(config: SelfDistillationConfig = SMALL, seed: int = 0) -> SelfDistillation:
    torch.manual_seed(seed)
    features = Features(FeatureConfig())
    return SelfDistillation(features, JetTransformer(ENCODER, len(features.names)), config)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


BATCH = random_jets([30, 18, 9, 1, 25, 3]).batch()


def test_teacher_is_a_copy_without_gradient_that_follows_the_student():
    module = objective()
    for ours, theirs in zip(module.student.parameters(), module.teacher.parameters(), strict=True):
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
    momentum = 0.997 + (0.995 - 0.997) * (1 + math.cos(math.pi * 0.3)) / 2
    for before, student, teacher in zip(old, module.student.parameters(), module.teacher.parameters(), strict=True):
        torch.testing.assert_close(teacher, momentum * before + (1 - momentum) * student)
    assert module.encoder is module.teacher.encoder
    module.train()
    assert not module.teacher.training


@pytest.mark.parametrize("preset", ["g2", "g1"])
def test_step_equals_the_scheme_written_plainly(preset):
    """Every view in a forward of its own, heads on every token; among jets that are the same at several scales."""
    config = replace(PRESETS[preset], head=HeadConfig(n_prototypes=12))
    module = objective(config)
    with torch.no_grad():
        for p in (*module.student.parameters(), *module.teacher.parameters()):
            p.add_(0.1 * torch.randn_like(p))
    out = module(BATCH, 0, 10, generator(4))
    g = generator(4)
    scales = (*config.teacher_scales, *module.draw_scales(g))
    inputs = [module.features(subjets(BATCH, scale)) for scale in scales]
    n_teacher = len(config.teacher_scales)

    def logits(branch, n):
        cls = [branch.encoder([view])[0].cls for view in inputs[:n]]
        return torch.stack([branch.dino(x) for x in cls]), torch.stack(cls)

    student, cls = logits(module.student, len(scales))
    targets = sinkhorn(logits(module.teacher, n_teacher)[0].flatten(0, 1), 0.04).view(n_teacher, len(BATCH), -1)
    pairs = [
        -(targets[t] * torch.log_softmax(student[s] / 0.1, -1)).sum(-1).mean()
        for t in range(n_teacher)
        for s in range(len(scales))
        if s != t
    ]
    assert len(pairs) == n_teacher * (len(scales) - 1)
    loss = torch.stack(pairs).mean() + config.koleo_weight * koleo_loss(cls[:n_teacher])
    if config.ibot_weight:
        view = module.features(BATCH)
        hidden = random_particles(BATCH.mask, 0.25, g)
        seen = module.teacher.ibot(module.teacher.encoder([view])[0].tokens)[hidden]
        predicted = module.student.ibot(module.student.encoder([view.with_masked(hidden)])[0].tokens)[hidden]
        each = -(sinkhorn(seen, 0.04) * torch.log_softmax(predicted / 0.1, -1)).sum(-1)
        jets = hidden.nonzero()[:, 0]
        loss = loss + sum(each[jets == b].mean() for b in range(len(BATCH)) if (jets == b).any()) / len(BATCH)

    torch.testing.assert_close(out.loss, loss, rtol=1e-4, atol=1e-5)
    parameters = list(module.student.parameters())
    ours, plain = torch.autograd.grad(out.loss, parameters), torch.autograd.grad(loss, parameters)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=5e-3, atol=2e-3 * float(b.abs().max()))


def test_steps_are_determined_by_the_generator():
    module = objective()
    first, again = module(BATCH, 0, 10, generator(5)), module(BATCH, 0, 10, generator(5))
    assert torch.equal(first.loss, again.loss)
    state = torch.get_rng_state()
    module(BATCH, 0, 10, generator(6))
    assert torch.equal(torch.get_rng_state(), state)


def test_total_is_the_weighted_sum_and_metrics_carry_no_gradient():
    module = objective(replace(SMALL, dino_weight=2.0, ibot_weight=0.5, koleo_weight=0.1))
    out = module(BATCH, 0, 10, generator())
    m = out.metrics
    torch.testing.assert_close(m["loss"], 2 * m["loss_dino"] + 0.5 * m["loss_ibot"] + 0.1 * m["loss_koleo"])
    assert {"teacher_entropy", "prototype_use", "feature_rank", "cls_std", "identical_pairs"} <= set(m)
    assert not any(value.requires_grad for value in m.values())
    seldom = objective(replace(SMALL, monitor_every=4))
    assert [s for s in range(9) if "feature_rank" in seldom(BATCH, s, 10, generator()).metrics] == [3, 7]


@pytest.mark.parametrize("off", ["dino", "ibot", "koleo"])
def test_each_loss_can_be_switched_off_alone(off):
    config = replace(SMALL, **{f"{off}_weight": 0.0})
    module = objective(config)
    out = module(BATCH, 0, 10, generator())
    assert f"loss_{off}" not in out.metrics
    assert set(module.parts()) == {"encoder", "dino", "ibot"} - {off}
    out.loss.backward()
    assert all(p.grad is not None for p in module.student.parameters())
    if off == "koleo":
        # The others are what they would be with it.
        full = objective()(BATCH, 0, 10, generator()).metrics
        torch.testing.assert_close(out.metrics["loss_dino"], full["loss_dino"])
        torch.testing.assert_close(out.metrics["loss_ibot"], full["loss_ibot"])


@pytest.mark.parametrize("weight", ["dino_weight", "ibot_weight", "koleo_weight"])
def test_collapse_is_watched_whatever_is_learned(weight):
    alone = dict.fromkeys(("dino_weight", "ibot_weight", "koleo_weight"), 0.0) | {weight: 1.0}
    module = objective(replace(SMALL, **alone, monitor_every=2))
    for step, told in ((0, False), (1, True)):
        metrics = module(BATCH, step, 10, torch.Generator().manual_seed(0)).metrics
        assert {"feature_rank", "cls_std"} <= set(metrics) if told else "feature_rank" not in metrics
        assert not told or float(metrics["feature_rank"]) > 1


def test_drawn_scales_leave_out_the_teachers_and_all_occur():
    module = objective(replace(SMALL, teacher_scales=(6, 3), student_scales=(2, 3, 4, ALL, 6), n_student_scales=2))
    g = generator()
    draws = {module.draw_scales(g) for _ in range(60)}
    assert {frozenset(draw) for draw in draws} == {frozenset(p) for p in ((2, 4), (2, ALL), (4, ALL))}


def test_identical_views_are_counted_and_can_be_left_out():
    few = random_jets([4, 30]).batch()
    config = replace(SMALL, teacher_scales=(6, 8), student_scales=(2, ALL), n_student_scales=2, ibot_weight=0.0)
    out = objective(config)(few, 0, 10, generator())
    # The jet of 4 is the same at 6, 8 and ALL: of its 2·3 pairs, those between (6, 8), (8, 6), (6, ALL), (8, ALL).
    assert float(out.metrics["identical_pairs"]) == pytest.approx(4 / 12)

    skipping = objective(replace(config, skip_identical_views=True))
    assert skipping(few, 0, 10, generator()).metrics["loss_dino"] != out.metrics["loss_dino"]
    only_identical = random_jets([4]).batch()
    no_pairs = replace(config, teacher_scales=(6, 8), student_scales=(12, ALL), koleo_weight=0.0)
    out = objective(replace(no_pairs, skip_identical_views=True))(only_identical, 0, 10, generator())
    assert float(out.loss.detach()) == 0


def test_padding_of_the_batch_changes_nothing():
    padded = replace(
        BATCH,
        p4=torch.nn.functional.pad(BATCH.p4, (0, 0, 0, 7)),
        mask=torch.nn.functional.pad(BATCH.mask, (0, 7)),
        order=torch.cat([BATCH.order, torch.arange(30, 37).expand(6, -1)], 1),
        join=torch.nn.functional.pad(BATCH.join, (0, 7), value=-1),
    )
    module = objective(replace(SMALL, ibot_weight=0.0))
    torch.testing.assert_close(module(padded, 0, 10, generator()).loss, module(BATCH, 0, 10, generator()).loss)


def test_schedules():
    module = objective(PRESETS["g1"])
    assert module.teacher_temperature(0, 100) == pytest.approx(0.04)
    assert module.teacher_temperature(10, 100) == pytest.approx(0.055)
    assert module.teacher_temperature(20, 100) == module.teacher_temperature(99, 100) == pytest.approx(0.07)
    assert module.ema_momentum(0, 100) == pytest.approx(0.992)
    assert module.ema_momentum(100, 100) == pytest.approx(1.0)
    assert objective().teacher_temperature(7, 100) == 0.04


def test_learning_rates_fall_from_head_to_stem():
    module = objective()
    groups = module.parameter_groups(3e-3, 0.05, 0.9)
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates == pytest.approx(
        {"stem": 3e-3 * 0.9**3, "block 1": 3e-3 * 0.9**2, "block 2": 3e-3 * 0.9, "dino": 3e-3, "ibot": 3e-3}
    )
    assert all(group["weight_decay"] == 0.05 for group in groups)
    trained = [id(p) for group in groups for p in group["params"]]
    assert sorted(trained) == sorted(id(p) for p in module.student.parameters())

    groups = module.parameter_groups(3e-3, 0.05, decay_all=False)
    exempt = {id(p) for group in groups if not group["weight_decay"] for p in group["params"]}
    expected = {id(p) for p in module.student.parameters() if p.ndim < 2} | {id(module.student.encoder.prefix)}
    assert exempt == expected
    assert sum(len(group["params"]) for group in groups) == len(trained)


@pytest.mark.parametrize("counts", [[1, 1, 1], [0, 5, 1], [2]])
@pytest.mark.parametrize("assignment", ["sinkhorn", "centering"])
def test_jets_of_none_one_or_two_particles_and_batches_of_one(counts, assignment):
    module = objective(replace(SMALL, assignment=assignment))
    out = module(random_jets(counts).batch(), 0, 10, generator())
    out.loss.backward()
    assert out.loss.isfinite()
    # Heads without a single hidden particle still take part: distributed training waits for every parameter.
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.student.parameters())


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("assignment", ["sinkhorn", "centering"])
def test_presets_train_under_bfloat16(preset, assignment):
    config = replace(PRESETS[preset], assignment=assignment)
    module = objective(replace(config, head=replace(config.head, n_prototypes=12)))
    # Evaluation mode keeps the centres, and without after_step the teacher stays: the task is then a fixed one.
    module.eval()
    losses = losses_in_bfloat16(module, BATCH, steps=25)
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"teacher_scales": ()},
        {"n_student_scales": 9},
        {"dino_weight": 0.0, "ibot_weight": 0.0, "koleo_weight": 0.0},
        {"teacher_scales": (6,), "n_student_scales": 0},
        {"n_student_scales": -1},
        {"monitor_every": 0},
        {"ema": 1.5},
        {"ema_end": math.nan},
        {"dino_weight": -1.0},
        {"koleo_weight": math.nan},
        {"student_temperature": math.nan},
        {"teacher_temperature_rise": -0.1},
    ],
)
def test_settings_that_make_no_sense_are_refused(changes):
    with pytest.raises(InputError):
        replace(SMALL, **changes)
