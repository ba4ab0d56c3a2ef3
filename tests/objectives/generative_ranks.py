"""What each of two processes does in the tests of generative objectives; spawned processes import it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from jetrep.encoders import JetTransformer, TransformerConfig
from jetrep.encoders.decoder import SetTransformerConfig
from jetrep.features import FeatureConfig, Features
from jetrep.objectives.base import Objective
from jetrep.objectives.build import build_objective
from jetrep.objectives.clip_vae import ClipVAEConfig
from jetrep.objectives.next_token import NextTokenConfig
from jetrep.objectives.tokenizer import TokenizerConfig
from random_jets import random_jets

WORLD = 2
JETS = random_jets([30, 18, 9, 1, 25, 3, 12, 40])
SMALL = {"latent": 6, "n_particles": 12, "decoder": SetTransformerConfig(16, 1, 2), "embedding": 8, "clip_weight": 1.0}
TOKENIZER = TokenizerConfig(n_codes=16, latent=4, net=SetTransformerConfig(16, 1, 2), steps=5, batch_size=4)
CONFIGS: dict[str, Any] = {
    "clip_vae observables": ClipVAEConfig(**SMALL),
    "clip_vae subjets": ClipVAEConfig(**SMALL, partner="subjets", matching="chamfer", pooling="cls+mean"),
    "next_token": NextTokenConfig(tokenizer=TOKENIZER, max_tokens=20),
}


def part(rank: int | None) -> slice:
    """Every second jet, as training deals them out, or all."""
    return slice(None) if rank is None else slice(rank, None, WORLD)


def objective(name: str) -> Objective:
    """The same for all processes: made before they know of each other."""
    torch.manual_seed(0)
    features = Features(FeatureConfig())
    encoder = JetTransformer(TransformerConfig(16, 2, 2, 24, position_bins=10), len(features.names))
    return build_objective(CONFIGS[name], features, encoder, sample=lambda: JETS)


def step(module: Objective, rank: int | None) -> dict[str, torch.Tensor]:
    """Loss and gradients of one step on this rank's jets."""
    loss = module(JETS[part(rank)].batch(), 5, 10, torch.Generator().manual_seed(3)).loss
    loss.backward()
    return {"loss": loss.detach()} | {path: p.grad for path, p in module.named_parameters() if p.requires_grad}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    modules = {name: objective(name) for name in CONFIGS}
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    torch.save({name: step(module, rank) for name, module in modules.items()}, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def outcomes(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Of one process with everything, and of each of two with a part."""
    mp.spawn(work, args=(str(folder),), nprocs=WORLD)
    one = {name: step(objective(name), None) for name in CONFIGS}
    return one, [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]
