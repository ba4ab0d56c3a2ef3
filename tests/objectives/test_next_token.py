from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from half_precision import losses_in_bfloat16
from jetrep.encoders import SIZES, ParticleNetConfig, TransformerConfig, build_encoder
from jetrep.encoders.decoder import SetTransformerConfig
from jetrep.encoders.lorentz import LorentzConfig
from jetrep.encoders.particle_transformer import ParticleTransformerConfig
from jetrep.errors import InputError
from jetrep.features import FeatureConfig, Features
from jetrep.objectives.next_token import NextToken, NextTokenConfig, prefix_lengths
from jetrep.objectives.tokenizer import TokenizerConfig
from jetrep.physics import fourvector as fv
from random_jets import random_jets

ENCODER = TransformerConfig(width=16, depth=2, heads=2, mlp_hidden=24, n_registers=1, position_bins=10)
ENCODERS = {
    "polar": ENCODER,
    "cls of jet": replace(SIZES["nano"], width=16, depth=2),
    "particle transformer": ParticleTransformerConfig(16, 2, heads=2, embed=(8,)),
    "particlenet": ParticleNetConfig(channels=((8, 8), (16, 16)), neighbours=4),
    "lorentz": LorentzConfig(width=16, depth=1),
}
TOKENIZER = TokenizerConfig(n_codes=16, latent=4, net=SetTransformerConfig(16, 1, 2), steps=5, batch_size=4)
SMALL = NextTokenConfig(prefixes=3, max_tokens=24, head=(32,), tokenizer=TOKENIZER, monitor_every=1)
JETS = random_jets([30, 18, 9, 1, 25, 3, 2])
BATCH = JETS.batch()


def objective(config=SMALL, encoder=ENCODER, features=None, fit_on=JETS, **kwargs):
    torch.manual_seed(0)
    features = features or Features(FeatureConfig())
    return NextToken(features, build_encoder(encoder, len(features.names)), config, fit_on=fit_on, **kwargs)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# What is learned


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 9), st.integers(0, 2**31))
def test_lengths_are_one_of_each_part_of_the_sentence(words, n, seed):
    """A length k is drawn with probability 1/T: strata of one size, each drawn from evenly, cover [0, T) once."""
    draws = torch.rand(len(words), n, generator=generator(seed))
    lengths = prefix_lengths(torch.tensor(words), draws)
    for t, row, drawn in zip(words, lengths.tolist(), draws.tolist(), strict=True):
        exact = [(s + u) / n * t for s, u in enumerate(drawn)]
        assert all(abs(k - x) < 1 + 1e-4 and 0 <= k < t for k, x in zip(row, exact, strict=True))
        assert row == sorted(row)


@pytest.mark.parametrize("n", [1, 3, 4])
def test_every_length_has_the_same_probability(n):
    words = torch.full((20_000,), 5)
    found = torch.bincount(prefix_lengths(words, torch.rand(len(words), n, generator=generator())).flatten())
    torch.testing.assert_close(found / found.sum(), torch.full((5,), 0.2), atol=0.01, rtol=0)
    assert int(prefix_lengths(torch.tensor([7]), torch.full((1, 3), 1.0))[0, -1]) == 6


def test_shown_words_the_encoder_sees_what_they_decode_to():
    """The likelihood by jets that are made of the words before the next one, as while jets are generated."""
    module = objective(replace(SMALL, shown="words"), SIZES["nano"]).eval()
    words, total = module.words(BATCH), torch.zeros(len(BATCH))
    for b in range(len(BATCH)):
        for k in range(min(int(BATCH.counts[b]) + 1, 24)):
            before = words[b : b + 1, : max(k, 1)] if k else torch.full((1, 1), module.stop)
            view = module.features(module._decoded(before, BATCH.jet_p4[b : b + 1]))
            with torch.no_grad():
                logits = module.net.head(module.encoder([view])[0].cls, torch.tensor([k]))
            total[b] += torch.log_softmax(logits, -1)[0, words[b, k]]
    torch.testing.assert_close(module.log_likelihood(BATCH), total, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="measured column"):
        objective(replace(SMALL, shown="words"), features=Features(FeatureConfig("kinpid", "weaver")), fit_on=None)


