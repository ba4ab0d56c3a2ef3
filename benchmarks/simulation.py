"""Jets per second and core of the simulation, and what its early veto saves and costs.

The peer is the same simulation without the early veto: every event is generated to its end, then selected. Both produce
jets of the same selection on one core. ``jets_lost`` is the share of the peer's jets in events that the veto would have
stopped, counted in the same events.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from _harness import alternate, command_line, outcome, publish
from jetrep.sources import _pythia_worker as worker
from jetrep.sources._pythia_veto import EarlyVeto
from jetrep.sources.pythia import CHUNK_JETS, PRESETS, PROCESSES, TUNES
from jetrep.sources.pythia_presets import settings_for


def rate(process: str, preset: str, tune: str, n_jets: int, *, veto: bool, seed: int) -> float:
    """Jets per second of processor time of one chunk, the start of Pythia included."""
    chosen = replace(PROCESSES[process], early_veto=veto)
    lines = settings_for(chosen, (), PRESETS[preset], TUNES[tune])
    start = time.process_time()
    worker.simulate_chunk(worker.Chunk(chosen, lines, PRESETS[preset], 0, (process,), seed, 0, n_jets))
    return n_jets / (time.process_time() - start)


def spread(values: list[float]) -> tuple[float, float, float]:
    """Lowest, median and highest."""
    return min(values), statistics.median(values), max(values)


def lost(process: str, preset: str, tune: str, n_events: int) -> tuple[float, float]:
    """Share of jets in events that the veto would stop, and its statistical error."""

    class Recorder(EarlyVeto):
        def doVetoPT(self, position: int, event: Any) -> bool:  # noqa: N802
            if position <= 3:
                condemned.append(self.hopeless(event))
            return False

    condemned: list[bool] = []
    chosen, jet_preset = PROCESSES[process], PRESETS[preset]
    veto = Recorder(jet_preset, chosen)
    pythia = worker.start_pythia(settings_for(chosen, (), jet_preset, TUNES[tune]), 1, veto)
    rng = np.random.default_rng(1)
    chunk = worker.Chunk(chosen, (), jet_preset, 0, (process,), 0, 0, 0)
    passed = stopped = 0
    for _ in range(n_events):
        condemned.clear()
        jets = len(worker._select(pythia.nextBatch(1), chunk, rng))
        passed += jets
        stopped += jets * condemned[-1]
    return stopped / max(passed, 1), math.sqrt(stopped + 1) / max(passed, 1)


def main() -> None:
    parser = command_line(__doc__, repetitions=3)
    parser.add_argument("--jets", type=int, default=CHUNK_JETS, help=f"jets of each timed chunk ({CHUNK_JETS})")
    parser.add_argument("--events", type=int, default=1500, help="events in which losses are counted (1500)")
    parser.add_argument("--process", choices=list(PROCESSES), default="qcd")
    parser.add_argument("--preset", choices=list(PRESETS), default="jetclass")
    parser.add_argument("--tune", choices=list(TUNES), default="default")
    parser.add_argument(
        "--all",
        action="store_true",
        help="also the rate of every process and preset: lowest, median and highest of the repetitions",
    )
    args = parser.parse_args()

    seeds = iter(range(10_000))

    def contender(*, veto: bool) -> Callable[[], float]:
        return lambda: rate(args.process, args.preset, args.tune, args.jets, veto=veto, seed=next(seeds))

    timings = alternate(
        {"ours": contender(veto=True), "peer": contender(veto=False)},
        repetitions=args.repetitions,
        warm_up=0,
        clock="cpu",
    )
    share, error = lost(args.process, args.preset, args.tune, args.events)
    more: dict[str, Any] = {"jets_lost": share, "jets_lost_error": error}
    if args.all:
        more["rates"] = {
            f"{preset} {tune} {process}": spread(
                [rate(process, preset, tune, args.jets, veto=True, seed=seed) for seed in range(args.repetitions)]
            )
            for preset in PRESETS
            for tune in ("default", "collisions")
            for process in PROCESSES
        }
    publish(
        outcome(
            "simulation",
            args.jets / timings["ours"].seconds,
            args.jets / timings["peer"].seconds,
            "jets/s/core",
            settings={
                "process": args.process,
                "preset": args.preset,
                "tune": args.tune,
                "jets": args.jets,
                "events": args.events,
                "peer": "the same without early veto",
            },
            timings=timings,
            packages=("pythia8mc", "fastjet", "awkward"),
            **more,
        ),
        args,
    )


if __name__ == "__main__":
    main()
