"""Tables and histograms in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from jetrep.report import binning

__all__ = ["TerminalHistogram", "class_rows", "key_values"]

# Names, not RGB: the user's terminal theme makes them readable on its own background.
_COLOURS = ("cyan", "yellow", "red", "green", "magenta", "blue")
_BLOCKS, _ASCII = " ▁▂▃▄▅▆▇█", " .:|#"


def key_values(title: str, rows: Mapping[str, str]) -> Table:
    """A table of two columns: what, and its value."""
    table = Table(title=Text(title, style="bold"), title_justify="left", show_header=False, box=box.SIMPLE_HEAD)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(Text(name), Text(value))
    return table


def class_rows(counts: Mapping[str, int], most: int = 12) -> dict[str, str]:
    """Rows for `key_values`: jets of each class, of the largest ``most`` classes if there are more."""
    total = max(1, sum(counts.values()))
    shown = counts if len(counts) <= most else dict(sorted(counts.items(), key=lambda item: -item[1])[:most])
    rows = {f"class {name}": f"{n:,} jets ({n / total:.1%})" for name, n in shown.items()}
    if len(shown) < len(counts):
        others = sum(counts.values()) - sum(shown.values())
        rows[f"{len(counts) - len(shown)} more classes"] = f"{others:,} jets ({others / total:.1%})"
    return rows


@dataclass(frozen=True)
class TerminalHistogram:
    """One distribution, one row of bars for each sample, on a common axis; print it with rich.

    Each sample is scaled to its own highest bin. The outer bins also hold what lies beyond them.

    Attributes:
        title: the quantity, with its unit.
        samples: values by name.
        height: lines of each sample.
    """

    title: str
    samples: Mapping[str, NDArray[Any]]
    height: int = 3

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it as wide as the terminal allows."""
        label = max((len(name) for name in self.samples), default=0) + 2
        statistics = {name: _statistics(values) for name, values in self.samples.items()}
        beside = max((len(text) for text in statistics.values()), default=0) + 2
        # Two characters stay free: nice bin widths can give one bin more than asked for.
        width = max(16, min(64, options.max_width - label - beside - 2))
        bins = binning.edges(list(self.samples.values()), width)
        characters = _ASCII if options.ascii_only else _BLOCKS
        yield Text(self.title, style="bold")
        for i, (name, values) in enumerate(self.samples.items()):
            colour = _COLOURS[i % len(_COLOURS)]
            lines = list(_bars(binning.contents(values, bins), self.height, characters))
            for k, line in enumerate(lines):
                last = k == len(lines) - 1
                text = Text(no_wrap=True, overflow="crop")
                text.append(f"{name if last else '':<{label}}", style=f"bold {colour}")
                text.append(line, style=colour)
                if last:
                    text.append("  " + statistics[name], style="dim")
                yield text
        yield from _axis(bins, label, options.ascii_only)


def _statistics(values: NDArray[Any]) -> str:
    if values.size == 0:
        return "no jets"
    low, median, high = np.percentile(values, [5, 50, 95])
    return f"median {median:.4g}, 90 % in {low:.4g} to {high:.4g}"


def _bars(counts: NDArray[np.int64], height: int, characters: str) -> Iterator[str]:
    """Lines of block characters, top line first. A bin that is not empty shows at least the smallest block."""
    steps = len(characters) - 1
    level = np.ceil(counts / max(1, counts.max(initial=1)) * height * steps).astype(int)
    for row in range(height - 1, -1, -1):
        yield "".join(characters[min(max(value - row * steps, 0), steps)] for value in level)


def _axis(bins: NDArray[np.float64], label: int, ascii_only: bool) -> Iterator[Text]:
    """A line with ticks, and their numbers below."""
    n = len(bins) - 1
    line, numbers = ["-" if ascii_only else "─"] * n, [" "] * (n + 12)
    free = 0
    for tick in binning.ticks(bins[0], bins[-1], max(3, n // 7)):
        column = min(n - 1, int((tick - bins[0]) / (bins[-1] - bins[0]) * n))
        text = f"{tick:.6g}"
        start = max(0, column - len(text) // 2)
        if start < free:
            continue
        line[column] = "+" if ascii_only else "┴"
        numbers[start : start + len(text)] = text
        free = start + len(text) + 1
    for content in (line, numbers):
        yield Text(" " * label + "".join(content).rstrip(), style="dim", no_wrap=True, overflow="crop")
