"""Where a model runs outside of the training loop, which Lightning places."""

from __future__ import annotations

import os

import torch

__all__ = ["device_for"]


def device_for(accelerator: str = "auto") -> torch.device:
    """The device for inference: of several GPUs the one of this process, as Lightning and torchrun number them.

    Args:
        accelerator: as in `EngineConfig`; "auto" and "gpu" take a GPU if there is one.
    """
    if accelerator in ("auto", "gpu") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")
