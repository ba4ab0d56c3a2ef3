import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from jetrep.encoders.decoder import SetTransformer, SetTransformerConfig
from jetrep.errors import InputError
from jetrep.features import FeatureConfig, Features
from jetrep.objectives.quantizer import VectorQuantizer, kmeans, perplexity
from jetrep.objectives.tokenizer import TokenizerConfig, VQTokenizer
from jetrep.sources.toptagging import TopTagging
from random_jets import random_jets

NAMES = ("log_pt_rel", "delta_eta", "delta_phi")
SMALL = TokenizerConfig(n_codes=16, latent=4, net=SetTransformerConfig(16, 1, 2), steps=60, batch_size=8, lr=3e-3)
JETS = random_jets([20, 12, 9, 1, 25, 3, 14, 30] * 4)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def tokenizer(config=SMALL, seed=0, features=None):
    torch.manual_seed(seed)
    features = features or Features(FeatureConfig())
    return VQTokenizer(features, NAMES, config), features


def quantizer(dead=0.0, cosine=False, k=5, seed=0):
    torch.manual_seed(seed)
    return VectorQuantizer(k, 3, decay=0.8, dead=dead, cosine=cosine).train()


def distances(z, codes):
    return [[float(sum((a - b) ** 2 for a, b in zip(x, c, strict=True))) for c in codes.tolist()] for x in z.tolist()]


@pytest.mark.parametrize("cosine", [False, True])
def test_quantizer_equals_a_slow_one(cosine):
    module = quantizer(cosine=cosine)
    z = torch.randn(40, 3, generator=generator(), dtype=torch.float).requires_grad_()
    codes, share, moment = module.codes.clone(), module.share.clone(), module.moment.clone()
    out, numbers, commitment = module(z, generator())

    seen = z / z.norm(dim=1, keepdim=True) if cosine else z
    expected = [int(np.argmin(d)) for d in distances(seen.detach(), codes)]
    assert numbers.tolist() == expected
    torch.testing.assert_close(out, codes[expected])
    plain = torch.stack([sum((seen[i, j] - codes[c, j]) ** 2 for j in range(3)) / 3 for i, c in enumerate(expected)])
    torch.testing.assert_close(commitment, plain)

    weights = torch.randn(40, 3, generator=generator(1))
    ours = torch.autograd.grad((out * weights).sum() + commitment.sum(), z)[0]
    # Straight-through: the code stands where the vector was, with the vector's gradient.
    straight = torch.autograd.grad((seen * weights).sum() + plain.sum(), z)[0]
    torch.testing.assert_close(ours, straight)

    for k in range(5):
        own = [seen[i].detach() for i, c in enumerate(expected) if c == k]
        f = 0.8 * float(share[k]) + 0.2 * len(own) / 40
        s = 0.8 * moment[k] + 0.2 * (sum(own) if own else torch.zeros(3)) / 40
        code = s / f
        torch.testing.assert_close(module.codes[k], code / code.norm() if cosine else code)


def test_codes_stay_as_they_are_outside_of_training_and_without_vectors():
    module = quantizer(dead=0.9)
    before = {name: x.clone() for name, x in module.state_dict().items()}
    module(torch.zeros(0, 3), generator())
    module.eval()(torch.randn(9, 3), generator())
    assert all(torch.equal(x, before[name]) for name, x in module.state_dict().items())


def test_running_means_reach_the_means_of_the_clusters():
    centres = torch.tensor([[4.0, 0, 0], [0, 4, 0], [0, 0, 4], [-4, 0, 0], [0, -4, 0]])
    module = quantizer()
    g = generator()
    draw = lambda: centres.repeat_interleave(30, 0) + 0.1 * torch.randn(150, 3, generator=g)  # noqa: E731
    module.initialize(draw(), 0)
    for _ in range(30):
        module(draw(), g)
    found = module.codes[module.nearest(centres)]
    torch.testing.assert_close(found, centres, atol=0.05, rtol=0)


def test_dead_codes_come_back_as_vectors_that_are_there():
    module = quantizer(dead=0.3)
    module.codes[:] = 100.0
    module.codes[0] = 0.0
    module.share[:] = 1 / 5
    module.moment[:] = module.codes / 5
    z = torch.randn(50, 3, generator=generator())
    for step in range(20):
        module(z, generator(step))
    assert (module.codes.abs() < 50).all()
    assert float(perplexity(module.nearest(z), 5)) > 2.5
    # With the same numbers the same codes come back.
    again = quantizer(dead=0.3)
    again.codes[:], again.share[:] = 100.0, 1 / 5
    again.codes[0] = 0.0
    again.moment[:] = again.codes / 5
    for step in range(20):
        again(z, generator(step))
    assert torch.equal(module.codes, again.codes)


