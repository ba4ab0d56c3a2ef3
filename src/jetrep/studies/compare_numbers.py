"""The numbers of a comparison: every one of every seed, their means, and the errors of their differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from jetrep.errors import InputError
from jetrep.evaluation.differences import (
    accuracy_difference_error,
    auc_difference_error,
    rejection_difference_error,
)
from jetrep.evaluation.tagging import combine_measurements, discriminant
from jetrep.report.measurement import Measurement
from jetrep.studies.compare_cells import read_scores
from jetrep.studies.compare_study import Row, Study

__all__ = ["HEADS", "Numbers"]

HEADS: Mapping[str, str] = {
    "knn": "k-NN",
    "linear_cls": "linear, class token",
    "linear_mean": "linear, mean token",
    "linear": "linear",
    "bdt": "boosted trees",
    "finetune": "fine-tuned",
}
"""Heads, and how they are called in tables and figures."""

_COSTS = ("parameters", "steps", "flops_per_jet", "step_flops_per_jet", "seconds", "device_seconds")


@dataclass
class Numbers:
    """The numbers of all finished cells.

    Attributes:
        study: the comparison.
        cells: row, seed and what `run_cell` returned.
    """

    study: Study
    cells: Sequence[tuple[Row, int, Mapping[str, Any]]]

    def select(self, row: str, head: str, metric: str, signal: str = "", n_labels: int | None = None) -> Any:
        """Measurements of one row by seed; of the largest number of labels by default."""
        found: dict[int, dict[int, Measurement]] = {}
        for cell, seed, numbers in self.cells:
            for result in numbers["results"] if cell.name == row else ():
                if (result["head"], result["metric"], result["signal"]) == (head, metric, signal):
                    found.setdefault(result["n_labels"], {})[seed] = Measurement.from_json(result["measurement"])
        n = max(found, default=0) if n_labels is None else n_labels
        return found.get(n, {})

    def mean(
        self, row: str, head: str, metric: str, signal: str = "", n_labels: int | None = None
    ) -> Measurement | None:
        """Mean and spread over seeds, or None if there are no such numbers."""
        seeds = list(self.select(row, head, metric, signal, n_labels).values())
        return combine_measurements(seeds) if seeds else None

    def pairs(self, row: str, other: str, head: str, metric: str, signal: str = "") -> dict[int, tuple[Any, Any]]:
        """Pairs of measurements of two rows, of the largest number of labels, for each seed that both have."""
        a, b = (self.select(name, head, metric, signal) for name in (row, other))
        return {seed: (a[seed], b[seed]) for seed in a if seed in b}

    def difference_error(
        self, row: str, other: str, head: str, metric: str, signal: str, seeds: Sequence[int]
    ) -> float | None:
        """What the finite number of test jets, the same for both rows, leaves of error in their mean difference.

        None where the scores of the test jets were not kept, or no background jet passes a cut on them.
        """
        by_name = {one.name: one for one in self.study.rows}
        kept = [[read_scores(self.study, by_name[name], seed, head) for name in (row, other)] for seed in seeds]
        found = [(ours, theirs) for ours, theirs in kept if ours is not None and theirs is not None]
        if len(found) < len(kept):
            return None
        truth = self.study.test_jets.truth
        if metric in ("accuracy", "auc_ovo"):
            error = accuracy_difference_error if metric == "accuracy" else auc_difference_error
            return error(found, truth)
        classes = self.study.test_jets.classes
        pair = {"signal": classes.index(signal), "background": classes.index(self.study.background)}
        scores = [(discriminant(a, truth, **pair)[0], discriminant(b, truth, **pair)[0]) for a, b in found]
        is_signal = discriminant(found[0][0], truth, **pair)[1]
        if metric == "auc":
            return auc_difference_error(
                [(np.stack([1 - a, a], 1), np.stack([1 - b, b], 1)) for a, b in scores], is_signal
            )
        efficiency, n = self.study.efficiencies[signal], self.study.n_bootstrap
        try:
            return rejection_difference_error(scores, is_signal, efficiency=efficiency, n_bootstrap=n)
        except InputError:
            return None  # in the single precision of the kept scores the only jet that passed may not

    def n_labels(self, head: str) -> list[int]:
        """Numbers of labels on which a head was trained."""
        return sorted({r["n_labels"] for _, _, cell in self.cells for r in cell["results"] if r["head"] == head})

    @property
    def heads(self) -> list[str]:
        """Heads of which there are numbers."""
        present = {result["head"] for _, _, cell in self.cells for result in cell["results"]}
        return [head for head in HEADS if head in present]

    def to_arrow(self) -> pa.Table:
        """One row for each cell, head, number of labels, metric and signal."""
        columns: dict[str, list[Any]] = {}
        for row, seed, cell in self.cells:
            for result in cell["results"]:
                measured = result["measurement"]
                record = {
                    "row": row.name,
                    "kind": row.kind,
                    "seed": seed,
                    **{key: result[key] for key in ("head", "n_labels", "metric", "signal")},
                    **{key: measured[key] for key in ("value", "error", "low", "high", "n", "limit")},
                    **{key: cell["costs"][key] for key in _COSTS},
                }
                for key, value in record.items():
                    columns.setdefault(key, []).append(value)
        floats = {"value", "error", "low", "high", "flops_per_jet", "step_flops_per_jet", "seconds", "device_seconds"}
        texts = {"row", "kind", "head", "metric", "signal"}

        def type_of(name: str) -> Any:
            if name == "limit":
                return pa.bool_()
            return pa.float64() if name in floats else pa.string() if name in texts else pa.int64()

        return pa.table({name: pa.array(values, type_of(name)) for name, values in columns.items()})
