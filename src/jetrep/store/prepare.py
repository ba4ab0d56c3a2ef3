"""The verb ``prepare``: jets from files into a store."""

from __future__ import annotations

import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from tqdm import tqdm

from jetrep.errors import InputError, at_least
from jetrep.machine import cores
from jetrep.physics.clustering import Algorithm
from jetrep.progress import progress
from jetrep.report.terminal import class_rows, key_values
from jetrep.sources.chunks import existing_files
from jetrep.sources.registry import SOURCES, open_source
from jetrep.store.crew import Crew, alone, carry_out, processes
from jetrep.store.crew import dask as on_dask
from jetrep.store.folder import check_target, disk_errors, locked, tidy_up
from jetrep.store.interrupt import orderly_termination
from jetrep.store.manifest import Manifest, file_hash
from jetrep.store.parts import Job, Record, identity, load_records, split_rows, versions
from jetrep.store.preparation import add_to_store, clear, differences, file_entry, new_store, work_folder
from jetrep.store.reader import Store
from jetrep.store.selection import Selection
from jetrep.store.writer import check_classes

__all__ = ["prepare"]

_ROWS_PER_WORKER = 100_000  # fewer are done before further processes have started
_OPTIONS = (  # settings of single kinds of files
    *("classes", "label_column", "duplicates", "mapping", "grouping", "collection", "level", "puppi", "seed"),
)
_SETTINGS = (  # decide what is in a store
    *("source", "max_particles", "min_particles", "max_jets", "select", "where", "unlabeled"),
    *("drop_invalid", "algorithm", "R", "jets_per_shard"),
    *_OPTIONS,
)


