"""`Jets`: the ragged container, on the host, in NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, overload

import numba
import numpy as np
from numpy.typing import NDArray

from jetrep.errors import InputError
from jetrep.physics.clustering import Algorithm, MergeHistory, cluster, common_clustering
from jetrep.physics.fourvector import PX, PY

if TYPE_CHECKING:
    import awkward as ak

    from jetrep.jets.batch import JetBatch

__all__ = ["Jets"]


@dataclass(frozen=True, eq=False)
class Jets:
    """A ragged table of jets: the constituents of all jets, one after the other.

    Arrays are used as they are (no copy if they have the right type), so memory-mapped arrays stay on disk.

    Attributes:
        p4: (n_particles, 4) float32, constituents as (E, px, py, pz) in GeV.
        offsets: (n_jets + 1,) int64, jet j owns ``p4[offsets[j]:offsets[j + 1]]``.
        labels: (n_jets,) int64, index into ``classes``, or None if the jets are unlabelled.
        classes: names of the labels.
        history: merge histories on the same offsets, or None if the jets have not been clustered.
        measured: what was measured of each constituent beside its momentum, by name: (n_particles,) numbers, such as
            the `jetrep.jets.columns.MEASURED`.
        observers: numbers that describe each jet and no model sees, by name: (n_jets,), such as the weight of a jet,
            its event, or a mass that somebody else computed.
    """

    p4: NDArray[np.float32]
    offsets: NDArray[np.int64]
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()
    history: MergeHistory | None = field(default=None, repr=False)
    measured: Mapping[str, NDArray[Any]] = field(default_factory=dict, repr=False)
    observers: Mapping[str, NDArray[Any]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        p4 = np.asarray(self.p4, dtype=np.float32)
        offsets = np.asarray(self.offsets, dtype=np.int64)
        if p4.ndim != 2 or p4.shape[1] != 4:
            raise InputError(
                f"four-vectors have shape {p4.shape}",
                field="p4",
                remedy="give (n_particles, 4): E, px, py, pz",
            )
        if offsets.ndim != 1 or len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(p4):
            raise InputError(
                f"offsets do not run from 0 to the number of particles, {len(p4)}",
                field="offsets",
                remedy="give (n_jets + 1,) increasing integers",
            )
        if np.any(np.diff(offsets) < 0):
            jet = int(np.argmax(np.diff(offsets) < 0))
            raise InputError("offsets decrease", jet=jet, field="offsets", remedy="give increasing integers")
        object.__setattr__(self, "p4", p4)
        object.__setattr__(self, "offsets", offsets)
        if self.labels is not None:
            labels = np.asarray(self.labels, dtype=np.int64)
            if labels.shape != (len(self),):
                raise InputError(
                    f"{labels.size} labels for {len(self)} jets",
                    field="labels",
                    remedy="give one label a jet",
                )
            if len(labels) and self.classes and not 0 <= labels.min() <= labels.max() < len(self.classes):
                jet = int(np.argmax((labels < 0) | (labels >= len(self.classes))))
                raise InputError(
                    f"label {labels[jet]} is outside the {len(self.classes)} classes {', '.join(self.classes)}",
                    jet=jet,
                    field="labels",
                    remedy="name all classes",
                )
            object.__setattr__(self, "labels", labels)
        for kind, columns, rows in (("measured", self.measured, len(p4)), ("observers", self.observers, len(self))):
            for name, values in columns.items():
                if np.shape(values) != (rows,):
                    what = "constituents" if kind == "measured" else "jets"
                    raise InputError(
                        f"{kind} '{name}' has shape {np.shape(values)} for {rows} {what}",
                        field=name,
                        remedy=f"give one number for each of the {what}",
                    )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> NDArray[np.int64]:
        """(n_jets,) number of constituents of each jet."""
        return np.diff(self.offsets)

    @property
    def jet_p4(self) -> NDArray[np.float64]:
        """(n_jets, 4) summed four-momentum of each jet, accumulated in double precision; zero for an empty jet."""
        return _sum_by_jet(self.p4, self.offsets)

    @overload
    def __getitem__(self, index: int) -> NDArray[np.float32]: ...
    @overload
    def __getitem__(self, index: slice | Sequence[int] | NDArray[Any]) -> Jets: ...
    def __getitem__(self, index: int | slice | Sequence[int] | NDArray[Any]) -> NDArray[np.float32] | Jets:
        """The constituents (n, 4) of one jet, or the `Jets` selected by a slice, an index array or a boolean mask."""
        if isinstance(index, int | np.integer):
            jet = range(len(self))[index]
            return self.p4[self.offsets[jet] : self.offsets[jet + 1]]
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return self._contiguous(start, max(start, stop))
            rows = np.arange(start, stop, step)
        else:
            rows = np.asarray(index)
            rows = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows.astype(np.int64)
        counts = self.counts[rows]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        source = np.repeat(self.offsets[:-1][rows] - offsets[:-1], counts) + np.arange(offsets[-1])
        return self._taken(source, rows, offsets)

    def _contiguous(self, start: int, stop: int) -> Jets:
        """Jets ``start:stop`` as views of the same memory."""
        offsets = self.offsets[start : stop + 1] - self.offsets[start]
        return self._taken(slice(self.offsets[start], self.offsets[stop]), slice(start, stop), offsets)

    def _taken(self, particles: _Index, rows: _Index, offsets: NDArray[np.int64]) -> Jets:
        """The jets ``rows``, whose constituents are ``particles``."""
        history = self.history
        return Jets(
            self.p4[particles],
            offsets,
            None if self.labels is None else self.labels[rows],
            self.classes,
            None
            if history is None
            else replace(
                history,
                order=history.order[particles],
                join=history.join[particles],
                d_ij=history.d_ij[particles],
                offsets=offsets,
            ),
            {name: values[particles] for name, values in self.measured.items()},
            {name: values[rows] for name, values in self.observers.items()},
        )

    @property
    def truth(self) -> NDArray[np.int64]:
        """(n_jets,) the labels, for those who cannot do without.

        Raises:
            InputError: if the jets are unlabelled.
        """
        if self.labels is None:
            raise InputError("the jets are unlabelled", field="label", remedy="use a labelled store")
        return self.labels

    def leading(self, n: int) -> Jets:
        """The ``n`` hardest constituents of each jet, in descending pT; the history, if any, is dropped."""
        pt2 = self.p4[:, PX].astype(np.float64) ** 2 + self.p4[:, PY].astype(np.float64) ** 2
        jet = np.repeat(np.arange(len(self)), self.counts)
        by_pt = np.lexsort((-pt2, jet))
        rank = np.arange(len(self.p4)) - self.offsets[jet]
        offsets = np.concatenate([[0], np.cumsum(np.minimum(self.counts, n))])
        return replace(self, history=None)._taken(by_pt[rank < n], slice(None), offsets)

    def sorted_by_pt(self) -> Jets:
        """All constituents in descending pT; the history, if any, is dropped."""
        return self.leading(int(self.counts.max(initial=0)))

    def with_labels(self, labels: NDArray[np.int64] | None, classes: Sequence[str] = ()) -> Jets:
        """The same jets under other labels."""
        return replace(self, labels=labels, classes=tuple(classes))

    def clustered(self, *, algorithm: Algorithm | float = "kt", R: float = 0.8) -> Jets:
        """The same jets with the merge history of their constituents (see `physics.clustering.cluster`)."""
        return replace(self, history=cluster(self.p4, self.offsets, algorithm=algorithm, R=R))

    def clustered_like(self, history: MergeHistory) -> Jets:
        """The same jets, clustered as those of ``history`` were.

        Raises:
            InputError: if these were clustered differently from one another.
        """
        if history.algorithm is None:
            raise InputError(
                "the jets were clustered differently",
                field="max_particles",
                remedy="prepare all of them with the same algorithm and R",
            )
        return self.clustered(algorithm=history.algorithm, R=history.R)

    def subjets(self, n_subjets: int | None = None, *, d_cut: float | None = None) -> Jets:
        """The jets at a coarser scale: one cut of their merge trees, in descending pT, without a history of their own.

        Measured columns stay behind: a charge or an impact parameter has no agreed meaning for a sum of constituents.

        Args:
            n_subjets: number of subjets; jets with fewer constituents keep all of them.
            d_cut: or the distance at which to cut (see `MergeHistory.subjets`).

        Raises:
            InputError: if the jets have not been clustered, or not exactly one of the two is given.
        """
        if self.history is None:
            raise InputError("the jets have no merge history", field="history", remedy="call clustered() first")
        p4, offsets = self.history.subjets(self.p4, n=n_subjets, d_cut=d_cut)
        return replace(self, p4=p4, offsets=offsets, history=None, measured={})

    @staticmethod
    def concatenate(parts: Sequence[Jets]) -> Jets:
        """All jets of ``parts`` in order.

        Raises:
            InputError: if the parts disagree on their classes or columns, or only some are labelled or clustered.
        """
        if len(parts) == 1:
            return parts[0]
        if len({part.classes for part in parts}) > 1 or len({part.labels is None for part in parts}) > 1:
            raise InputError(
                "parts have different classes, or only some are labelled",
                field="labels",
                remedy="give all parts the same classes",
            )
        measured, observers = (
            _concatenated([getattr(part, kind) for part in parts], kind) for kind in ("measured", "observers")
        )
        counts = np.concatenate([part.counts for part in parts])
        offsets = np.concatenate([[0], np.cumsum(counts)])
        labels = [part.labels for part in parts if part.labels is not None]
        histories = [part.history for part in parts if part.history is not None]
        history = None
        if len(histories) == len(parts):
            history = MergeHistory(
                np.concatenate([h.order for h in histories]),
                np.concatenate([h.join for h in histories]),
                np.concatenate([h.d_ij for h in histories]),
                offsets,
                *common_clustering(histories),
            )
        return Jets(
            np.concatenate([part.p4 for part in parts]),
            offsets,
            np.concatenate(labels) if labels else None,
            parts[0].classes,
            history,
            measured,
            observers,
        )

    @classmethod
    def from_awkward(
        cls, array: ak.Array, labels: NDArray[np.int64] | None = None, classes: Sequence[str] = ()
    ) -> Jets:
        """From an awkward array of records with fields ``E`` (or ``energy``, ``e``, ``t``), ``px``, ``py``, ``pz``.

        Args:
            array: shape (n_jets, var), GeV. One copy is made, since awkward keeps each component apart.
            labels: (n_jets,) labels.
            classes: their names.
        """
        import awkward as ak  # only who uses it should pay for its import

        names = set(ak.fields(array))
        energy = next((name for name in ("E", "energy", "e", "t") if name in names), None)
        missing = [name for name in ("px", "py", "pz") if name not in names] + ([] if energy else ["E"])
        if missing or energy is None:
            raise InputError(
                f"the awkward array has fields {sorted(names)}",
                field=missing[0],
                remedy="name them E, px, py, pz",
            )
        packed = ak.to_packed(array)
        offsets = np.concatenate([[0], np.cumsum(ak.to_numpy(ak.num(packed)))])
        components = [ak.to_numpy(ak.flatten(packed[name])) for name in (energy, "px", "py", "pz")]
        return cls(np.stack(components, -1).astype(np.float32, copy=False), offsets, labels, tuple(classes))

    def to_awkward(self) -> ak.Array:
        """Awkward array (n_jets, var) of ``Momentum4D`` records E, px, py, pz: views of the same memory, not copies."""
        import awkward as ak

        records = ak.zip(
            {name: self.p4[:, i] for i, name in enumerate(("E", "px", "py", "pz"))}, with_name="Momentum4D"
        )
        return ak.Array(
            ak.contents.ListOffsetArray(ak.index.Index64(self.offsets), records.layout),
            behavior=records.behavior,
        )

    def batch(self, index: slice | Sequence[int] | NDArray[Any] | None = None) -> JetBatch:
        """The selected jets (all, if None), padded to the longest of them, as torch tensors on the CPU."""
        from jetrep.jets.batch import padded  # keeps host-side work, such as simulation, free of torch's start-up time

        return padded(self, np.arange(len(self))[index if index is not None else slice(None)])


_Index = slice | NDArray[Any]


def _concatenated(parts: Sequence[Mapping[str, NDArray[Any]]], kind: str) -> dict[str, NDArray[Any]]:
    """Columns of all parts, one after the other; they must be the same in each."""
    names = list(parts[0])
    for part in parts[1:]:
        if set(part) != set(names):
            odd = sorted(set(part) ^ set(names))
            raise InputError(
                f"only some of the parts have the {kind} {', '.join(odd)}",
                field=odd[0],
                remedy="give all parts the same columns",
            )
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


@numba.njit(cache=True)
def _sum_by_jet(p4: NDArray[np.float32], offsets: NDArray[np.int64]) -> NDArray[np.float64]:
    total = np.zeros((len(offsets) - 1, 4))
    for jet in range(len(offsets) - 1):
        for i in range(offsets[jet], offsets[jet + 1]):
            for k in range(4):
                total[jet, k] += p4[i, k]
    return total
