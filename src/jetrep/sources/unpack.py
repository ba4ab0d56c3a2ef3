"""Archives of jets, unpacked so that nothing is written outside of their folder, which is there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from jetrep.errors import InputError
from jetrep.sources.cache import BLOCK, MARKER, check_name

__all__ = ["unpack"]

_REMEDY = "do not use it, and tell its authors"


def unpack(archive: Path, folder: Path, checksum: str, advance: Callable[[int], object]) -> None:
    """Unpack a ``.tar``, ``.tar.gz``, ``.tar.bz2`` or ``.tar.xz`` file into a folder, which is replaced.

    Stricter than the "data" filter of `tarfile`: only plain files are written, with the permissions of new files;
    hidden ones are left out; names that lead out of the folder, links and devices are refused. Sizes and hashes of the
    members are kept in the folder, so that they can be verified after the archive is gone.

    Args:
        archive: the file, already found right.
        folder: where its members go.
        checksum: of the archive; kept with the members.
        advance: called with the number of bytes of every block of the archive that is read.

    Raises:
        InputError: if the archive is damaged or holds what it must not, or the disk is full. Nothing is left then.
    """
    building = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir(parents=True)
        with archive.open("rb") as raw:
            members = _members(archive, raw, building, advance)
        if not members:
            raise InputError("the archive holds no files", file=archive, remedy="download it again")
        marker = {"archive": archive.name, "checksum": checksum, "members": members}
        (building / MARKER).write_text(json.dumps(marker, indent=1), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        building.rename(folder)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as problem:
        raise InputError(
            f"the archive is damaged ({problem})", file=archive, remedy="remove it, and download again"
        ) from problem
    except OSError as problem:
        raise InputError(
            f"cannot be unpacked ({problem.strerror or problem})",
            file=archive,
            remedy="free space, or choose another folder with --to; the archive is kept",
        ) from problem
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _members(archive: Path, raw: IO[bytes], folder: Path, advance: Callable[[int], object]) -> dict[str, Any]:
    """Write the members; their sizes, times and hashes by name."""
    members: dict[str, Any] = {}
    # Read as a stream, once, from the first byte to the last.
    with tarfile.open(fileobj=cast(IO[bytes], _Counted(raw, advance)), mode="r|*", bufsize=BLOCK) as tar:
        for member in tar:
            name = str(PurePosixPath(member.name))
            if member.isdir():
                continue  # folders are made as files need them
            if not member.isfile():
                raise InputError(f"the archive holds a link or a device, {name!r}", file=archive, remedy=_REMEDY)
            parts = PurePosixPath(name).parts
            if ".." not in parts and any(part.startswith(".") for part in parts):
                continue
            check_name(name, origin=str(archive), folders=True)
            if name in members:
                raise InputError(f"the archive holds {name} twice", file=archive, remedy=_REMEDY)
            source = tar.extractfile(member)
            assert source is not None  # it is a file
            members[name] = _write(source, folder / name, member.size)
    return members


class _Counted:
    """A stream that tells of what is read from it."""

    def __init__(self, stream: IO[bytes], advance: Callable[[int], object]) -> None:
        self._stream, self._advance = stream, advance

    def read(self, size: int) -> bytes:
        block = self._stream.read(size)
        self._advance(len(block))
        return block


def _write(source: IO[bytes], file: Path, size: int) -> dict[str, Any]:
    file.parent.mkdir(parents=True, exist_ok=True)
    hasher = hashlib.sha256()
    with file.open("xb") as stream:
        while block := source.read(BLOCK):
            hasher.update(block)
            stream.write(block)
        stream.flush()
        os.fsync(stream.fileno())
    found = file.stat()
    if found.st_size != size:
        raise tarfile.ReadError("it ends too early")
    return {"bytes": size, "mtime_ns": found.st_mtime_ns, "sha256": hasher.hexdigest()}
