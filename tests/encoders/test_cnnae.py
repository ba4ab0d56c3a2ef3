"""Images keep what falls into them and have gradients; the image autoencoder keeps what it says."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from central_jets import DEGENERATE, central_jets, degenerate_jets
from jetrep.encoders.build import build_encoder
from jetrep.encoders.cnnae import ImageAutoencoder, ImageConfig, ImageEncoder, draw, image_loss, pixel_centres
from jetrep.encoders.relative import momenta_of
from jetrep.errors import InputError
from jetrep.evaluation.audit import audit_model
from jetrep.features import FeatureConfig, Features
from jetrep.model import JetModel, ModelConfig
from jetrep.physics import fourvector as fv
from jetrep.training.checkpoint import load_model, save_model
from random_jets import random_jets

SMALL = ImageConfig(8, channels=(4, 5), latent=6)


def built(config: ImageConfig = SMALL, dtype=torch.float64, seed: int = 0) -> ImageAutoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ImageAutoencoder(ImageEncoder(config)).to(dtype)


def particles(*seen: tuple[float, float, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """One jet of massless particles with pT, η, φ."""
    p4 = momenta_of(torch.tensor([seen], dtype=torch.float64))
    return p4, torch.ones(p4.shape[:2], dtype=torch.bool)


def test_transverse_momentum_and_its_centre_are_conserved():
    p4, mask = central_jets([12, 5])
    drawn = draw(p4, mask)
    assert not drawn.outside.any()
    torch.testing.assert_close(drawn.image.sum((1, 2)), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(drawn.jet[:, 0], fv.pt(p4).sum(1))
    assert (drawn.lost < 1e-12).all()
    axis = p4.sum(1, keepdim=True)
    delta = torch.stack([fv.eta(p4) - fv.eta(axis), fv.delta_phi(fv.phi(p4), fv.phi(axis))], -1)
    expected = (fv.pt(p4).unsqueeze(-1) * mask.unsqueeze(-1) * delta).sum(1) / drawn.jet[:, :1]
    centres = pixel_centres(40, 0.8, p4)
    torch.testing.assert_close(drawn.image.sum(2) @ centres, expected[:, 0])  # rows in η
    torch.testing.assert_close(drawn.image.sum(1) @ centres, expected[:, 1])  # columns in φ


def test_a_particle_is_shared_by_the_four_nearest_pixels():
    pixel = 1.6 / 40
    drawn = draw(*particles((1.0, 0.25 * pixel, 3.1), (1.0, -0.25 * pixel, 3.1)))
    # Their axis is a corner between pixels; one is a quarter of a pixel up, the other down.
    assert (drawn.image[0] > 1e-9).sum() == 4
    torch.testing.assert_close(drawn.image[0, 19:21, 19:21], torch.full((2, 2), 0.25, dtype=torch.float64))
    heavier = draw(*particles((3.0, 0.0, 0.0), (1.0, 4 * pixel, 0.0))).image[0]
    torch.testing.assert_close(heavier[18:20].sum(), torch.tensor(0.75, dtype=torch.float64))
    torch.testing.assert_close(heavier[22:24].sum(), torch.tensor(0.25, dtype=torch.float64))


def test_what_is_outside_is_counted_and_leaves_continuously():
    def lost(eta):
        drawn = draw(*particles((1000.0, 0.0, 0.0), (0.001, eta, 0.0)))
        held = drawn.jet[0, 0] + drawn.lost[0] * 1000.001
        torch.testing.assert_close(held, torch.tensor(1000.001, dtype=torch.float64))
        torch.testing.assert_close(drawn.image.sum(), torch.tensor(1.0, dtype=torch.float64))
        return drawn.lost.item() * 1000.001 / 0.001, drawn.outside.item()

    pixel = 1.6 / 40
    cases = [(0.5, 0.0, 0), (0.8 - pixel / 2, 0.0, 0), (0.8 - 1e-4, 0.5, 0), (0.8 + 1e-4, 0.5, 1), (0.83, 1.0, 1)]
    for eta, expected, outside in cases:
        found = lost(eta)
        assert found == (pytest.approx(expected, abs=0.01), outside), eta


def test_images_have_the_right_gradients():
    p4, mask = central_jets([4])
    weights = torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda x: (draw(x, mask, 8).image * weights).sum(), p4.requires_grad_(), atol=1e-6)
    (draw(p4, mask, 8).image * weights).sum().backward()
    assert p4.grad[..., 1:].abs().gt(0).all()


def test_images_do_not_see_soft_particles_and_collinear_splits():
    p4, mask = central_jets([5], width=7)
    image = draw(p4, mask).image
    changed, real = p4.clone(), mask.clone()
    changed[0, 5], changed[0, 6], real[0, 5:] = 0.3 * p4[0, 0], 1e-9 * p4[0, 1], True
    changed[0, 0] *= 0.7
    torch.testing.assert_close(draw(changed, real).image, image, atol=1e-9, rtol=1e-7)


def test_order_padding_and_azimuth_do_not_reach_the_latent():
    model = built()
    p4, mask = central_jets([9, 4], width=12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    turned = torch.stack([p4[..., 0], -p4[..., 1], -p4[..., 2], p4[..., 3]], -1)
    with torch.no_grad():
        expected = model.encode(p4, mask)
        torch.testing.assert_close(model.encode(p4[:, order], mask[:, order]), expected)
        torch.testing.assert_close(model.encode(p4.masked_fill(~mask.unsqueeze(-1), 55.0), mask), expected)
        torch.testing.assert_close(model.encode(turned, mask)[:, 3:], expected[:, 3:])


def test_pixels_come_out_as_massless_particles_where_they_were():
    """A decoder that gave the true image would give the jet up to the size of a pixel."""
    p4, mask = central_jets([12, 5])
    model = built(ImageConfig())
    drawn = draw(p4, mask)
    with torch.no_grad():
        out = model(p4, mask)
    share = fv.pt(out.p4) / out.p4[..., 1:3].norm(dim=-1).sum(1, keepdim=True)
    torch.testing.assert_close(share.view_as(out.image), out.image)
    torch.testing.assert_close(out.image.sum((1, 2)), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(fv.pt(out.p4).sum(1), drawn.jet[:, 0])
    assert out.mask.all()
    torch.testing.assert_close(out.p4[..., 0], out.p4[..., 1:].norm(dim=-1))
    true = (out.p4 / out.image.flatten(1).unsqueeze(-1) * drawn.image.flatten(1).unsqueeze(-1)).sum(1)
    torch.testing.assert_close(fv.mass(true), fv.mass(p4.sum(1)), rtol=0.02, atol=0.5)
    torch.testing.assert_close(true, p4.sum(1), rtol=0.01, atol=0.5)


def test_loss_is_of_images():
    p4, mask = central_jets([12, 5])
    model = built()
    out = model(p4, mask)
    expected = [((draw(p4, mask, 8).image[i] - out.image[i]) ** 2).sum() for i in range(2)]
    torch.testing.assert_close(image_loss(out, p4, mask), torch.stack(expected))
    assert (image_loss(replace(out, image=draw(p4, mask, 8).image), p4, mask) == 0).all()


def test_every_parameter_receives_gradient():
    model, jets = built(), central_jets([12, 9, 12, 4])
    image_loss(model(*jets), *jets).sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def test_tokens_reach_the_whole_encoder_and_their_sum_over_places_is_the_jet():
    encoder = built().encoder
    view = Features(FeatureConfig())(random_jets([9, 4]).batch())
    encoded = encoder([view])[0]
    encoded.tokens.sum().backward()
    assert not [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    # One particle at the centre of each place of the last feature map reads the token of this place.
    side, half_width = SMALL.smallest, SMALL.half_width
    centres = pixel_centres(side, half_width, view.p4.double())
    eta, phi = torch.meshgrid(centres, centres, indexing="ij")
    p4 = momenta_of(torch.stack([torch.ones(side**2).double(), eta.flatten(), phi.flatten()], -1)).unsqueeze(0)
    jet = encoder([replace(view, p4=p4, mask=torch.ones(1, side**2, dtype=torch.bool))])[0]
    bias = encoder.dense.bias
    torch.testing.assert_close((jet.tokens - bias).sum(1) / side + bias, jet.cls)


def test_numbers_are_all_that_the_decoder_uses_and_each_is_used():
    model, jets = built(), central_jets([12, 12])
    with torch.no_grad():
        numbers, out = model.encode(*jets), model(*jets)
        assert numbers.shape == (2, model.size) == (2, 9)
        elsewhere = copy.deepcopy(model).decode(torch.tensor(numbers.tolist(), dtype=torch.float64))
        assert torch.equal(elsewhere.p4, out.p4)
        assert torch.equal(elsewhere.image, out.image)
        for i in range(model.size):
            other = numbers.clone()
            other[:, i] += 0.1
            assert ((model.decode(other).p4 - out.p4).abs() > 1e-9).flatten(1).any(1).all(), i


def test_published_number_of_parameters():
    """1.72 million; the last bias, which a softmax does not see, is left out."""
    assert sum(p.numel() for p in built(ImageConfig()).parameters()) == 1_718_456 - 1


def test_a_few_jets_can_be_learned_by_heart():
    model = built(ImageConfig(16, channels=(8, 8), latent=8), torch.float32)
    jets = central_jets([12, 8, 5, 10])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(300):
        loss = image_loss(model(*jets), *jets).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses) < 0.1 * losses[0]


@settings(max_examples=25, deadline=None)
@given(kind=st.sampled_from(DEGENERATE), energy=st.floats(1e-3, 5e3))
def test_degenerate_jets_are_finite_with_finite_gradients(kind, energy):
    model = built(dtype=torch.float32)
    p4, mask = degenerate_jets(kind, energy)
    p4.requires_grad_()
    out = model(p4, mask)
    (out.p4.square().sum() + image_loss(out, p4, mask).sum()).backward()
    assert torch.isfinite(out.p4).all()
    assert torch.isfinite(p4.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert not out.mask[1].any()


def test_it_is_an_encoder_like_any_other(tmp_path):
    model = JetModel(ModelConfig(encoder=SMALL)).eval()
    jets = random_jets([9, 4, 1])
    with torch.no_grad():
        encoded = model.encode(jets.batch())
    assert encoded.tokens.shape == (3, 9, 6)
    assert not encoded.tokens[1, 4:].any()
    save_model(model, tmp_path, provenance={})
    again = load_model(tmp_path)
    assert again.config.encoder == SMALL
    assert (again.embed(jets) == model.embed(jets)).all()
    names = [name for layer in model.encoder.layers() for name, _ in layer]
    assert sorted(names) == sorted(name for name, _ in model.encoder.named_parameters())


def test_claimed_symmetries_hold():
    model = JetModel(ModelConfig(encoder=SMALL)).eval()
    rows = audit_model(model, *central_jets([12, 5]), boosts=(), soft=(1e-6,))
    errors = {row.symmetry: row.maximum for row in rows if row.layer == "end"}
    assert {name for name, error in errors.items() if error < 1e-4} == model.encoder.symmetries


def test_a_view_without_momenta_is_refused():
    view = replace(Features(FeatureConfig())(random_jets([3]).batch()), p4=None)
    with pytest.raises(ValueError, match="four-vectors"):
        build_encoder(SMALL, 7)([view])


def test_latent_of_another_architecture_is_refused():
    with pytest.raises(InputError, match=r"not \(jets, 9\); decode it with the model"):
        built().decode(torch.zeros(2, 8))


@pytest.mark.parametrize(
    ("change", "field"),
    [({"pixels": 10}, "pixels"), ({"half_width": 0.0}, "half_width"), ({"channels": ()}, "channels")],
)
def test_settings_out_of_range(change, field):
    with pytest.raises(InputError, match=field):
        replace(SMALL, **change)
