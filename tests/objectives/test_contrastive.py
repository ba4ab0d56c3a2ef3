import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jetrep.encoders import JetTransformer, ParticleNetConfig, TransformerConfig, build_encoder
from jetrep.errors import InputError
from jetrep.features import FeatureConfig, Features
from jetrep.jets import JetBatch
from jetrep.objectives.contrastive import (
    Contrastive,
    JetCLR,
    JetCLRConfig,
    JetCLRScale,
    JetCLRScaleConfig,
    ProjectorConfig,
    SupCon,
    SupConConfig,
)
from jetrep.objectives.contrastive_losses import alignment, nt_xent_loss, supcon_loss, uniformity
from jetrep.physics import fourvector as fv
from jetrep.views.augment import AugmentationConfig, augmented, jet_keys
from jetrep.views.rg import ALL
from prong_jets import prong_jets
from random_jets import random_jets

ENCODER = TransformerConfig(width=16, depth=2, heads=2, mlp_hidden=24, n_registers=1, position_bins=10)
KINDS = {
    "jetclr": (JetCLR, JetCLRConfig(monitor_every=1)),
    "supcon": (SupCon, SupConConfig(monitor_every=1)),
    "jetclr-scale": (JetCLRScale, JetCLRScaleConfig(monitor_every=1)),
}
JETS = random_jets([30, 18, 9, 1, 25, 3])
BATCH = JETS.with_labels(np.array([0, 1, 0, 2, 1, 1]), ("a", "b", "c")).batch()


def objective(kind: str, features: FeatureConfig = FeatureConfig(), seed: int = 0, **changes) -> Contrastive:
    torch.manual_seed(seed)
    inputs = Features(features)
    build, config = KINDS[kind]
    return build(inputs, JetTransformer(ENCODER, len(inputs.names)), replace(config, **changes))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def projections(n_views: int, batch: int, seed: int, d: int = 5) -> torch.Tensor:
    z = torch.randn(n_views, batch, d, generator=generator(seed), dtype=torch.float64)
    return (3 * z).requires_grad_()


def slow_nt_xent(z: torch.Tensor, temperature: float) -> torch.Tensor:
    """As in the paper: 2B vectors, jet k being 2k and 2k + 1."""
    vectors = [z[v, i] for i in range(z.shape[1]) for v in range(2)]
    total = z.new_zeros(())
    for i, a in enumerate(vectors):
        similarity = [torch.dot(a, b) / (a.norm() * b.norm()) / temperature for b in vectors]
        others = sum(s.exp() for k, s in enumerate(similarity) if k != i)
        total = total - (similarity[i ^ 1].exp() / others).log()
    return total / len(vectors)


def slow_supcon(z: torch.Tensor, labels: list[int], temperature: float) -> torch.Tensor:
    """L_out by its definition; anchors without a positive are left out."""
    vectors = [z[v, i] / z[v, i].norm() for v in range(z.shape[0]) for i in range(z.shape[1])]
    classes = labels * z.shape[0]
    terms = []
    for i, a in enumerate(vectors):
        others = [k for k in range(len(vectors)) if k != i]
        positives = [p for p in others if classes[p] == classes[i]]
        if positives:
            norm = sum((a @ vectors[k] / temperature).exp() for k in others)
            logs = [((a @ vectors[p] / temperature).exp() / norm).log() for p in positives]
            terms.append(-sum(logs) / len(positives))
    return sum(terms) / len(terms)


def assert_same_value_and_gradient(ours: torch.Tensor, oracle: torch.Tensor, z: torch.Tensor) -> None:
    torch.testing.assert_close(ours.double(), oracle, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(loss, z, allow_unused=True)[0] for loss in (ours, oracle)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 7), st.sampled_from([0.05, 0.1, 1.0]), st.integers(0, 1000))
def test_nt_xent_equals_its_definition(batch, temperature, seed):
    z = projections(2, batch, seed)
    assert_same_value_and_gradient(nt_xent_loss(z, temperature), slow_nt_xent(z, temperature), z)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3), st.lists(st.integers(0, 3), min_size=2, max_size=8), st.integers(0, 1000))
def test_supcon_equals_its_definition(n_views, labels, seed):
    if len(set(labels)) < 2 or (n_views == 1 and len(set(labels)) == len(labels)):
        return
    z = projections(n_views, len(labels), seed)
    ours = supcon_loss(z, torch.tensor(labels), 0.1)
    assert_same_value_and_gradient(ours, slow_supcon(z, labels, 0.1), z)


def test_supcon_of_jets_that_are_each_a_class_is_nt_xent():
    z = projections(2, 6, 0)
    torch.testing.assert_close(supcon_loss(z, torch.randperm(6), 0.1), nt_xent_loss(z, 0.1))


