"""CMS PFNano: NanoAOD files with particle-flow candidates, rows of events that hold jets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.jets.columns import particle_types
from jetrep.physics.fourvector import from_ptetaphim
from jetrep.sources._root import Tree
from jetrep.sources._tables import Lists, Table, not_finite, same_counts, small_integers
from jetrep.sources.chunks import Chunk, existing_files, without_padding

__all__ = ["PFNano"]

_TREE = "Events"
_EVENTS = 500  # events of a chunk: each has some 2000 candidates
_EVENT = ("run", "luminosityBlock", "event")
_MM = 10.0  # in a cm

_IMPACTS = ("d0", "d0Err", "dz", "dzErr")
_CANDIDATE = ("pt", "eta", "phi", "mass", "charge", "pdgId", "puppiWeight", *_IMPACTS)
_JET = ("pt", "eta", "phi", "mass", "rawFactor")
_JET_IF_THERE = ("msoftdrop",)
_OBSERVERS = {"pt": "jet_pt", "eta": "jet_eta", "phi": "jet_phi", "mass": "jet_mass", "rawFactor": "raw_factor"}

# CMS numbers deposits in the forward calorimeter 1 (hadronic) and 2 (electromagnetic); both are quarks to the PDG.
_FORWARD = {1: 130, 2: 22}

_REMEDY = "give NanoAOD files with the PF candidates of jets, as PFNano writes them"


class _Collection(NamedTuple):
    """Jets, the table that links them to candidates, and whether candidates carry PUPPI weights in them."""

    jets: str
    links: str
    puppi: bool


_COLLECTIONS: Mapping[str, _Collection] = {
    "ak8": _Collection("FatJet", "FatJetPFCands", puppi=True),
    "ak4": _Collection("Jet", "JetPFCands", puppi=False),
}


class PFNano:
    """Jets of CMS files in the PFNano schema, ROOT files with a tree ``Events``.

    A row is an event with any number of jets. The constituents of a jet are the ``PFCands`` that
    ``FatJetPFCands_{jetIdx,pFCandsIdx}`` (``JetPFCands_…`` for AK4) link to it. Four-vectors are made from pt, eta,
    phi and mass. For AK8 jets, which are clustered with PUPPI, they are multiplied by ``puppiWeight``, and candidates
    of weight 0 are no constituents; AK4 jets are CHS jets, whose candidates count in full. Either way they add up to
    the jet before its energy corrections, ``jet_pt * (1 - raw_factor)``.

    Impact parameters are given in cm, the convention of CMS, and are read as mm. Candidates without a track fit, all
    neutral and many soft charged ones, hold −1 or infinity there; their impact parameters and errors are set to 0.
    Deposits in the forward calorimeter, 1 and 2 to CMS, become 130 (neutral hadron) and 22 (photon).

    Observers: ``jet_pt``, ``jet_eta``, ``jet_phi``, ``jet_mass`` as corrected, ``raw_factor``, ``msoftdrop`` if the
    file has it, ``run``, ``luminosityBlock``, ``event``. Jets with a PUPPI weight, or an impact parameter in spite of
    a track fit, that is not finite are flagged "not finite". Events hold no labels, so jets are always unlabelled.

    Args:
        files: ``.root`` files.
        labels: without effect.
        collection: "ak8" for ``FatJet``, "ak4" for ``Jet``.

    Attributes:
        classes: ().
        files: the files.
        rows: number of events of each.

    Raises:
        InputError: if a file is missing, damaged or of another schema.
    """

    def __init__(
        self, files: Sequence[Path], *, labels: bool = True, collection: Literal["ak8", "ak4"] = "ak8"
    ) -> None:
        if collection not in _COLLECTIONS:
            raise InputError(f"is '{collection}'", field="collection", remedy="give ak8 or ak4")
        self.files = existing_files(files)
        self.classes: tuple[str, ...] = ()
        self._collection = _COLLECTIONS[collection]
        checked = [self._check(file) for file in self.files]
        self.rows = [rows for rows, _ in checked]
        self._extra = checked[0][1]
        for file, (_, extra) in zip(self.files, checked, strict=True):
            if extra != self._extra:
                odd = sorted(set(extra) ^ set(self._extra))[0]
                raise InputError(
                    "only some of the files have this branch",
                    file=file,
                    field=f"{self._collection.jets}_{odd}",
                    remedy="prepare files of different schemas one by one",
                )

    def read(self, file: int, start: int, stop: int) -> Iterator[Chunk]:
        """The jets in events ``start:stop`` of one file.

        Raises:
            InputError: if the file proves to be damaged, or an index points nowhere.
        """
        path = self.files[file]
        with Tree(path, _TREE, remedy=_REMEDY) as tree:
            for table in tree.read(_EVENT, self._lists(self._extra), start, stop, step=_EVENTS):
                yield self._chunk(table, path)

    def _check(self, file: Path) -> tuple[int, tuple[str, ...]]:
        """Number of events, and which of the optional branches are there."""
        with Tree(file, _TREE, remedy=_REMEDY) as tree:
            extra = tuple(name for name in _JET_IF_THERE if f"{self._collection.jets}_{name}" in tree.names)
            tree.require(
                numbers=_EVENT, lists=self._lists(extra), integers=["PFCands_pdgId", *_links(self._collection.links)]
            )
            return tree.rows, extra

    def _lists(self, extra: Sequence[str]) -> list[str]:
        jets, links, _ = self._collection
        return [
            *(f"PFCands_{name}" for name in _CANDIDATE),
            *(f"{jets}_{name}" for name in (*_JET, *extra)),
            *_links(links),
        ]

    def _chunk(self, table: Table, file: Path) -> Chunk:
        jets_of = {name: table.lists[f"{self._collection.jets}_{name}"] for name in (*_JET, *self._extra)}
        candidates = {name: table.lists[f"PFCands_{name}"] for name in _CANDIDATE}
        n_jets = _same(jets_of, self._collection.jets, file, table.start)
        n_candidates = _same(candidates, "PFCands", file, table.start)
        candidate, counts = _constituents(table, file, self._collection.links, n_jets, n_candidates)

        def of(name: str) -> NDArray[Any]:
            return candidates[name].values[candidate]

        # What is not finite is found where momenta are checked, or flagged below.
        with np.errstate(over="ignore", invalid="ignore"):
            weight = of("puppiWeight").astype(np.float32, copy=False)
            p4 = from_ptetaphim(*(of(name).astype(np.float64) for name in ("pt", "eta", "phi", "mass")))
            if self._collection.puppi:
                p4 *= weight[:, None]
            measured = {**_types(candidates, candidate, file, table.start), "puppi_weight": weight, **_impacts(of)}
            vectors, offsets, measured = without_padding(p4, counts, measured)
        observers = {_OBSERVERS.get(name, name): column.values for name, column in jets_of.items()}
        observers |= {name: np.repeat(table.numbers[name], n_jets) for name in _EVENT}
        jets = Jets(vectors, offsets, measured=measured, observers=observers)
        flags = not_finite([measured[name] for name in ("puppi_weight", "d0", "d0_error", "dz", "dz_error")], offsets)
        return Chunk(jets, file, table.start, flags)


def _links(table: str) -> tuple[str, str]:
    return f"{table}_jetIdx", f"{table}_pFCandsIdx"


def _same(columns: Mapping[str, Lists], prefix: str, file: Path, start: int) -> NDArray[np.int64]:
    """How many of them each event has."""
    return same_counts(
        {f"{prefix}_{name}": column for name, column in columns.items()}, file=file, start=start, row="event"
    )


def _constituents(
    table: Table, file: Path, links: str, n_jets: NDArray[np.int64], n_candidates: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The candidates of all jets, jet after jet, as places in the flat columns, and how many each jet has.

    Args:
        table: rows of the tree.
        file: where they come from.
        links: the table of links between jets and candidates.
        n_jets: (n_events,) jets of each event.
        n_candidates: (n_events,) candidates of each event.

    Raises:
        InputError: naming the event in which an index points nowhere.
    """
    jet_name, candidate_name = _links(links)
    columns = {name: table.lists[name] for name in (jet_name, candidate_name)}
    n_links = same_counts(columns, file=file, start=table.start, row="event")
    event = np.repeat(np.arange(len(n_links)), n_links)
    places = []
    for name, sizes, what in ((jet_name, n_jets, "jets"), (candidate_name, n_candidates, "candidates")):
        index = columns[name].values
        bad = (index < 0) | (index >= sizes[event])
        if bad.any():
            at = int(np.argmax(bad))
            raise InputError(
                f"index {index[at]} in event {table.start + event[at]}, which has {sizes[event[at]]} {what}",
                file=file,
                field=name,
                remedy="the file is damaged, or jets were removed from it without their links: write it again",
            )
        first = np.concatenate([[0], np.cumsum(sizes)])[:-1]
        places.append(first[event] + index.astype(np.int64))
    jet, candidate = places
    counts = np.bincount(jet, minlength=int(n_jets.sum()))
    if (np.diff(jet) < 0).any():
        candidate = candidate[np.argsort(jet, kind="stable")]
    return candidate, counts


def _types(
    candidates: Mapping[str, Lists], which: NDArray[np.int64], file: Path, start: int
) -> dict[str, NDArray[Any]]:
    """Charge, type flags and particle code of the candidates ``which``."""
    charge = small_integers(candidates["charge"], low=-1, high=1, file=file, field="PFCands_charge", start=start)
    pdg_id = candidates["pdgId"].values[which].astype(np.int32)
    for forward, code in _FORWARD.items():
        pdg_id[pdg_id == forward] = code
    return {**particle_types(pdg_id), "charge": charge[which], "pdg_id": pdg_id}


def _impacts(of: Any) -> dict[str, NDArray[np.float32]]:
    """Impact parameters and their errors in mm, 0 where there is no track fit."""
    charge = of("charge")
    result = {}
    for value, error, name in (("d0", "d0Err", "d0"), ("dz", "dzErr", "dz")):
        sigma = of(error).astype(np.float32, copy=False)
        fitted = (charge != 0) & (sigma >= 0) & np.isfinite(sigma)
        result[name] = np.where(fitted, of(value) * np.float32(_MM), np.float32(0)).astype(np.float32, copy=False)
        result[f"{name}_error"] = np.where(fitted, sigma * np.float32(_MM), np.float32(0))
    return result
