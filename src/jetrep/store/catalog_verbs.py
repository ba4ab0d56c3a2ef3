"""The verbs ``datasets`` and ``download``: public data sets, from their names to files on disk."""

from __future__ import annotations

import json as json_format
import shlex
import sys
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from jetrep.errors import InputError, at_least
from jetrep.report.terminal import key_values
from jetrep.sources.cache import Folder, State
from jetrep.sources.catalog import DataSet, Split, data_set, data_sets
from jetrep.sources.download import fetch
from jetrep.sources.download import verify as verify_files
from jetrep.store.interrupt import orderly_termination

__all__ = ["datasets", "download"]

_WIDE = 150  # columns of the table where the output is not a terminal
_ROOM_FOR_ALL, _ROOM_FOR_CITE = 130, 104
_MOST_FILES = 24


def datasets(
    name: str | None = None, *, to: Path | None = None, all_files: bool = False, json: bool = False
) -> list[dict[str, Any]]:
    """List the public data sets: what they are, size, classes, licence, citation, and what of them is on this disk.

    Needs no network. Files are looked at, not hashed: jetrep download NAME --verify does that.

    Args:
        name: show one data set in detail, with its files, their checksums, and how to prepare it.
        to: folder of all data sets, if it is neither JETREP_DATA nor the platform's cache folder.
        all_files: list every file of the data set; without it the first of each split.
        json: print everything as JSON.

    Returns:
        for each data set its facts, "folder", and "files": name, split, record, checksum (None if it is taken from the
        record), where the checksum is from, and state.

    Raises:
        InputError: if there is no such data set.
    """
    chosen = list(data_sets().values()) if name is None else [data_set(name)]
    facts = [_facts(each, each.folder(to)) for each in chosen]
    if json:
        sys.stdout.write(json_format.dumps(facts, indent=1, ensure_ascii=False) + "\n")
        return facts
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDE)
    if name is None:
        console.print(_table(chosen, facts, console.width))
    else:
        console.print(_details(chosen[0], facts[0], None if all_files else _MOST_FILES))
    return facts


def download(
    name: str,
    *,
    split: Split = "all",
    files: list[str] | None = None,
    to: Path | None = None,
    mirror: str | None = None,
    jobs: int = 1,
    keep_archive: bool = False,
    verify: bool = False,
    quiet: bool = False,
) -> list[Path]:
    """Download a public data set; jetrep datasets lists them.

    What is there and right is left alone, partial files are resumed, and every file is verified by its checksum, then
    and, without a network, whenever it has changed on disk. Archives are unpacked. Files go to FOLDER/NAME/, where
    FOLDER is JETREP_DATA, or else the platform's cache folder.

    Args:
        name: name of the data set.
        split: only this part.
        files: only files with these names; * stands for any characters.
        to: folder of all data sets, in place of JETREP_DATA; other verbs find the files there only if JETREP_DATA names
            it.
        mirror: address of a server that has the same files under MIRROR/NAME/, such as a folder of all data sets that
            is served; JETREP_MIRROR if not given.
        jobs: files to download at once.
        keep_archive: keep archives after they are unpacked.
        verify: download nothing; hash the files that are there again, also those that have not changed.
        quiet: print nothing, show no progress.

    Returns:
        the files with jets, in order.

    Raises:
        InputError: if a file cannot be had, or is not what its checksum says. What was downloaded is kept.
    """
    at_least(1, jobs=jobs)
    chosen = data_set(name)
    folder = chosen.folder(to)
    with orderly_termination():
        if verify:
            return _verified(chosen, folder, split, files, to, quiet=quiet)
        done = fetch(
            chosen,
            split=split,
            patterns=files,
            to=to,
            mirror=mirror,
            keep_archive=keep_archive,
            jobs=jobs,
            quiet=quiet,
        )
    if not quiet:
        rows = {"downloaded": f"{len(done.fetched)} files", "there and right": f"{len(done.kept)} files"}
        rows["files with jets"] = f"{len(done.files):,}, {_gigabytes(sum(file.stat().st_size for file in done.files))}"
        rows["licence"] = _licence(chosen)
        rows["cite"] = ", ".join(chosen.cite)
        rows["next"] = _prepare(chosen, split, to)
        Console(soft_wrap=True).print(key_values(str(folder.path), rows))
    return done.files


def _verified(
    chosen: DataSet, folder: Folder, split: Split, files: list[str] | None, to: Path | None, *, quiet: bool
) -> list[Path]:
    """Hash what is there; the files that are right."""
    states = verify_files(chosen, split=split, patterns=files, to=to, quiet=quiet)
    if State.RIGHT not in states.values() and State.PACKED not in states.values():
        raise InputError(
            f"nothing of {chosen.name} is there that could be verified",
            file=folder.path,
            remedy=f"run jetrep download {chosen.name}",
        )
    if not quiet:
        rows = {str(state): f"{n} files" for state in State if (n := list(states.values()).count(state))}
        Console(soft_wrap=True).print(key_values(str(folder.path), rows))
    entries = chosen.select(folder, split, files)
    right = [entry for entry in entries if states[entry.name] is State.RIGHT]
    return [file for entry in right for file in folder.jets(entry.name, entry.unpack)]


