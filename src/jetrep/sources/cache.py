"""Files of a data set on disk: where they are, which are known to be right, and how that is told without a network."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast

import pooch

from jetrep.errors import InputError
from jetrep.report.files import replacing

try:
    import fcntl
except ImportError:  # not a POSIX system: two downloads at once are then not kept apart
    fcntl = None  # type: ignore[assignment]

__all__ = ["FOLDER", "Folder", "Known", "State", "check_name", "data_folder", "hash_file", "natural"]

FOLDER = "JETREP_DATA"
"""Name of the environment variable with the folder of all data sets."""

PART, WRONG = ".part", ".wrong"
CHECKSUMS, VERIFIED, LOCK, MARKER = "checksums.json", ".verified.json", ".lock", ".unpacked.json"
BLOCK = 1 << 20

_CHECKSUM = re.compile(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}")
_NO_NAME = re.compile(r"[\x00-\x1f\x7f\\:*?\"<>|]")

Effort = Literal["glance", "check", "rehash"]


def data_folder(to: Path | None = None) -> Path:
    """The folder of all data sets: ``to``, else JETREP_DATA, else the platform's cache folder of jetrep."""
    return Path(to or os.environ.get(FOLDER) or pooch.os_cache("jetrep")).expanduser().absolute()


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """A key that sorts ``part10`` after ``part9``."""
    return tuple((int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split(r"(\d+)", name))


def check_name(name: object, *, origin: str, folders: bool = False) -> str:
    """A file name that came from elsewhere, if it stays within the folder into which it is written.

    Args:
        name: the name.
        origin: what it comes from, for the message.
        folders: whether it may be a path with folders.

    Raises:
        InputError: for absolute paths, ``..``, characters that are special on some system, and hidden files.
    """
    parts = PurePosixPath(name).parts if isinstance(name, str) else ()
    good = (
        isinstance(name, str)
        and bool(parts)
        and not name.startswith("/")
        and (folders or len(parts) == 1)
        and not any(part.startswith(".") or _NO_NAME.search(part) for part in parts)
    )
    if not good:
        raise InputError(
            f"holds a file of the name {name!r}, which could be written to another place or hide there",
            file=origin,
            remedy="do not use it, and tell its authors",
        )
    return cast(str, name)


def hash_file(file: Path, algorithm: str, advance: Callable[[int], object] | None = None) -> str:
    """The hash of a file, in hexadecimal digits.

    Args:
        file: the file.
        algorithm: "md5" or "sha256".
        advance: called with the number of bytes of every block.

    Raises:
        InputError: if the disk does not give the file.
    """
    hasher = hashlib.new(algorithm, usedforsecurity=False)
    try:
        with file.open("rb") as stream:
            while block := stream.read(BLOCK):
                hasher.update(block)
                if advance is not None:
                    advance(len(block))
    except OSError as problem:
        raise InputError(
            f"cannot be read ({problem.strerror or problem})", file=file, remedy="check the disk, or remove the file"
        ) from problem
    return hasher.hexdigest()


class State(StrEnum):
    """What is known of a file without the network."""

    ABSENT = "absent"
    PARTIAL = "partial"
    UNVERIFIED = "not verified"
    WRONG = "wrong"
    PACKED = "not unpacked"
    RIGHT = "right"


@dataclass(frozen=True)
class Known:
    """What a record says of a file.

    Attributes:
        checksum: "md5:…" or "sha256:…".
        bytes: its size, if the record tells.
        url: where it is, if the record tells.
        origin: the record's address.
    """

    checksum: str
    bytes: int | None = None
    url: str | None = None
    origin: str = ""

    @classmethod
    def read(cls, entry: object, *, name: str, origin: str) -> Known:
        """From JSON.

        Raises:
            InputError: if it has no checksum of a known kind.
        """
        fields = entry if isinstance(entry, dict) else {}
        checksum, size, url = (fields.get(key) for key in ("checksum", "bytes", "url"))
        if not isinstance(checksum, str) or not _CHECKSUM.fullmatch(checksum.lower()):
            raise InputError(
                f"gives no MD5 or SHA-256 of {name}", file=origin, remedy="try another server with --mirror"
            )
        return cls(
            checksum.lower(),
            size if isinstance(size, int) and not isinstance(size, bool) and size >= 0 else None,
            url if isinstance(url, str) and url.startswith(("https://", "http://")) else None,
            str(fields.get("origin") or origin),
        )


class Folder:
    """The folder of one data set.

    ``checksums.json`` holds what records said of the files; ``.verified.json`` the size and time of each file when its
    checksum was found right, so that a file is hashed again only if it has changed. An archive is unpacked into a
    folder of its name, with the sizes, times and hashes of its members in ``.unpacked.json``.

    Args:
        path: the folder; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writing = threading.Lock()
        self._known: dict[str, Known] | None = None
        self._approved: dict[str, Any] | None = None

    def file(self, name: str) -> Path:
        """Where the file of this name is, or would be."""
        return self.path / name

    def part(self, name: str) -> Path:
        """Where its first bytes are kept while it is being downloaded."""
        return self.path / (name + PART)

    def unpacked(self, name: str) -> Path:
        """The folder into which an archive is unpacked."""
        return self.path / re.sub(r"\.tar(\.\w+)?$|\.tgz$", "", name)

    def checksums(self) -> dict[str, Known]:
        """What records said of the files, by name.

        Raises:
            InputError: if the file with it is damaged.
        """
        if self._known is None:
            file = self.path / CHECKSUMS
            content = _json(file)
            if not isinstance(content, dict | None):
                raise InputError("is damaged", file=file, remedy="remove it, and download again")
            self._known = {
                check_name(name, origin=str(file)): Known.read(entry, name=name, origin=str(file))
                for name, entry in (content or {}).items()
            }
        return self._known

    def note(self, known: Mapping[str, Known]) -> None:
        """Keep what a record said."""
        with self._writing:
            together = self.checksums() | dict(known)
            _write(self.path / CHECKSUMS, {name: asdict(entry) for name, entry in together.items()})
            self._known = together

    def state(
        self,
        name: str,
        checksum: str | None,
        *,
        unpack: bool = False,
        effort: Effort = "check",
        advance: Callable[[int], object] | None = None,
    ) -> State:
        """What is known of a file, from this folder alone.

        Args:
            name: its name.
            checksum: "md5:…" or "sha256:…", or None if it is not known.
            unpack: whether it is an archive that is to be unpacked.
            effort: "glance" hashes nothing; "check" hashes files that changed since they were found right, or never
                were; "rehash" hashes all.
            advance: called with the number of bytes of every block that is hashed.
        """
        if unpack:
            members = self._members_state(name, checksum, effort, advance)
            # From an archive that was kept the members can be unpacked once more.
            if members is not State.ABSENT and not (members is State.WRONG and self.file(name).is_file()):
                return members
        file = self.file(name)
        if not file.is_file():
            return State.PARTIAL if self.part(name).is_file() else State.ABSENT
        if checksum is None:
            return State.UNVERIFIED
        right = State.PACKED if unpack else State.RIGHT
        if effort != "rehash" and self._receipts().get(name) == _receipt(file, checksum):
            return right
        if effort == "glance":
            return State.UNVERIFIED
        receipt = _receipt(file, checksum)
        if hash_file(file, checksum.partition(":")[0], advance) != checksum.partition(":")[2]:
            return State.WRONG
        self._approve({name: receipt})
        return right

    def approve(self, name: str, checksum: str) -> None:
        """Keep that a file is now as its checksum says."""
        self._approve({name: _receipt(self.file(name), checksum)})

    def _approve(self, receipts: Mapping[str, Any]) -> None:
        with self._writing, contextlib.suppress(InputError):  # a folder that cannot be written is hashed every time
            self._approved = self._receipts(fresh=True) | dict(receipts)
            _write(self.path / VERIFIED, self._approved)

    def _receipts(self, *, fresh: bool = False) -> dict[str, Any]:
        if self._approved is None or fresh:
            content = None
            with contextlib.suppress(InputError):  # damaged: everything is hashed once more
                content = _json(self.path / VERIFIED)
            self._approved = content if isinstance(content, dict) else {}
        return self._approved

    def _members_state(
        self, name: str, checksum: str | None, effort: Effort, advance: Callable[[int], object] | None
    ) -> State:
        folder = self.unpacked(name)
        marker = self.marker(name)
        if marker is None or (checksum is not None and marker["checksum"] != checksum):
            return State.ABSENT
        for member, entry in marker["members"].items():
            file = folder / member
            if not file.is_file():
                return State.WRONG
            found = file.stat()
            same = [found.st_size, found.st_mtime_ns] == [entry["bytes"], entry["mtime_ns"]]
            if same and effort != "rehash":
                continue
            if effort == "glance":
                return State.UNVERIFIED
            if found.st_size != entry["bytes"] or hash_file(file, "sha256", advance) != entry["sha256"]:
                return State.WRONG
        return State.RIGHT

    def marker(self, name: str) -> dict[str, Any] | None:
        """What was unpacked from an archive, or None if it was not, or that is not known any more."""
        try:
            content = _json(self.unpacked(name) / MARKER)
        except InputError:
            return None
        members = content.get("members") if isinstance(content, dict) else None
        if not isinstance(members, dict) or not isinstance(content.get("checksum"), str):
            return None
        for member, entry in members.items():
            check_name(member, origin=str(self.unpacked(name) / MARKER), folders=True)
            if not isinstance(entry, dict) or not {"bytes", "mtime_ns", "sha256"} <= set(entry):
                return None
        return cast(dict[str, Any], content)

    def jets(self, name: str, unpack: str | None) -> list[Path]:
        """The files with jets that a file stands for: itself, or the members of an archive that fit a pattern."""
        if unpack is None:
            return [self.file(name)]
        marker = self.marker(name) or {"members": {}}
        members = sorted(marker["members"], key=natural)
        return [self.unpacked(name) / member for member in members if fnmatchcase(Path(member).name, unpack)]

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Within this block no other process downloads into this folder; waits for one that does."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / LOCK).open("w")
        except OSError as problem:
            raise InputError(
                f"the folder cannot be written ({problem.strerror or problem})",
                file=self.path,
                remedy=f"choose another with --to or {FOLDER}",
            ) from problem
        with lock:
            if fcntl is not None:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    sys.stderr.write(f"jetrep: waiting for another download into {self.path}\n")
                    fcntl.flock(lock, fcntl.LOCK_EX)
                except OSError:  # a file system without locks
                    pass
            yield


def _receipt(file: Path, checksum: str) -> dict[str, Any]:
    found = file.stat()
    return {"checksum": checksum, "bytes": found.st_size, "mtime_ns": found.st_mtime_ns}


def _json(file: Path) -> Any:
    """The content of a JSON file, or None if there is no such file."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as problem:
        raise InputError(f"cannot be read ({problem})", file=file, remedy="remove it, and download again") from problem


def _write(file: Path, content: object) -> None:
    with replacing(file) as stream:
        stream.write(json.dumps(content, indent=1, sort_keys=True).encode() + b"\n")
