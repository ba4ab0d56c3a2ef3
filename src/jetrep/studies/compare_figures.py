"""The figures of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jetrep.jets import Jets
from jetrep.progress import progress
from jetrep.report.comparison import bars, confusions, label_efficiency
from jetrep.report.figures import results
from jetrep.report.style import save
from jetrep.studies.compare_numbers import HEADS, Numbers
from jetrep.studies.compare_study import Row
from jetrep.studies.compare_tables import Tables
from jetrep.studies.evaluate import draw_embedding
from jetrep.studies.parallel import in_parallel
from jetrep.training.checkpoint import RECORD, load_model

__all__ = ["draw_comparison"]

_PROJECTED = 1500  # jets


def draw_comparison(numbers: Numbers, tables: Tables, *, projection: bool = True, jobs: int = 1) -> None:
    """Draw all figures into the folder of the study.

    They are bars of each metric, differences to untrained encoders and to the reference, label efficiency, confusion
    matrices and embeddings.

    Args:
        numbers: all numbers.
        tables: those of `tables_of`.
        projection: draw PCA and t-SNE of the embeddings of the first finished seed, too.
        jobs: how many of these are computed at once.
    """
    study, out = numbers.study, numbers.study.out
    for metric, stem in (("macro AUC", "auc"), ("accuracy", "accuracy")):
        save(bars(tables.overall, metric, baseline=_baseline(numbers)), out / f"{stem}.png", pdf=True)
    for table, stem, zero in (
        (tables.gains, "gain", "untrained"),
        (next(iter(tables.differences), None), "difference", study.reference),
    ):
        if table is not None and table.cells:
            save(results(table, ["macro AUC"], zero=zero), out / f"{stem}.png", pdf=True)
    curves = {
        HEADS[head]: {
            row.name: {
                n: m
                for n in numbers.n_labels(head)
                if (m := numbers.mean(row.name, head, "auc_ovo", n_labels=n)) is not None
            }
            for row in study.rows
            if numbers.select(row.name, head, "auc_ovo")
        }
        for head in numbers.heads
        if len(numbers.n_labels(head)) > 1
    }
    # A head of one row alone has nothing to be compared with.
    curves = {head: lines for head, lines in curves.items() if len(lines) > 1} or curves
    if curves:
        save(label_efficiency(curves), out / "label_efficiency.png", pdf=True)
    first: dict[str, tuple[Row, int, Mapping[str, Any]]] = {}
    for row, seed, cell in numbers.cells:
        first.setdefault(row.name, (row, seed, cell["confusions"]))
    for head in numbers.heads:
        matrices = {name: found[head] for name, (_, _, found) in first.items() if head in found}
        save(confusions(matrices, study.test_jets.classes), out / f"confusion-{head}.png", pdf=True)
    if not projection:
        return
    chosen = np.sort(np.random.default_rng(0).permutation(len(study.test_jets))[:_PROJECTED])
    panels = []
    for row, seed, _ in first.values():
        folder = study.folder(row, seed)
        run = next(
            (folder / name for name in ("pretrain", "supervised-all") if (folder / name / RECORD).exists()), None
        )
        if run is not None:
            file = out / f"embedding-{folder.name.removesuffix(f'-seed-{seed}')}.png"
            jets = {row.name: study.test_jets[chosen]}
            panels.append(partial(_project, run, jets, file, study.engine.accelerator))
    with progress(total=len(panels), description="project", unit="panel", quiet=study.quiet) as bar:
        for _ in in_parallel(panels, jobs):
            bar.update(1)


def _project(run: Path, jets: dict[str, Jets], file: Path, accelerator: str) -> None:
    draw_embedding(load_model(run, accelerator), jets, file, seed=0, n_jets=_PROJECTED, quiet=True)


def _baseline(numbers: Numbers) -> str:
    return next((row.name for row in numbers.study.rows if row.objective == "random"), numbers.study.reference)
