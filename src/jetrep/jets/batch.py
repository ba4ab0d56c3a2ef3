"""`JetBatch`: the padded container, on a device, in torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from jetrep.errors import InputError
from jetrep.jets.ragged import Jets

__all__ = ["JetBatch", "gathered", "padded"]


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
        measured: (batch, n) float32 each, what was measured beside the momentum; zero where padded. Only particles
            have it, views of subjets do not.
    """

    p4: torch.Tensor
    mask: torch.Tensor
    jet_p4: torch.Tensor
    labels: torch.Tensor | None = None
    order: torch.Tensor | None = None
    join: torch.Tensor | None = None
    measured: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.p4.shape[0]

    @property
    def counts(self) -> torch.Tensor:
        """(batch,) number of real constituents."""
        return self.mask.sum(1)

    def to(self, device: torch.device | str) -> JetBatch:
        """The same batch on another device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "measured"}
        moved = {k: v.to(device, non_blocking=True) for k, v in tensors.items() if v is not None}
        measured = {k: v.to(device, non_blocking=True) for k, v in self.measured.items()}
        return replace(self, **moved, measured=measured)


def padded(jets: Jets, rows: NDArray[np.int64]) -> JetBatch:
    """The jets ``rows``, padded to the longest of them, on the CPU."""
    return gathered([(jets, rows)])


def gathered(parts: Sequence[tuple[Jets, NDArray[np.int64]]], width: int = 0) -> JetBatch:
    """One batch of jets from several places, on the CPU.

    Args:
        parts: jets with the same columns, and which rows of them; they follow each other in the batch.
        width: pad to this many constituents; 0 pads to the longest jet of the batch.

    Raises:
        InputError: if a jet has more constituents than ``width``.
    """
    counts = [jets.offsets[rows + 1] - jets.offsets[rows] for jets, rows in parts]
    longest = max((int(n.max(initial=1)) for n in counts), default=1)
    if width and longest > width:
        raise InputError(
            f"a jet of {longest} constituents does not fit into {width}",
            field="width",
            remedy="choose a larger width, or fewer particles",
        )
    starts = np.cumsum([0, *map(len, counts)])
    size, width = int(starts[-1]), width or longest
    # Every element is written once, padding included: pages that come zeroed from the system would be touched twice.
    p4, mask = np.empty((size, width, 4), np.float32), np.empty((size, width), np.bool_)
    jet_p4 = np.empty((size, 4), np.float32)
    first = parts[0][0]
    order = join = None
    if first.history is not None:
        order, join = np.empty((size, width), np.int64), np.empty((size, width), np.int64)
    measured = {name: np.empty((size, width), np.float32) for name in first.measured}
    for (jets, rows), start, stop in zip(parts, starts, starts[1:], strict=False):
        _pad(jets.p4, jets.offsets, rows, p4[start:stop], mask[start:stop], jet_p4[start:stop])
        if order is not None and join is not None:
            assert jets.history is not None
            own = order[start:stop], join[start:stop]
            _pad_history(jets.history.order, jets.history.join, jets.offsets, rows, *own)
        for name, column in measured.items():
            _pad_column(jets.measured[name], jets.offsets, rows, column[start:stop])
    labels = None
    if first.labels is not None:
        labels = np.concatenate([jets.truth[rows] for jets, rows in parts])
    return JetBatch(
        p4=torch.from_numpy(p4),
        mask=torch.from_numpy(mask),
        jet_p4=torch.from_numpy(jet_p4),
        labels=None if labels is None else torch.from_numpy(labels),
        order=None if order is None else torch.from_numpy(order),
        join=None if join is None else torch.from_numpy(join),
        measured={name: torch.from_numpy(column) for name, column in measured.items()},
    )


@numba.njit(cache=True, nogil=True)
def _pad(
    flat: NDArray[np.float32],
    offsets: NDArray[np.int64],
    rows: NDArray[np.int64],
    p4: NDArray[np.float32],
    mask: NDArray[np.bool_],
    jet_p4: NDArray[np.float32],
) -> None:
    width = p4.shape[1]
    for b in range(len(rows)):
        start = offsets[rows[b]]
        n = offsets[rows[b] + 1] - start
        e, x, y, z = 0.0, 0.0, 0.0, 0.0
        for i in range(n):
            for k in range(4):
                p4[b, i, k] = flat[start + i, k]
            e += flat[start + i, 0]
            x += flat[start + i, 1]
            y += flat[start + i, 2]
            z += flat[start + i, 3]
        jet_p4[b, 0], jet_p4[b, 1], jet_p4[b, 2], jet_p4[b, 3] = e, x, y, z
        p4[b, n:] = 0.0
        mask[b, :n] = True
        mask[b, n:width] = False


@numba.njit(cache=True, nogil=True)
def _pad_column(
    flat: NDArray[Any], offsets: NDArray[np.int64], rows: NDArray[np.int64], padded: NDArray[np.float32]
) -> None:
    for b in range(len(rows)):
        start = offsets[rows[b]]
        n = offsets[rows[b] + 1] - start
        for i in range(n):
            padded[b, i] = flat[start + i]
        padded[b, n:] = 0.0


@numba.njit(cache=True, nogil=True)
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
