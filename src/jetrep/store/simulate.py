"""The verb ``simulate``: jets from Pythia 8 into a store."""

from __future__ import annotations

import itertools
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.physics import observables
from jetrep.sources.pythia import generate_mixture, pythia_settings
from jetrep.sources.pythia_presets import PRESETS, choose
from jetrep.store.interrupt import orderly_termination
from jetrep.store.reader import Store
from jetrep.store.writer import StoreWriter

__all__ = ["simulate"]


def simulate(
    out: Path,
    *,
    processes: list[str] = ["qcd", "top"],  # noqa: B006
    jets: int = 10_000,
    preset: str = "jetclass",
    tune: str = "default",
    seed: int = 0,
    workers: int | None = None,
    settings: Path | None = None,
    unlabeled: bool = False,
    jets_per_shard: int = 50_000,
    overwrite: bool = False,
    quiet: bool = False,
) -> Store:
    """Simulate jets with Pythia 8, a parametric detector and anti-kT of R = 0.8, and write them to a store.

    The same options give the same jets, with any number of workers. The processes are mixed, so every stretch of the
    store holds as many jets of each.

    Args:
        out: folder of the new store.
        processes: the classes: qcd, g (gluons), q (u, d, s), top, w, z (hadronic decays), custom (with --settings), or
            custom:FILE, whose class is named like the file.
        jets: number of jets of each process.
        preset: energy, jet selection and detector. "jetclass": 13 TeV, pT 500 to 1000 GeV, CMS-like. "jetnet": 13 TeV,
            partons of 1 TeV, no detector, the 30 hardest constituents. "toptagging": 14 TeV, pT 550 to 650 GeV,
            ATLAS-like.
        tune: shower, underlying event and hadronisation. "default": Monash. "collisions": different on purpose, to
            stand for data. "vincia": another shower, ten times slower.
        seed: start of the random numbers; use different ones for stores that must be independent.
        workers: processes that work at the same time; one per core if not given.
        settings: text file of Pythia settings, one a line, for the process custom.
        unlabeled: store the jets without labels.
        jets_per_shard: jets in one file of the store.
        overwrite: replace a store that already stands at OUT.
        quiet: print nothing, show no progress.

    Returns:
        The new store.

    Raises:
        InputError: for unknown names, settings that Pythia does not take, or a full disk; nothing is left at ``out``.
    """
    if jets < 1:
        raise InputError(f"{jets} jets of each process", field="jets", remedy="give a positive number")
    options = {"preset": preset, "tune": tune, "seed": seed, "jets": jets, "processes": list(processes)}
    provenance = _provenance(
        options, pythia_settings(processes, preset=preset, tune=tune, settings=settings), unlabeled
    )
    classes = tuple(provenance["pythia"])
    tally = _Tally(classes)
    begin = time.perf_counter()
    with (
        orderly_termination(),
        StoreWriter(
            out,
            classes=() if unlabeled else classes,
            provenance=provenance,
            jets_per_shard=jets_per_shard,
            overwrite=overwrite,
        ) as writer,
    ):
        chunks = generate_mixture(
            processes, jets, preset=preset, tune=tune, seed=seed, workers=workers, settings=settings, quiet=quiet
        )
        for mixed in _mixed(chunks, len(classes), seed):
            tally.add(mixed)
            writer.write(mixed.with_labels(None) if unlabeled else mixed)
    store = Store(out)
    if not quiet:
        Console().print(tally.table(store, time.perf_counter() - begin))
    return store


def _mixed(chunks: Iterator[Jets], n_processes: int, seed: int) -> Iterator[Jets]:
    """One chunk of each process at a time, in random order."""
    for number in itertools.count():
        parts = list(itertools.islice(chunks, n_processes))
        if not parts:
            return
        mixed = Jets.concatenate(parts)
        yield mixed[np.random.default_rng((seed, number)).permutation(len(mixed))]


def _provenance(options: dict[str, Any], lines: dict[str, list[str]], unlabeled: bool) -> dict[str, Any]:
    """Everything that determines the jets; custom settings stand in it line by line, files only by name."""
    processes = [
        name.partition(":")[0] + ":" + Path(name).stem if ":" in name else name for name in options["processes"]
    ]
    return {
        "command": "simulate",
        "settings": {**options, "processes": processes, "unlabeled": unlabeled},
        "preset": asdict(choose(PRESETS, options["preset"], "preset")),
        "pythia": lines,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("jetrep", "pythia8mc", "fastjet", "numpy", "numba", "pyarrow")},
        },
    }


@dataclass
class _Tally:
    """What the summary shows, gathered on the way."""

    classes: tuple[str, ...]
    values: dict[str, list[NDArray[np.float64]]] = field(default_factory=dict)
    labels: list[NDArray[np.int64]] = field(default_factory=list)

    def add(self, jets: Jets) -> None:
        assert jets.labels is not None
        self.labels.append(jets.labels)
        for name in ("pt", "mass", "multiplicity"):
            self.values.setdefault(name, []).append(observables.OBSERVABLES[name](jets).astype(np.float64))

    def table(self, store: Store, seconds: float) -> Table:
        """Counts and means of each class, and the rate."""
        labels = np.concatenate(self.labels)
        values = {name: np.concatenate(parts) for name, parts in self.values.items()}
        table = Table(
            title=str(store.path),
            title_justify="left",
            box=box.SIMPLE_HEAD,
            caption=f"{len(labels):,} jets in {seconds:.1f} s ({len(labels) / max(seconds, 1e-9):,.0f} jets/s); "
            "pT and mass of the constituents kept, GeV",
            caption_justify="left",
        )
        for heading in ("class", "jets", "mean pT", "median mass", "mean mass", "mean multiplicity"):
            table.add_column(heading, justify="left" if heading == "class" else "right")
        for label, name in enumerate(self.classes):
            own = {key: value[labels == label] for key, value in values.items()}
            table.add_row(
                name,
                f"{np.count_nonzero(labels == label):,}",
                f"{own['pt'].mean():.1f}",
                f"{np.median(own['mass']):.1f}",
                f"{own['mass'].mean():.1f}",
                f"{own['multiplicity'].mean():.1f}",
            )
        return table
