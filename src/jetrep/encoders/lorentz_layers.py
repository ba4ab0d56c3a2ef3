r"""Layers that commute with Lorentz transformations: invariant scalars (batch, n, C0), four-vectors (batch, n, 4, C1).

Channels come last: a linear map between vectors is one matrix product. Weights depend on particles only through
invariants.

**Messages.** Particle j sends to particle i, in each head h, :math:`w_{ij}` times a scalar, times a vector, and times
products of both with :math:`p_i - p_j`, where :math:`w_{ij}` is a function of :math:`p_i\cdot p_j`. No edge is ever
formed, because the sums factorise:

.. math::
   \sum_j w_{ij} (p_i - p_j) c_j = p_i (wc)_i - (w(cp))_i, \qquad
   \sum_j w_{ij} (p_i - p_j)\cdot b_j = p_i\cdot(wb)_i - (w(p\cdot b))_i.

One batched matrix product for each layer is all that costs n². The sums are divided by the number of particles, or
weighted by the energies of those that send.

**Reference vector.** Layers take a time-like unit vector u (the four-velocity of the jet) beside the vectors. With it,
:math:`2(u\cdot v)^2 - v\cdot v` is positive for every v ≠ 0, also for space-like and light-like ones, and serves as
norm: it is the Euclidean norm in the rest frame of u. Vectors are divided by its root mean square over the channels.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jetrep.encoders.lorentz_tensors import TensorMixer, Tensors
from jetrep.physics.lorentz import METRIC

__all__ = ["LorentzBlock", "LorentzStack", "PairWeights", "Particles", "VectorNorm", "dot", "positive_norm2"]

# Scales of the features of pairs, in units of the squared jet mass: p_i·p_j of 30 particles is 1e-3 on average.
_LOG_SCALES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
_BELL_SCALES = (1e-4, 1e-3, 1e-2)
_TINY = 1e-12


class Particles(NamedTuple):
    """What a layer works on.

    Attributes:
        s: (batch, n, C0) scalars.
        v: (batch, n, 4, C1) vectors.
        t: rank-2 tensors, or None where there are none.
    """

    s: Tensor
    v: Tensor
    t: Tensors | None = None


def lowered(v: Tensor) -> Tensor:
    """ηv for (..., 4, C): the sign of the momenta is turned."""
    return v * torch.tensor(METRIC, dtype=v.dtype, device=v.device).unsqueeze(-1)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Product a·b of (..., 4, C) vectors, channel by channel: (..., C)."""
    return (lowered(a) * b).sum(-2)


def positive_norm2(v: Tensor, u: Tensor) -> Tensor:
    """2(u·v)² − v·v of (..., 4, C) vectors for a time-like unit vector u (..., 4, 1): (..., C), never negative."""
    return (2 * dot(u, v).square() - dot(v, v)).clamp(min=0)