def test_values_at_the_ends():
    # All alike: nothing is told from the 2B − 1 others. Jets orthogonal, views alike: −ln[e^10 / (e^10 + 2B − 2)].
    b = 6
    assert float(nt_xent_loss(torch.ones(2, b, 8), 0.1)) == pytest.approx(math.log(2 * b - 1), rel=1e-6)
    best = torch.eye(b).expand(2, b, b)
    assert float(nt_xent_loss(best, 0.1)) == pytest.approx(math.log(1 + (2 * b - 2) * math.exp(-10)), rel=1e-3)
    # The length of projections plays no part.
    z = projections(2, 5, 0)
    torch.testing.assert_close(nt_xent_loss(z * torch.rand(2, 5, 1) * 100, 0.1), nt_xent_loss(z, 0.1))


def test_jets_without_a_positive_or_a_negative_have_defined_losses():
    z = projections(1, 4, 0)
    # One view, every class once: no anchor has a positive.
    for labels in (torch.arange(4), torch.zeros(4, dtype=torch.long)):
        loss = supcon_loss(z, labels, 0.1)
        assert float(loss.detach()) == 0
        assert not torch.autograd.grad(loss, z)[0].any()
    # One view, one pair: the other two jets are negatives, and no anchors.
    labels = torch.tensor([0, 0, 1, 2])
    expected = slow_supcon(z, labels.tolist(), 0.1)
    torch.testing.assert_close(supcon_loss(z, labels, 0.1).double(), expected, rtol=1e-5, atol=1e-6)
    # Two views of one class: only drawing all together would lower the loss.
    two = projections(2, 4, 0)
    loss = supcon_loss(two, torch.full((4,), 3), 0.1)
    assert float(loss.detach()) == 0
    assert not torch.autograd.grad(loss, two)[0].any()
    # A single jet.
    one = projections(1, 1, 0)
    assert not torch.autograd.grad(supcon_loss(one, torch.zeros(1, dtype=torch.long), 0.1), one)[0].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_losses_are_computed_in_single_precision(dtype, temperature):
    z = projections(2, 64, 0, 32).detach().to(dtype)
    labels = torch.arange(64) % 3
    expected = nt_xent_loss(z.float(), temperature), supcon_loss(z.float(), labels, temperature)
    with torch.autocast("cpu", dtype=dtype):
        found = nt_xent_loss(z, temperature), supcon_loss(z, labels, temperature)
    for ours, wanted in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, wanted)
    assert bool(nt_xent_loss(torch.full((2, 4, 8), 6e4, dtype=dtype), temperature).isfinite())
    assert bool(nt_xent_loss(torch.zeros(2, 4, 8, dtype=dtype), temperature).isfinite())


