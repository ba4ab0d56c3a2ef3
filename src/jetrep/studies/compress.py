"""The verb `compress`: autoencoders beside each other, under one protocol, over seeds and numbers of training jets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from jetrep.encoders.build import EncoderConfig
from jetrep.encoders.lorentz import LorentzConfig
from jetrep.errors import InputError, at_least
from jetrep.features import FeatureConfig
from jetrep.model import ClassifierConfig
from jetrep.objectives.autoencoding import AutoencoderConfig
from jetrep.report.files import check_writable
from jetrep.store.folder import locked
from jetrep.studies.compare_rows import rows_of
from jetrep.studies.compare_study import Row, read_json, write_json
from jetrep.studies.compress_tables import Cell, write_results
from jetrep.studies.environment import environment
from jetrep.studies.evaluate_autoencoder import evaluate_autoencoder
from jetrep.studies.parallel import in_parallel
from jetrep.training.autoencoders import AUTOENCODER
from jetrep.training.checkpoint import model_record
from jetrep.training.data import check_apart, data_hashes, load_jets
from jetrep.training.engine import EngineConfig, OptimizerConfig
from jetrep.training.pretrain import pretrain
from jetrep.training.run import settings_of

__all__ = ["compress"]

_SETTINGS, _RESULT = "settings.json", "cell.json"


def compress(
    *,
    train: list[Path],
    test: list[Path],
    out: Path,
    models: list[dict[str, Any]],
    classes: list[str] | None = None,
    features: FeatureConfig = FeatureConfig(),
    encoder: EncoderConfig = LorentzConfig(),
    optimizer: OptimizerConfig = OptimizerConfig(lr=3e-3, weight_decay=0.01, warmup=0.05, final_lr=0.01, clip=1.0),
    steps: int = 6000,
    batch_size: int = 128,
    n_jets: list[int] | None = None,
    n_jets_models: list[str] | None = None,
    seeds: int = 3,
    max_test_jets: int | None = None,
    n_bootstrap: int = 100,
    jobs: int = 1,
    engine: EngineConfig = EngineConfig(),
    title: str = "Autoencoders of jets",
    overwrite: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Which autoencoder keeps most of a jet in how many numbers, and which sees what it was not trained on?

    Every model learns the same jets in as many steps and is judged as by `jetrep evaluate`: residuals of particles and
    jets, distances between distributions, anomaly detection. The hardest particles and the best linear
    Lorentz-equivariant map that keep no more numbers stand beside each, jet mass and multiplicity beside the anomaly
    scores.

    Every cell (model, number of jets, seed) is kept in OUT/cells: the same command goes on where it was stopped. Writes
    results.parquet (every number of every seed), tables as Markdown and JSON, and figures: compression curves and,
    with n_jets, data-efficiency curves.

    Args:
        train: stores to train on.
        test: stores to judge on; classes that were not trained on are signals.
        out: folder for cells, tables and figures.
        models: mappings with the name of a model, encoder, optimizer and features (in place of the common ones), and
            whatever the objective "autoencoder" has. "LGAE 30" and "LGAE 60" are points of one curve.
        classes: train on these classes alone; all by default.
        features: particle features, for encoders that use any.
        encoder: architecture of the models that have none of their own.
        optimizer: of the models that have none of their own.
        steps: training steps.
        batch_size: jets per step.
        n_jets: train on this many jets too, besides all of them.
        n_jets_models: names of the models that are trained on fewer jets; all by default.
        seeds: number of repetitions of everything.
        max_test_jets: judge on at most this many jets of each store; all by default.
        n_bootstrap: number of resamples of the test jets.
        jobs: cells that are computed at once, each in a process of its own.
        engine: hardware, precision and logs.
        title: title of the tables.
        overwrite: compute anew what is there.
        quiet: show no progress.

    Returns:
        The tables as JSON, under "tables".
    """
    at_least(1, steps=steps, batch_size=batch_size, seeds=seeds, jobs=jobs, max_test_jets=max_test_jets)
    at_least(2, n_bootstrap=n_bootstrap)
    sizes = sorted(set(n_jets or []))
    at_least(batch_size, **{f"n_jets {n}": n for n in sizes})
    check_writable(out)
    usual = Row("", "supervised", optimizer, encoder, features, ClassifierConfig())
    rows = rows_of([{**model, "kind": AutoencoderConfig.kind} for model in models], usual, None)
    unknown = set(n_jets_models or ()) - {row.name for row in rows}
    if unknown:
        raise InputError(
            f"there is no model '{unknown.pop()}'",
            field="n_jets_models",
            remedy=f"known: {', '.join(row.name for row in rows)}",
        )
    check_apart(train, test, "test")
    for n in sizes:
        _check_classes(train, classes, n)
    common = {
        "data": {name: list(data_hashes(stores).values()) for name, stores in (("train", train), ("test", test))},
        "classes": classes,
        "steps": steps,
        "batch_size": batch_size,
        "max_test_jets": max_test_jets,
        "n_bootstrap": n_bootstrap,
    }
    tasks = [
        _Task(row, n, seed, out / "cells", train, test, classes, steps, batch_size, max_test_jets, n_bootstrap, engine)
        for seed in range(seeds)
        for row in rows
        for n in (None, *(sizes if n_jets_models is None or row.name in n_jets_models else ()))
    ]
    say = Console(stderr=True, quiet=quiet, highlight=False).print
    # A changed setting is refused before anything is computed.
    todo = [task for task in tasks if overwrite or task.read(common) is None]
    say(f"{len(todo)} cells to compute, {len(tasks) - len(todo)} of {len(tasks)} are there")
    calls = [partial(_compute, task, common, overwrite, quiet or jobs > 1) for task in todo]
    for name in in_parallel(calls, jobs, tell=partial(say, markup=False)):
        say(f"{name}: done")
    cells = [Cell(task.row.name, task.n_jets, task.seed, task.read(common) or {}) for task in tasks]
    tables = write_results(cells, out, title=title, provenance={**common, "models": settings_of(rows)})
    if not quiet:
        for table in tables:
            table.show()
        say(f"results and figures: {out}")
    return {"tables": [table.to_json() for table in tables]}


