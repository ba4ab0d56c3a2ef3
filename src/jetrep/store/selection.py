"""Which jets of a chunk are kept, and a count for each one that is not."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.physics import fourvector
from jetrep.physics.fourvector import E
from jetrep.sources.chunks import Chunk

__all__ = ["QUANTITIES", "Selection"]

_COMPONENTS = ("E", "px", "py", "pz")

QUANTITIES: Mapping[str, Callable[[Jets], NDArray[Any]]] = MappingProxyType(
    {
        "pt": lambda jets: fourvector.pt(jets.jet_p4),
        "eta": lambda jets: fourvector.eta(jets.jet_p4),
        "abs(eta)": lambda jets: np.abs(fourvector.eta(jets.jet_p4)),
        "phi": lambda jets: fourvector.phi(jets.jet_p4),
        "mass": lambda jets: fourvector.mass(jets.jet_p4),
        "n_constituents": lambda jets: jets.counts,
    }
)
"""What a condition may ask for, (n_jets,) each, beside ``observer:NAME``: from the sum of all constituents, in GeV."""

_OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = MappingProxyType(
    {
        "<": operator.lt,
        "<=": operator.le,
        ">": operator.gt,
        ">=": operator.ge,
        "==": operator.eq,
        "!=": operator.ne,
    }
)
_OBSERVER = "observer:"
_CONDITION = re.compile(
    rf"\s*({'|'.join(map(re.escape, QUANTITIES))}|{_OBSERVER}[^\s<>=!]+)"
    r"\s*(<=|>=|==|!=|<|>)"
    r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*",
    re.ASCII,
)


class _Condition(NamedTuple):
    """``quantity operator bound``, as in ``pt > 500``; ``text`` is how it is told to the user."""

    quantity: str
    operator: str
    bound: int | float
    text: str


@dataclass(frozen=True)
class Selection:
    """What to keep. Each jet that is not kept counts under the first reason that applies, in the order below.

    Attributes:
        classes: "other class": keep only jets of these classes; None keeps all.
        min_particles: "empty" without constituents, "too few constituents" with fewer than this.
        drop_invalid: "invalid": drop jets with a momentum that is not finite or an energy below zero, instead of
            stopping at the first.
        max_particles: keep only this many constituents of a jet, those of the highest pT; None keeps all.
        where: "not pt > 500": conditions that a jet must fulfil, in this order: one of the `QUANTITIES`, or
            ``observer:NAME``, then ``<``, ``<=``, ``>``, ``>=``, ``==`` or ``!=``, then a number. Momenta are those of
            the sum of all constituents, before ``max_particles`` takes any away. A NaN fulfils no condition.

    Raises:
        InputError: if a condition cannot be understood.
    """

    classes: tuple[str, ...] | None = None
    min_particles: int = 1
    drop_invalid: bool = False
    max_particles: int | None = None
    where: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _ = self._conditions

    @cached_property
    def _conditions(self) -> tuple[_Condition, ...]:
        return tuple(_condition(text) for text in self.where)

    def check(self, known: Sequence[str]) -> None:
        """Whether this selection can be applied to jets of the classes ``known``.

        Raises:
            InputError: if a limit makes no sense, or a class is unknown.
        """
        if self.min_particles < 1:
            raise InputError(
                f"is {self.min_particles}", field="min_particles", remedy="give 1 or more: empty jets are never kept"
            )
        if self.max_particles is not None and self.max_particles < self.min_particles:
            raise InputError(
                f"is {self.max_particles}, below min_particles", field="max_particles", remedy="give a larger number"
            )
        for name in self.classes or ():
            if name not in known:
                raise InputError(
                    f"no class is called '{name}', only {', '.join(known) or 'none, the jets are unlabelled'}",
                    field="select",
                    remedy="select classes that the input has",
                )

    def apply(self, chunk: Chunk, limit: int | None = None) -> tuple[Jets, int, dict[str, int]]:
        """The jets to keep.

        Args:
            chunk: jets as they were read.
            limit: stop after keeping this many.

        Returns:
            the kept jets, in order; how many jets were looked at; how many of those were dropped, by reason.

        Raises:
            InputError: naming file, jet and component of a momentum that is not finite or an energy below zero,
                unless such jets are to be dropped; or if the jets do not have an observer that a condition asks for.
        """
        reasons = self._reasons(chunk)
        keep = ~np.logical_or.reduce(list(reasons.values()))
        n = len(keep)
        if limit is not None and keep.sum() >= limit:
            n = int(np.flatnonzero(keep)[limit - 1]) + 1
            keep[n:] = False
        if not self.drop_invalid:
            self._forbid_invalid(chunk, reasons["invalid"][:n])
        dropped, counted = {}, np.zeros(n, np.bool_)
        for reason, mask in reasons.items():
            here = mask[:n] & ~counted
            counted |= here
            if here.any():
                dropped[reason] = int(here.sum())
        jets = chunk.jets if keep.all() else chunk.jets[keep]
        if self.max_particles is not None:
            jets = jets.leading(self.max_particles)
        return jets, n, dropped

    def _reasons(self, chunk: Chunk) -> dict[str, NDArray[np.bool_]]:
        """For each reason to drop a jet, a mask (n_jets,)."""
        jets = chunk.jets
        reasons = dict(chunk.flags)
        if self.classes is not None and jets.labels is not None:
            wanted = [jets.classes.index(name) for name in self.classes]
            reasons["other class"] = ~np.isin(jets.labels, wanted) | reasons.get("other class", False)
        bad = np.flatnonzero(_invalid(jets))
        invalid = np.zeros(len(jets), np.bool_)
        invalid[np.searchsorted(jets.offsets, bad, side="right") - 1] = True
        reasons["invalid"] = invalid
        reasons["empty"] = jets.counts == 0
        reasons["too few constituents"] = jets.counts < self.min_particles
        values: dict[str, NDArray[Any]] = {}
        for condition in self._conditions:
            if condition.quantity not in values:
                values[condition.quantity] = _values(condition.quantity, chunk)
            reasons[f"not {condition.text}"] = ~_fulfilled(condition, values[condition.quantity])
        return reasons

    def _forbid_invalid(self, chunk: Chunk, invalid: NDArray[np.bool_]) -> None:
        if not invalid.any():
            return
        jet = int(np.argmax(invalid))
        p4 = chunk.jets[jet]
        finite = np.isfinite(p4)
        if not finite.all():
            particle, component = np.argwhere(~finite)[0]
            what = f"constituent {particle} has {_COMPONENTS[component]} = {p4[particle, component]}"
            remedy = "repair the file, or drop such jets with --drop-invalid"
        else:
            particle, component = int(np.argmax(p4[:, E] < 0)), E
            what = f"constituent {particle} has the energy {p4[particle, E]} GeV"
            remedy = "give the components in the order E, px, py, pz, or drop such jets with --drop-invalid"
        raise InputError(what, file=chunk.file, jet=chunk.start + jet, field=_COMPONENTS[component], remedy=remedy)


def _invalid(jets: Jets) -> NDArray[np.bool_]:
    """(n_particles,) mask of impossible constituents. E < |p| is left alone: rounding makes massless ones so."""
    result: NDArray[np.bool_] = ~np.isfinite(jets.p4).all(1) | (jets.p4[:, E] < 0)
    return result


def _condition(text: str) -> _Condition:
    """A condition in the user's words."""
    match = _CONDITION.fullmatch(text)
    if match is None or not math.isfinite(float(match[3])):
        raise InputError(
            f"'{text}' is no condition",
            field="where",
            remedy=f"write {', '.join(QUANTITIES)} or {_OBSERVER}NAME, then {' '.join(_OPERATORS)}, then a number, "
            "such as 'pt > 500'; classes are chosen with --select",
        )
    return _Condition(match[1], match[2], _number(match[3]), f"{match[1]} {match[2]} {match[3]}")


