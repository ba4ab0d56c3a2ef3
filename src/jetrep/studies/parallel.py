"""The cells of a study, several at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import joblib
import torch

from jetrep.errors import InputError
from jetrep.machine import cores

__all__ = ["in_parallel"]

T = TypeVar("T")


def in_parallel(
    calls: Sequence[Callable[[], T]], jobs: int, tell: Callable[[str], object] = lambda _: None
) -> Iterator[T]:
    """What calls return, in the order in which they end. One that fails does not keep the others from being done.

    Args:
        calls: functions without arguments, which can be pickled if there are several jobs.
        jobs: number of processes, which share the cores of this machine; with 1, this process alone.
        tell: called with the error of a call that fails, when it does.

    Raises:
        InputError: at the end, the first that a call raised.
    """
    jobs = min(jobs, len(calls))
    attempts = [partial(_attempt, call) for call in calls]
    failed: list[InputError] = []
    for found in _shared_out(attempts, jobs) if jobs > 1 else (attempt() for attempt in attempts):
        if isinstance(found, InputError):
            tell(f"failed: {found}")
            failed.append(found)
        else:
            yield found
    if failed:
        raise failed[0]


def _attempt(call: Callable[[], T]) -> T | InputError:
    try:
        return call()
    except InputError as error:
        return error


def _shared_out(calls: Sequence[Callable[[], T]], jobs: int) -> Iterator[T]:
    threads = max(1, cores() // jobs)
    parallel = joblib.Parallel(n_jobs=jobs, backend="loky", return_as="generator_unordered")
    with warnings.catch_warnings():
        # A process that has grown is replaced after its call. That is no news.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs were given to the executor")
        yield from parallel(joblib.delayed(_with_threads)(call, threads) for call in calls)


def _with_threads(call: Callable[[], T], threads: int) -> T:
    torch.set_num_threads(threads)
    return call()
