r"""Self-distillation between clusterings of the same jet (RINO, arXiv 2509.07486).

A student sees a jet at several scales: as N subjets for several N, and as all its particles. A teacher, the running
mean of the student, sees some of these scales. The student learns to give at every scale the teacher's answer at every
other (DINO), the teacher's answer for particles that are hidden from it (iBOT), and to keep different jets apart
(KoLeo).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from jetrep.encoders import Encoded, HeadConfig, JetTransformer, ProjectionHead
from jetrep.errors import InputError
from jetrep.features import Features, ModelInput
from jetrep.jets import JetBatch
from jetrep.objectives.base import Objective, StepOutput, layerwise_groups
from jetrep.objectives.losses import Centering, dino_loss, ibot_loss, koleo_loss, sinkhorn
from jetrep.objectives.monitors import alarms, collapse_monitors
from jetrep.views.masking import random_particles
from jetrep.views.rg import ALL, subjets

__all__ = ["PRESETS", "SelfDistillation", "SelfDistillationConfig"]


@dataclass(frozen=True)
class SelfDistillationConfig:
    """Settings of `SelfDistillation`. The defaults are RINO's later recipe; `PRESETS` has the others.

    Scales are numbers of subjets; 0 stands for all particles. A loss of weight 0 is not computed, and its head does
    not exist.

    Attributes:
        teacher_scales: scales of the teacher, and of the student too.
        student_scales: further scales of the student alone, to draw from.
        n_student_scales: how many of these are drawn for each batch.
        dino_weight: of the agreement between scales.
        ibot_weight: of the agreement on hidden particles.
        koleo_weight: of the spread of the representations.
        student_temperature: of the student's outputs.
        teacher_temperature: of the teacher's, at the beginning.
        teacher_temperature_end: and after a rise on half a cosine
        teacher_temperature_rise: over this fraction of the training.
        ema: momentum of the teacher at the beginning,
        ema_end: and at the end, on a cosine.
        assignment: how the teacher's outputs become targets.
        mask_fraction: of the particles hidden for iBOT.
        head: shape of the heads for DINO and iBOT.
        skip_identical_views: leave out of DINO the pairs of views that are the same set of particles, because the jet
            has no more particles than either of the scales. Such pairs teach nothing about scale; they are counted
            in the metric ``identical_pairs`` in any case.
        monitor_every: steps between computations of the collapse monitors.
    """

    teacher_scales: tuple[int, ...] = (6, 8, 16)
    student_scales: tuple[int, ...] = (2, 3, 4, ALL)
    n_student_scales: int = 3
    dino_weight: float = 1.0
    ibot_weight: float = 1.0
    koleo_weight: float = 0.1
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    teacher_temperature_end: float = 0.04
    teacher_temperature_rise: float = 0.0
    ema: float = 0.995
    ema_end: float = 0.997
    assignment: Literal["sinkhorn", "centering"] = "sinkhorn"
    mask_fraction: float = 0.25
    head: HeadConfig = HeadConfig()
    skip_identical_views: bool = False
    monitor_every: int = 20

    def __post_init__(self) -> None:
        pool = set(self.student_scales) - set(self.teacher_scales)
        if not self.teacher_scales:
            raise InputError("the teacher has no scale", field="teacher_scales", remedy="give it at least one")
        if self.n_student_scales > len(pool):
            raise InputError(
                f"{self.n_student_scales} scales are to be drawn from {len(pool)} that are not the teacher's",
                field="n_student_scales",
                remedy=f"ask for at most {len(pool)}, or name more student_scales",
            )
        if len(self.teacher_scales) == 1 and self.n_student_scales == 0 and self.dino_weight:
            raise InputError(
                "DINO has no pair of different views", field="n_student_scales", remedy="use at least two scales"
            )
        if not any((self.dino_weight, self.ibot_weight, self.koleo_weight)):
            raise InputError("all losses have weight 0", field="dino_weight", remedy="give one of them a weight")


_G1 = SelfDistillationConfig(
    teacher_scales=(1, 2, 3, 4),
    student_scales=(8, 16, 32, 64, ALL),
    n_student_scales=5,
    ibot_weight=0.0,
    koleo_weight=1.0,
    teacher_temperature_end=0.07,
    teacher_temperature_rise=0.2,
    ema=0.992,
    ema_end=1.0,
    head=HeadConfig(hidden=(4.0,), bottleneck=None, n_prototypes=None),
)

PRESETS: Mapping[str, SelfDistillationConfig] = MappingProxyType(
    {
        "g2": SelfDistillationConfig(),
        "g1": _G1,
        # For tens to hundreds of jets a batch. Sinkhorn shares (teacher views · batch) samples out evenly among the
        # prototypes, so there should be no more prototypes than samples; and few steps need a quick teacher. This is
        # our choice, not a published one.
        "small_batch": replace(
            SelfDistillationConfig(),
            head=HeadConfig(hidden=(4.0,), bottleneck=1.0, n_prototypes=128),
            ema=0.99,
            ema_end=1.0,
        ),
    }
)
"""Ready settings: "g2" (RINO's later recipe), "g1" (that of its published tables), "small_batch"."""


def _cosine(start: float, end: float, fraction: float) -> float:
    """From ``start`` to ``end`` on half a period of a cosine, as ``fraction`` goes from 0 to 1."""
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, max(0.0, fraction)))) / 2


