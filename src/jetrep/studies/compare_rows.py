"""The rows of a comparison, from what is written on the command line or in YAML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

from jsonargparse import ArgumentParser

from jetrep.encoders.build import KINDS, EncoderConfig
from jetrep.errors import InputError
from jetrep.objectives.build import OBJECTIVES, ObjectiveConfig, sized
from jetrep.studies.compare_study import Baseline, Row
from jetrep.training.pretrain import pretrain

__all__ = ["rows_of"]

_OWN_NAME: Mapping[str, str] = {"observables": "mass, multiplicity"}
_BASELINES: tuple[str, ...] = get_args(Baseline)
# What a baseline may have of its own; an objective may have all but a head, for which it may have another use.
_OWN: Mapping[str, tuple[str, ...]] = {
    "supervised": ("encoder", "features", "optimizer", "head"),
    "random": ("encoder", "features"),
    "observables": (),
}
_OWN_OF_OBJECTIVES = ("encoder", "features", "optimizer")


def rows_of(given: Sequence[Mapping[str, Any] | str], usual: Row, max_particles: int | None) -> list[Row]:
    """Rows in the order in which they are given.

    Args:
        given: kinds of objectives and baselines, or mappings with the kind, a name, and settings of their own; "all"
            stands for every kind of objective that has no row of its own under the name of its kind.
        usual: what rows have that have nothing of their own.
        max_particles: leading particles of a jet that are kept, None for all.

    Raises:
        InputError: if a kind is unknown or has unknown settings, two rows are called the same, or there are none.
    """
    named = {one if isinstance(one, str) else one.get("name", one.get("kind")) for one in given}
    kinds = [config.kind for config in OBJECTIVES if config.kind not in named]
    rows = [_row(one, usual, max_particles) for entry in given for one in (kinds if entry == "all" else [entry])]
    if not rows:
        raise InputError("there is nothing to compare", field="objectives", remedy="name at least one")
    names = [row.folder_name for row in rows]
    for row in rows:
        if names.count(row.folder_name) > 1:
            raise InputError(
                f"two rows are called '{row.name}'",
                field="objectives",
                remedy="give one of them another name: {name: …}",
            )
    return rows


def _row(given: Mapping[str, Any] | str, usual: Row, max_particles: int | None) -> Row:
    settings: dict[str, Any] = {"kind": given} if isinstance(given, str) else dict(given)
    objectives: dict[str, Any] = {config.kind: config for config in OBJECTIVES}
    kind = settings.get("kind")
    if kind not in objectives and kind not in _BASELINES:
        known = ", ".join((*objectives, *_BASELINES, "all"))
        raise InputError(f"there is no objective '{kind}'", field="objectives", remedy=f"known: {known}")
    del settings["kind"]
    name = str(settings.pop("name", _OWN_NAME.get(kind, kind)))
    parser = ArgumentParser(exit_on_error=False)
    own: dict[str, Any] = settings
    defaults = {key: getattr(usual, key) for key in _OWN.get(kind, _OWN_OF_OBJECTIVES)}
    if kind in objectives:
        # What `pretrain` does by default is what the bare name of its kind means.
        pretrained: ObjectiveConfig = (pretrain.__kwdefaults__ or {})["objective"]
        defaults["objective"] = pretrained if pretrained.kind == kind else objectives[kind]()
        own = {key: settings.pop(key) for key in _OWN_OF_OBJECTIVES if key in settings} | {"objective": settings}
    if isinstance(own.get("encoder"), Mapping):
        defaults["encoder"] = _encoder(own["encoder"].get("kind", usual.encoder.kind), usual, name)
    for key, default in defaults.items():
        parser.add_argument(f"--{key}", type=type(default), default=default)
    try:
        parsed = parser.instantiate(parser.parse_object(own))
    except InputError:
        raise
    except Exception as problem:  # jsonargparse raises many kinds
        verb = f"pretrain --objective.kind {kind}" if kind in objectives else "finetune"
        raise InputError(
            f"the settings of '{name}' cannot be used: {' '.join(str(problem).split())}",
            field="objectives",
            remedy=f"see jetrep {verb} --help",
        ) from problem
    found = {key: getattr(parsed, key) for key in defaults}
    if "objective" in found:
        found["objective"] = sized(found["objective"], max_particles)
    return replace(usual, **{"name": name, "objective": kind, **found})


def _encoder(kind: Any, usual: Row, name: str) -> EncoderConfig:
    """What an encoder of this kind has by default: what the common one has, if that is of the same kind."""
    if kind not in KINDS:
        raise InputError(
            f"'{name}' has an encoder of kind '{kind}'", field="objectives", remedy=f"known: {', '.join(KINDS)}"
        )
    return usual.encoder if kind == usual.encoder.kind else KINDS[kind]()
