"""Encoders: `ModelInput`s in, `Encoded`s out."""

from jetrep.encoders.base import Encoded, JetEncoder, Pooling
from jetrep.encoders.build import EncoderConfig, build_encoder
from jetrep.encoders.heads import ClassifierHead, HeadConfig, ProjectionHead
from jetrep.encoders.particlenet import PARTICLENETS, ParticleNet, ParticleNetConfig
from jetrep.encoders.transformer import SIZES, JetTransformer, TransformerConfig

__all__ = [
    "PARTICLENETS",
    "SIZES",
    "ClassifierHead",
    "Encoded",
    "EncoderConfig",
    "HeadConfig",
    "JetEncoder",
    "JetTransformer",
    "ParticleNet",
    "ParticleNetConfig",
    "Pooling",
    "ProjectionHead",
    "TransformerConfig",
    "build_encoder",
]
