import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from plain_flow import plain_nll

from half_precision import losses_in_bfloat16
from jetrep.encoders import SIZES, ParticleNetConfig, TransformerConfig, build_encoder
from jetrep.encoders.base import Encoded
from jetrep.encoders.decoder import Decoder, DecoderConfig, SetTransformerConfig
from jetrep.encoders.particle_transformer import ParticleTransformerConfig
from jetrep.errors import InputError
from jetrep.features import FeatureConfig, Features
from jetrep.objectives.hiding import (
    blanked,
    hidden_particles,
    normal_numbers,
    pt_ranks,
    survivors,
)
from jetrep.objectives.masked import PRESETS, MaskedParticles, MaskedParticlesConfig
from jetrep.objectives.targets import FlowMatching, Identity
from jetrep.objectives.tokenizer import TokenizerConfig
from random_jets import random_jets
from weaver_arrays import weaver_jets

ENCODER = TransformerConfig(width=16, depth=2, heads=2, mlp_hidden=24, n_registers=1, position_bins=10)
ENCODERS = {
    "polar": ENCODER,
    "cls of jet": replace(SIZES["nano"], width=16, depth=2),
    "particle transformer": ParticleTransformerConfig(16, 2, heads=2, embed=(8,)),
    "class token in all blocks": ParticleTransformerConfig(16, 2, class_depth=0, heads=2, embed=(8,), trim=False),
    "particlenet": ParticleNetConfig(channels=((8, 8), (16, 16)), neighbours=4),
}
DECODER = DecoderConfig(width=16, depth=2, heads=2, ranks=6)
TOKENIZER = TokenizerConfig(n_codes=16, latent=4, net=SetTransformerConfig(16, 1, 2), steps=5, batch_size=4)
SMALL = MaskedParticlesConfig(n_codes=16, decoder=DECODER, tokenizer=TOKENIZER, monitor_every=1)
TARGETS = ["regression", "kmeans", "vq", "flow_matching", "flow"]
LAYOUTS = ["decoder", "in_place"]
JETS = random_jets([30, 18, 9, 1, 25, 3, 2])
BATCH = JETS.batch()


def objective(config=SMALL, encoder=ENCODER, seed=0, features=None, **kwargs):
    torch.manual_seed(seed)
    features = features or Features(FeatureConfig())
    kwargs = kwargs or {"fit_on": JETS}
    return MaskedParticles(features, build_encoder(encoder, len(features.names)), config, **kwargs)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def with_types(batch, seed=0):
    """Random types and charges; of one particle in eight, neither is known."""
    kind = torch.randint(0, 6, batch.mask.shape, generator=generator(seed))
    charge = torch.randint(-1, 2, batch.mask.shape, generator=generator(seed + 1)).float()
    charge[kind == 5] = math.nan
    flags = {name: (kind == i).float() for i, name in enumerate(Identity.TYPES)}
    return replace(batch, measured={**flags, "charge": charge})


# The step


def plain_codes(module, batch, b, chosen):
    """Codes of some particles of one jet, found alone."""
    x = module.features(batch).features[b][:, module._index]
    if module.config.target == "kmeans":
        return torch.cdist(x[chosen], module.target.centres).argmin(1)
    tokens = module.tokenizer.tokens(x[batch.mask[b]].unsqueeze(0), torch.ones(1, int(batch.mask[b].sum())).bool())
    return tokens[chosen[batch.mask[b]]]


