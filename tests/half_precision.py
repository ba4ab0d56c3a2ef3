"""Training in bfloat16, as the engine does it on a GPU."""

import math

import torch

from jetrep.jets import JetBatch
from jetrep.objectives.base import Objective


def losses_in_bfloat16(module: Objective, batch: JetBatch, steps: int = 40) -> list[float]:
    """Losses of AdamW on one batch, with the same random numbers in each step; they must be finite."""
    optimizer = torch.optim.AdamW(module.parameter_groups(3e-3, 0.0, 0.9))
    losses = []
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16):
            out = module(batch, 0, steps, torch.Generator().manual_seed(0))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(float(out.loss.detach()))
    assert all(math.isfinite(loss) for loss in losses)
    return losses
