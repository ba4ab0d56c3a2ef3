"""The figures of the project: arrays and tables in, matplotlib figures out; `style.save` writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from numpy.typing import ArrayLike, NDArray

from jetrep.errors import InputError
from jetrep.report.style import colour, line, marker, new_figure, save, style
from jetrep.report.tables import METRIC_NAMES, ResultsTable

__all__ = ["RocCurve", "embedding", "results", "roc", "save", "score_distributions"]

_LABELS = {
    "accuracy": "Accuracy",
    "auc": "ROC AUC",
    "rejection_30": r"Rejection $1/\varepsilon_B$ at $\varepsilon_S = 0.3$",
    "rejection_50": r"Rejection $1/\varepsilon_B$ at $\varepsilon_S = 0.5$",
}

_THICK, _THIN = 3.5, 1.2  # line widths of the spread over seeds and of the total error


@dataclass(frozen=True)
class RocCurve:
    """One line of a ROC figure.

    Attributes:
        model: name of the model; sets the colour.
        domain: name of the test set; sets the line style.
        efficiency: (n_points,) signal efficiencies, increasing.
        rejection: (n_points,) background rejections 1/ε_B; infinite points are not drawn.
        low: (n_points,) lower end of the band, or None for no band.
        high: (n_points,) upper end; where it is infinite, no band is drawn.
    """

    model: str
    domain: str
    efficiency: ArrayLike
    rejection: ArrayLike
    low: ArrayLike | None = None
    high: ArrayLike | None = None

    @classmethod
    def from_seeds(cls, model: str, domain: str, efficiency: ArrayLike, rejections: ArrayLike) -> RocCurve:
        """The mean over training seeds with a band of one standard deviation (ddof = 1); no band for one seed.

        Args:
            model: name of the model.
            domain: name of the test set.
            efficiency: (n_points,) signal efficiencies.
            rejections: (n_seeds, n_points) rejections; a point is drawn only where all are finite.
        """
        values = np.atleast_2d(np.asarray(rejections, np.float64))
        finite = np.isfinite(values).all(0)
        mean = np.where(finite, np.where(finite, values, 0.0).mean(0), np.inf)
        if len(values) == 1:
            return cls(model, domain, efficiency, mean)
        spread = np.where(finite, values, 0.0).std(0, ddof=1)
        return cls(model, domain, efficiency, mean, np.maximum(mean - spread, 1.0), mean + spread)


@style()
def roc(
    curves: Sequence[RocCurve], *, title: str = "", signal: str = "signal", background: str = "background"
) -> Figure:
    """Background rejection against signal efficiency, logarithmic: a colour per model, a line style per domain.

    Args:
        curves: the lines.
        title: written above the frame.
        signal: name of the signal, for the axis.
        background: name of the background.

    Raises:
        InputError: if there is no curve, or one has arrays of different length.
    """
    if not curves:
        raise InputError("there is no curve to draw", field="curves", remedy="give at least one")
    models, domains = _distinct(c.model for c in curves), _distinct(c.domain for c in curves)
    figure = new_figure(7.0, 5.6)
    axes = figure.subplots()
    top = 10.0
    for curve in curves:
        x, y = np.asarray(curve.efficiency, np.float64), np.asarray(curve.rejection, np.float64)
        if x.ndim != 1 or x.shape != y.shape:
            raise InputError(f"{x.shape} against {y.shape}", field="curves", remedy="give (n_points,) for both")
        shown = np.isfinite(y) & (y > 0)
        ink, dash = colour(models.index(curve.model)), line(domains.index(curve.domain))
        axes.plot(x[shown], y[shown], color=ink, linestyle=dash)
        top = max(top, y[shown].max(initial=1.0))
        if curve.low is not None and curve.high is not None:
            low, high = np.asarray(curve.low, np.float64), np.asarray(curve.high, np.float64)
            # An interval that is open upwards would fill the frame and hide the other lines.
            banded = shown & np.isfinite(high)
            axes.fill_between(x[banded], low[banded], high[banded], color=ink, alpha=0.18, linewidth=0)
    axes.set(yscale="log", xlim=(0, 1), ylim=(1, 3.0 * top))
    axes.set_xlabel(rf"Signal efficiency $\varepsilon_S$ ({signal})")
    axes.set_ylabel(rf"Background rejection $1/\varepsilon_B$ ({background})")
    axes.set_title(title)
    handles = [Line2D([], [], color=colour(i)) for i in range(len(models))]
    _legend_of_two(axes, handles, models, domains)
    return figure


def _legend_of_two(axes: Axes, handles: list[Any], names: list[str], domains: list[str]) -> None:
    """Colours in the upper right corner, where a rejection curve never is; line styles beside them."""
    first = axes.legend(handles, names, loc="upper right")
    if len(domains) < 2:
        return
    axes.add_artist(first)
    dashes = [Line2D([], [], color="black", linestyle=line(i)) for i in range(len(domains))]
    axes.legend(dashes, domains, loc="lower left", handlelength=2.6)


@style()
def score_distributions(
    scores: Mapping[str, tuple[ArrayLike, ArrayLike]],
    classes: Sequence[str],
    *,
    n_bins: int = 40,
    score_range: tuple[float, float] = (0.0, 1.0),
    label: str = "Score",
) -> Figure:
    """Distribution of the score per class and domain, each of unit area, and the ratio of the domains to the first.

    The first domain is drawn as filled histograms, the others as points with Poisson errors, as simulation and
    collisions are. The ratio shows where a cut on the score selects another fraction of jets than it did in simulation.

    Args:
        scores: per domain, (n_jets,) scores and (n_jets,) labels.
        classes: names of the labels; classes without jets are left out.
        n_bins: number of bins.
        score_range: range of the axis; scores outside count in the first and last bin.
        label: what the score is.

    Raises:
        InputError: if there is no domain, or scores and labels differ in number.
    """
    if not scores:
        raise InputError("there are no scores to draw", field="scores", remedy="give at least one domain")
    edges = np.linspace(*score_range, n_bins + 1)
    histograms = {
        domain: [_unit_histogram(s, y, k, edges, domain) for k in range(len(classes))]
        for domain, (s, y) in scores.items()
    }
    figure = new_figure(7.0, 5.2 if len(scores) == 1 else 6.4)
    axes = figure.subplots(
        1 if len(scores) == 1 else 2, 1, squeeze=False, sharex=True, height_ratios=None if len(scores) == 1 else (3, 1)
    )[:, 0]
    reference = next(iter(histograms.values()))
    for d, (domain, parts) in enumerate(histograms.items()):
        for k, part in enumerate(parts):
            if part is None:
                continue
            density, error = part
            if d == 0:
                face = to_rgba(colour(k), 0.25)
                axes[0].stairs(
                    density, edges, fill=True, facecolor=face, edgecolor=colour(k), label=f"{classes[k]}, {domain}"
                )
                axes[0].stairs(density, edges, color=colour(k), linewidth=1.4)
                continue
            points = {"color": colour(k), "fmt": marker(d - 1), "markersize": 4, "elinewidth": 1.0}
            centres = 0.5 * (edges[1:] + edges[:-1])
            drawn = density > 0
            axes[0].errorbar(centres[drawn], density[drawn], error[drawn], label=f"{classes[k]}, {domain}", **points)
            base = reference[k]
            if base is not None:
                both = drawn & (base[0] > 0)
                ratio = density[both] / base[0][both]
                relative = np.hypot(error[both] / density[both], base[1][both] / base[0][both])
                axes[1].errorbar(centres[both], ratio, ratio * relative, **points)
    _finish_scores(axes, list(histograms), score_range, label)
    return figure


def _unit_histogram(
    scores: ArrayLike, labels: ArrayLike, k: int, edges: NDArray[np.float64], domain: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Density and its Poisson error of class ``k``, or None if it has no jets."""
    s, y = np.asarray(scores, np.float64), np.asarray(labels)
    if s.ndim != 1 or s.shape != y.shape:
        raise InputError(
            f"{s.shape} scores for {y.shape} labels in {domain}", field="scores", remedy="give (n_jets,) each"
        )
    counts, _ = np.histogram(np.clip(s[y == k], edges[0], edges[-1]), edges)
    if counts.sum() == 0:
        return None
    norm = counts.sum() * np.diff(edges)
    return counts / norm, np.sqrt(counts) / norm


