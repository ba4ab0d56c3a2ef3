"""The Lorentz autoencoder commutes with boosts end to end, and uses all that its latent holds."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jetrep.encoders.lorentz import LorentzConfig, LorentzEncoder
from jetrep.encoders.lorentz_decoder import LorentzAutoencoder, LorentzDecoder, LorentzDecoderConfig
from jetrep.errors import InputError
from jetrep.objectives.reconstruction_losses import chamfer, hungarian, presence_loss
from jetrep.physics.lorentz import RestFrame, minkowski
from lorentz_jets import jets_of, observers, seen_by

ENCODER = LorentzConfig(width=16, vectors=4, heads=2, depth=2, hidden=16, pooled=3, max_particles=30)
DECODER = LorentzDecoderConfig(n_particles=12, width=16, vectors=4, heads=2, depth=2, hidden=16)
LINEAR = {"encoder": replace(ENCODER, ranks=8, linear=True), "decoder": replace(DECODER, linear=True)}


def built(encoder=ENCODER, decoder=DECODER, dtype=torch.float64, seed=0) -> LorentzAutoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LorentzAutoencoder(LorentzEncoder(encoder), 5, decoder).to(dtype)


def reconstructed(model, p4, mask) -> torch.Tensor:
    """Through the public calls, all normalisation included: momenta in GeV in, momenta in GeV out."""
    with torch.no_grad():
        return model.decode(model.encode(p4, mask)).p4


def at_rest(p4, mask) -> torch.Tensor:
    """What there is to reconstruct."""
    return RestFrame.of_particles(p4.masked_fill(~mask.unsqueeze(-1), 0.0))[1]


def per_jet(a, b) -> torch.Tensor:
    return (a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)


# Measured on such jets: medians up to 6e-7 for every γ to 1.1e4, untrained and trained.
@pytest.mark.parametrize(("gamma", "tolerance"), [(1.0, 1e-6), (2.0, 1e-6), (50.0, 1e-6), (1e4, 2e-6)])
def test_float32_network_is_equivariant_end_to_end(gamma, tolerance):
    model = built(LorentzConfig(), LorentzDecoderConfig(), torch.float32)
    p4, mask = jets_of([30] * 100 + [12] * 100)
    matrix = observers(200, gamma)
    here = seen_by(matrix, reconstructed(model, p4, mask))
    there = reconstructed(model, seen_by(matrix, p4), mask)
    assert per_jet(there, here).median() < tolerance


@pytest.mark.parametrize("massless", [True, False])
@pytest.mark.parametrize("aggregation", ["min&max", "mix", "attention"])
def test_float64_network_is_equivariant_for_every_jet(aggregation, massless):
    model = built(replace(ENCODER, aggregation=aggregation), replace(DECODER, massless=massless))
    p4, mask = jets_of([12, 7, 5])
    matrix = observers(3, 5.0)
    here = seen_by(matrix, reconstructed(model, p4, mask))
    assert per_jet(reconstructed(model, seen_by(matrix, p4), mask), here).max() < 1e-8


@pytest.mark.parametrize("massless", [True, False])
def test_linear_combinations_by_place_are_equivariant_and_trained(massless):
    model = built(LINEAR["encoder"], replace(LINEAR["decoder"], massless=massless))
    p4, mask = jets_of([12, 7, 3] * 10)
    matrix = observers(30, 3.0)
    here = seen_by(matrix, reconstructed(model, p4, mask))
    assert per_jet(reconstructed(model, seen_by(matrix, p4), mask), here).max() < 1e-8
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    shuffled = model.encode(p4[:, order], mask[:, order])
    torch.testing.assert_close(shuffled, model.encode(p4, mask), rtol=1e-8, atol=1e-8)
    out = model(p4, mask)
    (chamfer(at_rest(p4, mask), out.momenta, mask, mask) + presence_loss(out.presence, mask)).sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def test_linear_combinations_begin_as_the_particles_of_highest_energy():
    model = built(LINEAR["encoder"], replace(LINEAR["decoder"], conserve=False))
    with torch.no_grad():
        for learned in (model.encoder.pool.keep_v, *model.decoder.coefficients[2:], model.decoder.refine):
            for weights in learned.parameters():
                weights.zero_()
    p4, mask = jets_of([12, 7, 4])
    momenta = at_rest(p4, mask)
    hardest = momenta.gather(1, momenta[..., :1].argsort(1, descending=True).expand(-1, -1, 4))
    with torch.no_grad():
        found = model(p4, mask).momenta
    torch.testing.assert_close(found[:, :3], hardest[:, :3], rtol=1e-6, atol=1e-9)
    assert found[:, 3:].abs().max() < 1e-9


def test_linear_combinations_need_places():
    with pytest.raises(InputError, match=r"encoder.linear.*encoder.ranks"):
        LorentzConfig(linear=True)


def test_error_of_a_network_that_is_not_equivariant_is_seen():
    """Dividing by the largest component, as earlier work did, breaks the symmetry by per cents."""
    model = built()
    p4, mask = jets_of([12] * 20)
    matrix = observers(20, 1.5)

    def normalised(x):
        return reconstructed(model, x, mask) * x.abs().amax((1, 2), keepdim=True)

    assert per_jet(normalised(seen_by(matrix, p4)), seen_by(matrix, normalised(p4))).median() > 1e-2


def test_latent_vectors_transform_as_momenta_and_scalars_stay():
    model = built()
    p4, mask = jets_of([12, 7])
    matrix = observers(2, 3.0)
    with torch.no_grad():
        here, there = model.latent(p4, mask), model.latent(seen_by(matrix, p4), mask)
    torch.testing.assert_close(there.scalars, here.scalars, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(there.vectors, seen_by(matrix, here.vectors), atol=1e-6, rtol=1e-8)
    torch.testing.assert_close(here.vectors[:, 0], p4.sum(1))


def test_order_of_particles_and_padding_do_not_reach_the_latent():
    model = built()
    p4, mask = jets_of([9, 9], width=12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    junk = p4.masked_fill(~mask.unsqueeze(-1), 55.0)
    with torch.no_grad():
        expected = model.latent(p4, mask).numbers()
        torch.testing.assert_close(model.latent(p4[:, order], mask[:, order]).numbers(), expected)
        torch.testing.assert_close(model.latent(junk, mask).numbers(), expected)


def test_every_number_of_the_latent_reaches_every_kind_of_output():
    """Replacing one entry changes momenta and presence; no scalar is dead."""
    model = built()
    numbers = model.encode(*jets_of([12])).detach()
    assert numbers.shape[1] == 5 + 4 * model.n_vectors == model.size == model.latent(*jets_of([12])).size
    # The momentum of the jet turns the particles in the laboratory, and says nothing of what they are at rest.
    alive = torch.ones(numbers.shape[1], dtype=torch.bool)
    alive_at_rest = alive.clone()
    alive_at_rest[6:9] = False
    for output, expected in (("p4", alive), ("momenta", alive_at_rest), ("presence", alive_at_rest)):
        function = lambda x, name=output: getattr(model.decode(x), name)  # noqa: E731
        jacobian = torch.autograd.functional.jacobian(function, numbers).flatten(0, -2)
        assert torch.equal((jacobian.abs() > 1e-9).any(0).squeeze(), expected), output


def test_what_is_serialised_is_all_that_the_decoder_uses():
    model = built()
    latent = model.latent(*jets_of([12, 7, 5]))
    one, two = model.decoder(latent), model.decode(latent.numbers())
    assert torch.equal(one.p4, two.p4)
    assert torch.equal(one.presence, two.presence)


@pytest.mark.parametrize("aggregation", ["mean", "min", "max", "min&max", "mix", "attention"])
def test_every_parameter_receives_gradient(aggregation):
    model = built(replace(ENCODER, aggregation=aggregation))
    p4, mask = jets_of([12, 9, 12, 4])
    out = model(p4, mask)
    (chamfer(at_rest(p4, mask), out.momenta, mask, mask) + presence_loss(out.presence, mask)).sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("seed", range(5))
def test_output_starts_at_the_size_of_the_input(seed):
    model = built(LorentzConfig(), LorentzDecoderConfig(), seed=seed)
    jets = jets_of([30] * 20)
    out = model(*jets)
    ratio = out.momenta.norm(dim=-1).sum(1) / at_rest(*jets).norm(dim=-1).sum(1)
    assert ((ratio > 0.1) & (ratio < 10)).all()


def test_massless_particles_are_on_the_light_cone_for_every_observer():
    out = reconstructed(built(), *jets_of([12, 7]))
    assert (minkowski(out, out).abs() < 1e-9 * out[..., 0].square()).all()
    assert (out[..., 0] > 0).all()
    free = reconstructed(built(decoder=replace(DECODER, massless=False)), *jets_of([12, 7]))
    assert (minkowski(free, free).abs() > 1e-6 * free[..., 0].square()).any()


def test_a_few_jets_can_be_learned_by_heart():
    """The whole chain trains: the matched distance falls by a large factor, and the multiplicities come out."""
    model = built(dtype=torch.float32)
    p4, mask = jets_of([12, 8, 5, 10])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(200):
        out = model(p4, mask)
        momenta = at_rest(p4, mask).float()
        distance = hungarian(momenta, out.momenta, mask, mask).mean()
        optimizer.zero_grad()
        (distance + 0.1 * presence_loss(out.presence, mask).mean()).backward()
        optimizer.step()
        losses.append(distance.item())
    assert min(losses) < 0.2 * losses[0]
    assert out.mask.sum(1).tolist() == [12, 8, 5, 10]
    # Mass and momentum of the jet are those that the latent tells.
    torch.testing.assert_close((out.p4 * out.mask.unsqueeze(-1)).sum(1), p4.sum(1), rtol=1e-5, atol=1e-2)


@settings(max_examples=25, deadline=None)
@given(kind=st.sampled_from(["none", "one", "identical", "soft", "space-like"]), energy=st.floats(1e-3, 5e3))
def test_degenerate_jets_are_finite_with_finite_gradients(kind, energy):
    model = built(dtype=torch.float32)
    p4, mask = torch.zeros(2, 6, 4), torch.zeros(2, 6, dtype=torch.bool)
    if kind != "none":
        mask[0, : 1 if kind == "one" else 5] = True
        p4[0] = energy * torch.tensor([1.0, 0.6, 0.0, 0.8])
    if kind == "soft":
        p4[0, 1:] *= 1e-12
    if kind == "space-like":
        p4[0, :, 0] *= 1 - 1e-6
    out = model(p4, mask)
    loss = chamfer(at_rest(p4, mask).float(), out.momenta, mask, out.mask) + presence_loss(out.presence, mask)
    loss.sum().backward()
    assert torch.isfinite(out.p4).all()
    assert torch.isfinite(loss).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_latent_of_another_architecture_is_refused():
    model, other = built(), built(replace(ENCODER, pooled=2))
    latent = other.latent(*jets_of([5]))
    with pytest.raises(InputError, match=r"5 scalars and 3 vectors, not 5 and 4.*decode it with the model"):
        model.decoder(latent)
    with pytest.raises(InputError, match=r"not \(jets, 21\)"):
        model.decode(latent.numbers())


@pytest.mark.parametrize(("change", "field"), [({"heads": 3}, "decoder.width"), ({"n_particles": 0}, "n_particles")])
def test_settings_out_of_range(change, field):
    with pytest.raises(InputError, match=field):
        replace(DECODER, **change)


def test_decoder_compiles_without_breaks():
    model = built(dtype=torch.float32)
    latent = model.latent(*jets_of([12, 9]))
    expected = model.decoder(latent)
    jet = torch.tensor([1.0, 0, 0, 0]).view(1, 4, 1).expand(2, -1, -1)
    vectors = torch.cat([jet, latent.at_rest.mT], -1)
    compiled = torch.compile(model.decoder.at_rest, fullgraph=True, backend="eager")
    momenta, presence = compiled(latent.scalars, vectors, expected.frame.mass)
    torch.testing.assert_close(momenta, expected.momenta)
    torch.testing.assert_close(presence, expected.presence)


def test_compiled_blocks_change_nothing():
    """One function serves the blocks of both halves, each with its own weights."""
    p4, mask = jets_of([12, 9])
    plain, compiled = built(dtype=torch.float32), built(dtype=torch.float32)
    for part in (compiled.encoder, compiled.decoder):
        part.stack.compile(backend="eager", fullgraph=True)
    expected, found = plain(p4, mask), compiled(p4, mask)
    torch.testing.assert_close(found.momenta, expected.momenta)
    for out in (expected, found):
        out.momenta.square().sum().backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), compiled.named_parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, msg=name)


@given(seed=st.integers(0, 10_000), counts=st.lists(st.integers(2, 8), min_size=3, max_size=3))
def test_what_is_conserved_sums_to_the_momentum_of_the_jet(seed, counts):
    generator = torch.Generator().manual_seed(seed)
    momentum = torch.randn(3, 8, 3, dtype=torch.float64, generator=generator)
    mask = torch.arange(8) < torch.tensor(counts).unsqueeze(1)
    momentum[:, 1] = -momentum[:, 0] + 0.1 * momentum[:, 1]  # slow, whatever the others do
    momentum[:, 2:] *= 0.1
    p = torch.cat([momentum.norm(dim=-1, keepdim=True), momentum], -1)
    momenta = LorentzDecoder._conserved(p, torch.where(mask, 1.0, -1.0))
    total = (momenta * mask.unsqueeze(-1)).sum(1)
    torch.testing.assert_close(total, torch.eye(4, dtype=torch.float64)[:1].expand(3, -1), rtol=0, atol=1e-9)
    # One transformation and one scale for all: products keep their ratios.
    before, after = (minkowski(x.unsqueeze(1), x.unsqueeze(2)) for x in (p, momenta))
    ratio = after / before
    off_diagonal = ~torch.eye(8, dtype=torch.bool)
    torch.testing.assert_close(ratio[:, off_diagonal], ratio[:, :1, 1].expand(-1, 56), rtol=1e-6, atol=0)


def test_slots_that_cannot_make_up_a_jet_are_left_alone():
    p = jets_of([5, 5, 5])[0]
    presence = torch.full((3, 5), -1.0)
    presence[1:, 0] = 1.0
    presence[2, 1] = 1.0
    p[2, 1] = 2 * p[2, 0]  # collinear: no mass
    torch.testing.assert_close(LorentzDecoder._conserved(p, presence), p)


def test_rank_2_tensors_in_both_halves():
    """They are used, every parameter of theirs receives gradient, and the observer still makes no difference."""
    encoder, decoder = replace(ENCODER, maxdim=3, tensors=2), replace(DECODER, maxdim=3, tensors=2)
    model = built(encoder, decoder)
    assert sum(p.numel() for p in model.decoder.parameters()) > sum(p.numel() for p in built().decoder.parameters())
    p4, mask = jets_of([12, 9, 12, 4])
    matrix = observers(4, 5.0)
    here, there = seen_by(matrix, reconstructed(model, p4, mask)), reconstructed(model, seen_by(matrix, p4), mask)
    assert per_jet(there, here).max() < 1e-9
    out = model(p4, mask)
    (chamfer(at_rest(p4, mask), out.momenta, mask, mask) + presence_loss(out.presence, mask)).sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    with pytest.raises(InputError, match=r"decoder\.tensors"):
        replace(decoder, tensors=3)
