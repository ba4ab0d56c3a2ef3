"""Where a number was made: versions and hardware, without names of hosts or users."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import jetrep
from jetrep.machine import cores
from jetrep.training.engine import EngineConfig

__all__ = ["distinct", "environment"]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


@cache
def _code() -> str:
    """The first digits of a hash of the package's source files, which change between two releases."""
    root, digest = Path(jetrep.__file__).parent, hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def environment(engine: EngineConfig | None = None) -> dict[str, Any]:
    """Versions of what computes, processor, cores, threads of this process, and accelerator.

    With an ``engine`` that is the one it asks for, and the precision is told too.
    """
    gpu = torch.cuda.is_available() and (engine is None or engine.accelerator != "cpu")
    packages = ("torch", "numpy", "numba", "lightning", "scikit-learn", "pythia8mc", "fastjet")
    return {
        "jetrep": jetrep.__version__,
        "code": _code(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "processor": _processor(),
        "cores": cores(),
        "torch_threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name(0) if gpu else None,
        **({} if engine is None else {"precision": engine.precision}),
    }


def distinct(environments: Iterable[dict[str, Any] | None]) -> list[dict[str, Any]]:
    """Those that differ, in the order in which they come; None stands for one that was not noted."""
    found: list[dict[str, Any]] = []
    for one in environments:
        if one is not None and one not in found:
            found.append(one)
    return found
