"""`ParticleNet` (arXiv 1902.08570): edge convolutions on the nearest neighbours of every particle.

Neighbours are sought in (Δη, Δφ) for the first block and among the features of the block before for the others. Each
edge from particle i to a neighbour j is the pair (x_i, x_j − x_i); an MLP works on it, and the mean over the edges of i
is added to a linear map of x_i.

The published weights fix two things that the paper leaves open:

- A jet with no more particles than neighbours are asked for fills the rest with neighbours whose features are zero.
  They count in the mean over edges, so that what comes out for a small jet does not depend on how far it is padded.
- Δφ between two particles is wrapped, also where the jet axis lies between them.

Only real particles are computed: batch norms learn their statistics from these alone, where implementations on padded
arrays average over padding too. In training mode the two differ by that; in evaluation mode they agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jetrep.encoders.base import Encoded, JetEncoder, Symmetry
from jetrep.errors import InputError, at_least
from jetrep.features import ModelInput
from jetrep.physics.fourvector import delta_phi

__all__ = ["PARTICLENETS", "EdgeConv", "ParticleNet", "ParticleNetConfig", "nearest"]

# Numbers in one piece of work on a CPU without gradients: few enough to stay in the cache.
_PIECE = 1 << 20


@dataclass(frozen=True)
class ParticleNetConfig:
    """Shape of a `ParticleNet`; the number of particle features is given when it is built. The default is published.

    Attributes:
        neighbours: neighbours of a particle.
        channels: for each edge convolution the widths of its layers.
        kind: tells the kinds of encoders apart.
    """

    neighbours: int = 16
    channels: tuple[tuple[int, ...], ...] = ((64, 64, 64), (128, 128, 128), (256, 256, 256))
    kind: Literal["particlenet"] = "particlenet"

    def __post_init__(self) -> None:
        at_least(1, **{"encoder.neighbours": self.neighbours})
        if not self.channels or not all(self.channels):
            raise InputError(
                "there is no layer", field="encoder.channels", remedy="give at least one width for each block"
            )
        for width in (width for block in self.channels for width in block):
            at_least(1, **{"encoder.channels": width})

    @property
    def width(self) -> int:
        """Features of a token."""
        return self.channels[-1][-1]


PARTICLENETS: Mapping[str, ParticleNetConfig] = MappingProxyType(
    {"standard": ParticleNetConfig(), "lite": ParticleNetConfig(7, ((32, 32, 32), (64, 64, 64)))}
)
"""The two sizes of the paper."""


def nearest(points: Tensor, mask: Tensor, k: int, *, angles: bool = False) -> Tensor:
    """The ``k`` nearest other particles of every particle of a jet.

    Args:
        points: (batch, n, d) coordinates.
        mask: (batch, n) bool, True for a real particle.
        k: number of neighbours.
        angles: the coordinates are (Δη, Δφ): differences of Δφ are wrapped.

    Returns:
        (batch, n, k) int64, the nearest first; −1 where a jet has no further particle.
    """
    points = points.detach()
    points = points if points.dtype == torch.float64 else points.float()
    if angles:
        eta, phi = points.unbind(-1)
        wrapped = delta_phi(phi.unsqueeze(2), phi.unsqueeze(1))
        distance = (eta.unsqueeze(2) - eta.unsqueeze(1)).square() + wrapped.square()
    else:
        # The sum of squared differences: through products of matrices, the distances of close particles are rounding.
        distance = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    n = mask.shape[1]
    itself = torch.eye(n, dtype=torch.bool, device=mask.device)
    distance = distance.masked_fill(itself | ~mask.unsqueeze(1), torch.inf)
    values, index = distance.topk(min(k, n), largest=False)
    index = index.masked_fill(values == torch.inf, -1)
    return F.pad(index, (0, k - index.shape[-1]), value=-1)


class _Layer(nn.Module):
    """Linear layer without bias, batch norm, ReLU, on the last axis."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)
        self.norm = nn.BatchNorm1d(outputs)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of linear layer and norm in one, as the norm is in evaluation mode."""
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        return self.linear.weight * scale.unsqueeze(1), norm.bias - norm.running_mean * scale

    def normalised(self, x: Tensor) -> Tensor:
        """Batch norm of what came out of the linear layer."""
        normalised: Tensor = self.norm(x.flatten(0, -2)).view_as(x)
        return normalised

    def forward(self, x: Tensor) -> Tensor:
        """(…, inputs) → (…, outputs), before the ReLU."""
        return self.normalised(self.linear(x)) if self.training else F.linear(x, *self.folded())


class EdgeConv(nn.Module):
    """Edge convolution on packed particles; see the module.

    Args:
        inputs: features of a particle.
        channels: widths of the MLP on the edges.
    """

    def __init__(self, inputs: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.first = _Layer(2 * inputs, channels[0])
        self.others = nn.ModuleList(_Layer(a, b) for a, b in pairwise(channels))
        self.shortcut = None if inputs == channels[-1] else _Layer(inputs, channels[-1])

    def forward(self, x: Tensor, neighbours: Tensor) -> Tensor:
        """(T, inputs) features and (T, k) rows of neighbours, −1 for one that is all zero → (T, channels[-1])."""
        weight, bias = (self.first.linear.weight, None) if self.training else self.first.folded()
        own, other = weight.chunk(2, 1)
        # The first layer of an edge is linear in x_i and x_j, so it is computed once for each particle.
        of_i = F.linear(x, own - other, bias)
        of_j = F.pad(F.linear(x, other), (0, 0, 0, 1))  # row −1 is the neighbour whose features are zero
        if torch.is_grad_enabled() or x.device.type != "cpu" or self.training:
            edges = self._edges(of_i, of_j, neighbours)
        else:
            rows = max(1, _PIECE // (neighbours.shape[1] * of_i.shape[1]))
            pieces = zip(torch.split(of_i, rows), torch.split(neighbours, rows), strict=True)
            edges = torch.cat([self._edges(piece, of_j, index) for piece, index in pieces])
        return F.relu(edges + (x if self.shortcut is None else self.shortcut(x)))

    def _edges(self, of_i: Tensor, of_j: Tensor, neighbours: Tensor) -> Tensor:
        """Mean over the edges of each particle."""
        neighbours = torch.where(neighbours < 0, len(of_j) - 1, neighbours)
        edges = of_j.index_select(0, neighbours.flatten()).view(*neighbours.shape, of_i.shape[1]) + of_i.unsqueeze(1)
        edges = F.relu(self.first.normalised(edges) if self.training else edges)
        for layer in self.others:
            edges = F.relu(layer(edges))
        return edges.mean(1)


class _View:
    """Where the real particles of one view stand among those of all views."""

    def __init__(self, mask: Tensor, start: int) -> None:
        self.mask = mask
        self.real = mask.flatten().nonzero().squeeze(1)
        self.place = (mask.flatten().cumsum(0) - 1).clamp(min=0).view_as(mask) + start
        self.rows = slice(start, start + len(self.real))

    def pack(self, values: Tensor) -> Tensor:
        """(batch, n, d) → (particles, d)."""
        return values.flatten(0, 1).index_select(0, self.real)

    def unpack(self, packed: Tensor) -> Tensor:
        """The particles of this view among those of all: (T, d) → (batch, n, d), zero where padded."""
        flat = packed.new_zeros(self.mask.numel(), packed.shape[1]).index_copy(0, self.real, packed[self.rows])
        return flat.view(*self.mask.shape, packed.shape[1])

    def neighbours(self, points: Tensor, k: int, angles: bool) -> Tensor:
        """(particles, k) rows of the neighbours among the particles of all views, −1 for none."""
        index = nearest(points, self.mask, k, angles=angles)
        rows = self.place.gather(1, index.clamp(min=0).flatten(1)).view_as(index)
        return self.pack(torch.where(index < 0, -1, rows))


class ParticleNet(JetEncoder):
    """Graph network of particles or subjets; see the module.

    The tokens are the particles after the last block; the CLS token is their mean.

    Args:
        config: its shape.
        n_features: features of a particle, ``len(Features.names)``.
    """

    def __init__(self, config: ParticleNetConfig, n_features: int) -> None:
        super().__init__()
        self.config, self.n_features = config, n_features
        self.norm = nn.BatchNorm1d(n_features)
        inputs = [n_features, *(channels[-1] for channels in config.channels)]
        self.blocks = nn.ModuleList(
            EdgeConv(width, channels) for width, channels in zip(inputs, config.channels, strict=False)
        )

    @property
    def symmetries(self) -> frozenset[Symmetry]:
        """Order and padding of the particles, and rotations about the beam."""
        return super().symmetries | {"azimuth"}

    @property
    def stages(self) -> nn.ModuleList:
        """The blocks."""
        return self.blocks

    @property
    def width(self) -> int:
        """Features of a token."""
        return self.config.width

    def forward(self, views: Sequence[ModelInput], chosen: Sequence[Tensor | None] | None = None) -> list[Encoded]:
        """Encodes all views in one pass; all tokens are computed, whatever is ``chosen``.

        Raises:
            ValueError: if a view has no angles.
        """
        layout: list[_View] = []
        for view in views:
            layout.append(_View(view.mask, layout[-1].rows.stop if layout else 0))
        x = self.norm(torch.cat([part.pack(view.features) for part, view in zip(layout, views, strict=True)]))
        for i, block in enumerate(self.blocks):
            points = [part.unpack(x) for part in layout] if i else [_angles(view) for view in views]
            neighbours = [
                part.neighbours(where, self.config.neighbours, angles=not i)
                for part, where in zip(layout, points, strict=True)
            ]
            x = block(x, torch.cat(neighbours))
        pooled = [part.unpack(x).sum(1) / part.mask.sum(1, keepdim=True).clamp(min=1) for part in layout]
        jets = sum(map(len, pooled))
        packed = torch.cat([*pooled, x])
        jet_rows = torch.split(torch.arange(jets, device=x.device), [len(view) for view in pooled])
        last = len(packed) - 1
        return [
            Encoded(packed, rows, (part.place + jets).clamp(max=last), part.mask)
            for part, rows in zip(layout, jet_rows, strict=True)
        ]

    def layers(self) -> list[list[tuple[str, nn.Parameter]]]:
        """All named parameters by depth: norm of the features, block 1, …, block n."""
        layers: list[list[tuple[str, nn.Parameter]]] = [[] for _ in range(len(self.blocks) + 1)]
        for path, parameter in self.named_parameters():
            root, _, rest = path.partition(".")
            layers[int(rest.partition(".")[0]) + 1 if root == "blocks" else 0].append((path, parameter))
        return layers


def _angles(view: ModelInput) -> Tensor:
    if view.angles is None:
        raise ValueError("ParticleNet needs the angles of the particles: see ModelInput.angles")
    return view.angles
