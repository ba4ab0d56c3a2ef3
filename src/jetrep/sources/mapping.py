"""The mapping of a user's files: a YAML file that names what stands where, read with a closed vocabulary.

A mapping holds names and numbers only. Nothing in it is evaluated, and a key that is not listed here is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jetrep.sources._yaml import Checks, kind_of, plain_yaml, short

__all__ = ["FORMATS", "SYSTEMS", "Column", "FourVectors", "JetMapping", "Label", "load_mapping"]

FORMATS: Mapping[str, tuple[str, ...]] = {
    "root": (".root",),
    "parquet": (".parquet", ".pq"),
    "hdf5": (".h5", ".hdf5", ".hdf"),
}
"""Kinds of files, and how their names end."""

SYSTEMS: tuple[tuple[str, ...], ...] = (
    ("E", "px", "py", "pz"),
    ("pt", "eta", "phi", "mass"),
    ("pt", "eta", "phi", "E"),
    ("pt", "y", "phi", "mass"),
    ("pt", "eta", "phi"),
)
"""Sets of components that define a four-vector; ``y`` is the rapidity, and (pt, eta, phi) alone is massless."""

_COMPONENTS = ("E", "energy", "px", "py", "pz", "pt", "eta", "y", "phi", "mass")
_RELATIVE = ("pt", "eta", "y", "phi")
_UNITS = {"GeV": 1.0, "MeV": 1e-3}


@dataclass(frozen=True)
class Column:
    """Where a number stands.

    Attributes:
        branch: branch, column or dataset.
        column: for one that holds several numbers for each jet or constituent: which, by position or by name.
        scale: factor on what is read.
        key: the place in the mapping that says so, for messages.
    """

    branch: str
    column: int | str | None = None
    scale: float = 1.0
    key: str = ""


@dataclass(frozen=True)
class FourVectors:
    """How the momenta of constituents are given.

    Attributes:
        components: column of each component, by its name in `SYSTEMS`.
        relative_to: column of the jet's pt, eta, y or phi, for components that are relative to it: pt to be multiplied
            with the jet's, the others to be added to it.
        mask: column that is 1 for constituents and 0 for padding.
        unit: GeV for each unit of the file.
    """

    components: Mapping[str, Column]
    relative_to: Mapping[str, Column] = field(default_factory=dict)
    mask: Column | None = None
    unit: float = 1.0


@dataclass(frozen=True)
class Label:
    """How the class of a jet is given: by one column of integers, by several with one 1 among zeros, or by the file.

    Attributes:
        classes: names of the classes.
        columns: the column, or those of a one-hot label.
        one_hot: whether the columns are one-hot.
        merge: index of the class for each integer that is used; None if the integers themselves are the indices.
        patterns: for each class, patterns of names of files; instead of columns.
    """

    classes: tuple[str, ...]
    columns: tuple[Column, ...] = ()
    one_hot: bool = False
    merge: Mapping[int, int] | None = None
    patterns: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class JetMapping:
    """What a mapping says.

    Attributes:
        file: the mapping's own file.
        four_vectors: the momenta.
        format: a key of `FORMATS`; None leaves it to the ending of each file's name.
        tree: name of the tree in ROOT files; None if it is the only one.
        group: group of all datasets in HDF5 files; None for the root.
        measured: columns of `Jets.measured`, by name.
        observers: columns of `Jets.observers`, by name.
        label: the labels, or None.
    """

    file: Path
    four_vectors: FourVectors
    format: str | None = None
    tree: str | None = None
    group: str | None = None
    measured: Mapping[str, Column] = field(default_factory=dict)
    observers: Mapping[str, Column] = field(default_factory=dict)
    label: Label | None = None


def load_mapping(file: Path) -> JetMapping:
    """Read a mapping.

    Raises:
        InputError: naming the file and the key, if it cannot be read, is no plain YAML, or says what is not understood.
    """
    return _Reader(Path(file), "mapping").mapping(plain_yaml(Path(file), "mapping"))


class _Reader(Checks):
    """What a mapping says, key by key."""

    def mapping(self, value: Any) -> JetMapping:
        """The whole."""
        known = ("format", "tree", "group", "four_vectors", "measured", "observers", "label")
        top = self.keys(value, "", known, required=("four_vectors",))
        format_ = self.choice(top["format"], "format", tuple(FORMATS)) if "format" in top else None
        for key, kind in (("tree", "root"), ("group", "hdf5")):
            if key in top and format_ not in (None, kind):
                self.fail(f"a {format_} file has no {key}", key, "leave it out")
        return JetMapping(
            self.file,
            self._four_vectors(top["four_vectors"]),
            format_,
            self.text(top["tree"], "tree") if "tree" in top else None,
            self.text(top["group"], "group") if "group" in top else None,
            self._columns(top.get("measured", {}), "measured"),
            self._columns(top.get("observers", {}), "observers"),
            self._label(top["label"]) if "label" in top else None,
        )

    def _four_vectors(self, value: Any) -> FourVectors:
        key = "four_vectors"
        more = ("unit", "mask", "relative_to")
        given = self.keys(value, key, (*_COMPONENTS, "p4", "order", "dataset", "columns", *more))
        ways = [way for way in ("p4", "dataset") if way in given]
        single = [name for name in given if name in _COMPONENTS]
        if len(ways) + bool(single) != 1:
            said = ", ".join([*ways, *single]) or "nothing"
            self.fail(f"gives {said}", key, f"give either p4 and order, or dataset and columns, or {_systems()}")
        for name, way in (("order", "p4"), ("columns", "dataset")):
            if (name in given) != (way in given):
                self.fail(f"'{way}' and '{name}' belong together", f"{key}.{name}", "give both or neither")
        if single:
            components = {name: self._column(given[name], f"{key}.{name}") for name in single}
        elif "p4" in given:
            components = self._ordered(self.text(given["p4"], f"{key}.p4"), given["order"], f"{key}.order")
        else:
            branch = self.text(given["dataset"], f"{key}.dataset")
            places = self.keys(given["columns"], f"{key}.columns", _COMPONENTS)
            components = {
                name: Column(branch, self.place(place, f"{key}.columns.{name}"), key=f"{key}.columns.{name}")
                for name, place in places.items()
            }
        components = self._system(components, key)
        relative = self.keys(given.get("relative_to", {}), f"{key}.relative_to", _RELATIVE)
        for name in relative:
            if name not in components:
                self.fail(f"there is no component '{name}'", f"{key}.relative_to", f"give {', '.join(components)}")
        if "pt" in relative and {"mass", "E"} & set(components):
            self.fail(
                "a relative pt stands beside a mass or an energy, of which it is not said to what they are relative",
                f"{key}.relative_to.pt",
                "give pt, eta, phi alone",
            )
        return FourVectors(
            components,
            {name: self._column(column, f"{key}.relative_to.{name}") for name, column in relative.items()},
            self._column(given["mask"], f"{key}.mask", scaled=False) if "mask" in given else None,
            _UNITS[self.choice(given.get("unit", "GeV"), f"{key}.unit", tuple(_UNITS))],
        )

    def _ordered(self, branch: str, order: Any, key: str) -> dict[str, Column]:
        """The components of an array, by their order in it."""
        names = self.texts(order, key)
        for name in names:
            if name not in _COMPONENTS:
                self.unknown(name, key, _COMPONENTS)
        return {name: Column(branch, place, key=key) for place, name in enumerate(names)}

    def _system(self, components: dict[str, Column], key: str) -> dict[str, Column]:
        """The components under the names and in the order of one of the `SYSTEMS`."""
        if {"E", "energy"} <= set(components):
            self.fail("E and energy are the same", key, "give one of them")
        named = {"E" if name == "energy" else name: column for name, column in components.items()}
        system = next((system for system in SYSTEMS if set(system) == set(named)), None)
        if system is None:
            self.fail(f"{', '.join(components) or 'nothing'} define no four-vector", key, f"give {_systems()}")
        return {name: named[name] for name in system}

    def _label(self, value: Any) -> Label:
        given = self.keys(value, "label", ("branch", "column", "one_hot", "file_pattern", "classes", "merge"))
        ways = [way for way in ("branch", "one_hot", "file_pattern") if way in given]
        if len(ways) != 1:
            said = " and ".join(ways) or "no label"
            self.fail(f"gives {said}", "label", "give exactly one of branch, one_hot, file_pattern")
        for name, allowed in (("column", ("branch",)), ("merge", ("branch", "one_hot"))):
            if name in given and ways[0] not in allowed:
                self.fail(f"goes with {' or '.join(allowed)} only", f"label.{name}", "leave it out")
        classes = self.texts(given["classes"], "label.classes") if "classes" in given else None
        if ways[0] == "file_pattern":
            return self._file_pattern(given["file_pattern"], classes)
        if ways[0] == "branch":
            parts = {name: given[name] for name in ("branch", "column") if name in given}
            columns: tuple[Column, ...] = (self._column(parts, "label", scaled=False),)
        else:
            columns = tuple(
                self._column(item, f"label.one_hot[{i}]", scaled=False)
                for i, item in enumerate(self.items(given["one_hot"], "label.one_hot"))
            )
            if len(set(map(_place_of, columns))) != len(columns):
                self.fail("names a branch twice", "label.one_hot", "give one branch for each class")
        if "merge" in given:
            classes, merge = self._merge(given["merge"], classes)
            return Label(classes, columns, ways[0] == "one_hot", merge)
        if classes is None and ways[0] == "branch":
            self.fail("the classes have no names", "label.classes", "name the classes 0, 1, … in this order")
        if classes is None:
            classes = self.texts([str(_place_of(column)[-1]) for column in columns], "label.classes")
        if ways[0] == "one_hot" and len(classes) != len(columns):
            self.fail(
                f"names {len(classes)} classes for {len(columns)} branches", "label.classes", "give one for each branch"
            )
        return Label(classes, columns, ways[0] == "one_hot")

    def _merge(self, value: Any, classes: tuple[str, ...] | None) -> tuple[tuple[str, ...], dict[int, int]]:
        key = "label.merge"
        if not isinstance(value, dict) or not value:
            self.fail(f"is {kind_of(value)}", key, "give classes for integers, such as {0: qcd, 1: qcd, 5: top}")
        names = {}
        for number, name in value.items():
            if not isinstance(number, int) or isinstance(number, bool) or abs(number) >= 1 << 63:
                self.fail(f"'{short(number)}' is no integer", key, "give the integers that stand in the files")
            names[number] = self.text(name, f"{key}.{number}")
        merged = tuple(dict.fromkeys(names.values()))
        if classes is None:
            classes = merged
        for name in merged:
            if name not in classes:
                self.unknown(name, key, classes)
        for name in classes:
            if name not in merged:
                self.fail(f"no integer is given for the class '{name}'", key, "give one, or leave out the class")
        return classes, {number: classes.index(name) for number, name in names.items()}

    def _file_pattern(self, value: Any, classes: tuple[str, ...] | None) -> Label:
        key = "label.file_pattern"
        if not isinstance(value, dict) or not value:
            self.fail(f"is {kind_of(value)}", key, "give patterns for classes, such as {qcd: 'QCD_*.root'}")
        patterns = {
            self.text(name, key): self.texts(given if isinstance(given, list) else [given], f"{key}.{name}")
            for name, given in value.items()
        }
        for name in patterns if classes is not None else ():
            if classes is not None and name not in classes:
                self.unknown(name, key, classes)
        for name in classes or ():
            if name not in patterns:
                self.fail(f"no pattern is given for the class '{name}'", key, "give one, or leave out the class")
        order = classes or tuple(patterns)
        return Label(order, patterns=tuple(patterns[name] for name in order))

    def _columns(self, value: Any, key: str) -> dict[str, Column]:
        """Columns under names of the user's choice."""
        if not isinstance(value, dict):
            self.fail(f"is {kind_of(value)}", key, "give names and the branches they stand in")
        columns = {}
        for name, column in value.items():
            if not isinstance(name, str) or not name.isidentifier():
                self.fail(f"'{short(name)}' is no name", key, "give letters, digits and _, no digit first")
            columns[name] = self._column(column, f"{key}.{name}")
        return columns

    def _column(self, value: Any, key: str, *, scaled: bool = True) -> Column:
        """A branch, or where in which branch and times what."""
        if isinstance(value, str):
            return Column(self.text(value, key), key=key)
        given = self.keys(value, key, ("branch", "dataset", "column", *(("scale",) if scaled else ())))
        branches = [name for name in ("branch", "dataset") if name in given]
        if len(branches) != 1:
            self.fail(f"gives {' and '.join(branches) or 'no branch'}", key, "give the name of a branch or dataset")
        return Column(
            self.text(given[branches[0]], f"{key}.{branches[0]}"),
            self.place(given["column"], f"{key}.column") if "column" in given else None,
            self.number(given["scale"], f"{key}.scale") if "scale" in given else 1.0,
            key,
        )


def _systems() -> str:
    return " or ".join(f"({', '.join(system)})" for system in SYSTEMS)


def _place_of(column: Column) -> tuple[int | str, ...]:
    return (column.branch,) if column.column is None else (column.branch, column.column)
