"""Writing a file so that its name never stands for half of it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from jetrep.errors import InputError

__all__ = ["check_writable", "replacing"]

_UMASK = os.umask(0)
os.umask(_UMASK)  # can only be read by setting it


def check_writable(folder: Path) -> None:
    """Whether files can be written to ``folder``, to be asked before long work; a missing folder is not made yet.

    Raises:
        InputError: if a file is in the way, or permissions are missing.
    """
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise InputError("is a file, not a folder", file=nearest, remedy="choose another folder with --out")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError("the folder cannot be written", file=nearest, remedy="choose another folder with --out")


@contextmanager
def replacing(file: Path) -> Iterator[IO[bytes]]:
    """A stream whose content becomes ``file`` when the block ends well; if it fails, ``file`` is as it was.

    Missing folders are made. The content is on disk before it gets its name.

    Raises:
        InputError: if the disk refuses.
    """
    temporary = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.stem}-", suffix=file.suffix)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_UMASK)  # mkstemp makes files that only their owner may read
        temporary.replace(file)
    except OSError as problem:
        raise InputError(
            f"the file cannot be written ({problem.strerror or problem})",
            file=file,
            remedy="free space or choose another folder",
        ) from problem
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
