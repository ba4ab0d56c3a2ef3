"""The state from which a stopped run goes on: always a whole one on disk, and a damaged one is told in one line."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import nn

from jetrep.errors import InputError
from jetrep.report.files import replacing

__all__ = ["ResumeState"]


class ResumeState(TorchCheckpointIO):
    """How Lightning writes and reads checkpoints.

    Args:
        module: the module whose state it is.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write under a temporary name in the same folder first: Lightning's own way may cross file systems.

        Raises:
            InputError: if the disk refuses; the former state is then as it was.
        """
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        with replacing(Path(path)) as stream:
            stream.write(buffer.getbuffer())

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the state and compare its tensors with those of the module.

        Raises:
            InputError: if the file is damaged, or the state of another model.
        """
        remedy = "remove the file, and the same command starts anew"
        try:
            state: dict[str, Any] = super().load_checkpoint(path, map_location, weights_only)
            found = {name: tensor.shape for name, tensor in state["state_dict"].items()}
            steps = state["global_step"]
        except Exception as problem:  # unpickling a damaged file may raise anything
            raise InputError("the state to resume from is damaged", file=path, remedy=remedy) from problem
        if found != {name: tensor.shape for name, tensor in self.module.state_dict().items()} or steps < 0:
            raise InputError("the state to resume from is that of another model", file=path, remedy=remedy)
        return state
