"""The verb `compare`: one encoder, one protocol, every objective."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import joblib
import numpy as np
import torch
from jsonargparse import ArgumentParser
from rich.console import Console

from jetrep.encoders.build import EncoderConfig
from jetrep.encoders.transformer import SIZES
from jetrep.errors import InputError, at_least
from jetrep.features import FeatureConfig
from jetrep.jets import Jets
from jetrep.objectives.build import OBJECTIVES, ObjectiveConfig, needs_of
from jetrep.report.files import check_writable
from jetrep.studies.compare_cells import read_cell, run_cell
from jetrep.studies.compare_figures import draw_comparison
from jetrep.studies.compare_study import Baseline, Row, Study, TaggerTraining
from jetrep.studies.compare_tables import Numbers, tables_of, write_tables
from jetrep.studies.testsets import choose_background
from jetrep.training.data import open_pool
from jetrep.training.engine import EngineConfig, OptimizerConfig
from jetrep.training.finetune import stratified_subset
from jetrep.training.pretrain import pretrain

__all__ = ["EFFICIENCIES", "compare"]

EFFICIENCIES: Mapping[str, float] = {"Hqql": 0.99, "Tbl": 0.995}
"""Signal efficiency at which the rejection is quoted for JetClass (arXiv 2202.03772); 0.5 for all other classes."""

_FINETUNING = TaggerTraining()
_OWN_NAME: Mapping[Baseline, str] = {"observables": "mass, multiplicity"}


def compare(
    *,
    train: list[Path],
    test: list[Path],
    out: Path,
    objectives: list[dict[str, Any] | str],
    unlabelled: list[Path] | None = None,
    baselines: list[Literal["supervised", "random", "observables"]] | None = None,
    features: FeatureConfig = FeatureConfig(),
    encoder: EncoderConfig = SIZES["laptop"],
    optimizer: OptimizerConfig = OptimizerConfig(lr=3e-3, layer_decay=0.9),
    epochs: int = 10,
    batch_size: int = 128,
    budget: Literal["steps", "flops"] = "steps",
    finetuning: TaggerTraining = _FINETUNING,
    n_labels: list[int] | None = None,
    seeds: int = 3,
    background: str | None = None,
    efficiencies: dict[str, float] | None = None,
    max_jets: int | None = None,
    max_test_jets: int | None = None,
    max_probe_jets: int = 50_000,
    max_particles: int | None = None,
    n_bootstrap: int = 200,
    projection: bool = True,
    jobs: int = 1,
    cell: int | None = None,
    list_cells: bool = False,
    engine: EngineConfig = EngineConfig(),
    title: str = "One encoder, every objective",
    overwrite: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """What does the objective do? One encoder learns the same jets in as many steps, under every objective.

    A comparison is a grid of cells, (row, seed). A row is an objective or a baseline: "supervised" (from scratch, as
    many steps as a pretraining), "random" (the encoder untrained, then treated alike) and "mass, multiplicity".
    Each encoder is judged by k-NN, by linear probes on its class token and on the mean of its particle tokens, and
    fine-tuned as a whole; all of it also on fewer labels.

    Every cell is kept in OUT/cells: the same command goes on where it was stopped. Writes results.parquet (every
    number of every seed), results.md, results.tex, results.json, and figures.

    Args:
        train: labelled stores to pretrain, probe and fine-tune on.
        test: labelled stores to judge on.
        out: folder for cells, tables and figures.
        objectives: kinds of objectives, or mappings with their settings: kind, and beside it name (of the row),
            optimizer (in place of the common one) and whatever the kind has.
        unlabelled: stores to pretrain on, in place of those of train.
        baselines: rows beside the objectives; all three by default.
        features: particle features and their standardisation.
        encoder: architecture, the same for all rows.
        optimizer: of pretraining and of the supervised row.
        epochs: passes over the jets of a pretraining.
        batch_size: jets per step of a pretraining.
        budget: "steps" gives each objective the same number of steps; "flops" the floating-point operations that
            supervised training spends in that many steps.
        finetuning: training of the taggers on top of the encoders.
        n_labels: numbers of labelled jets, besides all of them: 100, 1000, 10000 and 100000 by default. Those that are
            too many, or so few that a class is missing, are left out.
        seeds: number of repetitions of everything.
        background: class against which the others are tagged; "qcd" if there is one, else the first class.
        efficiencies: signal efficiency at which the rejection is quoted, by class; that of the JetClass benchmark by
            default, 0.5 for other classes.
        max_jets: train on at most this many jets, the first of each store; all by default.
        max_test_jets: judge on at most this many jets; all by default.
        max_probe_jets: k-NN and linear probes are trained on at most this many jets.
        max_particles: keep this many leading particles of each jet; all by default.
        n_bootstrap: number of resamples of the test jets.
        projection: draw PCA and t-SNE of the embeddings.
        jobs: cells that are computed at once, each in a process of its own.
        cell: compute this cell alone, and write no tables: one task of an array job.
        list_cells: print the cells, with their numbers, and compute nothing.
        engine: hardware, precision and logs.
        title: title of the table.
        overwrite: compute anew what is there.
        quiet: show no progress.

    Returns:
        The tables as JSON, under "tables"; the cells, under "cells".
    """
    at_least(1, seeds=seeds, epochs=epochs, batch_size=batch_size, jobs=jobs, max_probe_jets=max_probe_jets)
    at_least(1, max_jets=max_jets, max_test_jets=max_test_jets, max_particles=max_particles)
    at_least(2, n_bootstrap=n_bootstrap)
    at_least(0, cell=cell)
    if engine.processes > 1:
        raise InputError(
            "each cell runs on one device", field="engine.devices", remedy="compute several cells at once, by --jobs"
        )
    check_writable(out)
    study = Study(
        train=train,
        test=test,
        unlabelled=unlabelled,
        out=out,
        rows=_rows(objectives, ["supervised", "random", "observables"] if baselines is None else baselines, optimizer),
        seeds=seeds,
        features=features,
        encoder=encoder,
        epochs=epochs,
        batch_size=batch_size,
        budget=budget,
        finetuning=finetuning,
        n_labels=[],
        background="",
        efficiencies={},
        max_jets=max_jets,
        max_test_jets=max_test_jets,
        max_probe_jets=max_probe_jets,
        max_particles=max_particles,
        n_bootstrap=n_bootstrap,
        engine=engine,
        quiet=quiet,
    )
    say = Console(stderr=True, quiet=quiet, highlight=False).print
    _check(study)
    classes = study.train_jets.classes
    study.background = choose_background(background, classes, train[0])
    study.efficiencies = _efficiencies(efficiencies, [name for name in classes if name != study.background])
    wanted = sorted(set(n_labels if n_labels is not None else (100, 1_000, 10_000, 100_000)))
    study.n_labels = _usable(wanted, study.train_jets, seeds, say if n_labels is not None else None)
    cells = study.cells
    if cell is not None and cell >= len(cells):
        raise InputError(f"there is no cell {cell}", field="cell", remedy=f"choose from 0 to {len(cells) - 1}")
    # A changed setting is refused before anything is computed.
    done = [not overwrite and read_cell(study, *one) is not None for one in cells]
    record: dict[str, Any] = {
        "cells": [
            {"cell": i, "row": row.name, "seed": seed, "done": done[i], "folder": str(study.folder(row, seed))}
            for i, (row, seed) in enumerate(cells)
        ]
    }
    if list_cells:
        for line in record["cells"]:
            Console(highlight=False, width=200).print(
                f"{line['cell']:4} {line['row']}, seed {line['seed']}" + (", done" if line["done"] else ""),
                markup=False,
            )
        return record
    todo = [i for i in ([cell] if cell is not None else range(len(cells))) if not done[i]]
    say(f"{len(todo)} cells to compute, {sum(done)} of {len(cells)} are there")
    _compute(study, todo, jobs, overwrite, say)
    if cell is not None:
        return record
    found = [(row, seed, read_cell(study, row, seed)) for row, seed in cells]
    numbers = Numbers(study, [(row, seed, content) for row, seed, content in found if content is not None])
    tables = tables_of(numbers, title)
    write_tables(numbers, tables, out)
    draw_comparison(numbers, tables[0], projection=projection)
    if not quiet:
        for table in tables[:2]:
            table.show()
        say(f"results and figures: {out}")
    return record | {"tables": [table.to_json() for table in tables]}


def _compute(study: Study, todo: list[int], jobs: int, overwrite: bool, say: Any) -> None:
    """Run cells, ``jobs`` at a time."""

    def told(index: int) -> None:
        row, seed = study.cells[index]
        say(f"cell {index}: {row.name}, seed {seed}: done")

    if jobs == 1 or len(todo) < 2:
        for index in todo:
            run_cell(study, index, overwrite)
            told(index)
        return
    # Jets are read by each process for itself: they are not sent through a pipe.
    apart = replace(study, quiet=True)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    parallel = joblib.Parallel(n_jobs=jobs, backend="loky", return_as="generator_unordered")
    for index in parallel(joblib.delayed(_in_process)(apart, index, overwrite, threads) for index in todo):
        told(index)


def _in_process(study: Study, index: int, overwrite: bool, threads: int) -> int:
    torch.set_num_threads(threads)
    run_cell(study, index, overwrite)
    return index


def _rows(objectives: list[dict[str, Any] | str], baselines: list[Baseline], optimizer: OptimizerConfig) -> list[Row]:
    """Rows of the comparison, objectives first.

    Raises:
        InputError: if an objective is unknown or has unknown settings, or two rows are called the same.
    """
    rows = [_row(objective, optimizer) for objective in objectives]
    rows += [Row(_OWN_NAME.get(name, name), name, optimizer) for name in baselines]
    if not rows:
        raise InputError("there is nothing to compare", field="objectives", remedy="name at least one")
    names = [row.name for row in rows]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"two rows are called '{name}'", field="objectives", remedy="give one of them another name: {name: …}"
            )
    return rows


def _row(given: dict[str, Any] | str, optimizer: OptimizerConfig) -> Row:
    settings = {"kind": given} if isinstance(given, str) else dict(given)
    kinds: dict[str, Any] = {config.kind: config for config in OBJECTIVES}
    kind = settings.get("kind")
    if kind not in kinds:
        raise InputError(f"there is no objective '{kind}'", field="objectives", remedy=f"known: {', '.join(kinds)}")
    name = str(settings.pop("name", kind))
    # What `pretrain` does by default is what the bare name of its kind means.
    usual: ObjectiveConfig = (pretrain.__kwdefaults__ or {})["objective"]
    default = usual if usual.kind == kind else kinds[kind]()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--objective", type=kinds[kind], default=default)
    parser.add_argument("--optimizer", type=OptimizerConfig, default=optimizer)
    own: Any = settings.pop("optimizer", {})
    try:
        parsed = parser.instantiate(parser.parse_object({"objective": settings, "optimizer": own}))
    except InputError:
        raise
    except Exception as problem:  # jsonargparse raises many kinds
        raise InputError(
            f"the settings of '{name}' cannot be used: {' '.join(str(problem).split())}",
            field="objectives",
            remedy=f"see jetrep pretrain --objective.kind {kind} --help",
        ) from problem
    return Row(name, parsed.objective, parsed.optimizer)


def _efficiencies(wanted: dict[str, float] | None, signals: list[str]) -> dict[str, float]:
    unknown = [name for name in wanted or {} if name not in signals]
    if unknown:
        raise InputError(
            f"there is no signal '{unknown[0]}'", field="efficiencies", remedy=f"known: {', '.join(signals)}"
        )
    found = {name: {**EFFICIENCIES, **(wanted or {})}.get(name, 0.5) for name in signals}
    for name, efficiency in found.items():
        if not 0 < efficiency <= 1:
            raise InputError(f"is {efficiency} for {name}", field="efficiencies", remedy="give a number from 0 to 1")
    return found


def _check(study: Study) -> None:
    """Look at all jets before the first of them is trained on, for mistakes that would show after hours."""
    classes = study.train_jets.classes
    for jets, stores in ((study.train_jets, study.train), (study.test_jets, study.test)):
        missing = [name for i, name in enumerate(classes) if not (jets.truth == i).any()]
        if missing or len(classes) < 2:
            problem = f"holds no jets of class {', '.join(missing)}" if missing else "holds jets of one class alone"
            raise InputError(problem, file=stores[0], field="label", remedy="give jets of every class")
    if shared := set(study.data["train"]) & set(study.data["test"]):
        at = study.test[study.data["test"].index(shared.pop())]
        raise InputError("holds the jets to train on", file=at, field="test", remedy="judge on other jets")
    for row in study.rows:
        if not isinstance(row.objective, str):
            needs = needs_of(row.objective)
            open_pool(study.unlabelled or study.train, labelled=needs.labels, history=needs.history)
            if study.features.columns and not needs.measured:
                raise InputError(
                    f"the feature set '{study.features.names}' needs what the views of '{row.name}' lack",
                    field="features.names",
                    remedy="choose the features 'kin', or other objectives",
                )
    if study.steps < 1:
        raise InputError(
            f"there are fewer jets than one batch of {study.batch_size}",
            field="batch_size",
            remedy="choose a smaller batch or give more jets",
        )


def _usable(wanted: list[int], jets: Jets, seeds: int, say: Any) -> list[int]:
    """The numbers of labels that the jets allow, every class present in what is trained on and in what is held out."""
    at_least(1, **{f"n_labels {n}": n for n in wanted})
    usable = []
    for n in wanted:
        fits = n < len(jets)
        for seed in range(seeds if fits else 0):
            drawn = jets.truth[stratified_subset(jets.truth, n, seed)]
            held_out = np.zeros(n, np.bool_)
            held_out[stratified_subset(drawn, max(1, round(0.15 * n)), seed)] = True
            parts = [np.unique(part) for part in (drawn[held_out], drawn[~held_out])]
            fits = fits and all(len(part) == len(jets.classes) for part in parts)
        if fits:
            usable.append(n)
        elif say is not None and n != len(jets):
            say(f"{n} labels are left out: of {len(jets)} jets, that is too many, or too few of a class")
    return usable
