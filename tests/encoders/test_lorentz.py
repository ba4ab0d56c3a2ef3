"""The Lorentz encoder commutes with boosts, rotations, permutations and padding, layer by layer and as a whole."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jetrep.encoders.build import build_encoder
from jetrep.encoders.lorentz import LorentzConfig, LorentzEncoder
from jetrep.encoders.lorentz_decoder import LorentzAutoencoder, LorentzDecoderConfig, LorentzLatent
from jetrep.encoders.lorentz_layers import LorentzStack, VectorNorm, positive_norm2
from jetrep.encoders.lorentz_pooling import LorentzPooling
from jetrep.errors import InputError
from jetrep.features import FeatureConfig, Features
from jetrep.jets import JetBatch
from jetrep.model import ClassifierConfig, JetModel, ModelConfig
from jetrep.physics.lorentz import minkowski, random_lorentz, transform
from jetrep.training.checkpoint import load_model, save_model
from lorentz_jets import jets_of, observers, seen_by
from random_jets import random_jets

SMALL = LorentzConfig(width=16, vectors=4, heads=2, depth=2, hidden=16, pooled=3, tensors=2)
AGGREGATIONS = ["mean", "min", "max", "min&max", "mix", "attention"]


def built(config: LorentzConfig = SMALL, dtype: torch.dtype = torch.float64, seed: int = 0) -> LorentzEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LorentzEncoder(config).to(dtype)


def relative(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(batch,) ‖a − b‖/‖b‖ of each jet."""
    a, b = a.double().flatten(1), b.double().flatten(1)
    return (a - b).norm(dim=1) / b.norm(dim=1)


def in_lab(jets) -> torch.Tensor:
    return jets.frame.to_lab(jets.vectors.mT)


