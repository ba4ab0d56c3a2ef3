r"""Self-distillation between clusterings of the same jet (RINO, arXiv 2509.07486).

A student sees a jet at several scales: as N subjets for several N, and as all its particles. A teacher, the running
mean of the student, sees some of these scales. The student learns to give at every scale the teacher's answer at every
other (DINO), the teacher's answer for particles that are hidden from it (iBOT), and to keep different jets apart
(KoLeo).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

from jetrep.encoders import HeadConfig, JetEncoder, ProjectionHead
from jetrep.errors import InputError, at_least
from jetrep.features import Features, ModelInput
from jetrep.jets import JetBatch
from jetrep.objectives.base import Objective, StepOutput, follow
from jetrep.objectives.distributed import all_max, rank, world_size
from jetrep.objectives.losses import Centering, dino_loss, ibot_loss, koleo_loss, sinkhorn
from jetrep.objectives.monitors import alarms, collapse_monitors, spread
from jetrep.objectives.schedules import cosine
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
        dino_weight: weight of the agreement between scales.
        ibot_weight: weight of the agreement on hidden particles.
        koleo_weight: weight of the spread of the representations.
        student_temperature: temperature of the student's outputs.
        teacher_temperature: temperature of the teacher's outputs at the beginning.
        teacher_temperature_end: temperature of the teacher's outputs after its rise on half a cosine.
        teacher_temperature_rise: fraction of the training in which it rises.
        ema: momentum of the teacher at the beginning.
        ema_end: momentum of the teacher at the end, reached on a cosine.
        assignment: how the teacher's outputs become targets.
        mask_fraction: fraction of the particles of a jet that is hidden for iBOT.
        head: shape of the heads for DINO and iBOT.
        skip_identical_views: leave out of DINO the pairs of views that are the same set of particles, because the jet
            has no more particles than either of the scales. Such pairs teach nothing about scale; they are counted
            in the metric ``identical_pairs`` in any case.
        monitor_every: the collapse monitors are among the metrics of every such step, counted from 1. Without DINO
            they are the spread of the teacher's class tokens, or of its tokens of hidden particles.
        kind: tells the kinds of objectives apart.
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
    monitor_every: int = 10
    kind: Literal["self_distillation"] = "self_distillation"

    def __post_init__(self) -> None:
        for name in ("teacher_scales", "student_scales"):
            at_least(0, **{f"objective.{name}": min(getattr(self, name), default=0)})
        at_least(1, **{"objective.monitor_every": self.monitor_every})
        for name in ("n_student_scales", "dino_weight", "ibot_weight", "koleo_weight"):
            at_least(0, **{f"objective.{name}": getattr(self, name)})
        for name in ("student_temperature", "teacher_temperature", "teacher_temperature_end"):
            if not getattr(self, name) > 0:
                raise InputError(f"is {getattr(self, name)}", field=f"objective.{name}", remedy="give more than 0")
        for name in ("mask_fraction", "ema", "ema_end", "teacher_temperature_rise"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(
                    f"is {getattr(self, name)}", field=f"objective.{name}", remedy="give a number from 0 to 1"
                )
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
        # our choice on real jets (docs/rino.md), not a published one.
        "small_batch": replace(
            SelfDistillationConfig(),
            head=HeadConfig(hidden=(4.0,), bottleneck=1.0, n_prototypes=128),
            ema=0.9,
            ema_end=1.0,
        ),
    }
)
"""Ready settings: "g2" (RINO's later recipe), "g1" (that of its published tables), "small_batch"."""


class Branch(nn.Module):
    """Encoder and heads; student and teacher are one each. A head is absent if its loss is off."""

    def __init__(self, encoder: JetEncoder, config: SelfDistillationConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.dino = ProjectionHead(encoder.width, config.head) if config.dino_weight else None
        self.ibot = ProjectionHead(encoder.width, config.head) if config.ibot_weight else None


@dataclass(frozen=True)
class _Views:
    """What student and teacher see of a batch.

    A jet with no more particles than a scale is the same set of particles there and at ALL. It is encoded once, in the
    first of these views, so that the inputs of the others hold fewer jets.

    Attributes:
        scales: the teacher's, then those of the student alone.
        n_teacher: how many of them are the teacher's.
        inputs: for each scale the jets that are encoded there.
        place: (scales, batch) where the view of each jet stands among the encoded ones, laid end to end.
        resolved: (batch, scales) bool, True where a view is the set of all particles.
        particles: all particles of all jets, for iBOT.
        hidden: (batch, n) bool, those of them that the student does not see.
    """

    scales: tuple[int, ...]
    n_teacher: int
    inputs: tuple[ModelInput, ...]
    place: Tensor
    resolved: Tensor
    particles: ModelInput | None
    hidden: Tensor | None


def _distinct(inputs: list[ModelInput], resolved: Tensor) -> tuple[tuple[ModelInput, ...], Tensor]:
    """Inputs without the jets that an earlier one holds already, and `_Views.place`."""
    if not inputs:
        return (), resolved.new_zeros(0, len(resolved), dtype=torch.long)
    first = resolved & (resolved.cumsum(1) == 1)
    encoded = (first | ~resolved).T
    representative = resolved.long().argmax(1)
    place = (encoded.flatten().cumsum(0) - 1).view_as(encoded)
    place = torch.where(encoded, place, place.T.gather(1, representative.unsqueeze(1)).T)
    jets = torch.split(encoded.nonzero()[:, 1], encoded.sum(1).tolist())
    parts = (view if len(rows) == len(resolved) else view.jets(rows) for view, rows in zip(inputs, jets, strict=True))
    return tuple(parts), place


def _hidden(mask: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """`random_particles` of this rank, drawn with those of all: a jet is masked alike by any number of ranks.

    Rank r of R has every R-th jet of the batch, from the r-th on.
    """
    n_ranks = world_size()
    if n_ranks == 1:
        return random_particles(mask, fraction, generator)
    width = int(all_max(torch.tensor(mask.shape[1], device=mask.device)))
    everyone = mask.new_zeros(n_ranks * len(mask), width)
    own = (slice(rank(), None, n_ranks), slice(mask.shape[1]))
    everyone[own] = mask
    return random_particles(everyone, fraction, generator)[own]


class SelfDistillation(Objective):
    """RINO's objective; see the module and `SelfDistillationConfig`.

    Args:
        features: from four-vectors to inputs.
        encoder: the student's encoder; the teacher starts as a copy of it.
        config: settings.
    """

    def __init__(self, features: Features, encoder: JetEncoder, config: SelfDistillationConfig) -> None:
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
    def encoder(self) -> JetEncoder:
        """The teacher's encoder."""
        return self.teacher.encoder

    def teacher_temperature(self, step: int, total_steps: int) -> float:
        """Temperature of the teacher at ``step``."""
        c = self.config
        rise = c.teacher_temperature_rise * total_steps
        return cosine(c.teacher_temperature, c.teacher_temperature_end, step / rise if rise else 1.0)

    def ema_momentum(self, step: int, total_steps: int) -> float:
        """Weight of the old teacher in the update after ``step``."""
        return cosine(self.config.ema, self.config.ema_end, step / max(1, total_steps))

    def forward(self, batch: JetBatch, step: int, total_steps: int, generator: torch.Generator) -> StepOutput:
        """Loss of one batch; see `Objective.forward`. The batch must carry its merge history."""
        views = self._views(batch, generator)
        n = views.n_teacher
        masked = None if views.particles is None or views.hidden is None else views.particles.with_masked(views.hidden)
        cls, student = self._encode(self.student.encoder, views, len(views.scales), masked)
        temperature = self.teacher_temperature(step, total_steps)
        with torch.no_grad():
            teacher_cls, teacher = self._encode(self.teacher.encoder, views, n, views.particles)

        metrics: dict[str, Tensor] = {}
        terms: list[Tensor] = []
        monitor = (step + 1) % self.config.monitor_every == 0
        if self.config.dino_weight:
            dino = self._dino(views, cls, teacher_cls, temperature, metrics, monitor)
            terms.append(self.config.dino_weight * dino)
        elif monitor:
            metrics |= spread(teacher_cls.flatten(0, 1) if n else teacher)
        if self.config.ibot_weight:
            ibot = self._ibot(views, student, teacher, temperature, metrics)
            terms.append(self.config.ibot_weight * ibot)
        if self.config.koleo_weight:
            koleo = koleo_loss(cls[:n])
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
        inputs = [self.features(subjets(batch, scale)) for scale in scales]
        particles = hidden = None
        if c.ibot_weight:
            particles = inputs[scales.index(ALL)] if ALL in scales else self.features(batch)
            hidden = _hidden(batch.mask, c.mask_fraction, generator)
        finest = torch.iinfo(torch.int64).max
        limits = torch.tensor([scale or finest for scale in scales], dtype=torch.long, device=batch.p4.device)
        resolved = batch.counts.unsqueeze(1) <= limits
        distinct, place = _distinct(inputs, resolved)
        return _Views(scales, n_teacher, distinct, place, resolved, particles, hidden)

    def _encode(
        self, encoder: JetEncoder, views: _Views, n: int, particles: ModelInput | None
    ) -> tuple[Tensor, Tensor]:
        """CLS tokens (n, batch, width) of the first ``n`` views, and tokens (m, width) of the hidden particles."""
        extra = [] if particles is None else [particles]
        chosen = [*(None for _ in range(n)), *(views.hidden for _ in extra)]
        encoded = encoder([*views.inputs[:n], *extra], chosen)
        cls, tokens = views.place.new_zeros(0, dtype=torch.float), views.place.new_zeros(0, dtype=torch.float)
        if n:
            joined = torch.cat([view.cls for view in encoded[:n]])
            cls = joined.index_select(0, views.place[:n].flatten()).view(n, -1, joined.shape[1])
        if views.hidden is not None:
            tokens = encoded[-1].at(views.hidden)
        return cls, tokens

    def _pairs(self, views: _Views) -> tuple[Tensor, Tensor]:
        """(batch, T, S) bool: pairs of different views, and those of them that are the same set of particles."""
        same = views.resolved
        identical = same[:, : views.n_teacher].unsqueeze(2) & same.unsqueeze(1)
        teacher_view = torch.arange(views.n_teacher, device=identical.device).unsqueeze(1)
        different = teacher_view != torch.arange(len(views.scales), device=identical.device)
        return different.expand_as(identical), identical & different

    def _targets(self, logits: Tensor, temperature: float, centering: Centering | None) -> Tensor:
        return sinkhorn(logits, temperature) if centering is None else centering(logits, temperature)

    def _dino(
        self,
        views: _Views,
        cls: Tensor,
        teacher_cls: Tensor,
        temperature: float,
        metrics: dict[str, Tensor],
        monitor: bool,
    ) -> Tensor:
        assert self.student.dino is not None
        assert self.teacher.dino is not None
        logits = self.student.dino(cls)
        with torch.no_grad():
            teacher_logits = self.teacher.dino(teacher_cls)
            flat = teacher_logits.flatten(0, 1)
            targets = self._targets(flat, temperature, self.dino_centering).view_as(teacher_logits)
            pairs, identical = self._pairs(views)
            metrics["identical_pairs"] = identical.sum() / pairs.sum()
            if monitor:
                metrics |= collapse_monitors(flat, temperature, teacher_cls.flatten(0, 1))
            weights = (pairs & ~identical if self.config.skip_identical_views else pairs).to(logits.dtype)
        loss = dino_loss(logits, targets, self.config.student_temperature, weights)
        metrics["loss_dino"] = loss.detach()
        return loss

    def _ibot(
        self, views: _Views, student: Tensor, teacher: Tensor, temperature: float, metrics: dict[str, Tensor]
    ) -> Tensor:
        assert self.student.ibot is not None
        assert self.teacher.ibot is not None
        assert views.hidden is not None
        logits = self.student.ibot(student)
        with torch.no_grad():
            targets = self._targets(self.teacher.ibot(teacher), temperature, self.ibot_centering)
            per_jet = views.hidden.sum(1, keepdim=True).clamp(min=1) * len(views.hidden)
            weights = (1 / per_jet).expand_as(views.hidden)[views.hidden]
        loss = ibot_loss(logits, targets, self.config.student_temperature, weights)
        metrics["loss_ibot"] = loss.detach()
        return loss

    def after_step(self, step: int, total_steps: int) -> None:
        """The teacher follows the student."""
        follow(self.teacher, self.student, self.ema_momentum(step, total_steps))

    @property
    def trained(self) -> JetEncoder:
        """The student's encoder."""
        return self.student.encoder

    def heads(self) -> dict[str, nn.Module]:
        """The student's heads."""
        return {name: part for name, part in self.student.named_children() if name != "encoder"}

    def alarms(self, metrics: Mapping[str, float]) -> list[str]:
        """Signs of collapse; see `jetrep.objectives.monitors`."""
        return alarms(metrics)
