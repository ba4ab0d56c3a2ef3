"""The figures of the transfer study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jetrep.evaluation.tagging import rejection_curve
from jetrep.report.figures import RocCurve, results, roc, score_distributions
from jetrep.report.style import save
from jetrep.report.tables import ResultsTable
from jetrep.studies.evaluate import EFFICIENCIES, draw_embedding
from jetrep.studies.protocol import COLLISIONS, Stores
from jetrep.training.checkpoint import load_model

__all__ = ["draw_study"]


def draw_study(
    table: ResultsTable,
    stores: Stores,
    scores: Mapping[str, Mapping[str, Sequence[NDArray[np.float64]]]],
    out: Path,
    *,
    quiet: bool = False,
) -> None:
    """Draw results.png (the table), roc.png, scores.png and embedding.png.

    Args:
        table: the table of the study.
        stores: its jets.
        scores: for each row and domain, the scores of the test jets, one array a seed.
        out: folder of the study.
        quiet: show no progress.
    """
    save(results(table, ["auc", "rejection_30"]), out / "results.png")
    labels = stores.tests[COLLISIONS].truth
    curves = [
        RocCurve.from_seeds(
            row, COLLISIONS, EFFICIENCIES, [rejection_curve(s, labels, EFFICIENCIES) for s in domains[COLLISIONS]]
        )
        for row, domains in scores.items()
        if not row.startswith(("RINO, linear", "frozen random"))
    ]
    background, signal = stores.classes
    title = "Judged on collisions, labels from simulation"
    save(roc(curves, title=title, signal=signal, background=background), out / "roc.png")
    tagger = next(row for row in scores if row.startswith("RINO, MLP"))
    shown = {domain: (scores[tagger][domain][0], jets.truth) for domain, jets in stores.tests.items()}
    save(score_distributions(shown, stores.classes, label=f"Score of {signal}: {tagger}"), out / "scores.png")
    model = load_model(out / "seed-0" / "pretrain", "auto")
    draw_embedding(model, stores.tests, out / "embedding.png", seed=0, quiet=quiet)
