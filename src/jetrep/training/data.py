"""From the stores on the command line to the jets of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jetrep.errors import InputError, at_least
from jetrep.jets import Jets
from jetrep.store.gather import JetPool, Part
from jetrep.store.reader import Store

__all__ = ["check_apart", "classes_of", "data_hashes", "labels_as", "load_jets", "load_labelled", "open_pool"]


def load_jets(
    stores: Sequence[Path],
    *,
    classes: Sequence[str] | None = None,
    max_jets: int | None = None,
    labelled: bool | None = None,
) -> Jets:
    """All jets of several stores, one after the other; labels follow the union of their class names.

    Of several stores, measured columns and observers are those that all of them have.

    Args:
        stores: folders that `jetrep prepare` or `jetrep simulate` wrote.
        classes: keep only jets of these classes.
        max_jets: keep at most this many, the first of each store in equal parts.
        labelled: True to refuse jets without labels, False to leave labels aside; by default all stores must be
            labelled, or none.

    Raises:
        InputError: if a store cannot be read, is unlabelled where it must not be, or a class is unknown.
    """
    opened, names = _opened(stores, classes, max_jets, labelled)
    parts = []
    for store in opened:
        jets = store.jets()
        jets = labels_as(jets, names) if names else jets.with_labels(None)
        if classes is not None and jets.labels is not None:
            jets = jets[np.isin(jets.labels, [names.index(name) for name in classes])]
        if max_jets is not None:
            jets = jets[: -(-max_jets // len(opened))]
        parts.append(jets)
    jets = Jets.concatenate(_with_common_columns(parts))
    return jets if max_jets is None else jets[:max_jets]


def _with_common_columns(parts: list[Jets]) -> list[Jets]:
    measured, observers = (
        [name for name in getattr(parts[0], kind) if all(name in getattr(part, kind) for part in parts)]
        for kind in ("measured", "observers")
    )
    return [
        replace(
            part,
            measured={name: part.measured[name] for name in measured},
            observers={name: part.observers[name] for name in observers},
        )
        for part in parts
    ]


def open_pool(
    stores: Sequence[Path],
    *,
    classes: Sequence[str] | None = None,
    max_jets: int | None = None,
    labelled: bool | None = None,
    history: bool = True,
    columns: Sequence[str] = (),
    max_particles: int | None = None,
) -> JetPool:
    """The jets that `load_jets` would load, in the same order, but left on disk.

    Args:
        stores: folders that `jetrep prepare` or `jetrep simulate` wrote.
        classes: keep only jets of these classes; all labels are read for that, and one bit a jet is kept.
        max_jets: keep at most this many, the first of each store in equal parts.
        labelled: as for `load_jets`.
        history: whether merge histories come along.
        columns: measured columns that come along.
        max_particles: keep only this many constituents of each jet, those of the highest pT. Jets that lose some are
            clustered again, as they were in their store.

    Raises:
        InputError: as `load_jets`; or if a store lacks one of the columns, or jets that may have to be clustered
            again were clustered differently in different stores.
    """
    at_least(1, max_particles=max_particles)
    opened, names = _opened(stores, classes, max_jets, labelled)
    for store in opened:
        if missing := [name for name in columns if name not in store.manifest.measured]:
            raise InputError(
                f"the jets have no measured column '{missing[0]}'",
                file=store.path,
                field=missing[0],
                remedy="prepare them from a data set that has it, or choose other features",
            )
    clustering = [(store.manifest.algorithm, store.manifest.R) for store in opened]
    if history and max_particles is not None and len(set(clustering)) > 1:
        raise InputError(
            "the stores were clustered differently",
            file=stores[0],
            field="max_particles",
            remedy="prepare all of them with the same algorithm and R",
        )
    quota = None if max_jets is None else -(-max_jets // len(opened))
    parts = [part for store in opened for part in _parts(store, names, classes, quota)]
    if max_jets is not None:
        over = sum(part.n for part in parts) - max_jets
        while over > 0:
            last = parts.pop()
            if last.n > over:
                parts.append(Part(last.n - over, last.source, last.selected, last.labels))
            over -= last.n
    return JetPool(
        parts,
        classes=names,
        history=history,
        columns=tuple(columns),
        max_particles=max_particles,
    )


def _parts(store: Store, names: tuple[str, ...], classes: Sequence[str] | None, quota: int | None) -> list[Part]:
    """The shards of a store, as far as they are wanted."""
    table: NDArray[np.int64] | None = None
    if names and names != store.classes:
        table = np.array([names.index(name) for name in store.classes], np.int64)
    wanted = np.array([name in classes for name in store.classes]) if classes is not None else None
    parts: list[Part] = []
    for number, shard in enumerate(store.manifest.shards):
        left = shard.jets if quota is None else min(shard.jets, quota - sum(part.n for part in parts))
        if left <= 0:
            break
        selected, n = None, left
        if wanted is not None and not wanted.all():
            keep = wanted[store.map(number, check=False).jets.truth]
            selected, n = np.packbits(keep), min(left, int(keep.sum()))
        parts.append(Part(n, (store, number), selected, table))
    return parts


def _opened(
    stores: Sequence[Path], classes: Sequence[str] | None, max_jets: int | None, labelled: bool | None
) -> tuple[list[Store], tuple[str, ...]]:
    """The stores, and the union of the names of their classes."""
    at_least(1, max_jets=max_jets)
    if not stores:
        raise InputError("no store given", field="data", remedy="name at least one folder")
    opened = [Store(path) for path in stores]
    unlabelled = [store for store in opened if not store.labelled]
    if unlabelled and labelled:
        raise InputError(
            "the jets are unlabelled", file=unlabelled[0].path, field="label", remedy="give a labelled store"
        )
    if unlabelled and labelled is None and len(unlabelled) < len(opened):
        raise InputError(
            "unlabelled, unlike the other stores", file=unlabelled[0].path, field="label", remedy="train on it apart"
        )
    names = tuple(dict.fromkeys(name for store in opened for name in store.classes)) if labelled is not False else ()
    for name in classes or ():
        if name not in names:
            known = ", ".join(names) or "none: the jets are unlabelled"
            raise InputError(
                f"there are no jets of class '{name}'", file=stores[0], field="classes", remedy=f"known: {known}"
            )
    return opened, names


def load_labelled(stores: Sequence[Path], classes: Sequence[str], *, max_jets: int | None = None) -> Jets:
    """Jets of labelled stores, whose labels index ``classes``.

    Args:
        stores: folders of the stores.
        classes: names of the labels in the result.
        max_jets: keep at most this many, the first of each store in equal parts.

    Raises:
        InputError: naming the store, if one is unlabelled or has jets of a class that ``classes`` does not hold.
    """
    for store in map(Store, stores):
        unknown = [name for name, n in store.manifest.label_counts.items() if n and name not in classes]
        if unknown:
            raise InputError(
                f"jets of class {', '.join(unknown)} are not among {', '.join(classes)}",
                file=store.path,
                field="label",
                remedy="name the classes alike when preparing the store (--classes)",
            )
    return labels_as(load_jets(stores, max_jets=max_jets, labelled=True), classes)


def labels_as(jets: Jets, classes: Sequence[str]) -> Jets:
    """The same jets with labels that index ``classes`` instead of their own class names.

    Raises:
        InputError: if the jets are unlabelled, or of a class that ``classes`` does not hold.
    """
    labels = jets.truth
    if tuple(jets.classes) == tuple(classes):
        return jets
    present = np.unique(labels)
    unknown = [jets.classes[i] for i in present if jets.classes[i] not in classes]
    if unknown:
        raise InputError(
            f"jets of class {', '.join(unknown)} are not among {', '.join(classes)}",
            field="label",
            remedy="name the classes alike when preparing the store (--classes)",
        )
    table = np.full(len(jets.classes), -1, np.int64)
    for i in present:
        table[i] = list(classes).index(jets.classes[i])
    return jets.with_labels(table[labels], classes)


def data_hashes(stores: Sequence[Path]) -> Mapping[str, str]:
    """Content hash of each store, for the record of a run."""
    return {str(path): Store(path).content_hash for path in stores}


def classes_of(stores: Sequence[Path], chosen: Sequence[str] | None = None) -> list[str]:
    """Names of the classes, or of those ``chosen`` among them, of which the stores hold jets."""
    held = [name for path in stores for name, n in Store(path).manifest.label_counts.items() if n]
    return [name for name in dict.fromkeys(held) if chosen is None or name in chosen]


def check_apart(train: Sequence[Path], test: Sequence[Path], field: str) -> None:
    """Whether what is judged on, the argument ``field``, was not trained on.

    Raises:
        InputError: if a store of both has the same content.
    """
    known = set(data_hashes(train).values())
    for path, content in data_hashes(test).items():
        if content in known:
            raise InputError("holds the jets to train on", file=path, field=field, remedy="judge on other jets")
