"""The stores on which a tagger is judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.training.data import load_labelled

__all__ = ["choose_background", "load_tests"]


def choose_background(wanted: str | None, classes: Sequence[str], file: Path) -> str:
    """The class against which the others are tagged: the one that is wanted, else "qcd", else the first.

    Raises:
        InputError: if there is no such class.
    """
    background = wanted or ("qcd" if "qcd" in classes else classes[0])
    if background not in classes:
        raise InputError(
            f"there is no class '{background}'", file=file, field="background", remedy=f"known: {', '.join(classes)}"
        )
    return background


def load_tests(
    stores: Sequence[Path], classes: Sequence[str], background: str, *, max_jets: int | None = None
) -> dict[str, Jets]:
    """Labelled jets of each store, under its name; stores of one name go by their paths.

    Args:
        stores: folders of the stores.
        classes: names of the labels in the result.
        background: the class that every store must hold, beside another one.
        max_jets: use at most this many jets of each store.

    Raises:
        InputError: if a store is given twice, is unlabelled, has other classes, or holds nothing to tell apart.
    """
    repeated = [path for path, n in Counter(store.resolve() for store in stores).items() if n > 1]
    if repeated:
        raise InputError("the store is given twice", file=repeated[0], field="on", remedy="name each store once")
    names = Counter(store.resolve().name for store in stores)
    tests = {}
    for store in stores:
        name = store.resolve().name
        jets = load_labelled([store], classes, max_jets=max_jets)
        present = {classes[label] for label in set(jets.truth.tolist())}
        if background not in present or len(present) < 2:
            raise InputError(
                f"holds only jets of class {', '.join(sorted(present))}",
                file=store,
                field="label",
                remedy=f"give {background} and another class",
            )
        tests[name if names[name] == 1 else str(store)] = jets
    return tests