def test_perplexity_is_the_number_of_codes_in_equal_use():
    assert float(perplexity(torch.tensor([0, 1, 2, 3, 3, 2, 1, 0]), 9)) == pytest.approx(4)
    assert float(perplexity(torch.tensor([5, 5]), 9)) == pytest.approx(1)
    p = [0.5, 0.25, 0.25]
    expected = math.exp(-sum(x * math.log(x) for x in p))
    assert float(perplexity(torch.tensor([0, 0, 1, 2]), 3)) == pytest.approx(expected)
    assert float(perplexity(torch.zeros(0, dtype=torch.long), 3)) == 0


def test_kmeans_is_near_the_full_one_and_repeats():
    x = torch.randn(2000, 2, generator=generator())
    centres = kmeans(x, 8, 3)
    assert torch.equal(centres, kmeans(x, 8, 3))
    error = float(torch.cdist(x, centres).min(1).values.square().sum())
    full = KMeans(8, n_init=3, random_state=0).fit(x.numpy()).inertia_
    assert full <= error * 1.001 < 1.15 * full
    with pytest.raises(InputError, match="9 codes are to be fitted to 8 particles"):
        kmeans(x[:8], 9, 0)


def test_training_lowers_the_error_and_uses_the_codes():
    module, features = tokenizer(replace(SMALL, steps=250))
    losses = module.fit(features, JETS)
    found = module.inspect(features, JETS)
    assert found["error"] < 0.6 * found["error_of_mean"]
    assert found["codebook_perplexity"] > 6
    assert found["codes_used"] > 0.6
    first = int(0.1 * 250)
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[first : first + 20])
    assert not any(p.requires_grad for p in module.parameters())
    # Errors in the unit of a feature: those in units of its scale, times the scale; their mean is the error.
    scaled = [found[f"error_{name}"] / float(features.scale[features.names.index(name)]) for name in NAMES]
    assert np.mean(scaled) == pytest.approx(found["error"], rel=1e-4)


def test_loss_equals_a_loop_over_jets():
    module, features = tokenizer()
    module.eval()
    inputs = features(random_jets([4, 1, 7]).batch())
    x = inputs.features[..., [features.names.index(name) for name in NAMES]]
    loss = 0
    for jet, mask in zip(x, inputs.mask, strict=True):
        one, present = jet[mask].unsqueeze(0), torch.ones(1, int(mask.sum()), dtype=torch.bool)
        latents = module.latents(one, present)
        numbers = [int(np.argmin(d)) for d in distances(latents.detach(), module.quantizer.codes)]
        code = module.quantizer.codes[numbers]
        again = module.reconstructed(latents + (code - latents).detach(), present)
        each = (again - one[0]).abs().mean(1) + 9 * (latents - code).square().mean(1)
        loss = loss + each.mean() / 3
    ours = module.loss(x, inputs.mask)
    torch.testing.assert_close(ours, loss)
    parameters = [p for p in module.parameters() if p.requires_grad]
    for a, b in zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * max(1.0, float(b.abs().max())))


