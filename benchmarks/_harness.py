"""What all benchmarks share: alternating timing of ours and the peer, and one way to print the outcome.

A benchmark prints a readable table, or with ``--json`` exactly one JSON object with at least the keys
``benchmark``, ``ours``, ``peer``, ``ratio``, ``unit`` and ``settings``. Both contenders are timed in the same
process on the same input, turn by turn, so that a machine that slows down slows down both.

A benchmark is a script in this folder::

    from _harness import alternate, command_line, outcome, publish

    args = command_line(__doc__).parse_args()
    timings = alternate({"ours": run_ours, "peer": run_peer}, repetitions=args.repetitions)
    rates = {name: n_jets / timing.seconds for name, timing in timings.items()}
    publish(outcome("name", rates["ours"], rates["peer"], "jets/s", settings={...}, timings=timings), args)
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Timing", "alternate", "command_line", "machine", "outcome", "publish", "silenced"]

Clock = Literal["wall", "cpu"]


@dataclass(frozen=True)
class Timing:
    """Repeated timings of one contender.

    Attributes:
        wall: elapsed seconds of each repetition.
        cpu: CPU seconds of this process (all its threads) of each repetition.
        clock: which of the two counts.
    """

    wall: tuple[float, ...]
    cpu: tuple[float, ...]
    clock: Clock

    @property
    def seconds(self) -> float:
        """Median of the repetitions on the clock that counts."""
        return statistics.median(self.wall if self.clock == "wall" else self.cpu)

    @property
    def spread(self) -> float:
        """(slowest − fastest) / median of the repetitions."""
        values = self.wall if self.clock == "wall" else self.cpu
        return (max(values) - min(values)) / self.seconds


def alternate(
    contenders: Mapping[str, Callable[[], object]],
    *,
    repetitions: int = 7,
    warm_up: int = 1,
    clock: Clock = "wall",
    synchronize: Callable[[], object] | None = None,
) -> dict[str, Timing]:
    """Times the contenders turn by turn: A B C, then A B C again.

    Args:
        contenders: name -> work to be timed.
        repetitions: timed rounds.
        warm_up: untimed rounds before them (compilation, caches, allocators).
        clock: ``cpu`` leaves out the time that other processes took, so it is the fairer clock on a busy machine
            for work on one thread; ``wall`` is the only meaningful one for several threads or a GPU.
        synchronize: waits until the device has finished, such as ``torch.cuda.synchronize``.

    Returns:
        name -> `Timing`.
    """
    wait = synchronize or (lambda: None)
    for _ in range(warm_up):
        for work in contenders.values():
            work()
    wait()
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repetitions):
        for name, work in contenders.items():
            start = time.perf_counter(), time.process_time()
            work()
            wait()
            wall[name].append(time.perf_counter() - start[0])
            cpu[name].append(time.process_time() - start[1])
    return {name: Timing(tuple(wall[name]), tuple(cpu[name]), clock) for name in contenders}


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keeps what compiled libraries print (FastJet's banner, Pythia's log) out of standard output."""
    libc = ctypes.CDLL(None)
    sys.stdout.flush()
    libc.fflush(None)
    kept = os.dup(1)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        sys.stdout.flush()
        libc.fflush(None)
        os.dup2(kept, 1)
        os.close(kept)


def machine() -> dict[str, Any]:
    """Processor, system and Python. Nothing that tells one machine of a kind from another."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": cpu, "cores": usable, "system": platform.system(), "python": platform.python_version()}


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Installed versions of ``packages``; those that are missing are left out."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def outcome(
    benchmark: str,
    ours: float,
    peer: float,
    unit: str,
    *,
    settings: Mapping[str, Any],
    timings: Mapping[str, Timing] | None = None,
    packages: Sequence[str] = (),
    higher_is_better: bool = True,
    **more: Any,
) -> dict[str, Any]:
    """The object that a benchmark prints.

    Args:
        benchmark: its name.
        ours: our figure, in ``unit``.
        peer: the peer's figure, in the same unit, from the same run.
        unit: such as ``jets/s``.
        settings: everything that determines the work: data, counts, threads, precision, both contenders.
        timings: median seconds and spread of these are added under ``timings``.
        packages: those whose versions matter.
        higher_is_better: False for times and sizes; then ``ratio`` is peer / ours, so that above one always
            means that ours is better.
        more: further figures of this benchmark.
    """
    result: dict[str, Any] = {
        "benchmark": benchmark,
        "ours": ours,
        "peer": peer,
        "ratio": ours / peer if higher_is_better else peer / ours,
        "unit": unit,
        **more,
        "settings": dict(settings),
        "machine": machine() | {"versions": versions(("jetrep", "numpy", *packages))},
    }
    if timings is not None:
        result["timings"] = {
            name: {
                "median_s": timing.seconds,
                "spread": timing.spread,
                "repetitions": len(timing.wall),
                "clock": timing.clock,
            }
            for name, timing in timings.items()
        }
    return result


def command_line(description: str | None, *, repetitions: int = 7) -> argparse.ArgumentParser:
    """A parser with ``--json`` and ``--repetitions``, to which a benchmark adds its own arguments."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--repetitions", type=int, default=repetitions, help=f"timed rounds ({repetitions})")
    return parser


def publish(result: Mapping[str, Any], args: argparse.Namespace) -> None:
    """Prints ``result`` on standard output, as JSON with ``--json`` and as a table otherwise."""
    if args.json:
        print(json.dumps(_rounded(result)))
        return
    from rich.console import Console  # not for those whose memory is measured
    from rich.table import Table

    table = Table(title=str(result["benchmark"]), show_header=False, title_justify="left")
    _rows(table, "", _rounded(result))
    Console().print(table)


def _rounded(value: Any) -> Any:
    """Five significant digits are more than any timing is worth."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value


def _rows(table: Table, prefix: str, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            _rows(table, f"{name}.", value)
        else:
            table.add_row(name, f"{value:,.5g}" if isinstance(value, float) else str(value))
