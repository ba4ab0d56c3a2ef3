"""What each of two processes does in `test_ranks`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from two_ranks import JETS, WORLD

from jetrep.encoders import HeadConfig, JetTransformer, TransformerConfig
from jetrep.features import FeatureConfig, Features
from jetrep.objectives import PRESETS, SelfDistillation, self_distillation
from jetrep.objectives.losses import Centering, dino_loss, koleo_loss, sinkhorn

BATCH = 8
CONFIGS = {
    "sinkhorn": {},
    "centering": {"assignment": "centering"},
    "unequal pairs": {"skip_identical_views": True, "ibot_weight": 0.0},
}


def part(rank: int | None) -> slice:
    """The jets of one of the ranks, or all of them."""
    per_rank = BATCH // WORLD
    return slice(0, BATCH) if rank is None else slice(rank * per_rank, (rank + 1) * per_rank)


def hide_the_hardest(mask: torch.Tensor, fraction: float, generator: torch.Generator) -> torch.Tensor:
    """Masks that depend on the jet alone, not on its place in the batch."""
    k = torch.minimum((mask.sum(1) * fraction).floor().long().clamp(min=1), mask.sum(1) - 1).clamp(min=0)
    return (torch.arange(mask.shape[1]) < k.unsqueeze(1)) & mask


def losses(rank: int | None) -> dict[str, torch.Tensor]:
    """Values and input gradients of single losses on this rank's part of fixed tensors."""
    rows = part(rank)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, BATCH, 6, generator=g)[:, rows].clone().requires_grad_()
    logits = torch.randn(3, BATCH, 10, generator=g)[:, rows].clone()
    student = torch.randn(5, BATCH, 10, generator=g)[:, rows].clone().requires_grad_()
    weights = (torch.rand(BATCH, 3, 5, generator=g) < 0.5)[rows].float()
    out: dict[str, torch.Tensor] = {}

    koleo = koleo_loss(x)
    out["koleo"], out["koleo gradient"] = koleo.detach(), torch.autograd.grad(koleo, x)[0].transpose(0, 1)
    targets = sinkhorn(logits.flatten(0, 1), 0.1).view_as(logits)
    out["sinkhorn"] = targets.transpose(0, 1)
    dino = dino_loss(student, targets, 0.1, weights)
    out["dino"], out["dino gradient"] = dino.detach(), torch.autograd.grad(dino, student)[0].transpose(0, 1)
    centering = Centering(10)
    centering(logits.flatten(0, 1), 0.1)
    out["center"] = centering.center
    # Unequal numbers of samples, down to none on the second rank.
    uneven = torch.randn(5, 10, generator=g)
    out["uneven"] = sinkhorn(uneven if rank in (None, 0) else uneven[:0], 0.1)
    return out


def objective(name: str, rank: int | None) -> dict[str, torch.Tensor]:
    """Loss and parameter gradients of a whole step on this rank's jets."""
    torch.manual_seed(0)
    config = replace(PRESETS["g2"], head=HeadConfig(n_prototypes=12), **CONFIGS[name])
    encoder = TransformerConfig(width=16, depth=2, heads=2, mlp_hidden=24, position_bins=10)
    features = Features(FeatureConfig())
    module = SelfDistillation(features, JetTransformer(encoder, len(features.names)), config)
    loss = module(JETS[part(rank)].batch(), 1, 10, torch.Generator().manual_seed(3)).loss
    loss.backward()
    return {"loss": loss.detach()} | {path: p.grad for path, p in module.student.named_parameters()}


def everything(rank: int | None, _: Any) -> dict[str, Any]:
    with mock.patch.object(self_distillation, "random_particles", hide_the_hardest):
        return {"losses": losses(rank)} | {name: objective(name, rank) for name in CONFIGS}
