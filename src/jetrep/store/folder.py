"""Folders that appear whole or not at all: names, locks and renames, and what the file system may refuse."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jetrep.errors import InputError
from jetrep.store.manifest import MANIFEST

__all__ = [
    "UnfinishedError",
    "check_target",
    "disk_errors",
    "locked",
    "mark",
    "publish",
    "put",
    "sync",
    "tidy_up",
    "write_json",
]

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UnfinishedError(InputError):
    """The work could not be done, through no fault of the input: what was finished so far is good."""


@contextmanager
def disk_errors(file: Path) -> Iterator[None]:
    """What the file system refuses, in the user's words.

    Raises:
        UnfinishedError: naming ``file``, for every OSError.
    """
    try:
        yield
    except OSError as problem:
        if problem.errno in _NO_SPACE:
            raise UnfinishedError(
                "the disk is full", file=file, remedy="free space or give a folder on another disk with --out"
            ) from problem
        raise UnfinishedError(
            f"cannot be written ({problem.strerror or problem})",
            file=file,
            remedy="give a folder that can be written with --out",
        ) from problem


def sync(path: Path) -> None:
    """Flush a file or folder to disk (folders cannot be opened everywhere; there the rename has to suffice)."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def mark() -> str:
    """A suffix that no other writer uses at the same time, on any machine."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


@contextmanager
def put(path: Path) -> Iterator[Path]:
    """A file that appears at ``path`` whole or not at all, replacing what is there.

    Yields:
        where to write; flushed to disk and renamed when the block ends, deleted if it ends by an exception.
    """
    new = path.with_name(f".{path.name}.{mark()}")
    try:
        yield new
        sync(new)
        new.replace(path)
        sync(path.parent)
    finally:
        new.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    with put(path) as new:
        new.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def check_target(out: Path, *, overwrite: bool) -> None:
    """Whether a store may be put at ``out``.

    Raises:
        InputError: if something is there that is no store, or a store that may not be replaced.
    """
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink():
        raise InputError("is in the way", file=out, remedy="give another folder with --out")
    if not any(out.iterdir()):
        return  # nothing is lost
    if not (out / MANIFEST).is_file():
        raise InputError(
            "exists and is no store, so it will not be replaced", file=out, remedy="give another folder with --out"
        )
    if not overwrite:
        raise InputError(
            "a store already stands there", file=out, remedy="give --overwrite or another folder with --out"
        )


def publish(folder: Path, out: Path, *, overwrite: bool) -> None:
    """Give a finished folder its name; an old store steps aside first, and returns if that fails."""
    check_target(out, overwrite=overwrite)
    old = out.with_name(f".{out.name}.replaced-{mark()}")
    try:
        if out.exists():
            out.rename(old)
        folder.rename(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        raise
    sync(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def tidy_up(out: Path) -> None:
    """Clear away what killed writers to the same place left, if they ran on this machine and run no more.

    An old store that one of them had moved aside, and not yet replaced, gets its name back.
    """
    host = re.escape(socket.gethostname())
    left = re.compile(rf"\.{re.escape(out.name)}\.(writing|replaced)-{host}-(\d+)-[0-9a-f]+")
    for folder in sorted(out.parent.iterdir()):
        match = left.fullmatch(folder.name)
        if match is None or _alive(int(match[2])):
            continue
        if match[1] == "replaced" and not out.exists():
            folder.rename(out)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def locked(out: Path, doing: str = "preparing this store") -> Iterator[None]:
    """Keep other processes from ``doing`` the same within this block.

    The operating system holds the lock and frees it when the process ends, however it ends. Where the file system
    knows no locks, the file itself is the lock, with the machine and process that made it; it counts until that process
    is seen to be gone.

    Raises:
        InputError: if another process, or another thread, holds it, or the folder cannot be written.
    """
    path = out.with_name(f".{out.name}.lock")
    with disk_errors(out):
        handle = _acquire(path, doing)
    try:
        yield
    finally:
        # Unlinked while it is still held, so that nobody locks a file that is about to lose its name.
        path.unlink(missing_ok=True)
        os.close(handle)


def _acquire(path: Path, doing: str) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            holder = os.pread(handle, 1000, 0).decode(errors="replace")
            if not _lock(handle, holder):
                machine, _, process = holder.strip().partition(" ")
                raise InputError(
                    f"process {process or '?'} on {machine or '?'} is {doing}",
                    file=path,
                    remedy="wait until it is done, stop it, or remove the file if there is no such process",
                )
            with suppress(FileNotFoundError):
                if os.fstat(handle).st_ino == path.stat().st_ino:
                    os.ftruncate(handle, 0)
                    os.pwrite(handle, f"{socket.gethostname()} {os.getpid()}\n".encode(), 0)
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # the former holder has just removed the file: once more


def _lock(handle: int, holder: str) -> bool:
    """Whether the lock could be taken; ``holder`` is who wrote the file."""
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # no locks on this file system
            pass
        else:
            return True
    machine, _, process = holder.strip().partition(" ")
    return not machine or (machine == socket.gethostname() and process.isdigit() and not _alive(int(process)))
