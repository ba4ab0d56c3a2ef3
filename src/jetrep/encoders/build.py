"""Encoders by their settings."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import get_args

from jetrep.encoders.base import JetEncoder
from jetrep.encoders.cnnae import ImageConfig, ImageEncoder
from jetrep.encoders.gnnae import GraphConfig, GraphEncoder
from jetrep.encoders.lgatr import LGATrConfig, LGATrEncoder
from jetrep.encoders.lorentz import LorentzConfig, LorentzEncoder
from jetrep.encoders.particle_transformer import ParticleTransformer, ParticleTransformerConfig
from jetrep.encoders.particlenet import ParticleNet, ParticleNetConfig
from jetrep.encoders.transformer import JetTransformer, TransformerConfig

__all__ = ["KINDS", "EncoderConfig", "build_encoder"]

EncoderConfig = (
    TransformerConfig
    | ParticleTransformerConfig
    | ParticleNetConfig
    | LorentzConfig
    | GraphConfig
    | ImageConfig
    | LGATrConfig
)

KINDS: Mapping[str, type[EncoderConfig]] = MappingProxyType({config.kind: config for config in get_args(EncoderConfig)})
"""Kinds of encoders, as they are called in the record of a model, and their settings."""


def build_encoder(config: EncoderConfig, n_features: int) -> JetEncoder:
    """A new encoder, its weights drawn from torch's global generator.

    Args:
        config: its kind and shape.
        n_features: features of a particle, ``len(Features.names)``.
    """
    if isinstance(config, ParticleNetConfig):
        return ParticleNet(config, n_features)
    if isinstance(config, ParticleTransformerConfig):
        return ParticleTransformer(config, n_features)
    if isinstance(config, LorentzConfig):
        return LorentzEncoder(config, n_features)
    if isinstance(config, GraphConfig):
        return GraphEncoder(config, n_features)
    if isinstance(config, ImageConfig):
        return ImageEncoder(config, n_features)
    if isinstance(config, LGATrConfig):
        return LGATrEncoder(config, n_features)
    return JetTransformer(config, n_features)
