"""Figures of reconstructed jets: images, residuals, latent numbers, compression and data efficiency. Arrays in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator
from numpy.typing import ArrayLike, NDArray

from jetrep.errors import InputError
from jetrep.report.measurement import Measurement
from jetrep.report.style import colour, line, marker, new_figure, style

__all__ = ["correlation_matrix", "curves", "images", "residual_histograms"]

_DECADES = 4  # of the colour scale below the brightest pixel


@style()
def images(
    true: Mapping[str, ArrayLike], reconstructed: Mapping[str, ArrayLike], *, half_width: float, title: str = ""
) -> Figure:
    """Jet images: a row each, true, reconstructed, and their difference.

    All images share one logarithmic scale, all differences a linear one, symmetric about zero.

    Args:
        true: by what they show ("mean", "jet 1"), (n, n) shares of the jet's pT over η (rows) and φ (columns).
        reconstructed: the same of the reconstructions.
        half_width: of the images, in η and in φ.
        title: written above.

    Raises:
        InputError: if there is no image, or shapes differ.
    """
    pairs = {name: (np.asarray(true[name], np.float64), np.asarray(reconstructed[name], np.float64)) for name in true}
    if not pairs or any(a.ndim != 2 or a.shape != b.shape for a, b in pairs.values()):
        raise InputError("images are missing or differ in shape", field="images", remedy="give (n, n) of each")
    top = max(max(a.max(), b.max()) for a, b in pairs.values()) or 1.0
    figure = new_figure(10.4, 0.8 + 3.1 * len(pairs))
    grid = figure.subplots(len(pairs), 3, squeeze=False, sharex=True, sharey=True)
    frame: dict[str, Any] = {"origin": "lower", "extent": (-half_width, half_width) * 2, "interpolation": "nearest"}
    shown: Any = None
    for row, (name, (a, b)) in zip(grid, pairs.items(), strict=True):
        # A mean image and a single jet differ too much in contrast for one scale of differences.
        largest = float(np.abs(b - a).max()) or 1.0
        for axes, image in zip(row, (a, b), strict=False):
            norm = LogNorm(top * 10.0**-_DECADES, top, clip=True)
            shown = axes.imshow(np.where(image > 0, image, np.nan), norm=norm, cmap="viridis", **frame)
        differences = row[2].imshow(b - a, vmin=-largest, vmax=largest, cmap="RdBu_r", **frame)
        figure.colorbar(differences, ax=row[2], shrink=0.85)
        row[0].set_ylabel(f"{name}\n" + r"$\Delta\eta$")
    for axes, what in zip(grid[0], ("True", "Reconstructed", "Reconstructed − true"), strict=True):
        axes.set_title(what)
    for axes in grid[-1]:
        axes.set_xlabel(r"$\Delta\phi$")
    for axes in grid.ravel():
        axes.minorticks_off()  # small frames; and hundreds of ticks take seconds
    figure.colorbar(shown, ax=list(grid[:, :2].ravel()), shrink=0.6, label=r"$p_T$ / jet $p_T$", location="left")
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize="medium")
    return figure


@style()
def residual_histograms(residuals: Mapping[str, Mapping[str, ArrayLike]], *, n_bins: int = 60) -> Figure:
    """Histograms of residuals: a panel per quantity, a line per sample, each of unit sum.

    The range of a panel is three interquartile ranges about the median of all samples together, or all values where
    that is zero; outer bins hold what lies beyond. The legend gives median and interquartile range.

    Args:
        residuals: by quantity, then by sample, (n,) values.
        n_bins: number of bins.

    Raises:
        InputError: if there is nothing to draw.
    """
    drawn = {
        name: {sample: np.asarray(values, np.float64) for sample, values in samples.items() if len(np.asarray(values))}
        for name, samples in residuals.items()
    }
    drawn = {name: samples for name, samples in drawn.items() if samples}
    if not drawn:
        raise InputError("there are no residuals to draw", field="residuals", remedy="give at least one quantity")
    figure, grid = _grid(len(drawn))
    for axes, (name, samples) in zip(grid, drawn.items(), strict=False):
        low, middle, high = np.percentile(np.concatenate(list(samples.values())), [25, 50, 75])
        # Where most are the same, as of whole numbers, all are shown.
        farthest = max(float(np.abs(values - middle).max()) for values in samples.values())
        reach = 3 * (high - low) or 1.05 * farthest or 1.0
        edges = np.linspace(middle - reach, middle + reach, n_bins + 1)
        for i, (sample, values) in enumerate(samples.items()):
            counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
            quartiles = np.percentile(values, [25, 50, 75])
            label = f"{sample}: {quartiles[1]:.2g} ({quartiles[2] - quartiles[0]:.2g})"
            axes.stairs(counts / len(values), edges, color=colour(i), linestyle=line(i), linewidth=1.6, label=label)
        axes.axvline(0.0, color="black", linewidth=0.8)
        axes.set(xlim=(edges[0], edges[-1]), xlabel=name)
        axes.set_ylim(0, 1.0 * axes.get_ylim()[1] * (1.1 + 0.1 * len(samples)))
        axes.legend(loc="upper left", fontsize="x-small", title="median (IQR)", title_fontsize="x-small")
    for axes in grid[:: min(3, len(drawn))]:
        axes.set_ylabel("Fraction per bin")
    return figure


def _grid(n: int) -> tuple[Figure, NDArray[Any]]:
    columns = min(3, n)
    rows = -(-n // columns)
    figure = new_figure(0.6 + 4.2 * columns, 0.4 + 3.4 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[n:]:
        axes.set_axis_off()
    return figure, grid[:n]


@style()
def correlation_matrix(r: ArrayLike, rows: Sequence[str], columns: Sequence[str], *, title: str = "") -> Figure:
    """Pearson correlations as coloured cells, with their values where there is room; constant quantities are grey.

    Args:
        r: (n_rows, n_columns), NaN where it is not defined.
        rows: names.
        columns: names.
        title: written above.

    Raises:
        InputError: if the names do not fit the matrix.
    """
    values = np.asarray(r, np.float64)
    if values.shape != (len(rows), len(columns)) or not values.size:
        raise InputError(
            f"{len(rows)} rows and {len(columns)} columns are named for {values.shape}",
            field="correlations",
            remedy="name every row and column",
        )
    figure = new_figure(2.6 + 0.72 * len(columns), 1.8 + 0.32 * len(rows))
    axes = figure.subplots()
    axes.set_facecolor("#dddddd")
    shown = axes.imshow(np.ma.masked_invalid(values), vmin=-1, vmax=1, cmap="RdBu_r", aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right")
    axes.set_yticks(range(len(rows)), rows, fontsize="small")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    axes.tick_params(length=0)
    for (i, k), value in np.ndenumerate(values):
        if np.isfinite(value):
            ink = "white" if abs(value) > 0.6 else "black"
            axes.text(k, i, f"{value:.2f}", ha="center", va="center", fontsize="x-small", color=ink)
    axes.set_title(title)
    figure.colorbar(shown, ax=axes, label="Pearson correlation")
    return figure


@style()
def curves(
    models: Mapping[str, Sequence[tuple[float, Measurement]]],
    *,
    x_label: str = "Stored numbers / 90",
    y_label: str = r"Median $|\delta m / m|$",
    log_x: bool = False,
    title: str = "",
) -> Figure:
    """Errors against a setting, with error bars, a line per model: compression curves, data efficiency.

    Args:
        models: by name of the model, (setting, error) in any order; a bound is drawn as an arrow.
        x_label: what the setting is; for compression, numbers stored for a jet over 90 = 30 particles × 3.
        y_label: what is measured.
        log_x: logarithmic setting, as for numbers of jets.
        title: written above.

    Raises:
        InputError: if there is no point.
    """
    if not any(models.values()):
        raise InputError("there is no point to draw", field="models", remedy="give at least one")
    figure = new_figure(7.0, 5.2)
    axes = figure.subplots()
    for i, (name, points) in enumerate(models.items()):
        ordered = sorted(points, key=lambda point: point[0])
        x, y = [p for p, _ in ordered], [m.value for _, m in ordered]
        bars = np.array([[m.value - m.low, m.high - m.value] for _, m in ordered]).reshape(-1, 2).T
        limits = [m.limit for _, m in ordered]
        axes.errorbar(
            x,
            y,
            np.where(np.isfinite(bars), np.maximum(bars, 0.0), 0.0),
            lolims=limits,
            color=colour(i),
            marker=marker(i),
            linestyle=line(i),
            elinewidth=1.2,
            label=name,
        )
    _finish(axes, [m.value for points in models.values() for _, m in points], log_x)
    axes.set(xlabel=x_label, ylabel=y_label, title=title)
    axes.legend(loc="best")
    return figure


def _finish(axes: Axes, values: Sequence[float], log_x: bool) -> None:
    if log_x:
        axes.set_xscale("log")
    if min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
