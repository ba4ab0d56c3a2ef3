"""The verb `demo`: the thesis of the project on jets that the machine makes itself, in minutes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from jetrep.errors import at_least
from jetrep.store.reader import Store
from jetrep.store.simulate import simulate
from jetrep.studies.protocol import Finetuning, Pretraining
from jetrep.studies.transfer import transfer

__all__ = ["demo"]


@dataclass(frozen=True)
class _Sample:
    """One simulated store of the demo; ``jets`` for each process."""

    name: str
    processes: tuple[str, ...]
    jets: int
    preset: str
    tune: str
    seed: int
    unlabeled: bool = False


_SAMPLES = (
    _Sample("collisions", ("qcd",), 16_000, "toptagging", "collisions", 1, unlabeled=True),
    _Sample("collisions-labelled", ("qcd", "top"), 1_500, "toptagging", "collisions", 2),
    _Sample("collisions-test", ("qcd", "top"), 3_000, "toptagging", "collisions", 3),
    _Sample("simulation", ("qcd", "top"), 3_000, "jetnet", "default", 4),
    _Sample("simulation-test", ("qcd", "top"), 3_000, "jetnet", "default", 5),
)


def demo(
    *,
    out: Path = Path("demo"),
    seeds: int = 3,
    workers: int | None = None,
    jobs: int = 1,
    pretraining: Pretraining = Pretraining(epochs=2),
    finetuning: Finetuning = Finetuning(epochs=8),
    overwrite: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """The whole story on this machine: simulate, pretrain without labels, fine-tune, judge on both domains.

    "Collisions" are QCD jets of a Pythia tune with other αS, multi-parton interactions and fragmentation, seen through
    the detector of the top-tagging preset, without labels. "Simulation" is labelled, in the default tune, with the
    jetnet preset. Writes OUT/results.json, a table and figures. Stopped or repeated, it goes on where it was.

    Args:
        out: folder for stores, runs, table and figures.
        seeds: number of repetitions of everything but the simulation.
        workers: processes that simulate; one for each core by default.
        jobs: seeds that are trained at once, each in a process of its own.
        pretraining: architecture and objective.
        finetuning: training of the taggers.
        overwrite: train anew even if OUT holds runs with other settings; simulated jets are kept.
        quiet: show no progress.

    Returns:
        What results.json holds.
    """
    at_least(1, seeds=seeds)
    say = Console(stderr=True, quiet=quiet, highlight=False).print
    stores = {}
    for sample in _SAMPLES:
        store = stores[sample.name] = out / "stores" / sample.name
        if (store / "manifest.json").exists():
            say(f"{sample.name}: {len(Store(store))} jets are there")
            continue
        say(f"{sample.name}: simulate {sample.jets} jets each of {', '.join(sample.processes)}")
        simulate(
            store,
            processes=list(sample.processes),
            jets=sample.jets,
            preset=sample.preset,
            tune=sample.tune,
            seed=sample.seed,
            workers=workers,
            unlabeled=sample.unlabeled,
            quiet=quiet,
        )
    return transfer(
        collisions=[stores["collisions"]],
        simulation=[stores["simulation"]],
        simulation_test=[stores["simulation-test"]],
        collisions_test=[stores["collisions-test"]],
        collisions_labelled=[stores["collisions-labelled"]],
        out=out,
        pretraining=pretraining,
        finetuning=finetuning,
        seeds=seeds,
        jobs=jobs,
        title="Demo: pretrained on unlabelled collisions, labels from simulation",
        overwrite=overwrite,
        quiet=quiet,
    )
