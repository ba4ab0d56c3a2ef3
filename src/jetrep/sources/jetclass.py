"""The JetClass data set: ten classes of jets in ROOT files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.sources._root import Tree
from jetrep.sources._tables import Table, not_finite, one_hot_labels, same_counts, small_integers
from jetrep.sources.chunks import Chunk, existing_files, without_padding

__all__ = ["CLASSES", "JET", "LABEL_2", "PARTICLES", "TREE", "JetClass", "chunk_of"]

CLASSES = ("QCD", "Hbb", "Hcc", "Hgg", "H4q", "Hqql", "Zqq", "Wqq", "Tbqq", "Tbl")

TREE = "tree"
LABEL_2 = "jet_label"  # the one label of JetClass-II
_LABELS = tuple(f"label_{name}" for name in CLASSES)

_MOMENTUM = ("part_energy", "part_px", "part_py", "part_pz")
_INTEGERS: Mapping[str, str] = MappingProxyType(
    {
        "charge": "part_charge",
        "is_charged_hadron": "part_isChargedHadron",
        "is_neutral_hadron": "part_isNeutralHadron",
        "is_photon": "part_isPhoton",
        "is_electron": "part_isElectron",
        "is_muon": "part_isMuon",
    }
)
_FLOATS: Mapping[str, str] = MappingProxyType(
    {"d0": "part_d0val", "d0_error": "part_d0err", "dz": "part_dzval", "dz_error": "part_dzerr"}
)

PARTICLES = (*_MOMENTUM, *_INTEGERS.values(), *_FLOATS.values())
"""Columns of lists that both generations of the data set have, and that are read."""

JET = tuple(
    f"jet_{name}" for name in ("pt", "eta", "phi", "energy", "nparticles", "sdmass", "tau1", "tau2", "tau3", "tau4")
)
"""Columns of numbers that both have."""

_OFFICIAL = "give an official file of zenodo.org/records/6619768, or describe other files to the source 'mapped'"


class JetClass:
    """Jets of the JetClass data set, ROOT files with a tree ``tree``.

    Labels come from the ten one-hot branches ``label_*``. Impact parameters are in mm, zero for neutral particles.
    ``part_deta`` and ``part_dphi`` are not read: ``part_deta`` is sign(η_jet)·(η − η_jet), reflected for half of the
    jets, and both follow from the four-vectors. Observers ``jet_*`` are those of the file: ``jet_pt`` and
    ``jet_energy`` belong to all constituents.

    Jets with an impact parameter, or an error of one, that is not finite are flagged "not finite".

    Args:
        files: ``.root`` files, of one class or several.
        labels: read the labels.

    Attributes:
        classes: the ten classes, or () without labels.
        files: the files.
        rows: number of jets of each.

    Raises:
        InputError: if a file is missing, damaged or of another schema, or has no labels.
    """

    def __init__(self, files: Sequence[Path], *, labels: bool = True) -> None:
        self.files = existing_files(files)
        self.classes: tuple[str, ...] = CLASSES if labels else ()
        self.rows = [_length(file, labels=labels) for file in self.files]

    def read(self, file: int, start: int, stop: int) -> Iterator[Chunk]:
        """Jets ``start:stop`` of one file.

        Raises:
            InputError: if the file proves to be damaged, or a jet is not of exactly one class.
        """
        path = self.files[file]
        with _opened(path) as tree:
            for table in tree.read([*JET, *(_LABELS if self.classes else ())], PARTICLES, start, stop):
                labels = None
                if self.classes:
                    one_hot = np.stack([table.numbers[name] for name in _LABELS], -1)
                    labels = one_hot_labels(one_hot, file=path, field="label_*", start=table.start)
                yield chunk_of(table, path, labels, self.classes)


def _opened(file: Path) -> Tree:
    return Tree(file, TREE, remedy=_OFFICIAL)


def _length(file: Path, *, labels: bool) -> int:
    with _opened(file) as tree:
        if LABEL_2 in tree.names and not set(_LABELS) & set(tree.names):
            raise InputError(
                "is a file of JetClass-II", file=file, field=LABEL_2, remedy="read it with the source 'jetclass2'"
            )
        tree.require(numbers=JET, lists=PARTICLES)
        if labels:
            tree.require(numbers=_LABELS, remedy="give files with all ten label branches, or read with --unlabeled")
        return tree.rows


def chunk_of(table: Table, file: Path, labels: NDArray[np.int64] | None, classes: tuple[str, ...]) -> Chunk:
    """Jets from the columns `PARTICLES` and `JET`.

    Args:
        table: rows of a file.
        file: that file.
        labels: (n_jets,) the classes, or None.
        classes: their names.

    Raises:
        InputError: naming a jet whose lists differ in length, or whose charges and flags are none.
    """
    lists = {name: table.lists[name] for name in PARTICLES}
    counts = same_counts(lists, file=file, start=table.start)
    p4 = np.empty((int(counts.sum()), 4), np.float32)
    measured: dict[str, NDArray[np.int8] | NDArray[np.float32]] = {}
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is flagged, or found by the store
        for i, name in enumerate(_MOMENTUM):
            p4[:, i] = lists[name].values
        for name, branch in _INTEGERS.items():
            low = -127 if name == "charge" else 0
            high = 127 if name == "charge" else 1
            measured[name] = small_integers(
                lists[branch], low=low, high=high, file=file, field=branch, start=table.start
            )
        for name, branch in _FLOATS.items():
            measured[name] = lists[branch].values.astype(np.float32, copy=False)
    p4, offsets, measured = without_padding(p4, counts, measured)
    observers = {name: table.numbers[name] for name in JET}
    jets = Jets(p4, offsets, labels, classes, measured=measured, observers=observers)
    return Chunk(jets, file, table.start, not_finite([measured[name] for name in _FLOATS], offsets))
