"""From the stores on the command line to the jets of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jetrep.errors import InputError, at_least
from jetrep.jets import Jets
from jetrep.store.reader import Store

__all__ = ["data_hashes", "labels_as", "load_jets", "load_labelled"]


def load_jets(
    stores: Sequence[Path],
    *,
    classes: Sequence[str] | None = None,
    max_jets: int | None = None,
    labelled: bool | None = None,
) -> Jets:
    """All jets of several stores, one after the other; labels follow the union of their class names.

    Args:
        stores: folders that `jetrep prepare` or `jetrep simulate` wrote.
        classes: keep only jets of these classes.
        max_jets: keep at most this many, the first of each store in equal parts.
        labelled: True to refuse jets without labels, False to leave labels aside; by default all stores must be
            labelled, or none.

    Raises:
        InputError: if a store cannot be read, is unlabelled where it must not be, or a class is unknown.
    """
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
    parts = []
    for store in opened:
        jets = store.jets()
        jets = labels_as(jets, names) if names else jets.with_labels(None)
        if classes is not None and jets.labels is not None:
            jets = jets[np.isin(jets.labels, [names.index(name) for name in classes])]
        if max_jets is not None:
            jets = jets[: -(-max_jets // len(opened))]
        parts.append(jets)
    jets = Jets.concatenate(parts)
    return jets if max_jets is None else jets[:max_jets]


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
