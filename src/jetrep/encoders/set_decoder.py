r"""From one vector per jet to particles: a set of slots, each a massless particle relative to the jet.

N learned slots, all scaled and shifted by functions of the vector, exchange what they know in a small transformer; the
same head then reads each of them. There is no order among the slots: permuting them permutes what comes out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jetrep.encoders.decoder import SetTransformer, SetTransformerConfig
from jetrep.errors import at_least
from jetrep.physics import fourvector as fv

__all__ = ["RelativeParticles", "SetDecoder"]

_ANGLE = 0.3  # Δη and Δφ of the outputs of a linear layer of order one
_SHAPE = SetTransformerConfig()


@dataclass(frozen=True)
class RelativeParticles:
    r"""N slots of massless particles relative to the jet that they belong to.

    Attributes:
        log_share: (batch, N) :math:`\ln (p_T / p_T^{jet})`. The scalar sum of pT over all slots is an output of its
            own, which the slots share.
        angles: (batch, N, 2) Δη and Δφ to the axis of the jet.
        presence: (batch, N) logits: is the slot a particle?
    """

    log_share: Tensor
    angles: Tensor
    presence: Tensor

    def momenta(self, pt: Tensor, eta: Tensor, phi: Tensor) -> Tensor:
        """(batch, N, 4) float64 four-momenta in GeV of all slots.

        Args:
            pt: (batch,) transverse momentum of the jet in GeV.
            eta: (batch,) its pseudorapidity.
            phi: (batch,) its azimuth.
        """
        pt, eta, phi = (x.double().unsqueeze(1) for x in (pt, eta, phi))
        share, angles = self.log_share.double().exp(), self.angles.double()
        own = pt * share
        return fv.from_ptetaphim(own, eta + angles[..., 0], phi + angles[..., 1], torch.zeros_like(own))


class SetDecoder(nn.Module):
    """One vector → N particles relative to the jet; see the module.

    Args:
        latent_width: numbers in the vector.
        n_particles: slots.
        config: shape of the transformer over the slots.
    """

    def __init__(self, latent_width: int, n_particles: int, config: SetTransformerConfig = _SHAPE) -> None:
        super().__init__()
        at_least(1, **{"decoder.latent_width": latent_width, "decoder.n_particles": n_particles})
        width, hidden = config.width, round(config.mlp_ratio * config.width)
        self.embed = nn.Sequential(nn.Linear(latent_width, hidden), nn.GELU(), nn.Linear(hidden, 3 * width))
        self.slots = nn.Parameter(torch.randn(n_particles, width))
        self.transformer = SetTransformer(config)
        self.particle, self.total = nn.Linear(width, 4), nn.Linear(width, 1)
        nn.init.zeros_(self.total.weight)
        nn.init.zeros_(self.total.bias)

    def forward(self, latent: Tensor) -> RelativeParticles:
        """(batch, latent_width) → particles, float32 or better."""
        scale, shift, beside = self.embed(latent).chunk(3, -1)
        slots = self.slots * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)
        everywhere = torch.ones(slots.shape[:2], dtype=torch.bool, device=slots.device)
        rows = self.particle(self.transformer(slots, everywhere, beside=beside)).view(*slots.shape[:2], 4)
        rows, total = (x if x.dtype == torch.float64 else x.float() for x in (rows, self.total(beside)))
        return RelativeParticles(
            log_share=torch.log_softmax(rows[..., 0], 1) + total, angles=_ANGLE * rows[..., 1:3], presence=rows[..., 3]
        )
