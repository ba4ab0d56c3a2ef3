"""One shard: jets are checked, sorted, clustered, gathered within bounded memory, and written."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.physics.clustering import Algorithm, MergeHistory, cluster
from jetrep.physics.fourvector import PX, PY
from jetrep.store.folder import disk_errors, put
from jetrep.store.manifest import Columns, Shard, file_hash
from jetrep.store.shard import columns_of, write_shard

__all__ = ["SPILL", "ShardBuilder", "accepted", "check_columns"]

SPILL = 256_000_000
"""Bytes of jets that may wait in memory for their shard; beyond, they wait in temporary files."""


class ShardBuilder:
    """Gathers the jets of one shard and writes it.

    Jets without a merge history are sorted by descending pT and clustered. Jets that have one are taken as they are.

    Args:
        folder: where temporary files may lie, if the jets are too many for `SPILL`.
        n_classes: number of classes; 0 for unlabelled jets.
        algorithm: clustering algorithm.
        R: radius parameter of the clustering.
        threads: threads of the clustering; all cores, if None.

    Attributes:
        n_jets: number of jets so far.
        label_counts: (n_classes,) jets of each class.
        columns: names and types of what stands beside the four-vectors; None before the first jets.
    """

    def __init__(
        self, folder: Path, *, n_classes: int, algorithm: Algorithm, R: float, threads: int | None = None
    ) -> None:
        self._algorithm, self._R, self._threads = algorithm, R, threads
        self._pile = _Pile(folder)
        self.n_jets = 0
        self.label_counts = np.zeros(n_classes, np.int64)
        self.columns: Columns | None = None

    def add(self, jets: Jets, file: Path | None = None) -> None:
        """Add `accepted` jets, in order; ``file`` is named if something is wrong with them.

        Raises:
            InputError: if they have other columns than those before, or a temporary file cannot be written.
        """
        if self.columns is None:
            self.columns = columns_of(jets)
        check_columns(self.columns, columns_of(jets), file)
        if not len(jets):
            return
        # Piece by piece, so that progress is steady and the memory for sorting stays small.
        if jets.history is None:
            jets = jets if _in_order(jets) else jets.sorted_by_pt()
            history = cluster(jets.p4, jets.offsets, algorithm=self._algorithm, R=self._R, threads=self._threads)
            jets = replace(jets, history=history)
        if jets.labels is not None:
            self.label_counts += np.bincount(jets.labels, minlength=len(self.label_counts))
        self.n_jets += len(jets)
        self._pile.add(jets)

    def write(self, path: Path, name: str, *, shown: Path) -> Shard:
        """Write the shard, whole or not at all.

        Args:
            path: the file.
            name: what the manifest will call it.
            shown: what the user will know it by, for messages.

        Raises:
            InputError: if the disk is full, or the file cannot be written.
        """
        with disk_errors(shown):
            jets = self._pile.jets()
            with put(path) as new:
                write_shard(new, jets, algorithm=self._algorithm, R=self._R)
            # Reading it again costs a fiftieth of the work before, and checks what others will read.
            return Shard(name, len(jets), len(jets.p4), path.stat().st_size, file_hash(path))


def accepted(jets: Jets, classes: tuple[str, ...]) -> Jets:
    """The jets under the classes of a store, if they may be stored.

    Raises:
        InputError: if a jet is empty or not finite, or labels are missing, superfluous or of other classes.
    """
    if (jets.labels is not None) != bool(classes):
        what = "the jets have no labels" if classes else "the jets have labels, the store has no classes"
        raise InputError(what, field="labels", remedy="label all jets and name the classes, or do neither")
    if jets.classes and classes and jets.classes != classes:
        raise InputError(
            f"the jets have classes {', '.join(jets.classes)}, the store {', '.join(classes)}",
            field="classes",
            remedy="give all jets the same classes",
        )
    empty = jets.counts == 0
    if empty.any():
        raise InputError("the jet has no constituents", jet=int(np.argmax(empty)), remedy="drop empty jets")
    # The sum is finite if and only if all terms are (they are far from the overflow of float64).
    finite = np.isfinite(jets.jet_p4).all(1)
    if not finite.all():
        raise InputError("a momentum is not finite", jet=int(np.argmin(finite)), field="p4", remedy="drop such jets")
    return jets.with_labels(jets.labels, classes)


def check_columns(before: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]], file: Any) -> None:
    """Whether jets have the columns of those before them.

    Raises:
        InputError: naming ``file`` and the first column that is missing, superfluous, or of another type.
    """
    for kind, one in (("measured", "measured column"), ("observers", "observer")):
        for name in sorted({*before[kind], *now[kind]}):
            first, then = before[kind].get(name, "missing"), now[kind].get(name, "missing")
            if first != then:
                raise InputError(
                    f"the {one} is {then} here and {first} in the jets before",
                    file=file,
                    field=name,
                    remedy="give all jets the same columns, or prepare these files as another store",
                )


class _Pile:
    """Jets that wait to be written together: in memory as far as `SPILL` allows, then in files without a name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._first: Jets | None = None
        self._parts: dict[str, list[NDArray[Any]]] = {}
        self._files: dict[str, IO[bytes]] = {}
        self._bytes = 0

    def add(self, jets: Jets) -> None:
        self._first = self._first if self._first is not None else jets[:0]
        for name, values in _arrays(jets).items():
            self._parts.setdefault(name, []).append(values)
            self._bytes += values.nbytes
        if self._bytes > SPILL:
            with disk_errors(self._folder):
                self._spill()

    def _spill(self) -> None:
        for name, parts in self._parts.items():
            if name not in self._files:
                self._files[name] = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - lives as long as the pile
            for values in parts:
                self._files[name].write(values.tobytes())
            parts.clear()
        self._bytes = 0

    def jets(self) -> Jets:
        """All of them; the pile is empty afterwards."""
        if self._first is None:
            raise ValueError("there are no jets")
        like = _arrays(self._first)
        if self._files:
            self._spill()
            arrays = {name: _mapped(self._files[name], values) for name, values in like.items()}
        else:
            # One column after the other, so that only one of them is in memory twice.
            arrays = {name: np.concatenate(self._parts.pop(name)) for name in like}
        return _jets(arrays, self._first)


