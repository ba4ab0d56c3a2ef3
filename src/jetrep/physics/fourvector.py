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
    "PX",
    "PY",
    "PZ",
    "E",
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

# Smallest denominator (GeV), absolute and relative to |pz|.
_TINY = 1e-30

Array = TypeVar("Array", NDArray[Any], "torch.Tensor")


def _namespace(x: Any) -> Any:
    """The module whose functions act on ``x``: torch for tensors, NumPy otherwise (torch is never imported here)."""
    torch_module = sys.modules.get("torch")
    return torch_module if torch_module is not None and isinstance(x, torch_module.Tensor) else np


def pt(p4: Array) -> Array:
    """Transverse momentum in GeV, shape ``(...)``."""
    result: Array = _namespace(p4).hypot(p4[..., PX], p4[..., PY])
    return result


def phi(p4: Array) -> Array:
    r"""Azimuth in :math:`[-\pi, \pi]`, shape ``(...)``."""
    result: Array = _namespace(p4).arctan2(p4[..., PY], p4[..., PX])
    return result


def eta(p4: Array) -> Array:
    r"""Pseudorapidity :math:`\mathrm{arsinh}(p_z/p_T)`, shape ``(...)``; large but finite along the beam."""
    result: Array = _arcsinh(p4[..., PZ] / _denominator(pt(p4), p4[..., PZ]))
    return result


def mass2(p4: Array) -> Array:
    r"""Invariant mass squared :math:`(E-|p|)(E+|p|)` in GeV², shape ``(...)``; negative if E < |p| by rounding."""
    momentum = _namespace(p4).hypot(pt(p4), p4[..., PZ])
    result: Array = (p4[..., E] - momentum) * (p4[..., E] + momentum)
    return result


def mass(p4: Array) -> Array:
    """Invariant mass in GeV, shape ``(...)``; zero where rounding makes the vector space-like."""
    xp = _namespace(p4)
    result: Array = xp.sqrt(xp.clip(mass2(p4), 0.0, None))
    return result


def rapidity(p4: Array) -> Array:
    r"""Rapidity :math:`\mathrm{arsinh}(p_z/m_T)`, shape ``(...)``.

    Algebraically ½ ln((E+pz)/(E−pz)), without the cancellation in E − pz, and exact for small rapidities too;
    negative m² counts as zero. Finite along the beam, where it is as large as the floor on m_T allows.
    """
    xp = _namespace(p4)
    m_t = xp.hypot(pt(p4), mass(p4))
    result: Array = _arcsinh(p4[..., PZ] / _denominator(m_t, p4[..., PZ]))
    return result


def _arcsinh(x: Array) -> Array:
    """Inverse hyperbolic sine, to the last digits in single precision too, for small and for huge ``x``.

    torch has no vectorised arcsinh on CPUs, but it has the logarithm of 1 + y:
    arsinh(a) = ln(1 + a + a²/(1 + √(1 + a²))) for a ≥ 0, and the function is odd.
    """
    xp: Any = _namespace(x)
    value: Any = x
    if xp is np:
        result: Array = np.arcsinh(value)
    else:
        sign = xp.copysign(xp.ones_like(value), value.detach())
        a = value * sign
        result = sign * xp.log1p(a + a * (a / (1 + xp.hypot(a, xp.ones_like(a)))))
    return result


def _denominator(transverse: Array, pz: Array) -> Array:
    """``transverse``, or what keeps |pz| / transverse at 1e30 or less: (pseudo)rapidities stay within ±69.8."""
    xp = _namespace(pz)
    result: Array = xp.maximum(xp.clip(transverse, _TINY, None), xp.abs(pz) * _TINY)
    return result


def delta_phi(a: Array, b: Array) -> Array:
    r"""Signed azimuthal difference ``a - b``, wrapped into :math:`[-\pi, \pi]`.

    Whole turns are taken away, so that small differences keep all their digits in single precision.
    """
    difference = a - b
    result: Array = difference - 2 * np.pi * _namespace(difference).round(difference / (2 * np.pi))
    return result


def from_ptetaphim(pt: Array, eta: Array, phi: Array, mass: Array) -> Array:
    """Four-vectors ``(..., 4)`` from transverse momentum, pseudorapidity, azimuth and mass (GeV), each ``(...)``."""
    xp = _namespace(pt)
    px, py, pz = pt * xp.cos(phi), pt * xp.sin(phi), pt * xp.sinh(eta)
    energy = xp.sqrt((pt * xp.cosh(eta)) ** 2 + mass**2)
    result: Array = xp.stack([energy, px, py, pz], -1)
    return result