class VectorNorm(nn.Module):
    """Vectors over their root mean square `positive_norm2`, with a gain for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, v: Tensor, u: Tensor) -> Tensor:
        """(..., 4, C) vectors, u (..., 4, 1)."""
        mean = positive_norm2(v, u).mean(-1)
        return v * (torch.rsqrt(mean + 1e-6)[..., None, None] * self.gain)


class PairWeights(nn.Module):
    """The weights w_ij of all layers and heads from p_i·p_j.

    Their features are log(1 + |x|/a), odd in x, and Lorentzian bells 1/(1 + (x/b)²), x = p_i·p_j, on a ladder of scales
    a and b: together they resolve p_i·p_j over six decades.

    Args:
        outputs: layers times heads.
    """

    log_scale: Tensor
    bell_scale: Tensor

    def __init__(self, outputs: int) -> None:
        super().__init__()
        features = len(_LOG_SCALES) + len(_BELL_SCALES)
        self.linear = nn.Linear(features, outputs)
        self.register_buffer("log_scale", torch.tensor(_LOG_SCALES).reciprocal(), persistent=False)
        self.register_buffer("bell_scale", torch.tensor(_BELL_SCALES).reciprocal(), persistent=False)

    def forward(self, p: Tensor, like: Tensor) -> Tensor:
        """(batch, n, 4) momenta in units of the jet mass → (batch, outputs, n, n), in the precision of ``like``.

        Products of momenta in float64 are taken in float64: they cancel for collinear particles.
        """
        n = p.shape[1]
        gram = (p * p.new_tensor(METRIC)) @ p.mT
        x = gram.to(like.dtype).flatten(1).unsqueeze(1)
        # Logarithms of order one: the smallest scale gives up to log(1e6) ≈ 14.
        logs = 0.25 * torch.copysign(torch.log1p(x.abs() * self.log_scale.unsqueeze(-1)), x)
        bells = torch.reciprocal(1 + (x * self.bell_scale.unsqueeze(-1)).square())
        features = torch.cat([logs, bells], 1)
        weights = torch.matmul(self.linear.weight, features) + self.linear.bias.unsqueeze(-1)
        return torch.unflatten(weights, -1, (n, n))


class LorentzBlock(nn.Module):
    """Norm, messages, products, feed-forward network, residual; see the module.

    Args:
        scalars: channels of scalars C0.
        vectors: channels of vectors C1.
        heads: weights w_ij; both numbers of channels are multiples of it.
        hidden: hidden features of the feed-forward network.
        tensors: channels of rank-2 tensors, 0 for none.
    """

    def __init__(self, scalars: int, vectors: int, heads: int, hidden: int, tensors: int = 0) -> None:
        super().__init__()
        self.scalars, self.vectors, self.heads = scalars, vectors, heads
        self.norm_s, self.norm_v = nn.LayerNorm(scalars), VectorNorm(vectors)
        self.values_s = nn.Linear(scalars, scalars + vectors)
        self.values_v = nn.Linear(vectors, vectors, bias=False)
        self.mixer = TensorMixer(vectors, tensors, heads) if tensors else None
        sources = 3 + (2 if tensors else 0)
        self.mix_v = nn.Linear(sources * vectors, 3 * vectors, bias=False)
        invariants = 2 * scalars + 4 * vectors + (0 if self.mixer is None else self.mixer.invariants)
        self.fc1 = nn.Linear(invariants, hidden)
        self.fc2 = nn.Linear(hidden, scalars + vectors)

    def _by_head(self, x: Tensor) -> Tensor:
        """(batch, n, C) → (batch, n, heads, C / heads); (batch, n, 4, C) → (batch, n, heads, 4 · C / heads)."""
        if x.dim() == 3:
            return torch.unflatten(x, -1, (self.heads, -1))
        return torch.unflatten(x, -1, (self.heads, -1)).transpose(2, 3).flatten(3)

    def _messages(self, a: Tensor, c: Tensor, b: Tensor, p: Tensor, w: Tensor, share: Tensor) -> list[Tensor]:
        """Σ_j w_ij of scalars a, c, vectors b, and of p·b and cp: the two that products with p_i − p_j need."""
        columns = [a, c, dot(p, b), b, c.unsqueeze(2) * p]
        packed = torch.cat([self._by_head(x) for x in columns], -1)
        sums = (w @ (packed * share.unsqueeze(-1)).transpose(1, 2)).transpose(1, 2)
        per_head = self.vectors // self.heads
        parts = torch.split(sums, [self.scalars // self.heads, *[per_head] * 2, *[4 * per_head] * 2], -1)
        scalars = [x.flatten(2) for x in parts[:3]]
        return scalars + [torch.unflatten(x, -1, (4, -1)).transpose(2, 3).flatten(3) for x in parts[3:]]

    def forward(self, x: Particles, p: Tensor, u: Tensor, w: Tensor, share: Tensor) -> Particles:
        """One layer.

        Args:
            x: features of the particles.
            p: (batch, n, 4, 1) momenta of order one.
            u: (batch, 1, 4, 1) four-velocity of the jet.
            w: (batch, heads, n, n) weights.
            share: (batch, n, 1) weight of each particle in the sums, zero for padding.

        Returns:
            The features after it; those of padding are arbitrary and finite.
        """
        s, v = self.norm_s(x.s), self.norm_v(x.v, u)
        a, c = self.values_s(s).split([self.scalars, self.vectors], -1)
        a, c, pb, b, cp = self._messages(a, c, self.values_v(v), p, w, share)
        sources, invariants = [v, b, p * c.unsqueeze(2) - cp], [s, a, dot(p, b) - pb]
        t = x.t
        if self.mixer is not None and t is not None:
            t, from_tensors, more = self.mixer(t, v, u, w, share)
            sources += from_tensors
            invariants.append(more)
        y, left, right = self.mix_v(torch.cat(sources, -1)).split(self.vectors, -1)
        # A residual stream of scale one keeps products of order one.
        invariants += [dot(left, right), dot(u, left), dot(p, right)]
        update, gate = self.fc2(F.gelu(self.fc1(torch.cat(invariants, -1)))).split([self.scalars, self.vectors], -1)
        return Particles(x.s + update, x.v + y * torch.sigmoid(gate).unsqueeze(2), t)


class LorentzStack(nn.Module):
    """Weights of pairs and ``depth`` blocks.

    Args:
        scalars: channels of scalars.
        vectors: channels of vectors.
        heads: weights w_ij in each block.
        hidden: hidden features of the feed-forward networks.
        depth: number of blocks.
        tensors: channels of antisymmetric and of symmetric traceless rank-2 tensors, 0 for none.
    """

    def __init__(self, scalars: int, vectors: int, heads: int, hidden: int, depth: int, tensors: int = 0) -> None:
        super().__init__()
        self.heads, self.tensors = heads, tensors
        self.pairs = PairWeights(depth * heads)
        self.blocks = nn.ModuleList(LorentzBlock(scalars, vectors, heads, hidden, tensors) for _ in range(depth))
        self.norm_s, self.norm_v = nn.LayerNorm(scalars), VectorNorm(vectors)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the blocks, with these settings of ``torch.compile``.

        They are alike, so what is compiled for one serves all, those of an encoder and of its decoder too: a minute on
        a processor, where both halves as a whole take several.
        """
        forward = torch.compile(LorentzBlock.forward, *args, **kwargs)
        for block in self.blocks:
            block.forward = partial(forward, block)  # type: ignore[arg-type]

    def forward(
        self, s: Tensor, v: Tensor, p: Tensor, u: Tensor, mask: Tensor, share: Tensor | None = None
    ) -> Particles:
        """Scalars (batch, n, C0) and vectors (batch, n, 4, C1) → the same, normalised, zero where padded.

        Args:
            s: scalars.
            v: vectors.
            p: (batch, n, 4) momenta in units of the jet mass, whose products make the weights; zero where padded.
            u: (batch, 1, 4, 1) four-velocity of the jet.
            mask: (batch, n) bool, True for a real particle.
            share: (batch, n, 1) weight of each particle in the sums, zero where padded; then ``p`` is of order one. By
                default one over the number of particles, and ``p`` is larger the fewer there are.
        """
        real = mask.unsqueeze(-1).to(s.dtype)
        weights = self.pairs(p, s).split(self.heads, 1)
        # Of order one, as are all vectors that it is multiplied with.
        scaled = p.to(s.dtype).unsqueeze(-1)
        if share is None:
            count = real.sum(1, keepdim=True).clamp(min=1)
            scaled, share = scaled * count.unsqueeze(-1).sqrt(), real / count
        x = Particles(s, v, Tensors.zeros(v, self.tensors) if self.tensors else None)
        # A stack that was cut has weights left over.
        for block, w in zip(self.blocks, weights, strict=False):
            x = block(x, scaled, u, w, share)
        return Particles(self.norm_s(x.s) * real, self.norm_v(x.v, u) * real.unsqueeze(-1))
