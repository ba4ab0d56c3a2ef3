"""The probe phase of LP-FT: train a head to convergence on frozen embeddings before the encoder may move."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from jetrep.errors import InputError
from jetrep.objectives.schedules import cosine

__all__ = ["fit_head"]


def fit_head(
    head: nn.Module,
    train: tuple[Tensor, Tensor],
    valid: tuple[Tensor, Tensor],
    *,
    class_weights: Tensor | None,
    seed: int,
    epochs: int = 60,
    batch_size: int = 256,
    lr: float = 1e-2,
    weight_decay: float = 1e-2,
) -> float:
    """Fit ``head`` in place on fixed embeddings and keep its best state on the validation jets.

    Since the encoder stands still, each jet is embedded once, so that the phase costs seconds and can run to
    convergence. Embeddings are standardised for the fit, and the standardisation is then folded into the
    first linear layer: the head goes on working on the embeddings as they are. Components that are the same for all
    jets have no weight then.

    Args:
        head: a module whose first linear layer acts on the embedding.
        train: embeddings (n, width) and labels (n,).
        valid: the same for the validation jets.
        class_weights: (n_classes,) or None.
        seed: seed of batches and dropout.
        epochs: passes over the training embeddings.
        batch_size: embeddings per step.
        lr: peak learning rate, falling to zero along a cosine.
        weight_decay: decoupled weight decay.

    Returns:
        The best validation loss.
    """
    first = next((m for m in head.modules() if isinstance(m, nn.Linear)), None)
    if first is None:
        raise InputError("the head has no linear layer", field="head", remedy="choose a linear or MLP head")
    (x, y), (x_valid, y_valid) = train, valid
    mean, scale = x.mean(0), x.std(0)
    scale = scale.where(scale > 1e-6 * mean.abs().clamp(min=1), torch.inf)
    x, x_valid = (x - mean) / scale, (x_valid - mean) / scale
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=weight_decay)
    best, best_state = float("inf"), copy.deepcopy(head.state_dict())
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        torch.manual_seed(seed)
        for epoch in range(epochs):
            for group in optimizer.param_groups:
                group["lr"] = cosine(lr, 0.0, epoch / epochs)
            head.train()
            order = torch.randperm(len(x), device=x.device)
            for start in range(0, len(x), batch_size):
                rows = order[start : start + batch_size]
                optimizer.zero_grad()
                torch.autograd.backward(cross_entropy(head(x[rows]), y[rows], weight=class_weights))
                optimizer.step()
            head.eval()
            with torch.no_grad():
                loss = float(cross_entropy(head(x_valid), y_valid, weight=class_weights))
            if loss < best:
                best, best_state = loss, copy.deepcopy(head.state_dict())
    head.load_state_dict(best_state)
    with torch.no_grad():
        first.weight.div_(scale)
        first.bias.sub_(first.weight @ mean)
    return best
