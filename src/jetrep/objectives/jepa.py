"""Joint-embedding prediction (JEPA, arXiv 2301.08243; of jets: the code that goes with 2409.12589).

A teacher, the running mean of the student, sees whole jets. The student sees the visible particles, and a small decoder
predicts from its tokens those that the teacher has of the hidden particles, which are told by their rank in pT. The
target is what the teacher makes of a particle, not what was measured of it.

`jetrep.objectives.hiding` says what the student still knows of the hidden particles.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jetrep.encoders.base import JetEncoder
from jetrep.encoders.decoder import Decoder, DecoderConfig
from jetrep.errors import InputError, at_least
from jetrep.features import Features
from jetrep.jets import JetBatch
from jetrep.objectives.base import Objective, StepOutput, follow
from jetrep.objectives.hiding import check_fraction, hidden_particles, per_jet_weights, pt_ranks, survivors
from jetrep.objectives.monitors import alarms, feature_rank, spread
from jetrep.objectives.schedules import cosine

__all__ = ["Jepa", "JepaConfig"]


@dataclass(frozen=True)
class JepaConfig:
    """Settings of `Jepa`. The defaults are those of a long run.

    In a run of some hundred steps the teacher hardly leaves its start at an ``ema`` of 0.992; 0.97 suits. And an
    encoder whose LayerScale starts small has tokens that are at first little more than the features themselves, and
    easily predicted: leave it out, as the published one does.

    Attributes:
        mask_fraction: fraction of the particles of a jet that the student does not see.
        loss: distance of prediction and teacher: "smooth_l1" (quadratic below ``beta``), or "l2", its square.
        beta: see above.
        ema: momentum of the teacher at the beginning.
        ema_end: momentum of the teacher at the end, reached on a cosine.
        predictor: shape of the predictor.
        monitor_every: the signs of collapse are among the metrics of every such step, counted from 1.
    """

    mask_fraction: float = 0.4
    loss: Literal["smooth_l1", "l2"] = "smooth_l1"
    beta: float = 1.0
    ema: float = 0.992
    ema_end: float = 1.0
    predictor: DecoderConfig = DecoderConfig()
    monitor_every: int = 10
    kind: Literal["jepa"] = "jepa"

    def __post_init__(self) -> None:
        check_fraction(self.mask_fraction, "objective.mask_fraction")
        at_least(1, **{"objective.monitor_every": self.monitor_every})
        if not self.beta > 0:
            raise InputError(f"is {self.beta}", field="objective.beta", remedy="give more than 0")
        for name in ("ema", "ema_end"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(
                    f"is {getattr(self, name)}", field=f"objective.{name}", remedy="give a number from 0 to 1"
                )


class _Predictor(nn.Module):
    """Decoder, and a linear map to the width of the teacher."""

    def __init__(self, width: int, config: DecoderConfig) -> None:
        super().__init__()
        self.decoder, self.output = Decoder(width, config), nn.Linear(config.width, width)


class _Student(nn.Module):
    """What is trained."""

    def __init__(self, encoder: JetEncoder, config: DecoderConfig) -> None:
        super().__init__()
        self.encoder, self.predictor = encoder, _Predictor(encoder.width, config)


class Jepa(Objective):
    """Prediction of the teacher's tokens of hidden particles; see the module and `JepaConfig`.

    The teacher's tokens are normalised, each over its features to mean 0 and variance 1, so that they cannot shrink.

    Args:
        features: from four-vectors to inputs.
        encoder: the student's encoder; the teacher starts as a copy of it.
        config: settings.
    """

    def __init__(self, features: Features, encoder: JetEncoder, config: JepaConfig) -> None:
        super().__init__()
        self.config, self.features = config, features
        self.student = _Student(encoder, config.predictor)
        self.teacher = copy.deepcopy(encoder).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Jepa:
        """Sets the mode of everything but the teacher, which stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    @property
    def encoder(self) -> JetEncoder:
        """The teacher."""
        return self.teacher

    def ema_momentum(self, step: int, total_steps: int) -> float:
        """Weight of the old teacher in the update after ``step``."""
        return cosine(self.config.ema, self.config.ema_end, step / max(1, total_steps))

    def forward(self, batch: JetBatch, step: int, total_steps: int, generator: torch.Generator) -> StepOutput:
        """Loss of one batch; see `Objective.forward`."""
        inputs = self.features(batch)
        hidden = hidden_particles(batch.mask, self.config.mask_fraction, generator)
        monitor = (step + 1) % self.config.monitor_every == 0
        with torch.no_grad():
            seen = self.teacher([inputs], [batch.mask if monitor else hidden])[0]
            targets = seen.at(hidden).float()
            targets = F.layer_norm(targets, targets.shape[-1:])
        encoded = self.student.encoder([survivors(inputs, hidden)])[0]
        predictor = self.student.predictor
        predicted = predictor.output(predictor.decoder(encoded, hidden, pt_ranks(batch.p4, hidden))).float()
        if self.config.loss == "l2":
            each = (predicted - targets).square().mean(1)
        else:
            each = F.smooth_l1_loss(predicted, targets, beta=self.config.beta, reduction="none").mean(1)
        loss = (each * per_jet_weights(hidden)).sum()
        metrics = {"loss": loss.detach(), "hidden": hidden.sum() / batch.mask.sum().clamp(min=1)}
        if monitor:
            metrics |= _monitors(seen.cls.float(), seen.at(batch.mask).float(), targets)
        return StepOutput(loss, metrics)

    def after_step(self, step: int, total_steps: int) -> None:
        """The teacher follows the student."""
        follow(self.teacher, self.student.encoder, self.ema_momentum(step, total_steps))

    @property
    def trained(self) -> JetEncoder:
        """The student."""
        return self.student.encoder

    def heads(self) -> dict[str, nn.Module]:
        """The predictor."""
        return {"predictor": self.student.predictor}

    def alarms(self, metrics: Mapping[str, float]) -> list[str]:
        """Signs of collapse: of the CLS tokens, and of the tokens that are predicted."""
        found = alarms(metrics)
        if (x := metrics.get("token_rank", torch.inf)) < 1.5:
            found.append(f"the teacher's tokens have shrunk to {x:.2f} effective dimensions")
        if (x := metrics.get("target_std", torch.inf)) < 0.02:
            found.append(f"the teacher's tokens are the same for all particles: their spread is {x:.2g}")
        return found


@torch.no_grad()
def _monitors(cls: Tensor, tokens: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Ranks of the teacher's CLS tokens and particle tokens, and spreads, of the jets of this rank."""
    with torch.autocast(cls.device.type, enabled=False):
        found = spread(cls)
        # Of no tokens at all: nothing to be alarmed of.
        whole, one = tokens.new_tensor(float(tokens.shape[1])), tokens.new_ones(())
        found["token_rank"] = feature_rank(tokens).float() if len(tokens) else whole
        # What the best constant prediction would leave: the loss is to be seen beside it.
        found["target_std"] = (targets - targets.mean(0)).square().mean().sqrt() if len(targets) else one
        return found
