r"""Features of pairs of particles, and the attention bias that Particle Transformer (arXiv 2202.03772) makes of them.

For particles a and b with transverse momenta p_T, rapidities y and azimuths φ:

=========  ==================================================================================
``ln Δ``   :math:`\Delta = \sqrt{(y_a - y_b)^2 + (\phi_a - \phi_b)^2}`
``ln kT``  :math:`k_T = \min(p_{T,a}, p_{T,b})\,\Delta`
``ln z``   :math:`z = \min(p_{T,a}, p_{T,b}) / (p_{T,a} + p_{T,b})`
``ln m²``  :math:`m^2 = (p_a + p_b)^2`
=========  ==================================================================================

All are symmetric, so each unordered pair of real particles is computed once, and padding never.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from jetrep.encoders.packing import Group

__all__ = ["PAIR_FEATURES", "PairBias", "pair_features"]

PAIR_FEATURES = ("log_kt", "log_z", "log_delta", "log_m2")
_FLOOR = 1e-8
_TWO_PI = 2 * math.pi


def pair_features(p4: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """(pairs, 4) `PAIR_FEATURES` of the particles ``first`` and ``second`` (pairs,), rows of ``p4`` (rows, 4) in GeV.

    Arguments of the logarithms are at least 1e-8, so a particle paired with itself has finite features too.
    """
    with torch.no_grad(), torch.autocast(p4.device.type, enabled=False):
        p4 = p4 if p4.dtype == torch.float64 else p4.float()
        energy, px, py, pz = p4.unbind(-1)
        pt = torch.sqrt(px * px + py * py)
        # y = ½ ln((E + pz) / (E − pz)), written so that it keeps its digits where pz is small
        rapidity = 0.5 * torch.log(1 + 2 * pz / (energy - pz).clamp(min=1e-20))
        phi = torch.atan2(py, px)
        table = torch.stack([pt, rapidity, phi, energy, px, py, pz], -1)
        a, b = table.index_select(0, first).unbind(-1), table.index_select(0, second).unbind(-1)
        d_phi = (a[2] - b[2]).abs()
        d_phi = torch.minimum(d_phi, _TWO_PI - d_phi)
        delta = torch.sqrt((a[1] - b[1]) ** 2 + d_phi**2)
        softer = torch.minimum(a[0], b[0])
        e, x, y, z = (a[k] + b[k] for k in (3, 4, 5, 6))
        m2 = e * e - (x * x + y * y + z * z)
        share = softer / (a[0] + b[0]).clamp(min=_FLOOR)
        return torch.stack([softer * delta, share, delta, m2], -1).clamp_(min=_FLOOR).log_()


class PairBias(nn.Module):
    """Pair features → a bias for the attention scores of each head: batch norm, then linear layers, each with a batch
    norm and GELU.

    Args:
        hidden: widths of the hidden layers.
        heads: attention heads.
        activated: whether GELU follows the last layer too.
    """

    def __init__(self, hidden: Sequence[int], heads: int, activated: bool) -> None:
        super().__init__()
        self.heads, self.activated = heads, activated
        sizes = [len(PAIR_FEATURES), *hidden, heads]
        self.norms = nn.ModuleList(nn.BatchNorm1d(size) for size in sizes)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, p4: Tensor, groups: Sequence[Group], lengths: Sequence[Tensor], n_prefix: int) -> list[Tensor]:
        """The bias of each attention group.

        Args:
            p4: (T, 4) packed: ``n_prefix`` rows for prefix tokens, then the particles of each sequence.
            groups: the groups of the packing.
            lengths: for each group (n,) particles of its sequences.
            n_prefix: tokens before the particles of each sequence.

        Returns:
            (n, heads, length, length) for each group, zero for pairs with padding or a prefix token.
        """
        pairs = [_pairs(group, length, n_prefix) for group, length in zip(groups, lengths, strict=True)]
        first, second = (torch.cat([pair[k] for pair in pairs]) for k in (0, 1))
        values = torch.split(self.embed(pair_features(p4, first, second).to(next(self.parameters()).dtype)), [len(pair[0]) for pair in pairs])
        return [
            _scattered(value, group, place, mirrored)
            for value, group, (_, _, place, mirrored) in zip(values, groups, pairs, strict=True)
        ]

    def embed(self, x: Tensor) -> Tensor:
        """(pairs, 4) features → (pairs, heads) biases."""
        x = self.norms[0](x)
        for k, (layer, norm) in enumerate(zip(self.layers, self.norms[1:], strict=True)):
            x = norm(layer(x))
            if self.activated or k + 1 < len(self.layers):
                x = nn.functional.gelu(x)
        return x


def _pairs(group: Group, lengths: Tensor, n_prefix: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All unordered pairs within the sequences of a group, each particle with itself included.

    Returns:
        for each pair the packed rows of both, and the places of (a, b) and (b, a) in the flattened (n, length, length)
        scores.
    """
    i, j = torch.tril_indices(group.length - n_prefix, group.length - n_prefix, device=lengths.device)
    sequence, pair = (i < lengths.unsqueeze(1)).nonzero(as_tuple=True)
    i, j = i[pair] + n_prefix, j[pair] + n_prefix
    rows = lengths + n_prefix
    begin = (group.start + rows.cumsum(0) - rows)[sequence]
    square = sequence * group.length**2
    return begin + i, begin + j, square + i * group.length + j, square + j * group.length + i


def _scattered(values: Tensor, group: Group, place: Tensor, mirrored: Tensor) -> Tensor:
    """(pairs, heads) → (n, heads, length, length), symmetric."""
    scores = values.new_zeros(group.n * group.length**2, values.shape[1])
    scores = scores.index_copy(0, place, values).index_copy(0, mirrored, values)
    return scores.view(group.n, group.length, group.length, -1).permute(0, 3, 1, 2)
