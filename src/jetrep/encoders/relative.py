"""Particles relative to the axis of their jet, and back: what the baselines that are not equivariant work with."""

from __future__ import annotations

import torch
from torch import Tensor

from jetrep.encoders.base import Encoded
from jetrep.features import ModelInput
from jetrep.physics import fourvector as fv

__all__ = ["absolute", "counted", "encoded", "hardest", "momenta_in", "momenta_of", "pt_eta_phi", "relative"]

_TINY = 1e-30  # GeV
_MAX_ETA = 70.0  # beyond `fourvector.eta` of any momentum
_SURE = 20.0


def pt_eta_phi(p4: Tensor) -> Tensor:
    """Transverse momentum, pseudorapidity and azimuth (..., 3) of momenta (..., 4), in float64, zero for zero momenta.

    Unlike those of `jetrep.physics.fourvector`, they have finite gradients where the transverse momentum vanishes.
    """
    energy, px, py, pz = p4.double().unbind(-1)
    px = torch.where((px == 0) & (py == 0), _TINY, px)
    p4 = torch.stack([energy, px, py, pz], -1)
    pt = fv.pt(p4)
    return torch.stack([pt.masked_fill(pt <= _TINY, 0.0), fv.eta(p4), fv.phi(p4)], -1)


def relative(p4: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Jets, and their particles as seen from their axes.

    Shares are those of the scalar sum of pT, which no cancellation makes smaller than a particle's.

    Args:
        p4: (batch, n, 4) momenta in GeV.
        mask: (batch, n) bool, True for a real particle.

    Returns:
        (batch, 3) scalar sum of pT in GeV, η and φ of the summed momentum; (batch, n, 3) share of pT, Δη, Δφ, zero
        where padded or without momentum. Both float64.
    """
    p4 = p4.double().masked_fill(~mask.unsqueeze(-1), 0.0)
    axis, particles = pt_eta_phi(p4.sum(1)), pt_eta_phi(p4)
    pt, eta, phi = particles.unbind(-1)
    total = pt.sum(1)
    share = pt / total.clamp(min=_TINY).unsqueeze(1)
    seen = torch.stack([share, eta - axis[:, 1:2], fv.delta_phi(phi, axis[:, 2:])], -1)
    nothing = (p4[..., 1:] == 0).all(-1, keepdim=True)
    return torch.cat([total.unsqueeze(1), axis[:, 1:]], 1), seen.masked_fill(nothing, 0.0)


def absolute(jet: Tensor, seen: Tensor) -> Tensor:
    """The inverse of `relative` for massless particles: (batch, 3) and (batch, n, 3) → (batch, n, 4) float64 in GeV."""
    jet, seen = jet.double().unsqueeze(1), seen.double()
    return momenta_of(torch.cat([jet[..., :1] * seen[..., :1], jet[..., 1:] + seen[..., 1:]], -1))


def momenta_of(seen: Tensor) -> Tensor:
    """Massless momenta (..., 4) float64 in GeV of transverse momenta, pseudorapidities and azimuths (..., 3)."""
    pt, eta, phi = seen.double().unbind(-1)
    eta = eta.clamp(-_MAX_ETA, _MAX_ETA)
    return torch.stack([pt * torch.cosh(eta), pt * torch.cos(phi), pt * torch.sin(phi), pt * torch.sinh(eta)], -1)


def hardest(key: Tensor, mask: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The ``n`` real particles of each jet with the largest ``key``, in falling order.

    Args:
        key: (batch, m) transverse momenta, or whatever tells hard from soft.
        mask: (batch, m) bool, True for a real particle.
        n: how many.

    Returns:
        (batch, n) their places, int64, and (batch, n) bool, False where there are no more.
    """
    order = torch.argsort(key.masked_fill(~mask, -torch.inf), dim=1, descending=True, stable=True)[:, :n]
    order = torch.nn.functional.pad(order, (0, n - order.shape[1]))
    return order, torch.arange(n, device=mask.device) < mask.sum(1, keepdim=True)


def counted(multiplicity: Tensor, n: int) -> Tensor:
    """Logits (batch, n) of the presence of slots where the multiplicity (batch,) is known: the first are there."""
    slots = torch.arange(n, device=multiplicity.device) + 0.5
    return _SURE * (multiplicity.unsqueeze(1) - slots)


def encoded(cls: Tensor, tokens: Tensor, mask: Tensor) -> Encoded:
    """`Encoded` of (batch, width) jets and (batch, n, width) particles."""
    batch, n = mask.shape
    rows = torch.arange(batch * (n + 1), device=mask.device)
    return Encoded(torch.cat([cls, tokens.flatten(0, 1)]), rows[:batch], rows[batch:].view(batch, n), mask)


def momenta_in(view: ModelInput) -> Tensor:
    """The four-vectors of a view.

    Raises:
        ValueError: if it has none.
    """
    if view.p4 is None:
        raise ValueError("the encoder needs the four-vectors of the particles: see ModelInput.p4")
    return view.p4
