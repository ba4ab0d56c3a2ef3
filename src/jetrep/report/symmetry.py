"""Errors of symmetries against the Lorentz factor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from jetrep.report.style import colour, line, marker, new_figure, style

__all__ = ["errors_of_boosts"]

_LOWEST = 1e-17


@style()
def errors_of_boosts(
    panels: Mapping[str, Mapping[str, ArrayLike]], gammas: Sequence[float], tolerances: Mapping[str, ArrayLike]
) -> Figure:
    """One panel for each precision, one line for each layer, both axes logarithmic.

    Args:
        panels: errors (n_gammas,) by precision and layer; an error of 0 is drawn at 1e-17.
        gammas: Lorentz factors.
        tolerances: (n_gammas,) by precision, drawn as a dashed line; none for a precision that is not there.
    """
    figure = new_figure(1.5 + 4.6 * len(panels), 4.6)
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (precision, layers) in zip(row, panels.items(), strict=True):
        for i, (layer, errors) in enumerate(layers.items()):
            values = np.maximum(np.asarray(errors, dtype=float), _LOWEST)
            axes.plot(gammas, values, color=colour(i), linestyle=line(i), marker=marker(i), label=layer)
        if precision in tolerances:
            axes.plot(gammas, tolerances[precision], color="0.4", linestyle="--", linewidth=1.0, label="tolerance")
        axes.set(xscale="log", yscale="log", xlabel=r"Lorentz factor $\gamma$", title=precision)
    row[0].set_ylabel("Relative error, median of jets")
    handles, labels = row[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper")
    return figure