def test_alignment_and_uniformity_equal_their_definitions():
    u = torch.nn.functional.normalize(projections(2, 7, 0).detach(), dim=-1)
    distances = [float((u[0, i] - u[1, i]).norm() ** 2) for i in range(7)]
    assert float(alignment(u)) == pytest.approx(sum(distances) / 7)
    pairs = [
        math.exp(-2 * float((u[v, i] - u[v, j]).norm() ** 2)) for v in range(2) for i in range(7) for j in range(i)
    ]
    assert float(uniformity(u)) == pytest.approx(math.log(sum(pairs) / len(pairs)))
    same = torch.ones(2, 5, 3) / math.sqrt(3)
    assert float(uniformity(same)) == pytest.approx(0, abs=1e-5)
    assert float(uniformity(same[:, :1])) == 0
    sphere = torch.nn.functional.normalize(torch.randn(1, 500, 512, generator=generator()), dim=-1)
    assert float(uniformity(sphere)) == pytest.approx(-4, abs=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_step_equals_the_scheme_written_plainly(kind):
    module = objective(kind)
    out = module(BATCH, 0, 10, generator(4))
    first, second = module.views(BATCH, generator(4))
    z = torch.stack([module.net.head(module.encoder([module.features(v)])[0].cls) for v in (first, second)]).double()
    expected = slow_supcon(z, BATCH.labels.tolist(), 0.1) if kind == "supcon" else slow_nt_xent(z, 0.1)
    torch.testing.assert_close(out.loss.double(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(out.metrics["loss"], out.loss.detach())
    assert {"alignment", "uniformity", "matched", "feature_rank", "cls_std"} < set(out.metrics)
    assert all(x.ndim == 0 and bool(x.isfinite()) and not x.requires_grad for x in out.metrics.values())
    out.loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in module.parameters())
    assert all(p.grad.abs().sum() > 0 for name, p in module.named_parameters() if "bias" not in name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pooling", ["mean", "cls+mean"])
def test_other_poolings(kind, pooling):
    module = objective(kind, head=ProjectorConfig((2.0, 0.5), 0.25, pooling))
    assert bool(module(BATCH, 0, 10, generator()).loss.isfinite())
    assert [layer.out_features for layer in module.net.head.layers if hasattr(layer, "out_features")] == [32, 8, 4]


@pytest.mark.parametrize("kind", KINDS)
def test_any_encoder_will_do(kind):
    inputs = Features(FeatureConfig())
    config = ParticleNetConfig(neighbours=3, channels=((8, 8), (12,)))
    build, settings = KINDS[kind]
    module = build(inputs, build_encoder(config, len(inputs.names)), settings)
    module(BATCH, 0, 10, generator()).loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in module.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_functions_of_the_generator_alone(kind):
    module = objective(kind)
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(int(torch.randint(1000, ())))
        losses.append(float(module(BATCH, 0, 10, generator(seed)).loss.detach()))
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("kind", KINDS)
def test_monitors_come_every_so_often(kind):
    module = objective(kind, monitor_every=3)
    assert [step for step in range(9) if "uniformity" in module(BATCH, step, 10, generator()).metrics] == [2, 5, 8]


def test_views_of_the_scales():
    module = objective("jetclr-scale")
    tiers = module.config.tiers
    drawn = {module.draw_scales(generator(seed)) for seed in range(300)}
    expected = {(a, b) for i in range(3) for j in range(i + 1, 3) for a in tiers[i] for b in tiers[j]}
    assert drawn == expected
    first, second = module.views(BATCH, generator(2))
    scales = module.draw_scales(generator(2))
    for view, scale in zip((first, second), scales, strict=True):
        assert view.counts.tolist() == [min(n, scale or n) for n in (30, 18, 9, 1, 25, 3)]
        torch.testing.assert_close(view.p4.sum(1), view.jet_p4, rtol=1e-4, atol=1e-2)
    assert float((fv.phi(first.jet_p4) - fv.phi(second.jet_p4)).abs().min()) > 1e-4
    still = objective("jetclr-scale", max_rapidity=None).views(BATCH, generator(2))
    assert torch.equal(still[0].jet_p4, BATCH.jet_p4)


def test_pairs_of_the_same_particles_are_counted():
    module = objective("jetclr-scale", tiers=((4,), (ALL,)))
    # Of 30, 18, 9, 1, 25 and 3 particles, two jets have no more than four.
    assert float(module(BATCH, 0, 10, generator()).metrics["identical_pairs"]) == pytest.approx(2 / 6)


def test_direction_of_the_jet_is_no_shortcut():
    """What tells one jet from all others by its direction differs between views, unless placing is off."""
    jets = prong_jets(256)
    for placing, tells in ((2.0, False), (None, True)):
        first, second = augmented(
            jets.batch(), partial(jet_keys, 256, generator()), AugmentationConfig(max_rapidity=placing)
        )
        features = [Features(FeatureConfig())(view).jet_features[:, 2:] for view in (first, second)]
        nearest = torch.cdist(*features).argmin(1) == torch.arange(256)
        assert (float(nearest.float().mean()) > 0.9) is tells
        assert tells or float(nearest.float().mean()) < 0.05


def test_supcon_needs_labels_and_tells_of_a_single_class():
    module = objective("supcon")
    with pytest.raises(InputError, match="the jets are unlabelled; supervised contrastive training needs labels"):
        module(JETS.batch(), 0, 10, generator())
    single = replace(BATCH, labels=torch.ones(6, dtype=torch.long))
    out = module(single, 0, 10, generator())
    out.loss.backward()
    assert float(out.loss.detach()) == 0
    assert all(p.grad is not None and not p.grad.any() for p in module.parameters())
    values = {name: float(x) for name, x in out.metrics.items()}
    assert values["classes"] == 1
    assert any("one class only" in sentence for sentence in module.alarms(values))
    assert float(module(BATCH, 0, 10, generator()).metrics["classes"]) == 3
    # The other objectives look at no label.
    for kind in ("jetclr", "jetclr-scale"):
        losses = [objective(kind)(batch, 0, 10, generator()).loss for batch in (BATCH, JETS.batch(), single)]
        assert torch.equal(losses[0], losses[1])
        assert torch.equal(losses[0], losses[2])


def test_a_batch_of_one_jet_is_refused():
    for kind in KINDS:
        with pytest.raises(InputError, match="nothing to compare it with"):
            objective(kind)(JetBatch(BATCH.p4[:1], BATCH.mask[:1], BATCH.jet_p4[:1]), 0, 10, generator())


def test_unclustered_jets_are_refused_for_scales_alone():
    batch = replace(BATCH, order=None, join=None)
    with pytest.raises(InputError, match="cluster"):
        objective("jetclr-scale")(batch, 0, 10, generator())
    assert bool(objective("jetclr")(batch, 0, 10, generator()).loss.isfinite())


def test_measured_features_and_views_that_lose_them():
    full = FeatureConfig("kinpid")
    with pytest.raises(InputError, match="subjets have no measured column 'charge'"):
        objective("jetclr-scale", full)
    unsplit = AugmentationConfig(split_passes=0)
    measured = {name: torch.zeros(BATCH.mask.shape) for name in full.columns}
    for kind in ("jetclr", "supcon"):
        with pytest.raises(InputError, match="collinear daughters have no measured column 'charge'"):
            objective(kind, full)
        module = objective(kind, full, augmentation=unsplit)
        assert bool(module(replace(BATCH, measured=measured), 0, 10, generator()).loss.isfinite())


@pytest.mark.parametrize("kind", KINDS)
def test_empty_jets_do_no_harm(kind):
    empty = replace(
        BATCH, p4=BATCH.p4.clone(), mask=BATCH.mask.clone(), jet_p4=BATCH.jet_p4.clone(), join=BATCH.join.clone()
    )
    empty.p4[2], empty.mask[2], empty.jet_p4[2], empty.join[2] = 0, False, 0, -1
    module = objective(kind)
    out = module(empty, 0, 10, generator())
    out.loss.backward()
    assert bool(out.loss.isfinite())
    assert all(bool(p.grad.isfinite().all()) for p in module.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_gives_nearly_the_same(kind):
    module = objective(kind)
    exact = module(BATCH, 0, 10, generator()).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = module(BATCH, 0, 10, generator()).loss
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, exact, rtol=0.1, atol=0.1)


def test_alarms_tell_of_collapse():
    for kind in KINDS:
        module = objective(kind)
        with torch.no_grad():
            module.net.head.layers[-1].weight.zero_()
        metrics = {name: float(x) for name, x in module(BATCH, 0, 10, generator()).metrics.items()}
        assert any("the same for all jets" in sentence for sentence in module.alarms(metrics))
        assert module.alarms({"loss": math.nan})
        healthy = {"loss": 1.0, "uniformity": -2.0, "alignment": 0.3, "feature_rank": 9.0, "cls_std": 0.5}
        assert not module.alarms(healthy)
        # Two classes span one direction: by design for SupCon, a collapse for the others.
        assert bool(module.alarms(healthy | {"feature_rank": 1.1})) is (kind != "supcon")


def test_groups_for_the_optimiser_hold_every_parameter_once():
    module = objective("jetclr")
    groups = module.parameter_groups(1e-3, 0.1, layer_decay=0.5)
    held = [p for group in groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in module.parameters()}
    assert len(held) == len(list(module.parameters()))
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates == {"stem": 1.25e-4, "block 1": 2.5e-4, "block 2": 5e-4, "head": 1e-3}
    assert set(module.parts()) == {"encoder", "head"}


@pytest.mark.parametrize("kind", KINDS)
def test_training_tells_jets_apart(kind):
    batch = prong_jets(64).batch()
    # Rotation hides so much that so few jets and steps would not do.
    gentle = {} if kind == "jetclr-scale" else {"augmentation": AugmentationConfig(rotation=False)}
    module = objective(kind, **gentle)
    optimizer = torch.optim.AdamW(module.parameter_groups(lr=3e-3, weight_decay=0.0))
    losses = []
    for step in range(40):
        out = module(batch, step, 40, generator(step))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(float(out.loss.detach()))
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.3


@pytest.mark.parametrize(
    ("config", "setting", "match"),
    [
        (JetCLRConfig, {"temperature": 0.0}, "temperature"),
        (SupConConfig, {"temperature": math.nan}, "temperature"),
        (JetCLRConfig, {"monitor_every": 0}, "monitor_every"),
        (JetCLRScaleConfig, {"tiers": ((2, 3),)}, "tiers"),
        (JetCLRScaleConfig, {"tiers": ((2,), ())}, "tiers"),
        (JetCLRScaleConfig, {"tiers": ((2,), (-1,))}, "tiers"),
        (JetCLRScaleConfig, {"tiers": ((2, 3), (3,))}, "twice"),
        (JetCLRScaleConfig, {"max_rapidity": math.inf}, "max_rapidity"),
        (ProjectorConfig, {"outputs": 0.0}, "head"),
        (ProjectorConfig, {"hidden": (1.0, -1.0)}, "head"),
    ],
)
def test_impossible_settings_are_refused(config, setting, match):
    with pytest.raises(InputError, match=match):
        config(**setting)
