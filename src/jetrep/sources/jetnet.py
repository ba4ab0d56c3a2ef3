"""JetNet: gluon, light-quark, top, W and Z jets with their 30 or 150 hardest particles.

R. Kansal et al., "Particle Cloud Generation with Message Passing Generative Adversarial Networks", arXiv:2106.11535;
doi:10.5281/zenodo.6975118 (30 particles) and doi:10.5281/zenodo.6975117 (150). MadGraph + Pythia 8 at 13 TeV, anti-kT
jets with R = 0.8 and pT of about 1 TeV.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.sources._hdf5 import Hdf5, Table, blocks
from jetrep.sources._particles import flat, massless
from jetrep.sources.chunks import Chunk, existing_files, without_padding

__all__ = ["CLASSES", "JetNet"]

CLASSES = ("g", "q", "t", "w", "z")

_OFFICIAL = "give an official file of zenodo.org/records/6975118 or 6975117"


class JetNet:
    r"""Jets of JetNet, from relative coordinates to four-vectors.

    Each HDF5 file holds the jets of one class: ``particle_features`` (n_jets, 30 or 150, 4) = η_rel, φ_rel, pT_rel and
    a mask (1 = particle), ``jet_features`` (n_jets, 4) = pT (GeV), η, mass (GeV) and number of particles. Particles
    are massless:

    .. math:: p_T = p_T^{rel}\,p_T^{jet}, \quad \eta = \eta^{rel} + \eta^{jet}, \quad \phi = \phi^{rel} + \phi^{jet}

    Differences are taken with their plain signs, as the authors' library does; none is reflected with the sign of
    η_jet. (A reflection would change no mass and no distance, so files cannot tell.)

    **The azimuth of the jets is not stored.** It is drawn, uniformly in [−π, π), as a pure function of the seed, the
    name of the file without its ending, and the row, and kept as observer ``jet_phi``. The numbers are those of the
    counter-based generator Philox.

    Jets were truncated to their hardest particles, so their summed pT and mass lie below the observers ``jet_pt`` and
    ``jet_mass`` of the whole jet.

    Args:
        files: ``g.hdf5``, ``q.hdf5`` … or ``g150.hdf5`` …; the letter tells the class.
        labels: read the labels.
        seed: of the azimuths.

    Attributes:
        classes: ("g", "q", "t", "w", "z"), or () without labels.
        files: the files.
        rows: number of jets of each.

    Raises:
        InputError: if a file is missing, damaged or of another schema, a name tells no class, or files with 30 and
            with 150 particles are mixed.
    """

    def __init__(self, files: Sequence[Path], *, labels: bool = True, seed: int = 0) -> None:
        self.files = existing_files(files)
        self.classes: tuple[str, ...] = CLASSES if labels else ()
        self._seed = seed
        self._labels = [_label(file) for file in self.files] if labels else []
        self.rows = []
        widths = []
        for file in self.files:
            with Hdf5(file, _OFFICIAL) as hdf5:
                particles, jets = _tables(hdf5)
                self.rows.append(hdf5.rows(particles, jets))
                widths.append(particles.shape[1])
        for file, width in zip(self.files, widths, strict=True):
            if width != widths[0]:
                raise InputError(
                    f"has up to {width} particles a jet, {self.files[0]} up to {widths[0]}",
                    file=file,
                    field="particle_features",
                    remedy="give files of JetNet30 or of JetNet150",
                )

    def read(self, file: int, start: int, stop: int) -> Iterator[Chunk]:
        """Jets ``start:stop`` of one file.

        Raises:
            InputError: if the file proves to be damaged, or a mask is neither 0 nor 1.
        """
        path = self.files[file]
        with Hdf5(path, _OFFICIAL) as hdf5:
            particles, jets = _tables(hdf5)
            for begin, end in blocks(start, stop, particles.row_bytes):
                padded, whole = particles.read(begin, end), jets.read(begin, end).astype(np.float64)
                mask = padded[:, :, 3]
                proper = ((mask == 0) | (mask == 1)).all(1)
                if not proper.all():
                    jet = int(np.argmin(proper))
                    raise hdf5.error("the mask is neither 0 nor 1", "particle_features", begin + jet)
                rows, counts, jet_of = flat(padded, mask == 1)
                azimuth = _azimuths(self._seed, path.stem, begin, end)
                with np.errstate(all="ignore"):
                    momenta = massless(
                        rows[:, 2] * whole[jet_of, 0], rows[:, 0] + whole[jet_of, 1], rows[:, 1] + azimuth[jet_of]
                    )
                p4, offsets, _ = without_padding(momenta, counts)
                names = ("jet_pt", "jet_eta", "jet_mass", "jet_nparticles")
                observers = {name: whole[:, k].copy() for k, name in enumerate(names)} | {"jet_phi": azimuth}
                labels = np.full(end - begin, self._labels[file]) if self.classes else None
                yield Chunk(Jets(p4, offsets, labels, self.classes, observers=observers), path, begin)


def _tables(hdf5: Hdf5) -> tuple[Table, Table]:
    return hdf5.table("particle_features", "jets", "particles", 4), hdf5.table("jet_features", "jets", 4)


def _label(file: Path) -> int:
    match = re.fullmatch(r"([gqtwz])\d*", file.stem)
    if match is None:
        raise InputError(
            f"the name tells no class, which are {', '.join(CLASSES)}",
            file=file,
            remedy="name it g.hdf5, q150.hdf5 …, or read it without labels",
        )
    return CLASSES.index(match[1])


def _azimuths(seed: int, name: str, start: int, stop: int) -> NDArray[np.float64]:
    """Azimuths in [−π, π) of the jets ``start:stop``: the number ``row`` of a stream that seed and name determine."""
    key = int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16).digest(), "little")
    # One step of the counter gives four numbers.
    stream = np.random.Philox(key=key, counter=start // 4)
    raw = np.asarray(stream.random_raw(start % 4 + stop - start))[start % 4 :]
    return ((raw >> np.uint64(11)).astype(np.float64) / 2**53 - 0.5) * 2 * math.pi
