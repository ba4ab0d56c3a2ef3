"""Supervised classification: cross-entropy on labels, from scratch or on a pretrained encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from jetrep.encoders.base import JetEncoder
from jetrep.errors import InputError
from jetrep.jets import JetBatch
from jetrep.model import JetModel
from jetrep.objectives.base import Objective, StepOutput
from jetrep.objectives.distributed import all_sum, world_size

__all__ = ["Supervised"]


class Supervised(Objective):
    """Cross-entropy of a classifier on the labels of the batch.

    Args:
        model: a tagger; trained in place.
        class_weights: (n_classes,) weight of each class in the loss, or None for equal weights.
        encoder_lr: learning rate of the encoder, as a fraction of the head's.

    Raises:
        InputError: if the model has no classifier head.
    """

    class_weights: Tensor | None

    def __init__(self, model: JetModel, class_weights: Tensor | None = None, encoder_lr: float = 1.0) -> None:
        super().__init__()
        if model.head is None:
            raise InputError("the model has no classifier", field="head", remedy="choose a head")
        self.model, self.features, self.head = model, model.features, model.head
        self.encoder_lr = encoder_lr
        self.register_buffer("class_weights", class_weights, persistent=False)

    @property
    def encoder(self) -> JetEncoder:
        """The model's encoder."""
        return self.model.encoder

    def forward(self, batch: JetBatch, step: int, total_steps: int, generator: torch.Generator) -> StepOutput:
        """Weighted cross-entropy, and the plain accuracy for the log.

        The weights are normalised over the jets of all ranks, so that their number changes nothing.
        """
        if batch.labels is None:
            raise InputError("the jets are unlabelled", field="label", remedy="supervised training needs labels")
        logits = self.model(batch).float()
        each = cross_entropy(logits, batch.labels, weight=self.class_weights, reduction="none")
        total = logits.new_tensor(len(each)) if self.class_weights is None else self.class_weights[batch.labels].sum()
        loss = each.sum() / (all_sum(total) / world_size())
        return StepOutput(loss, {"accuracy": (logits.argmax(-1) == batch.labels).float().mean()})

    def heads(self) -> dict[str, nn.Module]:
        """The classifier."""
        return {"head": self.head}
