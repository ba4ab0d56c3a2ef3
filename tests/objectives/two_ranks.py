"""Eight jets on one rank, and a part of them on each of two: what a step gives must be the same, once averaged."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from jetrep.objectives.base import Objective
from random_jets import random_jets

WORLD = 2
JETS = random_jets([30, 18, 9, 1, 25, 3, 12, 40])


def part(rank: int | None) -> slice:
    """The jets of one of the ranks, dealt out as training does, or all of them."""
    return slice(None) if rank is None else slice(rank, None, WORLD)


def step(module: Objective, rank: int | None) -> dict[str, torch.Tensor]:
    """Loss and gradients of one step on this rank's jets."""
    loss = module(JETS[part(rank)].batch(), 5, 10, torch.Generator().manual_seed(3)).loss
    loss.backward()
    return {"loss": loss.detach()} | {path: p.grad for path, p in module.named_parameters() if p.requires_grad}


def assert_the_same_step(one: dict[str, torch.Tensor], two: list[dict[str, torch.Tensor]]) -> None:
    """Of two ranks, averaged; whose jets differ."""
    for key, expected in one.items():
        mean = torch.stack([rank[key] for rank in two]).mean(0)
        torch.testing.assert_close(mean, expected, rtol=1e-3, atol=1e-5 * max(1.0, float(expected.abs().max())))
    assert float(two[0]["loss"]) != float(two[1]["loss"])


def outcomes(
    folder: Path, run: Callable[[int | None, Any], dict[str, Any]], make: Callable[[], Any] = dict
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What ``run(rank, make())`` returns: of one process with everything (rank None), and of each of two with a part.

    ``make`` is called before the two know of each other. Both are functions of a module, which the two import.
    """
    # Forked from a process that has imported what they need, which takes longer than all they do.
    multiprocessing.set_forkserver_preload(["jetrep.training.pretrain", "sklearn.cluster"])
    mp.start_processes(_work, (str(folder), run, make), nprocs=WORLD, start_method="forkserver")
    return run(None, make()), [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


def _work(rank: int, folder: str, run: Callable[[int | None, Any], dict[str, Any]], make: Callable[[], Any]) -> None:
    torch.set_num_threads(1)
    made = make()
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    torch.save(run(rank, made), Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()
