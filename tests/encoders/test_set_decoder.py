"""The set decoder: massless particles in the right place, slots without an order, weights that all learn."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jetrep.encoders.decoder import SetTransformerConfig
from jetrep.encoders.set_decoder import RelativeParticles, SetDecoder
from jetrep.errors import InputError
from jetrep.physics import fourvector as fv

SMALL = SetTransformerConfig(width=16, depth=2, heads=2)


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return SetDecoder(5, 7, SMALL)


def test_permuted_slots_give_permuted_particles(decoder):
    z, order = torch.randn(3, 5), torch.randperm(7)
    before = decoder(z)
    with torch.no_grad():
        decoder.slots.copy_(decoder.slots[order])
    after = decoder(z)
    for name in ("log_share", "angles", "presence"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name)[:, order], atol=1e-5, rtol=1e-5)


def test_jets_do_not_see_each_other(decoder):
    z = torch.randn(4, 5)
    torch.testing.assert_close(decoder(z).log_share[2:3], decoder(z[2:3]).log_share, atol=1e-6, rtol=1e-5)


@given(st.floats(0.1, 5000), st.floats(-4, 4), st.floats(-math.pi, math.pi), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_momenta_have_the_shares_and_angles_they_were_given(pt, eta, phi, seed):
    g = torch.Generator().manual_seed(seed)
    particles = RelativeParticles(
        torch.randn(2, 6, generator=g), 0.5 * torch.randn(2, 6, 2, generator=g), torch.randn(2, 6, generator=g)
    )
    jet = [torch.full((2,), x, dtype=torch.float64) for x in (pt, eta, phi)]
    p4 = particles.momenta(*jet)
    assert p4.dtype == torch.float64
    assert p4.shape == (2, 6, 4)
    torch.testing.assert_close(fv.pt(p4).log() - math.log(pt), particles.log_share.double())
    torch.testing.assert_close(fv.eta(p4) - eta, particles.angles[..., 0].double(), atol=1e-9, rtol=1e-9)
    turned = fv.delta_phi(fv.phi(p4), jet[2].unsqueeze(1)) - particles.angles[..., 1].double()
    torch.testing.assert_close(torch.cos(turned), torch.ones_like(turned))
    assert bool((fv.mass2(p4).abs() <= 1e-12 * p4[..., 0] ** 2).all())


def test_the_slots_share_one_sum(decoder):
    torch.testing.assert_close(decoder(torch.randn(3, 5)).log_share.exp().sum(1), torch.ones(3))
    with torch.no_grad():
        decoder.total.bias.fill_(0.1)
    torch.testing.assert_close(decoder(torch.randn(3, 5)).log_share.exp().sum(1), torch.full((3,), math.exp(0.1)))


def test_every_parameter_learns(decoder):
    out = decoder(torch.randn(3, 5))
    (out.log_share.square().sum() + out.angles.square().sum() + out.presence.square().sum()).backward()
    dead = [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


def test_it_learns_a_jet_by_heart(decoder):
    z = torch.randn(1, 5)
    share, angles = torch.softmax(torch.linspace(2, -2, 7), 0), 0.4 * torch.randn(7, 2)
    optimizer = torch.optim.Adam(decoder.parameters(), 3e-3)
    for _ in range(300):
        out = decoder(z)
        loss = (out.log_share - share.log()).abs().mean() + (out.angles - angles).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1


def test_no_slots_are_refused():
    with pytest.raises(InputError, match="n_particles"):
        SetDecoder(5, 0, SMALL)