def prepare(
    source: str,
    files: list[Path] | None = None,
    *,
    out: Path,
    split: Literal["train", "val", "test", "all"] | None = None,
    max_jets: int | None = None,
    select: list[str] | None = None,
    where: list[str] | None = None,
    min_particles: int = 1,
    max_particles: int | None = None,
    drop_invalid: bool = False,
    unlabeled: bool = False,
    classes: list[str] | None = None,
    label_column: str | None = None,
    mapping: Path | None = None,
    duplicates: Path | None = None,
    grouping: Literal["188", "7"] | None = None,
    collection: Literal["ak8", "ak4"] | None = None,
    level: Literal["detector", "generator"] | None = None,
    puppi: bool = True,
    seed: int | None = None,
    algorithm: Algorithm = "kt",
    R: float = 0.8,
    jets_per_shard: int = 50_000,
    workers: int | None = None,
    dask: str | None = None,
    add: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> Store:
    """Read jets from files, cluster each once, and write them to a store.

    Every jet that is read is either kept, or counted under the reason why it was dropped; empty jets always are. A
    command that was stopped, even by a power cut, goes on where it ended when it is given again. The store is the same
    for any number of workers.

    Args:
        source: kind of files. Data sets: jetclass (ROOT), jetclass2 (ROOT, Parquet), jetnet (HDF5), toptagging (HDF5,
            .npz), quarkgluon (.npz), hls4ml (HDF5), omnifold (.npz). Collisions: aspen (HDF5), mod (HDF5), pfnano
            (CMS NanoAOD with particles). Your own jets: arrays (.npz with p4 (N, 4) = E, px, py, pz in GeV, n or
            offsets, and optionally y; or Parquet with list columns E, px, py, pz, or p4), weaver (.npz with vectors),
            mapped (any ROOT, Parquet or HDF5 that --mapping describes). Without files: the name of a data set.
        files: files to read, in this order; without any, those that `jetrep download` has put into the cache.
        out: folder of the new store.
        split: which files of a downloaded data set to read; train if not given.
        max_jets: stop after keeping this many jets.
        select: keep only jets of these classes.
        where: keep only jets that fulfil all these conditions, such as "pt > 500".
        min_particles: drop jets with fewer constituents.
        max_particles: keep only this many constituents of each jet, those of the highest pT.
        drop_invalid: drop jets with NaN, infinite momenta or energies below zero, instead of stopping at the first.
        unlabeled: store the jets without labels.
        classes: names of the labels 0, 1, … (arrays and weaver only; if not given, the numbers are the names).
        label_column: array or column that holds the labels (arrays only; y, label or labels if not given).
        mapping: YAML file that says which columns are what (mapped only).
        duplicates: .npz file that lists jets which occur twice (toptagging only); the second of each is dropped.
        grouping: classes of jetclass2: all 188, or 7 groups of them; 188 if not given.
        collection: jets of pfnano: ak8 or ak4; ak8 if not given.
        level: particles of simulated mod files: detector or generator; detector if not given.
        puppi: aspen only: scale momenta by their PUPPI weights, which subtracts pile-up; --no-puppi leaves them alone.
        seed: start of the random numbers for what a data set leaves open (jetnet only: the direction of the jets).
        algorithm: clustering algorithm of the merge history.
        R: radius parameter of the clustering.
        jets_per_shard: rows of the input for each file of the store; a store of one file is read without any copy.
        workers: processes that work at the same time; as many as there are cores and work for, if not given.
        dask: address of the scheduler of a Dask cluster that does the work; its workers must see the same folders.
        add: add the jets of new files to the store at OUT, which was prepared with the same settings. Files that it
            has already are left out.
        overwrite: replace a store that already stands at OUT.
        quiet: print nothing, show no progress.

    Returns:
        The store.

    Raises:
        InputError: if the input or the settings cannot be used, the disk is full, or another process is preparing the
            same store. Nothing is changed at ``out`` then.
    """
    given = dict(locals())
    at_least(1, max_jets=max_jets, jets_per_shard=jets_per_shard, workers=workers)
    for one, other in (("add", "overwrite"), ("add", "max_jets"), ("dask", "workers")):
        if given[one] and given[other]:
            raise InputError(f"cannot be given together with {other}", field=one, remedy="leave out one of the two")
    begin = time.perf_counter()
    kind, paths, dataset = _input(source, files, split)
    paths = [path.absolute() for path in paths] if dask else paths  # the workers have folders of their own
    settings: dict[str, Any] = {name: given[name] for name in _SETTINGS} | {
        "source": kind,
        "puppi": None if puppi else False,
    }
    tell = _teller(quiet)
    plan = _Plan(kind, paths, settings, Path(out).absolute(), dataset)
    with orderly_termination():
        make = _Making(workers, dask, quiet)
        read = _add(plan, make, tell) if add else _new(plan, make, tell, overwrite=overwrite)
    store = Store(out)
    if not quiet:
        Console().print(_summary(store, read, time.perf_counter() - begin))
    return store


@dataclass(frozen=True)
class _Plan:
    """What is to be prepared, and where."""

    kind: str
    files: list[Path]
    settings: dict[str, Any]
    out: Path
    dataset: dict[str, str] | None

    def open(self, files: Sequence[Path]) -> Job:
        """The job for some of the files, without a folder yet."""
        settings = self.settings
        source = open_source(
            self.kind,
            files,
            labels=bool(settings["select"]) or not settings["unlabeled"],
            **{name: settings[name] for name in _OPTIONS},
        )
        selection = Selection(
            tuple(settings["select"]) if settings["select"] else None,
            settings["min_particles"],
            settings["drop_invalid"],
            settings["max_particles"],
            where=tuple(settings["where"] or ()),
        )
        selection.check(source.classes)
        check_classes(source.classes)
        classes = () if settings["unlabeled"] else source.classes
        return Job(source, selection, classes, settings["algorithm"], settings["R"], self.out, self.out)

    @property
    def asides(self) -> dict[str, Path]:
        """Files that settings name."""
        return {name: value for name, value in self.settings.items() if isinstance(value, Path)}

    def key(self, job: Job, **more: Any) -> dict[str, Any]:
        """What decides the content of a part, but for the files, which may change one by one."""
        return {
            "settings": self.settings,
            "asides": {name: (str(path.absolute()), *identity(path)) for name, path in self.asides.items()},
            "files": [str(Path(file).absolute()) for file in job.source.files],
            "classes": job.source.classes,
            "versions": versions(),
            **more,
        }

    def provenance(self) -> dict[str, Any]:
        """Where the jets come from, but for the files."""
        settings = {name: value.name if isinstance(value, Path) else value for name, value in self.settings.items()}
        told: dict[str, Any] = {"command": "prepare", "files": [], "settings": settings}
        if self.dataset:
            told["dataset"] = self.dataset
        if self.asides:
            told["settings_files"] = [{"setting": name, **file_entry(path)} for name, path in self.asides.items()]
        return told | {"versions": {"python": platform.python_version(), **versions()}}


@dataclass(frozen=True)
class _Making:
    """Who makes the parts, and who is told."""

    workers: int | None
    dask: str | None
    quiet: bool

    def parts(self, job: Job, settings: dict[str, Any], tell: Callable[[str], None]) -> list[Record]:
        """Make the parts that are not finished yet."""
        job = replace(job, threads=1) if self.workers else job  # who asks for a process means a core
        parts = split_rows(job.source.rows, settings["jets_per_shard"])
        finished = load_records(job, parts)
        rows = sum(parts[number].rows for number in finished)
        if finished:
            tell(f"going on: {len(finished)} of {len(parts)} parts are finished")
        bar: tqdm[Any] = progress(description="preparing", total=sum(job.source.rows), unit="row", quiet=self.quiet)
        bar.initial = bar.n = rows
        most = (sum(job.source.rows) - rows) // _ROWS_PER_WORKER
        number = min(self.workers or min(cores(), most), len(parts) - len(finished))
        with bar, self._crew(number, bar) as crew:
            return carry_out(
                job,
                parts,
                finished,
                crew,
                max_jets=settings["max_jets"],
                done=lambda part: None if crew.reports else bar.update(part.rows),
            )

    def _crew(self, number: int, bar: tqdm[Any]) -> AbstractContextManager[Crew]:
        if self.dask:
            return on_dask(self.dask)
        return processes(number) if number > 1 else alone(bar.update)


@contextmanager
def _reserved(out: Path) -> Iterator[None]:
    """Nobody else prepares the same store, and nothing is left there from former times."""
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out):
        with disk_errors(out):
            tidy_up(out)
        yield


