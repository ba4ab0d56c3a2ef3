"""Autoencoders that nothing trains: what must be beaten before a learned one has shown anything.

Both keep jets without a network: the hardest particles as they are, or the best linear map that commutes with Lorentz
transformations.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from jetrep.encoders.autoencoder import Autoencoder, InLaboratory
from jetrep.encoders.base import Symmetry
from jetrep.encoders.lorentz import gram_invariants
from jetrep.encoders.relative import counted, hardest, momenta_of, pt_eta_phi, relative
from jetrep.errors import InputError, at_least
from jetrep.physics.lorentz import RestFrame

__all__ = ["HardestParticles", "LinearLorentz"]


class HardestParticles(Autoencoder):
    """Keeps transverse momentum, pseudorapidity and azimuth of the hardest particles, as massless ones.

    A jet of fewer particles is filled up with zeros; no transverse momentum means no particle.

    Args:
        k: particles that are kept.
        n_particles: slots that come out, all but ``k`` of them empty.

    Raises:
        InputError: if more particles are to be kept than there are slots.
    """

    def __init__(self, k: int, n_particles: int) -> None:
        super().__init__()
        _check_kept(k, n_particles, "k")
        self.k, self.n_particles = k, n_particles

    @property
    def symmetries(self) -> frozenset[Symmetry]:
        """Order and padding of the particles, and rotations about the beam."""
        return frozenset({"permutation", "padding", "azimuth"})

    @property
    def size(self) -> int:
        """Real numbers that are kept of a jet."""
        return 3 * self.k

    def encode(self, p4: Tensor, mask: Tensor) -> Tensor:
        """(batch, size) float64: pT in GeV, η and φ of each, the hardest first."""
        seen = pt_eta_phi(p4.masked_fill(~mask.unsqueeze(-1), 0.0))
        order, real = hardest(seen[..., 0], mask, self.k)
        return (seen.gather(1, order.unsqueeze(-1).expand(-1, -1, 3)) * real.unsqueeze(-1)).flatten(1)

    def decode(self, numbers: Tensor) -> InLaboratory:
        """Numbers → particles."""
        self.check(numbers)
        return InLaboratory(*self._particles(numbers))

    def describe(self, numbers: Tensor) -> Tensor:
        """(batch, size) float64: share of pT, Δη and Δφ of the particles, from the axis of those that are kept."""
        self.check(numbers)
        presence, momenta = self._particles(numbers)
        return relative(momenta, presence > 0)[1][:, : self.k].flatten(1)

    def _particles(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        kept = torch.nn.functional.pad(numbers.view(-1, self.k, 3), (0, 0, 0, self.n_particles - self.k))
        return torch.where(kept[..., 0] > 0, 1.0, -1.0), momenta_of(kept)


class LinearLorentz(Autoencoder):
    r"""The linear map to a few four-vectors and back that loses least, among those that are Lorentz-equivariant.

    A map of momenta p_i that commutes with all transformations treats the four components alike:
    :math:`z_a = \sum_i U_{ia} p_i` and :math:`\hat p_i = \sum_a U_{ia} z_a`. The error
    :math:`\sum_i d_u^2(p_i, \hat p_i)` (see `jetrep.objectives.reconstruction_losses`), averaged over jets, is smallest
    if the columns of U are the leading eigenvectors of :math:`C_{ij} = \langle\sum_\mu p_i^\mu p_j^\mu\rangle`, taken
    in the rest frames of the jets (Eckart and Young 1936). Slots are particles in the order of their energies there,
    which is the same for every observer.

    How many particles there are is kept too. Before `fit`, the first particles are kept.

    Args:
        n_vectors: four-vectors that are kept.
        n_particles: slots; of jets with more particles, the softest are lost.

    Attributes:
        coefficients: (n_particles, n_vectors) float64, U.

    Raises:
        InputError: if more vectors are to be kept than there are slots.
    """

    coefficients: Tensor

    def __init__(self, n_vectors: int, n_particles: int) -> None:
        super().__init__()
        _check_kept(n_vectors, n_particles, "n_vectors")
        self.n_vectors, self.n_particles = n_vectors, n_particles
        self.register_buffer("coefficients", torch.eye(n_particles, n_vectors, dtype=torch.float64))

    @property
    def symmetries(self) -> frozenset[Symmetry]:
        """All of SO⁺(3,1), order and padding."""
        return frozenset({"boost", "rotation", "azimuth", "permutation", "padding"})

    def fit(self, p4: Tensor, mask: Tensor) -> Self:
        """Choose the map that is best for these jets.

        Args:
            p4: (batch, n, 4) momenta in GeV.
            mask: (batch, n) bool, True for a real particle.

        Raises:
            InputError: if there is no particle, or a momentum is not finite.
        """
        slots, _, at_rest = self._slots(p4, mask)
        if not mask.any():
            raise InputError("there are no particles to fit", field="data", remedy="give at least one jet")
        if not torch.isfinite(slots).all():
            raise InputError("a momentum is not finite", field="p4", remedy="leave such jets out")
        second = torch.einsum("bim,bjm->ij", at_rest, at_rest) / len(at_rest)
        self.coefficients.copy_(torch.linalg.eigh(second).eigenvectors.flip(1)[:, : self.n_vectors])
        return self

    def _slots(self, p4: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Momenta (batch, n_particles, 4) by slot in GeV, which are real, and the momenta in the rest frame."""
        p4 = p4.double().masked_fill(~mask.unsqueeze(-1), 0.0)
        at_rest = RestFrame.of_particles(p4)[1]
        order, real = hardest(at_rest[..., 0], mask, self.n_particles)
        index = order.unsqueeze(-1).expand(-1, -1, 4)
        slots, at_rest = (x.gather(1, index) * real.unsqueeze(-1) for x in (p4, at_rest))
        return slots, real, at_rest

    @property
    def size(self) -> int:
        """Real numbers that are kept of a jet."""
        return 4 * self.n_vectors + 1

    def encode(self, p4: Tensor, mask: Tensor) -> Tensor:
        """(batch, size) float64: the multiplicity, then the vectors in GeV."""
        slots, real, _ = self._slots(p4, mask)
        vectors = self.coefficients.double().mT @ slots
        return torch.cat([real.sum(1, keepdim=True).double(), vectors.flatten(1)], 1)

    def describe(self, numbers: Tensor) -> Tensor:
        """The multiplicity, and the products of the vectors in GeV², compressed by a logarithm."""
        self.check(numbers)
        vectors = numbers[:, 1:].double().reshape(-1, self.n_vectors, 4)
        return torch.cat([numbers[:, :1].double(), gram_invariants(vectors.mT)], 1)

    def decode(self, numbers: Tensor) -> InLaboratory:
        """Numbers → particles."""
        self.check(numbers)
        vectors = numbers[:, 1:].double().reshape(-1, self.n_vectors, 4)
        return InLaboratory(counted(numbers[:, 0], self.n_particles), self.coefficients.double() @ vectors)


def _check_kept(kept: int, n_particles: int, name: str) -> None:
    at_least(1, **{name: kept, "n_particles": n_particles})
    if kept > n_particles:
        raise InputError(f"is {kept}, with {n_particles} slots", field=name, remedy="keep no more than there are slots")
