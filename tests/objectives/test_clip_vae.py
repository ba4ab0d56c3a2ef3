import math
from dataclasses import replace
from itertools import combinations, permutations

import pytest
import torch

from half_precision import losses_in_bfloat16
from jetrep.encoders import SIZES, ParticleNetConfig, TransformerConfig, build_encoder
from jetrep.encoders.decoder import SetTransformerConfig
from jetrep.encoders.particle_transformer import ParticleTransformerConfig
from jetrep.encoders.set_decoder import RelativeParticles
from jetrep.errors import InputError
from jetrep.features import FeatureConfig, Features
from jetrep.objectives.build import needs_of
from jetrep.objectives.clip_vae import OBSERVABLES, ClipVAE, ClipVAEConfig, _observables, clip_loss, particle_losses
from jetrep.objectives.hiding import normal_numbers
from jetrep.physics import fourvector as fv
from prong_jets import prong_jets
from random_jets import random_jets

ENCODER = TransformerConfig(width=16, depth=2, heads=2, mlp_hidden=24, n_registers=1, position_bins=10)
ENCODERS = {
    "polar": ENCODER,
    "cls of jet": replace(SIZES["nano"], width=16, depth=2),
    "particle transformer": ParticleTransformerConfig(16, 2, heads=2, embed=(8,)),
    "particlenet": ParticleNetConfig(channels=((8, 8), (16, 16)), neighbours=4),
}
SMALL = ClipVAEConfig(
    latent=6, n_particles=10, decoder=SetTransformerConfig(16, 1, 2), embedding=8, clip_weight=1.0, monitor_every=1
)
SUBJETS = replace(SMALL, partner="subjets", n_subjets=3)
BATCH = random_jets([30, 18, 9, 1, 25, 3, 2]).batch()


def objective(config=SMALL, encoder=ENCODER, features=None):
    torch.manual_seed(0)
    features = features or Features(FeatureConfig())
    return ClipVAE(features, build_encoder(encoder, len(features.names)), config)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# Terms against slow oracles


def slots(batch, n, seed=0):
    g = generator(seed)
    return RelativeParticles(
        torch.log_softmax(torch.randn(batch, n, generator=g), 1),
        0.3 * torch.randn(batch, n, 2, generator=g),
        torch.randn(batch, n, generator=g),
    )


def truth(counts, n, seed=1):
    g = generator(seed)
    mask = torch.arange(n) < torch.tensor(counts).unsqueeze(1)
    return torch.rand(len(counts), n, generator=g) * mask, torch.randn(len(counts), n, 2, generator=g), mask


def distance(out, share, angles, b, i, j, n, radius):
    angular = sum(abs(float(angles[b, i, k] - out.angles[b, j, k])) for k in range(2))
    return abs(float(share[b, i]) - math.exp(out.log_share[b, j])) + angular / (n * radius)


def test_matched_particles_are_those_of_all_permutations_and_the_rest_lose_their_share():
    counts, n, radius = [5, 3, 1, 0], 5, 0.7
    out, (share, angles, mask) = slots(4, n), truth(counts, n)
    each, presence = particle_losses(out, share, angles, mask, radius=radius, one_to_one=True)
    for b, count in enumerate(counts):
        totals = {}
        for order in permutations(range(n)):
            near = sum(distance(out, share, angles, b, i, order[i], count, radius) for i in range(count))
            totals[order] = near + sum(math.exp(out.log_share[b, j]) for j in order[count:])
        best = min(totals, key=totals.get)
        assert float(each[b]) == pytest.approx(totals[best], rel=1e-5)
        right = [j in best[:count] for j in range(n)]
        p = torch.sigmoid(out.presence[b]).tolist()
        expected = -sum(math.log(x if real else 1 - x) for x, real in zip(p, right, strict=True)) / n
        assert float(presence[b]) == pytest.approx(expected, rel=1e-5)


