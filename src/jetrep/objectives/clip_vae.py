r"""CLIP-VAE: a variational autoencoder of jets whose latent vector is also told apart from those of other jets.

A method of this name is among those compared in arXiv 2511.12829, which does not say what it is. **The definition here
is our own**: from the jet's representation come μ and ln σ² of a latent vector z (arXiv 1312.6114), a set decoder turns
z into particles, and μ is matched with a partner of the jet, either its observables or a view of its subjets, by the
symmetric loss of CLIP (arXiv 2103.00020):

.. math:: L = L_\mathrm{particles} + w_p L_\mathrm{presence} + \beta(t)\,\mathrm{KL} + w_c L_\mathrm{InfoNCE}.

With shares :math:`x = p_T/p_T^{jet}`, the distance of particle i to slot j of the decoder is
:math:`|x_i - x_j| + (|\Delta\eta_i - \Delta\eta_j| + |\Delta\phi_i - \Delta\phi_j|) / (n R)`; ``L_particles`` is the
sum over particles matched one to one, plus the shares of slots without a particle: it is of order one whatever n is.
``L_presence`` is the mean cross-entropy over slots of their being particles, which makes the multiplicity. KL is that
between :math:`N(\mu, \sigma)` and :math:`N(0, 1)`, in nats per jet; its weight β rises linearly from zero.

What the decoder knows of the jet is z alone, but its particles are relative to the jet's own momentum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jetrep.encoders import ClassifierHead, JetEncoder, Pooling
from jetrep.encoders.decoder import SetTransformerConfig
from jetrep.encoders.set_decoder import RelativeParticles, SetDecoder
from jetrep.errors import InputError, at_least
from jetrep.features import Features
from jetrep.jets import JetBatch
from jetrep.objectives.base import Objective, StepOutput
from jetrep.objectives.distributed import gather, rank, world_size
from jetrep.objectives.hiding import normal_numbers
from jetrep.objectives.monitors import alarms, spread
from jetrep.objectives.reconstruction_losses import assignment
from jetrep.physics import fourvector as fv
from jetrep.views.rg import subjets

__all__ = ["OBSERVABLES", "ClipVAE", "ClipVAEConfig", "clip_loss", "particle_losses"]

# Mean and scale at which each is of order one for jets of some hundred GeV.
OBSERVABLES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "log_pt": (6.4, 0.5),
        "eta": (0.0, 1.3),
        "log_mass": (4.3, 0.7),
        "log_multiplicity": (3.6, 0.5),
        "log_width": (-2.3, 0.8),
        "pt_dispersion": (0.4, 0.15),
        "log_e2": (-2.8, 0.8),
        "log_e3": (-8.0, 2.0),
    }
)
r"""Observables by name: logarithms of pT and mass (GeV), of the multiplicity, of the girth Σ x_i ΔR_i and of the energy
correlations :math:`e_2 = \sum_{i<j} x_i x_j R_{ij}`, :math:`e_3 = \sum_{i<j<k} x_i x_j x_k R_{ij} R_{jk} R_{ki}`
(arXiv 1305.0007, β = 1, x being shares of the scalar sum of pT), η, and :math:`\sqrt{\sum x_i^2}`."""


@dataclass(frozen=True)
class ClipVAEConfig:
    """Settings of `ClipVAE`.

    Attributes:
        latent: numbers in z.
        pooling: what μ and ln σ² are made of.
        n_particles: slots of the decoder; of longer jets, this many leading particles are decoded.
        decoder: shape of the decoder.
        matching: "hungarian" matches particles and slots one to one, "chamfer" each with its nearest.
        radius: R, the size of a jet, which Δη and Δφ are compared to.
        presence_weight: w_p.
        beta: weight of KL after its rise.
        warmup: fraction of the steps over which β rises from zero.
        clip_weight: w_c; 0 leaves a plain variational autoencoder.
        partner: what μ is matched with: "observables" of the jet, or μ of the view of its "subjets".
        observables: which; keys of `OBSERVABLES`.
        n_subjets: number of subjets of the view.
        embedding: numbers in the vectors that are compared.
        temperature: divides their cosines, at first; it is learned.
        monitor_every: the signs of collapse are among the metrics of every such step, counted from 1.
    """

    latent: int = 64
    pooling: Pooling = "cls"
    n_particles: int = 32
    decoder: SetTransformerConfig = SetTransformerConfig()
    matching: Literal["hungarian", "chamfer"] = "hungarian"
    radius: float = 0.8
    presence_weight: float = 1.0
    beta: float = 1e-3
    warmup: float = 0.2
    clip_weight: float = 0.1
    partner: Literal["observables", "subjets"] = "observables"
    observables: tuple[str, ...] = tuple(OBSERVABLES)
    n_subjets: int = 8
    embedding: int = 64
    temperature: float = 0.07
    monitor_every: int = 10
    kind: Literal["clip_vae"] = "clip_vae"

    def __post_init__(self) -> None:
        for name in ("latent", "n_particles", "n_subjets", "embedding", "monitor_every"):
            at_least(1, **{f"objective.{name}": getattr(self, name)})
        for name in ("presence_weight", "beta", "clip_weight"):
            at_least(0, **{f"objective.{name}": getattr(self, name)})
        for name in ("radius", "temperature"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise InputError(f"is {getattr(self, name)}", field=f"objective.{name}", remedy="give more than 0")
        if not 0 <= self.warmup <= 1:
            raise InputError(f"is {self.warmup}", field="objective.warmup", remedy="give a fraction from 0 to 1")
        unknown = [name for name in self.observables if name not in OBSERVABLES]
        if unknown or not self.observables or len(set(self.observables)) < len(self.observables):
            raise InputError(
                f"are {', '.join(self.observables) or 'none'}",
                field="objective.observables",
                remedy=f"name each once, out of {', '.join(OBSERVABLES)}",
            )


def clip_loss(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    r"""Symmetric InfoNCE over the jets of all ranks: which b belongs to a, and which a to b.

    Mean over jets of :math:`-\frac12 \ln[e^{s_{ii}}/\sum_k e^{s_{ik}}] - \frac12 \ln[e^{s_{ii}}/\sum_k e^{s_{ki}}]`
    with s the cosine times the scale.

    Args:
        a: (batch, d) of any length; the same shape on all ranks.
        b: (batch, d).
        scale: scalar, the inverse temperature.

    Returns:
        Scalar, float32.
    """
    with torch.autocast(a.device.type, enabled=False):
        a, b, scale = F.normalize(a.float(), dim=-1), F.normalize(b.float(), dim=-1), scale.float()
        own = torch.arange(len(a), device=a.device) + rank() * len(a)
        forth, back = scale * a @ gather(b).T, scale * b @ gather(a).T
        return (F.cross_entropy(forth, own) + F.cross_entropy(back, own)) / 2


def particle_losses(
    out: RelativeParticles, share: Tensor, angles: Tensor, mask: Tensor, *, radius: float, one_to_one: bool
) -> tuple[Tensor, Tensor]:
    """Losses of particles and of presence of each jet; see the module.

    Without one to one, each particle has its nearest of the first n slots, and each of these its nearest particle; the
    mean of both sums counts.

    Args:
        out: N slots.
        share: (batch, N) shares of the true particles, no more than N of them; zero where padded.
        angles: (batch, N, 2) theirs.
        mask: (batch, N) bool, True for a real particle.
        radius: R.
        one_to_one: match one to one.

    Returns:
        (batch,) each, float32.
    """
    slot_share, count = out.log_share.exp(), mask.sum(1, keepdim=True)
    weight = mask / (count.clamp(min=1) * radius)
    cost = (share.unsqueeze(2) - slot_share.unsqueeze(1)).abs() + weight.unsqueeze(2) * (
        angles.unsqueeze(2) - out.angles.unsqueeze(1)
    ).abs().sum(-1)
    if one_to_one:
        # A loss that is not finite is told by whoever trains, not by the assignment.
        slot = assignment(cost.detach().nan_to_num(nan=1e9, posinf=1e9))
        present = torch.zeros_like(mask).scatter_(1, slot, mask)
        each = cost.gather(2, slot.unsqueeze(2)).squeeze(2).sum(1)
    else:
        present = torch.arange(mask.shape[1], device=mask.device) < count
        pair = cost.masked_fill(~(mask.unsqueeze(2) & present.unsqueeze(1)), torch.inf)
        nearest = torch.where(mask, pair.amin(2), 0).sum(1) + torch.where(present, pair.amin(1), 0).sum(1)
        each = nearest / 2 + (slot_share * ~present).sum(1)
    presence = F.binary_cross_entropy_with_logits(out.presence, present.float(), reduction="none").mean(1)
    return each, presence


def _observables(batch: JetBatch, angles: Tensor, names: tuple[str, ...]) -> Tensor:
    """(batch, len(names)) standardised `OBSERVABLES`, finite for every jet.

    Args:
        batch: jets.
        angles: (batch, n, 2) Δη and Δφ of their particles.
        names: which.
    """
    # Sums of many small numbers: eight bits would not do.
    with torch.no_grad(), torch.autocast(angles.device.type, enabled=False):
        pt = fv.pt(batch.p4) * batch.mask
        x = pt / pt.sum(1, keepdim=True).clamp(min=1e-8)
        distance = torch.linalg.vector_norm(angles.unsqueeze(2) - angles.unsqueeze(1), dim=-1)
        # A symmetric matrix with zeros on its diagonal: the trace of its cube counts every triple six times.
        root = x.sqrt()
        pairs = root.unsqueeze(2) * distance * root.unsqueeze(1)
        values = {
            "log_pt": fv.pt(batch.jet_p4).clamp(min=1).log(),
            "eta": fv.eta(batch.jet_p4),
            "log_mass": fv.mass(batch.jet_p4).clamp(min=1).log(),
            "log_multiplicity": batch.counts.clamp(min=1).log(),
            "log_width": _log((x * torch.linalg.vector_norm(angles, dim=-1)).sum(1)),
            "pt_dispersion": x.square().sum(1).sqrt(),
            "log_e2": _log((root.unsqueeze(2) * pairs * root.unsqueeze(1)).sum((1, 2)) / 2),
            "log_e3": _log(((pairs @ pairs) * pairs).sum((1, 2)) / 6),
        }
        return torch.stack([(values[name] - OBSERVABLES[name][0]) / OBSERVABLES[name][1] for name in names], 1)


def _log(x: Tensor) -> Tensor:
    return x.clamp(min=1e-6).log()


class _Clip(nn.Module):
    """What makes the vectors that are compared, and the logarithm of 1/τ over its start."""

    def __init__(self, config: ClipVAEConfig) -> None:
        super().__init__()
        d = config.embedding
        self.of_latent = nn.Linear(config.latent, d)
        # Zero at the start, so that weight decay draws the temperature to where it began.
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.start = -math.log(config.temperature)
        of_observables = config.partner == "observables"
        self.of_partner = ClassifierHead(len(config.observables), d, (2 * d,)) if of_observables else self.of_latent

    @property
    def scale(self) -> Tensor:
        """1/τ, at most 100, as in CLIP."""
        return (self.start + self.log_scale).clamp(max=math.log(100)).exp()

    @torch.no_grad()
    def bound(self) -> None:
        """Brings the temperature back to where 1/τ is 100: beyond, it would stay for ever, for want of a gradient."""
        self.log_scale.clamp_(max=math.log(100) - self.start - 1e-6)


class _Net(nn.Module):
    """What is trained."""

    def __init__(self, encoder: JetEncoder, config: ClipVAEConfig) -> None:
        super().__init__()
        self.encoder, self.pooling = encoder, config.pooling
        self.latent = nn.Linear(encoder.width * (2 if config.pooling == "cls+mean" else 1), 2 * config.latent)
        self.decoder = SetDecoder(config.latent, config.n_particles, config.decoder)
        self.clip = _Clip(config) if config.clip_weight else None


class ClipVAE(Objective):
    """Variational autoencoder and contrast with a partner; see the module and `ClipVAEConfig`.

    Args:
        features: from four-vectors to inputs.
        encoder: the encoder; trained in place.
        config: settings.

    Raises:
        InputError: if the partner is a view of subjets and the features need measured columns.
    """

    def __init__(self, features: Features, encoder: JetEncoder, config: ClipVAEConfig) -> None:
        super().__init__()
        if config.partner == "subjets" and features.config.columns:
            raise InputError(
                f"subjets have no measured column '{features.config.columns[0]}', "
                f"which the feature set '{features.config.names}' needs",
                field="objective.partner",
                remedy="choose 'observables', or the feature set 'kin'",
            )
        self.config, self.features = config, features
        self.net = _Net(encoder, config)

    @property
    def encoder(self) -> JetEncoder:
        """The encoder that is trained."""
        return self.net.encoder

    def after_step(self, step: int, total_steps: int) -> None:
        """The temperature stays where gradients reach it."""
        if self.net.clip is not None:
            self.net.clip.bound()

    def heads(self) -> dict[str, nn.Module]:
        """The map to the latent, the decoder, and what is compared."""
        heads: dict[str, nn.Module] = {"latent": self.net.latent, "decoder": self.net.decoder}
        return heads if self.net.clip is None else {**heads, "clip": self.net.clip}

    def beta(self, step: int, total_steps: int) -> float:
        """Weight of KL in this step."""
        rise = self.config.warmup * total_steps
        return self.config.beta * (min(1.0, step / rise) if rise else 1.0)

    def forward(self, batch: JetBatch, step: int, total_steps: int, generator: torch.Generator) -> StepOutput:
        """Loss of one batch; see `Objective.forward`.

        Raises:
            InputError: if there is but one jet to compare, or the jets lack the history that subjets need.
        """
        config, net = self.config, self.net
        if net.clip is not None and world_size() * len(batch) < 2:
            raise InputError(
                "a batch of one jet has nothing to compare it with", field="batch_size", remedy="give at least 2"
            )
        inputs = self.features(batch)
        views = [inputs]
        if net.clip is not None and config.partner == "subjets":
            views.append(self.features(subjets(batch, config.n_subjets)))
        encoded = net.encoder(views, [None] * len(views) if config.pooling == "cls" else None)
        # Jets differ by a generator that is equal on all ranks: a jet has one z by any number of ranks.
        noise = normal_numbers(batch.mask[:, :1], config.latent, generator)[:, 0]
        pooled = [view.pooled(config.pooling) for view in encoded]
        means, logs = zip(*(net.latent(x).float().chunk(2, 1) for x in pooled), strict=True)
        log_variance = logs[0].clamp(-12, 8)
        out = net.decoder(means[0] + noise * (log_variance / 2).exp())
        with torch.autocast(out.presence.device.type, enabled=False):
            share, angles, mask = self._truth(batch)
            particles, presence = particle_losses(
                out, share, angles, mask, radius=config.radius, one_to_one=config.matching == "hungarian"
            )
            kl = (means[0].square() + log_variance.exp() - 1 - log_variance) / 2
            beta = self.beta(step, total_steps)
            terms = {"particles": particles.mean(), "presence": presence.mean(), "kl": kl.sum(1).mean()}
        loss = terms["particles"] + config.presence_weight * terms["presence"] + beta * terms["kl"]
        metrics: dict[str, Tensor] = {}
        if net.clip is not None:
            partner = means[-1]
            if config.partner == "observables":
                assert inputs.angles is not None
                partner = _observables(batch, inputs.angles, config.observables)
            scale = net.clip.scale
            terms["clip"] = clip_loss(net.clip.of_latent(means[0]), net.clip.of_partner(partner), scale)
            loss = loss + config.clip_weight * terms["clip"]
            metrics["temperature"] = 1 / scale.detach()
        metrics |= {f"loss_{name}": term.detach() for name, term in terms.items()}
        metrics["beta"] = torch.as_tensor(beta, device=loss.device)
        found = (out.presence > 0).sum(1) - mask.sum(1)
        metrics["multiplicity_error"] = found.abs().float().mean()
        if (step + 1) % config.monitor_every == 0:
            metrics |= spread(pooled[0].detach())
            metrics["active_latents"] = (kl.detach().mean(0) > 0.01).sum().float()
        return StepOutput(loss, {"loss": loss.detach(), **metrics})

    def _truth(self, batch: JetBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Shares (batch, N), angles (batch, N, 2) and mask of the leading particles, as the decoder is to give them."""
        n = self.config.n_particles
        pt = fv.pt(batch.p4).masked_fill(~batch.mask, -1.0)
        leading = pt.argsort(dim=1, descending=True, stable=True)[:, :n]
        pad = n - leading.shape[1]
        jet, p4 = batch.jet_p4.unsqueeze(1), batch.p4.gather(1, leading.unsqueeze(-1).expand(-1, -1, 4))
        mask = F.pad(batch.mask.gather(1, leading), (0, pad))
        share = F.pad(fv.pt(p4) / fv.pt(jet).clamp(min=1e-8), (0, pad)) * mask
        angles = torch.stack([fv.eta(p4) - fv.eta(jet), fv.delta_phi(fv.phi(p4), fv.phi(jet))], -1)
        return share, F.pad(angles, (0, 0, 0, pad)) * mask.unsqueeze(-1), mask

    @torch.no_grad()
    def reconstructed(self, batch: JetBatch) -> JetBatch:
        """The jets as they come out of the decoder at z = μ: (batch, n_particles, 4) massless particles in GeV."""
        chosen = [None] if self.config.pooling == "cls" else None
        encoded = self.net.encoder([self.features(batch)], chosen)[0]
        out = self.net.decoder(self.net.latent(encoded.pooled(self.config.pooling)).float().chunk(2, 1)[0])
        p4 = out.momenta(fv.pt(batch.jet_p4), fv.eta(batch.jet_p4), fv.phi(batch.jet_p4)).to(batch.p4.dtype)
        mask = out.presence > 0
        return JetBatch(p4.masked_fill(~mask.unsqueeze(-1), 0.0), mask, batch.jet_p4, batch.labels)

    def alarms(self, metrics: Mapping[str, float]) -> list[str]:
        """Signs of collapse, of the representation and of the posterior: z that tells nothing of the jet."""
        found = alarms(metrics)
        if (x := metrics.get("loss_kl", math.inf)) < 0.1:
            found.append(f"the posterior has collapsed onto the prior: KL is {x:.2g} nats; lower beta")
        return found