def plain_context(module, batch, b, chosen):
    """What stands for the hidden particles of one jet, from views of this jet alone, in order of pT."""
    inputs, net = module.features(batch), module.net
    pt = torch.hypot(batch.p4[b, :, 1], batch.p4[b, :, 2])
    rows = torch.arange(b, b + 1)
    if module.config.layout == "in_place":
        view = blanked(inputs.jets(rows), chosen.unsqueeze(0), net.decoder.blank)
        encoded = net.encoder([view])[0]
        every = sorted(batch.mask[b].nonzero()[:, 0].tolist(), key=lambda i: -float(pt[i]))
        cls = net.decoder.of_cls(encoded.cls[0])
        last = len(net.decoder.ranks) - 1
        hidden = [i for i in every if chosen[i]]
        return hidden, torch.stack(
            [encoded.tokens[0, i] + net.decoder.ranks[min(every.index(i), last)] + cls for i in hidden]
        )
    encoded = net.encoder([survivors(inputs.jets(rows), chosen.unsqueeze(0))])[0]
    decoder = net.decoder
    hidden = sorted(chosen.nonzero()[:, 0].tolist(), key=lambda i: -float(pt[i]))
    seen = encoded.tokens[0, batch.mask[b] & ~chosen]
    asked = torch.stack([decoder.ranks[min(k, len(decoder.ranks) - 1)] for k in range(len(hidden))])
    x = torch.cat([decoder.of_token(seen), asked]).unsqueeze(0)
    out = decoder.transformer(x, torch.ones(1, x.shape[1]).bool(), beside=decoder.of_cls(encoded.cls))
    return hidden, out[-len(hidden) :]


def plain_losses(module, batch, b, hidden, context, noise):
    x, target = module.features(batch).features[b][:, module._index], module.target
    kind = module.config.target
    if kind == "regression":
        return [(target.head(c) - x[i]).abs().mean() for i, c in zip(hidden, context, strict=True)]
    if kind == "flow_matching":
        losses = []
        for i, c in zip(hidden, context, strict=True):
            t, e = 1 / (1 + torch.exp(-noise[b, i, 0])), noise[b, i, 1:]
            time = torch.stack([f(k * math.pi * t) for f in (torch.cos, torch.sin) for k in (1, 2, 3, 4)])
            v = target.net(torch.cat([(1 - t) * x[i] + t * e, time, c]))
            losses.append((v - (e - x[i])).square().mean())
        return losses
    if kind == "flow":
        return [plain_nll(target, x[i], c) for i, c in zip(hidden, context, strict=True)]
    chosen = torch.zeros_like(batch.mask[b])
    chosen[hidden] = True
    codes = dict(zip(chosen.nonzero()[:, 0].tolist(), plain_codes(module, batch, b, chosen).tolist(), strict=True))
    smooth, k = module.config.smoothing, target.k
    losses = []
    for i, c in zip(hidden, context, strict=True):
        logs = torch.log_softmax(target.head(c), -1)
        losses.append(-(1 - smooth) * logs[codes[i]] - smooth / k * logs.sum())
    return losses


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_step_equals_the_scheme_written_plainly(layout, target):
    """Jet by jet, particle by particle: loss and gradients."""
    module = objective(replace(SMALL, layout=layout, target=target)).eval()
    with torch.no_grad():
        for p in module.net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    out = module(BATCH, 0, 10, generator(4))
    g = generator(4)
    hidden = hidden_particles(BATCH.mask, module.config.fraction, g)
    noise = normal_numbers(BATCH.mask, module.target.n_noise, g)
    loss = torch.zeros(())
    for b in range(len(BATCH)):
        if hidden[b].any():
            places, context = plain_context(module, BATCH, b, hidden[b])
            each = plain_losses(module, BATCH, b, places, context, noise)
            loss = loss + sum(each) / len(each) / len(BATCH)
    torch.testing.assert_close(out.loss, loss, rtol=1e-4, atol=1e-5)
    parameters = [p for part in module.parts().values() for p in part]
    ours = torch.autograd.grad(out.loss, parameters)
    plain = torch.autograd.grad(loss, parameters, materialize_grads=True)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=5e-3, atol=2e-3 * max(1e-3, float(b.abs().max())))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_learns_with_every_target_in_either_layout(encoder, layout, target):
    module = objective(replace(SMALL, layout=layout, target=target), ENCODERS[encoder]).train()
    module(BATCH, 0, 10, generator()).loss.backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
    assert not [name for name, grad in gradients.items() if grad is None or not grad.isfinite().all()]
    assert all(any(bool(p.grad.any()) for p in part) for part in module.parts().values())
    trained = sum(len(group["params"]) for group in module.parameter_groups(1e-3, 0.1))
    assert trained == len(gradients) == sum(map(len, module.parts().values()))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_order_of_particles_and_padding_change_nothing(layout, target, monkeypatch):
    module = objective(replace(SMALL, layout=layout, target=target)).eval()
    order = torch.randperm(BATCH.p4.shape[1], generator=generator(2))
    hidden = hidden_particles(BATCH.mask, 0.4, generator())
    noise = normal_numbers(BATCH.mask, 4, generator())
    losses = []
    for places in (torch.arange(len(order)), order, torch.cat([order, order[:0]])):
        monkeypatch.setattr("jetrep.objectives.masked.hidden_particles", lambda *_, p=places: hidden[:, p])
        monkeypatch.setattr("jetrep.objectives.masked.normal_numbers", lambda _, n, __, p=places: noise[:, p, :n])
        batch = replace(BATCH, p4=BATCH.p4[:, places], mask=BATCH.mask[:, places], order=None, join=None)
        losses.append(module(batch, 0, 10, generator()).loss)
    torch.testing.assert_close(losses[0], losses[1])


