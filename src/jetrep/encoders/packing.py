"""All views of all jets as one matrix of real tokens: nothing is computed for padding, except inside attention.

The sequences of all views (prefix tokens, then the real particles) are sorted by length and laid one after the other.
Norms, projections and feed-forward layers act on the rows of that matrix. Attention acts on *groups*: neighbours of
nearly equal length, contiguous in the matrix, padded to the longest of them. A group of equal lengths, such as a
view with N subjets of jets that all have N particles, needs neither padding nor a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Group", "Packing", "Reading", "pack"]

# One more group costs about as much as this many more attention scores (measured, per device type).
_GROUP_COST = {"cpu": 60_000, "cuda": 20_000_000}
# Scores of a group, so that those of the CPU stay in its cache, and those of a GPU in its memory.
_GROUP_BUDGET = {"cpu": 400_000, "cuda": 200_000_000}


@dataclass(frozen=True)
class Group:
    """Sequences that attend side by side.

    Attributes:
        start: first row in the packed matrix.
        stop: last row + 1.
        n: number of sequences.
        length: tokens of the longest.
        pad: (n · length,) row of the matrix (relative to ``start``) at each padded place; any row where there is none.
            None if all sequences have the same length.
        unpad: (stop − start,) padded place of each row, or None.
        bias: (n, 1, 1, length) added to the scores: 0 for real keys, −∞ for padding, or None.
    """

    start: int
    stop: int
    n: int
    length: int
    pad: Tensor | None = None
    unpad: Tensor | None = None
    bias: Tensor | None = None

    def padded(self, rows: Tensor) -> Tensor:
        """(stop − start, c) rows of the group → (n · length, c), with arbitrary finite rows at padded places."""
        return rows if self.pad is None else rows.index_select(0, self.pad)

    def padded_with_zeros(self, rows: Tensor) -> Tensor:
        """Like `padded`, but zero at padded places."""
        if self.unpad is None:
            return rows
        return rows.new_zeros(self.n * self.length, rows.shape[1]).index_copy_(0, self.unpad, rows)

    def unpadded(self, rows: Tensor) -> Tensor:
        """(n · length, c) → (stop − start, c), the inverse of `padded`."""
        return rows if self.unpad is None else rows.index_select(0, self.unpad)


@dataclass(frozen=True)
class Reading:
    """The tokens that are read after the last layer: nothing needs to be computed there for the others.

    Attributes:
        rows: (R,) packed rows of these tokens, ascending.
        groups: for each attention group its queries among these R rows.
    """

    rows: Tensor
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Packing:
    """Where everything stands in the packed matrix of T rows.

    Attributes:
        source: (T,) for each packed row, its place in [prefix tokens of all sequences, real particles of all
            sequences]: sequences in the order view by view, jet by jet.
        cls: (sequences,) row of each CLS token, among the packed rows, or among the rows read.
        particles: for each view (batch, n) row of each particle, likewise; arbitrary where there is none or
            where it is not read.
        real: (n_real,) places of the real particles in the flattened views laid end to end.
        groups: the attention groups, in order; together they cover all rows.
        order: (sequences,) which sequence, view by view and jet by jet, stands at each place of the matrix.
        lengths: (sequences,) tokens of each, in that order.
        reading: what is read after the last layer, or None for all.
    """

    source: Tensor
    cls: Tensor
    particles: tuple[Tensor, ...]
    real: Tensor
    groups: tuple[Group, ...]
    order: Tensor
    lengths: Tensor
    reading: Reading | None = None


def _cut(lengths: list[int], heads: int, device: str, one_group: bool) -> list[tuple[int, int]]:
    """Ascending sequence lengths → (first, last + 1) of each group: padding on one side, overhead on the other."""
    if one_group:
        return [(0, len(lengths))]
    group_cost = _GROUP_COST.get(device, _GROUP_COST["cuda"])
    budget = _GROUP_BUDGET.get(device, _GROUP_BUDGET["cuda"])
    groups, first = [], 0
    for i in range(1, len(lengths)):
        longer = lengths[i] ** 2 - lengths[i - 1] ** 2
        padding_costs_more = longer and (i - first) * longer * heads > group_cost
        if padding_costs_more or (i - first + 1) * lengths[i] ** 2 * heads > budget:
            groups.append((first, i))
            first = i
    return [*groups, (first, len(lengths))]


def _group(start: int, lengths: list[int], device: torch.device) -> Group:
    """The group of the sequences with these ``lengths``, the first of which begins at row ``start``."""
    n, longest, rows = len(lengths), max(lengths), sum(lengths)
    if min(lengths) == longest:
        return Group(start, start + rows, n, longest)
    count = torch.tensor(lengths, device=device)
    place = torch.arange(longest, device=device)
    keep = place < count.unsqueeze(1)
    begin = (count.cumsum(0) - count).unsqueeze(1)
    pad = torch.where(keep, begin + place, begin).flatten()
    unpad = keep.flatten().nonzero().squeeze(1)
    # A sequence without tokens has no key to leave, and nothing is read from it: finite scores keep gradients finite.
    padding = ~(keep | (count == 0).unsqueeze(1))
    bias = torch.zeros(n, 1, 1, longest, device=device).masked_fill_(padding[:, None, None], float("-inf"))
    return Group(start, start + rows, n, longest, pad, unpad, bias)


def _groups(cuts: Sequence[tuple[int, int]], lengths: list[int], device: torch.device) -> tuple[Group, ...]:
    groups: list[Group] = []
    for first, last in cuts:
        groups.append(_group(groups[-1].stop if groups else 0, lengths[first:last], device))
    return tuple(groups)


def pack(
    masks: Sequence[Tensor],
    n_prefix: int,
    heads: int,
    chosen: Sequence[Tensor | None] | None = None,
    one_group: bool = False,
) -> Packing:
    """The packing of views with the given masks. On a GPU it waits once, for the lengths.

    Args:
        masks: for each view (batch, n) bool, True for a real particle.
        n_prefix: tokens put before the particles of each sequence, the first of them the CLS token. Without any,
            `Packing.cls` is the first row of each sequence.
        heads: attention heads, to weigh padding against the number of groups.
        chosen: for each view (batch, n) bool, the real particles that will be read beside the CLS token, or None for
            none of them; by default everything will be read.
        one_group: all sequences attend side by side, whatever padding that costs.
    """
    device = masks[0].device
    counts = torch.cat([mask.sum(1) for mask in masks])
    lengths, order = (counts + n_prefix).sort(stable=True)
    start = torch.empty_like(lengths)
    start[order] = lengths.cumsum(0) - lengths
    prefix = start.unsqueeze(1) + torch.arange(n_prefix, device=device)
    rank = torch.cat([(mask.cumsum(1) - 1).flatten() for mask in masks])
    sequence = torch.arange(len(counts), device=device)
    widths = torch.tensor([mask.shape[1] for mask in masks for _ in range(len(mask))], device=device)
    row = rank + (start + n_prefix)[sequence.repeat_interleave(widths)]
    flat = torch.cat([mask.flatten() for mask in masks])
    real = flat.nonzero().squeeze(1)
    position = torch.cat([prefix.flatten(), row[real]])
    source = torch.empty_like(position)
    source[position] = torch.arange(len(position), device=device)
    row = torch.where(flat, row, 0)

    cls, reading = prefix[:, 0] if n_prefix else start, None
    if chosen is None:
        ascending: list[int] = lengths.tolist()
        cuts = _cut(ascending, heads, device.type, one_group)
    else:
        taken = [torch.zeros_like(m) if c is None else c & m for c, m in zip(chosen, masks, strict=True)]
        n_read = torch.cat([c.sum(1) for c in taken])[order] + 1
        ascending, read = torch.stack([lengths, n_read]).tolist()
        rows = torch.cat([cls, row[torch.cat([c.flatten() for c in taken])]]).sort().values
        place = torch.zeros_like(source)
        place[rows] = torch.arange(len(rows), device=device)
        cls, row = place[cls], place[row]
        cuts = _cut(ascending, heads, device.type, one_group)
        reading = Reading(rows, _groups(cuts, read, device))
    shapes = [mask.shape for mask in masks]
    particles = torch.split(row, [mask.numel() for mask in masks])
    shaped = tuple(rows.view(shape) for rows, shape in zip(particles, shapes, strict=True))
    return Packing(source, cls, shaped, real, _groups(cuts, ascending, device), order, lengths, reading)
