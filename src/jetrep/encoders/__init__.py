"""Encoders: `ModelInput`s in, `Encoded`s out."""

from jetrep.encoders.base import Encoded, JetEncoder, Pooling
from jetrep.encoders.build import EncoderConfig, build_encoder
from jetrep.encoders.heads import ClassifierHead, HeadConfig, ProjectionHead
from jetrep.encoders.particle_transformer import PARTS, ParticleTransformer, ParticleTransformerConfig
from jetrep.encoders.particlenet import PARTICLENETS, ParticleNet, ParticleNetConfig
from jetrep.encoders.transformer import SIZES, JetTransformer, TransformerConfig

__all__ = [
    "PARTICLENETS",
    "PARTS",
    "SIZES",
    "ClassifierHead",
    "Encoded",
    "EncoderConfig",
    "HeadConfig",
    "JetEncoder",
    "JetTransformer",
    "ParticleNet",
    "ParticleNetConfig",
    "ParticleTransformer",
    "ParticleTransformerConfig",
    "Pooling",
    "ProjectionHead",
    "TransformerConfig",
    "build_encoder",
]
