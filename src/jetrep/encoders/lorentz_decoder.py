r"""From a few invariant scalars and four-vectors back to the particles of a jet, and the autoencoder of both halves.

The four-momentum of the jet is one of the latent vectors: it tells the decoder the frame and the mass, so what the
decoder uses is in the latent, and counts. The others are kept in the rest frame of the jet, which loses no digits; in
the laboratory they transform as momenta do. In that frame, each of N slots is a combination
:math:`p_i = \sum_a c_{ia} z_a` of the latent vectors, with coefficients that are functions of the scalars and of all
products :math:`z_a\cdot z_b` (every covariant function of vectors is of this form); the layers of the encoder refine
them. Of a latent vector the energy in that frame enters as a scalar, the momentum as a direction and a size: averages
over a jet at rest have little momentum, and the decoder must not mistake that for little information.

A second output says which slots are particles: without it the multiplicity would be lost.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from jetrep.encoders.autoencoder import Autoencoder, InRestFrame
from jetrep.encoders.lorentz import LEARNED, LorentzEncoder, gram_invariants, rest_velocity
from jetrep.encoders.lorentz_layers import LorentzStack, dot, positive_norm2
from jetrep.errors import InputError, at_least
from jetrep.physics.lorentz import RestFrame

__all__ = ["LorentzAutoencoder", "LorentzDecoder", "LorentzDecoderConfig", "LorentzLatent"]


@dataclass(frozen=True)
class LorentzDecoderConfig:
    """Shape of a `LorentzDecoder`; the default is a little larger than that of arXiv 2212.07347 (28,862 weights).

    Attributes:
        n_particles: slots; None for 30, or as many as the jets that it is trained on may have.
        width: invariant scalars of a slot.
        vectors: four-vectors of a slot.
        heads: weights of pairs in each block; a divisor of ``width`` and ``vectors``.
        depth: blocks.
        hidden: hidden features of the feed-forward networks.
        massless: put the particles on the light cone, by their energy in the rest frame of the jet.
        conserve: boost and scale the particles that come out together so that they sum to the jet's momentum, which
            the latent tells: mass and momentum of the jet are exact.
        maxdim: 2 for scalars and vectors; 3 for rank-2 tensors too.
        tensors: channels of antisymmetric and of symmetric traceless tensors, for ``maxdim`` 3; a multiple of
            ``heads``.
        linear: slots also have linear combinations of the latent vectors, whose coefficients are the same for all jets.
            They begin as one vector for each of the first slots.
    """

    n_particles: int | None = None
    width: int = 32
    vectors: int = 8
    heads: int = 4
    depth: int = 3
    hidden: int = 48
    massless: bool = True
    conserve: bool = True
    maxdim: Literal[2, 3] = 2
    tensors: int = 4
    linear: bool = field(default=False, metadata={"later": True})

    def __post_init__(self) -> None:
        for name in ("n_particles", "width", "vectors", "heads", "depth", "hidden", "tensors"):
            at_least(1, **{f"decoder.{name}": getattr(self, name)})
        for name in ("width", "vectors", *(["tensors"] if self.maxdim > 2 else [])):
            if getattr(self, name) % self.heads:
                raise InputError(
                    f"{name} {getattr(self, name)} is not a multiple of {self.heads} heads",
                    field=f"decoder.{name}",
                    remedy="choose a multiple of decoder.heads",
                )

    @property
    def slots(self) -> int:
        """Their number."""
        return 30 if self.n_particles is None else self.n_particles


@dataclass(frozen=True)
class LorentzLatent:
    """All that is kept of a jet.

    Attributes:
        scalars: (batch, n_scalars) invariant.
        jet: (batch, 4) float64, mass and momentum (m, px, py, pz) of the jet in GeV. Not its energy: that of a jet at
            high γ does not tell the mass.
        at_rest: (batch, n_vectors − 1, 4) the other vectors, in the rest frame of the jet, in units of its mass.
    """

    scalars: Tensor
    jet: Tensor
    at_rest: Tensor

    @property
    def frame(self) -> RestFrame:
        """The rest frame of the jet."""
        return RestFrame.of_mass(self.jet[:, 0], self.jet[:, 1:])

    @property
    def n_vectors(self) -> int:
        """Number of vectors, the jet's momentum among them."""
        return 1 + self.at_rest.shape[1]

    @property
    def vectors(self) -> Tensor:
        """(batch, n_vectors, 4) float64 in GeV, in the frame of the observer, the jet's momentum first."""
        return torch.cat([self.frame.jet_p4.unsqueeze(1), self.frame.to_lab(self.at_rest)], 1)

    @property
    def size(self) -> int:
        """Real numbers that are kept of a jet: the width of `numbers`."""
        return self.numbers().shape[1]

    def numbers(self) -> Tensor:
        """(batch, size) float64, what is stored: the scalars, mass and momentum of the jet, the other vectors."""
        return torch.cat([self.scalars.double(), self.jet, self.at_rest.double().flatten(1)], 1)

    @classmethod
    def of(cls, numbers: Tensor, n_scalars: int, n_vectors: int) -> LorentzLatent:
        """The inverse of `numbers`.

        Raises:
            InputError: if there are more or fewer numbers than a latent of this shape has.
        """
        expected = n_scalars + 4 * n_vectors
        if numbers.dim() != 2 or numbers.shape[1] != expected:
            raise InputError(
                f"has the shape {tuple(numbers.shape)}, not (jets, {expected}) for {n_scalars} scalars and {n_vectors} "
                "vectors",
                field="latent",
                remedy="decode it with the model that made it",
            )
        vectors = numbers[:, n_scalars:].reshape(len(numbers), n_vectors, 4)
        return cls(numbers[:, :n_scalars], vectors[:, 0].double(), vectors[:, 1:])