def test_training_and_tokens_are_functions_of_the_seed():
    (one, features), (two, _) = tokenizer(), tokenizer()
    state = torch.get_rng_state()
    assert one.fit(features, JETS, 4) == two.fit(features, JETS, 4)
    assert torch.equal(torch.get_rng_state(), state)
    for (name, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    three, _ = tokenizer()
    three.fit(features, JETS, 5)
    assert not torch.equal(three.quantizer.codes, one.quantizer.codes)


def test_tokens_depend_on_their_jet_and_not_on_padding_or_order():
    module, features = tokenizer()
    module.fit(features, JETS)
    inputs = features(JETS.batch([0, 1, 2]))
    x = inputs.features[..., [features.names.index(name) for name in NAMES]]
    codes = torch.full(inputs.mask.shape, -1)
    codes[inputs.mask] = module.tokens(x, inputs.mask)
    order = torch.randperm(x.shape[1], generator=generator())
    permuted = torch.full(inputs.mask.shape, -1)
    permuted[inputs.mask[:, order]] = module.tokens(x[:, order], inputs.mask[:, order])
    assert torch.equal(permuted, codes[:, order])
    alone = features(JETS.batch([1]))
    own = module.tokens(alone.features[..., [features.names.index(name) for name in NAMES]], alone.mask)
    assert torch.equal(own, codes[1][inputs.mask[1]])


def test_a_tokenizer_of_other_features_is_refused():
    module, features = tokenizer()
    with pytest.raises(InputError, match="not trained"):
        module.check(features, NAMES)
    module.fit(features, JETS)
    module.check(features, NAMES)
    with pytest.raises(InputError, match="made for log_pt_rel, delta_eta, delta_phi, not for log_pt"):
        module.check(features, ("log_pt", *NAMES[1:]))
    with pytest.raises(InputError, match="another standardisation"):
        module.check(Features(FeatureConfig(standardization="rino_g1")), NAMES)


def test_a_tokenizer_is_whole_in_its_record_and_weights():
    module, features = tokenizer()
    module.fit(features, JETS)
    record, weights = json.loads(json.dumps(module.record())), module.state_dict()
    again = VQTokenizer.from_record(record, weights, features)
    assert again.config == module.config
    assert again.inspect(features, JETS) == module.inspect(features, JETS)
    assert not any(p.requires_grad for p in again.parameters())


def test_records_and_weights_that_are_something_else_are_refused():
    module, features = tokenizer()
    untrained = module.state_dict()
    with pytest.raises(InputError, match="not trained"):
        VQTokenizer.from_record(module.record(), untrained, features)
    module.fit(features, JETS)
    record, weights = module.record(), module.state_dict()
    config = record["config"]
    damaged = [
        {},
        {"names": record["names"]},
        {**record, "names": 3},
        {**record, "config": {**config, "surprise": 1}},
        {**record, "config": {**config, "n_codes": "many"}},
        {**record, "config": {**config, "net": 5}},
        {**record, "config": {**config, "n_codes": 0}},
        {**record, "config": {**config, "latent": 5}},
        {**record, "names": ["d0", "delta_eta", "delta_phi"]},
        {**record, "names": ["delta_eta", "delta_phi"]},
    ]
    for other in damaged:
        with pytest.raises(InputError):
            VQTokenizer.from_record(other, weights, features)
    with pytest.raises(InputError, match="weights do not fit"):
        VQTokenizer.from_record(record, {"embed.weight": torch.zeros(2)}, features)
    with pytest.raises(InputError, match="another standardisation"):
        VQTokenizer.from_record(record, weights, Features(FeatureConfig(standardization="rino_g1")))


def test_more_codes_than_particles_and_other_nonsense_are_refused():
    module, features = tokenizer(replace(SMALL, n_codes=100))
    with pytest.raises(InputError, match="100 codes are to be fitted to 6 particles"):
        module.fit(features, random_jets([4, 2]))
    for changes in ({"n_codes": 1}, {"steps": 0}, {"decay": 1.0}, {"dead": -0.1}, {"lr": math.nan}):
        with pytest.raises(InputError):
            replace(SMALL, **changes)
    with pytest.raises(InputError, match="multiple of 3 heads"):
        SetTransformerConfig(16, 1, 3)


def test_set_transformer_computes_chosen_tokens_as_it_does_all():
    torch.manual_seed(0)
    module = SetTransformer(SetTransformerConfig(16, 2, 2))
    x, mask = torch.randn(4, 9, 16), torch.rand(4, 9) < 0.6
    mask[1] = False
    chosen = mask & (torch.rand(4, 9) < 0.5)
    every = torch.zeros(4, 9, 16)
    every[mask] = module(x, mask)
    torch.testing.assert_close(module(x, mask, chosen), every[chosen])
    changed = torch.where(mask.unsqueeze(-1), x, torch.nan)
    torch.testing.assert_close(module(changed, mask), every[mask])


def test_real_jets_come_back_from_their_tokens(real_data):
    chunk = next(iter(TopTagging([real_data / "toptagging" / "top_train_00.npz"]).read(0, 0, 400)))
    jets = chunk.jets.leading(40)
    module, features = tokenizer(
        replace(SMALL, n_codes=64, steps=250, batch_size=32, net=SetTransformerConfig(32, 1, 4))
    )
    module.fit(features, jets[np.arange(300)])
    found = module.inspect(features, jets[np.arange(300, 400)])
    assert found["error"] < 0.45 * found["error_of_mean"]
    assert found["codebook_perplexity"] > 32
    assert found["error_delta_eta"] < 0.1
