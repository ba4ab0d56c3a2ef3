"""The state from which a stopped run goes on: always a whole one on disk, and a damaged one is told in one line."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
import xxhash
from lightning.fabric.plugins import TorchCheckpointIO
from torch import nn

from jetrep.errors import InputError
from jetrep.report.files import replacing

__all__ = ["ResumeState"]


_DIGEST = 16  # bytes


class ResumeState(TorchCheckpointIO):
    """How Lightning writes and reads checkpoints: the XXH3-128 of what `torch.save` gives, then that.

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
            stream.write(xxhash.xxh3_128_digest(buffer.getbuffer()))
            stream.write(buffer.getbuffer())

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the state and compare its tensors with those of the module.

        Raises:
            InputError: if the file is damaged, or the state of another model.
        """
        remedy = "remove the file, and the same command starts anew"
        content = memoryview(Path(path).read_bytes())
        digest, content = content[:_DIGEST], content[_DIGEST:]
        if digest != xxhash.xxh3_128_digest(content):
            raise InputError("the state to resume from is damaged", file=path, remedy=remedy)
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location=map_location, weights_only=weights_only)
        if _shapes(state["state_dict"]) != _shapes(self.module.state_dict()):
            raise InputError("the state to resume from is that of another model", file=path, remedy=remedy)
        return state


def _shapes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}
