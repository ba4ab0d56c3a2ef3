"""Small transformers beside an encoder: over a set, and from the visible particles of a jet to its hidden ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jetrep.encoders.base import Encoded
from jetrep.encoders.layers import Block, build_norm
from jetrep.encoders.packing import pack
from jetrep.errors import InputError, at_least

__all__ = ["Decoder", "DecoderConfig", "SetTransformer", "SetTransformerConfig"]


@dataclass(frozen=True)
class SetTransformerConfig:
    """Shape of a `SetTransformer`: pre-norm blocks with SwiGLU and RMS norm.

    Attributes:
        width: features of a token.
        depth: blocks.
        heads: attention heads.
        mlp_ratio: hidden features of the feed-forward networks, in units of ``width``.
    """

    width: int = 64
    depth: int = 2
    heads: int = 4
    mlp_ratio: float = 2.0

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads"):
            at_least(1, **{f"objective.{name}": getattr(self, name)})
        if not self.mlp_ratio * self.width >= 1:
            raise InputError(f"is {self.mlp_ratio}", field="objective.mlp_ratio", remedy="give more than 1 / width")
        if self.width % self.heads:
            raise InputError(
                f"width {self.width} is not a multiple of {self.heads} heads",
                field="objective.heads",
                remedy="choose a divisor of the width",
            )


class SetTransformer(nn.Module):
    """Transformer of tokens of one width, with one token beside them; nothing is computed for padding.

    Args:
        config: its shape.
    """

    def __init__(self, config: SetTransformerConfig) -> None:
        super().__init__()
        self.config = config
        hidden = round(config.mlp_ratio * config.width)
        self.prefix = nn.Parameter(torch.randn(config.width) * 0.02)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, hidden, "swiglu", "rmsnorm", None, 0.0) for _ in range(config.depth)
        )
        self.norm = build_norm("rmsnorm", config.width)

    def forward(self, x: Tensor, mask: Tensor, chosen: Tensor | None = None, beside: Tensor | None = None) -> Tensor:
        """Tokens after the last block.

        Args:
            x: (batch, n, width) tokens.
            mask: (batch, n) bool, True for a real one.
            chosen: (batch, n) bool, those that are read; all real ones by default.
            beside: (batch, width) added to the learned token that stands beside those of each jet.

        Returns:
            (m, width) tokens of the chosen places, jet by jet.
        """
        packing = pack([mask], 1, self.config.heads, [mask if chosen is None else chosen])
        prefix = self.prefix.expand(len(mask), -1)
        if beside is not None:
            prefix = prefix + beside
        rows = torch.cat([prefix, x.flatten(0, 1).index_select(0, packing.real)]).to(self.prefix.dtype)
        rows = rows.index_select(0, packing.source)
        for i, block in enumerate(self.blocks):
            rows = block(rows, packing, packing.reading if i + 1 == len(self.blocks) else None)
        normed: Tensor = self.norm(rows)
        return normed.index_select(0, packing.particles[0][mask if chosen is None else chosen & mask])


@dataclass(frozen=True)
class DecoderConfig(SetTransformerConfig):
    """Shape of a `Decoder`.

    Attributes:
        ranks: number of learned vectors for hidden particles; those of a higher rank share the last.
    """

    ranks: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, **{"objective.decoder.ranks": self.ranks})


class Decoder(nn.Module):
    """From the tokens of visible particles to tokens of hidden ones, as in masked autoencoders (arXiv 2111.06377).

    A hidden particle enters as a learned vector of its rank: there is no other hint of what it is. The CLS token
    stands beside the particles, so that what it tells of the jet is learned too.

    Args:
        inputs: width of the encoder.
        config: shape.
    """

    def __init__(self, inputs: int, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.of_token, self.of_cls = nn.Linear(inputs, config.width), nn.Linear(inputs, config.width)
        self.ranks = nn.Parameter(torch.randn(config.ranks, config.width) * 0.02)
        self.transformer = SetTransformer(config)

    def forward(self, encoded: Encoded, hidden: Tensor, ranks: Tensor) -> Tensor:
        """Tokens of the hidden particles.

        Args:
            encoded: the jets as far as they were seen; its mask is that of the visible particles.
            hidden: (batch, n) bool, True for a particle to predict.
            ranks: (batch, n) int64, rank of each of these among those of its jet, from 0.

        Returns:
            (m, width), jet by jet.
        """
        seen, blank = self.of_token(encoded.tokens), self.ranks[ranks.clamp(0, self.config.ranks - 1)]
        x = torch.where(hidden.unsqueeze(-1), blank.to(seen.dtype), seen)
        out: Tensor = self.transformer(x, encoded.mask | hidden, hidden, self.of_cls(encoded.cls))
        return out
