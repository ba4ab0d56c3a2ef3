"""Heads on top of an encoder: projection onto prototypes (pretraining) and classification (fine-tuning)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ClassifierHead", "HeadConfig", "ProjectionHead"]


@dataclass(frozen=True)
class HeadConfig:
    """Shape of a `ProjectionHead`, in units of the encoder's width d.

    The default is that of RINO's later code: d → 4d → 4d → d → 2048 prototypes. That of the published tables is
    ``HeadConfig(hidden=(4.0,), bottleneck=None, n_prototypes=None)``: d → 4d → d/2 prototypes.

    Attributes:
        hidden: width of each hidden layer over d; GELU after each.
        bottleneck: width of the linear layer after them over d, or None for none.
        n_prototypes: number of outputs, or None for d/2.
    """

    hidden: tuple[float, ...] = (4.0, 4.0)
    bottleneck: float | None = 1.0
    n_prototypes: int | None = 2048

    def prototypes(self, width: int) -> int:
        """Number of outputs on an encoder of this width."""
        return self.n_prototypes or width // 2


class ProjectionHead(nn.Module):
    """MLP, then cosines with prototypes: L2 norm and a linear layer without bias whose rows have norm one.

    Weights start as N(0, 0.02) truncated at two standard deviations, biases as zero.

    Args:
        width: features of the encoder, d.
        config: shape.
    """

    def __init__(self, width: int, config: HeadConfig) -> None:
        super().__init__()
        sizes = [width, *(round(width * ratio) for ratio in config.hidden)]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.GELU()]
        if config.bottleneck is not None:
            layers.append(nn.Linear(sizes[-1], round(width * config.bottleneck)))
            sizes.append(round(width * config.bottleneck))
        self.mlp = nn.Sequential(*layers)
        self.prototypes = nn.Parameter(torch.empty(config.prototypes(width), sizes[-1]))
        nn.init.trunc_normal_(self.prototypes, std=0.02)
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(m, width) → (m, prototypes) cosines, float32: divided by 0.04, eight bits of them would be too few."""
        x = self.mlp(x)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(F.normalize(x.float(), dim=-1), F.normalize(self.prototypes, dim=-1))


class ClassifierHead(nn.Module):
    """Logits from a representation: linear, or an MLP with ReLU and dropout after each hidden layer.

    Args:
        width: features of the representation.
        n_outputs: number of logits.
        hidden: hidden layers; none for a linear head.
        dropout: after each hidden layer.
    """

    def __init__(self, width: int, n_outputs: int = 1, hidden: Sequence[int] = (), dropout: float = 0.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise([width, *hidden]):
            layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear([width, *hidden][-1], n_outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width) → (batch, n_outputs)."""
        logits: Tensor = self.layers(x)
        return logits
