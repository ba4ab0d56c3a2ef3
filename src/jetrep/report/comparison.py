"""Figures of a comparison: bars with a baseline, label efficiency, confusion matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from numpy.typing import ArrayLike

from jetrep.errors import InputError
from jetrep.report.measurement import Measurement
from jetrep.report.style import colour, line, marker, new_figure, style
from jetrep.report.tables import ResultsTable

__all__ = ["bars", "confusions", "label_efficiency"]


@style()
def bars(table: ResultsTable, metric: str, *, baseline: str = "random") -> Figure:
    """One metric as bars: a group per method, a colour per domain; a dashed line where the baseline stands.

    Bars begin at zero nowhere: the axis shows the range of the values, so lengths are not proportional to them.

    Args:
        table: the results.
        metric: the metric.
        baseline: the method to which the others are compared; no lines if the table has none.
    """
    if metric not in table.metrics:
        raise InputError(f"the table has no metric '{metric}'", field="metric", remedy=", ".join(table.metrics))
    figure = new_figure(2.4 + 1.15 * len(table.methods), 4.8)
    axes = figure.subplots()
    width = 0.8 / max(1, len(table.domains))
    lowest, highest = math.inf, -math.inf
    for d, domain in enumerate(table.domains):
        places, found = [], []
        for i, method in enumerate(table.methods):
            measurement = table.cells.get((method, domain, metric))
            if measurement is not None:
                places.append(i + (d - 0.5 * (len(table.domains) - 1)) * width)
                found.append(measurement)
        values = np.array([m.value for m in found])
        errors = np.array([m.error if math.isfinite(m.error) else 0.0 for m in found])
        axes.bar(places, values, width, yerr=errors, color=colour(d), label=domain, error_kw={"elinewidth": 1.0})
        lowest = min(lowest, float((values - errors).min(initial=math.inf)))
        highest = max(highest, float((values + errors).max(initial=-math.inf)))
        reference = table.cells.get((baseline, domain, metric))
        if reference is not None:
            axes.axhline(reference.value, color=colour(d), linestyle="--", linewidth=1.0)
    span = max(highest - lowest, 1e-3) if math.isfinite(lowest) else 1.0
    axes.set_ylim(lowest - 0.08 * span, highest + 0.08 * span)
    axes.set_xticks(range(len(table.methods)), table.methods, rotation=30, ha="right")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylabel(metric)
    figure.legend(loc="outside upper right", ncols=min(4, len(table.domains)))
    return figure


@style()
def label_efficiency(
    curves: Mapping[str, Mapping[str, Mapping[int, Measurement]]], *, label: str = "macro AUC"
) -> Figure:
    """A metric against the number of labelled jets: a panel per head, a line per method.

    Args:
        curves: by head, method and number of labels.
        label: the metric.
    """
    if not curves:
        raise InputError("there are no curves to draw", field="curves", remedy="give at least one")
    methods = list(dict.fromkeys(method for head in curves.values() for method in head))
    figure = new_figure(1.2 + 4.0 * len(curves), 4.8)
    panels = figure.subplots(1, len(curves), squeeze=False, sharey=True)[0]
    for axes, (head, lines) in zip(panels, curves.items(), strict=True):
        for method, points in lines.items():
            i = methods.index(method)
            numbers = sorted(points)
            values = [points[n].value for n in numbers]
            errors = [points[n].error if math.isfinite(points[n].error) else 0.0 for n in numbers]
            axes.errorbar(
                numbers, values, errors, color=colour(i), fmt=marker(i), linestyle=line(i // 10), label=method
            )
        axes.set(xscale="log", xlabel="Labelled jets", title=head)
    panels[0].set_ylabel(label)
    handles = {h[1]: h[0] for axes in panels for h in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=min(4, len(handles)))
    return figure


@style()
def confusions(matrices: Mapping[str, ArrayLike], classes: Sequence[str]) -> Figure:
    """Confusion matrices side by side, each row (true class) normalised to one.

    Args:
        matrices: (n_classes, n_classes) numbers of jets by the name of the method, true class first.
        classes: names.
    """
    if not matrices:
        raise InputError("there are no matrices to draw", field="matrices", remedy="give at least one")
    columns = min(4, len(matrices))
    rows = -(-len(matrices) // columns)
    side = 1.6 + 0.42 * len(classes)
    figure = new_figure(columns * side, rows * side)
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat[len(matrices) :]:
        axes.remove()
    for i, (axes, (name, matrix)) in enumerate(zip(panels.flat, matrices.items(), strict=False)):
        counts = np.asarray(matrix, np.float64)
        if counts.shape != (len(classes), len(classes)):
            raise InputError(f"has shape {counts.shape}", field=name, remedy="give (n_classes, n_classes)")
        share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        axes.imshow(share, vmin=0, vmax=1, cmap="Blues")
        for (true, said), value in np.ndenumerate(share):
            axes.text(
                said, true, f"{value:.2f}", ha="center", va="center", fontsize=8, color="w" if value > 0.5 else "k"
            )
        axes.set_title(name, fontsize=11)
        axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=9)
        axes.set_yticks(range(len(classes)), classes if i % columns == 0 else [""] * len(classes), fontsize=9)
        axes.tick_params(which="both", length=0)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_locator(NullLocator())
    figure.supxlabel("Most probable class", fontsize=12)
    figure.supylabel("True class", fontsize=12)
    return figure
