"""Public data sets into a folder: what is there and right is left alone, the rest is fetched, verified and unpacked."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pooch
import requests
from tqdm import tqdm

from jetrep.errors import InputError
from jetrep.progress import progress
from jetrep.sources.cache import WRONG, Folder, Known, State, hash_file
from jetrep.sources.catalog import DataSet, Entry
from jetrep.sources.records import address_of, ask_mirror, ask_record, on_mirror, page_of
from jetrep.sources.transfer import Http, Stopped, Transfer
from jetrep.sources.unpack import unpack

__all__ = ["MIRROR", "Outcome", "fetch", "verify"]

MIRROR = "JETREP_MIRROR"
"""Name of the environment variable with the address of a mirror."""


@dataclass(frozen=True)
class Outcome:
    """What a download did.

    Attributes:
        files: the files with jets, in order.
        fetched: names of files that were downloaded.
        kept: names of files that were there and right.
    """

    files: list[Path]
    fetched: list[str]
    kept: list[str]


def fetch(
    chosen: DataSet,
    *,
    split: str = "all",
    patterns: Sequence[str] | None = None,
    to: Path | None = None,
    mirror: str | None = None,
    keep_archive: bool = False,
    jobs: int = 1,
    quiet: bool = False,
    http: Http | None = None,
) -> Outcome:
    """Download files of a data set, verify and unpack them.

    Args:
        chosen: the data set.
        split: "train", "val", "test" or "all".
        patterns: only files whose names fit one of these.
        to: folder of all data sets; see `jetrep.sources.cache.data_folder`.
        mirror: address of a server that is asked for the files in place of the record's own.
        keep_archive: keep archives after they are unpacked.
        jobs: files to download at once.
        quiet: show no progress.
        http: how servers are asked.

    Raises:
        InputError: if a file cannot be had, is not right, or the disk is full. What was downloaded stays.
    """
    http = replace(http or Http(), stop=threading.Event())
    mirror = _checked(mirror or os.environ.get(MIRROR) or None)
    folder = chosen.folder(to)
    with folder.locked(), _quiet_pooch():
        _sweep(folder)
        if chosen.unlisted and not folder.checksums():
            _learn(chosen, folder, list(chosen.unlisted), None, http, mirror)
        entries = chosen.select(folder, split, patterns)
        unknown = [entry for entry in entries if chosen.checksum(entry, folder) is None]
        if unknown:
            _learn(chosen, folder, list(dict.fromkeys(entry.record for entry in unknown)), unknown, http, mirror)
        bar = progress(description=f"{chosen.name}: 0/{len(entries)} files", unit="byte", total=0, quiet=quiet)
        with bar:
            fetched = _Work(chosen, folder, mirror, keep_archive, http, bar).run(entries, jobs)
        jets = [file for entry in entries for file in folder.jets(entry.name, entry.unpack)]
        return Outcome(jets, fetched, [entry.name for entry in entries if entry.name not in set(fetched)])


def verify(
    chosen: DataSet,
    *,
    split: str = "all",
    patterns: Sequence[str] | None = None,
    to: Path | None = None,
    quiet: bool = False,
) -> dict[str, State]:
    """Hash the files of a data set again, without the network.

    Damaged files are renamed to ``NAME.wrong``, so that the next download fetches them again.

    Returns:
        the state of each file, by name.

    Raises:
        InputError: if a file is damaged, naming expected and found checksum.
    """
    folder = chosen.folder(to)
    states: dict[str, State] = {}
    wrong: list[InputError] = []
    bar = progress(description=f"verifying {chosen.name}", unit="byte", quiet=quiet)
    with bar:
        for entry in chosen.select(folder, split, patterns):
            checksum = chosen.checksum(entry, folder)
            unpacked = entry.unpack is not None
            state = folder.state(entry.name, checksum, unpack=unpacked, effort="rehash", advance=bar.update)
            states[entry.name] = state
            if state is State.WRONG:
                wrong.append(_complaint(chosen, folder, entry, checksum))
    if wrong:
        others = f" ({len(wrong) - 1} more files are wrong too)" if len(wrong) > 1 else ""
        raise InputError(wrong[0].problem + others, file=wrong[0].file, remedy=wrong[0].remedy)
    return states


def _complaint(chosen: DataSet, folder: Folder, entry: Entry, checksum: str | None) -> InputError:
    """What is wrong with a damaged file, which is put aside."""
    remedy = f"run jetrep download {chosen.name} --files {entry.name}"
    file = folder.file(entry.name)
    if not file.is_file() or checksum is None:
        return InputError(
            "files that were unpacked are damaged or gone", file=folder.unpacked(entry.name), remedy=remedy
        )
    algorithm, _, expected = checksum.partition(":")
    found = hash_file(file, algorithm)
    aside = _put_aside(file)
    return InputError(
        f"{algorithm.upper()} is {found}, not {expected}; it is now called {aside.name}", file=file, remedy=remedy
    )


def _put_aside(file: Path) -> Path:
    aside = file.with_name(file.name + WRONG)
    file.replace(aside)
    return aside


def _checked(mirror: str | None) -> str | None:
    if mirror is not None and not re.match(r"https?://[^/\s]+", mirror):
        raise InputError(
            f"is '{mirror}'", field="mirror", remedy="give an address that begins with https:// or http://"
        )
    return mirror


def _learn(
    chosen: DataSet, folder: Folder, records: list[str], entries: list[Entry] | None, http: Http, mirror: str | None
) -> None:
    """Ask records for checksums, or a mirror, where records do not answer; keep what they say.

    Args:
        chosen: the data set.
        folder: its folder.
        records: the records.
        entries: files that they must know; None to keep what was said of all.
        http: how to ask.
        mirror: address of the mirror.
    """
    for record in records:
        try:
            # Behind a firewall the record will not answer, however often it is asked.
            known = ask_record(record, replace(http, attempts=1) if mirror else http)
        except InputError:
            if mirror is None:
                raise
            known = ask_mirror(mirror, chosen.name, http)
        if entries is not None:
            known = _only(known, [entry for entry in entries if entry.record == record])
        folder.note(known)


def _only(known: dict[str, Known], entries: list[Entry]) -> dict[str, Known]:
    for entry in entries:
        if entry.name not in known:
            raise InputError(
                f"the record holds no file of the name {entry.name}",
                file=page_of(entry.record),
                remedy="leave it out with --files, and tell the authors of jetrep that the record has changed",
            )
    return {entry.name: known[entry.name] for entry in entries}


class _Work:
    """Fetches files, some at once.

    Args:
        chosen: the data set.
        folder: its folder.
        mirror: address of the mirror.
        keep_archive: keep archives.
        http: how servers are asked.
        bar: the progress bar, of bytes.
    """

    def __init__(
        self, chosen: DataSet, folder: Folder, mirror: str | None, keep_archive: bool, http: Http, bar: tqdm[Any]
    ) -> None:
        self.chosen, self.folder, self.mirror, self.keep_archive = chosen, folder, mirror, keep_archive
        self.http, self.bar = http, bar
        self._done = 0
        self._fetched: list[str] = []

    def run(self, entries: list[Entry], jobs: int) -> list[str]:
        """Make all files right; names of those that had to be downloaded."""
        with ThreadPoolExecutor(max_workers=jobs, thread_name_prefix="download") as pool:
            futures: list[Future[None]] = [pool.submit(self._one, entry, len(entries)) for entry in entries]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
                self._raise_first(futures)
            except BaseException as problem:
                # Ctrl-C and SIGTERM come here, in the main thread: the others close their files first.
                self.http.stop.set()
                for future in futures:
                    future.cancel()
                pool.shutdown(wait=True)
                if not isinstance(problem, Exception):
                    self._tell_of_parts(entries)
                raise
        return sorted(self._fetched, key=[entry.name for entry in entries].index)

    def _raise_first(self, futures: list[Future[None]]) -> None:
        problems = [problem for future in futures if future.done() and (problem := future.exception()) is not None]
        for problem in sorted(problems, key=lambda problem: isinstance(problem, Stopped)):
            raise problem

    def _tell_of_parts(self, entries: list[Entry]) -> None:
        parts = [part for entry in entries if (part := self.folder.part(entry.name)).is_file()]
        for part in parts:
            sys.stderr.write(f"\njetrep: {part.stat().st_size / 1e6:,.1f} MB are kept in {part}\n")

    def _one(self, entry: Entry, n: int) -> None:
        try:
            self.http.check_stop()
            self._make_right(entry, n)
        except BaseException:
            self.http.stop.set()  # before this thread can begin with another file
            raise

    def _make_right(self, entry: Entry, n: int) -> None:
        checksum = self.chosen.checksum(entry, self.folder)
        assert checksum is not None  # the record was asked for it
        file = self.folder.file(entry.name)
        unpacked = entry.unpack is not None
        state = self.folder.state(entry.name, checksum, unpack=unpacked, advance=self._read)
        if state is State.WRONG and file.is_file():
            aside = _put_aside(file)
            sys.stderr.write(f"jetrep: the checksum of {file} is wrong; it is now called {aside.name}\n")
        if state not in (State.RIGHT, State.PACKED):
            self._download(entry, checksum)
            self._fetched.append(entry.name)
            file.with_name(file.name + WRONG).unlink(missing_ok=True)
        if unpacked and state is not State.RIGHT:
            unpack(file, self.folder.unpacked(entry.name), checksum, self._read)
        if unpacked and not self.keep_archive:
            file.unlink(missing_ok=True)
        self._done += 1
        self.bar.set_description(f"{self.chosen.name}: {self._done}/{n} files")

    def _read(self, n: int) -> None:
        """So many bytes were read from the disk."""
        self.http.check_stop()
        self.bar.total = (self.bar.total or 0) + n
        self.bar.update(n)

    def _download(self, entry: Entry, checksum: str) -> None:
        """One file, through `pooch`, which verifies what is on the disk."""
        url, part = self._address(entry), self.folder.part(entry.name)
        registry = pooch.create(self.folder.path, base_url="", registry={entry.name: checksum}, urls={entry.name: url})
        try:
            registry.fetch(entry.name, downloader=Transfer(self.http, part, checksum, self.bar, entry.name))
        except ValueError as problem:
            raise InputError(
                f"was received well, but is not on the disk as it was received ({problem})",
                file=self.folder.file(entry.name),
                remedy="check the disk, or choose another folder with --to",
            ) from problem
        except requests.RequestException as problem:
            raise InputError(f"cannot be downloaded ({problem})", file=url, remedy="check the network") from problem
        part.unlink(missing_ok=True)
        self.folder.approve(entry.name, checksum)

    def _address(self, entry: Entry) -> str:
        if self.mirror is not None:
            return on_mirror(self.mirror, self.chosen.name, entry.name)
        known = self.folder.checksums().get(entry.name)
        return (known.url if known else None) or address_of(entry.record, entry.name)


def _sweep(folder: Folder) -> None:
    """Remove what a download that was killed has left: files that pooch was about to name."""
    for file in folder.path.iterdir():
        if re.fullmatch(r"tmp[a-z0-9_]{8}", file.name) and file.is_file():
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def _quiet_pooch() -> Iterator[None]:
    """Within this block pooch logs only what is wrong: the progress bar tells the rest."""
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
