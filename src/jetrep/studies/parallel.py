"""The cells of a study, several at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import joblib
import torch

from jetrep.machine import cores

__all__ = ["in_parallel"]

T = TypeVar("T")


def in_parallel(calls: Sequence[Callable[[], T]], jobs: int) -> Iterator[T]:
    """What calls return, in the order in which they end.

    Args:
        calls: functions without arguments, which can be pickled if there are several jobs.
        jobs: number of processes, which share the cores of this machine; with 1, this process alone.
    """
    jobs = min(jobs, len(calls))
    if jobs <= 1:
        yield from (call() for call in calls)
        return
    threads = max(1, cores() // jobs)
    parallel = joblib.Parallel(n_jobs=jobs, backend="loky", return_as="generator_unordered")
    with warnings.catch_warnings():
        # A process that has grown is replaced after its call. That is no news.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs were given to the executor")
        yield from parallel(joblib.delayed(_with_threads)(call, threads) for call in calls)


def _with_threads(call: Callable[[], T], threads: int) -> T:
    torch.set_num_threads(threads)
    return call()
