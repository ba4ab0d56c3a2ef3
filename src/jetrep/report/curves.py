"""How a training went: the metrics that were logged, read from CSV or JSON lines and drawn against the step."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from jetrep.errors import InputError
from jetrep.report.style import colour, new_figure, style

__all__ = ["read_metrics", "training_curves"]

_NOT_METRICS = ("step", "epoch", "time", "wall_time")
_PARTS = {"train": "training", "training": "training", "val": "validation", "valid": "validation", "test": "test"}
_NAMES = {"lr": "Learning rate"}
_SMOOTHED_ABOVE = 200
_LOG_ABOVE = 30.0


def read_metrics(path: str | Path) -> dict[str, NDArray[np.float64]]:
    """Logged metrics by name, one value a row, NaN where a row does not have the metric.

    Args:
        path: ``.csv`` with a heading, as Lightning's ``CSVLogger`` writes it (empty cells are missing values), or
            ``.jsonl`` with one object a line. A last line that a crash cut short is left out.

    Returns:
        Columns of numbers, each of shape (n_rows,); columns of text are left out.

    Raises:
        InputError: if the file cannot be read, is neither of the two, or has no rows.
    """
    file = Path(path)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(f"no metrics can be read ({problem})", file=file, remedy="give a .csv or .jsonl") from problem
    if file.suffix == ".csv":
        rows: list[Mapping[str, Any]] = list(csv.DictReader(lines))
    elif file.suffix == ".jsonl":
        rows = list(_json_lines(file, lines))
    else:
        raise InputError(f"'{file.suffix}' is not a log of metrics", file=file, remedy="give a .csv or .jsonl")
    if not rows:
        raise InputError("there are no metrics in it", file=file, remedy="train for at least one step")
    names = dict.fromkeys(name for row in rows for name in row if name is not None)
    columns = {name: np.array([_number(row.get(name)) for row in rows]) for name in names}
    return {name: column for name, column in columns.items() if not np.isnan(column).all()}


def _json_lines(file: Path, lines: Sequence[str]) -> Iterable[Mapping[str, Any]]:
    for i, text in enumerate(lines):
        try:
            row = json.loads(text) if text.strip() else {}
            if not isinstance(row, dict):
                raise ValueError("not an object")
        except ValueError as problem:
            if i == len(lines) - 1:
                return
            raise InputError(f"line {i + 1} is not a JSON object", file=file, remedy="delete the line") from problem
        if row:
            yield row


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return np.nan


@style()
def training_curves(
    metrics: Mapping[str, ArrayLike] | str | Path, *, names: Sequence[str] | None = None, x: str = "step"
) -> Figure:
    """Logged metrics against the step: a panel per quantity, with training and validation in the same panel.

    ``train/loss``, ``train_loss_step`` and ``val_loss`` share the panel "loss". A quantity that is positive and spans
    more than a factor of 30 has a logarithmic axis. More than 200 noisy points are drawn pale, under their running
    mean.

    Args:
        metrics: columns of equal length (NaN where there is no value), or the file to read them from.
        names: the columns to draw; all but steps and epochs if None.
        x: the column for the horizontal axis; the number of the row where there is no such column.

    Raises:
        InputError: if a name is unknown, or nothing is left to draw.
    """
    columns = read_metrics(metrics) if isinstance(metrics, str | Path) else metrics
    values = {name: np.asarray(column, np.float64) for name, column in columns.items()}
    for name in names or ():
        if name not in values:
            raise InputError("the metric was not logged", field=name, remedy=f"use some of {', '.join(values)}")
    drawn = [name for name in (names or values) if name not in (*_NOT_METRICS, x)]
    panels: dict[str, list[tuple[str, str]]] = {}
    for name in drawn:
        quantity, part = _quantity(name)
        panels.setdefault(quantity, []).append((name, part))
    if not panels:
        raise InputError("there is no metric to draw", field="metrics", remedy="log at least one")
    n_columns = min(3, len(panels))
    n_rows = -(-len(panels) // n_columns)
    width, height = 0.3 + 4.4 * n_columns, 0.2 + 3.2 * n_rows
    # Margins in inches: to find out how much room the labels need takes longer than a short training.
    figure = new_figure(width, height, layout="none")
    figure.subplots_adjust(
        *(0.95 / width, 0.65 / height, 1 - 0.25 / width, 1 - 0.25 / height), wspace=1.2 / 3.2, hspace=0.85 / 2.35
    )
    grid = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    steps = values.get(x, np.arange(len(next(iter(values.values())))).astype(np.float64))
    for ax, (quantity, lines) in zip(grid, panels.items(), strict=False):
        for name, part in lines:
            _line(ax, steps, values[name], part)
        ax.set(xlabel=x.replace("_", " ").capitalize(), ylabel=quantity)
        ax.minorticks_off()  # they take as long to draw as all else
        if len(lines) > 1:
            ax.legend(loc="best")
        together = np.concatenate([values[name][np.isfinite(values[name])] for name, _ in lines])
        if len(together) and together.min() > 0 and together.max() > _LOG_ABOVE * together.min():
            ax.set_yscale("log")
    for ax in grid[len(panels) :]:
        ax.set_axis_off()
    return figure


def _quantity(name: str) -> tuple[str, str]:
    """What a column measures, and on which part of the data: ``train/loss_step`` → ("loss", "training")."""
    head, _, rest = name.replace("/", "_", 1).partition("_")
    part = _PARTS.get(head, "")
    quantity = rest if part and rest else name
    for suffix in ("_step", "_epoch"):
        if quantity.endswith(suffix):
            quantity, part = quantity.removesuffix(suffix), f"{part} ({suffix[1:]})".strip()
    words = quantity.replace("_", " ").replace("/", " ")
    return _NAMES.get(words, words[:1].upper() + words[1:]), part or name


def _line(ax: Axes, steps: NDArray[np.float64], values: NDArray[np.float64], part: str) -> None:
    shown = np.isfinite(values) & np.isfinite(steps)
    x, y = steps[shown], values[shown]
    ink = colour({"validation": 1, "test": 2}.get(part.split(" (")[0], 0) + (3 if "(epoch)" in part else 0))
    noisy = len(y) > _SMOOTHED_ABOVE and np.median(np.abs(np.diff(y))) > 0.005 * np.ptp(y)
    if not noisy:
        ax.plot(x, y, color=ink, label=part, marker="o" if len(y) < 30 else "", markersize=4)
        return
    ax.plot(x, y, color=ink, alpha=0.25, linewidth=0.7)
    # Only where the window is full: a shorter one at the ends would bend the slope or show single values as a trend.
    width = len(y) // 50
    window = 2 * width + 1
    ax.plot(x[width:-width], np.convolve(y, np.full(window, 1.0 / window), "valid"), color=ink, label=part)
