"""The results of a study as one table: methods × domains × metrics, for the terminal, Markdown, JSON and figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table

from jetrep.errors import InputError
from jetrep.report.files import replacing
from jetrep.report.measurement import Measurement, format_measurement

__all__ = ["METRIC_NAMES", "Errors", "ResultsTable"]

Errors = Literal["total", "seeds", "both"]

METRIC_NAMES: Mapping[str, str] = {
    "accuracy": "Accuracy",
    "auc": "ROC AUC",
    "rejection_30": "1/ε_B (ε_S = 0.3)",
    "rejection_50": "1/ε_B (ε_S = 0.5)",
}
"""Headings of the known metrics; a metric that is not here is headed by its own name."""

_OF_JETS = "± error of the finite number of jets"
_ERRORS_MEAN: Mapping[str, str] = {
    "total": "± total error: spread over seeds and finite number of jets, in quadrature",
    "seeds": f"± standard deviation over training seeds; where there is one seed, {_OF_JETS}",
    "both": f"± standard deviation over training seeds {_OF_JETS}; where there is one seed, the latter alone",
}
_MISSING = "–"


@dataclass(frozen=True)
class ResultsTable:
    """Measurements by method, domain and metric; a cell may be missing, and is printed as a dash.

    Attributes:
        title: what the table shows.
        methods: rows, from top to bottom.
        domains: groups of columns, such as simulation and collisions.
        metrics: columns within each group.
        cells: the measurement of (method, domain, metric).
        notes: lines below the table: number of jets, baselines, what was dropped.
        error: what stands behind ±, in a table where it is nothing usual.
        provenance: whatever identifies the run (configuration, data hashes, code version), kept in the JSON only.
    """

    title: str
    methods: tuple[str, ...]
    domains: tuple[str, ...]
    metrics: tuple[str, ...]
    cells: Mapping[tuple[str, str, str], Measurement]
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""

    def __post_init__(self) -> None:
        for method, domain, metric in self.cells:
            for name, known, axis in (
                (method, self.methods, "methods"),
                (domain, self.domains, "domains"),
                (metric, self.metrics, "metrics"),
            ):
                if name not in known:
                    raise InputError(f"'{name}' is not among {known}", field=axis, remedy="name all rows and columns")

    @classmethod
    def collect(
        cls,
        title: str,
        results: Mapping[str, Mapping[str, Mapping[str, Measurement]]],
        *,
        metrics: Sequence[str] | None = None,
        notes: Sequence[str] = (),
        provenance: Mapping[str, Any] | None = None,
        error: str = "",
    ) -> ResultsTable:
        """From nested mappings ``results[method][domain][metric]``; rows and columns keep the order in which they come.

        Args:
            title: what the table shows.
            results: measurements, for instance from ``TaggingMetrics.measurements()``.
            metrics: the metrics to keep, in order; all if None.
            notes: lines below the table.
            provenance: what identifies the run.
            error: what stands behind ±, if it is nothing usual.
        """
        cells = {
            (method, domain, metric): measurement
            for method, domains in results.items()
            for domain, measured in domains.items()
            for metric, measurement in measured.items()
            if metrics is None or metric in metrics
        }
        return cls(
            title,
            tuple(results),
            tuple(dict.fromkeys(domain for _, domain, _ in cells)),
            tuple(metrics) if metrics is not None else tuple(dict.fromkeys(metric for _, _, metric in cells)),
            cells,
            tuple(notes),
            dict(provenance or {}),
            error,
        )

    def cell(self, method: str, domain: str, metric: str, errors: Errors = "total") -> str:
        """One cell as text."""
        measurement = self.cells.get((method, domain, metric))
        return _MISSING if measurement is None else format_measurement(measurement, errors)

    def caption(self, errors: Errors = "total") -> str:
        """What the errors mean, what ">" means if it occurs, and the notes: one line each."""
        seeds = sorted({m.n_seeds for m in self.cells.values()})
        usual = _ERRORS_MEAN[errors] if seeds and seeds[-1] > 1 else _OF_JETS
        lines = [f"± {self.error}" if self.error else usual]
        if seeds and seeds[-1] > 1:
            lines[0] += f" ({' or '.join(map(str, seeds))} seed{'s' * (seeds != [1])})"
        if limits := [m for m in self.cells.values() if m.limit]:
            several = any(m.n_seeds > 1 for m in limits)
            who = ", with one of the seeds or more" if several else ""
            lines.append(f"> : lower limit at 95 % confidence, no background jet passes{who}")
        return "\n".join([*lines, *self.notes])

    def to_rich(self, errors: Errors = "total", *, layout: Literal["wide", "long"] = "wide") -> Table:
        """For the terminal.

        Args:
            errors: which errors to print.
            layout: ``wide``: the domains side by side; ``long``: one below the other, for narrow terminals.
        """
        table = Table(
            title=escape(self.title), caption=escape(self.caption(errors)), caption_justify="left", header_style="bold"
        )
        table.add_column("Method", overflow="fold")
        for domain in self.domains if layout == "wide" else ("",):
            for metric in self.metrics:
                heading = "\n".join([*filter(None, [domain]), *_heading(metric).split(" (", 1)])
                table.add_column(heading.replace("ε_S", "(ε_S"), justify="right", no_wrap=True)
        if layout == "wide":
            for method in self.methods:
                table.add_row(escape(method), *self._row(method, self.domains, errors))
            return table
        for domain in self.domains:
            table.add_row(f"[bold]{escape(domain)}[/bold]")
            for method in self.methods:
                if any((method, domain, metric) in self.cells for metric in self.metrics):
                    table.add_row(f"  {escape(method)}", *self._row(method, [domain], errors))
            table.add_section()
        return table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """``rich.print(table)`` takes the wide layout where it fits."""
        wide = self.to_rich()
        fits = console.measure(wide, options=options.update(width=10_000)).maximum <= options.max_width
        yield wide if fits else self.to_rich(layout="long")

    def show(self) -> None:
        """Print to standard output; into a file or a pipe at full width, since nobody can widen it there later."""
        console = Console()
        if not console.is_terminal:
            console.width = max(console.width, 200)
        console.print(self)

    def to_markdown(self, errors: Errors = "total") -> str:
        """A GitHub-flavoured Markdown table with its caption below."""
        heads = [
            ": ".join(filter(None, (domain, _heading(metric)))) for domain in self.domains for metric in self.metrics
        ]
        rows = [
            ["Method", *heads],
            [":--", *("--:" for _ in heads)],
            *([method, *self._row(method, self.domains, errors)] for method in self.methods),
        ]
        lines = ["| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in rows]
        caption = self.caption(errors).replace("\n", "  \n")
        return "\n".join([f"**{self.title}**", "", *lines, "", caption, ""])

    def _row(self, method: str, domains: Sequence[str], errors: Errors) -> list[str]:
        return [self.cell(method, domain, metric, errors) for domain in domains for metric in self.metrics]

    def to_json(self) -> dict[str, Any]:
        """Plain types for JSON, with every number at full precision, nested as method → domain → metric."""
        results: dict[str, dict[str, dict[str, Any]]] = {method: {} for method in self.methods}
        for (method, domain, metric), measurement in self.cells.items():
            results[method].setdefault(domain, {})[metric] = measurement.to_json()
        return {
            "title": self.title,
            "methods": list(self.methods),
            "domains": list(self.domains),
            "metrics": list(self.metrics),
            "results": results,
            "notes": list(self.notes),
            "provenance": dict(self.provenance),
            "error": self.error,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ResultsTable:
        """The inverse of `to_json`.

        Raises:
            InputError: if a key is missing.
        """
        missing = [key for key in ("title", "methods", "domains", "metrics", "results") if key not in record]
        if missing:
            raise InputError("not a table of results", field=missing[0], remedy="give a file written by `save`")
        cells = {
            (method, domain, metric): Measurement.from_json(measurement)
            for method, domains in record["results"].items()
            for domain, measured in domains.items()
            for metric, measurement in measured.items()
        }
        methods, domains, metrics = (tuple(record[key]) for key in ("methods", "domains", "metrics"))
        return cls(
            record["title"],
            methods,
            domains,
            metrics,
            cells,
            tuple(record.get("notes", ())),
            dict(record.get("provenance", {})),
            str(record.get("error", "")),
        )

    def save(self, path: str | Path) -> Path:
        """Write ``.json`` or ``.md``, under a temporary name first.

        Raises:
            InputError: if the suffix is another one, or the file cannot be written.
        """
        file = Path(path)
        if file.suffix not in (".json", ".md"):
            raise InputError(f"no table format is called '{file.suffix}'", file=file, remedy="use .json or .md")
        text = (
            self.to_markdown()
            if file.suffix == ".md"
            else json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        )
        with replacing(file) as stream:
            stream.write(text.encode())
        return file

    @classmethod
    def load(cls, path: str | Path) -> ResultsTable:
        """Read a ``.json`` written by `save`.

        Raises:
            InputError: if the file cannot be read or is not such a table.
        """
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as problem:
            raise InputError(
                f"no table can be read ({problem})", file=path, remedy="give a file written by `save`"
            ) from problem
        if not isinstance(record, dict):
            raise InputError("not a table of results", file=path, remedy="give a file written by `save`")
        return cls.from_json(record)


def _heading(metric: str) -> str:
    return METRIC_NAMES.get(metric, metric)