class Branch(nn.Module):
    """Encoder and heads; student and teacher are one each. A head is absent if its loss is off."""

    def __init__(self, encoder: JetTransformer, config: SelfDistillationConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.dino = ProjectionHead(encoder.width, config.head) if config.dino_weight else None
        self.ibot = ProjectionHead(encoder.width, config.head) if config.ibot_weight else None


@dataclass(frozen=True)
class _Views:
    """What student and teacher see of a batch: inputs at ``scales`` (the teacher's first), and the hidden particles."""

    scales: tuple[int, ...]
    inputs: tuple[ModelInput, ...]
    n_teacher: int
    particles: ModelInput | None
    hidden: Tensor | None
    counts: Tensor


class SelfDistillation(Objective):
    """RINO's objective; see the module and `SelfDistillationConfig`.

    Args:
        features: from four-vectors to inputs.
        encoder: the student's encoder; the teacher starts as a copy of it.
        config: settings.
    """

    def __init__(self, features: Features, encoder: JetTransformer, config: SelfDistillationConfig) -> None:
        super().__init__()
        self.config, self.features = config, features
        self.student = Branch(encoder, config)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()
        n_prototypes = config.head.prototypes(encoder.width)
        centred = config.assignment == "centering"
        self.dino_centering = Centering(n_prototypes) if centred and config.dino_weight else None
        self.ibot_centering = Centering(n_prototypes) if centred and config.ibot_weight else None

    def train(self, mode: bool = True) -> SelfDistillation:
        """Sets the mode of everything but the teacher, which stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    @property
    def encoder(self) -> JetTransformer:
        """The teacher's encoder."""
        return self.teacher.encoder

    def teacher_temperature(self, step: int, total_steps: int) -> float:
        """Temperature of the teacher at ``step``."""
        c = self.config
        rise = c.teacher_temperature_rise * total_steps
        return _cosine(c.teacher_temperature, c.teacher_temperature_end, step / rise if rise else 1.0)

    def ema_momentum(self, step: int, total_steps: int) -> float:
        """Weight of the old teacher in the update after ``step``."""
        return _cosine(self.config.ema, self.config.ema_end, step / max(1, total_steps))

    def forward(self, batch: JetBatch, step: int, total_steps: int, generator: torch.Generator) -> StepOutput:
        """Loss of one batch; see `Objective.forward`. The batch must carry its merge history."""
        views = self._views(batch, generator)
        student = self.student.encoder(self._student_inputs(views))
        temperature = self.teacher_temperature(step, total_steps)
        with torch.no_grad():
            clean = [] if views.particles is None else [views.particles]
            teacher = self.teacher.encoder([*views.inputs[: views.n_teacher], *clean])

        metrics: dict[str, Tensor] = {}
        terms: list[Tensor] = []
        if self.config.dino_weight:
            dino = self._dino(views, student, teacher, temperature, metrics, step % self.config.monitor_every == 0)
            terms.append(self.config.dino_weight * dino)
        if self.config.ibot_weight:
            ibot = self._ibot(views, student[-1], teacher[-1], temperature, metrics)
            terms.append(self.config.ibot_weight * ibot)
        if self.config.koleo_weight:
            koleo = koleo_loss(torch.stack([view.cls for view in student[: views.n_teacher]]))
            metrics["loss_koleo"] = koleo.detach()
            terms.append(self.config.koleo_weight * koleo)
        loss = torch.stack(terms).sum()
        return StepOutput(loss, {"loss": loss.detach(), **metrics})

    def draw_scales(self, generator: torch.Generator) -> tuple[int, ...]:
        """The student's own scales for one batch: ``n_student_scales`` of its pool, without those of the teacher."""
        pool = [scale for scale in self.config.student_scales if scale not in self.config.teacher_scales]
        drawn = torch.randperm(len(pool), generator=generator, device=generator.device).tolist()
        return tuple(pool[i] for i in sorted(drawn[: self.config.n_student_scales]))

    def _views(self, batch: JetBatch, generator: torch.Generator) -> _Views:
        c = self.config
        scales: tuple[int, ...] = ()
        if c.dino_weight or c.koleo_weight:
            scales = c.teacher_scales
        n_teacher = len(scales)
        if c.dino_weight:
            scales += self.draw_scales(generator)
        inputs = tuple(self.features(subjets(batch, scale)) for scale in scales)
        particles = hidden = None
        if c.ibot_weight:
            particles = inputs[scales.index(ALL)] if ALL in scales else self.features(batch)
            hidden = random_particles(batch.mask, c.mask_fraction, generator)
        return _Views(scales, inputs, n_teacher, particles, hidden, batch.counts)

    def _student_inputs(self, views: _Views) -> list[ModelInput]:
        if views.particles is None or views.hidden is None:
            return [*views.inputs]
        return [*views.inputs, views.particles.with_masked(views.hidden)]

    def _pairs(self, views: _Views) -> tuple[Tensor, Tensor]:
        """(batch, T, S) bool: pairs of different views, and those of them that are the same set of particles."""
        resolved = torch.tensor([scale or torch.iinfo(torch.int64).max for scale in views.scales])
        same = views.counts.unsqueeze(1) <= resolved.to(views.counts.device)
        identical = same[:, : views.n_teacher].unsqueeze(2) & same.unsqueeze(1)
        teacher_view = torch.arange(views.n_teacher, device=identical.device).unsqueeze(1)
        different = teacher_view != torch.arange(len(views.scales), device=identical.device)
        return different.expand_as(identical), identical & different

    def _targets(self, logits: Tensor, temperature: float, centering: Centering | None) -> Tensor:
        return sinkhorn(logits, temperature) if centering is None else centering(logits, temperature)

    def _dino(
        self,
        views: _Views,
        student: list[Encoded],
        teacher: list[Encoded],
        temperature: float,
        metrics: dict[str, Tensor],
        monitor: bool,
    ) -> Tensor:
        assert self.student.dino is not None
        assert self.teacher.dino is not None
        n_student, n_teacher, n = len(views.scales), views.n_teacher, len(views.counts)
        logits = self.student.dino(torch.cat([view.cls for view in student[:n_student]]))
        with torch.no_grad():
            cls = torch.cat([view.cls for view in teacher[:n_teacher]])
            teacher_logits = self.teacher.dino(cls)
            targets = self._targets(teacher_logits, temperature, self.dino_centering)
            pairs, identical = self._pairs(views)
            metrics["identical_pairs"] = identical.sum() / pairs.sum()
            if monitor:
                metrics |= collapse_monitors(teacher_logits, temperature, cls)
            weights = (pairs & ~identical if self.config.skip_identical_views else pairs).to(logits.dtype)
        loss = dino_loss(
            logits.view(n_student, n, -1), targets.view(n_teacher, n, -1), self.config.student_temperature, weights
        )
        metrics["loss_dino"] = loss.detach()
        return loss

    def _ibot(
        self, views: _Views, student: Encoded, teacher: Encoded, temperature: float, metrics: dict[str, Tensor]
    ) -> Tensor:
        assert self.student.ibot is not None
        assert self.teacher.ibot is not None
        assert views.hidden is not None
        logits = self.student.ibot(student.at(views.hidden))
        with torch.no_grad():
            targets = self._targets(self.teacher.ibot(teacher.at(views.hidden)), temperature, self.ibot_centering)
            per_jet = views.hidden.sum(1, keepdim=True).clamp(min=1) * len(views.hidden)
            weights = (1 / per_jet).expand_as(views.hidden)[views.hidden]
        loss = ibot_loss(logits, targets, self.config.student_temperature, weights)
        metrics["loss_ibot"] = loss.detach()
        return loss

    @torch.no_grad()
    def update_teacher(self, step: int, total_steps: int) -> None:
        """Teacher ← momentum · teacher + (1 − momentum) · student."""
        weight = 1 - self.ema_momentum(step, total_steps)
        torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), weight)

    def after_step(self, step: int, total_steps: int) -> None:
        """Updates the teacher."""
        self.update_teacher(step, total_steps)

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """The student's encoder and heads, each for itself."""
        return {name: list(part.parameters()) for name, part in self.student.named_children()}

    def parameter_groups(
        self, lr: float, weight_decay: float, layer_decay: float = 1.0, *, decay_all: bool = True
    ) -> list[dict[str, Any]]:
        """Groups for the optimiser, the stem first, the heads last; see `Objective.parameter_groups`."""
        layers = self.student.encoder.layers()
        named = [
            (f"block {i}" if i else "stem", layer, lr * layer_decay ** (len(layers) - i))
            for i, layer in enumerate(layers)
        ]
        heads = [(name, list(part.named_parameters()), lr) for name, part in self.student.named_children()]
        return layerwise_groups([*named, *heads[1:]], weight_decay, decay_all)

    def alarms(self, metrics: Mapping[str, float]) -> list[str]:
        """Signs of collapse; see `jetrep.objectives.monitors`."""
        return alarms(metrics)
