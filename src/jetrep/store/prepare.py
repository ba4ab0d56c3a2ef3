"""The verb ``prepare``: jets from files into a store."""

from __future__ import annotations

import platform
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from tqdm import tqdm

from jetrep.errors import InputError
from jetrep.physics.clustering import Algorithm
from jetrep.progress import progress
from jetrep.report.terminal import class_rows, key_values
from jetrep.sources.chunks import Source, every_chunk
from jetrep.sources.registry import open_source
from jetrep.store.interrupt import orderly_termination
from jetrep.store.manifest import file_hash
from jetrep.store.reader import Store
from jetrep.store.selection import Selection
from jetrep.store.writer import StoreWriter

__all__ = ["prepare"]


def prepare(
    source: Literal["toptagging", "arrays"],
    files: list[Path],
    *,
    out: Path,
    max_particles: int | None = None,
    min_particles: int = 1,
    max_jets: int | None = None,
    classes: list[str] | None = None,
    select: list[str] | None = None,
    unlabeled: bool = False,
    label_column: str | None = None,
    duplicates: Path | None = None,
    drop_invalid: bool = False,
    algorithm: Algorithm = "kt",
    R: float = 0.8,
    jets_per_shard: int = 50_000,
    overwrite: bool = False,
    quiet: bool = False,
) -> Store:
    """Read jets from files, cluster each once, and write them to a store.

    Empty jets are dropped. Every jet that is read is either kept, or counted under the reason why it was dropped.

    Args:
        source: kind of files. "toptagging": the top-tagging reference set, official HDF5 or repacked .npz.
            "arrays": your own jets, .npz with p4 (N, 4) = E, px, py, pz in GeV, n or offsets, and optionally y; or
            Parquet with list columns E, px, py, pz, or p4.
        files: files to read, in this order.
        out: folder of the new store.
        max_particles: keep only this many constituents of each jet, those of the highest pT.
        min_particles: drop jets with fewer constituents.
        max_jets: stop after keeping this many jets.
        classes: names of the labels 0, 1, … (arrays only; without it the numbers themselves are the names).
        select: keep only jets of these classes.
        unlabeled: store the jets without labels.
        label_column: array or column that holds the labels (arrays only; y, label or labels if not given).
        duplicates: .npz file that lists jets which occur twice (toptagging only); the second of each is dropped.
        drop_invalid: drop jets with NaN, infinite momenta or energies below zero, instead of stopping at the first.
        algorithm: clustering algorithm of the merge history.
        R: radius parameter of the clustering.
        jets_per_shard: jets in one file of the store; a store of one file is read without any copy.
        overwrite: replace a store that already stands at OUT.
        quiet: print nothing, show no progress.

    Returns:
        The new store.

    Raises:
        InputError: if the input or the settings cannot be used, or the disk is full. Nothing is left at ``out`` then.
    """
    settings = {name: value for name, value in locals().items() if name not in ("quiet", "files", "out")}
    files = [Path(file) for file in files]
    if max_jets is not None and max_jets < 1:
        raise InputError(f"is {max_jets}", field="max_jets", remedy="give a positive number")
    begin = time.perf_counter()
    reader = open_source(
        source,
        files,
        labels=bool(select) or not unlabeled,
        classes=classes,
        label_column=label_column,
        duplicates=duplicates,
    )
    selection = Selection(tuple(select) if select else None, min_particles, drop_invalid, max_particles)
    selection.check(reader.classes)
    kept_classes = () if unlabeled else reader.classes
    with (
        orderly_termination(),
        StoreWriter(
            out,
            classes=kept_classes,
            provenance=_provenance(files + ([duplicates] if duplicates else []), settings),
            jets_per_shard=jets_per_shard,
            overwrite=overwrite,
            algorithm=algorithm,
            R=R,
        ) as writer,
    ):
        read = _transfer(reader, writer, selection, max_jets, unlabeled=unlabeled, quiet=quiet)
    store = Store(out)
    if not quiet:
        Console().print(_summary(store, read, time.perf_counter() - begin))
    return store


def _transfer(
    reader: Source, writer: StoreWriter, selection: Selection, max_jets: int | None, *, unlabeled: bool, quiet: bool
) -> int:
    """Move jets from the reader to the writer; returns how many were read."""
    read = 0
    bar: tqdm[Any] = progress(description="preparing", total=sum(reader.rows), quiet=quiet)
    with bar:
        for chunk in every_chunk(reader):
            limit = None if max_jets is None else max_jets - writer.n_jets
            jets, n, dropped = selection.apply(chunk, limit)
            writer.write(jets.with_labels(None) if unlabeled else jets)
            for reason, count in dropped.items():
                writer.drop(reason, count)
            read += n
            bar.update(n)
            if max_jets is not None and writer.n_jets >= max_jets:
                break
    if read != writer.n_jets + writer.dropped.total():
        raise AssertionError(f"{read} jets read, {writer.n_jets} kept, {dict(writer.dropped)} dropped")
    return read


def _provenance(files: list[Path], settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "command": "prepare",
        "files": [{"file": file.name, "bytes": file.stat().st_size, "hash": file_hash(file)} for file in files],
        "settings": {name: value.name if isinstance(value, Path) else value for name, value in settings.items()},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("jetrep", "numpy", "numba", "pyarrow")},
        },
    }


def _summary(store: Store, read: int, seconds: float) -> Any:
    """What happened, as a table."""
    manifest = store.manifest
    rows = {"read": f"{read:,} jets", "kept": f"{len(store):,} jets, {manifest.constituents:,} constituents"}
    for reason, n in Counter(manifest.dropped).most_common():
        rows[f"dropped: {reason}"] = f"{n:,} jets"
    rows |= class_rows(manifest.label_counts)
    rows["clustering"] = f"{manifest.algorithm}, R = {manifest.R:g}"
    rows["time"] = f"{seconds:.1f} s ({read / max(seconds, 1e-9):,.0f} jets/s)"
    rows["content hash"] = manifest.content_hash
    return key_values(str(store.path), rows)
