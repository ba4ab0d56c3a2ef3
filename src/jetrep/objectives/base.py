"""What every objective is: a module that turns a batch of jets into a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from jetrep.encoders.transformer import JetTransformer
from jetrep.features import Features
from jetrep.jets import JetBatch

__all__ = ["Objective", "StepOutput"]


@dataclass(frozen=True)
class StepOutput:
    """One training step: the loss (scalar, with graph) and what to log (scalars, detached, on the device)."""

    loss: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(nn.Module, ABC):
    """A learning objective: views of a batch through an encoder to a loss, in plain torch.

    The training engine calls, for each step, `forward`, the optimiser over `parameter_groups`, then `after_step`.
    Objectives draw all random numbers of a step from the generator they are given, so that runs can be repeated.
    """

    features: Features

    @property
    @abstractmethod
    def encoder(self) -> JetTransformer:
        """The encoder that is kept after training (for self-distillation, the teacher's)."""

    @abstractmethod
    def forward(self, batch: JetBatch, step: int, total_steps: int, generator: torch.Generator) -> StepOutput:
        """Loss of one batch.

        Args:
            batch: jets of this rank, with merge history where views need it.
            step: steps taken before this one.
            total_steps: length of the run, for schedules.
            generator: source of all randomness of this step, on the CPU, equal on all ranks.
        """

    @abstractmethod
    def parameter_groups(self, lr: float, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
        """Parameters for the optimiser, with a learning rate that falls by ``layer_decay`` per layer towards the stem."""

    def after_step(self, step: int, total_steps: int) -> None:
        """Called after the optimiser has moved, with the number of steps taken so far."""
        return

    def alarms(self, metrics: Mapping[str, float]) -> list[str]:
        """Sentences that tell a human what has gone wrong, judged by the logged metrics."""
        return []
