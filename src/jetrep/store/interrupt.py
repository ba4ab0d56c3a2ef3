"""An orderly end on SIGTERM: batch systems send it before they kill, and files must be cleaned up in between."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["orderly_termination"]


@contextmanager
def orderly_termination() -> Iterator[None]:
    """Within this block SIGTERM raises SystemExit(143), so that ``with`` and ``finally`` clean up as after Ctrl-C.

    Does nothing outside of the main thread, or where somebody else already handles SIGTERM.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
