r"""Features of pairs of particles, and the attention bias that Particle Transformer (arXiv 2202.03772) makes of them.

For particles a and b with transverse momenta p_T, rapidities y and azimuths φ:

=========  ==================================================================================
``ln Δ``   :math:`\Delta = \sqrt{(y_a - y_b)^2 + (\phi_a - \phi_b)^2}`
``ln kT``  :math:`k_T = \min(p_{T,a}, p_{T,b})\,\Delta`
``ln z``   :math:`z = \min(p_{T,a}, p_{T,b}) / (p_{T,a} + p_{T,b})`
``ln m²``  :math:`m^2 = (p_a + p_b)^2`
=========  ==================================================================================

The extended set relates them to their jet, the sum P of the particles that are seen, with mass m_J. Energies in its
rest frame are :math:`E^* = p \cdot P / m_J`:

==================  =========================================================================
``ln kT/pT``        with the p_T of the jet, as in the next but one
``ln m²/m_J²``      the mass of the pair in units of the jet's
``ln pT/pT``        :math:`|\vec p_{T,a} + \vec p_{T,b}|`
``ln x*``           :math:`x^* = (E^*_a + E^*_b) / m_J`
``ln z*``           :math:`z^* = \min(E^*_a, E^*_b) / (E^*_a + E^*_b)`
``cos θ*``          :math:`1 - m^2 / (2 E^*_a E^*_b)`, of the opening angle of massless particles
==================  =========================================================================

All are symmetric, so each unordered pair of real particles is computed once, and padding never.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from jetrep.encoders.packing import Group

__all__ = ["EXTENDED_PAIR_FEATURES", "PAIR_FEATURES", "PairBias", "Pairs", "pair_features", "pairs_of"]

PAIR_FEATURES = ("log_kt", "log_z", "log_delta", "log_m2")
EXTENDED_PAIR_FEATURES = (
    *PAIR_FEATURES,
    *("log_kt_rel", "log_m2_rel", "log_pt_rel", "log_rest_energy", "log_rest_z", "rest_cos"),
)
_FLOOR = 1e-8
_TWO_PI = 2 * math.pi
# Single precision does not know a smaller m²/E² of a jet.
_LEAST_M2 = 1e-6


def pair_features(p4: Tensor, first: Tensor, second: Tensor, jet: Tensor | None = None) -> Tensor:
    """Features of pairs of particles; each is a row of ``p4``.

    Arguments of the logarithms are at least 1e-8, so a particle paired with itself has finite features too. A particle
    without transverse momentum, as one that is hidden, has no direction: its Δ is 0.

    Args:
        p4: (rows, 4) in GeV.
        first: (pairs,) rows of one of both.
        second: (pairs,) rows of the other.
        jet: (rows, 4) the jet of each row, for the extended set.

    Returns:
        (pairs, 4) `PAIR_FEATURES`, or (pairs, 10) `EXTENDED_PAIR_FEATURES`.
    """
    with torch.no_grad(), torch.autocast(p4.device.type, enabled=False):
        p4 = p4 if p4.dtype == torch.float64 else p4.float()
        energy, px, py, pz = p4.unbind(-1)
        pt = torch.sqrt(px * px + py * py)
        # y = ½ ln((E + pz) / (E − pz)), written so that it keeps its digits where pz is small
        rapidity = 0.5 * torch.log((1 + 2 * pz / (energy - pz).clamp(min=1e-20)).clamp(min=1e-20))
        phi = torch.atan2(py, px)
        columns = [pt, rapidity, phi, energy, px, py, pz]
        if jet is not None:
            columns += _of_jet(p4, jet.to(p4.dtype))
        table = torch.stack(columns, -1)
        a, b = table.index_select(0, first).unbind(-1), table.index_select(0, second).unbind(-1)
        d_phi = (a[2] - b[2]).abs()
        d_phi = torch.minimum(d_phi, _TWO_PI - d_phi)
        delta = torch.sqrt((a[1] - b[1]) ** 2 + d_phi**2)
        softer = torch.minimum(a[0], b[0])
        delta = delta * (softer > 0)
        e, x, y, z = (a[k] + b[k] for k in (3, 4, 5, 6))
        m2 = e * e - (x * x + y * y + z * z)
        share = softer / (a[0] + b[0]).clamp(min=_FLOOR)
        published = [softer * delta, share, delta, m2]
        if jet is None:
            return torch.stack(published, -1).clamp_(min=_FLOOR).log_()
        own, other, log_pt, log_m2 = a[7], b[7], a[8], a[9]
        both = own + other
        logs = [*published, torch.sqrt(x * x + y * y), both, torch.minimum(own, other) / both]
        kt, z, d, m, pair_pt, rest, rest_z = torch.stack(logs).clamp_(min=_FLOOR).log_()
        cos = (1 - m2 / (2 * own * other)).clamp_(-1, 1)
        return torch.stack(
            [kt, z, d, m, kt - log_pt, m - log_m2, pair_pt - log_pt, rest - 0.5 * log_m2, rest_z, cos], -1
        )


def _of_jet(p4: Tensor, jet: Tensor) -> list[Tensor]:
    """(rows,) energy of each particle in the rest frame of its jet, and ln pT and ln m² of the jet."""
    e, x, y, z = jet.unbind(-1)
    pt2, least = x * x + y * y, (_LEAST_M2 * e * e).clamp(min=_FLOOR)
    m2 = (e * e - pt2 - z * z).maximum(least)
    product = p4[:, 0] * e - (p4[:, 1:] * jet[:, 1:]).sum(-1)
    rest = (product / m2.sqrt()).clamp(min=_FLOOR)
    return [rest, 0.5 * pt2.clamp(min=_FLOOR).log(), m2.log()]


Pairs = tuple[Tensor, Tensor, Tensor, Tensor]
"""For each pair of a group the packed rows of both, and the places of (a, b) and (b, a) in its flattened (n, length,
length) scores."""


class PairBias(nn.Module):
    """Pair features → a bias for the attention scores of each head: batch norm, then linear layers, each with a batch
    norm and GELU.

    Args:
        hidden: widths of the hidden layers.
        heads: attention heads.
        activated: whether GELU follows the last layer too.
        extended: whether it sees `EXTENDED_PAIR_FEATURES`.
        bf16: compute and keep the bias in bfloat16.
    """

    def __init__(
        self, hidden: Sequence[int], heads: int, activated: bool, extended: bool = False, bf16: bool = False
    ) -> None:
        super().__init__()
        self.heads, self.activated, self.extended, self.bf16 = heads, activated, extended, bf16
        sizes = [len(EXTENDED_PAIR_FEATURES if extended else PAIR_FEATURES), *hidden, heads]
        self.norms = nn.ModuleList(nn.BatchNorm1d(size) for size in sizes)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(
        self, p4: Tensor, pairs: Sequence[Pairs], groups: Sequence[Group], sequence: Tensor, jets: int
    ) -> list[Tensor]:
        """What is added to the scores of each attention group.

        Args:
            p4: (T, 4) packed.
            pairs: those of each group, from `pairs_of`.
            groups: the groups of the packing.
            sequence: (T,) of which jet each row is.
            jets: their number.

        Returns:
            (heads, n, length, length) for each group: zero for pairs with a prefix token, −∞ for padded keys.
        """
        first, second = (_joined([pair[k] for pair in pairs]) for k in (0, 1))
        jet = None
        if self.extended:
            jet = p4.new_zeros(jets, 4).index_add_(0, sequence, p4).index_select(0, sequence)
        features = pair_features(p4, first, second, jet).to(next(self.parameters()).dtype)
        with torch.autocast(p4.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            values = self.embed(features)
        parts = [values] if len(pairs) == 1 else torch.split(values, [len(pair[0]) for pair in pairs])
        return [
            _Scatter.apply(part, *pair[2:], group.bias, group.n, group.length)  # type: ignore[no-untyped-call]
            for part, group, pair in zip(parts, groups, pairs, strict=True)
        ]

    def embed(self, x: Tensor) -> Tensor:
        """(pairs, features) → (pairs, heads) biases."""
        x = self.norms[0](x)
        for k, (layer, norm) in enumerate(zip(self.layers, self.norms[1:], strict=True)):
            x = norm(layer(x))
            if self.activated or k + 1 < len(self.layers):
                x = nn.functional.gelu(x)
        return x


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def pairs_of(group: Group, lengths: Tensor, n_prefix: int) -> Pairs:
    """All unordered pairs within the sequences of a group, each particle with itself included.

    Args:
        group: a group of the packing.
        lengths: (n,) particles of its sequences.
        n_prefix: tokens before the particles of each sequence, which have no pairs.
    """
    i, j = torch.tril_indices(group.length - n_prefix, group.length - n_prefix, device=lengths.device)
    sequence, pair = (i < lengths.unsqueeze(1)).nonzero(as_tuple=True)
    i, j = i[pair] + n_prefix, j[pair] + n_prefix
    rows = lengths + n_prefix
    begin = (group.start + rows.cumsum(0) - rows)[sequence]
    square = sequence * group.length**2
    return begin + i, begin + j, square + i * group.length + j, square + j * group.length + i


class _Scatter(torch.autograd.Function):
    """(pairs, heads) → (heads, n, length, length), symmetric, with −∞ for padded keys."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, place: Tensor, mirrored: Tensor, padding: Tensor | None, n: int, length: int
    ) -> Tensor:
        ctx.save_for_backward(place, mirrored)
        scores = values.new_zeros(values.shape[1], n, length, length)
        if padding is not None:
            scores += padding.view(n, 1, length).to(scores.dtype)
        flat = scores.view(values.shape[1], -1)
        flat.index_copy_(1, place, values.T)
        flat.index_copy_(1, mirrored, values.T)
        return scores

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        place, mirrored = ctx.saved_tensors
        flat = gradients[0].flatten(1)
        once = (place != mirrored).to(flat.dtype)  # a particle with itself stands in one place
        found = flat.index_select(1, place) + flat.index_select(1, mirrored) * once
        # Rows side by side: the batch norm before this is thirty times slower on a GPU otherwise.
        return found.T.contiguous(), None, None, None, None, None
