"""Z + jet events of two generators, at generator level and after Delphes.

A. Andreassen, P. Komiske, E. Metodiev, B. Nachman, J. Thaler, "OmniFold: A Method to Simultaneously Unfold All
Observables", arXiv:1911.09107; doi:10.5281/zenodo.3548091. Herwig 7.1.5 and Pythia 8.243 with tunes 21, 25 and 26 at
14 TeV, Delphes with the CMS card, anti-kT jets with R = 0.4, the hardest of each event with a Z above 200 GeV.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.sources._hdf5 import blocks
from jetrep.sources._particles import UNKNOWN_CODE, code_columns, flat, from_ptyphim, jets_with, masses
from jetrep.sources.chunks import Chunk, existing_files, without_padding
from jetrep.sources.npz import Column, Npz

__all__ = ["CLASSES", "OmniFold"]

CLASSES = ("Herwig", "Pythia21", "Pythia25", "Pythia26")

Level = Literal["detector", "generator"]

_OFFICIAL = "give an official file of zenodo.org/records/3548091"
_PREFIX: Mapping[Level, str] = {"detector": "sim", "generator": "gen"}
_PT_UNIT = 100.0  # GeV
# The code of the Particle Data Group for the file's 0.0, 0.1, 0.2 …
_CODES = np.array([22, 211, -211, 130, 11, -11, 13, -13, 321, -321, 2212, -2212, 2112, -2112], np.int32)
_OBSERVERS = {
    "jet_nparticles": "mults",
    "jet_lha": "lhas",
    "jet_width": "widths",
    "jet_ang2": "ang2s",
    "jet_tau2": "tau2s",
    "jet_sdmass": "sdms",
    "jet_zg": "zgs",
}


class OmniFold:
    r"""Jets of Z + jet events, labelled by their generator and tune.

    ``.npz`` files hold, under ``sim_`` for the detector and ``gen_`` for the generator, ``jets`` (n_jets, 4) = pT
    (GeV), rapidity y, φ, mass; ``particles`` (n_jets, n, 4) = pT/100 GeV, y − y_jet, φ − φ_jet and a number for the
    kind of particle, zero-padded; and observables of the jets. With the mass m of its kind, a particle has

    .. math:: p_T = 100\,p_T^{file}, \quad y = y^{file} + y^{jet}, \quad \phi = \phi^{file} + \phi^{jet}, \quad
        E = \sqrt{p_T^2 + m^2}\,\cosh y

    At detector level only tracks have a mass: photons and neutral hadrons are cells of the calorimeters there, which
    Delphes makes massless. Differences have their plain signs.

    The jets at detector level carry a correction of their energy, so that their observer ``jet_pt`` differs from the
    sum of the constituents, which are as in the file.

    Measured: ``charge``, the type flags, ``pdg_id``. Observers: ``jet_pt``, ``jet_y``, ``jet_phi``, ``jet_m``, and
    those that the files have of ``jet_nparticles``, ``jet_lha``, ``jet_width``, ``jet_ang2``, ``jet_tau2``,
    ``jet_sdmass`` and ``jet_zg``. Jets with a number that stands for no kind of particle are flagged "unknown particle
    code".

    Args:
        files: ``Herwig_Zjet_pTZ-200GeV_0.npz``, ``Pythia21_…``; files with other names have no labels.
        labels: read the labels from the names.
        level: read what the detector saw, or what the generator made.

    Attributes:
        classes: ("Herwig", "Pythia21", "Pythia25", "Pythia26"), or () without labels.
        files: the files.
        rows: number of jets of each.

    Raises:
        InputError: if a file is missing, damaged or of another schema, or the names of only some tell a class.
    """

    def __init__(self, files: Sequence[Path], *, labels: bool = True, level: Level = "detector") -> None:
        if level not in _PREFIX:
            raise InputError(f"is '{level}'", field="level", remedy="give 'detector' or 'generator'")
        self.files = existing_files(files)
        self._prefix, self._massless_cells = _PREFIX[level], level == "detector"
        found = [_label(file) for file in self.files]
        known = [label for label in found if label is not None]
        if labels and known and len(known) < len(found):
            raise InputError(
                f"the name tells no class, which are {', '.join(CLASSES)}; that of {self.files[found.index(known[0])]}"
                " does",
                file=self.files[found.index(None)],
                remedy="name it Herwig_….npz, Pythia21_….npz …, or read all without labels",
            )
        self._labels = known if labels else []
        self.classes: tuple[str, ...] = CLASSES if self._labels else ()
        self.rows = []
        observed = []
        for file in self.files:
            with Npz(file, _OFFICIAL) as archive:
                columns = self._columns(archive)
                self.rows.append(columns["jets"].rows)
                observed.append(list(columns))
                if observed[-1] != observed[0]:
                    raise InputError(f"has other arrays than {self.files[0]}", file=file, remedy=_OFFICIAL)

    def read(self, file: int, start: int, stop: int) -> Iterator[Chunk]:
        """Jets ``start:stop`` of one file; those before ``start`` are passed over.

        Raises:
            InputError: if the file proves to be damaged.
        """
        path = self.files[file]
        with Npz(path, _OFFICIAL) as archive:
            columns = self._columns(archive)
            for column in columns.values():
                column.skip(start)
            for begin, end in blocks(start, stop, columns["particles"].row_bytes):
                values = {name: column.read(end - begin) for name, column in columns.items()}
                padded, axes = values.pop("particles"), values.pop("jets").astype(np.float64)
                rows, counts, jet_of = flat(padded, padded[:, :, 0] != 0)
                codes, known = _codes(rows[:, 3])
                mass, _ = masses(codes)
                measured = code_columns(codes)
                if self._massless_cells:
                    mass[measured["charge"] == 0] = 0
                with np.errstate(all="ignore"):
                    momenta = from_ptyphim(
                        _PT_UNIT * rows[:, 0], rows[:, 1] + axes[jet_of, 1], rows[:, 2] + axes[jet_of, 2], mass
                    )
                p4, offsets, measured = without_padding(momenta, counts, measured)
                observers = {name: axes[:, k].copy() for k, name in enumerate(("jet_pt", "jet_y", "jet_phi", "jet_m"))}
                labels = np.full(end - begin, self._labels[file]) if self.classes else None
                jets = Jets(p4, offsets, labels, self.classes, measured=measured, observers=observers | values)
                yield Chunk(jets, path, begin, {UNKNOWN_CODE: jets_with(~known, jet_of, len(jets))})

    def _columns(self, archive: Npz) -> dict[str, Column]:
        """Particles, jets and observers of a file, by the names of this project."""
        names = {"particles": "particles", "jets": "jets"}
        names |= {ours: name for ours, name in _OBSERVERS.items() if f"{self._prefix}_{name}" in archive.names}
        columns = {ours: archive.column(f"{self._prefix}_{name}", any_order=True) for ours, name in names.items()}
        rows = columns["jets"].rows
        for ours, column in columns.items():
            axes, wanted = {"particles": (3, "(jets, particles, 4)"), "jets": (2, "(jets, 4)")}.get(
                ours, (1, "(jets,)")
            )
            if len(column.shape) != axes or (axes > 1 and column.shape[-1] != 4):
                problem = f"has shape {column.shape}, not {wanted}"
            elif column.rows != rows:
                problem = f"has {column.rows} rows, {self._prefix}_jets {rows}"
            else:
                continue
            raise InputError(problem, file=archive.file, field=column.name, remedy=_OFFICIAL)
        return columns


def _label(file: Path) -> int | None:
    match = re.fullmatch(rf"({'|'.join(CLASSES)})(?:_.*)?", file.stem, re.IGNORECASE)
    return None if match is None else [name.lower() for name in CLASSES].index(match[1].lower())


def _codes(numbers: NDArray[Any]) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Codes (n,) of the Particle Data Group for the file's numbers, 0 where there is none, and where there is one."""
    with np.errstate(invalid="ignore"):
        tenths = np.round(numbers * 10)
        known = (np.abs(numbers * 10 - tenths) < 0.01) & (tenths >= 0) & (tenths < len(_CODES))
    return np.where(known, _CODES[np.where(known, tenths, 0).astype(np.int64)], 0).astype(np.int32), known
