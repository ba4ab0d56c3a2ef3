"""Where a number was made: versions and hardware, without names of hosts or users."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from jetrep import __version__
from jetrep.machine import cores

__all__ = ["environment"]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def environment() -> dict[str, Any]:
    """Versions of what computes, processor, cores, threads and accelerator."""
    packages = ("torch", "numpy", "numba", "lightning", "scikit-learn", "pythia8mc", "fastjet")
    return {
        "jetrep": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "processor": _processor(),
        "cores": cores(),
        "torch_threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }
