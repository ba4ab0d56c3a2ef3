"""What each of two processes does in the tests of generative objectives."""

from __future__ import annotations

from typing import Any

import torch
from two_ranks import JETS, step

from jetrep.encoders import JetTransformer, TransformerConfig
from jetrep.encoders.decoder import SetTransformerConfig
from jetrep.features import FeatureConfig, Features
from jetrep.objectives.base import Objective
from jetrep.objectives.build import build_objective
from jetrep.objectives.clip_vae import ClipVAEConfig
from jetrep.objectives.next_token import NextTokenConfig
from jetrep.objectives.tokenizer import TokenizerConfig

SMALL = {"latent": 6, "n_particles": 12, "decoder": SetTransformerConfig(16, 1, 2), "embedding": 8, "clip_weight": 1.0}
TOKENIZER = TokenizerConfig(n_codes=16, latent=4, net=SetTransformerConfig(16, 1, 2), steps=5, batch_size=4)
CONFIGS: dict[str, Any] = {
    "clip_vae observables": ClipVAEConfig(**SMALL),
    "clip_vae subjets": ClipVAEConfig(**SMALL, partner="subjets", matching="chamfer", pooling="cls+mean"),
    "next_token": NextTokenConfig(tokenizer=TOKENIZER, max_tokens=20),
}


def objective(name: str) -> Objective:
    """The same for all processes: made before they know of each other."""
    torch.manual_seed(0)
    features = Features(FeatureConfig())
    encoder = JetTransformer(TransformerConfig(16, 2, 2, 24, position_bins=10), len(features.names))
    return build_objective(CONFIGS[name], features, encoder, sample=lambda: JETS)


def made() -> dict[str, Objective]:
    return {name: objective(name) for name in CONFIGS}


def everything(rank: int | None, modules: dict[str, Objective]) -> dict[str, Any]:
    return {name: step(module, rank) for name, module in modules.items()}
