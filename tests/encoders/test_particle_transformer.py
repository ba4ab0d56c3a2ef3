"""Particle Transformer against weaver's at the same weights, what must not matter to it, and its switches."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import vector
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jetrep.encoders.dropout import dropout
from jetrep.encoders.heads import ClassifierHead
from jetrep.encoders.pairs import EXTENDED_PAIR_FEATURES, PAIR_FEATURES, pair_features
from jetrep.encoders.particle_transformer import ParticleTransformer, ParticleTransformerConfig
from jetrep.errors import InputError
from jetrep.features import FeatureConfig, Features, ModelInput
from random_jets import random_jets
from weaver_arrays import weaver_jets
from weaver_part import renamed

SMALL = ParticleTransformerConfig(
    width=16, depth=2, class_depth=1, heads=4, embed=(8,), pair_hidden=(6,), dropout=0.0, trim=False
)
UPGRADES = {
    "swiglu": {"mlp": "swiglu"},
    "rmsnorm": {"norm": "rmsnorm"},
    "plain blocks": {"normformer": False},
    "qk norm": {"qk_norm": True},
    "gate": {"gate": True},
    "layer scale": {"layer_scale": 0.1},
    "no bias": {"pair_hidden": ()},
    "linear bias": {"pair_activated": False},
    "more of pairs": {"pairs": "extended"},
    "bias in one block": {"pair_blocks": 1},
    "class token everywhere": {"class_depth": 0},
    "registers": {"class_depth": 0, "n_registers": 3},
    "everything": {
        "mlp": "swiglu",
        "norm": "rmsnorm",
        "normformer": False,
        "qk_norm": True,
        "gate": True,
        "layer_scale": 0.1,
        "class_depth": 0,
        "n_registers": 2,
        "pairs": "extended",
        "drop_path": 0.1,
        "dropout": 0.1,
    },
}


def view_of(counts, seed: int = 0) -> ModelInput:
    return Features(FeatureConfig("kin", "weaver"))(random_jets(counts, seed).batch())


def built(config: ParticleTransformerConfig = SMALL, n_features: int = 7, seed: int = 0) -> ParticleTransformer:
    """An encoder whose weights are not at their symmetric start, and whose norms have seen something."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return stirred(ParticleTransformer(config, n_features)).eval()


def stirred(module: torch.nn.Module) -> torch.nn.Module:
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm1d):
            part.running_mean.normal_(0, 0.3)
            part.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return module


