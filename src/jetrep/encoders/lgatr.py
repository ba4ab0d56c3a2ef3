"""`LGATrEncoder`: the Lorentz-equivariant transformers of the package ``lgatr`` (arXiv 2411.00446, 2512.17011).

A jet is a sequence of a class token, the directions that break the symmetry (spurions), and its particles. Momenta are
vectors, in units of 20 GeV as published; tokens and the class token are the scalars that come out.

Without spurions the network gives the same for every observer. It then works in the rest frame of the jet, where
float32 loses least. With spurions it works in the laboratory, and keeps the symmetry about the beam alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jetrep.encoders.base import Encoded, JetEncoder, Symmetry
from jetrep.errors import InputError, at_least
from jetrep.features import ModelInput
from jetrep.physics.lorentz import RestFrame

__all__ = ["LGATrConfig", "LGATrEncoder"]

_UNIT = 20.0  # GeV


@dataclass(frozen=True)
class LGATrConfig:
    """Shape of an `LGATrEncoder`; the default has the blocks, channels and heads of L-GATr's published taggers.

    Attributes:
        variant: "lgatr" has all multivectors of the geometric algebra; "slim" scalars and vectors alone, and is faster.
        width: scalars of a particle, and features of a token.
        vectors: multivectors of a particle; four-vectors for "slim".
        heads: attention heads.
        depth: blocks.
        mlp_ratio: hidden channels of the feed-forward networks, as a multiple of the others.
        spurions: show the network the beam and the time axis, each as a token: the plane across the beam for "lgatr",
            both beam directions for "slim". Without them it is Lorentz invariant.
        features: show it the features of the particles too, as scalars.
        dropout: in training.
    """

    variant: Literal["lgatr", "slim"] = "lgatr"
    width: int = 32
    vectors: int = 16
    heads: int = 8
    depth: int = 12
    mlp_ratio: int = 2
    spurions: bool = True
    features: bool = False
    dropout: float = 0.0
    kind: Literal["lgatr"] = "lgatr"

    def __post_init__(self) -> None:
        for name in ("width", "vectors", "heads", "depth", "mlp_ratio"):
            at_least(1, **{f"encoder.{name}": getattr(self, name)})
        if not 0 <= self.dropout < 1:
            raise InputError(f"is {self.dropout}", field="encoder.dropout", remedy="give a number from 0 to below 1")


class LGATrEncoder(JetEncoder):
    """L-GATr or L-GATr-slim; see the module.

    Args:
        config: its shape.
        n_features: features of a particle, ``len(Features.names)``; used with ``config.features``.

    Raises:
        InputError: if the package is not installed.
    """

    spurions: Tensor

    def __init__(self, config: LGATrConfig, n_features: int) -> None:
        super().__init__()
        self.config, self.n_features = config, n_features
        try:
            import lgatr

            network = {"lgatr": lgatr.LGATr, "slim": lgatr.LGATrSlim}[config.variant]
        except (ImportError, AttributeError) as problem:
            raise InputError(
                "the package lgatr, version 2 or newer, is not installed",
                field="encoder.kind",
                remedy="pip install 'jetrep[lgatr]'",
            ) from problem
        kind = "v" if config.variant == "slim" else "mv"
        shape: dict[str, Any] = {f"in_{kind}_channels": 1, f"hidden_{kind}_channels": config.vectors}
        if config.variant == "slim":
            shape |= {"num_heads": config.heads, "mlp_ratio": config.mlp_ratio}
        else:
            shape |= {"attention": {"num_heads": config.heads}, "mlp": {"mlp_ratio": config.mlp_ratio}}
        # A scalar says whether a token stands for the jet, another whether it stands for a particle.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # of the vectors that come out
            self.net: nn.Module = network(
                config.depth,
                **shape,
                **{f"out_{kind}_channels": 0},
                in_s_channels=2 + (n_features if config.features else 0),
                hidden_s_channels=config.width,
                out_s_channels=config.width,
                dropout_prob=config.dropout or None,
            )
        # The package keeps constants from their first use on. If that is an inference, training cannot use them: here,
        # and whenever the network is moved, they are made before.
        self.net.to(next(self.net.parameters()).device)
        beam = "spacelike" if config.variant == "slim" else "xyplane"
        spurions = lgatr.get_spurions(beam) if config.spurions else torch.empty(0, 16)
        self.register_buffer("spurions", spurions, persistent=False)

    @property
    def width(self) -> int:
        """Features of a token."""
        return self.config.width

    @property
    def symmetries(self) -> frozenset[Symmetry]:
        """All of SO⁺(3,1) without spurions, else rotations about the beam."""
        broken: frozenset[Symmetry] = frozenset({"azimuth"})
        return super().symmetries | (broken if self.config.spurions else broken | {"boost", "rotation"})

    @property
    def stages(self) -> nn.ModuleList:
        """The blocks."""
        blocks: Any = self.net.blocks
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    def forward(self, views: Sequence[ModelInput], chosen: Sequence[Tensor | None] | None = None) -> list[Encoded]:
        """Encodes each view; all tokens are computed, whatever is ``chosen``.

        Raises:
            ValueError: if a view has no four-vectors.
        """
        return [self._encoded(view) for view in views]

    def _encoded(self, view: ModelInput) -> Encoded:
        if view.p4 is None:
            raise ValueError("LGATrEncoder needs the four-vectors of the particles: see ModelInput.p4")
        batch, n = view.mask.shape
        before = 1 + len(self.spurions)  # the class token and the spurions come first
        dtype = next(self.net.parameters()).dtype
        momenta = view.p4.masked_fill(~view.mask.unsqueeze(-1), 0.0)
        if self.config.spurions:
            momenta = momenta / _UNIT
        else:
            frame, at_rest = RestFrame.of_particles(momenta)
            momenta = at_rest * (frame.mass / _UNIT).view(-1, 1, 1)
        # In the geometric algebra, component 0 is the scalar, and 1 to 4 are the vector.
        particles = F.pad(momenta.to(dtype), (1, 11))
        jet = particles.new_zeros(1, 16)
        jet[0, 0] = 1
        first = torch.cat([jet, self.spurions.to(dtype)]).expand(batch, -1, -1)
        vectors = torch.cat([first, particles], 1).unsqueeze(2)
        scalars = vectors.new_zeros(batch, before + n, 2)
        scalars[:, 0, 0] = scalars[:, before:, 1] = 1
        if self.config.features:
            scalars = torch.cat([scalars, F.pad(view.features.to(dtype), (0, 0, before, 0))], -1)
        seen = F.pad(view.mask, (before, 0), value=True)[:, None, None]
        vectors = vectors[..., 1:5] if self.config.variant == "slim" else vectors
        tokens: Tensor = self.net(vectors, scalars, attn_mask=seen)[1]
        rows = torch.arange(batch * (before + n), device=tokens.device).view(batch, before + n)
        return Encoded(tokens.flatten(0, 1), rows[:, 0], rows[:, before:], view.mask)

    def layers(self) -> list[list[tuple[str, nn.Parameter]]]:
        """All named parameters by depth: map of the inputs, block 1, …, block n with the map of the outputs.

        Those of the last block that nothing depends on, since no vectors come out, are not trained, and not listed.
        """
        layers: list[list[tuple[str, nn.Parameter]]] = [[] for _ in range(self.config.depth + 1)]
        for path, parameter in self.named_parameters():
            _, root, rest = path.split(".", 2)
            depth = int(rest.split(".")[0]) + 1 if root == "blocks" else self.config.depth * (root == "linear_out")
            if parameter.requires_grad:
                layers[depth].append((path, parameter))
        return layers
