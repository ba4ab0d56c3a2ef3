"""The look of every figure: one style, one palette, one way to make a figure and one way to save it.

Figures are built with matplotlib's object interface (`Figure` on an Agg canvas), never through pyplot, so
drawing works without a display and leaves the user's own figures and settings as they were.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from cycler import cycler
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jetrep.errors import InputError
from jetrep.report.files import replacing

__all__ = ["DPI", "LINES", "MARKERS", "PALETTE", "colour", "line", "marker", "new_figure", "save", "style"]

DPI = 150

PALETTE = (
    "#3f90da",
    "#ffa90e",
    "#bd1f01",
    "#94a4a2",
    "#832db6",
    "#a96b59",
    "#e76300",
    "#b9ac70",
    "#717581",
    "#92dadd",
)
"""Ten colours that stay apart under the common colour-vision deficiencies (M. Petroff, arXiv:2107.02270)."""

LINES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def colour(i: int) -> str:
    """Colour number ``i`` of the palette, cyclic."""
    return PALETTE[i % len(PALETTE)]


def line(i: int) -> Any:
    """Line style number ``i``, cyclic: the second channel beside colour."""
    return LINES[i % len(LINES)]


def marker(i: int) -> str:
    """Marker number ``i``, cyclic."""
    return MARKERS[i % len(MARKERS)]


def _parameters() -> Any:
    """Matplotlib settings: mplhep's ROOT style, scaled from 10-inch slides to a page, with our palette."""
    import mplhep  # slow to import, and needed only when something is drawn

    return {
        **mplhep.style.ROOT,
        # Glyphs that TeX Gyre Heros lacks (arrows, some Greek) come from the second family, one by one.
        "font.family": ["TeX Gyre Heros", "DejaVu Sans"],
        "font.size": 13,
        "mathtext.fontset": "dejavusans",
        "axes.prop_cycle": cycler("color", PALETTE),
        "axes.linewidth": 1.0,
        "axes.titlesize": "medium",
        "axes.titlelocation": "left",
        "axes.unicode_minus": True,
        "lines.linewidth": 1.6,
        "lines.markersize": 5.5,
        "xtick.major.size": 7,
        "xtick.minor.size": 3.5,
        "ytick.major.size": 7,
        "ytick.minor.size": 3.5,
        "xtick.major.width": 0.9,
        "ytick.major.width": 0.9,
        "legend.fontsize": "small",
        "pdf.fonttype": 42,
        "figure.dpi": DPI,
        "savefig.dpi": DPI,
    }


@contextmanager
def style() -> Iterator[None]:
    """The project's matplotlib settings for the length of a ``with`` block, or of a function it decorates."""
    with mpl.rc_context(_parameters()):
        yield


def new_figure(
    width: float = 7.0, height: float = 5.2, layout: Literal["constrained", "none"] = "constrained"
) -> Figure:
    """An empty figure of ``width`` × ``height`` inches on an Agg canvas; call it, and draw, under `style`.

    Args:
        width: in inches.
        height: in inches.
        layout: "constrained" makes room for all labels, "none" leaves margins to the caller.
    """
    figure = Figure(figsize=(width, height), layout=layout)  # type: ignore[arg-type]  # its stubs forget "none"
    FigureCanvasAgg(figure)
    return figure


@style()
def save(figure: Figure, path: str | Path, *, pdf: bool = False) -> list[Path]:
    """Write a figure at 150 dpi; nothing half-written ever stands under its name.

    Args:
        figure: the figure.
        path: file to write; the suffix (.png, .pdf, .svg) sets the format, .png if there is none.
            Missing folders are made.
        pdf: write a PDF of the same name beside it.

    Returns:
        The files written.

    Raises:
        InputError: if the suffix is not a format that can be written, or the disk refuses.
    """
    target = Path(path)
    if not target.suffix:
        target = target.with_suffix(".png")
    formats = figure.canvas.get_supported_filetypes()
    if target.suffix[1:].lower() not in formats:
        raise InputError(f"no figure format is called '{target.suffix}'", file=target, remedy="use .png, .pdf or .svg")
    targets = [target] + ([target.with_suffix(".pdf")] if pdf and target.suffix != ".pdf" else [])
    for file in targets:
        with replacing(file) as stream:
            figure.savefig(stream, format=file.suffix[1:].lower(), dpi=DPI)
    return targets
