"""What a comparison writes: one Parquet file of all numbers, and tables of their means over seeds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from jetrep.evaluation.tagging import combine_measurements
from jetrep.objectives.build import needs_of
from jetrep.report.files import replacing
from jetrep.report.latex import to_latex
from jetrep.report.measurement import Measurement
from jetrep.report.tables import ResultsTable
from jetrep.studies.compare_numbers import HEADS, Numbers
from jetrep.studies.compare_study import Study
from jetrep.studies.environment import distinct

__all__ = ["Tables", "tables_of", "write_tables"]

_OVERALL = {"accuracy": "accuracy", "auc_ovo": "macro AUC"}


@dataclass(frozen=True)
class Tables:
    """The tables of a comparison; one after the other they are what is written.

    Attributes:
        overall: accuracy and macro AUC of every row by head.
        gains: macro AUC minus that of the untrained encoder; None without such a row.
        differences: to the reference, of all heads, then of each class by head; none without a reference.
        by_class: each class against the background, one table for each head.
        costs: parameters, steps, operations and seconds.
    """

    overall: ResultsTable
    gains: ResultsTable | None
    differences: Sequence[ResultsTable]
    by_class: Sequence[ResultsTable]
    costs: ResultsTable

    @property
    def main(self) -> list[ResultsTable]:
        """Those that answer the question of the comparison."""
        return [self.overall, *([self.gains] if self.gains else []), *self.differences[:1]]

    def __iter__(self) -> Iterator[ResultsTable]:
        yield from (*self.main, *self.differences[1:], *self.by_class, self.costs)


def tables_of(numbers: Numbers, title: str) -> Tables:
    """The tables of all numbers, at the largest number of labels; ``title`` is that of the first."""
    study = numbers.study
    there = {row.name for row, _, _ in numbers.cells}
    names = [row.name for row in study.rows if row.name in there]
    environments = distinct(cell.get("environment") for _, _, cell in numbers.cells)
    provenance = {
        "settings": [study.settings(row, 0) for row in study.rows],
        "seeds": study.seeds,
        "environments": environments,
    }
    notes = [
        f"{len(study.train_jets)} labelled jets to train on, {len(study.test_jets)} to judge on; {_steps(study)}; "
        f"probes of frozen embeddings see at most {study.max_probe_jets} labels",
        "random: the untrained encoder, treated as the pretrained ones, fine-tuning included; supervised: from scratch "
        "for as many steps as the others are pretrained; where its probes see fewer labels than there are, the encoder "
        "has seen all",
    ]
    labelled = [row.name for row in study.rows if not isinstance(row.objective, str) and needs_of(row.objective).labels]
    if labelled:
        notes.append(f"pretrained with the labels of all jets: {', '.join(labelled)}")
    if missing := len(study.cells) - len(numbers.cells):
        notes.append(f"{missing} of {len(study.cells)} cells are missing")
    if len(environments) > 1:
        notes.append("the cells were not all computed alike (processor, threads, code or precision): see results.json")
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
    points = ", ".join(f"{signal} {efficiency:g}" for signal, efficiency in study.efficiencies.items())
    by_class = [
        ResultsTable.collect(
            f"{HEADS[head]}: each class against {study.background}",
            {name: _by_class(numbers, name, head) for name in names if numbers.select(name, head, "accuracy")},
            notes=[
                f"score p_S/(p_S + p_B); ε_S of the rejection: {points}",
                "ε_S is not measured at an ε_B below one background jet; "
                "it is 0 where more background than ε_B shares the highest score, as votes of neighbours do",
            ],
        )
        for head in numbers.heads
    ]
    return Tables(
        ResultsTable.collect(title, overall, notes=notes, provenance=provenance),
        _gains(numbers),
        _differences(numbers, points) if study.reference else [],
        by_class,
        _costs(numbers),
    )


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
    return ResultsTable.collect("Gain over the untrained encoder, seed by seed", gains, notes=[note])


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
    title = f"Difference to {reference}, seed by seed"

    def differences(
        title: str, columns: Mapping[str, tuple[str, str]], metrics: Mapping[str, str], *notes: str
    ) -> ResultsTable:
        found: dict[str, dict[str, dict[str, Measurement]]] = {}
        for name in names:
            for column, (head, signal) in columns.items():
                cells: dict[str, Measurement] = {}
                for metric, heading in metrics.items():
                    pairs = numbers.pairs(name, reference, head, metric, signal)
                    if pairs and not any(m.limit for pair in pairs.values() for m in pair):
                        jets = numbers.difference_error(name, reference, head, metric, signal, list(pairs))
                        cells |= _paired(heading, list(pairs.values()), jets)
                if cells:
                    found.setdefault(name, {})[column] = cells
        notes = ("σ: the mean in units of the first, Student's t of one degree of freedom less than seeds", *notes)
        error = (
            "standard error of the mean over paired seeds ± error of the finite number of test jets, where it is known"
        )
        return ResultsTable.collect(title, found, notes=notes, error=error)

    by_head = {HEADS[head]: (head, "") for head in numbers.heads}
    tables = [differences(title, by_head, {key: _OVERALL[key] for key in ("auc_ovo", "accuracy")})]
    for head in numbers.heads:
        classes = {signal: (head, signal) for signal in study.efficiencies}
        note = f"ε_S of the rejection: {points}"
        tables.append(differences(f"{title}, {HEADS[head]}", classes, {"auc": "AUC", "rejection": "1/ε_B"}, note))
    return [table for table in tables if table.methods]


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
        "FLOPs: matrix products, convolutions and attention, counted on one batch; the training of a tokeniser, which "
        "comes before the first step, is in the seconds alone",
    ]
    return ResultsTable.collect("Costs", found, notes=notes, error="standard deviation over seeds")


def write_tables(numbers: Numbers, tables: Tables, out: Path) -> None:
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
