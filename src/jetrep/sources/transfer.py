"""Files over HTTP: partial files are resumed, busy servers are asked again, and every failure says what to do.

`pooch` looks after names, checksums and places of files, and calls `Transfer` for what its own downloaders lack.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

import requests
from urllib3.exceptions import HTTPError

from jetrep import __version__
from jetrep.errors import InputError, JetrepError
from jetrep.sources.cache import BLOCK

__all__ = ["Http", "Progress", "Stopped", "Transfer"]

T = TypeVar("T")

_BUSY = (408, 425, 429, 500, 502, 503, 504)
_HEADERS = {"User-Agent": f"jetrep/{__version__}", "Accept-Encoding": "identity"}
_MIRROR = "check the network, or name another server with --mirror"
_PIECE = 1 << 16  # a piece that is not whole when the server falls silent is lost
_PROGRESS = 1 << 20  # so many new bytes, and the count of failures begins anew


class Stopped(JetrepError):  # noqa: N818 - no fault
    """Another transfer failed, or the user asked to stop."""


class _Again(Exception):  # noqa: N818
    """The attempt failed in a way that another may not.

    Args:
        reason: what happened.
        wait: seconds for which the server asks to wait, if it does.
        progress: whether the attempt brought something.
    """

    def __init__(self, reason: str, *, wait: float | None = None, progress: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.progress = wait, progress


class Progress(Protocol):
    """What a transfer tells of itself: `tqdm` bars do."""

    total: float | None

    def update(self, n: float = 1) -> object:
        """So many more bytes."""
        ...


@dataclass(frozen=True)
class Http:
    """How servers are asked.

    Attributes:
        attempts: how often in a row a request may fail before it is given up. An attempt that brought a mebibyte or
            more does not count.
        first_wait: seconds before the second attempt; doubled for every further one.
        longest_wait: seconds; a server that asks for more is left alone.
        connect_timeout: seconds to reach a server.
        read_timeout: seconds without a byte.
        wait: waits so many seconds; by default until `stop` is set, if that is earlier.
        stop: when set, transfers stop.
    """

    attempts: int = 6
    first_wait: float = 1.0
    longest_wait: float = 120.0
    connect_timeout: float = 15.0
    read_timeout: float = 60.0
    wait: Callable[[float], object] | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    def persistently(self, url: str, attempt: Callable[[], T]) -> T:
        """The result of ``attempt``, which is repeated after failures that may pass.

        Raises:
            InputError: if it fails too often in a row, or the server wants to be left alone for long.
        """
        failures = 0
        while True:
            try:
                return attempt()
            except _Again as problem:
                failures = 1 if problem.progress else failures + 1
                wait = min(self.first_wait * 2 ** (failures - 1), self.longest_wait)
                if problem.wait is not None and problem.wait > self.longest_wait:
                    raise InputError(
                        f"{problem}, and to be left alone for {problem.wait:.0f} s",
                        file=url,
                        remedy="give the same command later: it goes on where it was",
                    ) from problem
                if failures >= self.attempts:
                    often = f", {failures} times in a row" if failures > 1 else ""
                    raise InputError(f"{problem}{often}", file=url, remedy=_MIRROR) from problem
                (self.wait or self.stop.wait)(wait if problem.wait is None else problem.wait)
            self.check_stop()

    def check_stop(self) -> None:
        """Raise `Stopped` if transfers are to stop."""
        if self.stop.is_set():
            raise Stopped("stopped")

    def get(self, url: str, headers: dict[str, str] | None = None) -> requests.Response:
        """The head of the server's answer; its content is streamed.

        Raises:
            InputError: if there is no such file, or the server will not give it.
            _Again: if the server is busy or cannot be reached.
        """
        try:
            response = requests.get(
                url,
                headers=_HEADERS | (headers or {}),
                stream=True,
                timeout=(self.connect_timeout, self.read_timeout),
            )
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, UnicodeError) as problem:
            raise InputError(f"is no address of a file ({problem})", file=url, remedy="check --mirror") from problem
        except requests.RequestException as problem:
            raise _Again(f"does not answer ({_reason(problem)})") from problem
        code = response.status_code
        if code in (200, 206, 416):
            return response
        with response:
            if code in (404, 410):
                raise InputError(f"there is no such file (status {code})", file=url, remedy=_MIRROR)
            if code in _BUSY:
                raise _Again(f"the server asks to come again (status {code})", wait=_retry_after(response))
            raise InputError(f"the server will not give this file (status {code})", file=url, remedy=_MIRROR)

    def json(self, url: str) -> tuple[Any, str | None]:
        """A JSON document, and the address of the next page, if there is one.

        Raises:
            InputError: if it cannot be had, or is not JSON.
        """

        def attempt() -> tuple[Any, str | None]:
            with self.get(url, {"Accept": "application/json"}) as response:
                try:
                    content = response.content
                except (requests.RequestException, HTTPError) as problem:
                    raise _Again(f"broke off ({_reason(problem)})") from problem
                try:
                    return json.loads(content), response.links.get("next", {}).get("url")
                except ValueError as problem:
                    raise InputError("the answer is not JSON", file=url, remedy=_MIRROR) from problem

        return self.persistently(url, attempt)


class Transfer:
    """One file from a server into a partial file, and from there to `pooch`, which calls this as its downloader.

    Args:
        http: how servers are asked.
        part: the partial file. It stays when the transfer is stopped or fails, and the next one goes on there.
        checksum: "md5:…" or "sha256:…".
        bar: told of every block.
        name: the file, for messages.
    """

    def __init__(self, http: Http, part: Path, checksum: str, bar: Progress, name: str) -> None:
        self.http, self.part, self.bar, self.name = http, part, bar, name
        self.algorithm, _, self.expected = checksum.partition(":")
        self._hasher = hashlib.new(self.algorithm, usedforsecurity=False)
        self._have = self._most = 0
        self._announced = False

    def __call__(self, url: str, output_file: str, pooch: object, check_only: bool = False) -> None:
        """Download ``url`` to ``output_file``; `pooch` then looks at the checksum of what is on the disk.

        Raises:
            InputError: if that fails for good.
        """
        resumed = self._begin()
        self.http.persistently(url, lambda: self._attempt(url))
        if resumed and self._hasher.hexdigest() != self.expected:
            # The first part may be of an older version of the file, or damaged.
            self._restart()
            self.http.persistently(url, lambda: self._attempt(url))
        found = self._hasher.hexdigest()
        if found != self.expected:
            self.part.unlink(missing_ok=True)
            raise InputError(
                f"{self.algorithm.upper()} of {url} is {found}, not {self.expected}; what was downloaded is removed",
                file=self.name,
                remedy="repeat, or name another server with --mirror",
            )
        output = Path(output_file)
        output.unlink(missing_ok=True)
        try:
            # The partial file keeps its name until pooch has looked, so that nothing is lost if this is stopped.
            os.link(self.part, output)
        except OSError:  # a file system without links
            self.part.replace(output)

    def _begin(self) -> bool:
        """Take up the partial file, if there is one."""
        if not self.part.is_file():
            return False
        with self.part.open("rb") as stream:
            while block := stream.read(BLOCK):
                self.http.check_stop()
                self._take(block)
        self._most = self._have
        return self._have > 0

    def _take(self, block: bytes) -> None:
        self._hasher.update(block)
        self._have += len(block)
        self.bar.update(len(block))

    def _restart(self) -> None:
        """Forget the partial file."""
        self.part.unlink(missing_ok=True)
        self.bar.update(-self._have)
        self._hasher = hashlib.new(self.algorithm, usedforsecurity=False)
        self._have = 0

    def _attempt(self, url: str) -> None:
        """Everything that is missing, in one request."""
        headers = {"Range": f"bytes={self._have}-"} if self._have else {}
        with self.http.get(url, headers) as response:
            code = response.status_code
            start, total = _content_range(response)
            if code == 416:
                if self._have and total == self._have:
                    return
                if not self._have:
                    raise InputError("the server sends no such file (status 416)", file=url, remedy=_MIRROR)
                self._restart()
                raise _Again("the partial file does not belong to it", wait=0.0)
            if code == 206 and start != self._have:
                self._restart()
                raise _Again("sent another part than was asked for", wait=0.0)
            if code == 200:
                if self._have:  # the server knows no ranges
                    self._restart()
                total = _length(response)
            begin = self._have
            self._announce(total)
            self._check_space(None if total is None else total - begin)
            try:
                with self.part.open("ab" if begin else "wb") as stream:
                    self._stream(response, stream)
                    stream.flush()
                    os.fsync(stream.fileno())
            except OSError as problem:
                raise InputError(
                    f"cannot be written ({problem.strerror or problem})",
                    file=self.part,
                    remedy="free space, or choose another folder with --to; the same command then goes on",
                ) from problem
            if total is not None and self._have < total:
                raise _Again(f"broke off after {self._have:,} of {total:,} bytes", progress=self._advanced())

    def _stream(self, response: requests.Response, stream: BinaryIO) -> None:
        blocks = response.raw.stream(_PIECE, decode_content=False)
        while True:
            self.http.check_stop()
            try:
                block = next(blocks, b"")
            except (HTTPError, requests.RequestException) as problem:
                stream.flush()
                raise _Again(f"broke off ({_reason(problem)})", progress=self._advanced()) from problem
            if not block:
                return
            stream.write(block)
            self._take(block)

    def _advanced(self) -> bool:
        """Whether more of the file is here than ever before: a server that starts anew each time brings nothing."""
        if self._have < self._most + _PROGRESS:
            return False
        self._most = self._have
        return True

    def _announce(self, total: int | None) -> None:
        """Let the bar know how long the file is, once."""
        if total is not None and not self._announced:
            self._announced = True
            self.bar.total = (self.bar.total or 0) + total

    def _check_space(self, missing: int | None) -> None:
        free = shutil.disk_usage(self.part.parent).free
        if missing is not None and missing > free:
            raise InputError(
                f"needs {missing / 1e9:.2f} GB more, and {free / 1e9:.2f} GB are free on the disk",
                file=self.part,
                remedy="free space, or choose another folder with --to",
            )


def _reason(problem: BaseException) -> str:
    """The innermost reason of an error of the network, in few words."""
    inner: Any = problem.args[0] if problem.args else problem
    text = str(getattr(inner, "reason", None) or inner)
    return re.sub(r"<[^>]*>:? ?|HTTPS?Connection(Pool)?\([^)]*\): ?", "", text)[:160] or type(problem).__name__


def _retry_after(response: requests.Response) -> float | None:
    """Seconds for which the server asks to wait: a number, or a date."""
    value = response.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d{1,9}", value):
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def _content_range(response: requests.Response) -> tuple[int | None, int | None]:
    """First byte and size of the whole, from the header of a partial answer."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    if match is None:
        return None, None
    return (int(match[1]) if match[1] else None), (int(match[2]) if match[2] != "*" else None)


def _length(response: requests.Response) -> int | None:
    value = response.headers.get("Content-Length", "")
    return int(value) if value.isdecimal() else None
