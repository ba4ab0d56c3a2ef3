"""`JetTransformer`: the encoder of RINO (arXiv 2509.07486), all views of a batch in one packed pass.

Two generations are built from one configuration: the encoders of the published tables ("nano", "lite", "mini", "base":
pre-norm GELU blocks, the CLS token a projection of the jet's four features) and the later one ("production": learned
CLS, four registers, SwiGLU, RMS norm, LayerScale, polar position embedding).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

from jetrep.encoders.base import Encoded, JetEncoder, Pooling, Symmetry
from jetrep.encoders.layers import Block, PolarEmbedding, build_norm
from jetrep.encoders.packing import pack
from jetrep.errors import InputError, at_least
from jetrep.features import JET_FEATURES, ModelInput

__all__ = ["SIZES", "Encoded", "JetTransformer", "Pooling", "TransformerConfig"]


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of a `JetTransformer`; the number of particle features is given when it is built.

    Attributes:
        width: features of a token.
        depth: blocks.
        heads: attention heads.
        mlp_hidden: hidden features of the feed-forward networks (for "swiglu", of each half).
        mlp: activation of the feed-forward networks.
        norm: kind of all norms.
        stem_norm: normalise the embedded particles.
        layer_scale: initial LayerScale, or None for none.
        n_registers: learned tokens beside the CLS token that belong to no particle.
        cls: "learned", or "jet": a linear map of the four jet features.
        position: "polar" adds `PolarEmbedding` to the particles.
        position_bins: bins of the polar grid along each axis.
        r_scale: median radius of particles in standardised units, for the polar grid.
        r_max: their 99th percentile.
        dropout: on the branches of the blocks, in training.
        kind: tells the kinds of encoders apart.
    """

    width: int = 256
    depth: int = 8
    heads: int = 16
    mlp_hidden: int = 1024
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    stem_norm: bool = True
    layer_scale: float | None = 0.01
    n_registers: int = 4
    cls: Literal["learned", "jet"] = "learned"
    position: Literal["none", "polar"] = "polar"
    position_bins: int = 100
    r_scale: float = 0.96
    r_max: float = 5.6
    dropout: float = 0.0
    kind: Literal["transformer"] = "transformer"

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "mlp_hidden", "position_bins"):
            at_least(1, **{f"encoder.{name}": getattr(self, name)})
        at_least(0, **{"encoder.n_registers": self.n_registers})
        if self.width % self.heads:
            raise InputError(
                f"width {self.width} is not a multiple of {self.heads} heads",
                field="encoder.heads",
                remedy="choose a divisor of the width",
            )


def _published(width: int, depth: int, heads: int) -> TransformerConfig:
    return TransformerConfig(
        width, depth, heads, 4 * width, "gelu", "layernorm", False, None, 0, cls="jet", position="none"
    )


SIZES: Mapping[str, TransformerConfig] = MappingProxyType(
    {
        "nano": _published(32, 4, 4),
        "lite": _published(64, 4, 4),
        "mini": _published(128, 6, 8),
        "base": _published(256, 6, 8),
        "production": TransformerConfig(),
        # Our choice for a few minutes on a processor: the later architecture at the width of "lite".
        "laptop": TransformerConfig(64, 4, 4, mlp_hidden=128, n_registers=1, position="none"),
    }
)


