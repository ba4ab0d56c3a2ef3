"""The hls4ml jets: gluon, light-quark, W, Z and top jets with up to 150 particles.

E. Coleman et al., doi:10.5281/zenodo.3602260; used in arXiv:1804.06913 and arXiv:1908.05318. Generated at 13 TeV with
pT of about 1 TeV, anti-kT jets with R = 0.8.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jetrep.jets import Jets
from jetrep.sources._hdf5 import Hdf5, Table, blocks
from jetrep.sources._particles import code_columns, flat, whole_codes
from jetrep.sources.chunks import Chunk, existing_files, without_padding

__all__ = ["CLASSES", "Hls4ml"]

CLASSES = ("g", "q", "W", "Z", "t")

_OFFICIAL = "give an official file of zenodo.org/records/3602260"
_FLAGS = ("j_g", "j_q", "j_w", "j_z", "j_t")
_OBSERVERS = {"jet_pt": "j_pt", "jet_eta": "j_eta", "jet_mass": "j_mass"}
# The order of the columns that are used, for files that do not name them; most have 16 columns, without the code.
_ORDER = {"px": 0, "py": 1, "pz": 2, "e": 3, "pdgid": 16}
_COLUMNS = (16, 17)


class Hls4ml:
    """Jets of the hls4ml set.

    HDF5 files hold ``jetConstituentList`` (n_jets, 150, 16) with px, py, pz and E in GeV among its columns, padded
    with zeros, and ``jets`` (n_jets, 59) with one column for each class among the last six. Columns are found by
    their names in ``particleFeatureNames`` and ``jetFeatureNames``, and by the official order only where a file has
    no names. Padding is removed wherever it stands, and particles keep the order of the file.

    Four-vectors are the file's px, py, pz and E. Observers, where the file names them: ``jet_pt``, ``jet_eta``,
    ``jet_mass``. Measured, only in files with a column of particle codes: ``charge``, the type flags, ``pdg_id``.

    Args:
        files: ``jetImage_7_150p_0_10000.h5`` …
        labels: read the labels.

    Attributes:
        classes: ("g", "q", "W", "Z", "t"), or () without labels.
        files: the files.
        rows: number of jets of each.

    Raises:
        InputError: if a file is missing, damaged or of another schema, or only some have particle codes.
    """

    def __init__(self, files: Sequence[Path], *, labels: bool = True) -> None:
        self.files = existing_files(files)
        self.classes: tuple[str, ...] = CLASSES if labels else ()
        self.rows = []
        extras = []
        for file in self.files:
            with Hdf5(file, _OFFICIAL) as hdf5:
                layout = _layout(hdf5)
                self.rows.append(hdf5.rows(layout.particles, layout.jets))
                extras.append((layout.code is not None, tuple(layout.observers)))
                if extras[-1] != extras[0]:
                    raise hdf5.error(f"has other columns than {self.files[0]}")

    def read(self, file: int, start: int, stop: int) -> Iterator[Chunk]:
        """Jets ``start:stop`` of one file.

        Raises:
            InputError: if the file proves to be damaged, or a jet is not of exactly one class.
        """
        path = self.files[file]
        with Hdf5(path, _OFFICIAL) as hdf5:
            layout = _layout(hdf5)
            for begin, end in blocks(start, stop, layout.particles.row_bytes):
                padded, whole = layout.particles.read(begin, end), layout.jets.read(begin, end)
                columns = [*layout.p4, *([] if layout.code is None else [layout.code])]
                wanted = padded[:, :, columns]
                rows, counts, _ = flat(wanted, (wanted[:, :, :4] != 0).any(2))
                codes = {} if layout.code is None else code_columns(whole_codes(rows[:, 4]))
                p4, offsets, measured = without_padding(rows[:, :4], counts, codes)
                observers = {name: whole[:, column].copy() for name, column in layout.observers.items()}
                labels = _labels(hdf5, whole[:, layout.flags], begin) if self.classes else None
                yield Chunk(
                    Jets(p4, offsets, labels, self.classes, measured=measured, observers=observers), path, begin
                )


class _Layout(NamedTuple):
    """Tables of a file, and where in them the columns stand."""

    particles: Table
    jets: Table
    p4: list[int]
    code: int | None
    flags: list[int]
    observers: Mapping[str, int]


def _layout(hdf5: Hdf5) -> _Layout:
    particles = hdf5.table("jetConstituentList", "jets", "particles", "columns")
    jets = hdf5.table("jets", "jets", "columns")
    n_particle, n_jet = particles.shape[2], jets.shape[1]
    # There is a name more than there are columns in official files.
    given = hdf5.strings("particleFeatureNames")
    if given is None and n_particle not in _COLUMNS:
        raise hdf5.error(f"has {n_particle} columns, and no names in 'particleFeatureNames'", particles.name)
    places = dict(_ORDER) if given is None else {name.removeprefix("j1_"): k for k, name in enumerate(given)}
    for name in ("px", "py", "pz", "e"):
        if places.get(name, n_particle) >= n_particle:
            raise hdf5.error(f"has no column 'j1_{name}'", particles.name)
    code = places["pdgid"] if places.get("pdgid", n_particle) < n_particle else None
    jet_names = hdf5.strings("jetFeatureNames")
    if jet_names is None:
        if n_jet < 6:
            raise hdf5.error(f"has {n_jet} columns, too few for the classes", jets.name)
        flags, observers = list(range(n_jet - 6, n_jet - 1)), {}
    else:
        jet_names = jet_names[:n_jet]
        for name in _FLAGS:
            if name not in jet_names:
                raise hdf5.error(f"has no column '{name}' for its class", jets.name)
        flags = [jet_names.index(name) for name in _FLAGS]
        observers = {ours: jet_names.index(name) for ours, name in _OBSERVERS.items() if name in jet_names}
    return _Layout(particles, jets, [places[name] for name in ("e", "px", "py", "pz")], code, flags, observers)


def _labels(hdf5: Hdf5, flags: NDArray[Any], start: int) -> NDArray[np.int64]:
    """The class (n_jets,) that is marked for each jet among (n_jets, 5) flags."""
    single = np.isin(flags, (0, 1)).all(1) & ((flags == 1).sum(1) == 1)
    if not single.all():
        jet = int(np.argmin(single))
        raise hdf5.error(f"the jet is not of exactly one class of {', '.join(CLASSES)}", "jets", start + jet)
    label: NDArray[np.int64] = np.argmax(flags == 1, axis=1).astype(np.int64)
    return label