@pytest.mark.parametrize("tensors", [0, 2])
def test_layers_commute_with_lorentz_transformations_outside_any_frame(tensors):
    """Scalars, vectors and the reference vector are boosted together; nothing here is at rest."""
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stack = LorentzStack(8, 4, 2, 12, 2, tensors).double()
    p4, mask = jets_of([7, 4, 1])
    p = p4 / 100
    total = p.sum(1)
    u = (total + torch.tensor([1.0, 0, 0, 0])) / minkowski(*[total + torch.tensor([1.0, 0, 0, 0])] * 2).sqrt()[:, None]
    s = torch.randn(3, 7, 8, dtype=torch.float64, generator=generator)
    v = torch.randn(3, 7, 4, 4, dtype=torch.float64, generator=generator)
    matrix = random_lorentz(torch.tensor([2.0, 3.0, 4.0]), generator)
    out = stack(s, v, p, u[:, None, :, None], mask)
    moved = stack(s, matrix[:, None] @ v, transform(matrix[:, None], p), transform(matrix, u)[:, None, :, None], mask)
    torch.testing.assert_close(moved.s, out.s, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(moved.v, matrix[:, None] @ out.v, atol=1e-8, rtol=1e-8)


def test_messages_equal_the_sum_over_edges():
    """The factorised form against the explicit n × n edges."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = LorentzStack(6, 4, 2, 8, 1).double().blocks[0]
        a, c = torch.randn(2, 5, 6).double(), torch.randn(2, 5, 4).double()
        b, p, w = torch.randn(2, 5, 4, 4).double(), torch.randn(2, 5, 4, 1).double(), torch.randn(2, 2, 5, 5).double()
    share = torch.full((2, 5, 1), 0.2).double()
    got_a, got_c, got_pb, got_b, got_cp = block._messages(a, c, b, p, w, share)
    edge = p.unsqueeze(2) - p.unsqueeze(1)  # (batch, i, j, 4, 1)
    metric = torch.tensor([1.0, -1, -1, -1]).double()[:, None]
    by_channel = w.repeat_interleave(2, 1).permute(0, 2, 3, 1) / 5  # heads are runs of channels
    torch.testing.assert_close(got_a, (w.repeat_interleave(3, 1).permute(0, 2, 3, 1) / 5 * a.unsqueeze(1)).sum(2))
    torch.testing.assert_close(got_b, (by_channel.unsqueeze(3) * b.unsqueeze(1)).sum(2))
    vectors = (by_channel.unsqueeze(3) * edge * c[:, None, :, None]).sum(2)
    torch.testing.assert_close(p * got_c.unsqueeze(2) - got_cp, vectors)
    scalars = (by_channel * (metric * edge * b.unsqueeze(1)).sum(3)).sum(2)
    torch.testing.assert_close((metric * p * got_b).sum(2) - got_pb, scalars)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=4, max_size=4))
def test_norm_is_positive_for_every_vector_and_keeps_light_and_space_like_ones_finite(components):
    v = torch.tensor(components, dtype=torch.float64).view(1, 4, 1)
    u = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64).view(1, 4, 1)
    torch.testing.assert_close(positive_norm2(v, u), v.square().sum(1))
    out = VectorNorm(1).double()(v, u)
    assert torch.isfinite(out).all()
    assert out.norm() <= 1 + 1e-9


@pytest.mark.parametrize(("gamma", "tolerance"), [(2.0, 1e-6), (50.0, 1e-6), (1e4, 1e-5)])
@pytest.mark.parametrize("maxdim", [2, 3])
def test_float32_network_commutes_with_boosts(gamma, tolerance, maxdim):
    encoder = built(replace(SMALL, maxdim=maxdim), torch.float32)
    p4, mask = jets_of([30] * 60 + [12] * 40)
    matrix = observers(100, gamma)
    with torch.no_grad():
        here, there = encoder.jets(p4, mask), encoder.jets(seen_by(matrix, p4), mask)
    assert here.tokens.dtype == torch.float32
    assert relative(there.cls, here.cls).median() < tolerance
    assert relative(there.tokens, here.tokens).median() < tolerance
    assert relative(in_lab(there), seen_by(matrix, in_lab(here))).median() < tolerance


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_every_aggregation_is_covariant_in_float64(aggregation):
    encoder = built(replace(SMALL, aggregation=aggregation, max_particles=12))
    p4, mask = jets_of([12, 7, 6])
    matrix = observers(3, 3.0)
    with torch.no_grad():
        here, there = encoder.jets(p4, mask), encoder.jets(seen_by(matrix, p4), mask)
    assert relative(there.cls, here.cls).max() < 1e-8
    assert relative(in_lab(there), seen_by(matrix, in_lab(here))).max() < 1e-8


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_order_of_particles_matters_to_mix_alone(aggregation):
    encoder = built(replace(SMALL, aggregation=aggregation, max_particles=12))
    p4, mask = jets_of([12, 12])
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        one, two = encoder.jets(p4, mask), encoder.jets(p4[:, order], mask)
    torch.testing.assert_close(two.tokens, one.tokens[:, order], atol=1e-10, rtol=1e-10)
    difference = max(relative(two.cls, one.cls).max(), relative(two.vectors, one.vectors).max())
    assert (difference > 1e-3) if aggregation == "mix" else (difference < 1e-10)


@pytest.mark.parametrize("maxdim", [2, 3])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_padding_and_what_stands_in_it_change_nothing(aggregation, maxdim):
    encoder = built(replace(SMALL, aggregation=aggregation, max_particles=20, maxdim=maxdim))
    p4, mask = jets_of([9, 5, 1])
    wide = torch.full((3, 20, 4), 77.0, dtype=torch.float64)
    wide_mask = torch.zeros(3, 20, dtype=torch.bool)
    wide[:, :9][mask], wide_mask[:, :9] = p4[mask], mask
    with torch.no_grad():
        one, two = encoder.jets(p4, mask), encoder.jets(wide, wide_mask)
    torch.testing.assert_close(two.cls, one.cls, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(two.vectors, one.vectors, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(two.tokens[:, :9], one.tokens, atol=1e-10, rtol=1e-10)
    assert not two.tokens[~wide_mask].any()


def test_places_by_energy_are_those_of_the_rest_frame():
    """They do not depend on the observer, the order or the padding; and the network uses them."""
    encoder = built(replace(SMALL, ranks=6))
    p4, mask = jets_of([12, 7, 6])
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    matrix = observers(3, 3.0)
    with torch.no_grad():
        here, moved = encoder.jets(p4, mask), encoder.jets(seen_by(matrix, p4), mask)
        shuffled = encoder.jets(p4[:, order], mask[:, order])
        encoder.embed_rank.weight.copy_(encoder.embed_rank.weight.roll(1, 0))
        other = encoder.jets(p4, mask)
    assert relative(moved.cls, here.cls).max() < 1e-8
    assert relative(in_lab(moved), seen_by(matrix, in_lab(here))).max() < 1e-8
    torch.testing.assert_close(shuffled.cls, here.cls, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(shuffled.tokens, here.tokens[:, order], atol=1e-10, rtol=1e-10)
    assert relative(other.cls, here.cls).min() > 1e-3
    encoder.jets(p4, mask).cls.sum().backward()
    assert encoder.embed_rank.weight.grad.abs().sum(1).all()


def test_particles_of_equal_energy_share_a_place():
    """In a jet of two, both always have half of the energy: order and rounding must not tell them apart."""
    encoder = built(replace(SMALL, ranks=6))
    p4, mask = jets_of([2] * 20)
    matrix = observers(20, 3.0)
    with torch.no_grad():
        here, swapped = encoder.jets(p4, mask), encoder.jets(p4.flip(1), mask)
        moved = encoder.jets(seen_by(matrix, p4), mask)
    torch.testing.assert_close(swapped.cls, here.cls, atol=1e-10, rtol=1e-10)
    assert relative(moved.cls, here.cls).max() < 1e-8


@pytest.mark.parametrize("largest", [False, True])
def test_pooled_vector_is_that_of_one_particle(largest):
    pooling = LorentzPooling(3, 2, 3, 2, "max" if largest else "min").double()
    torch.nn.init.eye_(pooling.keep_v.weight)
    v = torch.randn(4, 6, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[:, 4:] = False
    _, pooled = pooling(torch.zeros(4, 6, 3).double(), v, mask)
    mass2 = minkowski(v.movedim(-1, 2), v.movedim(-1, 2))[:, :4]  # (batch, n, channels)
    best = mass2.argmax(1) if largest else mass2.argmin(1)
    for jet in range(4):
        for channel in range(2):
            torch.testing.assert_close(pooled[jet, :, channel], v[jet, best[jet, channel], :, channel])


@pytest.mark.parametrize("maxdim", [2, 3])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_every_parameter_receives_gradient(aggregation, maxdim):
    encoder = built(replace(SMALL, aggregation=aggregation, max_particles=12, maxdim=maxdim))
    jets = encoder.jets(*jets_of([12, 9, 12, 4]))
    (jets.cls.square().sum() + jets.tokens.sin().sum() + jets.vectors.square().sum()).backward()
    assert not [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]


def test_cls_depends_on_the_vectors():
    """A tagger trains the vectors too."""
    encoder = built()
    encoder.jets(*jets_of([12, 9])).cls.square().sum().backward()
    assert not [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(["none", "one", "parallel", "identical", "soft", "space-like"]),
    energy=st.floats(1e-3, 5e3),
    maxdim=st.sampled_from([2, 3]),
    aggregation=st.sampled_from(AGGREGATIONS),
)
def test_degenerate_jets_are_finite_with_finite_gradients(kind, energy, maxdim, aggregation):
    encoder = built(replace(SMALL, aggregation=aggregation, max_particles=6, maxdim=maxdim), torch.float32)
    p4, mask = torch.zeros(2, 6, 4), torch.zeros(2, 6, dtype=torch.bool)
    along = torch.tensor([1.0, 0.6, 0.0, 0.8])
    if kind != "none":
        mask[0, : 1 if kind == "one" else 5] = True
        share = torch.linspace(1, 2, 6) if kind == "parallel" else torch.ones(6)
        p4[0] = energy * share.unsqueeze(1) * along
    if kind == "soft":
        p4[0, 1:] *= 1e-12
    if kind == "space-like":
        p4[0, :, 0] *= 1 - 1e-6
    p4.requires_grad_()
    jets = encoder.jets(p4, mask)
    (jets.cls.square().sum() + jets.vectors.sum() + jets.tokens.sum()).backward()
    assert torch.isfinite(jets.cls).all()
    assert torch.isfinite(jets.vectors).all()
    assert not jets.cls[1].any()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters() if p.grad is not None)
    assert torch.isfinite(p4.grad).all()


def test_scale_of_the_jet_shows_only_through_its_mass():
    p4, mask = jets_of([12, 7])
    for mass in (False, True):
        encoder = built(replace(SMALL, mass=mass))
        with torch.no_grad():
            changed = relative(encoder.jets(2 * p4, mask).cls, encoder.jets(p4, mask).cls).max()
        assert (changed > 1e-4) if mass else (changed < 1e-10)


def test_works_as_the_encoder_of_features_and_keeps_float64_momenta():
    """Through `Features` and `forward`, as every verb calls it."""
    features, encoder = Features(FeatureConfig()), build_encoder(SMALL, 7)
    batch = random_jets([12, 5, 1]).batch()
    encoded = encoder([features(batch), features(random_jets([3]).batch())])
    assert [e.cls.shape for e in encoded] == [(3, 16), (1, 16)]
    assert encoded[0].tokens.shape == (3, 12, 16)
    assert encoded[0].pooled("cls+mean").shape == (3, 32)
    exact = JetBatch(batch.p4.double(), batch.mask, batch.jet_p4.double())
    assert features(exact).p4.dtype == torch.float64
    with pytest.raises(ValueError, match="four-vectors"):
        encoder([replace(features(batch), p4=None)])


def test_layers_hold_every_parameter_once():
    encoder = built(replace(SMALL, maxdim=3))
    layers = encoder.layers()
    names = [name for layer in layers for name, _ in layer]
    assert len(layers) == 3
    assert sorted(names) == sorted(name for name, _ in encoder.named_parameters())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"heads": 3}, "encoder.width"),
        ({"vectors": 5}, "encoder.vectors"),
        ({"maxdim": 3, "tensors": 3}, "encoder.tensors"),
        ({"depth": 0}, "encoder.depth"),
        ({"aggregation": "mix"}, "encoder.max_particles"),
        ({"ranks": -1}, "encoder.ranks"),
        ({"ranks": 3, "weighting": "energy"}, "encoder.ranks"),
    ],
)
def test_settings_out_of_range(change, field):
    with pytest.raises(InputError, match=field):
        replace(SMALL, **change)


def test_network_compiles_without_breaks():
    """One graph: no control flow that depends on data. Traced, not compiled: that needs no compiler."""
    encoder = built(SMALL, torch.float32)
    jets = encoder.jets(*jets_of([12, 9]))
    compiled = torch.compile(encoder.at_rest, fullgraph=True, backend="eager")
    for got, expected in zip(
        compiled(jets.momenta, jets.frame.mass, jets.mask), (jets.tokens, jets.cls, jets.vectors), strict=True
    ):
        torch.testing.assert_close(got, expected)


def test_works_in_a_tagger_and_comes_back_from_its_record(tmp_path):
    config = ModelConfig(encoder=replace(SMALL, maxdim=3), head=ClassifierConfig((8,), 0.0), classes=("qcd", "top"))
    model, jets = JetModel(config).eval(), random_jets([12, 5, 1])
    expected = model.predict(jets)
    save_model(model, tmp_path, provenance={})
    again = load_model(tmp_path)
    assert again.config == config
    assert (again.predict(jets) == expected).all()


def test_networks_are_in_single_precision_under_autocast():
    """Products of massless momenta cancel: in half precision they are noise."""
    encoder = built(dtype=torch.float32)
    decoder = LorentzAutoencoder(encoder, 4, LorentzDecoderConfig(8, 8, 4, 2, 1, 16)).decoder
    p4, mask = jets_of([7, 4, 1])

    def decoded(jets):
        jet = torch.cat([jets.frame.mass.unsqueeze(1), jets.frame.jet_p4[:, 1:]], 1)
        return decoder(LorentzLatent(jets.cls[:, :4], jet, jets.vectors.mT))

    with torch.no_grad():
        expected, shown = encoder.jets(p4, mask), decoded(encoder.jets(p4, mask))
        with torch.autocast("cpu", torch.bfloat16):
            found, again = encoder.jets(p4, mask), decoded(encoder.jets(p4, mask))
    assert torch.equal(found.cls, expected.cls)
    assert torch.equal(found.vectors, expected.vectors)
    assert torch.equal(again.momenta, shown.momenta)