def alone(module, b):
    """−ln p of each word of jet b, one prefix at a time: a jet that never had the other particles."""
    p4 = BATCH.p4[b][BATCH.mask[b]]
    p4 = p4[torch.argsort(torch.hypot(p4[:, 1], p4[:, 2]), descending=True)]
    jet = BATCH.jet_p4[b : b + 1]
    whole = replace(BATCH, p4=p4.unsqueeze(0), mask=torch.ones(1, len(p4)).bool(), jet_p4=jet, order=None, join=None)
    inputs = module.features(whole)
    codes = module.vq.tokens(inputs.features[..., module._index], whole.mask).tolist()
    losses = []
    for k, word in enumerate([*codes, module.stop][: module.config.max_tokens]):
        mask = torch.ones(1, k).bool() if k else torch.zeros(1, 1).bool()
        shown = p4[:k] if k else torch.zeros(1, 4)
        view = module.features(replace(whole, p4=shown.unsqueeze(0), mask=mask))
        pooled = module.encoder([view])[0].pooled(module.config.pooling)[0]
        logits = module.net.head.words(pooled + module.net.head.positions[k])
        losses.append(-torch.log_softmax(logits, -1)[word])
    return losses


@pytest.mark.parametrize("pooling", ["cls", "mean", "cls+mean"])
def test_likelihood_is_that_of_one_prefix_at_a_time(pooling):
    module = objective(replace(SMALL, pooling=pooling), SIZES["nano"]).eval()
    with torch.no_grad():
        expected = torch.stack([-torch.stack(alone(module, b)).sum() for b in range(len(BATCH))])
    torch.testing.assert_close(module.log_likelihood(BATCH), expected, rtol=1e-4, atol=1e-4)


def test_the_mean_loss_over_all_lengths_is_the_cross_entropy_per_word(monkeypatch):
    """Every combination of lengths counts once: the mean of the loss over its draws, and of its gradient."""
    jets = random_jets([3, 1, 0, 7]).batch()
    module = objective(replace(SMALL, prefixes=1, max_tokens=6)).eval()
    words = (jets.counts + 1).clamp(max=6)
    assert words.tolist() == [4, 2, 1, 6]
    parameters = [p for part in module.parts().values() for p in part]
    losses, gradients = [], []
    for place in range(12):  # a multiple of every T
        monkeypatch.setattr(torch, "rand", lambda shape, x=(place + 0.5) / 12, **_: torch.full(shape, x))
        loss = module(jets, 0, 10, generator()).loss
        losses.append(loss.detach())
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    monkeypatch.undo()
    expected = -module.log_likelihood(jets).sum() / words.sum()
    torch.testing.assert_close(torch.stack(losses).mean(), expected, rtol=1e-5, atol=1e-6)
    every = replace(module.config, prefixes=12)
    module.config = every
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, 0.5))
    whole = module(jets, 0, 10, generator()).loss
    torch.testing.assert_close(whole.detach(), expected, rtol=1e-5, atol=1e-6)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(whole, parameters)])
    torch.testing.assert_close(torch.stack(gradients).mean(0), gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_nothing_but_the_jet_tells_of_later_particles(encoder):
    """Other particles after the k-th, as many or fewer of them: the same bits."""
    module = objective(encoder=ENCODERS[encoder]).eval()
    k, p4, mask = 4, BATCH.p4[[0, 1, 2, 4]], BATCH.mask[[0, 1, 2, 4]]
    ranks = torch.hypot(p4[..., 1], p4[..., 2]).masked_fill(~mask, -1).argsort(1, descending=True).argsort(1)
    later = (mask & (ranks >= k)).unsqueeze(-1)
    batch = replace(BATCH, p4=p4, mask=mask, jet_p4=BATCH.jet_p4[[0, 1, 2, 4]], labels=None, order=None, join=None)
    elsewhere = p4[:, :, [0, 2, 1, 3]] * torch.tensor([1.0, 0.05, 0.05, 0.7])
    elsewhere[..., 0] = elsewhere[..., 1:].norm(dim=-1)
    other = replace(batch, p4=torch.where(later, elsewhere, p4))
    gone = torch.arange(mask.shape[1]) % 2 == 0
    fewer = replace(batch, p4=p4.masked_fill(later & gone.unsqueeze(1), 0.0), mask=mask & ~(later[..., 0] & gone))
    seen = []
    for jets in (batch, other, fewer):
        representations, words, _ = module._prepared(jets)
        seen.append(representations(torch.full((4, 1), k)))
        assert words.shape == (4, mask.shape[1] + 1)
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], module._prepared(batch)[0](torch.full((4, 1), k + 1)))