def _finish_scores(axes: Any, domains: list[str], score_range: tuple[float, float], label: str) -> None:
    axes[0].set(yscale="log", xlim=score_range, ylabel="Jets, normalised to unit area")
    low, high = axes[0].get_ylim()
    rows = len(axes[0].get_legend_handles_labels()[0])
    # Room for the legend above the data: about 0.3 decades a row.
    axes[0].set_ylim(low, high * 10 ** (0.35 * ((rows + 1) // 2) + 0.2))
    axes[0].legend(loc="upper center", ncols=2)
    axes[-1].set_xlabel(label)
    if len(axes) > 1:
        axes[1].axhline(1.0, color="black", linewidth=0.8)
        axes[1].set(yscale="log", ylim=(0.2, 5.0), ylabel=f"Ratio to\n{domains[0]}")
        axes[1].set_yticks([0.5, 1.0, 2.0], ["0.5", "1", "2"])
        axes[1].yaxis.set_minor_formatter(NullFormatter())


@style()
def embedding(
    panels: Mapping[str, ArrayLike],
    labels: ArrayLike,
    classes: Sequence[str],
    domains: ArrayLike | None = None,
    domain_names: Sequence[str] = ("",),
) -> Figure:
    """Embeddings in two dimensions: a row per projection, a column per domain, a colour per class.

    All panels of a row share their axes. The jets of the other domains stand behind in grey, so that a shift shows.

    Args:
        panels: per name of the projection ("PCA", "t-SNE"), (n_jets, 2) coordinates of the same jets.
        labels: (n_jets,) index into ``classes``; −1 for an unlabelled jet, drawn in black.
        classes: names.
        domains: (n_jets,) index into ``domain_names``, or None for one domain.
        domain_names: names.

    Raises:
        InputError: if there is no panel or numbers of jets differ.
    """
    y = np.asarray(labels)
    d = np.zeros(len(y), np.int64) if domains is None else np.asarray(domains)
    points = {name: np.asarray(xy, np.float64) for name, xy in panels.items()}
    if not points or any(xy.shape != (len(y), 2) for xy in points.values()) or d.shape != y.shape:
        raise InputError("panels, labels and domains differ in length", field="panels", remedy="give (n_jets, 2) each")
    n_columns = len(domain_names)
    figure = new_figure(0.8 + 4.2 * n_columns, 0.9 + 3.7 * len(points))
    axes = figure.subplots(len(points), n_columns, squeeze=False, sharex="row", sharey="row")
    # Drawn in random order, so that the class drawn last does not hide the others.
    order = np.random.default_rng(0).permutation(len(y))
    dots: dict[str, Any] = {"s": float(np.clip(12_000 / max(1, len(y)), 3, 20)), "linewidths": 0, "rasterized": True}
    inks = np.array([*(colour(k) for k in range(len(classes))), "#000000"])  # −1 is the last
    for row, (name, xy) in enumerate(points.items()):
        for column, domain in enumerate(domain_names):
            here = order[d[order] == column]
            axes[row, column].scatter(*xy[d != column].T, color="#dddddd", **dots)
            axes[row, column].scatter(*xy[here].T, c=inks[y[here]], alpha=0.65, **dots)
            axes[row, column].set(xlabel=f"{name} 1 [arb. units]", title=domain if row == 0 else "")
        axes[row, 0].set_ylabel(f"{name} 2 [arb. units]")
    shown = [(classes[k], colour(k)) for k in range(len(classes)) if (y == k).any()]
    shown += [("unlabelled", "#000000")] if (y < 0).any() else []
    shown += [("other domain", "#dddddd")] if n_columns > 1 else []
    handles = [Line2D([], [], linestyle="", marker="o", color=ink, label=name) for name, ink in shown]
    figure.legend(handles=handles, loc="outside upper right", ncols=min(6, len(handles)))
    return figure


@style()
def results(table: ResultsTable, metrics: Sequence[str] | None = None, *, zero: str = "") -> Figure:
    """A table of results as a figure: a row per method, a panel per metric, a point with error bar per domain.

    A limit is an arrow. The thick part of an error bar is the spread over training seeds, the thin bar the total.

    Args:
        table: the results.
        metrics: the panels; all metrics of the table if None.
        zero: of differences, what they are to; a line stands at zero then.

    Raises:
        InputError: if a metric is not in the table.
    """
    names = tuple(metrics) if metrics is not None else table.metrics
    unknown = [name for name in names if name not in table.metrics]
    if unknown or not names:
        raise InputError(
            f"the table has no metric '{unknown[0] if unknown else ''}'",
            field="metrics",
            remedy=f"use some of {', '.join(table.metrics)}",
        )
    figure = new_figure(2.6 + 3.6 * len(names), 1.7 + 0.52 * len(table.methods))
    axes = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    for ax, metric in zip(axes, names, strict=True):
        for row in range(0, len(table.methods), 2):
            ax.axhspan(row - 0.5, row + 0.5, color="#f2f2f2", linewidth=0, zorder=0)
        for d, domain in enumerate(table.domains):
            shift = 0.0 if len(table.domains) == 1 else 0.44 * (d / (len(table.domains) - 1) - 0.5)
            for row, method in enumerate(table.methods):
                _point(ax, table, (method, domain, metric), row + shift, d)
        if metric.startswith("rejection"):
            _log_axis(ax, room=any(m.limit for (_, _, name), m in table.cells.items() if name == metric))
        ax.set_xlabel(f"{_LABELS.get(metric, METRIC_NAMES.get(metric, metric))}{f' − {zero}' if zero else ''}")
        if zero:
            ax.axvline(0.0, color="#404040", linestyle="--", linewidth=1.0, zorder=1)
        ax.tick_params(axis="y", which="both", left=False, right=False)
        ax.tick_params(axis="y", which="minor", length=0)
    axes[0].set_yticks(range(len(table.methods)), table.methods)
    axes[0].set_ylim(len(table.methods) - 0.5, -0.5)
    axes[0].yaxis.set_minor_locator(NullLocator())
    handles = [Line2D([], [], color=colour(d), marker=marker(d), linestyle="") for d in range(len(table.domains))]
    legend = list(table.domains)
    if any(m.seed_error for m in table.cells.values()):
        handles += [Line2D([], [], color="#808080", linewidth=width) for width in (_THICK, _THIN)]
        legend += ["seeds", "total error"]
    columns = min(len(legend), max(2, int(figure.get_figwidth() / 1.8)))
    figure.legend(handles, legend, loc="outside upper right", ncols=columns, columnspacing=1.2, handlelength=1.2)
    if table.title:
        axes[0].set_title(table.title)
    return figure


def _point(ax: Axes, table: ResultsTable, cell: tuple[str, str, str], y: float, d: int) -> None:
    measurement = table.cells.get(cell)
    if measurement is None:
        return
    m, ink = measurement, colour(d)
    ax.plot([m.value], [y], linestyle="", marker=marker(d), color=ink, zorder=3)
    if m.limit:
        ax.annotate(
            "",
            (m.value, y),
            xytext=(24, 0),
            textcoords="offset points",
            arrowprops={"arrowstyle": "<-", "color": ink, "linewidth": 1.4},
        )
        return
    # A rejection is at least 1; an interval that is open upwards ends three errors away.
    floor = 1.0 if cell[2].startswith("rejection") else -np.inf
    high = m.high if np.isfinite(m.high) else m.value + 3 * m.error
    ax.hlines(y, max(m.low, floor), high, color=ink, linewidth=_THIN, zorder=2)
    if m.seed_error:
        low = max(m.value - m.seed_error, floor)
        ax.hlines(y, low, m.value + m.seed_error, color=ink, linewidth=_THICK, alpha=0.6, zorder=2)


def _log_axis(ax: Axes, room: bool) -> None:
    """Logarithmic with plain numbers at its ticks, and, if asked for, with room for arrows on the right."""
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    if room:
        high *= (high / low) ** 0.12
        ax.set_xlim(low, high)
    # 20 and 50 only where there is room for their labels.
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 60 * low else (1.0,)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.12g}"))
    ax.xaxis.set_minor_locator(LogLocator(subs=range(2, 10)))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _distinct(names: Any) -> list[str]:
    return list(dict.fromkeys(names))
