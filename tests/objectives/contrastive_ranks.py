"""What each of two processes does in `test_contrastive_ranks`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from two_ranks import JETS, part

from jetrep.encoders import JetTransformer, TransformerConfig
from jetrep.features import FeatureConfig, Features
from jetrep.objectives.contrastive import (
    JetCLR,
    JetCLRConfig,
    JetCLRScale,
    JetCLRScaleConfig,
    SupCon,
    SupConConfig,
)
from jetrep.objectives.contrastive_losses import nt_xent_loss, supcon_loss

BATCH = 8
CLASSES = ("a", "b", "c", "d")
# The only jets of class c, and of class d, are both on the first rank; classes a and b are on both.
LABELS = np.array([0, 1, 1, 0, 2, 0, 3, 1])
LABELLED = JETS.with_labels(LABELS, CLASSES)
MODULES = {
    "jetclr": (JetCLR, JetCLRConfig()),
    "supcon": (SupCon, SupConConfig()),
    "jetclr-scale": (JetCLRScale, JetCLRScaleConfig()),
}


def losses(rank: int | None) -> dict[str, torch.Tensor]:
    """Values and input gradients, jet by jet, of the losses on this rank's part of fixed tensors."""
    everyone = torch.randn(2, BATCH, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.from_numpy(LABELS)
    cases = {
        "nt-xent": (2, lambda z, y: nt_xent_loss(z, 0.1)),
        "supcon": (2, lambda z, y: supcon_loss(z, y, 0.1)),
        # Classes c and d have no positive: two anchors on the first rank, four on the second.
        "one view": (1, lambda z, y: supcon_loss(z, y, 0.1)),
        # All jets of this rank are of one class, but not those of the other.
        "one class a rank": (2, lambda z, y: supcon_loss(z, torch.arange(BATCH)[part(rank)] % 2, 0.1)),
        "one class": (2, lambda z, y: supcon_loss(z, y * 0, 0.1)),
    }
    out: dict[str, torch.Tensor] = {}
    for name, (views, function) in cases.items():
        z = everyone[:views, part(rank)].clone().requires_grad_()
        loss = function(z, labels[part(rank)])
        out[name] = loss.detach()
        out[f"{name} gradient"] = torch.autograd.grad(loss, z)[0].transpose(0, 1)
    return out


def objective(name: str, rank: int | None) -> dict[str, torch.Tensor]:
    """Loss, parameter gradients and what else should agree, of a whole step on this rank's jets."""
    torch.manual_seed(0)
    encoder = TransformerConfig(width=16, depth=2, heads=2, mlp_hidden=24, position_bins=10)
    features = Features(FeatureConfig())
    build, config = MODULES[name]
    module = build(features, JetTransformer(encoder, len(features.names)), config)
    out = module(LABELLED[part(rank)].batch(), 1, 10, torch.Generator().manual_seed(3))
    out.loss.backward()
    return dict(out.metrics) | {path: p.grad for path, p in module.named_parameters()}


def everything(rank: int | None, _: Any) -> dict[str, Any]:
    return {"losses": losses(rank)} | {name: objective(name, rank) for name in MODULES}
