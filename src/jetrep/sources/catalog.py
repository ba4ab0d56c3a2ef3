"""The catalog of public data sets: what each is, under which licence, and its files with their checksums."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from jetrep.errors import InputError
from jetrep.progress import progress
from jetrep.sources.cache import Folder, State, data_folder, natural

__all__ = ["CATALOG", "SPLITS", "DataSet", "Entry", "Split", "cached_files", "data_set", "data_sets"]

CATALOG = "catalog.yaml"
"""The file beside this module with the facts."""

Split = Literal["train", "val", "test", "all"]
SPLITS: tuple[str, ...] = get_args(Split)

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class Entry:
    """A file of a data set.

    Attributes:
        name: its name, in the record and on disk.
        record: "zenodo:ID", "fdr:ID" or "huggingface:OWNER/NAME".
        split: "train", "val" or "test"; None if the data set has no split.
        md5: its MD5 in hexadecimal digits, or None if the catalog does not know it.
        checksum_from: the public source of the MD5; "record" if checksums are taken from the record when the file is
            downloaded.
        unpack: if the file is an archive, the pattern of those of its members that hold jets.
    """

    name: str
    record: str
    split: str | None
    md5: str | None
    checksum_from: str
    unpack: str | None = None


@dataclass(frozen=True)
class DataSet:
    """A public data set.

    Attributes:
        name: its name here, and that of its folder.
        title: its name elsewhere.
        what: one line.
        source: the kind of its files, a key of `jetrep.sources.registry.SOURCES`.
        jets: how many there are, or None if that is not published.
        classes: names of the classes, or only their number; empty if the jets are unlabelled.
        gb: size of all files in 10⁹ bytes, or None if it is not known before the record is asked.
        gb_from: where the size is from.
        licence: SPDX name, or "see the record".
        licence_confirmed: whether the licence was read on the data set's own page.
        licence_from: where it was read.
        cite: what to cite, as doi:… and arXiv:….
        url: the page of the record.
        splits: who made the split into train, val and test; None if there is none.
        notes: conventions: order of components, signs, units, traps.
        entries: the files that the catalog knows, in order.
        unlisted: for each record whose file names are not in the catalog, the patterns of the files with jets.
    """

    name: str
    title: str
    what: str
    source: str
    jets: int | None
    classes: tuple[str, ...] | int
    gb: float | None
    gb_from: str | None
    licence: str
    licence_confirmed: bool
    licence_from: str
    cite: tuple[str, ...]
    url: str
    splits: str | None
    notes: str
    entries: tuple[Entry, ...]
    unlisted: Mapping[str, tuple[str, ...]]

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return self.classes if isinstance(self.classes, int) else len(self.classes)

    def folder(self, to: Path | None = None) -> Folder:
        """Its folder, in ``to`` or in the folder of all data sets."""
        return Folder(data_folder(to) / self.name)

    def all_entries(self, folder: Folder) -> list[Entry]:
        """All files: those of the catalog, and those that a record has told of before."""
        entries = list(self.entries)
        if self.unlisted:
            names = sorted(folder.checksums(), key=natural)
            for record, patterns in self.unlisted.items():
                fitting = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
                entries += [Entry(name, record, None, None, "record") for name in fitting]
        return entries

    def select(self, folder: Folder, split: str = "all", patterns: Sequence[str] | None = None) -> list[Entry]:
        """The files of a split whose names fit one of the patterns, in order.

        In a data set without a split every file belongs to "train".

        Raises:
            InputError: if the data set has no such split, or a pattern fits no file.
        """
        if split not in SPLITS:
            raise InputError(f"is '{split}'", field="split", remedy=f"give one of {', '.join(SPLITS)}")
        entries = self.all_entries(folder)
        if split != "all":
            chosen = [entry for entry in entries if (entry.split or "train") == split]
            if not chosen and not (self.unlisted and split == "train"):
                has = sorted({entry.split or "train" for entry in entries}, key=SPLITS.index)
                why = "" if self.splits else "; its authors made no split: divide the jets yourself"
                raise InputError(
                    f"{self.name} has no split '{split}'{why}",
                    field="split",
                    remedy=f"give one of {', '.join([*has, 'all'])}",
                )
            entries = chosen
        for pattern in patterns or ():
            if not any(fnmatchcase(entry.name, pattern) for entry in entries):
                some = ", ".join(entry.name for entry in entries[:3])
                raise InputError(
                    f"'{pattern}' fits no file of {self.name}",
                    field="files",
                    remedy=f"give names or patterns; there are {some} …" if some else "download without it once",
                )
        if patterns:
            entries = [entry for entry in entries if any(fnmatchcase(entry.name, pattern) for pattern in patterns)]
        return entries

    def checksum(self, entry: Entry, folder: Folder) -> str | None:
        """Checksum of a file, from the catalog or from what its record said before; None if neither tells."""
        if entry.md5 is not None:
            return f"md5:{entry.md5}"
        known = folder.checksums().get(entry.name)
        return None if known is None else known.checksum


def data_sets() -> Mapping[str, DataSet]:
    """All data sets, by name."""
    return _load()


def data_set(name: str) -> DataSet:
    """The data set of this name.

    Raises:
        InputError: if there is none.
    """
    known = data_sets()
    if name not in known:
        raise InputError(f"no data set is called '{name}'", field="name", remedy=f"give one of {', '.join(known)}")
    return known[name]


def cached_files(name: str, split: str = "train") -> list[Path]:
    """The files with the jets of a data set that was downloaded, in order; the network is not used.

    Each was found right by its checksum, and has not changed since; those for which that is not known are hashed now.
    Archives are given as the files that were unpacked from them.

    Args:
        name: of the data set.
        split: "train", "val", "test" or "all". In a data set without a split all files are "train".

    Raises:
        InputError: if a file is missing, damaged, or was never verified; if there is no such data set or split.
    """
    chosen = data_set(name)
    folder = chosen.folder()
    entries = chosen.select(folder, split)
    remedy = f"run jetrep download {name}" + ("" if split == "all" else f" --split {split}")
    if not entries:
        raise InputError(f"{name} is not there", file=folder.path, remedy=remedy)
    found: list[Path] = []
    with progress(description=f"verifying {name}", unit="byte") as bar:
        for entry in entries:
            checksum = chosen.checksum(entry, folder)
            state = folder.state(entry.name, checksum, unpack=entry.unpack is not None, advance=bar.update)
            if state is not State.RIGHT:
                raise InputError(_WHY[state], file=folder.file(entry.name), remedy=remedy)
            jets = folder.jets(entry.name, entry.unpack)
            if not jets:
                raise InputError(
                    f"holds no files {entry.unpack}", file=folder.unpacked(entry.name), remedy="name the files yourself"
                )
            found += jets
    return found


_WHY = {
    State.ABSENT: "is not there",
    State.PARTIAL: "is there only in part",
    State.UNVERIFIED: "is there, but its checksum is not known yet",
    State.WRONG: "is damaged: its checksum is wrong",
    State.PACKED: "is not unpacked yet",
}


@cache
def _load() -> Mapping[str, DataSet]:
    text = (files("jetrep.sources") / CATALOG).read_text(encoding="utf-8")
    # The parser in C, where there is one, is ten times faster.
    content = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return {name: _data_set(name, fields) for name, fields in content["datasets"].items()}


def _data_set(name: str, fields: dict[str, Any]) -> DataSet:
    groups = fields.pop("files")
    unlisted = {group["record"]: tuple(group["names"]) for group in groups if group.get("names_from") == "record"}
    entries = [entry for group in groups if "names_from" not in group for entry in _entries(group)]
    classes = fields.pop("classes")
    return DataSet(
        name=name,
        classes=classes if isinstance(classes, int) else tuple(classes),
        cite=tuple(fields.pop("cite")),
        gb_from=fields.pop("gb_from", None),
        entries=tuple(entries),
        unlisted=unlisted,
        **fields,
    )


def _entries(group: dict[str, Any]) -> list[Entry]:
    common = {"record": group["record"], "split": group.get("split"), "unpack": group.get("unpack")}
    if "md5" in group:
        return [Entry(name, md5=md5, checksum_from=group["md5_from"], **common) for name, md5 in group["md5"].items()]
    names = [name for pattern in group["names"] for name in _numbered(pattern)]
    return [Entry(name, md5=None, checksum_from=group["checksum_from"], **common) for name in names]


def _numbered(pattern: str) -> list[str]:
    """The names for which a pattern with ``{first..last}`` stands."""
    span = _RANGE.search(pattern)
    if span is None:
        return [pattern]
    first, last = span[1], span[2]
    numbers = (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
    return [pattern[: span.start()] + number + pattern[span.end() :] for number in numbers]
