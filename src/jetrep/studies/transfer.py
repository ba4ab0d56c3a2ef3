"""The verb `transfer`: pretrained on collisions, fine-tuned on simulation, judged on both, against honest baselines."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from jetrep.errors import InputError, at_least
from jetrep.evaluation.tagging import TaggingMetrics, combine, tagging_metrics
from jetrep.report.files import check_writable, replacing
from jetrep.report.measurement import Measurement
from jetrep.report.tables import ResultsTable
from jetrep.store.reader import Store
from jetrep.studies.environment import distinct, environment
from jetrep.studies.parallel import in_parallel
from jetrep.studies.protocol import COLLISIONS, TARGET_LABELS, Finetuning, Pretraining, Protocol, Scores, Stores
from jetrep.studies.transfer_figures import draw_study
from jetrep.training.engine import EngineConfig

__all__ = ["transfer"]


def transfer(
    *,
    collisions: list[Path],
    simulation: list[Path],
    simulation_test: list[Path],
    collisions_test: list[Path],
    collisions_labelled: list[Path] | None = None,
    out: Path,
    pretraining: Pretraining = Pretraining(),
    finetuning: Finetuning = Finetuning(),
    n_subjets: int = 4,
    max_particles: int = 30,
    seeds: int = 3,
    n_bootstrap: int = 200,
    jobs: int = 1,
    engine: EngineConfig = EngineConfig(),
    title: str = "Pretrained on collisions, labels from simulation",
    overwrite: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Does a representation learned on unlabelled collisions help a tagger whose labels come from simulation?

    For each seed: RINO is pretrained on the collisions, then taggers are trained on the labelled simulation and judged
    on test jets of both domains. All taggers share one architecture and one protocol. Rows: supervised from scratch;
    supervised on jets truncated alike in both domains; RINO fine-tuned with a linear and with an MLP head; a
    logistic probe on frozen RINO and on the same encoder with random weights; boosted trees on jet mass and
    multiplicity. Taggers are shown all particles, and both domains at the same number of subjets (scale-matched).

    Every trained model and every score is kept in OUT: the same command goes on where it was stopped.

    Args:
        collisions: stores with the unlabelled jets for pretraining; labels, if any, are not used.
        simulation: labelled stores for training taggers: qcd and one signal.
        simulation_test: labelled stores of the same domain.
        collisions_test: labelled stores of the collisions' domain.
        collisions_labelled: labelled stores of the collisions' domain, apart from the test jets: the frozen probes are
            also trained on them, which measures the representation without the shift of the labels.
        out: folder for models, scores, results.json, table and figures.
        pretraining: architecture and objective.
        finetuning: training of the taggers.
        n_subjets: number of subjets of the scale-matched view.
        max_particles: leading particles kept in the truncation-matched view.
        seeds: number of repetitions of everything, pretraining included.
        n_bootstrap: number of resamples of the test jets.
        jobs: seeds that are trained at once, each in a process of its own.
        engine: hardware, precision and logs.
        title: title of the table.
        overwrite: start anew even if OUT holds another study.
        quiet: show no progress.

    Returns:
        What results.json holds.
    """
    say = Console(stderr=True, quiet=quiet, highlight=False).print
    at_least(1, seeds=seeds, n_subjets=n_subjets, max_particles=max_particles, jobs=jobs)
    at_least(2, n_bootstrap=n_bootstrap)
    if engine.processes > 1:
        raise InputError(
            "the study runs in one process",
            field="engine.devices",
            remedy="train with several devices in OUT/seed-N/pretrain first, by jetrep pretrain, and resume here",
        )
    check_writable(out)
    stores = Stores(collisions, simulation, simulation_test, collisions_test, collisions_labelled)
    stores.check(finetuning)
    n_collisions = sum(len(Store(path)) for path in collisions)
    n_simulation = finetuning.n_labels or sum(len(Store(path)) for path in simulation)
    start = time.monotonic()
    if overwrite:
        for seed in range(seeds):
            shutil.rmtree(out / f"seed-{seed}", ignore_errors=True)
    several = min(jobs, seeds) > 1
    protocols = [
        Protocol(
            # Jets are read by each process for itself: they are not sent through a pipe.
            stores=replace(stores) if several else stores,
            pretraining=pretraining,
            finetuning=finetuning,
            n_subjets=n_subjets,
            max_particles=max_particles,
            seed=seed,
            folder=out / f"seed-{seed}",
            engine=engine,
            quiet=quiet or several,  # bars of several processes would overwrite one another
        )
        for seed in range(seeds)
    ]
    found, environments = _Found(n_bootstrap), []
    # In the order of the seeds, whichever ended first.
    for seed, scores, seconds, where in sorted(
        in_parallel([partial(_run, p, seeds, start, quiet) for p in protocols], jobs), key=itemgetter(0)
    ):
        found.seconds |= seconds
        environments.append(where)
        for name, of_row in scores.items():
            found.add(name, of_row, stores, seed)
    found.seconds["total"] = round(time.monotonic() - start, 1)
    notes = [
        f"{n_collisions} unlabelled jets for pretraining, {n_simulation} labelled jets of simulation; "
        + ", ".join(f"{len(jets)} {domain} test jets" for domain, jets in stores.tests.items())
    ]
    settings = {
        "pretraining": asdict(pretraining),
        "finetuning": asdict(finetuning),
        "n_subjets": n_subjets,
        "max_particles": max_particles,
        "seeds": seeds,
        "n_bootstrap": n_bootstrap,
    }
    provenance = {"settings": settings, "data": stores.hashes(), "environments": distinct(environments)}
    table = ResultsTable.collect(title, found.means(), notes=notes, provenance=provenance)
    record = table.to_json() | found.to_json()
    with replacing(out / "results.json") as stream:
        stream.write((json.dumps(record, indent=2, default=str, allow_nan=False) + "\n").encode())
    table.save(out / "results.md")
    draw_study(table, stores, found.scores, out, quiet=quiet)
    if not quiet:
        table.show()
        say(f"results and figures: {out}")
    return record