def _number(text: str) -> int | float:
    """Whole numbers stay whole: event numbers are compared exactly, beyond 2^53 too."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def _values(quantity: str, chunk: Chunk) -> NDArray[Any]:
    """(n_jets,) numbers."""
    jets = chunk.jets
    if not quantity.startswith(_OBSERVER):
        # Momenta that are not finite make NaN, silently: such jets have been counted as invalid.
        with np.errstate(invalid="ignore", over="ignore"):
            return QUANTITIES[quantity](jets)
    name = quantity.removeprefix(_OBSERVER)
    if name not in jets.observers:
        raise InputError(
            f"has no observer '{name}', only {', '.join(sorted(jets.observers)) or 'none'}",
            file=chunk.file,
            field="where",
            remedy="ask for observers that the input has",
        )
    values = np.asarray(jets.observers[name])
    if values.dtype.kind not in "biuf":
        raise InputError(
            f"observer '{name}' is {values.dtype}, not numbers",
            file=chunk.file,
            field="where",
            remedy="ask for observers that are numbers",
        )
    return values


def _fulfilled(condition: _Condition, values: NDArray[Any]) -> NDArray[np.bool_]:
    """(n_jets,) mask. In the precision of the values: what is stored as a float32 of 0.1 equals 0.1."""
    if values.dtype == np.bool_:
        values = values.astype(np.int8)
    with np.errstate(over="ignore"):
        fulfilled = np.asarray(_OPERATORS[condition.operator](values, condition.bound), np.bool_)
    # Unequal is the one relation that a NaN would fulfil.
    result: NDArray[np.bool_] = fulfilled & ~np.isnan(values)
    return result
