"""What every autoencoder of jets is: particles in, a row of numbers, particles out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from jetrep.encoders.base import JetEncoder, Symmetry
from jetrep.errors import InputError
from jetrep.physics.lorentz import RestFrame

__all__ = ["Autoencoder", "InLaboratory", "InRestFrame", "JetImages", "Reconstruction"]


@dataclass(frozen=True)
class Reconstruction(ABC):
    """Jets as they come out of a decoder, as slots of which some are particles.

    Attributes:
        presence: (batch, M) logits: is the slot a particle?
    """

    presence: Tensor

    @property
    @abstractmethod
    def p4(self) -> Tensor:
        """(batch, M, 4) float64 momenta of all slots in GeV, in the frame of the observer."""

    @property
    def mask(self) -> Tensor:
        """(batch, M) bool, True for a slot that is a particle."""
        return self.presence > 0

    def at_rest(self, frame: RestFrame) -> Tensor:
        """(batch, M, 4) momenta of all slots in the rest frame of the true jets, in units of their masses."""
        return frame.to_rest(self.p4)


@dataclass(frozen=True)
class InRestFrame(Reconstruction):
    """Momenta that a decoder makes in the rest frame of the jet, which the numbers that it decodes tell exactly.

    Attributes:
        momenta: (batch, M, 4) in that frame, in units of the jet mass, in the precision of the weights.
        frame: the rest frame.
    """

    momenta: Tensor
    frame: RestFrame

    @property
    def p4(self) -> Tensor:
        """(batch, M, 4) float64 momenta of all slots in GeV, in the frame of the observer."""
        return self.frame.to_lab(self.momenta)

    def at_rest(self, frame: RestFrame) -> Tensor:
        """``momenta``: ``frame`` is theirs."""
        return self.momenta


@dataclass(frozen=True)
class InLaboratory(Reconstruction):
    """Momenta that a decoder makes in the frame of the observer.

    Attributes:
        momenta: (batch, M, 4) float64 in GeV.
    """

    momenta: Tensor

    @property
    def p4(self) -> Tensor:
        """``momenta``."""
        return self.momenta


@dataclass(frozen=True)
class JetImages(InLaboratory):
    """Pixels as massless particles at their centres.

    Attributes:
        image: (batch, H, W) share of the transverse momentum in each pixel, rows in η, columns in φ; sums to one.
        half_width: of the square window around the axis of the jet, in Δη and Δφ.
    """

    image: Tensor
    half_width: float


class Autoencoder(nn.Module, ABC):
    """Encoder, numbers, decoder. What is kept of a jet is a row of `size` real numbers and nothing else.

    Attributes:
        encoder: what is kept after training as a representation of jets; those that nothing trains have none.
    """

    encoder: JetEncoder
    n_momentum: ClassVar[int] = 0
    """How many numbers, the first ones, are the momentum of the jet."""

    @property
    def symmetries(self) -> frozenset[Symmetry]:
        """What is claimed to turn the particles that come out along with those that go in; see `JetEncoder`."""
        return self.encoder.symmetries

    @property
    def conserves(self) -> bool:
        """Whether what comes out is made to have the mass and momentum of the jet, which are kept."""
        return False

    @property
    @abstractmethod
    def size(self) -> int:
        """Real numbers that are kept of a jet: the width of `encode`'s output."""

    @abstractmethod
    def encode(self, p4: Tensor, mask: Tensor) -> Tensor:
        """Everything that the decoder will know: (batch, size) float64.

        Args:
            p4: (batch, n, 4) momenta in GeV.
            mask: (batch, n) bool, True for a real particle.
        """

    @abstractmethod
    def decode(self, numbers: Tensor) -> Reconstruction:
        """The inverse of `encode`, as far as there is one.

        Raises:
            InputError: if the numbers are not (batch, size).
        """

    def describe(self, numbers: Tensor) -> Tensor:
        """What the numbers say of a jet beside its momentum, to compare jets by: (batch, k) float64.

        Args:
            numbers: (batch, size) what `encode` gives.
        """
        self.check(numbers)
        return numbers[:, self.n_momentum :].double()

    def check(self, numbers: Tensor) -> None:
        """Refuse what is no output of `encode`.

        Raises:
            InputError: if the numbers are not (batch, size).
        """
        if numbers.dim() != 2 or numbers.shape[1] != self.size:
            raise InputError(
                f"has the shape {tuple(numbers.shape)}, not (jets, {self.size})",
                field="latent",
                remedy="decode it with the model that made it",
            )

    def forward(self, p4: Tensor, mask: Tensor) -> Reconstruction:
        """Particles by way of the numbers; see `encode`."""
        return self.decode(self.encode(p4, mask))
