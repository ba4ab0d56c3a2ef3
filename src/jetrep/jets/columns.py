"""The names and units of what data sets measure beside four-vectors, the same for every source.

Sources translate their own names, signs and units into these, so that a feature means the same wherever it was read.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from particle.pdgid import charge as charge_of

__all__ = ["MEASURED", "particle_types"]

MEASURED: Mapping[str, str] = MappingProxyType(
    {
        "charge": "electric charge in units of e",
        "is_charged_hadron": "1 for a charged hadron",
        "is_neutral_hadron": "1 for a neutral hadron",
        "is_photon": "1 for a photon",
        "is_electron": "1 for an electron or positron",
        "is_muon": "1 for a muon",
        "d0": "transverse impact parameter, mm",
        "d0_error": "its error, mm",
        "dz": "longitudinal impact parameter, mm",
        "dz_error": "its error, mm",
        "pdg_id": "particle code of the Particle Data Group",
        "puppi_weight": "weight of the PUPPI pile-up subtraction, 0 to 1",
        "vertex": "0 leading vertex, above 0 pile-up, -1 unknown",
    }
)
"""Columns of `Jets.measured` that the project knows, with their units. Others may be stored too."""


def particle_types(pdg_id: NDArray[np.integer]) -> dict[str, NDArray[np.int8]]:
    """Charge and type flags of particles, as far as a detector tells them apart, from their PDG codes.

    Electrons, muons and photons are themselves; everything else is a hadron, charged or neutral.

    Args:
        pdg_id: (n,) codes; 0, and codes that the numbering scheme does not know, get charge 0, as do those of a charge
            beyond 127, which are damaged.

    Returns:
        (n,) int8 each: ``charge`` and the five flags of `MEASURED`; a code of 0 gets no flag.
    """
    # A data set holds a dozen different codes, so each is looked up once.
    codes, which = np.unique(pdg_id, return_inverse=True)
    charges = [round(charge_of(int(code)) or 0) for code in codes]
    charge = np.array([z if abs(z) <= 127 else 0 for z in charges], np.int8)[which.reshape(-1)]
    code = np.abs(pdg_id)
    electron, muon, photon = code == 11, code == 13, code == 22
    hadron = ~(electron | muon | photon) & (code != 0)
    flags = {
        "is_charged_hadron": hadron & (charge != 0),
        "is_neutral_hadron": hadron & (charge == 0),
        "is_photon": photon,
        "is_electron": electron,
        "is_muon": muon,
    }
    return {"charge": charge, **{name: flag.astype(np.int8) for name, flag in flags.items()}}