def test_steps_are_determined_by_the_generator():
    for target in TARGETS:
        module = objective(replace(SMALL, target=target))
        first, again = module(BATCH, 0, 10, generator(5)), module(BATCH, 0, 10, generator(5))
        assert torch.equal(first.loss, again.loss)
        state = torch.get_rng_state()
        assert not torch.equal(module(BATCH, 0, 10, generator(6)).loss, first.loss)
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("counts", [[1, 1, 1], [0, 5, 1], [2]])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("target", TARGETS)
def test_jets_of_none_one_or_two_particles_and_batches_of_one(counts, layout, target):
    module = objective(replace(SMALL, layout=layout, target=target, identity_weight=0.3))
    out = module(with_types(random_jets(counts).batch()), 0, 10, generator())
    out.loss.backward()
    assert out.loss.isfinite()
    if max(counts) < 2:
        assert float(out.loss.detach()) == 0
    parameters = [p for part in module.parts().values() for p in part]
    # Distributed training waits for the gradient of every parameter.
    assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters)


def test_a_jet_of_one_particle_has_weight_zero():
    jets = random_jets([8, 8, 1])
    batch, longer = jets.batch([0, 1]), jets.batch()
    module = objective(replace(SMALL, target="regression")).eval()
    two, three = (module(b, 0, 10, generator()).loss for b in (batch, longer))
    torch.testing.assert_close(3 * three, 2 * two)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_trains_under_bfloat16(layout, target):
    module = objective(replace(SMALL, layout=layout, target=target))
    losses = losses_in_bfloat16(module, BATCH)
    assert losses[-1] < 0.95 * losses[0]


# Targets


def test_flow_matching_learns_a_distribution_of_two_peaks():
    torch.manual_seed(0)
    head = FlowMatching(1, 2, (64, 64))
    optimizer = torch.optim.Adam(head.parameters(), 5e-3)
    g = generator()
    for step in range(1000):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - step / 1000)
        context = torch.randint(0, 2, (512, 1), generator=g).float()
        peak = torch.randint(0, 2, (512, 1), generator=g) * 2.0 - 1
        x = torch.cat([peak, context * 2], 1) + 0.1 * torch.randn(512, 2, generator=g)
        every = torch.ones(512, 1, dtype=torch.bool)
        loss = head(context, x.unsqueeze(1), every, every, torch.randn(512, 3, generator=g))[0].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn = head.sample(torch.ones(2000, 1), g)
    right = drawn[:, 0] > 0
    assert 0.4 < float(right.float().mean()) < 0.6
    assert float(drawn[right, 0].mean()) == pytest.approx(1, abs=0.1)
    assert float(drawn[~right, 0].mean()) == pytest.approx(-1, abs=0.1)
    assert float(drawn[:, 1].mean()) == pytest.approx(2, abs=0.1)
    assert float(drawn[right, 0].std()) < 0.3
    assert float(head.sample(torch.zeros(500, 1), g)[:, 1].mean()) == pytest.approx(0, abs=0.1)