def test_chamfer_is_the_mean_of_both_nearest_neighbours():
    counts, n, radius = [5, 3, 1, 0], 5, 0.7
    out, (share, angles, mask) = slots(4, n), truth(counts, n)
    each, _ = particle_losses(out, share, angles, mask, radius=radius, one_to_one=False)
    for b, count in enumerate(counts):
        d = [[distance(out, share, angles, b, i, j, count, radius) for j in range(count)] for i in range(count)]
        near = (sum(map(min, d)) + sum(map(min, zip(*d, strict=True)))) / 2
        rest = sum(math.exp(out.log_share[b, j]) for j in range(count, n))
        assert float(each[b]) == pytest.approx(near + rest, rel=1e-5)


@pytest.mark.parametrize("one_to_one", [True, False])
def test_a_perfect_decoder_has_no_loss_of_particles(one_to_one):
    share, angles, mask = truth([4, 2], 4)
    out = RelativeParticles(share.log(), angles, torch.zeros(2, 4))
    each, presence = particle_losses(out, share, angles, mask, radius=0.5, one_to_one=one_to_one)
    torch.testing.assert_close(each, torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(presence, torch.full((2,), math.log(2)))


def test_clip_loss_is_the_mean_of_two_cross_entropies():
    a, b = torch.randn(5, 4, generator=generator()), torch.randn(5, 4, generator=generator(1))
    cosine = torch.stack([torch.stack([torch.cosine_similarity(x, y, dim=0) for y in b]) for x in a]) * 3
    expected = 0.0
    for i in range(5):
        expected -= math.log(math.exp(cosine[i, i]) / sum(math.exp(x) for x in cosine[i])) / 10
        expected -= math.log(math.exp(cosine[i, i]) / sum(math.exp(x) for x in cosine[:, i])) / 10
    assert float(clip_loss(a, b, torch.tensor(3.0))) == pytest.approx(expected, rel=1e-5)


def test_the_step_is_the_sum_of_its_terms():
    module = objective(replace(SMALL, presence_weight=0.3, beta=0.2, clip_weight=0.7)).eval()
    metrics = module(BATCH, 5, 100, generator()).metrics
    beta = 0.2 * 5 / 20  # a quarter of the way up
    assert float(metrics["beta"]) == pytest.approx(beta)
    weights = {"loss_particles": 1.0, "loss_presence": 0.3, "loss_kl": beta, "loss_clip": 0.7}
    assert float(metrics["loss"]) == pytest.approx(sum(w * float(metrics[k]) for k, w in weights.items()), rel=1e-5)
    with torch.no_grad():
        mu, log_variance = module.net.latent(module.encoder([module.features(BATCH)])[0].cls).chunk(2, 1)
        prior, posterior = (
            torch.distributions.Normal(0.0, 1.0),
            torch.distributions.Normal(mu, (log_variance / 2).exp()),
        )
        kl = torch.distributions.kl_divergence(posterior, prior).sum(1).mean()
        z = mu + normal_numbers(BATCH.mask[:, :1], 6, generator())[:, 0] * (log_variance / 2).exp()
        found = (module.net.decoder(z).presence > 0).sum(1)
    torch.testing.assert_close(metrics["loss_kl"], kl)
    error = (found - BATCH.counts.clamp(max=10)).abs().float().mean()
    assert float(metrics["multiplicity_error"]) == pytest.approx(float(error))
    assert [module.beta(step, 100) for step in (0, 20, 99)] == [0.0, 0.2, 0.2]


def test_observables_are_sums_over_particles_pairs_and_triples():
    batch = random_jets([6, 9, 2, 1]).batch()
    angles = Features(FeatureConfig())(batch).angles
    found = _observables(batch, angles, tuple(OBSERVABLES)).double()
    for b in range(len(batch)):
        p4 = batch.p4[b][batch.mask[b]].double()
        pt, eta, phi, jet = fv.pt(p4), fv.eta(p4), fv.phi(p4), p4.sum(0)
        x = pt / pt.sum()

        def r(i, j, eta=eta, phi=phi):
            return float(torch.hypot(eta[i] - eta[j], fv.delta_phi(phi[i], phi[j])))

        axis = torch.hypot(eta - fv.eta(jet), fv.delta_phi(phi, fv.phi(jet)))
        e2 = sum(float(x[i] * x[j]) * r(i, j) for i, j in combinations(range(len(x)), 2))
        e3 = sum(float(x[i] * x[j] * x[k]) * r(i, j) * r(j, k) * r(i, k) for i, j, k in combinations(range(len(x)), 3))
        expected = {
            "log_pt": math.log(fv.pt(jet)),
            "eta": float(fv.eta(jet)),
            "log_mass": math.log(max(1.0, fv.mass(jet))),
            "log_multiplicity": math.log(len(x)),
            "log_width": math.log(max(1e-6, (x * axis).sum())),
            "pt_dispersion": float(x.square().sum().sqrt()),
            "log_e2": math.log(max(1e-6, e2)),
            "log_e3": math.log(max(1e-6, e3)),
        }
        for k, (name, value) in enumerate(expected.items()):
            mean, scale = OBSERVABLES[name]
            assert float(found[b, k]) == pytest.approx((value - mean) / scale, abs=2e-2), (b, name)


def test_observables_are_of_order_one_for_jets_of_some_hundred_gev():
    batch = prong_jets(200).batch()
    found = _observables(batch, Features(FeatureConfig())(batch).angles, tuple(OBSERVABLES))
    assert float(found.abs().mean(0).max()) < 2.5


# The step as a whole


@pytest.mark.parametrize("config", [SMALL, replace(SUBJETS, matching="chamfer", pooling="cls+mean")])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_learns_with_either_partner(encoder, config):
    module = objective(config, ENCODERS[encoder]).train()
    module(BATCH, 5, 10, generator()).loss.backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
    assert not [name for name, grad in gradients.items() if grad is None or not grad.isfinite().all()]
    assert all(any(bool(p.grad.any()) for p in part) for part in module.parts().values())
    trained = sum(len(group["params"]) for group in module.parameter_groups(1e-3, 0.1))
    assert trained == len(gradients) == sum(map(len, module.parts().values()))


@pytest.mark.parametrize("matching", ["hungarian", "chamfer"])
def test_the_order_of_particles_and_padding_change_nothing(matching):
    module = objective(replace(SMALL, matching=matching)).eval()
    order = torch.randperm(BATCH.p4.shape[1], generator=generator(2))
    shuffled = replace(BATCH, p4=BATCH.p4[:, order], mask=BATCH.mask[:, order], order=None, join=None)
    wider = replace(
        BATCH,
        p4=torch.nn.functional.pad(BATCH.p4, (0, 0, 0, 5)),
        mask=torch.nn.functional.pad(BATCH.mask, (0, 5)),
        order=None,
        join=None,
    )
    losses = [module(batch, 5, 10, generator()).loss for batch in (BATCH, shuffled, wider)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(losses[2], losses[0], rtol=1e-4, atol=1e-4)


def test_steps_are_determined_by_the_generator():
    module = objective()
    first = module(BATCH, 5, 10, generator(5)).loss
    assert torch.equal(module(BATCH, 5, 10, generator(5)).loss, first)
    state = torch.get_rng_state()
    assert not torch.equal(module(BATCH, 5, 10, generator(6)).loss, first)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("matching", ["hungarian", "chamfer"])
@pytest.mark.parametrize("counts", [[1, 1], [0, 5, 1], [0, 0]])
def test_jets_of_no_and_of_one_particle(counts, matching):
    module = objective(replace(SMALL, matching=matching))
    out = module(random_jets(counts).batch(), 5, 10, generator())
    out.loss.backward()
    assert out.loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for part in module.parts().values() for p in part)


def test_it_trains_under_bfloat16():
    module = objective()
    losses = losses_in_bfloat16(module, BATCH)
    assert losses[-1] < 0.9 * losses[0]


def test_jets_learned_by_heart_come_out_of_the_decoder():
    """Multiplicity, pT and mass of four jets."""
    jets = random_jets([4, 6, 8, 10]).batch()
    module = objective(replace(SMALL, beta=0.0, latent=8, clip_weight=0.0, decoder=SetTransformerConfig(32, 1, 4)))
    optimizer = torch.optim.Adam(module.parameters(), 4e-3)
    for step in range(250):
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * (1 - step / 250)
        loss = module(jets, step, 250, generator(step)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    out = module.eval().reconstructed(jets)
    assert out.counts.tolist() == [4, 6, 8, 10]
    true, again = jets.p4.double().sum(1), out.p4.double().sum(1)
    torch.testing.assert_close(fv.pt(again), fv.pt(true), rtol=0.15, atol=0)
    torch.testing.assert_close(fv.mass(again), fv.mass(true), rtol=0.25, atol=0)


# Signs of collapse, and settings


def test_metrics_and_alarms_tell_of_collapse():
    module = objective()
    metrics = {name: float(x) for name, x in module(BATCH, 5, 10, generator()).metrics.items()}
    assert {"loss_particles", "loss_presence", "loss_kl", "loss_clip", "temperature", "active_latents"} <= set(metrics)
    assert not module.alarms(metrics | {"feature_rank": 5.0, "cls_std": 0.5, "loss_kl": 3.0})
    assert any("posterior" in text for text in module.alarms({"loss_kl": 1e-3}))
    with torch.no_grad():
        module.net.latent.weight.zero_()
        module.net.latent.bias.zero_()
    collapsed = module(BATCH, 5, 10, generator()).metrics
    assert float(collapsed["loss_kl"]) == 0
    assert float(collapsed["active_latents"]) == 0


def test_the_temperature_starts_as_given_and_is_learned():
    module = objective(replace(SMALL, temperature=0.2))
    out = module(BATCH, 5, 10, generator())
    assert float(out.metrics["temperature"]) == pytest.approx(0.2)
    out.loss.backward()
    assert float(module.net.clip.log_scale.grad) != 0
    assert "clip" not in objective(replace(SMALL, clip_weight=0.0)).heads()


def test_what_does_not_go_together_is_refused():
    with pytest.raises(InputError, match="batch of one jet"):
        objective()(random_jets([5]).batch(), 0, 10, generator())
    with pytest.raises(InputError, match="subjets have no measured column"):
        objective(SUBJETS, features=Features(FeatureConfig("kinpid", "weaver")))
    with pytest.raises(InputError, match="no merge history"):
        objective(SUBJETS)(replace(BATCH, order=None, join=None), 0, 10, generator())
    assert needs_of(SUBJETS).history
    assert not needs_of(replace(SUBJETS, clip_weight=0.0)).history
    assert needs_of(SMALL).measured
    for changes in (
        {"latent": 0},
        {"radius": 0.0},
        {"temperature": math.nan},
        {"beta": -1.0},
        {"warmup": 2.0},
        {"observables": ()},
        {"observables": ("tau21",)},
    ):
        with pytest.raises(InputError):
            replace(SMALL, **changes)


def test_the_temperature_does_not_stay_beyond_its_bound():
    """There it would have no gradient that brings it back."""
    module = objective(SMALL)
    clip = module.net.clip
    clip.log_scale.data.fill_(50.0)
    module.after_step(0, 10)
    assert float(clip.scale.detach()) == pytest.approx(100, rel=1e-4)
    module(BATCH, 0, 10, torch.Generator().manual_seed(0)).loss.backward()
    assert float(clip.log_scale.grad) != 0
