"""The manifest of a store: what the shards hold, how they were made, and the hashes that prove it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from jetrep.errors import InputError

__all__ = ["FORMAT", "MANIFEST", "SCHEMA", "Columns", "Manifest", "Shard", "content_hash", "file_hash"]

FORMAT = "jetrep-store"
SCHEMA = 2  # 2: columns beside the four-vectors, origin of each shard; a store of schema 1 is one without them
MANIFEST = "manifest.json"

_SHARD_NAME = re.compile(r"shard-\d{5,}\.arrow")
_PREPARE_AGAIN = "prepare the store again"

Columns = Mapping[str, Mapping[str, str]]
"""Of "measured" and "observers", the NumPy type of each column by its name."""


@dataclass(frozen=True)
class Shard:
    """One file of a store.

    Attributes:
        file: its name within the store.
        jets: number of jets.
        constituents: number of constituents of all its jets.
        bytes: size of the file.
        hash: XXH3-128 of the file, hexadecimal.
        origin: the rows that its jets were selected from, in order: (n, start, stop) stands for the rows
            ``start:stop`` of file number n of the provenance. Empty if they came from no files.
    """

    file: str
    jets: int
    constituents: int
    bytes: int
    hash: str
    origin: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` says.

    Attributes:
        jets: number of jets in the store.
        constituents: number of constituents.
        classes: names of the labels; empty if the jets are unlabelled.
        label_counts: jets of each class, in the order of ``classes``.
        dropped: jets that were read but not kept, by reason.
        algorithm: clustering algorithm of the merge histories.
        R: its radius parameter.
        shards: the files, in the order of the jets.
        provenance: source files with size and hash, settings, versions.
        created: time of writing, ISO 8601, UTC.
        content_hash: hash of the shards' hashes, the classes and the clustering: two stores with the same hash
            hold the same jets in the same order.
        measured: NumPy type of each measured column, by name; the same in all shards.
        observers: the same for the observers.
    """

    jets: int
    constituents: int
    classes: tuple[str, ...]
    label_counts: dict[str, int]
    dropped: dict[str, int]
    algorithm: str
    R: float
    shards: tuple[Shard, ...]
    created: str
    content_hash: str
    provenance: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, str] = field(default_factory=dict)
    observers: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The text of ``manifest.json``."""
        content = asdict(self)
        clustering = {"algorithm": content.pop("algorithm"), "R": content.pop("R")}
        head = {"format": FORMAT, "schema": SCHEMA, "content_hash": content.pop("content_hash")}
        return json.dumps({**head, **content, "clustering": clustering}, indent=1, default=str) + "\n"

    @classmethod
    def load(cls, store: Path) -> Manifest:
        """Read and check the manifest of the store in folder ``store``.

        Raises:
            InputError: if there is none, it is damaged, of a newer schema, or contradicts itself.
        """
        file = store / MANIFEST
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            what = "is no jetrep store: it has no manifest" if store.exists() else "does not exist"
            raise InputError(
                f"{what}", file=store, remedy="give the folder that `jetrep prepare` or `jetrep simulate` wrote"
            ) from None
        except OSError as problem:
            raise InputError(
                f"cannot be read ({problem.strerror})", file=file, remedy="check its permissions"
            ) from problem
        except (ValueError, RecursionError) as problem:
            raise InputError("the manifest is no valid JSON", file=file, remedy=_PREPARE_AGAIN) from problem
        _check_format(content, file)
        try:
            manifest = _parse(content)
        except (KeyError, TypeError, ValueError, AttributeError) as problem:
            raise InputError(
                f"the manifest is damaged ({_describe(problem)})", file=file, remedy=_PREPARE_AGAIN
            ) from problem
        _check_consistency(manifest, file)
        return manifest


def file_hash(path: Path) -> str:
    """XXH3-128 of a file's content, hexadecimal; reads in pieces, so that memory stays small."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def content_hash(shards: Iterable[Shard], classes: Iterable[str], algorithm: str, R: float) -> str:
    """Hash of everything that decides what a reader of the store gets."""
    text = json.dumps([[shard.hash for shard in shards], list(classes), algorithm, float(R)])
    return xxhash.xxh3_128_hexdigest(text.encode())