def test_particle_types_and_charges_are_an_extra_term():
    module = objective(replace(SMALL, identity_weight=0.3)).eval()
    batch = with_types(BATCH)
    contexts = []
    module.identity.register_forward_hook(lambda _, args, __: contexts.append(args[0]))
    out = module(batch, 0, 10, generator())
    hidden = hidden_particles(BATCH.mask, 0.4, generator())
    rows = iter(contexts[0])
    loss = 0
    for b, chosen in enumerate(hidden):
        for i in chosen.nonzero()[:, 0].tolist():
            kinds, charges = module.identity.head(next(rows)).split([5, 3])
            weight = 1 / (int(chosen.sum()) * len(hidden))
            truth = [k for k, name in enumerate(Identity.TYPES) if batch.measured[name][b, i] == 1]
            if truth:
                loss = loss - weight * torch.log_softmax(kinds, 0)[truth[0]]
            charge = float(batch.measured["charge"][b, i])
            if not math.isnan(charge):
                loss = loss - weight * torch.log_softmax(charges, 0)[int(charge) + 1]
    torch.testing.assert_close(out.metrics["loss_identity"], loss.detach())
    torch.testing.assert_close(out.loss, out.metrics["loss_masked"] + 0.3 * loss)
    torch.testing.assert_close(out.metrics["loss_masked"], objective().eval()(BATCH, 0, 10, generator()).loss.detach())


def test_particle_types_that_are_wanted_but_missing_are_an_error():
    module = objective(replace(SMALL, identity_weight=0.3))
    with pytest.raises(InputError, match="is_charged_hadron"):
        module(BATCH, 0, 10, generator())
    batch = with_types(BATCH)
    without = {name: x for name, x in batch.measured.items() if name != "charge"}
    with pytest.raises(InputError, match="charge"):
        module(replace(batch, measured=without), 0, 10, generator())


@pytest.mark.parametrize("target", ["regression", "kmeans"])
def test_real_jets_with_types_and_impact_parameters(real_data, target):
    """Hadronic tops of JetClass: seventeen features, of which impact parameters are predicted too, and types."""
    jets = weaver_jets(real_data / "jetclass" / "jetclass_top_hadronic_100_full.npz")
    config = replace(
        SMALL, target=target, predicted=(*SMALL.predicted, "tanh_d0", "tanh_dz"), n_codes=64, identity_weight=0.3
    )
    module = objective(config, features=Features(FeatureConfig("full", "weaver", signed_eta=True)), fit_on=jets)
    optimizer = torch.optim.AdamW(module.parameter_groups(3e-3, 0.0))
    masked, identity = [], []
    for step in range(60):
        out = module(jets.batch(slice(50 * (step % 2), 50 * (step % 2) + 50)), step, 60, generator(step))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        masked.append(float(out.metrics["loss_masked"]))
        identity.append(float(out.metrics["loss_identity"]))
    assert np.mean(masked[-10:]) < 0.95 * np.mean(masked[:5])
    assert np.mean(identity[-10:]) < 0.85 * np.mean(identity[:5])


def test_targets_that_were_not_fitted_or_to_something_else_are_refused():
    with pytest.raises(InputError, match="clusters were not fitted"):
        objective(seed=0, fit_on=None)(BATCH, 0, 10, generator())
    vq = replace(SMALL, target="vq")
    with pytest.raises(InputError, match="not trained"):
        objective(vq, fit_on=None)(BATCH, 0, 10, generator())
    trained = objective(vq).tokenizer
    module = objective(vq, tokenizer=trained)
    assert module.tokenizer is trained
    module(BATCH, 0, 10, generator())
    with pytest.raises(InputError, match="another standardisation"):
        objective(vq, features=Features(FeatureConfig(standardization="rino_g1")), tokenizer=trained)
    with pytest.raises(InputError, match="made for"):
        objective(replace(vq, predicted=("log_pt",)), tokenizer=trained)
    clusters, other = objective(), objective(features=Features(FeatureConfig(standardization="rino_g1")), fit_on=None)
    other.target.load_state_dict(clusters.target.state_dict())
    with pytest.raises(InputError, match="another standardisation"):
        other(BATCH, 0, 10, generator())


