"""The verb ``inspect``: what is in a store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text
from tqdm import tqdm

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.physics import observables
from jetrep.progress import progress
from jetrep.report.terminal import TerminalHistogram, class_rows, key_values
from jetrep.store.manifest import SCHEMA, Manifest
from jetrep.store.reader import Store

__all__ = ["inspect"]

_MOST_FILES, _MOST_CLASSES = 12, 8
_QUANTITIES = {
    "pt": (observables.pt, "Jet pT [GeV]", r"Jet $p_\mathrm{T}$ [GeV]"),
    "mass": (observables.mass, "Jet mass [GeV]", "Jet mass [GeV]"),
    "multiplicity": (observables.multiplicity, "Constituents", "Constituents"),
}


def inspect(store: Path, *, out: Path | None = None, max_jets: int = 100_000) -> dict[str, Any]:
    """Print what a store holds: counts, classes, provenance, and the distributions of pT, mass and multiplicity.

    Every shard is checked against its hash on the way.

    Args:
        store: folder of the store.
        out: also draw the distributions into this file (.png, .pdf or .svg).
        max_jets: draw about this many jets, evenly spread over the store. Of more than eight classes the seven
            largest are drawn, and the others together.

    Returns:
        the manifest under "manifest"; under "observables" the arrays "pt" and "mass" (GeV), "multiplicity", and, if the
        jets are labelled, "label".

    Raises:
        InputError: if the store is damaged, or the figure cannot be written.
    """
    if max_jets < 1:
        raise InputError(f"is {max_jets}", field="max_jets", remedy="give a positive number")
    opened = Store(store)
    values = _observables(opened, max_jets)
    console = Console()
    console.print(key_values(str(store), _facts(opened.manifest)))
    samples = {name: dict(_by_class(values[name], values.get("label"), opened.classes)) for name in _QUANTITIES}
    few = len(samples["pt"]) <= 4
    for name, (_, title, _) in _QUANTITIES.items():
        console.print(TerminalHistogram(title, samples[name], height=3 if few else 1))
        console.print()
    shown = len(values["pt"])
    console.print(Text(f"{shown:,} of {len(opened):,} jets drawn; outer bins hold what lies beyond", style="dim"))
    if out is not None:
        _draw(opened, samples, out)
        console.print(Text(f"figure: {out}"))
    return {"manifest": opened.manifest, "observables": values}


def _observables(store: Store, max_jets: int) -> dict[str, NDArray[Any]]:
    """pT, mass and multiplicity (and label) of every k-th jet."""
    every = -(-len(store) // max_jets)
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in (*_QUANTITIES, "label")}
    for jets in _thinned(store, every):
        for name, (observable, *_) in _QUANTITIES.items():
            parts[name].append(observable(jets))
        if jets.labels is not None:
            parts["label"].append(np.array(jets.labels))
    return {name: np.concatenate(arrays) for name, arrays in parts.items() if arrays}


def _thinned(store: Store, every: int) -> Iterator[Jets]:
    """Jets 0, every, 2·every, … of the store, shard by shard."""
    start = 0
    bar: tqdm[Any] = progress(description="reading", total=len(store))
    with bar:
        for jets in store.shards():
            yield jets[np.arange(-start % every, len(jets), every)] if every > 1 else jets
            start += len(jets)
            bar.update(len(jets))


def _by_class(
    values: NDArray[Any], labels: NDArray[Any] | None, classes: tuple[str, ...]
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Values by class; small classes together, if there are many."""
    if labels is None:
        yield "all jets", values
        return
    counts = np.bincount(labels, minlength=len(classes))
    largest = np.argsort(-counts, kind="stable")[: _MOST_CLASSES - 1 if len(classes) > _MOST_CLASSES else None]
    for label in np.sort(largest).tolist():
        if counts[label]:
            yield classes[label], values[labels == label]
    if not (together := np.isin(labels, largest)).all():
        yield "others", values[~together]


def _facts(manifest: Manifest) -> dict[str, str]:
    """The manifest, in words."""
    mean = manifest.constituents / max(1, manifest.jets)
    size = sum(shard.bytes for shard in manifest.shards)
    facts = {
        "jets": f"{manifest.jets:,}, with {manifest.constituents:,} constituents ({mean:.1f} per jet)",
    }
    facts |= class_rows(manifest.label_counts)
    if not manifest.classes:
        facts["classes"] = "none, the jets are unlabelled"
    for reason, n in manifest.dropped.items():
        facts[f"dropped: {reason}"] = f"{n:,}"
    facts["clustering"] = f"{manifest.algorithm}, R = {manifest.R:g}"
    facts["columns"] = "p4 (E, px, py, pz in GeV), order, join, d_ij" + (", label" if manifest.classes else "")
    for kind, columns in (("measured", manifest.measured), ("observers", manifest.observers)):
        if columns:
            facts[kind] = ", ".join(columns)
    plural = "s" if len(manifest.shards) > 1 else ""
    facts["files"] = f"{len(manifest.shards)} shard{plural}, {size / 1e6:,.1f} MB, schema {SCHEMA}"
    facts["created"] = manifest.created
    facts["content hash"] = manifest.content_hash
    for name, value in manifest.provenance.items():
        facts.update(_provenance(name, value))
    return facts


def _provenance(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Lines for one entry of the provenance, whatever it is."""
    if name == "files" and isinstance(value, list) and all(isinstance(item, dict) for item in value):
        for i, item in enumerate(value[:_MOST_FILES]):
            number = f" {i + 1}" if len(value) > 1 else ""
            yield (
                f"source{number}",
                f"{item.get('file', '?')} ({item.get('bytes', 0) / 1e6:,.1f} MB, {item.get('hash', '?')})",
            )
        if len(value) > _MOST_FILES:
            yield "source …", f"{len(value) - _MOST_FILES} more"
    elif isinstance(value, dict):
        yield name, ", ".join(f"{key} {item}" for key, item in value.items() if item not in (None, False))
    else:
        yield name, str(value)


def _draw(store: Store, samples: dict[str, dict[str, NDArray[Any]]], out: Path) -> None:
    from jetrep.report.histograms import Distribution, histograms  # matplotlib takes a second to import
    from jetrep.report.style import save

    panels = [Distribution(label, samples[name]) for name, (_, _, label) in _QUANTITIES.items()]
    title = f"{store.path.resolve().name}: {len(store):,} jets"
    save(histograms(panels, title=title), out)
