"""The JetClass-II data set: 188 classes of jets in Parquet or ROOT files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from jetrep.errors import InputError
from jetrep.sources import parquet
from jetrep.sources._root import Tree
from jetrep.sources._tables import Table
from jetrep.sources.chunks import Chunk, check_labels, existing_files
from jetrep.sources.jetclass import JET, LABEL_2, PARTICLES, TREE, chunk_of

__all__ = ["CLASSES_7", "CLASSES_188", "JetClass2"]


def _names() -> tuple[str, ...]:
    """The 188 names, in the order of their labels: q is u or d, v a neutrino; of a tau, what it decays to follows."""
    taus = ("tauhtaue", "tauhtaum", "tauhtauh")
    two = ["bb", "cc", "ss", "qq", "bc", "cs", "bq", "cq", "sq", "gg", "ee", "mm", *taus]
    # X → YY, Y → two quarks, gluons or leptons: each kind of pair with those not yet met, then with one lost parton.
    four: list[str] = []
    flavours = "bcsqg"
    for i, flavour in enumerate(flavours):
        pair = 2 * flavour
        four += [pair + 2 * other for other in flavours[i:]]
        four += [pair + other for other in ("ee", "mm", *taus)]
        four += [pair + other for other in (*flavours, "e", "m")]
    four += [flavour + leptons for leptons in ("ee", "mm", *taus) for flavour in flavours]
    # As X → WW: three or four quarks of several flavours, and two quarks with a lepton and its neutrino.
    four += ["qqqb", "qqqc", "qqqs", "bbcq", "ccbs", "ccbq", "ccsq", "sscq", "qqbc", "qqbs", "qqcs", "bcsq"]
    four += ["bcs", "bcq", "bsq", "csq"]
    quarks = ("bc", "cs", "bq", "cq", "sq", "qq")
    four += [pair + lepton + "v" for lepton in ("e", "m", "taue", "taum", "tauh") for pair in quarks]
    return (*(f"X_{name}" for name in two), *(f"X_YY_{name}" for name in four), *_qcd())


def _qcd() -> Iterator[str]:
    """QCD jets by the heavy and strange quarks in them: two or more, one, or none of each flavour."""
    for b in ("bb", "b", ""):
        for c in ("cc", "c", ""):
            for s in ("ss", "s", ""):
                yield f"QCD_{b + c + s or 'light'}"


CLASSES_188 = _names()

CLASSES_7 = ("X_bb", "X_tauhtaue", "X_tauhtaum", "X_tauhtauh", "X_YY_qqb_bcs", "X_qq", "QCD")

_OFFICIAL = "give an official file of huggingface.co/datasets/jet-universe/jetclass2, or use the source 'mapped'"
_PARQUET = (".parquet", ".pq")


def _groups() -> NDArray[np.int64]:
    """(188,) the class among the seven, −1 for none."""
    group = np.full(len(CLASSES_188), -1, np.int64)
    for label, name in enumerate(CLASSES_188):
        if name.startswith("QCD_"):
            group[label] = CLASSES_7.index("QCD")
        elif name in ("X_YY_qqb", "X_YY_bcs"):
            group[label] = CLASSES_7.index("X_YY_qqb_bcs")
        elif name in CLASSES_7:
            group[label] = CLASSES_7.index(name)
    return group


class JetClass2:
    """Jets of the JetClass-II data set, Parquet files or ROOT files with a tree ``tree``.

    Columns, units and signs are those of `jetrep.sources.jetclass.JetClass`; one number, ``jet_label``, stands for the
    class. Generator-level columns are not read.

    The grouping "7" has the classes of arXiv:2511.12829 as its results name them: H → bb, H → ττ by the decays of the
    taus, a top-like class of q q b and b c s, q q, and all of QCD. Which labels of the data set these are is our
    reading: 0; 12, 13, 14; 70 and 127; 3; 161 to 187. Jets of other labels are flagged "other class".

    Args:
        files: ``.parquet`` and ``.root`` files.
        labels: read the labels; without them, no jet is of another class.
        grouping: "188" classes as in the data set, or "7".

    Attributes:
        classes: their names, or () without labels.
        files: the files.
        rows: number of jets of each.

    Raises:
        InputError: if a file is missing, damaged or of another schema, or has no labels.
    """

    def __init__(self, files: Sequence[Path], *, labels: bool = True, grouping: Literal["188", "7"] = "188") -> None:
        if grouping not in ("188", "7"):
            raise InputError(f"is '{grouping}'", field="grouping", remedy="give 188 or 7")
        self.files = existing_files(files)
        self._group = _groups() if grouping == "7" else None
        self.classes: tuple[str, ...] = ()
        if labels:
            self.classes = CLASSES_188 if self._group is None else CLASSES_7
        self.rows = [_length(file, labels=labels) for file in self.files]

    def read(self, file: int, start: int, stop: int) -> Iterator[Chunk]:
        """Jets ``start:stop`` of one file.

        Raises:
            InputError: if the file proves to be damaged, or a label is not 0 to 187.
        """
        path = self.files[file]
        numbers = [*JET, *([LABEL_2] if self.classes else [])]
        for table in _tables(path, numbers, start, stop):
            if not self.classes:
                yield chunk_of(table, path, None, ())
                continue
            labels = check_labels(
                table.numbers[LABEL_2], file=path, field=LABEL_2, start=table.start, n_classes=len(CLASSES_188)
            )
            if self._group is None:
                yield chunk_of(table, path, labels, self.classes)
                continue
            group = self._group[labels]
            chunk = chunk_of(table, path, np.maximum(group, 0), self.classes)
            chunk.flags["other class"] = group < 0
            yield chunk


def _tables(file: Path, numbers: Sequence[str], start: int, stop: int) -> Iterator[Table]:
    if file.suffix.lower() in _PARQUET:
        yield from parquet.tables(file, numbers, PARTICLES, start, stop)
    else:
        with Tree(file, TREE, remedy=_OFFICIAL) as tree:
            yield from tree.read(numbers, PARTICLES, start, stop)


def _length(file: Path, *, labels: bool) -> int:
    if file.suffix.lower() in _PARQUET:
        names = parquet.names(file)
        _check_names(names, file, labels=labels)
        return parquet.rows(file)
    with Tree(file, TREE, remedy=_OFFICIAL) as tree:
        _check_names(tree.names, file, labels=labels)
        tree.require(numbers=[*JET, *([LABEL_2] if labels else [])], lists=PARTICLES)
        return tree.rows


def _check_names(names: Sequence[str], file: Path, *, labels: bool) -> None:
    """Whether all columns are there."""
    if LABEL_2 not in names and "label_QCD" in names:
        raise InputError(
            "is a file of JetClass", file=file, field="label_QCD", remedy="read it with the source 'jetclass'"
        )
    for name in (*PARTICLES, *JET):
        if name not in names:
            raise InputError("the column is missing", file=file, field=name, remedy=_OFFICIAL)
    if labels and LABEL_2 not in names:
        raise InputError("the labels are missing", file=file, field=LABEL_2, remedy="read the file with --unlabeled")
