"""Distributions of several samples side by side, as figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from jetrep.report import binning
from jetrep.report.style import colour, line, new_figure, style

__all__ = ["Distribution", "histograms"]


@dataclass(frozen=True)
class Distribution:
    """One quantity of several samples.

    Attributes:
        label: its name and unit, as it should stand at the axis.
        samples: values by name of the sample; the same names, in the same order, in all distributions of a figure.
    """

    label: str
    samples: Mapping[str, NDArray[Any]]


@style()
def histograms(distributions: Sequence[Distribution], *, title: str = "", n_bins: int = 60) -> Figure:
    """A row of histograms, each sample normalised to one, with the statistical error as a band.

    Args:
        distributions: one panel each.
        title: above the first panel.
        n_bins: number of bins, about; the outer ones also hold what lies beyond them.
    """
    figure = new_figure(4.4 * max(1, len(distributions)), 4.0)
    if not distributions:
        return figure
    panels = figure.subplots(1, len(distributions), squeeze=False)[0]
    for axes, distribution in zip(panels, distributions, strict=True):
        _panel(axes, distribution, n_bins)
    panels[0].set_ylabel("Fraction of jets per bin")
    names = list(distributions[0].samples)
    handles, labels = panels[0].get_legend_handles_labels()
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize="medium")
    if len(names) > 1:
        figure.legend(handles, labels, loc="outside upper right", ncols=min(len(names), 6), fontsize="small")
    return figure


def _panel(axes: Axes, distribution: Distribution, n_bins: int) -> None:
    bins = binning.edges(list(distribution.samples.values()), n_bins)
    highest = 0.0
    for i, (name, values) in enumerate(distribution.samples.items()):
        counts = binning.contents(values, bins)
        total = max(1, int(counts.sum()))
        fraction, error = counts / total, np.sqrt(counts) / total
        axes.stairs(fraction, bins, color=colour(i), linestyle=line(i), linewidth=1.6, label=f"{name} ({total:,})")
        axes.stairs(
            fraction + error, bins, baseline=fraction - error, fill=True, color=colour(i), alpha=0.3, linewidth=0
        )
        highest = max(highest, float((fraction + error).max()))
    axes.set_xlabel(distribution.label)
    axes.set_xlim(bins[0], bins[-1])
    axes.set_ylim(0, 1.12 * highest if highest else 1.0)