def test_words_stand_in_falling_order_of_pt_and_end_with_the_stop():
    module = objective()
    words = module.words(BATCH)
    assert ((words == module.stop).sum(1) == BATCH.p4.shape[1] + 1 - BATCH.counts).all()
    inputs = module.features(BATCH)
    for b in range(len(BATCH)):
        codes = module.vq.tokens(inputs.features[b : b + 1][..., module._index], BATCH.mask[b : b + 1])
        order = fv.pt(BATCH.p4[b][BATCH.mask[b]]).argsort(descending=True)
        assert words[b, : len(codes)].tolist() == codes[order].tolist()


# The step as a whole


@pytest.mark.parametrize("shown", ["particles", "words"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_learns(encoder, shown):
    module = objective(replace(SMALL, pooling="cls+mean", shown=shown), ENCODERS[encoder]).train()
    module(BATCH, 0, 10, generator()).loss.backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
    assert not [name for name, grad in gradients.items() if grad is None or not grad.isfinite().all()]
    assert all(any(bool(p.grad.any()) for p in part) for part in module.parts().values())
    trained = sum(len(group["params"]) for group in module.parameter_groups(1e-3, 0.1))
    assert trained == len(gradients) == sum(map(len, module.parts().values()))


def test_the_order_of_particles_and_padding_change_nothing():
    module = objective().eval()
    order = torch.randperm(BATCH.p4.shape[1], generator=generator(2))
    shuffled = replace(BATCH, p4=BATCH.p4[:, order], mask=BATCH.mask[:, order], order=None, join=None)
    wider = replace(BATCH, p4=F.pad(BATCH.p4, (0, 0, 0, 5)), mask=F.pad(BATCH.mask, (0, 5)), order=None, join=None)
    first = module(BATCH, 0, 10, generator()).loss
    torch.testing.assert_close(module(shuffled, 0, 10, generator()).loss, first)
    torch.testing.assert_close(module(wider, 0, 10, generator()).loss, first)


def test_steps_are_determined_by_the_generator():
    module = objective()
    first = module(BATCH, 0, 10, generator(5)).loss
    assert torch.equal(module(BATCH, 0, 10, generator(5)).loss, first)
    state = torch.get_rng_state()
    assert not torch.equal(module(BATCH, 0, 10, generator(6)).loss, first)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("counts", [[0, 0], [1], [0, 5, 1]])
def test_jets_of_no_and_of_one_particle(counts, encoder):
    module = objective(encoder=ENCODERS[encoder])
    out = module(random_jets(counts).batch(), 0, 10, generator())
    out.loss.backward()
    assert out.loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for part in module.parts().values() for p in part)


def test_it_trains_under_bfloat16():
    module = objective()
    losses = losses_in_bfloat16(module, BATCH)
    assert losses[-1] < 0.9 * losses[0]


# Generation


@pytest.fixture(scope="module")
def by_heart():
    """A model that knows three jets by heart, whose tokeniser has more codes than they have particles to tell apart."""
    jets = random_jets([4, 7, 2], seed=3)
    # Before the first particle, a jet is known by its momentum alone.
    jets = replace(jets, p4=jets.p4 * np.repeat(np.float32([1, 5, 25]), jets.counts)[:, None], history=None)
    tokenizer = replace(TOKENIZER, n_codes=13, latent=8, net=SetTransformerConfig(32, 1, 2), steps=200, lr=3e-3)
    config = replace(SMALL, shown="words", prefixes=8, tokenizer=tokenizer)
    module = objective(config, ENCODERS["cls of jet"], fit_on=jets)
    optimizer = torch.optim.Adam(module.parameters(), 5e-3)
    batch = jets.batch()
    for step in range(200):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - step / 200)
        loss = module(batch, step, 200, generator(step)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module.eval(), batch


def test_jets_learned_by_heart_are_generated(by_heart):
    module, batch = by_heart
    assert float(module.log_likelihood(batch).min()) > -0.5
    wanted = module.words(batch)
    jets, words = module.generate(batch.jet_p4.repeat_interleave(20, 0), generator())
    assert words.shape == (60, 24)
    right = (words[:, : wanted.shape[1]] == wanted.repeat_interleave(20, 0)).all(1) & (
        words[:, wanted.shape[1] :] == module.stop
    ).all(1)
    assert float(right.float().mean()) > 0.8
    assert (jets.counts[right] == batch.counts.repeat_interleave(20)[right]).all()
    # Three jets: the multiplicity goes with the momentum that was asked for.
    means = jets.counts.view(3, 20).float().mean(1)
    torch.testing.assert_close(means, batch.counts.float(), atol=0.8, rtol=0)


def test_generated_jets_are_what_their_words_decode_to(by_heart):
    module, batch = by_heart
    jets, words = module.generate(batch.jet_p4, generator(1))
    assert torch.equal(jets.mask, words != module.stop)
    assert torch.equal(jets.jet_p4, batch.jet_p4)
    assert not jets.p4[~jets.mask].any()
    x = module.vq.reconstructed(module.vq.quantizer.codes[words[jets.mask]], jets.mask)
    own = module.features(jets).features[..., module._index][jets.mask]
    torch.testing.assert_close(own, x, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("signed", [True, False])
def test_decoding_inverts_the_features(signed, monkeypatch):
    """Where the tokeniser is exact, momenta of massless particles come back."""
    module = objective(features=Features(FeatureConfig(signed_eta=signed)))
    order = torch.hypot(BATCH.p4[..., 1], BATCH.p4[..., 2]).argsort(1, descending=True)
    p4, mask = BATCH.p4.gather(1, order.unsqueeze(-1).expand(-1, -1, 4)), BATCH.mask.gather(1, order)
    x = module.features(replace(BATCH, p4=p4, mask=mask)).features[..., module._index][mask]
    monkeypatch.setattr(module.vq, "reconstructed", lambda *_: x)
    again = module._decoded(torch.where(mask, 0, module.stop), BATCH.jet_p4)
    torch.testing.assert_close(again.p4, p4, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_generation_ends_at_the_stop_or_at_the_greatest_length(encoder):
    module = objective(replace(SMALL, max_tokens=6), ENCODERS[encoder]).train()
    head = module.net.head.words.layers[-1]
    with torch.no_grad():
        head.bias[module.stop] = 0.0
    jets, words = module.generate(BATCH.jet_p4, generator(), temperature=2.0)
    assert module.training
    ended = (words == module.stop).int()
    assert (ended.diff(dim=1) >= 0).all()
    assert jets.p4.isfinite().all()
    again = module.generate(BATCH.jet_p4, generator(), temperature=2.0)[1]
    assert torch.equal(words, again)
    with torch.no_grad():
        head.bias[module.stop] = 1e4
    assert not module.generate(BATCH.jet_p4, generator())[0].mask.any()
    with torch.no_grad():
        head.bias[module.stop] = -1e4
    assert (module.generate(BATCH.jet_p4, generator())[0].counts == 6).all()


# What goes around a step


def test_metrics_and_alarms_tell_of_collapse():
    module = objective()
    metrics = {name: float(x) for name, x in module(BATCH, 0, 10, generator()).metrics.items()}
    assert {"loss", "token_accuracy", "codebook_perplexity", "predicted_perplexity", "feature_rank"} <= set(metrics)
    assert not module.alarms(metrics | {"feature_rank": 5.0, "cls_std": 0.5, "codebook_perplexity": 9.0})
    assert any("codes" in text for text in module.alarms(metrics | {"codebook_perplexity": 1.0}))


def test_tokenisers_that_were_not_trained_or_for_something_else_are_refused():
    with pytest.raises(InputError, match="not trained"):
        objective(fit_on=None)(BATCH, 0, 10, generator())
    trained = objective().tokenizer
    assert objective(tokenizer=trained).tokenizer is trained
    with pytest.raises(InputError, match="another standardisation"):
        objective(features=Features(FeatureConfig(standardization="rino_g1")), tokenizer=trained)
    with pytest.raises(InputError, match="16 codes, not 8"):
        objective(replace(SMALL, tokenizer=replace(TOKENIZER, n_codes=8)), tokenizer=trained)
    again = objective(fit_on=None)
    again.load_state_dict(objective().state_dict())
    torch.testing.assert_close(again(BATCH, 0, 9, generator()).loss, objective()(BATCH, 0, 9, generator()).loss)


def test_settings_that_make_no_sense_are_refused():
    for changes in ({"prefixes": 0}, {"max_tokens": 0}, {"head": (0,)}, {"monitor_every": 0}):
        with pytest.raises(InputError):
            replace(SMALL, **changes)
    with pytest.raises(InputError, match="temperature"):
        objective().generate(BATCH.jet_p4, generator(), temperature=0.0)
    assert replace(SMALL, head=()).head == ()
