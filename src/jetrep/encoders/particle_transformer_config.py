"""Shapes of a `ParticleTransformer`: the published one, its switches, and the combination that we prefer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

from jetrep.errors import InputError, at_least

__all__ = ["PARTS", "ParticleTransformerConfig"]

_LATER = {"later": True}  # left out of the record of a run at its default


@dataclass(frozen=True)
class ParticleTransformerConfig:
    """Shape of a `ParticleTransformer`; the default is the published one.

    Attributes:
        width: features of a token.
        depth: blocks over particles.
        class_depth: class-attention blocks after them; 0 puts the class token into all blocks instead.
        heads: attention heads.
        embed: hidden widths of the particle embedding.
        mlp_ratio: hidden features of the feed-forward networks, in units of ``width``.
        mlp: their activation.
        norm: kind of the norms within blocks.
        normformer: norms after attention and within the feed-forward network, learned gains of heads and residuals.
        qk_norm: normalise queries and keys of each head.
        gate: multiply the output of attention by a sigmoid of a linear map of its input.
        layer_scale: initial LayerScale of both branches, or None for none.
        pair_hidden: hidden widths of the network that makes the attention bias; empty for no bias.
        pair_activated: GELU after its last layer, as in the recipe for JetClass.
        pairs: features of pairs that it sees, the four published ones, or six more, in relation to the jet.
        pair_blocks: how many of the blocks have the bias, the first ones; all by default.
        pair_bf16: compute and keep the bias in bfloat16, whatever the precision of the rest.
        n_registers: learned tokens beside the class token; needs ``class_depth`` 0.
        dropout: of attention, activations and branches of the particle blocks, in training.
        drop_path: probability to leave out a branch of a block for a jet, in training (stochastic depth).
        trim: in training, cut the batch to a random quantile of multiplicities: the longest jets lose random particles.
        kind: tells the kinds of encoders apart.
    """

    width: int = 128
    depth: int = 8
    class_depth: int = 2
    heads: int = 8
    embed: tuple[int, ...] = (128, 512)
    mlp_ratio: float = 4.0
    mlp: Literal["gelu", "swiglu"] = "gelu"
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    normformer: bool = True
    qk_norm: bool = False
    gate: bool = False
    layer_scale: float | None = None
    pair_hidden: tuple[int, ...] = (64, 64, 64)
    pair_activated: bool = True
    n_registers: int = 0
    dropout: float = 0.1
    drop_path: float = 0.0
    trim: bool = True
    pairs: Literal["part", "extended"] = field(default="part", metadata=_LATER)
    pair_blocks: int | None = field(default=None, metadata=_LATER)
    pair_bf16: bool = field(default=False, metadata=_LATER)
    kind: Literal["particle_transformer"] = "particle_transformer"

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads"):
            at_least(1, **{f"encoder.{name}": getattr(self, name)})
        for name in ("class_depth", "n_registers", "pair_blocks"):
            at_least(0, **{f"encoder.{name}": getattr(self, name)})
        if self.width % self.heads:
            raise InputError(
                f"width {self.width} is not a multiple of {self.heads} heads",
                field="encoder.heads",
                remedy="choose a divisor of the width",
            )
        if self.n_registers and self.class_depth:
            raise InputError(
                "registers stand beside a class token that runs through all blocks",
                field="encoder.n_registers",
                remedy="set encoder.class_depth to 0, or leave registers out",
            )
        for name in ("dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(
                    f"is {getattr(self, name)}", field=f"encoder.{name}", remedy="give a number from 0 to below 1"
                )


_MINI = ParticleTransformerConfig(width=48, depth=3, class_depth=1, heads=4, embed=(48, 96), pair_hidden=(16, 16))


def _upgraded(published: ParticleTransformerConfig) -> ParticleTransformerConfig:
    """Within 5 % of the parameters and operations: what is saved on NormFormer pays for the gates."""
    return replace(
        published,
        mlp="swiglu",
        mlp_ratio=2.4,
        normformer=False,
        gate=True,
        pairs="extended",
    )


PARTS: Mapping[str, ParticleTransformerConfig] = MappingProxyType(
    {
        "part": ParticleTransformerConfig(),
        # Deep enough to leave out whole branches.
        "upgrade": replace(_upgraded(ParticleTransformerConfig()), dropout=0.0, drop_path=0.1),
        "part-mini": _MINI,
        "upgrade-mini": _upgraded(_MINI),
    }
)
"""The published network and ours with as many parameters and operations, in full and at the size for a CPU."""
