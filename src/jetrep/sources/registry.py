"""From the name of a kind of files to its reader."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from jetrep.errors import InputError
from jetrep.sources.chunks import Source

__all__ = ["SOURCES", "open_source"]

SOURCES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "toptagging": ("jetrep.sources.toptagging", "TopTagging"),
        "jetclass": ("jetrep.sources.jetclass", "JetClass"),
        "jetclass2": ("jetrep.sources.jetclass2", "JetClass2"),
        "jetnet": ("jetrep.sources.jetnet", "JetNet"),
        "quarkgluon": ("jetrep.sources.quarkgluon", "QuarkGluon"),
        "hls4ml": ("jetrep.sources.hls4ml", "Hls4ml"),
        "pfnano": ("jetrep.sources.pfnano", "PFNano"),
        "aspen": ("jetrep.sources.aspen", "AspenOpenJets"),
        "mod": ("jetrep.sources.mod", "CmsOpenData"),
        "omnifold": ("jetrep.sources.omnifold", "OmniFold"),
        "weaver": ("jetrep.sources.weaver", "WeaverArrays"),
        "arrays": ("jetrep.sources.arrays", "Arrays"),
        "mapped": ("jetrep.sources.mapped", "Mapped"),
    }
)
"""Module and class of each kind of files; imported when it is used."""


def open_source(name: str, files: Sequence[Path], *, labels: bool = True, **options: Any) -> Source:
    """The reader of a kind of files.

    Args:
        name: a key of `SOURCES`.
        files: the files, in order.
        labels: read the labels.
        options: settings of this kind of files; those that are None are left at their defaults.

    Raises:
        InputError: if there is no such kind, it does not know an option, or the files cannot be used.
    """
    if name not in SOURCES:
        raise InputError(f"no source is called '{name}'", field="source", remedy=f"give one of {', '.join(SOURCES)}")
    module, kind = SOURCES[name]
    reader = getattr(importlib.import_module(module), kind)
    known = inspect.signature(reader).parameters
    given = {option: value for option, value in options.items() if value is not None}
    for option in given:
        if option not in known:
            raise InputError(f"is no setting of '{name}' files", field=option, remedy="leave it out")
    return cast(Source, reader(files, labels=labels, **given))
