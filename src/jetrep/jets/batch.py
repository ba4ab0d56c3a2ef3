"""`JetBatch`: the padded container, on a device, in torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from jetrep.jets.ragged import Jets

__all__ = ["JetBatch", "padded"]


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
    width = max(1, int(jets.counts[rows].max(initial=1)))
    p4, mask = np.zeros((len(rows), width, 4), np.float32), np.zeros((len(rows), width), np.bool_)
    _pad(jets.p4, jets.offsets, rows, p4, mask)
    order = join = None
    if jets.history is not None:
        order, join = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
        _pad_history(jets.history.order, jets.history.join, jets.offsets, rows, order, join)
    particles = torch.from_numpy(p4)
    return JetBatch(
        p4=particles,
        mask=torch.from_numpy(mask),
        jet_p4=particles.sum(1, dtype=torch.float64).float(),
        labels=None if jets.labels is None else torch.from_numpy(jets.labels[rows]),
        order=None if order is None else torch.from_numpy(order),
        join=None if join is None else torch.from_numpy(join),
        measured={name: torch.from_numpy(_padded(v, jets.offsets, rows, width)) for name, v in jets.measured.items()},
    )


def _padded(
    values: NDArray[Any], offsets: NDArray[np.int64], rows: NDArray[np.int64], width: int
) -> NDArray[np.float32]:
    padded = np.zeros((len(rows), width), np.float32)
    _pad_column(values, offsets, rows, padded)
    return padded


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
def _pad_column(
    flat: NDArray[Any], offsets: NDArray[np.int64], rows: NDArray[np.int64], padded: NDArray[np.float32]
) -> None:
    for b in range(len(rows)):
        start = offsets[rows[b]]
        n = offsets[rows[b] + 1] - start
        for i in range(n):
            padded[b, i] = flat[start + i]


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