@pytest.mark.parametrize("target", ["kmeans", "vq"])
def test_state_holds_clusters_and_tokenizer(target):
    config = replace(SMALL, target=target)
    module, again = objective(config), objective(config, seed=1, fit_on=None)
    again.load_state_dict(module.state_dict())
    torch.testing.assert_close(again(BATCH, 0, 9, generator()).loss, module(BATCH, 0, 9, generator()).loss)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(InputError, match="'d0' is to be predicted"):
        objective(replace(SMALL, predicted=("log_pt", "d0")))
    with pytest.raises(InputError, match="500 codes are to be fitted to 88 particles"):
        objective(replace(SMALL, n_codes=500))
    for changes in ({"predicted": ()}, {"predicted": ("log_pt", "log_pt")}, {"smoothing": 1.0}, {"n_codes": 1}):
        with pytest.raises(InputError):
            replace(SMALL, **changes)


def test_signed_features_go_by_their_plain_name():
    module = objective(features=Features(FeatureConfig(signed_eta=True)))
    assert module.names == ("log_pt_rel", "delta_eta_signed", "delta_phi")


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_can_be_built(preset):
    config = replace(PRESETS[preset], tokenizer=replace(PRESETS[preset].tokenizer, steps=1, n_codes=8), n_codes=8)
    assert objective(config)(BATCH, 0, 10, generator()).loss.isfinite()


# What goes around a step


def test_learning_rates_fall_from_head_to_stem():
    module = objective(replace(SMALL, target="vq", identity_weight=0.3))
    rates = {group["name"]: group["lr"] for group in module.parameter_groups(3e-3, 0.05, 0.9)}
    heads = dict.fromkeys(("decoder", "identity", "target"), 3e-3)
    assert rates == pytest.approx({"stem": 3e-3 * 0.9**3, "block 1": 3e-3 * 0.9**2, "block 2": 3e-3 * 0.9, **heads})
    assert set(module.parts()) == {"encoder", "decoder", "identity", "target"}
    assert module.encoder is module.net.encoder


def test_metrics_and_alarms_tell_of_collapse():
    module = objective()
    metrics = {name: float(x) for name, x in module(BATCH, 0, 10, generator()).metrics.items()}
    assert {"loss", "code_accuracy", "codebook_perplexity", "predicted_perplexity", "feature_rank"} <= set(metrics)
    assert not any(x.requires_grad for x in module(BATCH, 0, 10, generator()).metrics.values())
    assert not module.alarms(metrics | {"feature_rank": 5.0, "cls_std": 0.5})
    assert any("codes" in text for text in module.alarms(metrics | {"codebook_perplexity": 1.0}))
    assert any("dimensions" in text for text in module.alarms({"feature_rank": 1.0}))
    module.target.centres[:] = 0  # all particles fall on the first
    assert float(module(BATCH, 0, 10, generator()).metrics["codebook_perplexity"]) == 1
    seldom = objective(replace(SMALL, monitor_every=4))
    assert [s for s in range(9) if "feature_rank" in seldom(BATCH, s, 10, generator()).metrics] == [3, 7]


def test_decoder_knows_hidden_particles_by_rank_and_shares_the_last():
    torch.manual_seed(0)
    decoder = Decoder(4, replace(DECODER, ranks=3))
    mask = torch.ones(1, 8, dtype=torch.bool)
    mask[0, 2:7] = False
    rows = torch.arange(9).view(1, 9)
    encoded = Encoded(torch.randn(9, 4), rows[:, 0], rows[:, 1:], mask)
    out = decoder(encoded, ~mask, pt_ranks(torch.rand(1, 8, 4), ~mask))
    ranks = torch.tensor([[9, 9, 0, 1, 2, 3, 4, 9]])
    out = decoder(encoded, ~mask, ranks)
    torch.testing.assert_close(out[2], out[3])
    torch.testing.assert_close(out[2], out[4])
    assert not torch.allclose(out[0], out[1])