def _check_classes(stores: Sequence[Path], classes: list[str] | None, n: int) -> None:
    """The first jets of a store must be of every class: with files put one after another they are not."""
    jets = load_jets(list(stores), classes=classes)
    if jets.labels is None:
        return
    first = load_jets(list(stores), classes=classes, max_jets=n)
    for label in np.unique(jets.truth):
        if not (first.truth == label).any():
            raise InputError(
                f"the first {n} jets hold none of class {jets.classes[label]}",
                file=stores[0],
                field="n_jets",
                remedy="give a store for each class, or one in which they are mixed",
            )


@dataclass(frozen=True)
class _Task:
    """One cell: a model, a number of jets (None for all), a seed."""

    row: Row
    n_jets: int | None
    seed: int
    root: Path
    train: Sequence[Path]
    test: Sequence[Path]
    classes: list[str] | None
    steps: int
    batch_size: int
    max_test_jets: int | None
    n_bootstrap: int
    engine: EngineConfig

    @property
    def folder(self) -> Path:
        size = "" if self.n_jets is None else f"-{self.n_jets}-jets"
        return self.root / f"{self.row.folder_name}{size}-seed-{self.seed}"

    def settings(self, common: dict[str, Any]) -> dict[str, Any]:
        """What determines the numbers of the cell, as JSON gives it back."""
        own = {**common, "n_jets": self.n_jets, "seed": self.seed, "model": settings_of(self.row)}
        plain: dict[str, Any] = json.loads(json.dumps(own, default=str))
        return plain

    def read(self, common: dict[str, Any]) -> dict[str, Any] | None:
        """The numbers of the cell, or None if it is not finished.

        Raises:
            InputError: if it was made with other settings, or its files cannot be read.
        """
        if not (self.folder / _SETTINGS).exists():
            return None
        found, wanted = read_json(self.folder / _SETTINGS), self.settings(common)
        if found != wanted:
            changed = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
            raise InputError(
                f"the cell was made with other settings ({', '.join(changed)})",
                file=self.folder,
                remedy="choose another --out, or --overwrite",
            )
        return read_json(self.folder / _RESULT) if (self.folder / _RESULT).exists() else None


def _compute(task: _Task, common: dict[str, Any], overwrite: bool, quiet: bool) -> str:
    """Train and judge one model, or go on with it."""
    folder, row = task.folder, task.row
    assert isinstance(row.objective, AutoencoderConfig)
    task.root.mkdir(parents=True, exist_ok=True)
    with locked(folder, "computing this cell"):
        if overwrite:
            shutil.rmtree(folder, ignore_errors=True)
        write_json(folder / _SETTINGS, task.settings(common))
        run = pretrain(
            list(task.train),
            out=folder / "run",
            features=row.features,
            encoder=row.encoder,
            objective=row.objective,
            optimizer=row.optimizer,
            steps=task.steps,
            batch_size=task.batch_size,
            classes=task.classes,
            max_jets=task.n_jets,
            max_particles=row.objective.decoder.slots,
            seed=task.seed,
            engine=task.engine,
            quiet=quiet,
        )
        first = task.seed == 0 and task.n_jets is None
        stores = evaluate_autoencoder(
            run,
            on=task.test,
            out=folder / "evaluation",
            max_jets=task.max_test_jets,
            with_baselines=first,  # nothing is trained in them: all seeds are one
            with_figures=first,
            n_bootstrap=task.n_bootstrap,
            quiet=quiet,
        )
        provenance = model_record(run)["provenance"]
        costs = {"parameters": read_json(run / AUTOENCODER)["n_parameters"], "seconds": provenance["seconds"]}
        content = {"n_jets": provenance["n_jets"], "costs": costs, "stores": stores}
        write_json(folder / _RESULT, content | {"environment": environment(task.engine)})
    return folder.name