class LorentzDecoder(nn.Module):
    """Latent → particles; see the module.

    Args:
        config: its shape.
        n_scalars: scalars of the latent.
        n_vectors: vectors of the latent, the jet's momentum among them.
    """

    def __init__(self, config: LorentzDecoderConfig, n_scalars: int, n_vectors: int) -> None:
        super().__init__()
        self.config, self.n_scalars, self.n_vectors = config, n_scalars, n_vectors
        known = n_scalars + n_vectors * (n_vectors + 1) // 2 + 2
        self.embed = nn.Sequential(
            nn.Linear(known, config.hidden), nn.GELU(), nn.Linear(config.hidden, 2 * config.width)
        )
        self.slots = nn.Parameter(torch.randn(config.slots, config.width))
        self.coefficients = nn.Sequential(
            nn.Linear(config.width, config.hidden), nn.GELU(), nn.Linear(config.hidden, n_vectors - config.massless)
        )
        self.by_slot: nn.Parameter | None = None
        self.embed_v = nn.Linear(n_vectors, config.vectors, bias=False)
        tensors = config.tensors if config.maxdim > 2 else 0
        self.stack = LorentzStack(config.width, config.vectors, config.heads, config.hidden, config.depth, tensors)
        self.refine = nn.Linear(config.vectors, 1, bias=False)
        self.presence = nn.Linear(config.width, 1)
        if config.linear:
            self.by_slot = nn.Parameter(torch.eye(config.slots, n_vectors - 1))
            with torch.no_grad():
                for weights in (*self.coefficients[-1].parameters(), self.refine.weight):
                    weights.mul_(LEARNED)
        # All slots begin as particles: few of them that had to make up a whole jet would be scaled up.
        nn.init.constant_(self.presence.bias, 1.0)

    def at_rest(self, scalars: Tensor, vectors: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
        """The network itself: plain tensors in and out, no control flow that depends on data.

        Args:
            scalars: (batch, n_scalars).
            vectors: (batch, 4, n_vectors) in the rest frame of the jet, in units of its mass.
            mass: (batch,) jet mass in GeV.

        Returns:
            `InRestFrame.momenta` and `InRestFrame.presence`.
        """
        n, u = self.config.slots, rest_velocity(vectors)
        others, jet = vectors[..., 1:], u.squeeze(1)
        momentum = others - jet * dot(jet, others).unsqueeze(1)
        size2 = positive_norm2(momentum, jet).mean(-1, keepdim=True) + 1e-6
        z = momentum * torch.rsqrt(size2).unsqueeze(1)
        per_jet = [0.5 * torch.log1p(mass).to(z.dtype).unsqueeze(1), 0.5 * torch.log(size2)]
        known = torch.cat([scalars, gram_invariants(vectors), *per_jet], 1)
        shift, scale = self.embed(known).unsqueeze(1).chunk(2, -1)
        s = self.slots * (1 + scale) + shift
        basis = z if self.config.massless else torch.cat([jet.expand(len(z), -1, -1), z], -1)
        # n particles share the energy of the jet.
        p = self.coefficients(s) @ basis.mT / n
        if self.by_slot is not None:
            p = p + self.by_slot @ others.mT
        p = self._physical(p)
        v = torch.cat([n**0.5 * p.unsqueeze(-1), z.unsqueeze(1).expand(-1, n, -1, -1)], -1)
        mask = torch.ones(p.shape[:2], dtype=torch.bool, device=p.device)
        x = self.stack(s, self.embed_v(v), p, u, mask)
        momenta, presence = self._physical(p + self.refine(x.v).squeeze(-1) / n), self.presence(x.s).squeeze(-1)
        return self._conserved(momenta, presence) if self.config.conserve else momenta, presence

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the blocks, for the shapes that come: they seldom change. See `LorentzStack.compile`."""
        self.stack.compile()

    @staticmethod
    def _conserved(p: Tensor, presence: Tensor) -> Tensor:
        """(batch, N, 4) → the same in the frame and in the units in which the slots that are there sum to (1, 0, 0, 0).

        A sum that moves at γ > 2, of a single particle, of none, or of a network that has not learned yet, is left
        alone: it would cost digits, and scale up what is there.
        """
        total = (p * (presence > 0).unsqueeze(-1)).sum(1)
        mass2 = total[:, 0].square() - total[:, 1:].square().sum(1)
        fast = ~((total[:, 0] > 0) & (mass2 > 0.25 * total[:, 0].square())).unsqueeze(1)
        at_rest = rest_velocity(total).view(1, 4)
        return RestFrame.of(torch.where(fast, at_rest, total)).to_rest(p).to(p.dtype)

    def _physical(self, p: Tensor) -> Tensor:
        """(batch, N, 4) → the same, on the light cone if particles are massless."""
        if not self.config.massless:
            return p
        momentum = p[..., 1:]
        # The floor keeps the gradient at a vanishing momentum finite.
        energy = torch.sqrt(momentum.square().sum(-1, keepdim=True).clamp(min=1e-20))
        return torch.cat([energy, momentum], -1)

    def forward(self, latent: LorentzLatent) -> InRestFrame:
        """Decodes jets.

        Raises:
            InputError: if the latent has not the numbers of scalars and vectors that this decoder was built for.
        """
        given = latent.scalars.shape[1], latent.n_vectors
        if given != (self.n_scalars, self.n_vectors):
            raise InputError(
                f"has {given[0]} scalars and {given[1]} vectors, not {self.n_scalars} and {self.n_vectors}",
                field="latent",
                remedy="decode it with the model that made it",
            )
        dtype = self.slots.dtype
        frame = latent.frame
        others = latent.at_rest.to(dtype).mT
        jet = rest_velocity(others).view(1, 4, 1).expand(len(others), -1, -1)
        with torch.autocast(others.device.type, enabled=False):  # as in the encoder
            momenta, presence = self.at_rest(latent.scalars.to(dtype), torch.cat([jet, others], -1), frame.mass)
        return InRestFrame(presence, momenta, frame)


class LorentzAutoencoder(Autoencoder):
    """Encoder, latent, decoder.

    Args:
        encoder: makes the invariant CLS token, from which the latent scalars are taken, and the latent vectors.
        n_scalars: scalars of the latent.
        config: shape of the decoder.
    """

    def __init__(self, encoder: LorentzEncoder, n_scalars: int, config: LorentzDecoderConfig) -> None:
        super().__init__()
        at_least(1, **{"latent.scalars": n_scalars})
        self.encoder: LorentzEncoder = encoder
        self.n_scalars, self.n_vectors = n_scalars, 1 + encoder.n_vectors
        self.to_scalars = nn.Linear(encoder.width, n_scalars)
        self.decoder = LorentzDecoder(config, n_scalars, self.n_vectors)

    @property
    def conserves(self) -> bool:
        """Whether what comes out is made to have the mass and momentum of the jet, which are kept."""
        return self.decoder.config.conserve

    @property
    def size(self) -> int:
        """Real numbers that are kept of a jet."""
        return self.n_scalars + 4 * self.n_vectors

    def latent(self, p4: Tensor, mask: Tensor) -> LorentzLatent:
        """(batch, n, 4) momenta in GeV and (batch, n) bool → what is kept of them."""
        jets = self.encoder.jets(p4, mask)
        jet = torch.cat([jets.frame.mass.unsqueeze(1), jets.frame.jet_p4[:, 1:]], 1)
        return LorentzLatent(self.to_scalars(jets.cls), jet, jets.vectors.mT)

    def encode(self, p4: Tensor, mask: Tensor) -> Tensor:
        """The latent as numbers: (batch, size) float64."""
        return self.latent(p4, mask).numbers()

    def describe(self, numbers: Tensor) -> Tensor:
        """The scalars, ln(1 + m), and the products of the vectors and of the jet's velocity with each other."""
        latent = LorentzLatent.of(numbers, self.n_scalars, self.n_vectors)
        others = latent.at_rest.double().mT
        jet = rest_velocity(others).view(1, 4, 1).expand(len(others), -1, -1)
        products = gram_invariants(torch.cat([jet, others], -1))[:, 1:]  # without u·u
        return torch.cat([latent.scalars.double(), torch.log1p(latent.jet[:, :1]), products], 1)

    def decode(self, numbers: Tensor) -> InRestFrame:
        """Numbers → particles."""
        reconstruction: InRestFrame = self.decoder(LorentzLatent.of(numbers, self.n_scalars, self.n_vectors))
        return reconstruction
