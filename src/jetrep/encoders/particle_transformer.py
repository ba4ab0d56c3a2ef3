"""`ParticleTransformer`: the Particle Transformer of arXiv 2202.03772, and switches for what improves it.

The default configuration is the published network: embedding, eight blocks with normalisation inside (NormFormer,
arXiv 2110.09456) whose attention is biased by pairs of particles, two class-attention blocks (arXiv 2103.17239). Each
switch of `ParticleTransformerConfig` changes one thing.

Nothing but attention scores is computed for padding: tokens and pairs of all jets are packed (`encoders.packing`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jetrep.encoders.base import Encoded, JetEncoder, Symmetry
from jetrep.encoders.dropout import dropout
from jetrep.encoders.layers import build_norm
from jetrep.encoders.packing import Packing, pack
from jetrep.encoders.pairs import PairBias, Pairs, pairs_of
from jetrep.encoders.particle_transformer_config import PARTS, ParticleTransformerConfig
from jetrep.features import ModelInput

__all__ = ["PARTS", "ParticleTransformer", "ParticleTransformerConfig"]


class _Attention(nn.Module):
    """Multi-head attention of packed tokens, with what the configuration adds to it."""

    def __init__(self, config: ParticleTransformerConfig, dropout: float) -> None:
        super().__init__()
        width = config.width
        self.heads, self.dropout = config.heads, dropout
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.gate = nn.Linear(width, width) if config.gate else None
        size = width // config.heads
        self.q_norm = build_norm(config.norm, size) if config.qk_norm else None
        self.k_norm = build_norm(config.norm, size) if config.qk_norm else None

    def split(self, x: Tensor, norm: nn.Module | None) -> Tensor:
        """(rows, width) → (rows, heads, head dim), normalised if there is a norm."""
        x = x.view(len(x), self.heads, x.shape[1] // self.heads)
        return x if norm is None else norm(x)

    def forward(self, x: Tensor, packing: Packing, bias: Sequence[Tensor | None]) -> Tensor:
        """Self-attention within each sequence: (T, width) → (T, width). ``bias`` is added to the scores of a group."""
        rows, width = self.qkv(x), x.shape[1]
        if self.q_norm is not None:
            q, k, v = rows.chunk(3, -1)
            rows = torch.cat([self.split(q, self.q_norm).flatten(1), self.split(k, self.k_norm).flatten(1), v], -1)
        mixed = []
        for group, mask in zip(packing.groups, bias, strict=True):
            own = rows if len(packing.groups) == 1 else rows[group.start : group.stop]
            padded = group.padded(own).view(group.n, group.length, 3, self.heads, width // self.heads)
            q, k, v = padded.permute(2, 3, 0, 1, 4).unbind()
            out = self._mixed(q, k, v, mask)
            mixed.append(group.unpadded(out.permute(1, 2, 0, 3).reshape(group.n * group.length, width)))
        return self.output(mixed[0] if len(mixed) == 1 else torch.cat(mixed), x)

    def _mixed(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Values by their weights: (heads, n, length, head dim) each → the same."""
        p = self.dropout if self.training else 0.0
        mask = None if mask is None else mask.to(q.dtype)
        # On a CPU torch's own function is slow with dropout, and with a bias that is learned.
        if q.device.type != "cpu" or not (p or (mask is not None and mask.requires_grad)):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
        shape, scale = (*q.shape[:3], q.shape[2]), q.shape[-1] ** -0.5
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        if mask is None:
            scores = (q * scale) @ k.transpose(1, 2)
        else:
            scores = torch.baddbmm(mask.expand(shape).flatten(0, 1), q, k.transpose(1, 2), alpha=scale)
        return (dropout(scores.softmax(-1).to(v.dtype), p, self.training) @ v).view(*shape[:3], v.shape[-1])

    def output(self, mixed: Tensor, x: Tensor) -> Tensor:
        """The gated and projected output."""
        if self.gate is not None:
            mixed = mixed * torch.sigmoid(self.gate(x))
        projected: Tensor = self.proj(mixed)
        return projected

    def of_class(self, query: Tensor, x: Tensor, sequence: Tensor) -> Tensor:
        """One query (batch, width) attends to the rows of its sequence: (T, width), (T,) → (batch, width)."""
        width = query.shape[1]
        weight, offset = self.qkv.weight, self.qkv.bias
        q = self.split(F.linear(query, weight[:width], offset[:width]), self.q_norm)
        k, v = F.linear(x, weight[width:], offset[width:]).chunk(2, -1)
        scores = (q[sequence] * self.split(k, self.k_norm)).sum(-1)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) / math.sqrt(width // self.heads)
        index = sequence.unsqueeze(1).expand_as(scores)
        top = scores.new_full((len(query), self.heads), float("-inf")).scatter_reduce(0, index, scores, "amax")
        weights = torch.exp(scores - top.detach()[sequence])
        total = torch.zeros_like(top).index_add(0, sequence, weights)
        weights = (weights / total[sequence]).to(v.dtype)
        weighted = (self.split(v, None) * weights.unsqueeze(-1)).flatten(1)
        return self.output(v.new_zeros(query.shape).index_add(0, sequence, weighted), query)


class _Block(nn.Module):
    """A block over particles, or of class attention: norm, attention, residual; norm, feed-forward, residual."""

    def __init__(self, config: ParticleTransformerConfig, dropout: float, drop_path: float) -> None:
        super().__init__()
        width, hidden = config.width, round(config.width * config.mlp_ratio)
        self.dropout, self.drop_path, self.gated = dropout, drop_path, config.mlp == "swiglu"
        self.norm1, self.norm2 = build_norm(config.norm, width), build_norm(config.norm, width)
        self.attention = _Attention(config, dropout)
        self.fc1 = nn.Linear(width, (2 if self.gated else 1) * hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.inner1 = build_norm(config.norm, width) if config.normformer else None
        self.inner2 = build_norm(config.norm, hidden) if config.normformer else None
        self.head_gain = nn.Parameter(torch.ones(config.heads)) if config.normformer else None
        self.residual_gain = nn.Parameter(torch.ones(width)) if config.normformer else None
        scale = config.layer_scale
        self.gamma1 = None if scale is None else nn.Parameter(torch.full((width,), scale))
        self.gamma2 = None if scale is None else nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor, packing: Packing, bias: Sequence[Tensor | None], sequence: Tensor) -> Tensor:
        """(T, width) packed tokens → (T, width)."""
        mixed = self.attention(self.norm1(x), packing, bias)
        kept = self._kept(len(packing.lengths), x)
        return self.after(x, mixed, None if kept is None else kept[sequence])

    def of_class(self, token: Tensor, x: Tensor, sequence: Tensor) -> Tensor:
        """(batch, width) class tokens, which attend to themselves and the particles (T, width) → (batch, width)."""
        own = torch.arange(len(token), device=token.device)
        mixed = self.attention.of_class(token, self.norm1(torch.cat([token, x])), torch.cat([own, sequence]))
        return self.after(token, mixed, self._kept(len(token), x))

    def of_rows(self, rows: Tensor, x: Tensor, sequence: Tensor) -> Tensor:
        """What `forward` gives for ``rows`` (batch,), one a sequence, on which there is no bias: (batch, width)."""
        keys = self.norm1(x)
        mixed = self.attention.of_class(keys.index_select(0, rows), keys, sequence)
        return self.after(x.index_select(0, rows), mixed, self._kept(len(rows), x))

    def _kept(self, jets: int, x: Tensor) -> Tensor | None:
        """(jets, 2) factors of both branches: zero where they are left out; None if none is."""
        if not (self.drop_path and self.training):
            return None
        return (torch.rand(jets, 2, device=x.device) >= self.drop_path).to(x.dtype) / (1 - self.drop_path)

    def after(self, x: Tensor, mixed: Tensor, kept: Tensor | None) -> Tensor:
        """The residual stream (T, width) after what attention gives was added to it, and the feed-forward network."""
        if self.head_gain is not None and self.inner1 is not None:
            by_head = mixed.view(len(mixed), len(self.head_gain), mixed.shape[1] // len(self.head_gain))
            mixed = self.inner1((by_head * self.head_gain.unsqueeze(1)).flatten(1))
        x = x + self._branch(mixed, self.gamma1, None if kept is None else kept[:, :1])
        hidden = self.fc1(self.norm2(x))
        if self.gated:
            gate, value = hidden.chunk(2, -1)
            hidden = F.silu(gate) * value
        else:
            hidden = F.gelu(hidden)
        hidden = dropout(hidden, self.dropout, self.training)
        if self.inner2 is not None:
            hidden = self.inner2(hidden)
        branch = self._branch(self.fc2(hidden), self.gamma2, None if kept is None else kept[:, 1:])
        return branch + x if self.residual_gain is None else torch.addcmul(branch, x, self.residual_gain)

    def _branch(self, x: Tensor, gamma: Tensor | None, kept: Tensor | None) -> Tensor:
        x = dropout(x, self.dropout, self.training)
        if gamma is not None:
            x = x * gamma
        return x if kept is None else x * kept


class ParticleTransformer(JetEncoder):
    """Particle Transformer; see the module.

    Linear layers start as Xavier uniform with zero biases (queries, keys and values each for themselves); the last
    layers of the branches of block l are divided by √(2l). Drawn from torch's global generator.

    Args:
        config: its shape.
        n_features: features of a particle, ``len(Features.names)``.
    """

    def __init__(self, config: ParticleTransformerConfig, n_features: int) -> None:
        super().__init__()
        self.config, self.n_features = config, n_features
        self.input_norm = nn.BatchNorm1d(n_features)
        sizes = [n_features, *config.embed, config.width]
        layers: list[nn.Module] = []
        for a, b in pairwise(sizes):
            layers += [nn.LayerNorm(a), nn.Linear(a, b), nn.GELU()]
        self.embed = nn.Sequential(*layers)
        self.pair_bias = (
            PairBias(
                config.pair_hidden, config.heads, config.pair_activated, config.pairs == "extended", config.pair_bf16
            )
            if config.pair_hidden and config.pair_blocks != 0
            else None
        )
        self.blocks = nn.ModuleList(
            _Block(config, config.dropout, config.drop_path * k / max(1, config.depth - 1)) for k in range(config.depth)
        )
        self.class_blocks = nn.ModuleList(_Block(config, 0.0, 0.0) for _ in range(config.class_depth))
        self.prefix = nn.Parameter(torch.empty(1 + config.n_registers, config.width))
        self.norm = build_norm(config.norm, config.width)
        self._one_group = False
        self._initialize()

    def _initialize(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and not name.startswith("pair_bias"):
                fan = self.config.width if name.endswith("qkv") else module.out_features
                bound = math.sqrt(6 / (fan + module.in_features))
                nn.init.uniform_(module.weight, -bound, bound)
                nn.init.zeros_(module.bias)
        for depth, block in enumerate(self.blocks, 1):
            for linear in (block.attention.proj, block.fc2):  # type: ignore[union-attr]
                with torch.no_grad():
                    linear.weight.div_(math.sqrt(2 * depth))  # type: ignore[union-attr, operator]
        nn.init.trunc_normal_(self.prefix, std=0.02)

    @property
    def symmetries(self) -> frozenset[Symmetry]:
        """Order and padding of the particles, and rotations about the beam.

        To the digits of m² of a pair, whose logarithm is a feature: in float32 that of collinear particles is rounding,
        as in the published network, and logits move by some 1e-3.
        """
        return super().symmetries | {"azimuth"}

    @property
    def stages(self) -> nn.ModuleList:
        """The blocks."""
        return self.blocks

    @property
    def width(self) -> int:
        """Features of a token."""
        return self.config.width

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile everything between packing and the tokens as one graph, with these settings of ``torch.compile``.

        All sequences are one group then, whose number would otherwise depend on the jets.
        """
        self._one_group = True
        # A partial function, so that a copy of this encoder computes with its own weights.
        compiled = torch.compile(ParticleTransformer._tokens, *args, **kwargs)
        self._tokens = partial(compiled, self)  # type: ignore[method-assign]

    def forward(self, views: Sequence[ModelInput], chosen: Sequence[Tensor | None] | None = None) -> list[Encoded]:
        """Encodes all views in one pass.

        Args:
            views: any number of views, of any widths and batch sizes.
            chosen: as for `JetEncoder`; all tokens are computed, unless a class token that runs through all blocks is
                all that is asked for. Where tokens of particles are asked for, nothing is trimmed.

        Returns:
            For each view, its `Encoded`.
        """
        read = any(particles is not None for particles in chosen or ())
        masks = [view.mask if read else self._trimmed(view.mask) for view in views]
        n_prefix = 0 if self.config.class_depth else len(self.prefix)
        packing = pack(masks, n_prefix, self.config.heads, one_group=self._one_group)
        sequence = torch.repeat_interleave(packing.lengths, output_size=len(packing.source))
        features = torch.cat([view.features.flatten(0, 1) for view in views]).index_select(0, packing.real)
        p4, pairs = self._pairs(views, packing, n_prefix)
        cls_alone = chosen is not None and not read and not self.config.class_depth
        x = self._tokens(features, p4, pairs, packing, sequence, cls_alone)
        if cls_alone or self.config.class_depth:
            # Sequences stand in packed order: so do their class tokens.
            cls = self._places(packing) + (0 if cls_alone else len(sequence))
            return self._encoded(x, cls, packing, masks, complete=not cls_alone)
        return self._encoded(x, packing.cls, packing, masks)

    def _tokens(
        self,
        features: Tensor,
        p4: Tensor | None,
        pairs: Sequence[Pairs],
        packing: Packing,
        sequence: Tensor,
        cls_alone: bool,
    ) -> Tensor:
        """Normalised tokens in packed order, (T, width).

        With class blocks the class tokens follow, (T + jets, width); ``cls_alone``, they are all there is.
        """
        jets = len(packing.lengths)
        particles = self.embed(self.input_norm(features))
        x = particles
        if not self.config.class_depth:
            # The prefix of all sequences, then the particles; `source` picks them in packed order.
            prefix = self.prefix.expand(jets, -1, -1).flatten(0, 1).to(particles.dtype)
            x = torch.cat([prefix, particles])
        x = x.index_select(0, packing.source)
        plain = [None if group.bias is None else group.bias.transpose(0, 1) for group in packing.groups]
        bias = plain
        if self.pair_bias is not None and p4 is not None:
            bias = self.pair_bias(p4, pairs, packing.groups, sequence, jets)
        n_biased = len(self.blocks) if self.config.pair_blocks is None else self.config.pair_blocks
        for k, block in enumerate(self.blocks[: len(self.blocks) - cls_alone]):
            x = block(x, packing, plain if k >= n_biased else bias, sequence)
        if cls_alone:
            start = packing.lengths.cumsum(0) - packing.lengths
            x = self.blocks[-1].of_rows(start, x, sequence)  # type: ignore[operator]
        elif self.config.class_depth:
            token = self.prefix.expand(jets, -1).to(x.dtype)
            for block in self.class_blocks:
                token = block.of_class(token, x, sequence)  # type: ignore[operator]
            x = torch.cat([x, token])
        normalised: Tensor = self.norm(x)
        return normalised

    @staticmethod
    def _places(packing: Packing) -> Tensor:
        """(sequences,) where each sequence, view by view and jet by jet, stands in packed order."""
        places = torch.empty_like(packing.order)
        places[packing.order] = torch.arange(len(places), device=places.device)
        return places

    def _trimmed(self, mask: Tensor) -> Tensor:
        """Training only: cut jets to a random quantile of the multiplicities, U(0.9, 1.02) but at most 1."""
        if not (self.training and self.config.trim):
            return mask
        counts = mask.sum(1)
        quantile = torch.empty((), device=mask.device).uniform_(0.9, 1.02).clamp(max=1.0)
        longest = torch.quantile(counts.float(), quantile).long().clamp(min=1)
        lottery = torch.rand(mask.shape, device=mask.device).masked_fill(~mask, 2.0)
        return mask & (lottery.argsort(1).argsort(1) < longest)

    def _pairs(self, views: Sequence[ModelInput], packing: Packing, n_prefix: int) -> tuple[Tensor | None, list[Pairs]]:
        """(T, 4) momenta in packed order, and the pairs of each group; nothing if there is no bias of pairs."""
        if self.pair_bias is None:
            return None, []
        momenta = [view.p4 for view in views if view.p4 is not None]
        if len(momenta) < len(views):
            raise ValueError("ParticleTransformer needs the four-vectors of the particles: see ModelInput.p4")
        p4 = torch.cat([p4.flatten(0, 1) for p4 in momenta]).index_select(0, packing.real)
        p4 = torch.cat([p4.new_zeros(len(packing.lengths) * n_prefix, 4), p4]).index_select(0, packing.source)
        parts = torch.split(packing.lengths - n_prefix, [group.n for group in packing.groups])
        return p4, [pairs_of(*part, n_prefix) for part in zip(packing.groups, parts, strict=True)]

    def _encoded(
        self, x: Tensor, cls: Tensor, packing: Packing, masks: Sequence[Tensor], complete: bool = True
    ) -> list[Encoded]:
        rows = torch.split(cls, [len(mask) for mask in masks])
        return [Encoded(x, r, p, mask, complete) for r, p, mask in zip(rows, packing.particles, masks, strict=True)]

    def layers(self) -> list[list[tuple[str, nn.Parameter]]]:
        """All named parameters by depth: embedding, block 1, …, block n with class blocks and the final norm."""
        layers: list[list[tuple[str, nn.Parameter]]] = [[] for _ in range(self.config.depth + 1)]
        for path, parameter in self.named_parameters():
            root, _, rest = path.partition(".")
            last = root in ("class_blocks", "norm")
            depth = int(rest.partition(".")[0]) + 1 if root == "blocks" else self.config.depth if last else 0
            layers[depth].append((path, parameter))
        return layers
