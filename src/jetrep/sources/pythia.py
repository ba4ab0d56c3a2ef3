"""Jets from Pythia 8: real events, a parametric detector, FastJet's anti-kT, in as many processes as there are cores.

The work is cut into chunks of a fixed number of jets. A chunk depends on the settings, the seed, the name of its
process and its number, and on nothing else, so the same call gives the same jets with any number of workers, and
asking for more jets keeps all whole chunks.

Every event is generated with the natural spectrum, so all jets have weight one. Jets are the (at most) two hardest of
their event that pass the window of the preset; jets of tops, W and Z must contain the decay: the decaying particle
within ΔR = 0.6 of the jet axis and each quark within 0.8, which is the jet's radius.

Cite Pythia 8.3 (arXiv:2203.11601) and FastJet (arXiv:1111.6097) for anything made with this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import joblib

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.machine import cores
from jetrep.progress import progress
from jetrep.sources._pythia_worker import (
    Chunk,
    ChunkResult,
    Failure,
    _StartError,
    simulate_chunk,
    start_pythia,
)
from jetrep.sources.pythia_presets import (
    PRESETS,
    PROCESSES,
    TUNES,
    JetPreset,
    Process,
    Setting,
    Tune,
    choose,
    process_of,
    settings_for,
)

__all__ = [
    "CHUNK_JETS",
    "PRESETS",
    "PROCESSES",
    "TUNES",
    "JetPreset",
    "Process",
    "Tune",
    "generate",
    "generate_mixture",
    "pythia_settings",
]

CHUNK_JETS = 1000
"""Jets of a chunk: a few seconds of work, against a fifth of a second in which Pythia starts."""


def generate(
    process: str,
    n_jets: int,
    *,
    preset: str = "jetclass",
    tune: str = "default",
    seed: int = 0,
    workers: int | None = None,
    settings: Path | None = None,
    quiet: bool = False,
) -> Iterator[Jets]:
    """Simulate jets of one process.

    Args:
        process: ``qcd``, ``g``, ``q``, ``top``, ``w``, ``z``, ``custom`` (with ``settings``) or ``custom:FILE``.
        n_jets: how many, exactly.
        preset: ``jetclass``, ``jetnet`` or ``toptagging``.
        tune: ``default``, ``collisions`` or ``vincia``.
        seed: the same seed gives the same jets, for any number of workers.
        workers: processes to run; None for one per core.
        settings: file of Pythia settings for the process ``custom``.
        quiet: no progress bar.

    Yields:
        labelled jets in parts of at most `CHUNK_JETS`, not clustered; the class is named like the process.

    Raises:
        InputError: for an unknown name, a setting that Pythia does not take, or a process without jets in the window.
    """
    return generate_mixture(
        [process], n_jets, preset=preset, tune=tune, seed=seed, workers=workers, settings=settings, quiet=quiet
    )


def generate_mixture(
    processes: Sequence[str],
    n_jets: int,
    *,
    preset: str = "jetclass",
    tune: str = "default",
    seed: int = 0,
    workers: int | None = None,
    settings: Path | None = None,
    quiet: bool = False,
) -> Iterator[Jets]:
    """Simulate several processes at once: the first chunk of each, then the second of each, and so on.

    Arguments as for `generate`; ``n_jets`` is the number for each process. The settings are tried out before anything
    is generated, so a mistake shows at the call, not in the middle of the work.
    """
    if n_jets < 0:
        raise InputError(f"{n_jets} jets cannot be made", field="jets", remedy="give a number from 0")
    if seed < 0:
        raise InputError(f"seed {seed} is negative", field="seed", remedy="give a number from 0")
    if workers is not None and workers < 1:
        raise InputError(f"{workers} workers cannot work", field="workers", remedy="give a number from 1")
    chosen, jet_preset = _resolve(processes, preset, tune, settings), choose(PRESETS, preset, "preset")
    classes = tuple(process.name for process, _ in chosen)
    if len(set(classes)) < len(classes):
        raise InputError(
            f"processes {', '.join(classes)} repeat a name", field="processes", remedy="name each process once"
        )
    for _, lines in chosen:
        try:
            start_pythia(lines, seed=1)
        except _StartError as error:
            raise error.failure.error() from None
    chunks = [
        Chunk(process, lines, jet_preset, label, classes, seed, index, min(CHUNK_JETS, n_jets - start))
        for index, start in enumerate(range(0, n_jets, CHUNK_JETS))
        for label, (process, lines) in enumerate(chosen)
    ]
    return _run(chunks, workers or cores(), quiet)


def pythia_settings(
    processes: Sequence[str], *, preset: str, tune: str, settings: Path | None = None
) -> dict[str, list[str]]:
    """Every Pythia line of a simulation, by class name, in the order in which they are read; for the provenance."""
    return {
        process.name: [line.text for line in lines] for process, lines in _resolve(processes, preset, tune, settings)
    }


def _resolve(
    processes: Sequence[str], preset: str, tune: str, settings: Path | None
) -> list[tuple[Process, tuple[Setting, ...]]]:
    jet_preset, jet_tune = choose(PRESETS, preset, "preset"), choose(TUNES, tune, "tune")
    if not processes:
        raise InputError("there is no process", field="processes", remedy=f"name some of {', '.join(PROCESSES)}")
    if settings is not None and "custom" not in processes:
        raise InputError(
            "the settings belong to no process", file=settings, field="settings", remedy="add the process 'custom'"
        )
    resolved = []
    for name in processes:
        process, user = process_of(name, settings)
        resolved.append((process, settings_for(process, user, jet_preset, jet_tune)))
    return resolved


def _run(chunks: list[Chunk], workers: int, quiet: bool) -> Iterator[Jets]:
    """Chunks in order, computed ahead by the workers."""
    workers = min(workers, max(1, len(chunks)))
    total = sum(chunk.n_jets for chunk in chunks)
    results: Iterator[ChunkResult | Failure]
    if workers == 1:
        results = map(simulate_chunk, chunks)
    else:
        parallel = joblib.Parallel(
            workers, backend="loky", return_as="generator", pre_dispatch=2 * workers, batch_size=1
        )
        results = parallel(joblib.delayed(simulate_chunk)(chunk) for chunk in chunks)
    names = ", ".join(chunks[0].classes) if chunks else ""
    with progress(description=f"simulating {names}", total=total, quiet=quiet) as bar:
        for result in results:
            if isinstance(result, Failure):
                raise result.error()
            bar.update(len(result.jets))
            yield result.jets