def _check_format(content: Any, file: Path) -> None:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(
            f"the manifest does not describe a {FORMAT}", file=file, remedy="give a folder written by jetrep"
        )
    schema = content.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise InputError(f"schema version {schema!r} is not a number", file=file, remedy=_PREPARE_AGAIN)
    if schema > SCHEMA:
        raise InputError(
            f"written by a newer jetrep (schema {schema} > {SCHEMA})",
            file=file,
            remedy="upgrade jetrep or prepare again",
        )


def _parse(content: dict[str, Any]) -> Manifest:
    """The manifest of a JSON object; KeyError, TypeError or ValueError name what is wrong."""
    shards = tuple(
        Shard(
            _shard_name(shard["file"]),
            _count(shard, "jets"),
            _count(shard, "constituents"),
            _count(shard, "bytes"),
            _text(shard, "hash"),
            tuple(_rows(rows) for rows in shard.get("origin", ())),
        )
        for shard in content["shards"]
    )
    classes = tuple(content["classes"])
    if not all(isinstance(name, str) for name in classes):
        raise TypeError("classes are not all text")
    return Manifest(
        jets=_count(content, "jets"),
        constituents=_count(content, "constituents"),
        classes=classes,
        label_counts={str(k): _count(content["label_counts"], k) for k in content["label_counts"]},
        dropped={str(k): _count(content["dropped"], k) for k in content["dropped"]},
        algorithm=_text(content["clustering"], "algorithm"),
        R=float(content["clustering"]["R"]),
        shards=shards,
        created=_text(content, "created"),
        content_hash=_text(content, "content_hash"),
        provenance=dict(content["provenance"]),
        measured={str(k): _text(columns, k) for columns in [content.get("measured", {})] for k in columns},
        observers={str(k): _text(columns, k) for columns in [content.get("observers", {})] for k in columns},
    )


def _count(record: dict[str, Any], key: str) -> int:
    value = record[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{key} is {value!r}, not a count")
    return value


def _text(record: dict[str, Any], key: str) -> str:
    if not isinstance(value := record[key], str):
        raise TypeError(f"{key} is {value!r}, not text")
    return value


def _rows(rows: Any) -> tuple[int, int, int]:
    file, start, stop = (_count({"origin": n}, "origin") for n in rows)
    return file, start, stop


def _shard_name(name: Any) -> str:
    # Only plain names, so that a manifest from elsewhere cannot point outside of its folder.
    if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name):
        raise ValueError(f"shard name {name!r}")
    return name


def _describe(problem: Exception) -> str:
    return f"no {problem}" if isinstance(problem, KeyError) else str(problem)


def _check_consistency(manifest: Manifest, file: Path) -> None:
    shards = manifest.shards
    pairs = [
        ("jets", manifest.jets, sum(shard.jets for shard in shards)),
        ("constituents", manifest.constituents, sum(shard.constituents for shard in shards)),
    ]
    if manifest.classes:
        pairs.append(("jets by label", sum(manifest.label_counts.values()), manifest.jets))
    for what, stated, found in pairs:
        if stated != found:
            raise InputError(f"the counts of {what} disagree ({stated} and {found})", file=file, remedy=_PREPARE_AGAIN)
    if manifest.classes and tuple(manifest.label_counts) != manifest.classes:
        raise InputError("classes and label counts disagree", file=file, remedy=_PREPARE_AGAIN)
    if not shards:
        raise InputError("the store has no shards", file=file, remedy=_PREPARE_AGAIN)
    expected = content_hash(shards, manifest.classes, manifest.algorithm, manifest.R)
    if manifest.content_hash != expected:
        raise InputError("the manifest was changed: its content hash disagrees", file=file, remedy=_PREPARE_AGAIN)
