"""The two containers of the project: `Jets` (ragged, host, NumPy) and `JetBatch` (padded, device, torch)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, overload

import awkward as ak
import numba
import numpy as np
from numpy.typing import NDArray

from jetrep.errors import InputError
from jetrep.physics.clustering import Algorithm, MergeHistory, cluster
from jetrep.physics.fourvector import PX, PY

if TYPE_CHECKING:
    import torch

__all__ = ["JetBatch", "Jets"]


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
    """

    p4: NDArray[np.float32]
    offsets: NDArray[np.int64]
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()
    history: MergeHistory | None = field(default=None, repr=False)

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
        history = self.history
        return replace(
            self,
            p4=self.p4[source],
            offsets=offsets,
            labels=None if self.labels is None else self.labels[rows],
            history=None
            if history is None
            else MergeHistory(history.order[source], history.join[source], history.d_ij[source], offsets),
        )

    def _contiguous(self, start: int, stop: int) -> Jets:
        """Jets ``start:stop`` as views of the same memory."""
        offsets = self.offsets[start : stop + 1] - self.offsets[start]
        part = slice(self.offsets[start], self.offsets[stop])
        history = self.history
        return replace(
            self,
            p4=self.p4[part],
            offsets=offsets,
            labels=None if self.labels is None else self.labels[start:stop],
            history=None
            if history is None
            else MergeHistory(history.order[part], history.join[part], history.d_ij[part], offsets),
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
        counts = np.minimum(self.counts, n)
        return replace(
            self, p4=self.p4[by_pt[rank < n]], offsets=np.concatenate([[0], np.cumsum(counts)]), history=None
        )

    def sorted_by_pt(self) -> Jets:
        """All constituents in descending pT; the history, if any, is dropped."""
        return self.leading(int(self.counts.max(initial=0)))

    def with_labels(self, labels: NDArray[np.int64] | None, classes: Sequence[str] = ()) -> Jets:
        """The same jets under other labels."""
        return replace(self, labels=labels, classes=tuple(classes))

    def clustered(self, *, algorithm: Algorithm | float = "kt", R: float = 0.8) -> Jets:
        """The same jets with the merge history of their constituents (see `physics.clustering.cluster`)."""
        return replace(self, history=cluster(self.p4, self.offsets, algorithm=algorithm, R=R))

    def subjets(self, n_subjets: int | None = None, *, d_cut: float | None = None) -> Jets:
        """The jets at a coarser scale: one cut of their merge trees, in descending pT, without a history of their own.

        Args:
            n_subjets: number of subjets; jets with fewer constituents keep all of them.
            d_cut: or the distance at which to cut (see `MergeHistory.subjets`).

        Raises:
            InputError: if the jets have not been clustered, or not exactly one of the two is given.
        """
        if self.history is None:
            raise InputError("the jets have no merge history", field="history", remedy="call clustered() first")
        p4, offsets = self.history.subjets(self.p4, n=n_subjets, d_cut=d_cut)
        return replace(self, p4=p4, offsets=offsets, history=None)

    @staticmethod
    def concatenate(parts: Sequence[Jets]) -> Jets:
        """All jets of ``parts`` in order.

        Raises:
            InputError: if the parts disagree on their classes, or only some are labelled or clustered.
        """
        if len(parts) == 1:
            return parts[0]
        if len({part.classes for part in parts}) > 1 or len({part.labels is None for part in parts}) > 1:
            raise InputError(
                "parts have different classes, or only some are labelled",
                field="labels",
                remedy="give all parts the same classes",
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
            )
        return Jets(
            np.concatenate([part.p4 for part in parts]),
            offsets,
            np.concatenate(labels) if labels else None,
            parts[0].classes,
            history,
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
        records = ak.zip(
            {name: self.p4[:, i] for i, name in enumerate(("E", "px", "py", "pz"))}, with_name="Momentum4D"
        )
        return ak.Array(
            ak.contents.ListOffsetArray(ak.index.Index64(self.offsets), records.layout),
            behavior=records.behavior,
        )

    def batch(self, index: slice | Sequence[int] | NDArray[Any] | None = None) -> JetBatch:
        """The selected jets (all, if None), padded to the longest of them, as torch tensors on the CPU."""
        import torch  # keeps host-side work, such as simulation, free of torch's start-up time

        rows = np.arange(len(self))[index if index is not None else slice(None)]
        width = max(1, int(self.counts[rows].max(initial=1)))
        p4, mask = np.zeros((len(rows), width, 4), np.float32), np.zeros((len(rows), width), np.bool_)
        _pad(self.p4, self.offsets, rows, p4, mask)
        order = join = None
        if self.history is not None:
            order, join = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
            _pad_history(self.history.order, self.history.join, self.offsets, rows, order, join)
        padded = torch.from_numpy(p4)
        return JetBatch(
            p4=padded,
            mask=torch.from_numpy(mask),
            jet_p4=padded.sum(1, dtype=torch.float64).float(),
            labels=None if self.labels is None else torch.from_numpy(self.labels[rows]),
            order=None if order is None else torch.from_numpy(order),
            join=None if join is None else torch.from_numpy(join),
        )


@dataclass(frozen=True, eq=False)
class JetBatch:
    """A padded batch of jets, or of one view of jets, on one device.

    Attributes:
        p4: (batch, n, 4) float32, constituents (or subjets) as (E, px, py, pz) in GeV; zero where padded.
        mask: (batch, n) bool, True for a real constituent.
        jet_p4: (batch, 4) float32, four-momentum of the whole jet. A view keeps the axis and scale of the jet that it
            was made from, so all views of a jet measure Δη, Δφ and pT fractions against the same reference.
        labels: (batch,) int64, or None.
        order: (batch, n) int64, constituents in dendrogram order (see `physics.clustering`), or None.
        join: (batch, n) int64, merge number at each boundary, or None.
    """

    p4: torch.Tensor
    mask: torch.Tensor
    jet_p4: torch.Tensor
    labels: torch.Tensor | None = None
    order: torch.Tensor | None = None
    join: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.p4.shape[0]

    @property
    def counts(self) -> torch.Tensor:
        """(batch,) number of real constituents."""
        return self.mask.sum(1)

    def to(self, device: torch.device | str) -> JetBatch:
        """The same batch on another device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device, non_blocking=True) for k, v in tensors.items() if v is not None})


@numba.njit(cache=True)
def _sum_by_jet(p4: NDArray[np.float32], offsets: NDArray[np.int64]) -> NDArray[np.float64]:
    total = np.zeros((len(offsets) - 1, 4))
    for jet in range(len(offsets) - 1):
        for i in range(offsets[jet], offsets[jet + 1]):
            for k in range(4):
                total[jet, k] += p4[i, k]
    return total


@numba.njit(cache=True)
def _pad(
    flat: NDArray[np.float32],
    offsets: NDArray[np.int64],
    rows: NDArray[np.int64],
    p4: NDArray[np.float32],
    mask: NDArray[np.bool_],
) -> None:
    for b in range(len(rows)):
        start = offsets[rows[b]]
        n = offsets[rows[b] + 1] - start
        p4[b, :n] = flat[start : start + n]
        mask[b, :n] = True


@numba.njit(cache=True)
def _pad_history(
    order: NDArray[np.int32],
    join: NDArray[np.int32],
    offsets: NDArray[np.int64],
    rows: NDArray[np.int64],
    padded_order: NDArray[np.int64],
    padded_join: NDArray[np.int64],
) -> None:
    # Padding points at itself and never begins a subjet.
    for b in range(len(rows)):
        start = offsets[rows[b]]
        n = offsets[rows[b] + 1] - start
        for i in range(n):
            padded_order[b, i] = order[start + i]
            padded_join[b, i] = join[start + i]
        for i in range(n, padded_order.shape[1]):
            padded_order[b, i] = i
            padded_join[b, i] = -1
