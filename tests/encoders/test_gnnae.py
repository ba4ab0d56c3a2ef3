"""The graph autoencoders: what must not matter, what is kept, and that they learn."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from central_jets import DEGENERATE, central_jets, degenerate_jets
from jetrep.encoders import gnnae
from jetrep.encoders.build import build_encoder
from jetrep.encoders.gnnae import GraphAutoencoder, GraphConfig, GraphEncoder
from jetrep.encoders.relative import relative
from jetrep.errors import InputError
from jetrep.evaluation.audit import audit_model
from jetrep.features import FeatureConfig, Features
from jetrep.model import JetModel, ModelConfig
from jetrep.objectives.reconstruction_losses import chamfer, hungarian, presence_loss
from jetrep.physics.lorentz import RestFrame
from jetrep.training.checkpoint import load_model, save_model
from random_jets import random_jets

SMALL = {
    level: GraphConfig(level, 10, 3, edges=((12, 8), (8, 9)), nodes=((7, 6), (5,))) for level in ("jet", "particle")
}
LEVELS = list(SMALL)


def built(config: GraphConfig, n_particles: int = 12, dtype=torch.float64, seed: int = 0) -> GraphAutoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GraphAutoencoder(GraphEncoder(config), n_particles).to(dtype)


def loss_of(out, p4, mask):
    frame, true = RestFrame.of_particles(p4.masked_fill(~mask.unsqueeze(-1), 0.0))
    return chamfer(true, out.at_rest(frame), mask, out.mask | (out.mask.sum(1, keepdim=True) == 0)) + presence_loss(
        out.presence, mask
    )


def test_features_are_those_of_the_axis():
    p4, mask = central_jets([12, 5])
    jet, seen = relative(p4, mask)
    px, py, pz = p4.sum(1)[:, 1:].unbind(-1)
    torch.testing.assert_close(jet[:, 0], torch.hypot(p4[..., 1], p4[..., 2]).sum(1))
    torch.testing.assert_close(jet[:, 1:], torch.stack([torch.asinh(pz / torch.hypot(px, py)), torch.atan2(py, px)], 1))
    torch.testing.assert_close(seen[..., 0].sum(1), torch.ones(2, dtype=torch.float64))
    assert not seen[1, 5:].any()
    assert seen[..., 1:].abs().max() < 1  # no particle is a turn away


def test_messages_are_sums_over_real_particles():
    """One step against the formula, pair by pair."""
    step = built(SMALL["jet"]).encoder.steps[1]
    x = torch.randn(1, 6, step.inputs, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, True, True, True, False, False]])
    expected = []
    for i in range(4):
        message = 0
        for j in range(4):
            pair = torch.cat([x[0, i], x[0, j], (x[0, i] - x[0, j]).square().sum().log1p().view(1)])
            message = message + step.edges(torch.nn.functional.leaky_relu(step.first(pair), 0.2))
        expected.append(step.nodes(torch.cat([message / 30, x[0, i]])))
    torch.testing.assert_close(step(x, mask)[0, :4], torch.stack(expected))
    assert not step(x, mask)[0, 4:].any()


@pytest.mark.parametrize("level", LEVELS)
def test_pieces_do_not_change_outputs_or_gradients(level, monkeypatch):
    model, jets = built(SMALL[level]), central_jets([12, 7, 3, 12])
    results = []
    for piece in (1 << 24, 2000):
        monkeypatch.setattr(gnnae, "_PIECE", piece)
        model.zero_grad()
        out = model(*jets)
        loss_of(out, *jets).sum().backward()
        results.append([out.p4, *(p.grad.clone() for p in model.parameters())])
        with torch.no_grad():
            torch.testing.assert_close(model(*jets).p4, out.p4)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("level", LEVELS)
def test_order_of_particles_and_padding_do_not_reach_the_latent(level):
    model = built(SMALL[level])
    p4, mask = central_jets([9, 4], width=12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.encode(p4, mask)
        torch.testing.assert_close(model.encode(p4[:, order], mask[:, order]), expected)
        torch.testing.assert_close(model.encode(p4.masked_fill(~mask.unsqueeze(-1), 55.0), mask), expected)
        torch.testing.assert_close(model.encode(p4[:, :9], mask[:, :9]), expected)


def test_latent_particles_are_in_the_order_of_momenta_and_only_the_hardest():
    model = built(SMALL["particle"], 5)
    p4, mask = central_jets([9])
    with torch.no_grad():
        numbers = model.encode(p4, mask)
        pt = torch.hypot(p4[..., 1], p4[..., 2])
        order = pt.argsort(1, descending=True)[0, :5]
        tokens = model.to_latent(model.encoder.tokens(relative(p4, mask)[1], mask))
    assert numbers[0, 3] == 5
    torch.testing.assert_close(numbers[0, 4:].view(5, 3), tokens[0, order])


@pytest.mark.parametrize("level", LEVELS)
def test_every_parameter_receives_gradient(level):
    model, jets = built(SMALL[level]), central_jets([12, 9, 12, 4])
    loss_of(model(*jets), *jets).sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("level", LEVELS)
def test_numbers_are_all_that_the_decoder_uses_and_each_is_used(level):
    model, jets = built(SMALL[level]), central_jets([12, 12])
    with torch.no_grad():
        numbers, out = model.encode(*jets), model(*jets)
        assert numbers.shape == (2, model.size)
        assert numbers.dtype == torch.float64
        elsewhere = copy.deepcopy(model).decode(torch.tensor(numbers.tolist(), dtype=torch.float64))
        assert torch.equal(elsewhere.p4, out.p4)
        assert torch.equal(elsewhere.presence, out.presence)
        for i in range(model.size):
            other = numbers.clone()
            other[:, i] += -1 if i == 3 and level == "particle" else 0.1
            changed = model.decode(other)
            assert ((changed.p4 - out.p4).abs() > 1e-9).flatten(1).any(1).all(), i


def test_sizes_are_what_is_stored():
    assert built(SMALL["jet"]).size == 3 + 10  # pT, η, φ and the mean
    assert built(SMALL["particle"]).size == 3 + 1 + 12 * 3  # the multiplicity too


@pytest.mark.parametrize("width", [10, 45, 90])
def test_published_number_of_parameters(width):
    """13,873 + 9δ, of which those of 27 features that are always zero are left out."""
    encoder = GraphEncoder(GraphConfig(width=width))
    dead = 27 * (50 + 50 + 30)
    assert sum(p.numel() for p in encoder.parameters()) == 13_873 + 9 * width - dead


def test_mean_of_the_particles_has_as_many_dimensions_as_numbers():
    """Of a linear last layer after eight features it would have eight."""
    model = built(GraphConfig(width=24))
    with torch.no_grad():
        numbers = model.encode(*central_jets([20] * 200))[:, 3:]
    values = torch.linalg.svdvals(numbers - numbers.mean(0))
    assert (values > 1e-4 * values[0]).all()


@pytest.mark.parametrize("level", LEVELS)
def test_multiplicity_comes_out(level):
    out = built(SMALL[level])(*central_jets([12, 3, 0]))
    assert out.p4.shape == (3, 12, 4)
    if level == "particle":
        assert out.mask.sum(1).tolist() == [12, 3, 0]
        assert not out.p4[1, 3:].any()


@pytest.mark.parametrize("level", LEVELS)
def test_particles_are_massless_and_of_the_size_of_those_that_went_in(level):
    jets = central_jets([30] * 20)
    out = built(GraphConfig(level), 30)(*jets).p4.detach()
    torch.testing.assert_close(out[..., 0], out[..., 1:].norm(dim=-1))
    ratio = out.sum(1)[:, 0] / jets[0].sum(1)[:, 0]
    assert ((ratio > 0.3) & (ratio < 3)).all()


@pytest.mark.parametrize(("level", "rate"), [("jet", 5e-3), ("particle", 1e-2)])
def test_a_few_jets_can_be_learned_by_heart(level, rate):
    model = built(GraphConfig(level, 30, 3), dtype=torch.float32)
    p4, mask = central_jets([12, 8, 5, 10])
    frame, true = RestFrame.of_particles(p4)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    losses = []
    for _ in range(200):
        out = model(p4, mask)
        distance = hungarian(true.float(), out.at_rest(frame).float(), mask, mask).mean()
        optimizer.zero_grad()
        (distance + 0.1 * presence_loss(out.presence, mask).mean()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(distance.item())
    assert min(losses) < 0.15 * losses[0]
    assert out.mask.sum(1).tolist() == [12, 8, 5, 10]


@settings(max_examples=25, deadline=None)
@given(kind=st.sampled_from(DEGENERATE), level=st.sampled_from(LEVELS), energy=st.floats(1e-3, 5e3))
def test_degenerate_jets_are_finite_with_finite_gradients(kind, level, energy):
    model = built(SMALL[level], dtype=torch.float32)
    p4, mask = degenerate_jets(kind, energy)
    p4.requires_grad_()
    out = model(p4, mask)
    (out.p4.square().sum() + out.presence.sum()).backward()
    assert torch.isfinite(out.p4).all()
    assert torch.isfinite(p4.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_it_is_an_encoder_like_any_other(tmp_path):
    config = SMALL["particle"]
    model = JetModel(ModelConfig(encoder=config)).eval()
    assert model.config.pooling == "cls"
    jets = random_jets([9, 4, 1])
    with torch.no_grad():
        encoded = model.encode(jets.batch())
    torch.testing.assert_close(encoded.pooled("mean"), encoded.cls)
    assert encoded.tokens.shape == (3, 9, 10)
    save_model(model, tmp_path, provenance={})
    again = load_model(tmp_path)
    assert again.config.encoder == config
    assert (again.embed(jets) == model.embed(jets)).all()
    names = [name for layer in model.encoder.layers() for name, _ in layer]
    assert sorted(names) == sorted(name for name, _ in model.encoder.named_parameters())


def test_claimed_symmetries_hold_behind_every_step():
    model = JetModel(ModelConfig(encoder=SMALL["jet"])).eval()
    rows = audit_model(model, *central_jets([12, 5]), boosts=(), soft=(0.1,))
    errors = {row.symmetry: row.maximum for row in rows if row.layer != "features"}
    assert {row.layer for row in rows} == {"features", "block 1", "end"}
    assert all(errors[symmetry] < 1e-5 for symmetry in model.encoder.symmetries)
    assert {name for name, error in errors.items() if error > 1e-4} == {"rotation", "soft", "collinear"}


def test_a_view_without_momenta_is_refused():
    view = replace(Features(FeatureConfig())(random_jets([3]).batch()), p4=None)
    with pytest.raises(ValueError, match="four-vectors"):
        build_encoder(SMALL["jet"], 7)([view])


@pytest.mark.parametrize("level", LEVELS)
def test_latent_of_another_architecture_is_refused(level):
    model = built(SMALL[level])
    with pytest.raises(InputError, match=rf"not \(jets, {model.size}\); decode it with the model"):
        model.decode(torch.zeros(2, model.size + 1))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"width": 0}, "width"),
        ({"edges": ()}, "edges"),
        ({"nodes": ((8,),)}, "nodes"),
        ({"edges": ((8,), (0,))}, "edges"),
    ],
)
def test_settings_out_of_range(change, field):
    with pytest.raises(InputError, match=field):
        replace(SMALL["jet"], **change)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_distances_keep_their_digits_under_autocast(dtype):
    """Far from the origin, as features of later steps are, near particles are differences of large numbers."""
    step = built(SMALL["jet"], dtype=torch.float32).encoder.steps[0]
    x = 100 + 0.1 * torch.randn(2, 6, step.inputs, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 6, dtype=torch.bool)
    with torch.no_grad():
        for weights in step.first.weight[:, :-1], step.first.bias:
            weights.zero_()  # the distance alone
        expected = step.messages(x, mask)
        with torch.autocast("cpu", dtype):
            found = step.messages(x, mask)
    torch.testing.assert_close(found.float(), expected, rtol=0.03, atol=0.003)
