"""What every objective is: a module that turns a batch of jets into a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from jetrep.encoders.base import JetEncoder
from jetrep.features import Features
from jetrep.jets import JetBatch

__all__ = ["Objective", "StepOutput", "layerwise_groups"]


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
    def encoder(self) -> JetEncoder:
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
    def parameter_groups(
        self, lr: float, weight_decay: float, layer_decay: float = 1.0, *, decay_all: bool = True
    ) -> list[dict[str, Any]]:
        """Groups for the optimiser, each with ``params``, ``lr``, ``weight_decay`` and ``name``.

        Args:
            lr: learning rate of the heads.
            weight_decay: of the weights.
            layer_decay: factor from each layer to the one below it, down to the stem.
            decay_all: False exempts vectors (biases, norms, LayerScale) and learned tokens from weight decay.
        """

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """What is trained, by part: gradients are clipped part by part."""
        return {"model": [parameter for parameter in self.parameters() if parameter.requires_grad]}

    def after_step(self, step: int, total_steps: int) -> None:
        """Called after the optimiser's step number ``step`` (from 0)."""
        return

    def alarms(self, metrics: Mapping[str, float]) -> list[str]:
        """Sentences that tell a human what has gone wrong, judged by the logged metrics."""
        return []


def layerwise_groups(
    layers: Sequence[tuple[str, Iterable[tuple[str, nn.Parameter]], float]], weight_decay: float, decay_all: bool
) -> list[dict[str, Any]]:
    """Optimiser groups from (name, named parameters, learning rate) of each layer; see `Objective.parameter_groups`."""
    groups: list[dict[str, Any]] = []
    for name, parameters, lr in layers:
        decayed: list[nn.Parameter] = []
        exempt: list[nn.Parameter] = []
        for path, parameter in parameters:
            is_weight = parameter.ndim > 1 and path.rpartition(".")[2] != "prefix"
            (decayed if decay_all or is_weight else exempt).append(parameter)
        for suffix, members, decay in (("", decayed, weight_decay), (", no decay", exempt, 0.0)):
            if members:
                groups.append({"params": members, "lr": lr, "weight_decay": decay, "name": name + suffix})
    return groups
