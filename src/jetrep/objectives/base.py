"""What every objective is: a module that turns a batch of jets into a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from jetrep.encoders.base import JetEncoder
from jetrep.features import Features
from jetrep.jets import JetBatch
from jetrep.objectives.tokenizer import VQTokenizer

__all__ = ["Objective", "StepOutput", "follow"]


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
    encoder_lr: float = 1.0

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

    @property
    def trained(self) -> JetEncoder:
        """The encoder that is trained (for self-distillation, the student's)."""
        return self.encoder

    @property
    def tokenizer(self) -> VQTokenizer | None:
        """The tokeniser, if there is one: to save and to inspect."""
        return None

    @abstractmethod
    def heads(self) -> Mapping[str, nn.Module]:
        """What is trained beside the encoder, by name."""

    def parameter_groups(
        self, lr: float, weight_decay: float, layer_decay: float = 1.0, *, decay_all: bool = True
    ) -> list[dict[str, Any]]:
        """Groups for the optimiser, each with ``params``, ``lr``, ``weight_decay`` and ``name``: stem, blocks, heads.

        Args:
            lr: learning rate of the heads; the encoder has `encoder_lr` times this.
            weight_decay: of the weights.
            layer_decay: factor from each layer to the one below it, from the heads down to the stem.
            decay_all: False exempts vectors (biases, norms, LayerScale) and learned tokens from weight decay.
        """
        layers = self.trained.layers()
        named = [
            (f"block {i}" if i else "stem", layer, lr * self.encoder_lr * layer_decay ** (len(layers) - i))
            for i, layer in enumerate(layers)
        ]
        named += [(name, _trained(part), lr) for name, part in self.heads().items()]
        return _groups(named, weight_decay, decay_all)

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """What is trained, by part: gradients are clipped part by part."""
        parts = {"encoder": self.trained, **self.heads()}
        return {name: [parameter for _, parameter in _trained(part)] for name, part in parts.items()}

    def after_step(self, step: int, total_steps: int) -> None:
        """Called after the optimiser's step number ``step`` (from 0)."""
        return

    def alarms(self, metrics: Mapping[str, float]) -> list[str]:
        """Sentences that tell a human what has gone wrong, judged by the logged metrics."""
        return []


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Teacher ← momentum · teacher + (1 − momentum) · student."""
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)
    # Running statistics of batch norms, in encoders that have them: the teacher never gathers its own.
    for own, current in zip(teacher.buffers(), student.buffers(), strict=True):
        own.copy_(current)


def _trained(part: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(path, parameter) for path, parameter in part.named_parameters() if parameter.requires_grad]


def _groups(
    layers: Iterable[tuple[str, list[tuple[str, nn.Parameter]], float]], weight_decay: float, decay_all: bool
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
