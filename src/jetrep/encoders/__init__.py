"""Encoders: `ModelInput`s in, `Encoded`s out."""

from jetrep.encoders.heads import ClassifierHead, HeadConfig, ProjectionHead
from jetrep.encoders.transformer import SIZES, Encoded, JetTransformer, Pooling, TransformerConfig

__all__ = [
    "SIZES",
    "ClassifierHead",
    "Encoded",
    "HeadConfig",
    "JetTransformer",
    "Pooling",
    "ProjectionHead",
    "TransformerConfig",
]
