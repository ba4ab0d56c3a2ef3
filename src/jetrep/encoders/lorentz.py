"""`LorentzEncoder`: a network on four-momenta that commutes with Lorentz transformations.

The momenta are brought into the rest frame of the jet in float64 (`jetrep.physics.lorentz.RestFrame`), in units of its
mass; the layers there (`lorentz_layers`) run in the precision of the weights. Tokens and the CLS token are invariant:
they are the same for every observer. The vectors that the encoder keeps beside them turn with the frame; brought back
into the laboratory they transform as the momenta do (`lorentz_decoder`).

A boost by γ costs log10 γ digits of the angles that the momenta describe, and twice as many of the masses, whatever is
computed from them. Give float64 momenta to compare observers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jetrep.encoders.base import Encoded, JetEncoder, Symmetry
from jetrep.encoders.lorentz_layers import LorentzStack, dot, lowered
from jetrep.encoders.lorentz_pooling import Aggregation, LorentzPooling
from jetrep.errors import InputError, at_least
from jetrep.features import ModelInput
from jetrep.physics.lorentz import RestFrame

__all__ = ["LEARNED", "LorentzConfig", "LorentzEncoder", "LorentzJets", "gram_invariants", "rest_velocity"]

# Scales of the features of a particle: its energy in the rest frame, in units of the jet mass, is 1/n on average.
_ENERGY_SCALES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_EQUAL = 1e-6  # energies whose ratio is nearer to one share a place
LEARNED = 0.1
"""Size of all else at first, where linear combinations of momenta are there from the beginning."""


@dataclass(frozen=True)
class LorentzConfig:
    """Shape of a `LorentzEncoder`; the default is a little larger than that of arXiv 2212.07347 (34,114 weights).

    Attributes:
        width: invariant scalars of a particle, and features of a token.
        vectors: four-vectors of a particle.
        heads: weights of pairs in each block; a divisor of ``width`` and ``vectors``.
        depth: blocks.
        hidden: hidden features of the feed-forward networks.
        pooled: four-vectors of the jet that the CLS token is made from, and an autoencoder keeps; with "min&max" as
            many of each.
        aggregation: how particles are pooled.
        max_particles: for the aggregation "mix", the largest number of particles of a jet.
        maxdim: 2 for scalars and vectors; 3 for rank-2 tensors too.
        tensors: channels of antisymmetric and of symmetric traceless tensors, for ``maxdim`` 3; a multiple of
            ``heads``.
        mass: show the network the jet mass, in GeV; without it, jets that differ by a factor look the same.
        weighting: "count": all particles count alike. "energy": the network sees directions, and sums are weighted by
            the energies in the rest frame. Then what it says of a jet is infrared and collinear safe, and does not know
            the multiplicity. With the aggregations "mean" and "attention".
        ranks: tell each particle its place by energy in the rest frame, the first of this many by their own number, the
            others as one; with 0, none. Places are the same for every observer and do not depend on the order in which
            particles are given. They jump where two energies are equal, and those that are share one: so vectors do not
            know the axis of a jet of two particles. For the weighting "count".
        linear: add linear combinations of the momenta to the vectors of a jet, with a coefficient for each place. They
            begin as the particles of highest energy, so an autoencoder begins near the best linear map. Needs
            ``ranks``.
    """

    width: int = 32
    vectors: int = 8
    heads: int = 4
    depth: int = 4
    hidden: int = 48
    pooled: int = 4
    aggregation: Aggregation = "attention"
    max_particles: int | None = None
    maxdim: Literal[2, 3] = 2
    tensors: int = 4
    mass: bool = True
    weighting: Literal["count", "energy"] = "count"
    ranks: int = field(default=0, metadata={"later": True})
    linear: bool = field(default=False, metadata={"later": True})
    kind: Literal["lorentz"] = "lorentz"

    def __post_init__(self) -> None:
        for name in ("width", "vectors", "heads", "depth", "hidden", "pooled", "tensors"):
            at_least(1, **{f"encoder.{name}": getattr(self, name)})
        at_least(1, **{"encoder.max_particles": self.max_particles})
        at_least(0, **{"encoder.ranks": self.ranks})
        for name in ("width", "vectors", *(["tensors"] if self.maxdim > 2 else [])):
            if getattr(self, name) % self.heads:
                raise InputError(
                    f"{name} {getattr(self, name)} is not a multiple of {self.heads} heads",
                    field=f"encoder.{name}",
                    remedy="choose a multiple of encoder.heads",
                )
        if self.weighting == "energy" and self.ranks:
            raise InputError(
                "a place by energy changes with a soft particle or a split",
                field="encoder.ranks",
                remedy="leave it out, or choose the weighting 'count'",
            )
        if self.linear and not self.ranks:
            raise InputError(
                "has no places to go by", field="encoder.linear", remedy="set encoder.ranks, or leave it out"
            )
        if self.weighting == "energy" and self.aggregation not in ("mean", "attention"):
            raise InputError(
                f"'{self.aggregation}' looks at soft particles as at all others",
                field="encoder.aggregation",
                remedy="choose 'mean' or 'attention', or the weighting 'count'",
            )
        if self.aggregation == "mix" and self.max_particles is None:
            raise InputError(
                "'mix' is a map of a fixed number of particles",
                field="encoder.max_particles",
                remedy="give the largest number of particles of a jet",
            )


@dataclass(frozen=True)
class LorentzJets:
    """Jets as the encoder sees them, in their rest frames, in units of their masses.

    Attributes:
        tokens: (batch, n, width) invariant scalars of the particles, zero where padded.
        cls: (batch, width) invariant scalars of the jets.
        vectors: (batch, 4, pooled) vectors of the jets.
        momenta: (batch, n, 4) float64, the particles, zero where padded.
        frame: their rest frames.
        mask: (batch, n) bool, True for a real particle.
    """

    tokens: Tensor
    cls: Tensor
    vectors: Tensor
    momenta: Tensor
    frame: RestFrame
    mask: Tensor


def rest_velocity(like: Tensor) -> Tensor:
    """(1, 1, 4, 1) the four-velocity of the jet in its rest frame."""
    return like.new_tensor([1.0, 0.0, 0.0, 0.0]).view(1, 1, 4, 1)


def gram_invariants(v: Tensor) -> Tensor:
    """All products v_a·v_b of vectors (batch, 4, C), compressed to order one: (batch, C(C + 1)/2)."""
    gram = lowered(v).mT @ v
    rows, columns = torch.triu_indices(v.shape[-1], v.shape[-1], device=v.device)
    products = gram[:, rows, columns]
    return torch.sign(products) * torch.log1p(products.abs())


class LorentzEncoder(JetEncoder):
    """Lorentz-equivariant network of particles; see the module. It sees four-momenta alone, whatever the features.

    Args:
        config: its shape.
        n_features: features of a particle, ``len(Features.names)``; not used.
    """

    energy_scale: Tensor

    def __init__(self, config: LorentzConfig, n_features: int = 0) -> None:
        super().__init__()
        self.config, self.n_features = config, n_features
        self.register_buffer("energy_scale", torch.tensor(_ENERGY_SCALES).reciprocal(), persistent=False)
        self.by_energy = config.weighting == "energy"
        self.embed_s = nn.Linear(1 if self.by_energy else len(_ENERGY_SCALES) + 1 + config.mass, config.width)
        self.embed_rank = nn.Embedding(config.ranks + 1, config.width) if config.ranks else None
        self.embed_v = nn.Linear(config.width, (1 if self.by_energy else 2) * config.vectors)
        tensors = config.tensors if config.maxdim > 2 else 0
        self.stack = LorentzStack(config.width, config.vectors, config.heads, config.hidden, config.depth, tensors)
        self.pool = LorentzPooling(
            config.width, config.vectors, config.width, config.pooled, config.aggregation, config.max_particles
        )
        pooled = self.pool.n_vectors
        self.by_place: nn.Embedding | None = None
        if config.linear:
            self.by_place = nn.Embedding(config.ranks + 1, pooled, _weight=torch.eye(config.ranks + 1, pooled))
            self.pool.shrink(LEARNED)
        self.fc1 = nn.Linear(self.pool.n_scalars + pooled + pooled * (pooled + 1) // 2, config.hidden)
        self.fc2 = nn.Linear(config.hidden, config.width)

    @property
    def symmetries(self) -> frozenset[Symmetry]:
        """All of SO⁺(3,1); order and padding too, but for the aggregation "mix"; collinear splits for the weighting
        "energy", whose error for soft particles falls with their energy but is not zero.
        """
        lorentz: frozenset[Symmetry] = frozenset({"boost", "rotation", "azimuth"})
        safe: frozenset[Symmetry] = frozenset({"collinear"} if self.by_energy else ())
        return lorentz if self.config.aggregation == "mix" else lorentz | super().symmetries | safe

    @property
    def stages(self) -> nn.ModuleList:
        """The blocks."""
        return self.stack.blocks

    @property
    def most_particles(self) -> int | None:
        """Any number, but for the aggregation "mix"."""
        return self.config.max_particles if self.config.aggregation == "mix" else None

    @property
    def width(self) -> int:
        """Features of a token."""
        return self.config.width

    @property
    def n_vectors(self) -> int:
        """Four-vectors of a jet."""
        return self.pool.n_vectors

    def jets(self, p4: Tensor, mask: Tensor) -> LorentzJets:
        """Encodes jets.

        Args:
            p4: (batch, n, 4) momenta in GeV, in float64 or float32.
            mask: (batch, n) bool, True for a real particle.
        """
        padded = ~mask.unsqueeze(-1)
        frame, momenta = RestFrame.of_particles(p4.masked_fill(padded, 0.0))
        momenta = momenta.masked_fill(padded, 0.0)
        with torch.autocast(momenta.device.type, enabled=False):  # products of massless momenta cancel
            tokens, cls, vectors = self.at_rest(momenta, frame.mass, mask)
        return LorentzJets(tokens, cls, vectors, momenta, frame, mask)

    def at_rest(self, momenta: Tensor, mass: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The network itself: plain tensors in and out, no control flow that depends on data.

        Args:
            momenta: (batch, n, 4) float64 in the rest frame of the jet, in units of its mass, zero where padded.
            mass: (batch,) jet mass in GeV.
            mask: (batch, n) bool, True for a real particle.

        Returns:
            `LorentzJets.tokens`, `LorentzJets.cls`, `LorentzJets.vectors`.
        """
        dtype = self.embed_s.weight.dtype
        real = mask.unsqueeze(-1).to(dtype)
        share, seen = None, momenta
        places = self._places(momenta, mask) if self.config.ranks else None
        if self.by_energy:
            s, v, share, seen = self._directions(momenta, mass)
        else:
            s, v = self._momenta(momenta, mass, real, places)
        u = rest_velocity(s)
        x = self.stack(s * real, v * real.unsqueeze(-1), seen, u, mask, share)
        pooled_s, pooled_v = self.pool(x.s, x.v, mask, share)
        if self.by_place is not None:
            pooled_v = pooled_v + momenta.to(dtype).mT @ self.by_place(places)
        energies = dot(u.squeeze(1), pooled_v)
        known = torch.cat([pooled_s, torch.asinh(energies), gram_invariants(pooled_v)], -1)
        cls = self.fc2(F.gelu(self.fc1(known)))
        return x.s, cls * mask.any(1, keepdim=True), pooled_v

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the blocks, for the shapes that come: they seldom change. See `LorentzStack.compile`."""
        self.stack.compile()

    def _momenta(self, momenta: Tensor, mass: Tensor, real: Tensor, places: Tensor | None) -> tuple[Tensor, Tensor]:
        """First scalars and vectors of the particles, for the weighting "count"."""
        p = momenta.to(real.dtype)
        count = real.sum(1, keepdim=True)
        energy = p[..., :1]
        per_jet = [torch.log1p(count)]
        if self.config.mass:
            per_jet.append(torch.log1p(mass).to(p.dtype).view(-1, 1, 1))
        per_jet = [0.5 * x.expand(-1, p.shape[1], -1) for x in per_jet]
        s = self.embed_s(torch.cat([0.5 * torch.log1p(energy.abs() * self.energy_scale), *per_jet], -1))
        if self.embed_rank is not None:
            s = s + self.embed_rank(places)
        # Momenta and their directions, times functions of the invariants. Without u: the sum over particles of a vector
        # along it would drown what tells directions apart.
        by_momentum, by_direction = self.embed_v(s).unsqueeze(2).chunk(2, -1)
        momentum = p.unsqueeze(-1) * count.clamp(min=1).unsqueeze(-1).sqrt()
        return s, by_momentum * momentum + by_direction * (p / (energy + 1e-6)).unsqueeze(-1)

    def _places(self, momenta: Tensor, mask: Tensor) -> Tensor:
        """(batch, n) place by energy in the rest frame: how many particles have more, at most ``ranks``.

        Equal energies, such as those of the two particles of a jet of two, share a place: rounding must not decide.
        """
        energy = momenta[..., 0].masked_fill(~mask, 0.0)
        more = energy.unsqueeze(1) > (1 + _EQUAL) * energy.unsqueeze(2)
        return more.sum(2).clamp(max=self.config.ranks)

    def _directions(self, momenta: Tensor, mass: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same for the weighting "energy"; shares of the energy (batch, n, 1), p/E (batch, n, 4) float64.

        What a particle is told of itself does not change if it splits in two along its direction.
        """
        dtype = self.embed_s.weight.dtype
        energy = momenta[..., :1].clamp(min=0)
        direction = momenta / energy.clamp(min=1e-20)
        share = (energy / energy.sum(1, keepdim=True).clamp(min=1e-20)).to(dtype)
        of_jet = 0.5 * torch.log1p(mass) if self.config.mass else torch.ones_like(mass)
        s = self.embed_s(of_jet.to(dtype).view(-1, 1, 1).expand(-1, momenta.shape[1], -1))
        return s, self.embed_v(s).unsqueeze(2) * direction.to(dtype).unsqueeze(-1), share, direction

    def forward(self, views: Sequence[ModelInput], chosen: Sequence[Tensor | None] | None = None) -> list[Encoded]:
        """Encodes each view; all tokens are computed, whatever is ``chosen``.

        Raises:
            ValueError: if a view has no four-vectors.
        """
        return [self._encoded(view) for view in views]

    def _encoded(self, view: ModelInput) -> Encoded:
        if view.p4 is None:
            raise ValueError("LorentzEncoder needs the four-vectors of the particles: see ModelInput.p4")
        jets = self.jets(view.p4, view.mask)
        batch, n = view.mask.shape
        rows = torch.arange(batch * (n + 1), device=view.mask.device)
        packed = torch.cat([jets.cls, jets.tokens.flatten(0, 1)])
        return Encoded(packed, rows[:batch], rows[batch:].view(batch, n), view.mask)

    def layers(self) -> list[list[tuple[str, nn.Parameter]]]:
        """All named parameters by depth: embedding and weights of pairs, block 1, …, block n with what follows."""
        layers: list[list[tuple[str, nn.Parameter]]] = [[] for _ in range(self.config.depth + 1)]
        for path, parameter in self.named_parameters():
            root, _, rest = path.partition(".")
            if rest.startswith("blocks."):
                depth = int(rest.split(".")[1]) + 1
            else:
                depth = 0 if root.startswith("embed") or rest.startswith("pairs.") else self.config.depth
            layers[depth].append((path, parameter))
        return layers
