r"""Four-vectors: the conventions of the whole project, stated once.

A four-vector is the last axis of an array, in the order **(E, px, py, pz)**, in GeV and natural units, with the
metric :math:`(+,-,-,-)`. Every function takes a NumPy array or a torch tensor of shape ``(..., 4)`` and
returns the same kind.

All functions are total: massless, soft (:math:`p_T \to 0`), very forward particles, and particles whose energy lies
below their momentum by rounding give finite values, and a zero vector gives zeros.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

__all__ = [
    "E",
    "PX",
    "PY",
    "PZ",
    "delta_phi",
    "eta",
    "from_ptetaphim",
    "mass",
    "mass2",
    "phi",
    "pt",
    "rapidity",
]

E, PX, PY, PZ = range(4)

# Smallest transverse momentum (GeV) used as a denominator: |η| stays below 81 for momenta up to 1e5 GeV in float32.
_TINY_PT = 1e-30

Array = TypeVar("Array", NDArray[Any], "torch.Tensor")


def _namespace(x: Any) -> Any:
    """The module whose functions act on ``x``: torch for tensors, NumPy otherwise (torch is never imported here)."""
    torch_module = sys.modules.get("torch")
    return torch_module if torch_module is not None and isinstance(x, torch_module.Tensor) else np


def pt(p4: Array) -> Array:
    """Transverse momentum in GeV, shape ``(...)``."""
    return _namespace(p4).hypot(p4[..., PX], p4[..., PY])


def phi(p4: Array) -> Array:
    """Azimuth in :math:`(-\\pi, \\pi]`, shape ``(...)``."""
    return _namespace(p4).arctan2(p4[..., PY], p4[..., PX])


def eta(p4: Array) -> Array:
    """Pseudorapidity :math:`\\mathrm{arsinh}(p_z/p_T)`, shape ``(...)``; large but finite along the beam."""
    xp = _namespace(p4)
    return xp.arcsinh(p4[..., PZ] / xp.clip(pt(p4), _TINY_PT, None))


def mass2(p4: Array) -> Array:
    """Invariant mass squared :math:`(E-|p|)(E+|p|)` in GeV², shape ``(...)``; negative if E < \\|p\\| by rounding."""
    xp = _namespace(p4)
    momentum = xp.hypot(pt(p4), p4[..., PZ])
    return (p4[..., E] - momentum) * (p4[..., E] + momentum)


def mass(p4: Array) -> Array:
    """Invariant mass in GeV, shape ``(...)``; zero where rounding makes the vector space-like."""
    xp = _namespace(p4)
    return xp.sqrt(xp.clip(mass2(p4), 0.0, None))


def rapidity(p4: Array) -> Array:
    """Rapidity :math:`\\mathrm{sign}(p_z)\\,\\ln\\frac{E+|p_z|}{m_T}`, shape ``(...)``.

    Algebraically ½ ln((E+pz)/(E−pz)), without the cancellation in E − pz; negative m² counts as zero. Finite along
    the beam, where it is as large as the floor of 1e-30 GeV on m_T allows.
    """
    xp = _namespace(p4)
    pz = p4[..., PZ]
    m_t = xp.clip(xp.hypot(pt(p4), mass(p4)), _TINY_PT, None)
    # A space-like vector counts as massless, so that the logarithm is never negative.
    energy = xp.maximum(p4[..., E], xp.hypot(pt(p4), pz))
    return xp.sign(pz) * xp.log(xp.clip(energy + xp.abs(pz), _TINY_PT, None) / m_t)


def delta_phi(a: Array, b: Array) -> Array:
    """Signed azimuthal difference ``a - b``, wrapped into :math:`[-\\pi, \\pi)`."""
    return (a - b + np.pi) % (2 * np.pi) - np.pi


def from_ptetaphim(pt: Array, eta: Array, phi: Array, mass: Array) -> Array:
    """Four-vectors ``(..., 4)`` from transverse momentum, pseudorapidity, azimuth and mass (GeV), all of shape ``(...)``."""
    xp = _namespace(pt)
    px, py, pz = pt * xp.cos(phi), pt * xp.sin(phi), pt * xp.sinh(eta)
    energy = xp.sqrt((pt * xp.cosh(eta)) ** 2 + mass**2)
    return xp.stack([energy, px, py, pz], -1)
