r"""Lorentz transformations and the canonical rest frame of a jet, in torch.

Four-vectors are the last axis, (E, px, py, pz), metric (+,−,−,−) as everywhere (`jetrep.physics.fourvector`). A
transformation Λ is a tensor ``(..., 4, 4)`` that acts on column vectors.

The pure boost to the frame in which the four-velocity u is at rest is

.. math:: E' = u^0 E - \vec u\cdot\vec p, \qquad \vec p\,' = \vec p + \vec u\,(\vec u\cdot\vec p/(1+u^0) - E),

which needs neither :math:`1-\beta^2` nor a division by the velocity. Two observers who see the same jet agree on the
momenta in its rest frame up to a rotation (Wigner's), so a rotation-covariant function of momenta in that frame is a
Lorentz-covariant function of momenta.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["METRIC", "RestFrame", "boost", "minkowski", "random_directions", "random_lorentz", "rotation", "transform"]

METRIC = (1.0, -1.0, -1.0, -1.0)
"""Diagonal of η."""

_TINY = 1e-30
_MIN_MASS = 1e-3  # GeV; far below the mass of any two resolved particles, and finite for one massless particle


def minkowski(a: Tensor, b: Tensor) -> Tensor:
    """Product a·b = E_a E_b − p_a·p_b of four-vectors ``(..., 4)``, shape ``(...)``."""
    return a[..., 0] * b[..., 0] - (a[..., 1:] * b[..., 1:]).sum(-1)


def transform(matrix: Tensor, p4: Tensor) -> Tensor:
    """Λp for four-vectors ``(..., 4)`` and transformations that broadcast with ``(..., 4, 4)``."""
    return (matrix @ p4.unsqueeze(-1)).squeeze(-1)


def boost(gamma: Tensor, direction: Tensor) -> Tensor:
    """Matrices (..., 4, 4) of active pure boosts: a particle at rest leaves with Lorentz factor γ.

    Args:
        gamma: (...) Lorentz factors, 1 or more.
        direction: (..., 3) unit vectors.
    """
    u0 = gamma[..., None, None]
    u = torch.sqrt((gamma - 1) * (gamma + 1))[..., None] * direction
    space = torch.eye(3, dtype=u.dtype, device=u.device) + u.unsqueeze(-1) * u.unsqueeze(-2) / (1 + u0)
    top = torch.cat([u0, u.unsqueeze(-2)], -1)
    return torch.cat([top, torch.cat([u.unsqueeze(-1), space], -1)], -2)


def rotation(axis: Tensor, angle: Tensor) -> Tensor:
    """Matrices (..., 4, 4) of rotations by ``angle`` (...) about unit vectors ``axis`` (..., 3) (Rodrigues)."""
    x, y, z = axis.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).view(*x.shape, 3, 3)
    sin, cos = torch.sin(angle)[..., None, None], torch.cos(angle)[..., None, None]
    space = torch.eye(3, dtype=axis.dtype, device=axis.device) + sin * cross + (1 - cos) * (cross @ cross)
    matrix = torch.zeros(*axis.shape[:-1], 4, 4, dtype=axis.dtype, device=axis.device)
    matrix[..., 0, 0] = 1.0
    matrix[..., 1:, 1:] = space
    return matrix


def random_directions(n: int, generator: torch.Generator | None = None) -> Tensor:
    """(n, 3) unit vectors, uniform on the sphere, float64, on the CPU."""
    normal = torch.randn(n, 3, dtype=torch.float64, generator=generator)
    unit: Tensor = normal / torch.linalg.vector_norm(normal, dim=-1, keepdim=True)
    return unit


def random_lorentz(gamma: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """(n, 4, 4) random rotations, then boosts by ``gamma`` (n,) in random directions, float64, on the CPU."""
    angle = 2 * torch.pi * torch.rand(len(gamma), dtype=torch.float64, generator=generator)
    turned = rotation(random_directions(len(gamma), generator), angle)
    return boost(gamma.double(), random_directions(len(gamma), generator)) @ turned


def _distance2(a: Tensor, b: Tensor) -> Tensor:
    """|a − b|² of (..., 3), without an array of the differences."""
    x, y, z = (a[..., k] - b[..., k] for k in range(3))
    return x * x + y * y + z * z


@dataclass(frozen=True)
class RestFrame:
    """The rest frame of each jet, momenta in units of the jet mass. All arithmetic is in float64.

    Coordinates of a particle of a jet at Lorentz factor γ are E ∓ p ~ 1/γ² apart: in float32 nothing is left of the
    masses at γ ~ 10³. In the rest frame all numbers are of order one, and float32 keeps them to seven digits.

    A massless jet has no rest frame. Its mass counts as ``_MIN_MASS``, so that the boost is defined and finite, but
    then it depends on the observer.

    Attributes:
        velocity: (..., 4) four-velocity u of the jet, u·u = 1.
        mass: (...) jet mass in GeV, at least 1 MeV.
    """

    velocity: Tensor
    mass: Tensor

    @classmethod
    def of_mass(cls, mass: Tensor, momentum: Tensor) -> RestFrame:
        """The rest frame of jets with masses (...) and momenta (..., 3) in GeV. Nothing cancels."""
        mass = mass.double().clamp(min=_MIN_MASS)
        u = momentum.double() / mass.unsqueeze(-1)
        # Not E/m: u·u = 1 must hold also where the mass is the smallest allowed.
        return cls(torch.cat([torch.sqrt(1 + u.square().sum(-1, keepdim=True)), u], -1), mass)

    @classmethod
    def of(cls, jet_p4: Tensor) -> RestFrame:
        """The rest frame of jets with four-momenta (..., 4) in GeV; γ² ε of the mass are lost (see `of_particles`)."""
        jet = jet_p4.double()
        size = torch.linalg.vector_norm(jet[..., 1:], dim=-1)
        mass = ((jet[..., 0] - size) * (jet[..., 0] + size)).clamp(min=_MIN_MASS**2).sqrt()
        return cls.of_mass(mass, jet[..., 1:])

    @classmethod
    def of_particles(cls, p4: Tensor) -> tuple[RestFrame, Tensor]:
        """The rest frame of jets, and their particles in it, in units of the mass: for any boost of the jet.

        With a machine precision ε, E − p of a particle of a jet at Lorentz factor γ is known to γ² ε, its direction to
        γ ε. So nothing here is a difference of energy and momentum: products of particles come from the angles between
        them, energies in the frame from the angles to the jet. A mass squared below rounding, m² < 16 ε E², negative
        ones among them, counts as zero.

        Args:
            p4: (..., n, 4) momenta in GeV, zero where padded.

        Returns:
            The frame, and (..., n, 4) float64 momenta, those of padding zero up to 1e-20.
        """
        rounding = 16 * torch.finfo(p4.dtype).eps
        energy, momentum = p4[..., 0].double(), p4[..., 1:].double()
        size = torch.linalg.vector_norm(momentum, dim=-1)
        mass2 = (energy - size) * (energy + size)
        mass2 = mass2.masked_fill(mass2 <= rounding * energy.square(), 0.0)
        # The floors, here and below, keep gradients at vanishing momenta finite.
        energy = torch.sqrt((size.square() + mass2).clamp(min=_TINY**2))
        direction = momentum / size.clamp(min=_TINY).unsqueeze(-1)
        jet = momentum.sum(-2)
        product, square = size.unsqueeze(-1) * size.unsqueeze(-2), size.square()
        massive = mass2.unsqueeze(-1) * (mass2 + square).unsqueeze(-2) + square.unsqueeze(-1) * mass2.unsqueeze(-2)
        aligned = massive / (energy.unsqueeze(-1) * energy.unsqueeze(-2) + product)  # E_i E_j − |p_i||p_j|
        gram = 0.5 * product * _distance2(direction.unsqueeze(-2), direction.unsqueeze(-3)) + aligned
        frame = cls.of_mass(gram.sum((-2, -1)).clamp(min=_MIN_MASS**2).sqrt(), jet)
        u0, u = frame.velocity[..., :1], frame.velocity[..., 1:]
        rapid = torch.linalg.vector_norm(u, dim=-1, keepdim=True)
        axis = (u / rapid.clamp(min=_TINY)).unsqueeze(-2)
        along = (energy.square() + rapid.square() * mass2) / (u0 * energy + rapid * size)  # u⁰E − |u||p|
        at_rest = along + 0.5 * rapid * size * _distance2(direction, axis)
        shift = u.unsqueeze(-2) * ((energy + at_rest) / (1 + u0)).unsqueeze(-1)
        scale = frame.mass.unsqueeze(-1)
        momentum = (momentum - shift) / scale.unsqueeze(-1)
        energy = torch.sqrt((momentum.square().sum(-1) + mass2 / scale.square()).clamp(min=_TINY**2))
        return frame, torch.cat([energy.unsqueeze(-1), momentum], -1)

    @property
    def jet_p4(self) -> Tensor:
        """(..., 4) four-momenta of the jets in GeV."""
        return self.velocity * self.mass.unsqueeze(-1)

    def to_rest(self, p4: Tensor) -> Tensor:
        """Momenta (..., n, 4) in GeV → in the frame, in units of the mass, float64."""
        return self._boosted(p4.double(), 1.0) / self.mass[..., None, None]

    def to_lab(self, p4: Tensor) -> Tensor:
        """Momenta (..., n, 4) in the frame → in GeV, float64: the inverse of `to_rest`."""
        return self._boosted(p4.double(), -1.0) * self.mass[..., None, None]

    def _boosted(self, p4: Tensor, sign: float) -> Tensor:
        u0, u = self.velocity[..., None, :1], sign * self.velocity[..., None, 1:]
        energy, momentum = p4[..., :1], p4[..., 1:]
        along = (u * momentum).sum(-1, keepdim=True)
        return torch.cat([u0 * energy - along, momentum + u * (along / (1 + u0) - energy)], -1)
