"""One set of scalars and vectors for a jet, from those of its particles, without regard to their order.

=============  ========================================================================================
mean           over the particles
min, max       of each channel, the scalar of smallest or largest value, the vector of smallest or largest v·v, which is
               that of one particle: its components are never chosen apart. Of two massless particles, mirror images
               in the rest frame of their jet, rounding chooses one
min&max        both, one after the other: twice the channels
mix            a linear map of the channels of all particles at once, which knows the particles by their place: the
               only one that depends on their order, and on how many there may be
attention      mean with weights that are a softmax, over the particles, of a linear map of the scalars
=============  ========================================================================================
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from jetrep.encoders.lorentz_layers import dot

__all__ = ["Aggregation", "LorentzPooling"]

Aggregation = Literal["mean", "min", "max", "min&max", "mix", "attention"]


def _extreme(values: Tensor, key: Tensor, mask: Tensor, largest: bool) -> Tensor:
    """Of (batch, n, …, C) values, those at the particle where ``key`` (batch, n, C) is extreme; zero without any."""
    worst = float("-inf") if largest else float("inf")
    masked = key.masked_fill(~mask.unsqueeze(-1), worst)
    index = (masked.argmax(1) if largest else masked.argmin(1)).unsqueeze(1)
    if values.dim() == 4:
        index = index.unsqueeze(2).expand(-1, -1, 4, -1)
    chosen = values.gather(1, index).squeeze(1)
    empty = ~mask.any(1).view(-1, *[1] * (chosen.dim() - 1))
    return chosen.masked_fill(empty, 0.0)


class LorentzPooling(nn.Module):
    """Particles → jet; see the module.

    Args:
        scalars: channels of the scalars.
        vectors: channels of the vectors.
        kept_scalars: scalars of a jet.
        kept_vectors: vectors of a jet; 'min&max' keeps as many of each.
        aggregation: how.
        n_particles: for "mix", the largest number of particles.
    """

    def __init__(
        self,
        scalars: int,
        vectors: int,
        kept_scalars: int,
        kept_vectors: int,
        aggregation: Aggregation,
        n_particles: int | None = None,
    ) -> None:
        super().__init__()
        self.aggregation, self.n_particles = aggregation, n_particles
        times = 2 if aggregation == "min&max" else 1
        self.n_scalars, self.n_vectors = times * kept_scalars, times * kept_vectors
        slots = n_particles if aggregation == "mix" and n_particles is not None else 1
        self.keep_s = nn.Linear(slots * scalars, kept_scalars, bias=False)
        self.keep_v = nn.Linear(slots * vectors, kept_vectors, bias=False)
        self.scores = nn.Linear(scalars, kept_scalars + kept_vectors) if aggregation == "attention" else None

    @torch.no_grad()
    def shrink(self, factor: float) -> None:
        """Multiply the vectors that come out by this."""
        self.keep_v.weight.mul_(factor)

    def _all_places(self, x: Tensor) -> Tensor:
        """(batch, n, …, C), zero where padded → (batch, …, n_particles · C)."""
        places = self.n_particles or x.shape[1]
        if x.shape[1] > places:
            raise ValueError(f"{x.shape[1]} particles do not fit into the {places} places of 'mix'")
        filled = torch.cat([x, x.new_zeros(len(x), places - x.shape[1], *x.shape[2:])], 1)
        return filled.movedim(1, -2).flatten(-2)

    def forward(self, s: Tensor, v: Tensor, mask: Tensor, share: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(batch, n, C0) and (batch, n, 4, C1), zero where padded → (batch, n_scalars), (batch, 4, n_vectors).

        With ``share`` (batch, n, 1), "mean" and "attention" weight particles by it.
        """
        if self.aggregation == "mix":
            return self.keep_s(self._all_places(s)), self.keep_v(self._all_places(v))
        kept_s, kept_v = self.keep_s(s), self.keep_v(v)
        if self.scores is not None:
            scores = self.scores(s).masked_fill(~mask.unsqueeze(-1), float("-inf"))
            # Without particles all scores are −∞: the weights are made zero, not NaN.
            scores = scores.masked_fill(~mask.any(1)[:, None, None], 0.0)
            weights = scores.softmax(1) * mask.unsqueeze(-1)
            if share is not None:
                weights = weights * share
                weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-20)
            for_s, for_v = weights.split([kept_s.shape[-1], kept_v.shape[-1]], -1)
            return (for_s * kept_s).sum(1), (for_v.unsqueeze(2) * kept_v).sum(1)
        if self.aggregation == "mean":
            if share is not None:
                return (share * kept_s).sum(1), (share.unsqueeze(-1) * kept_v).sum(1)
            count = mask.sum(1, keepdim=True).clamp(min=1).to(s.dtype)
            return kept_s.sum(1) / count, kept_v.sum(1) / count.unsqueeze(-1)
        mass2 = dot(kept_v, kept_v)
        ends = [largest for largest in (False, True) if self.aggregation in ("min&max", "max" if largest else "min")]
        picked_s = [_extreme(kept_s, kept_s, mask, largest) for largest in ends]
        picked_v = [_extreme(kept_v, mass2, mask, largest) for largest in ends]
        return torch.cat(picked_s, -1), torch.cat(picked_v, -1)