def _arrays(jets: Jets) -> dict[str, NDArray[Any]]:
    """The columns of clustered jets, by name."""
    history = jets.history
    assert history is not None  # the builder clusters all jets
    labels = {} if jets.labels is None else {"labels": jets.labels}
    return {
        "p4": jets.p4,
        "counts": jets.counts,
        "order": history.order,
        "join": history.join,
        "d_ij": history.d_ij,
        **labels,
        **{f"measured.{name}": values for name, values in jets.measured.items()},
        **{f"observers.{name}": values for name, values in jets.observers.items()},
    }


def _jets(arrays: Mapping[str, NDArray[Any]], like: Jets) -> Jets:
    """What `_arrays` was made of."""
    offsets = np.concatenate([[0], np.cumsum(arrays["counts"])])
    return Jets(
        arrays["p4"],
        offsets,
        arrays.get("labels"),
        like.classes,
        MergeHistory(arrays["order"], arrays["join"], arrays["d_ij"], offsets),
        {name: arrays[f"measured.{name}"] for name in like.measured},
        {name: arrays[f"observers.{name}"] for name in like.observers},
    )


def _mapped(file: IO[bytes], like: NDArray[Any]) -> NDArray[Any]:
    file.flush()
    flat = np.memmap(file, like.dtype, "r")
    return flat.reshape(-1, *like.shape[1:])


def _in_order(jets: Jets) -> bool:
    """Whether pT falls within every jet, as in most data sets: looking is ten times faster than sorting."""
    pt2 = np.square(jets.p4[:, [PX, PY]], dtype=np.float64).sum(1)
    rises = pt2[1:] > pt2[:-1]
    rises[jets.offsets[1:-1] - 1] = False  # from the last of one jet to the first of the next
    return not rises.any()