def n_parameters(*modules: torch.nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def weaver_pair(n_features: int):
    """Weaver's network without trimming, in the form of the JetClass recipe, and ours at the same weights."""
    module = pytest.importorskip("weaver.nn.model.ParticleTransformer")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        theirs = stirred(
            module.ParticleTransformer(n_features, fc_params=None, use_pre_activation_pair=False, trim=False)
        ).eval()
    ours = ParticleTransformer(replace(ParticleTransformerConfig(), trim=False), n_features).eval()
    ours.load_state_dict(renamed(theirs.state_dict()))
    return theirs, ours


def weaver_inputs(view: ModelInput) -> tuple[Tensor, Tensor, Tensor]:
    assert view.p4 is not None
    return view.features.mT, view.p4.mT[:, [1, 2, 3, 0]], view.mask.unsqueeze(1)


def test_published_number_of_parameters():
    encoder = ParticleTransformer(ParticleTransformerConfig(), 17)
    assert n_parameters(encoder, ClassifierHead(128, 10)) == 2_143_486
    assert n_parameters(encoder.embed, encoder.input_norm) == 135_364
    assert n_parameters(encoder.pair_bias) == 9_568
    assert {n_parameters(block) for block in [*encoder.blocks, *encoder.class_blocks]} == {199_688}


def test_outputs_and_gradients_are_those_of_weaver_on_jets_of_any_length():
    theirs, ours = weaver_pair(7)
    view = view_of([1, 2, 5, 40, 17, 17, 3])
    expected = theirs(*weaver_inputs(view))
    (encoded,) = ours([view])
    torch.testing.assert_close(encoded.cls, expected, atol=1e-5, rtol=1e-5)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    (expected * weights).sum().backward()
    (encoded.cls * weights).sum().backward()
    gradients = renamed({name: p.grad for name, p in theirs.named_parameters()})
    assert set(gradients) == {name for name, _ in ours.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        scale = gradients[name].abs().max()
        assert (parameter.grad - gradients[name]).abs().max() <= 1e-5 + 2e-5 * scale, name


def test_outputs_are_those_of_weaver_on_real_jets(real_data):
    theirs, ours = weaver_pair(17)
    jets = weaver_jets(real_data / "jetclass" / "jetclass_top_leptonic_100_full.npz")
    view = Features(FeatureConfig("full", "weaver", signed_eta=True))(jets.batch())
    with torch.no_grad():
        torch.testing.assert_close(ours([view])[0].cls, theirs(*weaver_inputs(view)), atol=2e-5, rtol=1e-5)


def test_pair_features_follow_their_formulas_in_double_precision():
    p4 = random_jets([30], seed=3).batch().p4[0]
    first, second = torch.tril_indices(30, 30, offset=-1)
    a, b = (
        vector.array(dict(zip(("E", "px", "py", "pz"), p4[rows].double().numpy().T, strict=True)))
        for rows in (first, second)
    )
    softer, delta = torch.tensor(a.pt).minimum(torch.tensor(b.pt)), torch.tensor(a.deltaRapidityPhi(b))
    expected = torch.stack([softer * delta, softer / torch.tensor(a.pt + b.pt), delta], -1).log()
    computed = pair_features(p4, first, second).double()
    assert computed.shape[1] == len(PAIR_FEATURES)
    torch.testing.assert_close(computed[:, :3], expected, atol=2e-4, rtol=1e-4)
    # In single precision E² − p² cannot know a mass far below the energy.
    rounding = 1e-6 * torch.tensor((a + b).E ** 2)
    assert ((computed[:, 3].exp() - torch.tensor((a + b).m2)).abs() < rounding).all()


def test_extended_pair_features_follow_their_formulas_in_double_precision():
    """Energies and angles in the rest frame of the jet come from boosting to it."""
    p4 = random_jets([30], seed=3).batch().p4[0]
    first, second = torch.tril_indices(30, 30, offset=-1)
    particles = vector.array(dict(zip(("E", "px", "py", "pz"), p4.double().numpy().T, strict=True)))
    jet = particles.sum()
    rest = particles.boostCM_of_p4(jet)
    a, b, ra, rb = particles[first], particles[second], rest[first], rest[second]
    energies = torch.tensor(ra.E), torch.tensor(rb.E)
    both = energies[0] + energies[1]
    expected = torch.stack(
        [
            (torch.tensor(a.pt).minimum(torch.tensor(b.pt)) * torch.tensor(a.deltaRapidityPhi(b)) / jet.pt).log(),
            (torch.tensor((a + b).pt) / jet.pt).log(),
            (both / jet.m).log(),
            (energies[0].minimum(energies[1]) / both).log(),
        ],
        -1,
    )
    jets = p4.double().sum(0).float().expand(30, 4)
    computed = pair_features(p4, first, second, jets).double()
    assert computed.shape[1] == len(EXTENDED_PAIR_FEATURES)
    assert torch.equal(computed[:, :4], pair_features(p4, first, second).double())
    torch.testing.assert_close(computed[:, [4, 6, 7, 8]], expected, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(computed[:, 5], computed[:, 3] - 2 * torch.tensor(jet.m).log(), atol=1e-3, rtol=0)
    # In single precision E² − p² cannot know a mass far below the energy.
    rounding = 1e-6 * torch.tensor((a + b).E ** 2) / (energies[0] * energies[1]) + 1e-3
    massless = 1 - torch.tensor((a + b).m2) / (2 * energies[0] * energies[1])
    assert ((computed[:, 9] - massless.clamp(-1, 1)).abs() < rounding).all()
    swapped = pair_features(p4, second, first, jets).double()
    torch.testing.assert_close(swapped, computed, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "p4", [[[5.0, 3.0, 4.0, 0.0]], [[1e-4, 0.0, 1e-4, 0.0], [9e3, 0.0, 0.0, 9e3]], [[0.0] * 4] * 2]
)
def test_pairs_of_jets_without_a_mass_are_finite(p4):
    p4 = torch.tensor(p4)
    first, second = torch.tril_indices(len(p4), len(p4))
    features = pair_features(p4, first, second, p4.sum(0).expand_as(p4))
    assert features.isfinite().all()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_bias_in_bfloat16_is_nearly_the_same(precision):
    """And symmetric, whatever the arithmetic of the rest."""
    view = view_of([6, 1, 3, 8])
    outputs = []
    for bf16 in (False, True):
        encoder = built(replace(SMALL, pair_bf16=bf16, pairs="extended")).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            out = encoder([view])[0].cls
        out.float().square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
        outputs.append(out.detach().float())
    torch.testing.assert_close(*outputs, atol=0.05, rtol=0.05)
    assert torch.equal(*outputs) == (precision == "bfloat16")


@pytest.mark.parametrize("change", ["class token everywhere", "registers", "everything"])
def test_the_class_token_alone_is_the_same(change):
    """What is not read afterwards is not computed in the last block, and changes neither outputs nor gradients."""
    encoder = built(replace(SMALL, **(UPGRADES[change] | {"dropout": 0.0, "drop_path": 0.0})))
    views = [view_of([6, 1, 3, 8]), view_of([2, 9], seed=1)]
    gradients = []
    outputs = []
    for chosen in (None, [None, None]):
        encoder.zero_grad()
        outputs.append(torch.cat([encoded.cls for encoded in encoder(views, chosen)]))
        outputs[-1].square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in encoder.named_parameters()})
    torch.testing.assert_close(*outputs, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)
    with pytest.raises(RuntimeError, match="without `chosen`"):
        _ = encoder(views, [None, None])[0].tokens


@pytest.mark.parametrize("config", [replace(SMALL, **change) for change in UPGRADES.values()], ids=list(UPGRADES))
def test_what_comes_out_for_a_jet_depends_on_its_own_particles_alone(config):
    encoder = built(config)
    counts = [3, 1, 9, 4]
    view = view_of(counts)
    together, apart = encoder([view])[0], [encoder([view.jets(torch.tensor([j]))])[0] for j in range(len(counts))]
    torch.testing.assert_close(together.cls, torch.cat([one.cls for one in apart]), atol=2e-5, rtol=1e-4)
    for j, (one, n) in enumerate(zip(apart, counts, strict=True)):
        torch.testing.assert_close(together.tokens[j, :n], one.tokens[0, :n], atol=2e-5, rtol=1e-4)
    assert (together.tokens[~view.mask] == 0).all()


@pytest.mark.parametrize("config", [replace(SMALL, **change) for change in UPGRADES.values()], ids=list(UPGRADES))
def test_every_switch_trains(config):
    encoder = built(config).train()
    encoder([view_of([6, 1, 3, 8])])[0].pooled("cls+mean").square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert sum(len(layer) for layer in encoder.layers()) == len(list(encoder.parameters()))


def test_every_switch_changes_the_network():
    reference = built()([view_of([5, 4])])[0].cls
    shapes = set()
    for name, change in UPGRADES.items():
        encoder = built(replace(SMALL, **change))
        shapes.add((n_parameters(encoder), name))
        assert not torch.allclose(encoder([view_of([5, 4])])[0].cls, reference), name


@given(seed=st.integers(0, 99), extra=st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_order_and_padding_do_not_matter(seed, extra):
    encoder, view = built(), view_of([7, 3, 5])
    mixed = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
    padded = {
        name: torch.nn.functional.pad(getattr(view, name)[:, mixed], (0, 0, 0, extra))
        for name in ("features", "coordinates", "p4")
    }
    mask = torch.nn.functional.pad(view.mask[:, mixed], (0, extra))
    other = encoder([replace(view, mask=mask, **padded)])[0]
    torch.testing.assert_close(other.pooled("cls+mean"), encoder([view])[0].pooled("cls+mean"), atol=2e-5, rtol=1e-4)


def test_views_are_encoded_side_by_side():
    encoder, one, two = built(), view_of([4, 6]), view_of([2, 9, 3], seed=1)
    first, second = encoder([one, two])
    torch.testing.assert_close(first.cls, encoder([one])[0].cls, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(second.tokens, encoder([two])[0].tokens, atol=2e-5, rtol=1e-4)


def test_trimming_takes_particles_from_the_longest_jets_in_training_alone():
    encoder = built(replace(SMALL, trim=True))
    mask = view_of([*range(1, 41)]).mask
    torch.manual_seed(0)
    assert encoder._trimmed(mask) is mask
    encoder.train()
    longest = set()
    for _ in range(20):
        kept = encoder._trimmed(mask)
        assert not (kept & ~mask).any()
        counts = kept.sum(1)
        assert (counts == mask.sum(1).clamp(max=int(counts.max()))).all()
        longest.add(int(counts.max()))
    assert min(longest) >= 36
    assert max(longest) == 40
    assert len(longest) > 2


def test_particles_whose_tokens_will_be_read_are_not_trimmed():
    encoder, view = built(replace(SMALL, trim=True)).train(), view_of([*range(1, 41)])
    torch.manual_seed(0)
    chosen = view.mask & (torch.rand(view.mask.shape) < 0.3)
    for _ in range(5):
        (encoded,) = encoder([view], [chosen])
        assert (encoded.mask == view.mask).all()
    assert any((encoder([view])[0].mask != view.mask).any() for _ in range(5))


def test_stochastic_depth_keeps_the_mean_and_leaves_whole_jets_out():
    block = built(replace(SMALL, drop_path=0.5)).train().blocks[-1]
    torch.manual_seed(0)
    kept = block._kept(4000, torch.empty(0))
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert (kept.mean(0) - 1).abs().max() < 0.07
    assert 0.4 < (kept[:, 0] == kept[:, 1]).double().mean() < 0.6  # each branch for itself
    assert block.eval()._kept(4000, torch.empty(0)) is None

    encoder = built(replace(SMALL, depth=1, class_depth=0, normformer=False))
    view = view_of([3, 1, 5])
    (whole,) = encoder([view])
    # Both branches of the shortest jet, which stands first in packed order, are left out, and no other's.
    encoder.blocks[0]._kept = lambda jets, x: torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    (encoded,) = encoder([view])
    torch.testing.assert_close(encoded.cls[1], encoder.norm(encoder.prefix)[0])
    torch.testing.assert_close(encoded.cls[[0, 2]], whole.cls[[0, 2]])
    assert (encoded.cls[1] - whole.cls[1]).abs().max() > 1e-3


@pytest.mark.parametrize("change", ["published", "everything"])
def test_what_is_compiled_is_one_graph_that_changes_nothing(change):
    """For all numbers of particles and jets. Traced with its gradients, which needs no compiler."""
    config = replace(SMALL, **UPGRADES.get(change, {}) | {"dropout": 0.0, "drop_path": 0.0})
    plain, original = built(config).train(), built(config).train()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    original.compile(backend="aot_eager", fullgraph=True, dynamic=True)
    traced = copy.deepcopy(original)
    for counts in ([3, 12, 7, 7, 1], [30, 2, 9], [4, 8, 8, 1, 1, 25, 17]):
        results = []
        for encoder in (plain, traced):
            encoder.zero_grad()
            (encoded,) = encoder([view_of(counts)])
            encoded.cls.square().sum().backward()
            results.append([encoded.cls.detach(), *(p.grad for p in encoder.parameters() if p.grad is not None)])
        assert len(results[0]) > 20
        for expected, found in zip(*results, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * (1 + float(expected.abs().max())))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert all(p.grad is None for p in original.parameters())


def test_all_that_is_random_can_be_compiled():
    encoder = built(replace(SMALL, **UPGRADES["everything"], depth=1)).train()
    encoder.compile(backend="aot_eager", fullgraph=True, dynamic=True)
    torch.manual_seed(0)
    first, second = (encoder([view_of([3, 12, 7])])[0].cls for _ in range(2))
    assert first.isfinite().all()
    assert not torch.equal(first, second)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_has_the_stated_rate_and_keeps_the_mean(p):
    x = torch.full((500, 1001), 3.0, requires_grad=True)
    assert dropout(x, p, training=False) is x
    torch.manual_seed(0)
    out = dropout(x, p, training=True)
    rate = (out == 0).double().mean()
    assert abs(rate - p) < 5 * (p * (1 - p) / x.numel()) ** 0.5 + 1e-5
    torch.testing.assert_close(out[out != 0], torch.full_like(out[out != 0], 3 / (1 - p)), rtol=1e-4, atol=0)
    # Neighbours, which share a random number, are dropped independently.
    both = ((out[:, :-1] == 0) & (out[:, 1:] == 0)).double().mean()
    assert abs(both - p * p) < 0.003
    (gradient,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(gradient, out.detach() / 3)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"heads": 3}, "encoder.heads"),
        ({"depth": 0}, "encoder.depth"),
        ({"n_registers": 2}, "encoder.n_registers"),
        ({"dropout": 1.0}, "encoder.dropout"),
        ({"drop_path": -0.1}, "encoder.drop_path"),
        ({"pair_blocks": -1}, "encoder.pair_blocks"),
    ],
)
def test_settings_that_make_no_sense(change, field):
    with pytest.raises(InputError, match=field):
        replace(SMALL, **change)


def test_hidden_particles_have_no_direction():
    """Their momenta are zero: seen from the origin of the detector, jets would tell where they point."""
    inputs = view_of([9, 5])
    hidden = torch.zeros_like(inputs.mask)
    hidden[:, 1::3] = True
    seen = inputs.with_masked(hidden)
    angle = torch.tensor(1.1, dtype=torch.float64)
    e, x, y, z = seen.p4.double().unbind(-1)
    turned = torch.stack([e, x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos(), z], -1)
    plain = replace(seen, features=seen.features.double(), p4=seen.p4.double())
    encoder = built().double()
    torch.testing.assert_close(encoder([replace(plain, p4=turned)])[0].cls, encoder([plain])[0].cls)


@pytest.mark.parametrize("eta", [-11.0, -8.5, 8.5, 11.0])
def test_pairs_of_forward_particles_are_finite(eta):
    p = torch.tensor([[0.0, 1.0, 0.0, math.sinh(eta)], [0.0, 0.0, 2.0, 2 * math.sinh(eta)]])
    p[:, 0] = p[:, 1:].norm(dim=1)
    assert pair_features(p, torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1])).isfinite().all()
