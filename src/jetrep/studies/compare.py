"""The verb `compare`: one encoder, one protocol, every objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console

from jetrep.encoders.build import EncoderConfig
from jetrep.encoders.transformer import SIZES
from jetrep.errors import InputError, at_least
from jetrep.features import FeatureConfig
from jetrep.jets import Jets
from jetrep.objectives.build import check_needs
from jetrep.report.files import check_writable
from jetrep.studies.compare_cells import read_cell, run_cell
from jetrep.studies.compare_costs import parameters_of
from jetrep.studies.compare_figures import draw_comparison
from jetrep.studies.compare_numbers import Numbers
from jetrep.studies.compare_rows import rows_of
from jetrep.studies.compare_study import Row, Study, TaggerTraining
from jetrep.studies.compare_tables import tables_of, write_tables
from jetrep.studies.parallel import in_parallel
from jetrep.studies.testsets import choose_background
from jetrep.training.data import check_apart, open_pool
from jetrep.training.engine import EngineConfig, OptimizerConfig
from jetrep.training.finetune import stratified_subset

__all__ = ["EFFICIENCIES", "compare"]

EFFICIENCIES: Mapping[str, float] = {"Hqql": 0.99, "Tbl": 0.995}
"""Signal efficiency at which the rejection is quoted for JetClass (arXiv 2202.03772); 0.5 for all other classes."""

_FINETUNING = TaggerTraining()


def compare(
    *,
    train: list[Path],
    test: list[Path],
    out: Path,
    objectives: list[dict[str, Any] | str],
    unlabelled: list[Path] | None = None,
    baselines: list[dict[str, Any] | str] | None = None,
    reference: str | None = None,
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
    tables_only: bool = False,
    engine: EngineConfig = EngineConfig(),
    title: str = "One encoder, every objective",
    overwrite: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """What does the objective do? One encoder learns the same jets in as many steps, under every objective.

    A comparison is a grid of cells, (row, seed). A row is an objective or a baseline: "supervised" (from scratch, as
    many steps as a pretraining), "random" (the encoder untrained, then treated alike) and "mass, multiplicity". A row
    may have an encoder of its own, so that encoders are compared under one objective, too.
    Each encoder is judged by k-NN, by linear probes on its class token and on the mean of its particle tokens, and
    fine-tuned as a whole; all of it also on fewer labels.

    Every cell is kept in OUT/cells: the same command goes on where it was stopped. Writes results.parquet (every
    number of every seed), results.md, results.tex, results.json, and figures.

    Args:
        train: labelled stores to pretrain, probe and fine-tune on.
        test: labelled stores to judge on.
        out: folder for cells, tables and figures.
        objectives: kinds of objectives, "all" for every one that has no row of its name, or mappings with their
            settings: kind, which may be that of a baseline too; beside it name (of the row), encoder, features and
            optimizer (in place of the common ones; what they do not tell is as there, if the encoder is of the same
            kind) and whatever the kind has; a supervised row has a classifier head.
        unlabelled: stores to pretrain on, in place of those of train.
        baselines: rows beside the objectives: supervised, random, observables, or mappings; all three by default.
        reference: name of a row; the others of its kind are told by their difference to it, seed by seed.
        features: particle features and their standardisation.
        encoder: architecture of all rows that have none of their own.
        optimizer: of pretraining and of the supervised row.
        epochs: passes over the jets of a pretraining.
        batch_size: jets per step of a pretraining.
        budget: "steps" gives each objective the same number of steps; "flops" the floating-point operations that
            supervised training of the common encoder spends in that many steps.
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
        max_particles: keep this many leading particles of each jet; all by default. An autoencoder has a slot for
            each of them; without a number here its own must do for all jets.
        n_bootstrap: number of resamples of the test jets.
        projection: draw PCA and t-SNE of the embeddings.
        jobs: cells that are computed at once, each in a process of its own.
        cell: compute this cell alone, and write no tables: one task of an array job.
        list_cells: print the cells, with their numbers, and compute nothing.
        tables_only: write tables and figures of the cells that are there, and compute nothing.
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
    usual = Row("", "supervised", optimizer, encoder, features, finetuning.head)
    baselines = ["supervised", "random", "observables"] if baselines is None else baselines
    rows = rows_of([*objectives, *baselines], usual, max_particles)
    _check_reference(reference, rows)
    study = Study(
        train=train,
        test=test,
        unlabelled=unlabelled,
        out=out,
        rows=rows,
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
        reference=reference or "",
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
    anew = overwrite and not tables_only
    done = [not anew and read_cell(study, *one) is not None for one in cells]
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
    if tables_only and not any(done):
        raise InputError("no cell is there yet", file=out, remedy="compute some, without --tables-only")
    wanted_cells = [] if tables_only else [cell] if cell is not None else range(len(cells))
    todo = [i for i in wanted_cells if not done[i]]
    say(f"{len(todo)} cells to compute, {sum(done)} of {len(cells)} are there")
    _compute(study, todo, jobs, overwrite, say)
    if cell is not None:
        return record
    found = [(row, seed, read_cell(study, row, seed)) for row, seed in cells]
    numbers = Numbers(study, [(row, seed, content) for row, seed, content in found if content is not None])
    tables = tables_of(numbers, title)
    write_tables(numbers, tables, out)
    draw_comparison(numbers, tables, projection=projection, jobs=jobs)
    if not quiet:
        for table in tables.main:
            table.show()
        say(f"results and figures: {out}")
    return record | {"tables": [table.to_json() for table in tables]}


def _compute(study: Study, todo: list[int], jobs: int, overwrite: bool, say: Any) -> None:
    """Run cells, ``jobs`` at a time."""
    # Jets are read by each process for itself: they are not sent through a pipe.
    study = replace(study, quiet=True) if min(jobs, len(todo)) > 1 else study
    calls = [partial(_run, study, index, overwrite) for index in todo]
    for index in in_parallel(calls, jobs, tell=partial(say, markup=False)):
        row, seed = study.cells[index]
        say(f"cell {index}: {row.name}, seed {seed}: done")


def _run(study: Study, index: int, overwrite: bool) -> int:
    run_cell(study, index, overwrite)
    return index


def _check_reference(name: str | None, rows: list[Row]) -> None:
    if name is None:
        return
    found = [row for row in rows if row.name == name]
    if not found or not any(row.kind == found[0].kind and row.name != name for row in rows):
        raise InputError(
            f"no other row is of the kind of '{name}'" if found else f"there is no row '{name}'",
            field="reference",
            remedy=f"choose a row that others share the kind of, among {', '.join(row.name for row in rows)}",
        )


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
    check_apart([*study.train, *(study.unlabelled or [])], study.test, "test")
    for row in study.rows:
        if row.objective == "observables":
            continue
        parameters_of(row)  # an encoder that cannot be built is told now, and a feature set that a store lacks
        for stores in (study.train, study.test):
            open_pool(stores, columns=row.features.columns)
        if not isinstance(row.objective, str):
            needs = check_needs(row.objective, row.features, study.max_particles)
            columns = (*row.features.columns, *needs.columns)
            open_pool(study.unlabelled or study.train, labelled=needs.labels, history=needs.history, columns=columns)
            if study.max_particles is None and needs.max_particles is not None:
                _check_sees_all(study, row.name, needs.max_particles)
    if study.steps < 1:
        raise InputError(
            f"there are fewer jets than one batch of {study.batch_size}",
            field="batch_size",
            remedy="choose a smaller batch or give more jets",
        )


def _check_sees_all(study: Study, name: str, most: int) -> None:
    longest = max(int(jets.counts.max()) for jets in (study.train_jets, study.test_jets))
    if most < longest:
        raise InputError(
            f"row '{name}' would see the {most} leading particles of jets that have up to {longest}, and the other "
            "rows all of them",
            field="max_particles",
            remedy=f"give --max_particles {most}, or objective.decoder.n_particles {longest}",
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
