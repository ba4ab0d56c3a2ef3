"""Autoencoding: particles in, a few numbers, particles out (arXiv 2212.07347 for the Lorentz-equivariant one).

What comes out is compared with what went in, by a loss that knows no order of particles, and a presence head is told
how many there are. Slot i of the decoder stands for a particle if the jet has more than i.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jetrep.encoders.autoencoder import JetImages, Reconstruction
from jetrep.encoders.base import JetEncoder
from jetrep.encoders.build_autoencoder import build_autoencoder
from jetrep.encoders.cnnae import image_loss
from jetrep.encoders.decoder import SetTransformerConfig
from jetrep.encoders.lorentz_decoder import LorentzDecoderConfig
from jetrep.encoders.relative import pt_eta_phi, relative
from jetrep.errors import InputError, at_least
from jetrep.features import Features
from jetrep.jets import JetBatch
from jetrep.objectives.base import Objective, StepOutput
from jetrep.objectives.reconstruction_losses import chamfer, hungarian, mse, presence_loss
from jetrep.objectives.transport import energy_movers_distance, sinkhorn_divergence, sliced_energy_movers_distance
from jetrep.physics import fourvector as fv
from jetrep.physics.lorentz import RestFrame, random_directions

__all__ = ["LOSSES", "AutoencoderConfig", "Autoencoding"]


POWERED = ("hungarian", "chamfer", "mixture", "mse")
"""Losses that compare momenta, and not flows of energy."""

_SOFT = 1e-4


@dataclass(frozen=True)
class AutoencoderConfig:
    """Settings of `Autoencoding`.

    Attributes:
        loss: distance of the particles that come out to those that went in: "hungarian" (matched one to one, squared),
            "chamfer" (each with its nearest; by itself it stalls), "mixture" (from chamfer to hungarian over the first
            half of the run), "mse" (in the order of the jet), or the energy mover's distance: "emd" (exact, on the
            CPU), "sinkhorn", "sliced". Image autoencoders compare images.
        emd_weight: of the sliced energy mover's distance beside another loss.
        presence_weight: of the cross-entropies of the presence of slots.
        space: compare momenta in the rest frame of the jet, in units of its mass ("rest"), or shares of pT, Δη and Δφ
            ("relative", as the published baselines do).
        power: compare momenta p E^(power − 1) in the rest frame; with 1, soft particles hardly count. Not for
            the energy mover's distance.
        latent: numbers of the jet that are kept. For a Lorentz-equivariant autoencoder they are the invariant ones,
            beside the encoder's vectors and the jet's momentum; else pT, η and φ of the jet come to them. The encoders
            gnnae and cnnae say themselves what is kept.
        decoder: shape of the Lorentz-equivariant decoder; its n_particles are the slots of every decoder but cnnae's,
            as many as the particles that pretrain keeps of a jet, which are 30 unless told otherwise.
        set_decoder: shape of the decoder of the other encoders.
        axes: directions of the sliced distance, drawn anew in each step.
    """

    loss: Literal["hungarian", "chamfer", "mixture", "mse", "emd", "sinkhorn", "sliced"] = "hungarian"
    emd_weight: float = 0.0
    presence_weight: float = 0.01
    space: Literal["rest", "relative"] = "rest"
    power: float = 0.5
    latent: int = 16
    decoder: LorentzDecoderConfig = LorentzDecoderConfig()
    set_decoder: SetTransformerConfig = SetTransformerConfig()
    axes: int = 32
    kind: Literal["autoencoder"] = "autoencoder"

    def __post_init__(self) -> None:
        at_least(1, **{"objective.latent": self.latent, "objective.axes": self.axes})
        at_least(0, **{"objective.power": self.power})
        at_least(0, **{"objective.presence_weight": self.presence_weight, "objective.emd_weight": self.emd_weight})
        if self.space == "relative" and (self.emd_weight or self.loss in ("emd", "sinkhorn", "sliced")):
            raise InputError(
                "the energy mover's distance is one of momenta", field="objective.space", remedy="choose 'rest'"
            )


class Autoencoding(Objective):
    """Autoencoding; see the module and `AutoencoderConfig`.

    Args:
        features: from four-vectors to inputs.
        encoder: the encoder; trained in place.
        config: settings.

    Attributes:
        autoencoder: encoder and decoder.
    """

    def __init__(self, features: Features, encoder: JetEncoder, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config, self.features = config, features
        self.autoencoder = build_autoencoder(encoder, features, config.latent, config.decoder, config.set_decoder)

    @property
    def encoder(self) -> JetEncoder:
        """The encoder that is trained."""
        return self.autoencoder.encoder

    def heads(self) -> dict[str, nn.Module]:
        """All of the autoencoder but the encoder."""
        return {
            name: part
            for name, part in self.autoencoder.named_children()
            if part is not self.encoder and any(True for _ in part.parameters())
        }

    def forward(self, batch: JetBatch, step: int, total_steps: int, generator: torch.Generator) -> StepOutput:
        """Loss of one batch; see `Objective.forward`.

        Raises:
            InputError: if a jet has more particles than there are slots.
        """
        config, slots = self.config, self.config.decoder.slots
        p4, mask = batch.p4, batch.mask
        if mask.shape[1] > slots and int(batch.counts.max()) > slots:
            raise InputError(
                f"a jet has {int(batch.counts.max())} particles, the decoder {slots} slots",
                field="objective.decoder.n_particles",
                remedy="raise it, or lower max_particles",
            )
        axes = random_directions(config.axes, generator)  # whatever the loss, as many numbers are drawn
        decoded = self.autoencoder(p4, mask)
        frame, true = RestFrame.of_particles(p4.masked_fill(~mask.unsqueeze(-1), 0.0))
        found, true = (momenta.to(p4.dtype) for momenta in (decoded.at_rest(frame), true))
        metrics: dict[str, Tensor] = {}
        if isinstance(decoded, JetImages):
            each = image_loss(decoded, p4, mask)
        else:
            presence = presence_loss(decoded.presence.to(p4.dtype), mask)
            particles = self._distance(decoded, found, true, batch, step / max(1, total_steps), axes)
            each = particles + config.presence_weight * presence
            metrics = {"loss_particles": particles.mean(), "loss_presence": presence.mean()}
        metrics |= _monitors(found, decoded.mask, mask)
        loss = each.mean()
        return StepOutput(loss, {"loss": loss.detach(), **{name: value.detach() for name, value in metrics.items()}})

    def _distance(
        self, decoded: Reconstruction, found: Tensor, true: Tensor, batch: JetBatch, progress: float, axes: Tensor
    ) -> Tensor:
        """(batch,) distance of the slots that stand for particles, both in the rest frame."""
        config, mask = self.config, batch.mask
        there = torch.arange(found.shape[1], device=mask.device) < mask.sum(1, keepdim=True)
        sets = true, found, mask, there
        emd = config.emd_weight * sliced_energy_movers_distance(*sets, axes) if config.emd_weight else 0.0
        if config.power != 1 and config.loss in POWERED:
            sets = _power(true, config.power), _power(found, config.power), mask, there
        if config.space == "relative":
            sets = *_seen_from_the_axis(decoded.p4, batch), mask, there
        if config.loss == "sliced":
            return sliced_energy_movers_distance(*sets, axes) + emd
        if config.loss != "mixture":
            return LOSSES[config.loss](*sets) + emd
        late = min(1.0, 2 * progress)
        return (1 - late) * chamfer(*sets) + late * hungarian(*sets) + emd


def _in_order(p: Tensor, q: Tensor, p_mask: Tensor, q_mask: Tensor) -> Tensor:
    """`mse` of sets whose padding differs."""
    more = q.shape[1] - p.shape[1]
    return mse(F.pad(p, (0, 0, 0, more)), q, F.pad(p_mask, (0, more)), q_mask)


LOSSES: Mapping[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = MappingProxyType(
    {
        "hungarian": hungarian,
        "chamfer": chamfer,
        "mse": _in_order,
        "emd": energy_movers_distance,
        "sinkhorn": sinkhorn_divergence,
    }
)
"""Losses by name, of two sets of momenta and their masks."""


def _power(p: Tensor, power: float) -> Tensor:
    """Massless momenta (batch, n, 4) in the rest frame → p E^(power − 1); linear below an energy of 1e-4."""
    energy = p[..., 1:].square().sum(-1, keepdim=True) + _SOFT**2
    return p * energy ** (0.5 * (power - 1))


def _seen_from_the_axis(found: Tensor, batch: JetBatch) -> tuple[Tensor, Tensor]:
    """Share of pT, Δη and Δφ of true particles and slots, (batch, n, 3) each, from the axis of the true jet."""
    jet, true = relative(batch.p4, batch.mask)
    pt, eta, phi = pt_eta_phi(found).unbind(-1)
    share = pt / jet[:, :1].clamp(min=1e-30)
    slots = torch.stack([share, eta - jet[:, 1:2], fv.delta_phi(phi, jet[:, 2:])], -1)
    return true.to(batch.p4.dtype), slots.to(batch.p4.dtype)


@torch.no_grad()
def _monitors(found: Tensor, present: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Median relative error of the jet mass, and mean error of the multiplicity, as they come out of the decoder."""
    total = (found * present.unsqueeze(-1)).double().sum(1)
    mass = (total[:, 0].square() - total[:, 1:].square().sum(1)).clamp(min=0).sqrt()
    return {
        "mass_error": (mass - 1).abs().median().float(),
        "multiplicity_error": (present.sum(1) - mask.sum(1)).abs().float().mean(),
    }