def _facts(chosen: DataSet, folder: Folder) -> dict[str, Any]:
    """Everything that is known of a data set, for JSON."""
    entries = chosen.all_entries(folder)
    known = folder.checksums()
    listed = []
    for entry in entries:
        checksum = chosen.checksum(entry, folder)
        state = folder.state(entry.name, checksum, unpack=entry.unpack is not None, effort="glance")
        listed.append(
            {
                "name": entry.name,
                "split": entry.split or "train",
                "record": entry.record,
                "checksum": checksum,
                "checksum_from": entry.checksum_from,
                "bytes": known[entry.name].bytes if entry.name in known else None,
                "state": str(state),
            }
        )
    fields = ("name", "title", "what", "source", "jets", "classes", "gb", "gb_from", "licence", "licence_confirmed")
    more = ("licence_from", "cite", "url", "splits", "notes")
    facts = {field: getattr(chosen, field) for field in (*fields, *more)}
    return facts | {"prepare": _prepare(chosen), "folder": str(folder.path), "files": listed}


def _table(chosen: list[DataSet], facts: list[dict[str, Any]], width: int) -> RenderableType:
    columns = {
        "name": [Text(each.name, style="bold") for each in chosen],
        "what": [Text(each.what) for each in chosen],
        "jets": [Text(_short(each.jets)) for each in chosen],
        "classes": [Text(str(each.n_classes or "–")) for each in chosen],
        "size": [Text(_size(each, fact)) for each, fact in zip(chosen, facts, strict=True)],
        "licence": [Text(_licence(each)) for each in chosen],
        "cite": [Text("\n".join(each.cite)) for each in chosen],
        "here": [Text(_here(fact)) for fact in facts],
    }
    for left_out in ("what", "cite")[: (width < _ROOM_FOR_ALL) + (width < _ROOM_FOR_CITE)]:
        del columns[left_out]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="Public data sets", title_justify="left")
    for heading in columns:
        right = heading in ("jets", "classes", "size")
        table.add_column(heading, justify="right" if right else "left", no_wrap=heading != "what", overflow="fold")
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    notes = [f"here: files in {Path(facts[0]['folder']).parent}", "?: licence not read on the data set's own page"]
    if "what" not in columns:
        notes.append("a wider terminal shows more")
    return Group(table, Text("\n".join([*notes, "jetrep datasets NAME tells more"]), style="dim"))


def _details(chosen: DataSet, fact: dict[str, Any], most: int | None) -> RenderableType:
    classes = chosen.classes if isinstance(chosen.classes, int) else ", ".join(chosen.classes) or "none, unlabelled"
    confirmed = "" if chosen.licence_confirmed else "not read on its own page; "
    rows = {
        "what": chosen.what,
        "jets": _jets(chosen),
        "classes": str(classes),
        "size": _size(chosen, fact) + (f" ({chosen.gb_from})" if chosen.gb_from else ""),
        "licence": f"{chosen.licence} ({confirmed}{chosen.licence_from})",
        "cite": ", ".join(chosen.cite),
        "record": chosen.url,
        "splits": chosen.splits or "none: every file is train",
        "conventions": chosen.notes,
        "here": f"{_here(fact)} in {fact['folder']}",
        "download": f"jetrep download {chosen.name}",
        "prepare": fact["prepare"],
    }
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("split", "file", "checksum", "from", "here"):
        table.add_column(heading, overflow="fold")
    splits: dict[str, list[dict[str, Any]]] = {}
    for entry in fact["files"]:
        splits.setdefault(entry["split"], []).append(entry)
    for split, entries in splits.items():
        shown = entries[: max(1, most // len(splits))] if most else entries
        for entry in shown:
            checksum = entry["checksum"] or "asked for when it is downloaded"
            origin = entry["record"] if entry["checksum_from"] == "record" else entry["checksum_from"]
            table.add_row(split, entry["name"], checksum, origin, entry["state"])
        if len(shown) < len(entries):
            table.add_row(split, f"… {len(entries) - len(shown):,} more: --all-files", "", "", "")
    if not fact["files"]:
        table.add_row("train", "names are taken from the record", "asked for when they are downloaded", "", "")
    return Group(key_values(chosen.title, rows), table)


def _prepare(chosen: DataSet, split: Split = "all", to: Path | None = None) -> str:
    """The command that makes a store of it, of the training jets if all splits are there."""
    where = "" if to is None else f"JETREP_DATA={shlex.quote(str(to))} "
    if split in ("all", "train"):
        return f"{where}jetrep prepare {chosen.name} --out stores/{chosen.name}"
    return f"{where}jetrep prepare {chosen.name} --split {split} --out stores/{chosen.name}-{split}"


def _jets(chosen: DataSet) -> str:
    return "–" if chosen.jets is None else f"{chosen.jets:,}"


def _short(jets: int | None) -> str:
    """A number of jets in four characters or so."""
    if jets is None:
        return "–"
    return f"{jets / 1e6:.3g} M" if jets >= 1_000_000 else f"{jets / 1e3:.3g} k"


def _size(chosen: DataSet, fact: dict[str, Any]) -> str:
    """From the record, if it was asked for all files; else from the catalog."""
    sizes = [entry["bytes"] for entry in fact["files"]]
    if sizes and None not in sizes:
        return _gigabytes(sum(sizes))
    return "–" if chosen.gb is None else f"≈ {chosen.gb:g} GB"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


def _licence(chosen: DataSet) -> str:
    return chosen.licence if chosen.licence_confirmed or chosen.licence.startswith("see") else f"{chosen.licence} ?"


def _here(fact: dict[str, Any]) -> str:
    """How many of its files are there."""
    states = [entry["state"] for entry in fact["files"]]
    right = states.count(str(State.RIGHT))
    others = sum(state not in (State.RIGHT, State.ABSENT) for state in states)
    return f"{right}/{len(states) or '?'}" + (f", {others} not ready" if others else "")
