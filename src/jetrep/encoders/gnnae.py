r"""Graph networks of particles, and the autoencoders made of them: the baselines of arXiv 2212.07347.

In each of a few steps every particle hears of every other one,

.. math:: m_i = \sum_j f_e(x_i \oplus x_j \oplus \ln(1 + |x_i - x_j|^2)), \qquad x_i \leftarrow f_n(m_i \oplus x_i),

with LeakyReLU (slope 0.2) after every linear layer but those that give momenta or numbers that are kept. Features are
the share of the transverse momentum, Δη and Δφ from the axis of the jet. Two things differ from the published network.
It has the square itself, not the logarithm: six steps that each square what they get leave the range of float32 in
training. And it pads features with zeros to 30: the weights of zeros never act, and are left out.

What is kept of a jet is, at the level of jets, the mean over particles of what the last step says of each, from which a
linear map makes the slots of the decoder. The last step is activated before that mean: the mean of linear maps of eight
hidden features holds eight numbers, however many are made of it. At the level of particles it is a few numbers for each
particle, in the order of transverse momentum, and how many particles there are. The scalar sum of pT, η and φ of the
jet, which turn relative features into momenta, are kept too, and count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from jetrep.encoders.autoencoder import Autoencoder, InLaboratory
from jetrep.encoders.base import Encoded, JetEncoder, Symmetry
from jetrep.encoders.relative import absolute, counted, encoded, hardest, momenta_in, relative
from jetrep.errors import InputError, at_least
from jetrep.features import ModelInput

__all__ = ["GraphAutoencoder", "GraphConfig", "GraphEncoder"]

_SLOPE = 0.2
_SCALE = 0.1  # of a share, Δη and Δφ: the networks work with numbers of order one
_REACH = 2.0  # of a decoded particle from the axis in Δη and Δφ, beyond any jet radius
_TYPICAL = 30.0  # particles; messages are sums in units of this
# Numbers in a layer of the pairs of one piece of work; more are computed again for the gradient, not kept.
_PIECE = 1 << 24


@dataclass(frozen=True)
class GraphConfig:
    """Shape of a `GraphEncoder`, and of the decoder that goes with it; the default is published.

    Attributes:
        level: what an autoencoder keeps: "jet" for the mean over the particles, "particle" for numbers of each.
        width: features of a token; at the level "jet", the numbers kept of a jet.
        latent: at the level "particle", the numbers kept of each particle.
        edges: for each step the widths of the layers that make messages.
        nodes: for each step the widths of the layers that make features of particles; in the last step, a layer to
            ``width`` follows.
        kind: tells the kinds of encoders apart.
    """

    level: Literal["jet", "particle"] = "jet"
    width: int = 45
    latent: int = 2
    edges: tuple[tuple[int, ...], ...] = ((50, 40, 30), (30, 30, 30), (16, 20, 30))
    nodes: tuple[tuple[int, ...], ...] = ((30, 15), (15, 8), (8,))
    kind: Literal["gnnae"] = "gnnae"

    def __post_init__(self) -> None:
        at_least(1, **{"encoder.width": self.width, "encoder.latent": self.latent})
        for name in ("edges", "nodes"):
            steps = getattr(self, name)
            if not steps or not all(steps) or len(steps) != len(self.edges):
                raise InputError(
                    "not one list of widths for each step",
                    field=f"encoder.{name}",
                    remedy="give as many in edges as in nodes, each with at least one width",
                )
            for width in (width for step in steps for width in step):
                at_least(1, **{f"encoder.{name}": width})


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """A layer that keeps the size of what goes through it: by default, all jets soon look alike."""
    layer = nn.Linear(inputs, outputs)
    nn.init.kaiming_uniform_(layer.weight, a=_SLOPE, nonlinearity="leaky_relu")
    nn.init.zeros_(layer.bias)
    return layer


def _layers(widths: Sequence[int], activated: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [_linear(a, b), nn.LeakyReLU(_SLOPE)]
    return nn.Sequential(*(layers if activated else layers[:-1]))


class _Step(nn.Module):
    """One step of message passing between the real particles of a jet; see the module.

    Args:
        inputs: features of a particle.
        edges: widths of f_e.
        nodes: widths of f_n.
        activated: whether LeakyReLU follows the last layer too.
    """

    def __init__(self, inputs: int, edges: Sequence[int], nodes: Sequence[int], activated: bool = True) -> None:
        super().__init__()
        self.first = _linear(2 * inputs + 1, edges[0])
        self.edges = _layers(edges)
        self.nodes = _layers([edges[-1] + inputs, *nodes], activated)
        self.inputs, self.widest = inputs, max(edges)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(batch, n, inputs) and (batch, n) bool → (batch, n, nodes[-1]), zero where padded."""
        rows = max(1, _PIECE // max(1, mask.shape[1] ** 2 * self.widest))
        pieces = list(zip(torch.split(x, rows), torch.split(mask, rows), strict=True))
        if len(pieces) == 1:
            messages = self.messages(x, mask)
        elif torch.is_grad_enabled():
            messages = torch.cat([checkpoint(self.messages, *piece, use_reentrant=False) for piece in pieces])
        else:
            messages = torch.cat([self.messages(*piece) for piece in pieces])
        result: Tensor = self.nodes(torch.cat([messages, x], -1))
        return result * mask.unsqueeze(-1)

    def messages(self, x: Tensor, mask: Tensor) -> Tensor:
        """What each particle hears: (batch, n, edges[-1])."""
        # The first layer of an edge is linear in x_i and x_j, so it is computed once for each particle.
        own, other, apart = torch.split(self.first.weight, [self.inputs, self.inputs, 1], 1)
        with torch.autocast(x.device.type, enabled=False):  # small distances are differences of large numbers
            wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            size2 = wide.square().sum(-1)
            distance2 = size2.unsqueeze(2) + size2.unsqueeze(1) - 2 * wide @ wide.mT
        apart = torch.log1p(distance2.clamp(min=0.0)).unsqueeze(-1) * apart.squeeze(1)
        hidden = F.linear(x, own, self.first.bias).unsqueeze(2) + F.linear(x, other).unsqueeze(1)
        hidden = F.leaky_relu(hidden + apart, _SLOPE)
        messages: Tensor = self.edges(hidden) * mask[:, None, :, None]
        return messages.sum(2) / _TYPICAL


def _steps(config: GraphConfig, inputs: int, outputs: int, activated: bool) -> nn.ModuleList:
    nodes = [*config.nodes[:-1], (*config.nodes[-1], outputs)]
    widths = [inputs, *(step[-1] for step in nodes)]
    last = len(nodes) - 1
    return nn.ModuleList(
        _Step(width, edge, node, activated or i < last)
        for i, (width, edge, node) in enumerate(zip(widths, config.edges, nodes, strict=False))
    )


class GraphEncoder(JetEncoder):
    """Graph network of particles; see the module. It sees four-momenta alone, whatever the features.

    The tokens are the particles after the last step; the CLS token is their mean.

    Args:
        config: its shape.
        n_features: features of a particle, ``len(Features.names)``; not used.
    """

    def __init__(self, config: GraphConfig, n_features: int = 0) -> None:
        super().__init__()
        self.config, self.n_features = config, n_features
        self.steps = _steps(config, 3, config.width, activated=True)

    @property
    def symmetries(self) -> frozenset[Symmetry]:
        """Order and padding of the particles, and rotations about the beam."""
        return super().symmetries | {"azimuth"}

    @property
    def stages(self) -> nn.ModuleList:
        """The steps."""
        return self.steps

    @property
    def width(self) -> int:
        """Features of a token."""
        return self.config.width

    def tokens(self, seen: Tensor, mask: Tensor) -> Tensor:
        """Particles relative to the jet (batch, n, 3), from `relative`, → (batch, n, width), zero where padded."""
        x = seen.to(next(self.parameters()).dtype) / _SCALE
        for step in self.steps:
            x = step(x, mask)
        return x

    def forward(self, views: Sequence[ModelInput], chosen: Sequence[Tensor | None] | None = None) -> list[Encoded]:
        """Encodes each view; all tokens are computed, whatever is ``chosen``.

        Raises:
            ValueError: if a view has no four-vectors.
        """
        result = []
        for view in views:
            tokens = self.tokens(relative(momenta_in(view), view.mask)[1], view.mask)
            result.append(encoded(_mean(tokens, view.mask), tokens, view.mask))
        return result

    def layers(self) -> list[list[tuple[str, nn.Parameter]]]:
        """All named parameters by depth: an empty stem, step 1, …, step n."""
        return [[]] + [
            [(f"steps.{i}.{path}", parameter) for path, parameter in step.named_parameters()]
            for i, step in enumerate(self.steps)
        ]


def _mean(tokens: Tensor, mask: Tensor) -> Tensor:
    return tokens.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


class GraphAutoencoder(Autoencoder):
    """Graph network, numbers, graph network; see the module.

    At the level of particles, jets lose all but their hardest ``n_particles``.

    Args:
        encoder: its level and shape are those of the decoder too.
        n_particles: slots.
    """

    n_momentum = 3

    def __init__(self, encoder: GraphEncoder, n_particles: int) -> None:
        super().__init__()
        at_least(1, n_particles=n_particles)
        config = encoder.config
        self.encoder: GraphEncoder = encoder
        self.n_particles, self.by_particle, self.latent = n_particles, config.level == "particle", config.latent
        # As many features of a node as a message has.
        self.node_width = config.edges[0][-1]
        if self.by_particle:
            self.to_latent = nn.Linear(config.width, config.latent)
            self.to_nodes = nn.Linear(config.latent, self.node_width)
        else:
            self.to_nodes = nn.Linear(config.width, n_particles * self.node_width)
        self.steps = _steps(config, self.node_width, 3 if self.by_particle else 4, activated=False)

    @property
    def size(self) -> int:
        """Real numbers that are kept of a jet: see the module."""
        return 3 + (self.n_particles * self.latent + 1 if self.by_particle else self.encoder.width)

    def encode(self, p4: Tensor, mask: Tensor) -> Tensor:
        """(batch, size) float64: the jet's pT, η, φ; then the latent jet, or the multiplicity and latent particles."""
        jet, seen = relative(p4, mask)
        tokens = self.encoder.tokens(seen, mask)
        if not self.by_particle:
            return torch.cat([jet, _mean(tokens, mask).double()], 1)
        order, real = hardest(seen[..., 0], mask, self.n_particles)
        tokens = tokens.gather(1, order.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
        latent = (self.to_latent(tokens) * real.unsqueeze(-1)).double().flatten(1)
        return torch.cat([jet, real.sum(1, keepdim=True).double(), latent], 1)

    def decode(self, numbers: Tensor) -> InLaboratory:
        """Numbers → particles."""
        self.check(numbers)
        jet, latent = numbers[:, :3], numbers[:, 3:]
        batch, n = len(numbers), self.n_particles
        if self.by_particle:
            presence, latent = counted(latent[:, 0], n), latent[:, 1:].reshape(batch, n, self.latent)
            mask = presence > 0
        else:
            presence, mask = None, torch.ones(batch, n, dtype=torch.bool, device=numbers.device)
        x = self.to_nodes(latent.to(self.to_nodes.weight.dtype)).view(batch, n, self.node_width)
        x = x * mask.unsqueeze(-1)
        for step in self.steps:
            x = step(x, mask)
        share = F.softplus(x[..., :1]) / n * mask.unsqueeze(-1)
        # Momenta grow with the exponential of Δη: a bound keeps early steps finite.
        angles = _REACH * torch.tanh(x[..., 1:3] * (_SCALE / _REACH))
        momenta = absolute(jet, torch.cat([share, angles], -1))
        return InLaboratory(x[..., 3] if presence is None else presence, momenta)
