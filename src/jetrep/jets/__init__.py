"""The two containers of the project: `Jets` (ragged, host, NumPy) and `JetBatch` (padded, device, torch)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jetrep.jets.ragged import Jets

if TYPE_CHECKING:
    from jetrep.jets.batch import JetBatch

__all__ = ["JetBatch", "Jets"]


def __getattr__(name: str) -> Any:
    """`JetBatch` on first use: host-side work, such as simulation, is spared the time in which torch starts."""
    if name == "JetBatch":
        from jetrep.jets.batch import JetBatch

        return JetBatch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
