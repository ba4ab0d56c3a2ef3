"""Pretraining objectives by their settings."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from jetrep.encoders.base import JetEncoder
from jetrep.features import Features
from jetrep.objectives.base import Objective
from jetrep.objectives.contrastive import JetCLR, JetCLRScale, SupCon
from jetrep.objectives.contrastive_config import JetCLRConfig, JetCLRScaleConfig, SupConConfig
from jetrep.objectives.self_distillation import SelfDistillation, SelfDistillationConfig
from jetrep.views.rg import ALL

__all__ = ["OBJECTIVES", "Needs", "ObjectiveConfig", "build_objective", "needs_of"]

ObjectiveConfig = SelfDistillationConfig | JetCLRConfig | JetCLRScaleConfig | SupConConfig

OBJECTIVES: Mapping[type[Any], type[Objective]] = MappingProxyType(
    {
        SelfDistillationConfig: SelfDistillation,
        JetCLRConfig: JetCLR,
        JetCLRScaleConfig: JetCLRScale,
        SupConConfig: SupCon,
    }
)
"""The objective of each kind of settings."""


class Needs(NamedTuple):
    """What an objective needs of the jets.

    Attributes:
        history: their merge history, because it looks at subjets.
        labels: their labels.
        measured: whether the particles it looks at still have what was measured of them.
    """

    history: bool
    labels: bool
    measured: bool


def needs_of(config: ObjectiveConfig) -> Needs:
    """What the objective with these settings needs of the jets."""
    if isinstance(config, SelfDistillationConfig):
        subjets = any((*config.teacher_scales, *config.student_scales))
        compared = bool(config.dino_weight or config.koleo_weight)
        return Needs(history=subjets, labels=False, measured=not (subjets and compared))
    if isinstance(config, JetCLRScaleConfig):
        subjets = any(scale != ALL for tier in config.tiers for scale in tier)
        return Needs(history=subjets, labels=False, measured=not subjets)
    # Augmented particles are no longer those that were measured.
    return Needs(history=False, labels=isinstance(config, SupConConfig), measured=False)


def build_objective(config: ObjectiveConfig, features: Features, encoder: JetEncoder) -> Objective:
    """The objective with these settings; what it adds to the encoder is drawn from torch's global generator."""
    kind: Any = OBJECTIVES[type(config)]
    objective: Objective = kind(features, encoder, config)
    return objective
