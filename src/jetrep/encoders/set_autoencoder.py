"""The autoencoder of an encoder that has none of its own: CLS token, a few numbers, a set of particles."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jetrep.encoders.autoencoder import Autoencoder, InLaboratory
from jetrep.encoders.base import JetEncoder, Symmetry
from jetrep.encoders.decoder import SetTransformerConfig
from jetrep.encoders.relative import absolute, relative
from jetrep.encoders.set_decoder import SetDecoder
from jetrep.errors import InputError, at_least
from jetrep.features import Features
from jetrep.jets import JetBatch

__all__ = ["SetAutoencoder"]


class SetAutoencoder(Autoencoder):
    """Features, encoder, a linear map of the CLS token, `SetDecoder`. The jet's pT, η and φ are kept too, and count.

    Args:
        encoder: any encoder.
        features: from four-vectors to its inputs.
        latent: numbers that are kept beside pT, η and φ.
        n_particles: slots.
        config: shape of the decoder.

    Raises:
        InputError: if the features are not of the four-momenta alone.
    """

    n_momentum = 3

    def __init__(
        self,
        encoder: JetEncoder,
        features: Features,
        latent: int,
        n_particles: int,
        config: SetTransformerConfig,
    ) -> None:
        super().__init__()
        at_least(1, **{"objective.latent": latent})
        if features.config.columns:
            raise InputError(
                "an autoencoder makes four-momenta alone", field="features.names", remedy="choose 'kin' or 'kin_p4'"
            )
        self.encoder, self.features, self.n_particles = encoder, features, n_particles
        self.to_latent = nn.Linear(encoder.width, latent)
        self.decoder = SetDecoder(latent, n_particles, config)

    @property
    def symmetries(self) -> frozenset[Symmetry]:
        """Those of the encoder, but for boosts and rotations: what is decoded is relative to the jet's η and φ."""
        return self.encoder.symmetries - {"boost", "rotation"}

    @property
    def size(self) -> int:
        """Real numbers that are kept of a jet."""
        return 3 + self.to_latent.out_features

    def encode(self, p4: Tensor, mask: Tensor) -> Tensor:
        """(batch, size) float64: scalar sum of pT in GeV, η and φ of the jet; then the latent numbers."""
        jet, _ = relative(p4, mask)
        p4 = p4.masked_fill(~mask.unsqueeze(-1), 0.0).to(self.features.mean.dtype)
        inputs = self.features(JetBatch(p4, mask, p4.sum(1)))
        latent = self.to_latent(self.encoder([inputs])[0].cls)
        return torch.cat([jet, latent.double()], 1)

    def decode(self, numbers: Tensor) -> InLaboratory:
        """Numbers → particles."""
        self.check(numbers)
        seen = self.decoder(numbers[:, 3:].to(self.to_latent.weight.dtype))
        momenta = absolute(numbers[:, :3], torch.cat([seen.log_share.exp().unsqueeze(-1), seen.angles], -1))
        return InLaboratory(seen.presence, momenta)
