"""Who makes the parts of a store: this process, several on this machine, or a Dask cluster."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, wait
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from typing import Any, Protocol

from jetrep.errors import InputError
from jetrep.store.folder import UnfinishedError
from jetrep.store.parts import Job, Part, Record, make_part, versions

__all__ = ["Crew", "alone", "carry_out", "dask", "processes"]

_DEATHS = 3  # workers that may die, one after the other, before anything is finished in between
_ANSWER = 10.0  # seconds in which a Dask scheduler must answer
_GO_ON = "the same command goes on where this one ended"


class Crew(Protocol):
    """Makes parts, any number at a time."""

    @property
    def place(self) -> int:
        """How many parts may be under way: more than there are hands, so that nobody waits for this process."""
        ...

    @property
    def reports(self) -> bool:
        """Whether it tells of rows while it reads them."""
        ...

    def submit(self, job: Job, part: Part, limit: int | None) -> Future[Record]:
        """Begin a part (see `make_part`)."""
        ...

    def revive(self) -> None:
        """Start again after workers died."""
        ...


def carry_out(
    job: Job,
    parts: Sequence[Part],
    finished: dict[int, Record],
    crew: Crew,
    *,
    max_jets: int | None,
    done: Callable[[Part], object],
) -> list[Record]:
    """Make all parts, or as many as hold ``max_jets``; the result depends on nothing else.

    With ``max_jets``, a part that was begun before it was known how many jets are left is made again if it kept more
    than that; so is one that met bad input, which may lie behind the last jet that is needed.

    Args:
        job: what all parts have in common.
        parts: the parts, in order.
        finished: parts that need not be made again; those that are made are added.
        crew: who makes them.
        max_jets: stop after keeping this many jets.
        done: called with each part that the crew has finished.

    Returns:
        the records of the parts that make up the store, in order.

    Raises:
        InputError: the first, in the order of the rows, that a part met; or if workers die again and again.
    """
    chosen: list[Record] = []
    running: dict[Future[Record], tuple[int, int | None]] = {}
    failed: dict[int, tuple[Exception, int | None]] = {}
    deaths, kept = 0, 0
    while len(chosen) < len(parts) and (max_jets is None or kept < max_jets):
        head, limit = len(chosen), None if max_jets is None else max_jets - kept
        if head in finished and finished[head].serves(limit):
            chosen.append(finished[head])
            kept += finished[head].jets
            continue
        finished.pop(head, None)
        if head in failed:
            problem, tried = failed.pop(head)
            if tried == limit:
                raise problem
        taken = {number for number, _ in running.values()} | finished.keys() | failed.keys()
        try:
            # The head may always begin: it must not wait for parts that turn out not to be needed.
            free = max(int(head not in taken), crew.place - len(running))
            for number in islice((n for n in range(head, len(parts)) if n not in taken), free):
                running[crew.submit(job, parts[number], limit)] = (number, limit)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                number, tried = running.pop(future)
                try:
                    finished[number] = _checked(future.result())
                except (BrokenExecutor, CancelledError):
                    raise
                except Exception as problem:
                    failed[number] = (problem, tried)
                    continue
                deaths = 0
                done(parts[number])
        except BrokenExecutor as problem:
            deaths += 1
            if deaths > _DEATHS:
                raise UnfinishedError(
                    f"worker processes died {deaths} times, perhaps for want of memory",
                    field="workers",
                    remedy=f"give fewer --workers or --jets-per-shard; {_GO_ON}",
                ) from problem
            running.clear()  # all of them are lost
            crew.revive()
    return chosen


def _checked(record: Record) -> Record:
    """The record, if it was made by the same programs; on a cluster they may differ."""
    if record.versions != versions():
        name = next(name for name, number in versions().items() if record.versions.get(name) != number)
        raise UnfinishedError(
            f"a worker has {name} {record.versions.get(name)}, this process {versions()[name]}",
            field="dask",
            remedy="install the same versions everywhere",
        )
    return record


class _Alone:
    """This process, one part at a time."""

    place, reports = 1, True

    def __init__(self, advance: Callable[[int], object]) -> None:
        self._advance = advance

    def submit(self, job: Job, part: Part, limit: int | None) -> Future[Record]:
        future: Future[Record] = Future()
        try:
            future.set_result(make_part(job, part, limit, self._advance))
        except Exception as problem:
            future.set_exception(problem)
        return future

    def revive(self) -> None:
        raise AssertionError("this process is alive")


@contextmanager
def alone(advance: Callable[[int], object]) -> Iterator[Crew]:
    """A crew of this process only; ``advance`` is told of rows as they are read."""
    yield _Alone(advance)


_THREADS_OF_POOL = ("QueueFeederThread", "ExecutorManagerThread")


class _Processes:
    """Processes on this machine, each with one thread."""

    reports = False

    def __init__(self, number: int) -> None:
        self.place, self._number = 2 * number, number
        self._pool = self._start()

    def _start(self) -> Any:
        # Loky starts fresh processes: nothing is forked from a program with threads, and scripts need no main guard.
        from joblib.externals.loky import ProcessPoolExecutor

        return ProcessPoolExecutor(self._number, initializer=_begin, initargs=(os.getpid(),))

    def revive(self) -> None:
        self.end()
        self._pool = self._start()

    def submit(self, job: Job, part: Part, limit: int | None) -> Future[Record]:
        future: Future[Record] = self._pool.submit(make_part, replace(job, threads=1), part, limit)
        return future

    def end(self) -> None:
        # Workers are killed beneath the pool's own threads. What these say of it would look like a crash of ours.
        complain = threading.excepthook

        def hook(problem: threading.ExceptHookArgs) -> None:
            if problem.thread is None or problem.thread.name not in _THREADS_OF_POOL:
                complain(problem)

        threading.excepthook = hook
        try:
            self._pool.shutdown(wait=True, kill_workers=True)
        finally:
            threading.excepthook = complain


@contextmanager
def processes(number: int) -> Iterator[Crew]:
    """A crew of processes on this machine, killed at the end of the block."""
    crew = _Processes(number)
    try:
        yield crew
    finally:
        crew.end()


def _begin(parent: int) -> None:
    """Prepare a worker process: it lives as long as the process that started it, and leaves Ctrl-C to that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.3)
        os._exit(1)  # nobody else would end it

    threading.Thread(target=watch, daemon=True).start()


