"""CMS Open Data of 2011 in the MOD format: collisions, full simulation and generator level under one selection.

P. Komiske, R. Mastandrea, E. Metodiev, P. Naik, J. Thaler, "Exploring the Space of Jets with CMS Open Data",
arXiv:1908.08542; doi:10.5281/zenodo.3340205 (collisions) and doi:10.5281/zenodo.3341500 and others (simulation).
Anti-kT jets with R = 0.5 at 7 TeV, the two hardest of each event, pT > 375 GeV.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.sources._hdf5 import Hdf5, Table, blocks
from jetrep.sources._particles import code_columns, from_ptyphim, particle_flow_codes, whole_codes
from jetrep.sources.chunks import Chunk, existing_files, without_padding

__all__ = ["CmsOpenData"]

Level = Literal["detector", "generator"]

_OFFICIAL = "give a file in the MOD format, such as those of zenodo.org/records/3340205 or 3341500"
_ARRAYS: Mapping[Level, str] = {"detector": "pfcs", "generator": "gens"}
_MOST = 10_000  # constituents of a jet; more, and the index is damaged
_KINEMATICS = ("jet_pt", "jet_y", "jet_phi", "jet_m", "jet_eta")
# Names that this project gives to columns, and whether only some kinds of files have them.
_INTEGERS = {"run": "rn", "lumi": "lbn", "event": "evn", "npv": "npv", "quality": "quality", "hard_pid": "hard_pid"}
_OPTIONAL = ("npv", "quality", "hard_pid", "jec", "jet_area")
_ETA, _PT, _MEDIUM = 1.9, 375.0, 2


class CmsOpenData:
    """Jets in the MOD format, unlabelled.

    HDF5 files hold ``jets_i`` and ``jets_f``, one row for each jet, and the particles of all jets one after the other:
    ``pfcs``, the particle-flow candidates of the detector, in files of collisions and full simulation; ``gens``, the
    particles of the generator, in files of the generator and of full simulation (there, those of the generator jet
    that matches). Jet j owns the particles ``index[j]:index[j + 1]`` of ``pfcs_index`` or ``gens_index``. Columns are
    found by the names in the attribute ``cols`` of each table.

    Particles come with pT, **rapidity**, φ and mass, so four-vectors are exact. They are those of the file: **no jet
    energy correction is applied**; it is the observer ``jec``, a factor for the whole jet.

    Measured: ``charge``, the type flags, ``pdg_id`` (forward deposits, coded 1 and 2 by CMS, as 130 and 22), and
    ``vertex`` (0 leading, above 0 pile-up, −1 unknown; neutral candidates count as leading).

    Observers: ``jet_pt``, ``jet_y``, ``jet_phi``, ``jet_m``, ``jet_eta`` of the jet whose particles are read, before
    correction; ``weight``, the jet's share of the cross section in nb, for a complete set of files; ``run``,
    ``lumi``, ``event``; and those that the file has of ``npv``, ``quality`` (0 none, 1 loose, 2 medium, 3 tight),
    ``hard_pid``, ``jec``, ``jet_area``. **Without its weights simulation is no physical spectrum.**

    Flagged is what the selection of the paper drops, the same for collisions and simulation: "eta of 1.9 or more",
    "quality below medium", "corrected pT of 375 GeV or less" (at generator level: pT). In files of full simulation it
    looks at the detector jet at both levels, so that both keep the same jets. "no generator jet" has a jet of full
    simulation without a match, at generator level.

    Args:
        files: ``CMS_Jet300_pT375-infGeV_0_compressed.h5``, ``SIM470_…``, ``GEN470_…``; of one kind.
        labels: without effect: there are none.
        level: read what the detector saw, or what the generator made.

    Attributes:
        classes: ().
        files: the files.
        rows: number of jets of each.

    Raises:
        InputError: if a file is missing, damaged or of another schema, lacks that level, or kinds of files are mixed.
    """

    def __init__(self, files: Sequence[Path], *, labels: bool = True, level: Level = "detector") -> None:
        if level not in _ARRAYS:
            raise InputError(f"is '{level}'", field="level", remedy="give 'detector' or 'generator'")
        self.files = existing_files(files)
        self.classes: tuple[str, ...] = ()
        self._level = level
        self.rows = []
        kinds = []
        for file in self.files:
            with Hdf5(file, _OFFICIAL) as hdf5:
                layout = _layout(hdf5, level)
                self.rows.append(layout.integers.rows)
                kinds.append((set(layout.observers), layout.matched))
                if kinds[-1] != kinds[0]:
                    raise InputError(
                        f"is another kind of file than {self.files[0]}",
                        file=file,
                        remedy="give collisions, full simulation and generator level one at a time",
                    )

    def read(self, file: int, start: int, stop: int) -> Iterator[Chunk]:
        """Jets ``start:stop`` of one file.

        Raises:
            InputError: if the file proves to be damaged.
        """
        path = self.files[file]
        with Hdf5(path, _OFFICIAL) as hdf5:
            layout = _layout(hdf5, self._level)
            mean = layout.particles.rows * layout.particles.row_bytes // max(1, layout.integers.rows)
            for begin, end in blocks(start, stop, mean):
                values = {"i": layout.integers.read(begin, end), "f": layout.floats.read(begin, end)}
                columns = {name: values[table][:, k].copy() for name, (table, k) in layout.columns.items()}
                offsets = _offsets(hdf5, layout, begin, end)
                particles = layout.particles.read(int(offsets[0]), int(offsets[-1]))
                part = {name: particles[:, k].astype(np.float64) for name, k in layout.particle_columns.items()}
                codes = (particle_flow_codes if self._level == "detector" else whole_codes)(part["pid"])
                measured = {**code_columns(codes), "vertex": whole_codes(part["vertex"])}
                p4, offsets, measured = without_padding(
                    from_ptyphim(part["pt"], part["y"], part["phi"], part["m"]), np.diff(offsets), measured
                )
                observers = {name: columns[column] for name, column in layout.observers.items()}
                jets = Jets(p4, offsets, measured=measured, observers=observers)
                yield Chunk(jets, path, begin, _flags(columns, matched=layout.matched))


class _Layout(NamedTuple):
    """Tables of a file, and where in them the columns stand."""

    integers: Table
    floats: Table
    particles: Table
    bounds: Table
    columns: Mapping[str, tuple[str, int]]
    particle_columns: Mapping[str, int]
    observers: Mapping[str, str]
    matched: bool
    """Whether the particles are those of a generator jet that matches the jet of the detector."""


def _layout(hdf5: Hdf5, level: Level) -> _Layout:
    name = _ARRAYS[level]
    other: Level = "generator" if level == "detector" else "detector"
    if name not in hdf5.names and _ARRAYS[other] in hdf5.names:
        raise InputError(
            f"has no particles at {level} level",
            file=hdf5.file,
            field=name,
            remedy=f"read it at {other} level",
        )
    particles = hdf5.table(name, "particles", "columns")
    index = hdf5.table(f"{name}_index", "jets + 1")
    integers, floats = hdf5.table("jets_i", "jets", "columns"), hdf5.table("jets_f", "jets", "columns")
    jets = hdf5.rows(integers, floats)
    if index.rows != jets + 1:
        raise hdf5.error(f"has {index.rows} entries for {jets} jets", index.name)
    if index.kind not in "iu":
        raise hdf5.error("holds no whole numbers", index.name)
    ends = (int(index.read(0, 1)[0]), int(index.read(jets, jets + 1)[0]))
    if ends != (0, particles.rows):
        raise hdf5.error(f"runs from {ends[0]} to {ends[1]}, not from 0 to {particles.rows} particles", index.name)
    columns = {
        **{column: ("i", k) for column, k in _places(hdf5, integers).items()},
        **{column: ("f", k) for column, k in _places(hdf5, floats).items()},
    }
    particle_columns = _places(hdf5, particles, required=("pt", "y", "phi", "m", "pid", "vertex"))
    matched = level == "generator" and "pfcs" in hdf5.names
    prefix = "gen_" if matched else ""
    observers = {ours: f"{prefix}{ours}" for ours in _KINEMATICS} | {"weight": "weight"} | _INTEGERS
    observers |= {"jec": "jec", "jet_area": "jet_area"}
    observers = {ours: column for ours, column in observers.items() if ours not in _OPTIONAL or column in columns}
    needed = [*observers.values(), *_KINEMATICS, *(("jec", "quality") if "pfcs" in hdf5.names else ())]
    for column in needed:
        if column not in columns:
            raise hdf5.error("the column is missing from jets_i and jets_f", column)
    return _Layout(integers, floats, particles, index, columns, particle_columns, observers, matched)


def _places(hdf5: Hdf5, table: Table, required: Sequence[str] = ()) -> dict[str, int]:
    """Where the columns of a table stand, by name."""
    names = table.attribute("cols")
    if len(names) != table.shape[1] or len(set(names)) != len(names):
        raise hdf5.error(f"has {table.shape[1]} columns and {len(set(names))} names in 'cols'", table.name)
    for name in required:
        if name not in names:
            raise hdf5.error(f"has no column '{name}'", table.name)
    return {name: k for k, name in enumerate(names)}


def _offsets(hdf5: Hdf5, layout: _Layout, begin: int, end: int) -> NDArray[np.int64]:
    """Where the particles of the jets ``begin:end`` begin, and where those of the last end."""
    index = layout.bounds.read(begin, end + 1).astype(np.int64)
    counts = np.diff(index)
    possible = (counts >= 0) & (counts <= _MOST) & (index[:-1] >= 0) & (index[1:] <= layout.particles.rows)
    if not possible.all():
        jet = int(np.argmin(possible))
        raise hdf5.error(f"the jet has {counts[jet]} constituents", layout.bounds.name, begin + jet)
    return index


def _flags(columns: Mapping[str, NDArray[Any]], *, matched: bool) -> dict[str, NDArray[np.bool_]]:
    """Which jets the selection of the paper drops, (n_jets,) for each reason."""
    with np.errstate(all="ignore"):
        corrected = columns["jet_pt"] * columns.get("jec", np.ones(1))
    flags = {
        "eta of 1.9 or more": ~(np.abs(columns["jet_eta"]) < _ETA),
        "corrected pT of 375 GeV or less": ~(corrected > _PT),
    }
    if "quality" in columns:
        flags["quality below medium"] = columns["quality"] < _MEDIUM
    if matched:
        flags["no generator jet"] = ~(columns["gen_jet_pt"] > 0)
    return flags
