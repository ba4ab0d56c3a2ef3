"""What this process may use of the machine."""

from __future__ import annotations

import joblib

__all__ = ["cores"]


def cores() -> int:
    """Cores that this process may use, by affinity and by the quota of its container."""
    return int(joblib.cpu_count())
