"""Pretraining objectives by their settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

from jetrep.encoders.base import JetEncoder
from jetrep.errors import InputError, at_least
from jetrep.features import FeatureConfig, Features
from jetrep.jets import Jets
from jetrep.objectives.autoencoding import AutoencoderConfig, Autoencoding
from jetrep.objectives.base import Objective
from jetrep.objectives.clip_vae import ClipVAE, ClipVAEConfig
from jetrep.objectives.contrastive import JetCLR, JetCLRScale, SupCon
from jetrep.objectives.contrastive_config import JetCLRConfig, JetCLRScaleConfig, SupConConfig
from jetrep.objectives.jepa import Jepa, JepaConfig
from jetrep.objectives.masked import MaskedParticles, MaskedParticlesConfig
from jetrep.objectives.next_token import NextToken, NextTokenConfig
from jetrep.objectives.self_distillation import SelfDistillation, SelfDistillationConfig
from jetrep.objectives.targets import Identity
from jetrep.objectives.tokenizer import VQTokenizer
from jetrep.views.rg import ALL

__all__ = ["OBJECTIVES", "Needs", "ObjectiveConfig", "build_objective", "check_needs", "needs_of", "sized"]

ObjectiveConfig = (
    SelfDistillationConfig
    | JetCLRConfig
    | JetCLRScaleConfig
    | SupConConfig
    | MaskedParticlesConfig
    | JepaConfig
    | ClipVAEConfig
    | NextTokenConfig
    | AutoencoderConfig
)

OBJECTIVES: Mapping[type[Any], type[Objective]] = MappingProxyType(
    {
        SelfDistillationConfig: SelfDistillation,
        JetCLRConfig: JetCLR,
        JetCLRScaleConfig: JetCLRScale,
        SupConConfig: SupCon,
        MaskedParticlesConfig: MaskedParticles,
        JepaConfig: Jepa,
        ClipVAEConfig: ClipVAE,
        NextTokenConfig: NextToken,
        AutoencoderConfig: Autoencoding,
    }
)
"""The objective of each kind of settings."""


class Needs(NamedTuple):
    """What an objective needs of the jets.

    Attributes:
        history: their merge history, because it looks at subjets.
        labels: their labels.
        measured: whether the particles it looks at still have what was measured of them.
        columns: measured columns that it predicts.
        max_particles: the largest number of particles that it takes, None for any number.
    """

    history: bool
    labels: bool
    measured: bool
    columns: tuple[str, ...] = ()
    max_particles: int | None = None


def needs_of(config: ObjectiveConfig) -> Needs:
    """What the objective with these settings needs of the jets."""
    if isinstance(config, SelfDistillationConfig):
        subjets = any((*config.teacher_scales, *config.student_scales))
        compared = bool(config.dino_weight or config.koleo_weight)
        return Needs(history=subjets, labels=False, measured=not (subjets and compared))
    if isinstance(config, JetCLRScaleConfig):
        subjets = any(scale != ALL for tier in config.tiers for scale in tier)
        return Needs(history=subjets, labels=False, measured=not subjets)
    if isinstance(config, AutoencoderConfig):
        return Needs(history=False, labels=False, measured=False, max_particles=config.decoder.slots)
    if isinstance(config, ClipVAEConfig):
        compared = bool(config.clip_weight) and config.partner == "subjets"
        return Needs(history=compared, labels=False, measured=not compared)
    if isinstance(config, MaskedParticlesConfig | JepaConfig | NextTokenConfig):
        predicts = isinstance(config, MaskedParticlesConfig) and config.identity_weight
        return Needs(history=False, labels=False, measured=True, columns=Identity.COLUMNS if predicts else ())
    # Particles that move are still those that were measured; daughters of collinear splitting are not.
    split = bool(config.augmentation.split_passes)
    return Needs(history=False, labels=isinstance(config, SupConConfig), measured=not split)


def sized(config: ObjectiveConfig, max_particles: int | None) -> ObjectiveConfig:
    """These settings with as many slots as particles of a jet are kept, if they leave the number of slots open."""
    if not isinstance(config, AutoencoderConfig) or config.decoder.n_particles is not None:
        return config
    return replace(config, decoder=replace(config.decoder, n_particles=max_particles or config.decoder.slots))


def check_needs(config: ObjectiveConfig, features: FeatureConfig, max_particles: int | None) -> Needs:
    """What the objective needs of the jets, if it can do with such inputs.

    Args:
        config: its settings.
        features: what the encoder sees.
        max_particles: leading particles of a jet that are kept, None for all.

    Raises:
        InputError: if the features are not those of its views, or it takes fewer particles than are kept.
    """
    needs = needs_of(config)
    if features.columns and not needs.measured:
        raise InputError(
            f"the feature set '{features.names}' needs {', '.join(features.columns)}, "
            f"which the views of '{config.kind}' lack",
            field="features.names",
            remedy="choose the features 'kin', or an objective that looks at particles as they are",
        )
    if needs.max_particles is not None and max_particles is not None:
        at_least(max_particles, **{"objective.decoder.n_particles": needs.max_particles})
    return needs


def build_objective(
    config: ObjectiveConfig,
    features: Features,
    encoder: JetEncoder,
    *,
    sample: Callable[[], Jets] | None = None,
    tokenizer: VQTokenizer | None = None,
    seed: int = 0,
) -> Objective:
    """The objective with these settings; what it adds to the encoder is drawn from torch's global generator.

    Args:
        config: kind and settings.
        features: from four-vectors to inputs.
        encoder: the encoder; trained in place.
        sample: gives jets of the training set, for objectives that fit tokens to them.
        tokenizer: one that is trained already, instead of one that is fitted to the sample.
        seed: of that fit.

    Raises:
        InputError: if there is a tokeniser, and the objective has no use for it or needs one for other features.
    """
    target = config.target if isinstance(config, MaskedParticlesConfig) else None
    tokens = isinstance(config, NextTokenConfig) or target == "vq"
    if tokenizer is not None and not tokens:
        raise InputError(
            "the objective has no use for a tokeniser",
            field="tokenizer_from",
            remedy="leave it out, or choose the objective next_token, or masked_particles with the target vq",
        )
    kind: Any = OBJECTIVES[type(config)]
    more: dict[str, Any] = {}
    if tokens or target is not None:
        fits = target == "kmeans" or (tokens and tokenizer is None)
        more = {"fit_on": sample() if sample is not None and fits else None, "tokenizer": tokenizer, "seed": seed}
    objective: Objective = kind(features, encoder, config, **more)
    return objective
