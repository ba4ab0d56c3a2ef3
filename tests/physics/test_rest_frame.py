"""Lorentz transformations are what they claim, and the rest frame of a jet is one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jetrep.physics.lorentz import (
    METRIC,
    RestFrame,
    boost,
    minkowski,
    random_directions,
    random_lorentz,
    rotation,
    transform,
)

ETA = torch.diag(torch.tensor(METRIC, dtype=torch.float64))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def massless(*shape: int, seed: int = 0) -> torch.Tensor:
    momentum = torch.randn(*shape, 3, dtype=torch.float64, generator=generator(seed))
    return torch.cat([momentum.norm(dim=-1, keepdim=True), momentum], -1)


@pytest.mark.parametrize("gamma", [1.0, 2.0, 50.0, 1e4])
def test_transformations_keep_the_metric_the_orientation_and_the_arrow_of_time(gamma):
    matrices = random_lorentz(torch.full((20,), gamma, dtype=torch.float64), generator())
    scale = gamma**2
    torch.testing.assert_close(matrices.mT @ ETA @ matrices, ETA.expand(20, 4, 4), atol=1e-15 * scale * 20, rtol=0)
    assert (matrices[:, 0, 0] >= 1 - 1e-12).all()
    if gamma < 100:
        torch.testing.assert_close(torch.linalg.det(matrices), torch.ones(20, dtype=torch.float64), atol=1e-9, rtol=0)


def test_boost_moves_a_particle_at_rest_along_its_direction():
    direction = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    moved = transform(boost(torch.tensor(2.0, dtype=torch.float64), direction), torch.tensor([1.0, 0, 0, 0]).double())
    torch.testing.assert_close(moved, torch.tensor([2.0, 0, 0, 3**0.5], dtype=torch.float64))


def test_rotation_turns_x_into_y_about_z():
    axis = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    turned = transform(rotation(axis, torch.tensor(torch.pi / 2).double()), torch.tensor([3.0, 2, 0, 1]).double())
    torch.testing.assert_close(turned, torch.tensor([3.0, 0, 2, 1], dtype=torch.float64), atol=1e-7, rtol=0)


def test_random_directions_are_unit_and_isotropic():
    directions = random_directions(20_000, generator())
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(20_000, dtype=torch.float64))
    assert (directions.T @ directions / 20_000 - torch.eye(3) / 3).abs().max() < 0.01


def test_jet_is_at_rest_with_unit_mass_in_its_frame_and_comes_back():
    p4 = massless(50, 12) * 40
    frame = RestFrame.of(p4.sum(1))
    rest = frame.to_rest(p4)
    expected = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64).expand(50, 4)
    torch.testing.assert_close(rest.sum(1), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(frame.to_lab(rest), p4, atol=1e-10, rtol=1e-12)
    same, particles = RestFrame.of_particles(p4)
    torch.testing.assert_close(particles, rest, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(same.jet_p4, p4.sum(1))
    torch.testing.assert_close(same.mass, frame.mass)
    torch.testing.assert_close(minkowski(frame.velocity, frame.velocity), torch.ones(50, dtype=torch.float64))


@pytest.mark.parametrize(("gamma", "tolerance"), [(2.0, 1e-14), (50.0, 1e-13), (1e4, 1e-10)])
def test_frames_of_two_observers_differ_by_a_rotation(gamma, tolerance):
    p4 = massless(40, 12)
    matrix = random_lorentz(torch.full((40,), gamma, dtype=torch.float64), generator(3))
    moved = transform(matrix.unsqueeze(1), p4)
    one, two = (RestFrame.of_particles(x)[1] for x in (p4, moved))
    gram = [x[..., 1:] @ x[..., 1:].mT for x in (one, two)]
    for error in ((one - two)[..., 0].abs(), (gram[0] - gram[1]).abs()):
        assert error.median() < tolerance
        # A particle that flies against the boost is written with the rounding of its large parts: it gains a mass.
        assert error.max() < 1e-4 * min(1, gamma / 1e4) + tolerance


@settings(max_examples=60, deadline=None)
@given(
    energy=st.floats(1e-3, 5e3),
    eta=st.floats(-5, 5),
    n=st.integers(0, 4),
    below=st.floats(0, 1e-6),
)
def test_massless_identical_and_no_particles_are_defined_and_finite(energy, eta, n, below):
    """One direction only: there is no mass, and with E < |p| by rounding even m² < 0."""
    pz = energy * torch.tanh(torch.tensor(eta, dtype=torch.float64))
    px = (energy**2 - pz**2).clamp(min=0).sqrt()
    one = torch.stack([torch.tensor(energy * (1 - below), dtype=torch.float64), px, torch.zeros(()).double(), pz])
    p4 = one.expand(1, n, 4).clone().requires_grad_()
    frame, rest = RestFrame.of_particles(p4)
    assert torch.isfinite(frame.velocity).all()
    assert torch.isfinite(rest).all()
    assert (rest[..., 0] >= rest[..., 1:].norm(dim=-1) - 1e-12).all()
    rest.sum().backward()
    assert torch.isfinite(p4.grad).all()


def test_gradient_of_a_particle_without_momentum_is_finite():
    p4 = torch.zeros(1, 3, 4, dtype=torch.float64, requires_grad=True)
    RestFrame.of_particles(p4)[1].sum().backward()
    assert torch.isfinite(p4.grad).all()


def test_massive_particles_keep_their_masses_and_products():
    momentum = torch.randn(20, 6, 3, dtype=torch.float64, generator=generator(5)) + torch.tensor([0.0, 0, 3])
    mass = torch.linspace(0, 2, 6, dtype=torch.float64).expand(20, 6)
    p4 = torch.cat([(momentum.square().sum(-1, keepdim=True) + mass.square().unsqueeze(-1)).sqrt(), momentum], -1)
    frame, rest = RestFrame.of_particles(p4)
    expected = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64).expand(20, 4)
    torch.testing.assert_close(rest.sum(1), expected, atol=1e-12, rtol=0)
    gram = [minkowski(x.unsqueeze(1), x.unsqueeze(2)) for x in (p4 / frame.mass[:, None, None], rest)]
    torch.testing.assert_close(gram[1], gram[0], atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(frame.to_lab(rest), p4)