def _run(
    protocol: Protocol, seeds: int, start: float, quiet: bool
) -> tuple[int, dict[str, Scores], dict[str, float], dict[str, Any]]:
    """Train and score everything under one seed, and tell what it is at.

    Returns:
        The seed, scores and seconds of each row, and where they were computed.
    """
    say = Console(stderr=True, quiet=quiet, highlight=False).print
    rows = [("pretraining", None), *protocol.rows()]
    scores, seconds = {}, {}
    for i, (name, compute) in enumerate(rows, 1):
        began = time.monotonic()
        say(f"[{began - start:5.0f} s] seed {protocol.seed + 1} of {seeds}, {i:2d} of {len(rows)}: {name}")
        if compute is None:
            protocol.pretrained()
        else:
            scores[name] = compute()
        seconds[f"seed {protocol.seed}: {name}"] = round(time.monotonic() - began, 1)
    return protocol.seed, scores, seconds, environment(protocol.engine)


@dataclass
class _Found:
    """What was measured, by row and domain, one entry a seed.

    Attributes:
        n_bootstrap: number of resamples of the test jets.
        scores: of the test jets.
        metrics: of these scores.
        seconds: of each row and seed.
    """

    n_bootstrap: int
    scores: dict[str, dict[str, list[NDArray[np.float64]]]] = field(default_factory=dict)
    metrics: dict[str, dict[str, list[TaggingMetrics]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, row: str, scores: Scores, stores: Stores, seed: int) -> None:
        """Judge the scores of one row under one seed."""
        for domain, score in scores.items():
            labels = stores.tests[COLLISIONS if domain == TARGET_LABELS else domain].truth
            measured = tagging_metrics(score, labels, n_bootstrap=self.n_bootstrap, seed=seed)
            self.metrics.setdefault(row, {}).setdefault(domain, []).append(measured)
            self.scores.setdefault(row, {}).setdefault(domain, []).append(score)

    def means(self) -> dict[str, dict[str, dict[str, Measurement]]]:
        """Mean and spread over seeds, by row, domain and metric."""
        return {
            row: {domain: combine(seeds).measurements() for domain, seeds in domains.items()}
            for row, domains in self.metrics.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Every seed for itself, and the time that it took."""
        per_seed = {
            row: {domain: [measured.to_json() for measured in seeds] for domain, seeds in domains.items()}
            for row, domains in self.metrics.items()
        }
        return {"per_seed": per_seed, "seconds": self.seconds}