class JetTransformer(JetEncoder):
    """Transformer encoder of sets of particles or subjets; see the module.

    Linear layers start as torch's defaults, tables, CLS and register tokens as N(0, 0.02), drawn from torch's global
    generator.

    Args:
        config: its shape.
        n_features: features of a particle, ``len(Features.names)``.
    """

    def __init__(self, config: TransformerConfig, n_features: int) -> None:
        super().__init__()
        self.config, self.n_features = config, n_features
        self.stem = nn.Linear(n_features, config.width)
        self.stem_norm = build_norm(config.norm, config.width) if config.stem_norm else None
        self.position = (
            PolarEmbedding(config.width, config.position_bins, config.r_scale, config.r_max)
            if config.position == "polar"
            else None
        )
        learned = config.n_registers + (config.cls == "learned")
        self.prefix = nn.Parameter(torch.randn(learned, config.width) * 0.02) if learned else None
        self.cls_from_jet = nn.Linear(len(JET_FEATURES), config.width) if config.cls == "jet" else None
        self.blocks = nn.ModuleList(
            Block(
                config.width,
                config.heads,
                config.mlp_hidden,
                config.mlp,
                config.norm,
                config.layer_scale,
                config.dropout,
            )
            for _ in range(config.depth)
        )
        self.norm = build_norm(config.norm, config.width)

    @property
    def symmetries(self) -> frozenset[Symmetry]:
        """Order and padding; rotations about the beam too, unless the CLS token is made from η and φ of the jet."""
        return super().symmetries | ({"azimuth"} if self.cls_from_jet is None else set())

    @property
    def stages(self) -> nn.ModuleList:
        """The blocks."""
        return self.blocks

    @property
    def width(self) -> int:
        """Features of a token."""
        return self.config.width

    def forward(self, views: Sequence[ModelInput], chosen: Sequence[Tensor | None] | None = None) -> list[Encoded]:
        """Encodes all views in one pass.

        What comes out for a jet depends on its own particles alone: not on padding, other jets, or other views.

        Args:
            views: any number of views, of any widths and batch sizes.
            chosen: for each view (batch, n) bool, the particles whose tokens will be read with `Encoded.at`, or None if
                only the CLS tokens will be. The last block then computes these alone. By default, all.

        Returns:
            For each view, its `Encoded`.
        """
        batches = [len(view.mask) for view in views]
        packing = pack([view.mask for view in views], 1 + self.config.n_registers, self.config.heads, chosen)
        x = self._embed(views, packing.real).index_select(0, packing.source)
        for i, block in enumerate(self.blocks):
            x = block(x, packing, packing.reading if i + 1 == len(self.blocks) else None)
        x = self.norm(x)
        return [
            Encoded(x, rows, particles, view.mask, chosen is None)
            for rows, particles, view in zip(torch.split(packing.cls, batches), packing.particles, views, strict=True)
        ]

    def _embed(self, views: Sequence[ModelInput], real: Tensor) -> Tensor:
        """Prefix tokens of all sequences, then all real particles: (T, width), float32 under autocast too."""
        features = torch.cat([view.features.flatten(0, 1) for view in views]).index_select(0, real)
        particles = self.stem(features).to(self.stem.weight.dtype)
        if self.stem_norm is not None:
            particles = self.stem_norm(particles)
        if self.position is not None:
            coordinates = torch.cat([view.coordinates.flatten(0, 1) for view in views]).index_select(0, real)
            particles = particles + self.position(coordinates)
        sequences = sum(len(view.mask) for view in views)
        prefix = []
        if self.cls_from_jet is not None:
            jets = self.cls_from_jet(torch.cat([view.jet_features for view in views]))
            prefix.append(jets.to(particles.dtype).unsqueeze(1))
        if self.prefix is not None:
            prefix.append(self.prefix.expand(sequences, -1, -1))
        return torch.cat([torch.cat(prefix, 1).flatten(0, 1), particles])

    def layers(self) -> list[list[tuple[str, nn.Parameter]]]:
        """All named parameters by depth: stem, block 1, …, block n with the final norm."""
        layers: list[list[tuple[str, nn.Parameter]]] = [[] for _ in range(self.config.depth + 1)]
        for path, parameter in self.named_parameters():
            root, _, rest = path.partition(".")
            depth = int(rest.partition(".")[0]) + 1 if root == "blocks" else self.config.depth if root == "norm" else 0
            layers[depth].append((path, parameter))
        return layers
