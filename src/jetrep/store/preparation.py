"""From files to a store in a work folder that outlives an accident, and the last step, by which the store appears."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import xxhash

from jetrep.errors import InputError
from jetrep.store.build import check_columns
from jetrep.store.folder import disk_errors, mark, publish, put, sync
from jetrep.store.manifest import MANIFEST, Columns, Manifest, Shard, file_hash
from jetrep.store.parts import Job, Record, identity, versions
from jetrep.store.writer import manifest_of, shard_name

__all__ = ["add_to_store", "clear", "differences", "file_entry", "new_store", "work_folder"]


@contextmanager
def work_folder(out: Path, key: dict[str, Any], tell: Callable[[str], None]) -> Iterator[Path]:
    """The folder in which the parts of a store wait for each other; call it under the lock of `folder.locked`.

    Its name follows from ``key``, so the same command finds it again, and a process that outlived another command
    cannot write to it. It is removed when the block ends well, and also otherwise if no part is finished.

    Args:
        out: the store.
        key: everything that decides what is in a part.
        tell: prints a line.

    Yields:
        the folder.

    Raises:
        InputError: if it cannot be made.
    """
    text = json.dumps(key, sort_keys=True, default=str)
    folder = out.with_name(f".{out.name}.preparing-{xxhash.xxh3_64_hexdigest(text.encode())}")
    with disk_errors(out):
        if clear(out, but=folder):
            tell("removed unfinished work of a command with other settings or files")
        folder.mkdir(exist_ok=True)
    try:
        yield folder
    except BaseException:
        n = len(list(folder.glob("part-*.json")))
        if n:
            tell(f"{n} finished part{'s' * (n > 1)} kept in {folder}; the same command goes on from there")
        else:
            _remove(folder, out)
        raise
    _remove(folder, out)


def clear(out: Path, but: Path | None = None) -> int:
    """Remove the work folders of a store, ``but`` this one; returns how many there were."""
    ours = re.compile(rf"\.{re.escape(out.name)}\.preparing-[0-9a-f]{{16}}")
    found = [path for path in out.parent.iterdir() if ours.fullmatch(path.name) and path != but]
    for path in found:
        _remove(path, out)
    return len(found)


def _remove(folder: Path, out: Path) -> None:
    """Remove a work folder to which workers may still write: parts that turned out not to be needed are not waited for.

    It loses its name first, so nothing can be put into it while it is emptied; `tidy_up` knows the new name.
    """
    nameless = out.with_name(f".{out.name}.writing-{mark()}")
    with suppress(OSError):
        folder.rename(nameless)
        shutil.rmtree(nameless, ignore_errors=True)


def file_entry(file: Path, digest: str | None = None) -> dict[str, Any]:
    """What the provenance says about a file; its hash is computed if it is not known."""
    return {"file": file.name, "bytes": file.stat().st_size, "hash": digest or file_hash(file)}


def _files(job: Job, records: Sequence[Record]) -> list[dict[str, Any]]:
    """Provenance of the files that were read, each of which must still be what it was."""
    digests: dict[int, str] = {}
    facts: dict[int, tuple[int, int]] = {}
    for record in records:
        digests |= record.hashes
        for (file, _, _), seen in zip(record.spans, record.files, strict=True):
            if facts.setdefault(file, seen) != seen or identity(job.source.files[file]) != seen:
                raise InputError(
                    "changed while it was read",
                    file=job.source.files[file],
                    remedy="leave files alone while they are prepared, and prepare again",
                )
    last = max((file for record in records for file, _, _ in record.spans), default=-1)
    return [file_entry(job.source.files[i], digests.get(i)) for i in range(last + 1)]


def _columns(job: Job, records: Sequence[Record], before: Columns | None = None) -> Columns | None:
    """The columns of all parts, which must agree."""
    for record in records:
        if record.columns is not None:
            before = before or record.columns
            check_columns(before, record.columns, job.source.files[record.spans[0][0]])
    return before


def _sums(job: Job, records: Sequence[Record], *, whole: bool) -> tuple[list[int], Counter[str]]:
    """Jets of each class, and dropped jets by reason; no row and no jet may be lost or counted twice."""
    labels, dropped = [0] * len(job.classes), Counter[str]()
    rows, file, at = job.source.rows, 0, 0
    for record in records:
        if record.read != record.jets + sum(record.dropped.values()) or (
            labels and sum(record.label_counts) != record.jets
        ):
            raise AssertionError(f"part {record.number} does not account for every jet")
        for span in record.spans:
            while at == rows[file]:
                file, at = file + 1, 0
            if span[:2] != (file, at):
                raise AssertionError(f"part {record.number} begins at {span[:2]} instead of {(file, at)}")
            at = span[2]
        labels = [a + b for a, b in zip(labels, record.label_counts, strict=True)]
        dropped.update(record.dropped)
    if whole and sum(span[2] - span[1] for record in records for span in record.spans) != sum(rows):
        raise AssertionError("not all rows were read")
    return labels, dropped


def _take_over(job: Job, records: Sequence[Record], target: Path, *, number: int, file: int) -> list[Shard]:
    """Give the shards of the parts a second name in ``target``, numbered from ``number`` on, files from ``file`` on."""
    shards: list[Shard] = []
    for record in records:
        if record.shard is None:
            continue
        name = shard_name(number + len(shards))
        source = job.folder / record.shard.file
        if source.stat().st_size != record.shard.bytes:
            raise InputError(
                "was changed or is not complete", file=source, remedy="use a folder that all workers see alike"
            )
        try:
            os.link(source, target / name)
        except OSError:  # not every file system knows second names; then the part is made again after an accident
            source.replace(target / name)
        origin = tuple((i + file, start, stop) for i, start, stop in record.spans)
        shards.append(replace(record.shard, file=name, origin=origin))
    sync(target)
    return shards


def new_store(
    job: Job, records: Sequence[Record], provenance: dict[str, Any], *, whole: bool, overwrite: bool
) -> Manifest:
    """Turn finished parts into a store, which appears whole or not at all.

    Args:
        job: what the parts have in common.
        records: the parts, in order.
        provenance: for the manifest; files are added to it.
        whole: the parts must be all rows of all files.
        overwrite: replace a store that already stands there.

    Raises:
        InputError: if there are no jets, files changed meanwhile, columns differ, or the disk is full.
    """
    labels, dropped = _sums(job, records, whole=whole)
    columns = _columns(job, records)
    files = _files(job, records)
    target = job.folder / "store"
    with disk_errors(job.out / MANIFEST):
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        shards = _take_over(job, records, target, number=0, file=0)
        manifest = manifest_of(
            shards,
            out=job.out,
            classes=job.classes,
            label_counts=labels,
            dropped=dropped,
            columns=columns,
            algorithm=job.algorithm,
            R=job.R,
            provenance={**provenance, "files": files},
        )
        with put(target / MANIFEST) as new:
            new.write_text(manifest.to_json(), encoding="utf-8")
        publish(target, job.out, overwrite=overwrite)
    return manifest


def add_to_store(job: Job, records: Sequence[Record], base: Manifest) -> Manifest:
    """Add finished parts to the store at ``job.out``; until the manifest is replaced, it is what it was.

    Args:
        job: what the parts have in common.
        records: the parts.
        base: the manifest as it stands.

    Raises:
        InputError: as for `new_store`, or if the columns are not those of the store.
    """
    labels, dropped = _sums(job, records, whole=True)
    _columns(job, records, {"measured": base.measured, "observers": base.observers})
    files = _files(job, records)
    known = {shard.file for shard in base.shards} | {MANIFEST}
    number = 1 + max(int(shard.file.removeprefix("shard-").removesuffix(".arrow")) for shard in base.shards)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    before = base.provenance.get("files", [])
    addition = {"created": now, "first_file": len(before), "versions": versions()}
    with disk_errors(job.out / MANIFEST):
        for path in job.out.iterdir():
            if path.name not in known and (path.suffix == ".arrow" or path.name.startswith(f".{MANIFEST}.")):
                path.unlink()  # of an addition that was killed
        shards = [*base.shards, *_take_over(job, records, job.out, number=number, file=len(before))]
        manifest = manifest_of(
            shards,
            out=job.out,
            classes=base.classes,
            label_counts=[a + b for a, b in zip(base.label_counts.values(), labels, strict=True)],
            dropped=Counter(base.dropped) + dropped,
            columns={"measured": base.measured, "observers": base.observers},
            algorithm=base.algorithm,
            R=base.R,
            provenance={
                **base.provenance,
                "files": [*before, *files],
                "additions": [*base.provenance.get("additions", []), addition],
            },
        )
        with put(job.out / MANIFEST) as new:
            new.write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def differences(base: Manifest, provenance: dict[str, Any], classes: Sequence[str]) -> list[str]:
    """What keeps jets of this provenance from being added to a store, in words."""
    told, own = base.provenance.get("settings", {}), json.loads(json.dumps(provenance["settings"]))
    found = [
        f"{name} is {told.get(name)} there and {own.get(name)} here"
        for name in dict.fromkeys([*own, *told])
        if told.get(name) != own.get(name) and name != "overwrite"  # noted by earlier versions
    ]
    if base.provenance.get("settings_files", []) != provenance.get("settings_files", []):
        found.append("the files that settings name have other contents")
    if base.classes != tuple(classes):
        there, here = (", ".join(names) or "none" for names in (base.classes, classes))
        found.append(f"the classes are {there} there and {here} here")
    return found
