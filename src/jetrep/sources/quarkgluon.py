"""Quark and gluon jets of EnergyFlow, without detector, from Pythia 8 and from Herwig 7.

P. Komiske, E. Metodiev, J. Thaler, "Energy Flow Networks: Deep Sets for Particle Jets", arXiv:1810.05165;
doi:10.5281/zenodo.3164691 (Pythia) and doi:10.5281/zenodo.3066475 (Herwig). Z(→νν) + jet at 14 TeV, anti-kT jets with
R = 0.4, 500 < pT < 550 GeV and |y| < 1.7.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.sources._hdf5 import blocks
from jetrep.sources._particles import (
    UNKNOWN_CODE,
    code_columns,
    flat,
    from_ptyphim,
    jets_with,
    masses,
    whole_codes,
)
from jetrep.sources.chunks import Chunk, check_labels, existing_files, without_padding
from jetrep.sources.npz import Column, Npz

__all__ = ["CLASSES", "QuarkGluon"]

CLASSES = ("gluon", "quark")

_OFFICIAL = "give an official file of zenodo.org/records/3164691 or 3066475"


class QuarkGluon:
    r"""Quark and gluon jets.

    ``.npz`` files hold ``X`` (n_jets, n, 4) = pT (GeV), **rapidity** y, φ and code of the Particle Data Group,
    zero-padded, and ``y`` (n_jets,), 1 for quarks. Particles get the masses that belong to their codes:

    .. math:: m_T = \sqrt{p_T^2 + m^2}, \quad E = m_T \cosh y, \quad p_z = m_T \sinh y

    This is what the files mean: pT, y and mass are those of the generator. Widespread converters instead take y for
    the pseudorapidity of massless particles; their jets have the same pT, y and φ for each particle, and energies and
    jet masses that are a little lower.

    Measured: ``charge``, the type flags, ``pdg_id``. Jets with a code that is no known particle are flagged "unknown
    particle code" (such particles count as massless).

    Args:
        files: ``QG_jets.npz``, ``QG_jets_1.npz`` …, ``QG_jets_withbc_0.npz`` …
        labels: read the labels.

    Attributes:
        classes: ("gluon", "quark"), or () without labels.
        files: the files.
        rows: number of jets of each.

    Raises:
        InputError: if a file is missing, damaged or of another schema.
    """

    def __init__(self, files: Sequence[Path], *, labels: bool = True) -> None:
        self.files = existing_files(files)
        self.classes: tuple[str, ...] = CLASSES if labels else ()
        self.rows = []
        for file in self.files:
            with Npz(file, _OFFICIAL) as archive:
                particles = _particles(archive)
                self.rows.append(particles.rows)
                if labels and archive.column("y").shape != (particles.rows,):
                    raise InputError(
                        f"has shape {archive.column('y').shape} for {particles.rows} jets",
                        file=file,
                        field="y",
                        remedy=_OFFICIAL,
                    )

    def read(self, file: int, start: int, stop: int) -> Iterator[Chunk]:
        """Jets ``start:stop`` of one file; those before ``start`` are passed over.

        Raises:
            InputError: if the file proves to be damaged, or a label is not 0 or 1.
        """
        path = self.files[file]
        with Npz(path, _OFFICIAL) as archive:
            particles = _particles(archive)
            particles.skip(start)
            truth = archive.column("y") if self.classes else None
            if truth is not None:
                truth.skip(start)
            for begin, end in blocks(start, stop, particles.row_bytes):
                padded = particles.read(end - begin)
                rows, counts, jet_of = flat(padded, padded[:, :, 0] != 0)
                codes = whole_codes(rows[:, 3])
                mass, known = masses(codes)
                p4, offsets, measured = without_padding(
                    from_ptyphim(rows[:, 0], rows[:, 1], rows[:, 2], mass), counts, code_columns(codes)
                )
                labels = None
                if truth is not None:
                    labels = check_labels(
                        truth.read(end - begin), file=path, field="y", start=begin, n_classes=len(CLASSES)
                    )
                jets = Jets(p4, offsets, labels, self.classes, measured=measured)
                yield Chunk(jets, path, begin, {UNKNOWN_CODE: jets_with(~known, jet_of, len(jets))})


def _particles(archive: Npz) -> Column:
    particles = archive.column("X", any_order=True)
    if len(particles.shape) != 3 or particles.shape[2] != 4:
        raise InputError(
            f"has shape {particles.shape}, not (jets, particles, 4)", file=archive.file, field="X", remedy=_OFFICIAL
        )
    return particles
