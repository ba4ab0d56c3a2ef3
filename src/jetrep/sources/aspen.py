"""Aspen Open Jets: jets of real CMS collisions of 2016.

O. Amram et al., "Aspen Open Jets", arXiv:2412.10504; doi:10.25592/uhhfdm.16505. AK8 jets (anti-kT, R = 0.8) with
pT > 300 GeV and |η| < 2.5 from the JetHT stream of the CMS Open Data, at 13 TeV.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jetrep.jets import Jets
from jetrep.jets.columns import particle_types
from jetrep.sources._hdf5 import Hdf5, Table, blocks
from jetrep.sources._particles import Flat, flat, particle_flow_codes
from jetrep.sources.chunks import Chunk, existing_files, without_padding

__all__ = ["AspenOpenJets"]

_OFFICIAL = "give an official file of Aspen Open Jets, doi:10.25592/uhhfdm.16505"
_MM = 10.0  # in a centimetre
_TAGGING = ("n_constituents", "jet_tau1", "jet_tau2", "jet_tau3", "jet_tau4")
_E, _PX, _PY, _PZ = 3, 0, 1, 2
_D0, _D0_ERROR, _DZ, _DZ_ERROR, _CHARGE, _CODE, _WEIGHT = range(4, 11)


class AspenOpenJets:
    """Jets of collisions; nobody knows their class, so they are always unlabelled.

    HDF5 files hold ``event_info`` (n_jets, 3) = run, luminosity block, event; ``jet_kinematics`` (n_jets, 4) = pT, η,
    φ, soft-drop mass; ``PFCands`` (n_jets, 150, 11) = px, py, pz, E, d0 and its error, dz and its error, charge, code,
    PUPPI weight, zero-padded; ``jet_tagging`` (n_jets, 5 or more), number of constituents and τ1 … τ4 first.

    CMS weights the candidates of AK8 jets with PUPPI, which subtracts pile-up. The files hold unweighted momenta: with
    ``puppi`` all four components are multiplied by the weight, and candidates of weight 0 are left out; without it
    they are as in the file. The observer ``n_constituents`` is that of the file either way.

    Measured: ``charge``, the type flags, ``pdg_id``, ``puppi_weight``, and ``d0``, ``d0_error``, ``dz``, ``dz_error``
    in mm. CMS gives lengths in cm, so those of the file are multiplied by 10; that its numbers are in cm is the
    convention of CMS, not verified on these files. CMS marks candidates without a track with an error below zero: all
    four numbers are 0 for them. Deposits in the forward calorimeter, which CMS codes 1 and 2, are read as neutral
    hadrons (130) and photons (22).

    Observers: ``run``, ``lumi``, ``event``, ``jet_pt``, ``jet_eta``, ``jet_phi``, ``jet_sdmass`` (calibrated by CMS,
    so they differ a little from the sum of the constituents), ``jet_tau1`` … ``jet_tau4``, ``n_constituents``.

    Args:
        files: HDF5 files.
        labels: without effect: there are none.
        puppi: multiply momenta by the PUPPI weights.

    Attributes:
        classes: ().
        files: the files.
        rows: number of jets of each.

    Raises:
        InputError: if a file is missing, damaged or of another schema.
    """

    def __init__(self, files: Sequence[Path], *, labels: bool = True, puppi: bool = True) -> None:
        self.files = existing_files(files)
        self.classes: tuple[str, ...] = ()
        self._puppi = puppi
        self.rows = []
        for file in self.files:
            with Hdf5(file, _OFFICIAL) as hdf5:
                self.rows.append(hdf5.rows(*_tables(hdf5)))

    def read(self, file: int, start: int, stop: int) -> Iterator[Chunk]:
        """Jets ``start:stop`` of one file.

        Raises:
            InputError: if the file proves to be damaged.
        """
        path = self.files[file]
        with Hdf5(path, _OFFICIAL) as hdf5:
            candidates, events, kinematics, tagging = _tables(hdf5)
            for begin, end in blocks(start, stop, candidates.row_bytes):
                padded = candidates.read(begin, end)
                real = flat(padded, (padded[:, :, :4] != 0).any(2))
                momenta = real.particles[:, [_E, _PX, _PY, _PZ]]
                if self._puppi:
                    with np.errstate(all="ignore"):
                        momenta *= real.particles[:, [_WEIGHT]]
                p4, offsets, measured = without_padding(momenta, real.counts, _measured(real))
                observers = {
                    **_columns(events.read(begin, end), ("run", "lumi", "event")),
                    **_columns(kinematics.read(begin, end), ("jet_pt", "jet_eta", "jet_phi", "jet_sdmass")),
                    **_columns(tagging.read(begin, end), _TAGGING),
                }
                yield Chunk(Jets(p4, offsets, measured=measured, observers=observers), path, begin)


def _tables(hdf5: Hdf5) -> tuple[Table, Table, Table, Table]:
    tagging = hdf5.table("jet_tagging", "jets", "columns")
    if tagging.shape[1] < len(_TAGGING):
        raise hdf5.error(f"has {tagging.shape[1]} columns, fewer than {len(_TAGGING)}", "jet_tagging")
    return (
        hdf5.table("PFCands", "jets", "candidates", 11),
        hdf5.table("event_info", "jets", 3),
        hdf5.table("jet_kinematics", "jets", 4),
        tagging,
    )


def _columns(table: NDArray[Any], names: Sequence[str]) -> dict[str, NDArray[Any]]:
    return {name: table[:, k].copy() for k, name in enumerate(names)}


def _measured(real: Flat) -> dict[str, NDArray[Any]]:
    """What was measured of each candidate, (n_particles,) each."""
    values = real.particles
    codes = particle_flow_codes(values[:, _CODE])
    with np.errstate(all="ignore"):
        columns: dict[str, NDArray[Any]] = {
            **particle_types(codes),
            "charge": np.nan_to_num(np.clip(values[:, _CHARGE], -128, 127)).astype(np.int8),
            "pdg_id": codes,
            "puppi_weight": values[:, _WEIGHT].astype(np.float32),
        }
        for name, value, error in (("d0", _D0, _D0_ERROR), ("dz", _DZ, _DZ_ERROR)):
            track = values[:, error] >= 0
            columns[name] = np.where(track, _MM * values[:, value], 0).astype(np.float32)
            columns[f"{name}_error"] = np.where(track, _MM * values[:, error], 0).astype(np.float32)
    return columns
