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

from jetrep.errors import InputError
from jetrep.evaluation.differences import (
    accuracy_difference_error,
    auc_difference_error,
    rejection_difference_error,
)
from jetrep.evaluation.tagging import combine_measurements, discriminant
from jetrep.objectives.build import needs_of
from jetrep.report.files import replacing
from jetrep.report.latex import to_latex
from jetrep.report.measurement import Measurement
from jetrep.report.tables import ResultsTable
from jetrep.studies.compare_cells import read_scores
from jetrep.studies.compare_study import Row, Study
from jetrep.studies.environment import environment

__all__ = ["GAINS", "HEADS", "Numbers", "tables_of", "title_of_differences", "write_tables"]

GAINS = "Gain over the untrained encoder, seed by seed"
"""Title of the table of gains."""

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


def tables_of(numbers: Numbers, title: str) -> list[ResultsTable]:
    """All heads at all labels; gains over random weights, differences to the reference; each class by head; costs."""
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
    points = ", ".join(f"{signal} {efficiency:g}" for signal, efficiency in study.efficiencies.items())
    if study.reference:
        tables += _differences(numbers, points)
    for head in numbers.heads:
        by_class = {name: _by_class(numbers, name, head) for name in names if numbers.select(name, head, "accuracy")}
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
    scratch = all(isinstance(row.objective, str) for row in study.rows)
    verb, ending = ("trained", ", in whole epochs") if scratch else ("pretrained", "")
    budget = "" if study.budget == "steps" else "the FLOPs of supervised training for "
    return f"{verb} for {budget}{study.steps} steps of {study.batch_size} jets{ending}"


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
    gains: dict[str, dict[str, dict[str, Measurement]]] = {}
    independent = False
    for row in rows:
        if row.objective in ("random", "observables"):
            continue
        inputs = (row.encoder, row.features)
        same = [other for other in rows if other.objective == "random" and (other.encoder, other.features) == inputs]
        for head in numbers.heads if same else ():
            if pairs := numbers.pairs(row.name, same[0].name, head, "auc_ovo"):
                errors = {
                    seed: numbers.difference_error(row.name, same[0].name, head, "auc_ovo", "", [seed])
                    for seed in pairs
                }
                independent |= None in errors.values()
                gain = combine_measurements([_difference(*pair, errors[seed]) for seed, pair in pairs.items()])
                gains.setdefault(row.name, {})[HEADS[head]] = {"macro AUC": gain}
    if not gains:
        return None
    note = "errors of the test jets are those of a difference on the same jets"
    if independent:
        note = "errors of the test jets are in part added in quadrature, as if independent: too large"
    return ResultsTable.collect(GAINS, gains, notes=[note])


def title_of_differences(reference: str) -> str:
    """Title of the table of differences to a row; those of single heads have the head behind it."""
    return f"Difference to {reference}, seed by seed"


def _difference(a: Measurement, b: Measurement, error: float | None) -> Measurement:
    value = a.value - b.value
    if error is None:
        error = float(np.hypot(a.error, b.error))
    return Measurement(value, error, value - error, value + error, a.n, sampling_error=error)


def _differences(numbers: Numbers, points: str) -> list[ResultsTable]:
    """Rows of the kind of the reference minus the reference, over paired seeds: all heads, then each class by head."""
    study, reference = numbers.study, numbers.study.reference
    kind = next(row.kind for row in study.rows if row.name == reference)
    names = [row.name for row in study.rows if row.kind == kind and row.name != reference]
    title = title_of_differences(reference)

    def table(title: str, columns: Mapping[str, tuple[str, str]], metrics: Mapping[str, str], *notes: str) -> Any:
        found: dict[str, dict[str, dict[str, Measurement]]] = {}
        for name in names:
            for column, (head, signal) in columns.items():
                cells = found.setdefault(name, {}).setdefault(column, {})
                for metric, heading in metrics.items():
                    pairs = numbers.pairs(name, reference, head, metric, signal)
                    if pairs and not any(m.limit for pair in pairs.values() for m in pair):
                        jets = numbers.difference_error(name, reference, head, metric, signal, list(pairs))
                        cells |= _paired(heading, list(pairs.values()), jets)
        notes = ("σ: the mean in units of the first, Student's t of one degree of freedom less than seeds", *notes)
        error = (
            "standard error of the mean over paired seeds ± error of the finite number of test jets, where it is known"
        )
        return ResultsTable.collect(title, found, notes=notes, error=error)

    by_head = {HEADS[head]: (head, "") for head in numbers.heads}
    tables = [table(title, by_head, {key: _OVERALL[key] for key in ("auc_ovo", "accuracy")})]
    for head in numbers.heads:
        classes = {signal: (head, signal) for signal in study.efficiencies}
        note = f"ε_S of the rejection: {points}"
        tables.append(table(f"{title}, {HEADS[head]}", classes, {"auc": "AUC", "rejection": "1/ε_B"}, note))
    return tables


def _paired(
    heading: str, pairs: Sequence[tuple[Measurement, Measurement]], jets: float | None
) -> dict[str, Measurement]:
    """Mean difference with its standard error and that of the test ``jets``, and the mean in units of the first."""
    values = np.array([a.value - b.value for a, b in pairs])
    n, mean = len(values), float(values.mean())
    error = float(values.std(ddof=1)) / n**0.5 if n > 1 else np.nan
    total = error if jets is None else float(np.hypot(error, jets)) if n > 1 else jets
    known = jets is not None and n > 1
    found = {
        heading: Measurement(
            *(mean, total, mean - total, mean + total),
            sampling_error=jets if known else None,
            seed_error=error if known else None,
            n_seeds=n,
        )
    }
    if error > 0:
        found[f"{heading}: σ"] = Measurement(mean / error, np.nan, mean / error, mean / error, n_seeds=n)
    return found


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
    exact: dict[int, list[str]] = {}
    for row in numbers.study.rows:
        for n in {cell["costs"]["parameters"] for other, _, cell in numbers.cells if other.name == row.name} - {0}:
            exact.setdefault(n, []).append(row.name)
    notes = [
        "parameters of the encoder: "
        + ("; ".join(f"{n}" if len(exact) == 1 else f"{n} ({', '.join(of)})" for n, of in exact.items()) or "none"),
        "seconds: all trainings of a cell, without probes; device-seconds: of accelerators, on a CPU of its cores",
        "FLOPs: matrix products, convolutions and attention, counted on one batch",
    ]
    return ResultsTable.collect("Costs", found, notes=notes, error="standard deviation over seeds")


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
