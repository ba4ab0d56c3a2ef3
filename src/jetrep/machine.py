"""What this process may use of the machine."""

from __future__ import annotations

__all__ = ["cores"]


def cores() -> int:
    """Cores that this process may use, by affinity and by the quota of its container."""
    import joblib  # slow to import, and not needed by who only looks at jets

    return int(joblib.cpu_count())
