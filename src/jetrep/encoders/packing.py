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

__all__ = ["Group", "Packing", "pack"]

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
class Packing:
    """Where everything stands in the packed matrix of T rows.

    Attributes:
        source: (T,) for each packed row, its place in [prefix tokens of all sequences, real particles of all
            sequences]: sequences in the order view by view, jet by jet.
        prefix: (sequences, n_prefix) packed row of each prefix token.
        particles: for each view (batch, n) packed row of each particle; 0 where padded.
        real: (n_real,) places of the real particles in the flattened views laid end to end.
        groups: the attention groups, in order; together they cover all rows.
    """

    source: Tensor
    prefix: Tensor
    particles: tuple[Tensor, ...]
    real: Tensor
    groups: tuple[Group, ...]


def _cut(lengths: list[int], heads: int, device: str) -> list[tuple[int, int]]:
    """Ascending sequence lengths → (first, last + 1) of each group: padding on one side, overhead on the other."""
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
    """The group of the sequences with these ascending ``lengths``, the first of which begins at row ``start``."""
    n, longest, rows = len(lengths), lengths[-1], sum(lengths)
    if lengths[0] == longest:
        return Group(start, start + rows, n, longest)
    count = torch.tensor(lengths, device=device)
    place = torch.arange(longest, device=device)
    keep = place < count.unsqueeze(1)
    begin = (count.cumsum(0) - count).unsqueeze(1)
    pad = torch.where(keep, begin + place, begin).flatten()
    unpad = keep.flatten().nonzero().squeeze(1)
    bias = torch.zeros(n, 1, 1, longest, device=device).masked_fill_(~keep[:, None, None], float("-inf"))
    return Group(start, start + rows, n, longest, pad, unpad, bias)


def pack(masks: Sequence[Tensor], n_prefix: int, heads: int) -> Packing:
    """The packing of views with the given masks. On a GPU it waits once, for the lengths.

    Args:
        masks: for each view (batch, n) bool, True for a real particle.
        n_prefix: tokens put before the particles of each sequence.
        heads: attention heads, to weigh padding against the number of groups.
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
    particles = torch.split(torch.where(flat, row, 0), [mask.numel() for mask in masks])

    ascending: list[int] = lengths.tolist()
    groups, first_row = [], 0
    for first, last in _cut(ascending, heads, device.type):
        groups.append(_group(first_row, ascending[first:last], device))
        first_row = groups[-1].stop
    shaped = tuple(rows.view(mask.shape) for rows, mask in zip(particles, masks, strict=True))
    return Packing(source, prefix, shaped, real, tuple(groups))