class _Dask:
    """Workers of a Dask cluster, each thread of which makes one part at a time."""

    reports = False

    def __init__(self, client: Any) -> None:
        self._client, self._pool = client, client.get_executor(pure=False)

    @property
    def place(self) -> int:
        # Clusters grow and shrink.
        return max(2, 2 * int(sum(self._client.nthreads().values())))

    def submit(self, job: Job, part: Part, limit: int | None) -> Future[Record]:
        future: Future[Record] = self._pool.submit(make_part, replace(job, threads=1), part, limit)
        return future

    def revive(self) -> None:
        raise AssertionError("the scheduler cares for its workers")

    def end(self) -> None:
        self._pool.shutdown(wait=False)
        self._client.close()


@contextmanager
def dask(address: str) -> Iterator[Crew]:
    """A crew on the Dask cluster whose scheduler has this address; its workers must see the same files.

    Raises:
        InputError: if Dask is not installed, no scheduler answers, or the cluster fails.
    """
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError:
        raise InputError(
            "Dask is not installed", field="dask", remedy="install it with pip install 'jetrep[dask]'"
        ) from None
    try:
        client = distributed.Client(address, timeout=_ANSWER, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as problem:
        raise InputError(
            f"no Dask scheduler answers at {address}", field="dask", remedy="give the address that the scheduler prints"
        ) from problem
    crew = _Dask(client)
    # A scheduler that is lost is told in one line below; Dask would print its own tracebacks before that.
    loggers = [logging.getLogger(name) for name in ("distributed", "distributed.client")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield crew
    except (CancelledError, distributed.KilledWorker, distributed.comm.CommClosedError) as problem:
        raise UnfinishedError(
            f"the Dask cluster at {address} failed ({type(problem).__name__})",
            field="dask",
            remedy=f"look into the logs of its workers; {_GO_ON}",
        ) from problem
    finally:
        with suppress(OSError, CancelledError, TimeoutError):
            crew.end()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
