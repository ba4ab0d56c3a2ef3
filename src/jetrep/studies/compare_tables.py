"""What a comparison writes: one Parquet file of all numbers, and tables of their means over seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jetrep.evaluation.tagging import combine_measurements
from jetrep.objectives.build import needs_of
from jetrep.report.files import replacing
from jetrep.report.latex import to_latex
from jetrep.report.measurement import Measurement
from jetrep.report.tables import ResultsTable
from jetrep.studies.compare_study import Row, Study
from jetrep.studies.environment import environment

__all__ = ["HEADS", "Numbers", "tables_of", "write_tables"]

HEADS: Mapping[str, str] = {
    "knn": "k-NN",
    "linear_cls": "linear, class token",
    "linear_mean": "linear, mean token",
    "linear": "linear",
    "bdt": "boosted trees",
    "finetune": "fine-tuned",
}
"""Heads, and how they are called in tables and figures."""

_OVERALL = {"accuracy": "accuracy", "auc_ovo": "macro AUC"}
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


def tables_of(numbers: Numbers, title: str) -> list[ResultsTable]:
    """All heads at all labels; gains over random weights; each class by each head; costs."""
    study = numbers.study
    names = [row.name for row in study.rows]
    provenance = {
        "settings": [study.settings(row, 0) for row in study.rows],
        "seeds": study.seeds,
        "environment": environment(),
    }
    notes = [
        f"{len(study.train_jets)} labelled jets to train on, {len(study.test_jets)} to judge on; {_steps(study)}; "
        f"probes of frozen embeddings see at most {study.max_probe_jets} labels",
        "random: the untrained encoder, treated as the pretrained ones, fine-tuning included; supervised: from scratch "
        "for as many steps as the others are pretrained, on no more labels than its probes",
    ]
    labelled = [row.name for row in study.rows if not isinstance(row.objective, str) and needs_of(row.objective).labels]
    if labelled:
        notes.append(f"pretrained with the labels of all jets: {', '.join(labelled)}")
    overall = {
        name: {
            HEADS[head]: {
                heading: m
                for metric, heading in _OVERALL.items()
                if (m := numbers.mean(name, head, metric)) is not None
            }
            for head in numbers.heads
        }
        for name in names
    }
    tables = [ResultsTable.collect(title, overall, notes=notes, provenance=provenance)]
    if (gains := _gains(numbers)) is not None:
        tables.append(gains)
    for head in numbers.heads:
        by_class = {name: _by_class(numbers, name, head) for name in names if numbers.select(name, head, "accuracy")}
        points = ", ".join(f"{signal} {efficiency:g}" for signal, efficiency in study.efficiencies.items())
        tables.append(
            ResultsTable.collect(
                f"{HEADS[head]}: each class against {study.background}",
                by_class,
                notes=[
                    f"score p_S/(p_S + p_B); ε_S of the rejection: {points}",
                    "ε_S is not measured at an ε_B below one background jet",
                ],
            )
        )
    return [*tables, _costs(numbers)]


def _steps(study: Study) -> str:
    if study.budget == "steps":
        return f"pretrained for {study.steps} steps of {study.batch_size} jets"
    return f"pretrained for the FLOPs of {study.steps} supervised steps of {study.batch_size} jets"


def _by_class(numbers: Numbers, row: str, head: str) -> dict[str, dict[str, Measurement]]:
    headings = {
        "auc": "AUC",
        "rejection": "1/ε_B",
        "efficiency_at_0.01": "ε_S at ε_B = 1 %",
        "efficiency_at_0.001": "ε_S at ε_B = 0.1 %",
    }
    return {
        signal: {
            heading: m
            for metric, heading in headings.items()
            if (m := numbers.mean(row, head, metric, signal)) is not None
        }
        for signal in numbers.study.efficiencies
    }


def _gains(numbers: Numbers) -> ResultsTable | None:
    """Macro AUC minus that of the same encoder, untrained, of the same seed; None without such a row."""
    rows = numbers.study.rows
    random = next((row.name for row in rows if row.objective == "random"), None)
    others = [row.name for row in rows if row.objective not in ("random", "observables")]
    if random is None or not others:
        return None
    gains: dict[str, dict[str, dict[str, Measurement]]] = {}
    for name in others:
        for head in numbers.heads:
            reference = numbers.select(random, head, "auc_ovo")
            seeds = numbers.select(name, head, "auc_ovo")
            both = [_difference(seeds[seed], reference[seed]) for seed in seeds if seed in reference]
            if both:
                gains.setdefault(name, {})[HEADS[head]] = {"macro AUC": combine_measurements(both)}
    note = "errors of the test jets are added in quadrature, as if independent: too large, for the jets are the same"
    return ResultsTable.collect(f"Gain over {random}, seed by seed", gains, notes=[note])


def _difference(a: Measurement, b: Measurement) -> Measurement:
    value, error = a.value - b.value, float(np.hypot(a.error, b.error))
    return Measurement(value, error, value - error, value + error, a.n, sampling_error=error)


def _costs(numbers: Numbers) -> ResultsTable:
    headings = {
        "parameters": "parameters",
        "steps": "steps",
        "flops_per_jet": "MFLOP per jet, encoding",
        "step_flops_per_jet": "MFLOP per jet, training step",
        "seconds": "wall seconds",
        "device_seconds": "device-seconds",
    }
    found: dict[str, dict[str, dict[str, Measurement]]] = {}
    for row in numbers.study.rows:
        costs = [cell["costs"] for other, _, cell in numbers.cells if other.name == row.name]
        for key, heading in headings.items():
            values = [cost[key] * (1e-6 if "flops" in key else 1) for cost in costs if cost[key] is not None]
            if values and (key in ("seconds", "device_seconds") or values[0]):
                # What does not depend on the seed has no error.
                mean, spread = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else np.nan
                found.setdefault(row.name, {}).setdefault("of a cell", {})[heading] = Measurement(
                    mean, spread or np.nan, mean, mean, seed_error=None, n_seeds=len(values)
                )
    exact = {cell["costs"]["parameters"] for _, _, cell in numbers.cells} - {0}
    notes = [
        f"the encoder has {' or '.join(map(str, exact))} parameters" if exact else "there is no encoder",
        "seconds: all trainings of a cell, without probes; device-seconds: of accelerators, on a CPU of its cores",
        "FLOPs: matrix products, convolutions and attention, counted on one batch",
    ]
    return ResultsTable.collect("Costs", found, notes=notes)


def write_tables(numbers: Numbers, tables: Sequence[ResultsTable], out: Path) -> None:
    """results.parquet, results.json, results.md and results.tex."""
    with replacing(out / "results.parquet") as stream:
        pq.write_table(numbers.to_arrow(), stream)
    record = [table.to_json() for table in tables]
    texts = {
        "results.json": json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n",
        "results.md": "\n".join(table.to_markdown("both") for table in tables),
        "results.tex": "\n".join(to_latex(table, "both") for table in tables),
    }
    for name, text in texts.items():
        with replacing(out / name) as stream:
            stream.write(text.encode())