def _new(plan: _Plan, make: _Making, tell: Callable[[str], None], *, overwrite: bool) -> int:
    """Prepare a new store; returns the number of jets that were read."""
    job = plan.open(plan.files)
    with _reserved(plan.out):
        check_target(plan.out, overwrite=overwrite)
        with work_folder(plan.out, plan.key(job), tell) as folder:
            job = replace(job, folder=folder)
            records = make.parts(job, plan.settings, tell)
            whole = plan.settings["max_jets"] is None
            new_store(job, records, plan.provenance(), whole=whole, overwrite=overwrite)
    return sum(record.read for record in records)


def _add(plan: _Plan, make: _Making, tell: Callable[[str], None]) -> int:
    """Add to a store; returns the number of jets that were read."""
    Manifest.load(plan.out)  # before anything is made beside a folder that is none
    with _reserved(plan.out):
        base = Manifest.load(plan.out)
        new = _unknown(plan.files, base, tell)
        if not new:
            clear(plan.out)  # of this very command, if it was killed as its last act
            return 0
        job = plan.open(new)
        if found := differences(base, plan.provenance(), job.classes):
            raise InputError(
                f"was prepared differently: {'; '.join(found)}",
                file=plan.out,
                remedy="give the same settings, or prepare another store",
            )
        with work_folder(plan.out, plan.key(job, add_to=base.content_hash), tell) as folder:
            job = replace(job, folder=folder)
            records = make.parts(job, plan.settings, tell)
            add_to_store(job, records, base)
    return sum(record.read for record in records)


def _unknown(files: Sequence[Path], base: Manifest, tell: Callable[[str], None]) -> list[Path]:
    """The files that are not in the store yet, by their content."""
    known = {(entry.get("bytes"), entry.get("hash")) for entry in base.provenance.get("files", [])}
    sizes = {size for size, _ in known}
    new = []
    for file in existing_files(files):
        size = file.stat().st_size
        if size in sizes and (size, file_hash(file)) in known:
            tell(f"{file} is in the store already")
        else:
            new.append(file)
    return new


def _input(source: str, files: list[Path] | None, split: str | None) -> tuple[str, list[Path], dict[str, str] | None]:
    """Kind of files, the files, and what the catalog calls them if they come from there."""
    if files:
        if split is not None:
            raise InputError("belongs to downloaded data sets", field="split", remedy="leave it out, or the files")
        return source, [Path(file) for file in files], None
    from jetrep.sources.catalog import cached_files, data_set, data_sets

    if source in SOURCES and source not in data_sets():
        raise InputError("no files are given", field="files", remedy="name at least one")
    kind = data_set(source).source
    return kind, cached_files(source, split or "train"), {"name": source, "split": split or "train"}


def _teller(quiet: bool) -> Callable[[str], None]:
    """Prints lines on standard error."""
    return lambda line: None if quiet else print(f"jetrep prepare: {line}", file=sys.stderr)  # noqa: T201


def _summary(store: Store, read: int, seconds: float) -> Any:
    """What happened, as a table."""
    manifest = store.manifest
    rows = {"read": f"{read:,} jets", "kept": f"{len(store):,} jets, {manifest.constituents:,} constituents"}
    for reason, n in Counter(manifest.dropped).most_common():
        rows[f"dropped: {reason}"] = f"{n:,} jets"
    rows |= class_rows(manifest.label_counts)
    for kind, names in (("measured", manifest.measured), ("observers", manifest.observers)):
        if names:
            rows[kind] = ", ".join(names)
    rows["clustering"] = f"{manifest.algorithm}, R = {manifest.R:g}"
    rows["time"] = f"{seconds:.1f} s ({read / max(seconds, 1e-9):,.0f} jets/s)"
    rows["content hash"] = manifest.content_hash
    return key_values(str(store.path), rows)
