"""Calls that run at once share the cores, and lose nothing."""

import os
from functools import partial

import pytest
import torch

from jetrep.errors import InputError, at_least
from jetrep.studies import parallel
from jetrep.studies.parallel import in_parallel


def _threads() -> tuple[int, int]:
    return os.getpid(), torch.get_num_threads()


@pytest.mark.parametrize(
    ("cores", "calls", "jobs", "threads"),
    [
        pytest.param(6, 2, 2, 3, id="shared"),
        pytest.param(6, 2, 5, 3, id="more jobs than calls"),
        pytest.param(1, 2, 2, 1, id="more jobs than cores"),
    ],
)
def test_processes_share_the_cores(monkeypatch, cores, calls, jobs, threads):
    monkeypatch.setattr(parallel, "cores", lambda: cores)
    found = list(in_parallel([_threads] * calls, jobs))
    assert [n for _, n in found] == [threads] * calls
    assert os.getpid() not in {pid for pid, _ in found}


@pytest.mark.parametrize(("calls", "jobs"), [(1, 4), (3, 1)])
def test_one_at_a_time_stays_in_this_process(calls, jobs):
    assert list(in_parallel([_threads] * calls, jobs)) == [(os.getpid(), torch.get_num_threads())] * calls


def test_every_call_answers_once():
    assert sorted(in_parallel([partial(pow, n, 2) for n in range(7)], 2)) == [n * n for n in range(7)]


def test_an_error_of_a_call_reaches_the_caller():
    with pytest.raises(ValueError, match="nothing"):
        list(in_parallel([partial(int, "1"), partial(int, "nothing")], 2))


def _positive(number: float) -> float:
    at_least(0, **{f"number {number}": number})
    return number


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_cannot_be_done_does_not_keep_the_rest_from_being_done(jobs):
    told, done = [], []
    with pytest.raises(InputError, match=r"number -[23]") as first:
        done.extend(in_parallel([partial(_positive, n) for n in (1, -2, -3, 4)], jobs, told.append))
    assert sorted(done) == [1, 4]
    assert len(told) == 2
    assert told[0] == f"failed: {first.value}"
