"""What is hidden of a jet, and that nothing of it is seen."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from jetrep.encoders import SIZES, ParticleNetConfig, TransformerConfig, build_encoder
from jetrep.encoders.decoder import DecoderConfig
from jetrep.encoders.particle_transformer import ParticleTransformerConfig
from jetrep.errors import InputError
from jetrep.features import FeatureConfig, Features
from jetrep.objectives.hiding import (
    blanked,
    hidden_particles,
    per_jet_weights,
    pt_ranks,
    survivors,
)
from jetrep.objectives.masked import MaskedParticles, MaskedParticlesConfig
from random_jets import random_jets

ENCODER = TransformerConfig(width=16, depth=2, heads=2, mlp_hidden=24, n_registers=1, position_bins=10)
ENCODERS = {
    "polar": ENCODER,
    "cls of jet": replace(SIZES["nano"], width=16, depth=2),
    "particle transformer": ParticleTransformerConfig(16, 2, heads=2, embed=(8,)),
    "class token in all blocks": ParticleTransformerConfig(16, 2, class_depth=0, heads=2, embed=(8,), trim=False),
    "particlenet": ParticleNetConfig(channels=((8, 8), (16, 16)), neighbours=4),
}
SMALL = MaskedParticlesConfig(target="regression", decoder=DecoderConfig(width=16, depth=2, heads=2, ranks=6))
LAYOUTS = ["decoder", "in_place"]
BATCH = random_jets([30, 18, 9, 1, 25, 3, 2]).batch()


def objective(config, encoder=ENCODER):
    torch.manual_seed(0)
    features = Features(FeatureConfig())
    return MaskedParticles(features, build_encoder(encoder, len(features.names)), config)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.4, 0.5, 0.99])
def test_at_least_one_particle_is_hidden_and_one_is_seen(fraction):
    mask = random_jets([0, 1, 2, 3, 10, 40]).batch().mask
    hidden = hidden_particles(mask, fraction, generator())
    counts = [min(max(math.floor(n * fraction + 1e-9), 1), n - 1) if n > 1 else 0 for n in (0, 1, 2, 3, 10, 40)]
    assert hidden.sum(1).tolist() == counts
    assert not (hidden & ~mask).any()


def test_fractions_that_leave_nothing_to_see_or_to_predict_are_refused():
    for fraction in (0.0, 1.0, -0.2, math.nan):
        with pytest.raises(InputError, match="mask_fraction"):
            MaskedParticlesConfig(mask_fraction=fraction)
    assert MaskedParticlesConfig().fraction == 0.4
    assert MaskedParticlesConfig(layout="in_place").fraction == 0.3


def test_ranks_are_those_in_pt_among_the_chosen():
    hidden = hidden_particles(BATCH.mask, 0.4, generator())
    ranks = pt_ranks(BATCH.p4, hidden)
    for p4, chosen, found in zip(BATCH.p4, hidden, ranks, strict=True):
        pt = np.hypot(*p4[chosen, 1:3].numpy().T)
        assert found[chosen].tolist() == np.argsort(np.argsort(-pt)).tolist()
        assert sorted(found.tolist()) == list(range(len(found)))


def test_weights_make_means_over_jets_of_means_over_particles():
    hidden = hidden_particles(BATCH.mask, 0.4, generator())
    x = torch.randn(hidden.shape, generator=generator())
    plain = sum(float(v[h].mean()) for v, h in zip(x, hidden, strict=True) if h.any()) / len(hidden)
    assert float((x[hidden] * per_jet_weights(hidden)).sum()) == pytest.approx(plain, rel=1e-5)


def changed_when_hidden(batch, hidden):
    """Other hidden particles, of the same total momentum as far as the batch knows."""
    noise = torch.rand(batch.p4.shape, generator=generator(9)) * 7
    noise[..., 0] += 20
    return replace(batch, p4=torch.where(hidden.unsqueeze(-1), noise, batch.p4))


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_of_hidden_particles_reaches_the_encoder(encoder, layout):
    module = objective(replace(SMALL, layout=layout), ENCODERS[encoder]).eval()
    hidden = hidden_particles(BATCH.mask, 0.4, generator())
    blank = torch.full((7,), 0.3)

    def seen(batch):
        inputs = module.features(batch)
        view = survivors(inputs, hidden) if layout == "decoder" else blanked(inputs, hidden, blank)
        return view, module.encoder([view])[0]

    (view, before), (other, after) = seen(BATCH), seen(changed_when_hidden(BATCH, hidden))
    for name in ("features", "mask", "coordinates", "jet_features", "angles", "p4"):
        assert torch.equal(getattr(view, name), getattr(other, name)), name
    assert torch.equal(before.cls, after.cls)
    assert torch.equal(before.tokens, after.tokens)
    if layout == "decoder":
        assert not before.tokens[hidden].any()
        # A jet of its visible particles alone is encoded alike.
        jet = next(i for i in range(len(BATCH)) if hidden[i].any())
        keep = (BATCH.mask & ~hidden)[jet].nonzero()[:, 0]
        rows = slice(jet, jet + 1)
        alone = replace(BATCH, p4=BATCH.p4[rows, keep], mask=BATCH.mask[rows, keep], jet_p4=BATCH.jet_p4[rows])
        own = module.encoder([module.features(replace(alone, order=None, join=None))])[0]
        torch.testing.assert_close(own.tokens[0], before.tokens[jet, keep], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(own.cls[0], before.cls[jet], rtol=1e-4, atol=1e-5)
    # The test can fail: visible particles matter, and so does the axis of the whole jet.
    visible = replace(BATCH, p4=torch.where((BATCH.mask & ~hidden).unsqueeze(-1), 1.3 * BATCH.p4, BATCH.p4))
    assert not torch.equal(seen(visible)[1].cls, before.cls)
    assert not torch.equal(seen(replace(BATCH, jet_p4=1.1 * BATCH.jet_p4))[1].cls, before.cls)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_predictions_do_not_know_what_they_predict(layout):
    """But for the order in pT: hidden particles that change places in pT keep their ranks here."""
    module = objective(replace(SMALL, layout=layout)).eval()
    predictions = []
    module.target.head.register_forward_hook(lambda _, __, out: predictions.append(out.detach()))
    hidden = hidden_particles(BATCH.mask, module.config.fraction, generator())
    bent = BATCH.p4.clone()
    bent[..., 1], bent[..., 2] = BATCH.p4[..., 2], BATCH.p4[..., 1]  # another direction, the same pT
    module(BATCH, 0, 10, generator())
    module(replace(BATCH, p4=torch.where(hidden.unsqueeze(-1), bent, BATCH.p4)), 0, 10, generator())
    assert torch.equal(*predictions)
