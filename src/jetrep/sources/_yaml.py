"""Plain YAML, and checks of what it holds: each complaint names the file and the key."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from jetrep.errors import InputError

__all__ = ["Checks", "kind_of", "plain_yaml", "short"]

_MOST_BYTES = 1 << 20


class _PlainLoader(yaml.SafeLoader):
    """Plain values only, and each key once: YAML itself lets the last of two definitions win in silence."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """A mapping of plain keys that differ."""
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            problem = None
            # Keys that merge other mappings make documents of exponential size out of a few lines.
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                problem = "a key is no plain text"
            elif (key.tag, key.value) in seen:
                problem = f"the key '{key.value}' is given twice"
            if problem:
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def plain_yaml(file: Path, what: str) -> Any:
    """What a YAML file holds: mappings, lists, text, numbers.

    Args:
        file: the file.
        what: what it is called in messages.

    Raises:
        InputError: if it cannot be read, is no YAML, asks for objects, or gives a key twice.
    """
    try:
        with file.open("rb") as stream:
            content = stream.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise InputError(
            f"cannot be read ({reason})", file=file, field=what, remedy="give the name of a YAML file"
        ) from problem
    if len(content) > _MOST_BYTES:
        raise InputError(f"is too long for a {what}", file=file, field=what, remedy="give a short YAML file")
    try:
        # The loader is a SafeLoader, which makes no objects and runs nothing.
        return yaml.load(content.decode("utf-8"), _PlainLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError, TypeError, AttributeError) as problem:
        mark = getattr(problem, "problem_mark", None)
        reason = " ".join(str(getattr(problem, "problem", None) or problem).split())
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise InputError(
            f"is no plain YAML{where}: {short(reason, 200)}",
            file=file,
            field=what,
            remedy="give keys, text and numbers only, each key once",
        ) from problem


class Checks:
    """Values of a YAML file, checked one by one.

    Every method takes a value and its key, and raises an `InputError` that names both the file and the key.

    Args:
        file: the file.
        what: what it is called in messages.
    """

    def __init__(self, file: Path, what: str) -> None:
        self.file, self.what = file, what

    def place(self, value: Any, key: str) -> int | str:
        """A position, from the end if negative, or a name."""
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 31:
            return value
        return self.text(value, key)

    def number(self, value: Any, key: str) -> float:
        """A finite number, not zero."""
        try:
            # YAML takes 1e-3, without a point, for text.
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number) or number == 0:
            self.fail(f"is {kind_of(value)}", key, "give a number other than zero, such as 10 or 0.001")
        return number

    def keys(self, value: Any, key: str, known: Sequence[str], *, required: Sequence[str] = ()) -> dict[str, Any]:
        """A mapping with these keys only."""
        if not isinstance(value, dict):
            self.fail(f"is {kind_of(value)}", key or self.what, f"give some of the keys {', '.join(known)}")
        for name in value:
            if name not in known:
                self.unknown(name, f"{key}.{short(name)}" if key else short(name), known, "key ")
        for name in required:
            if name not in value:
                self.fail("is missing", name, "give it")
        return value

    def choice(self, value: Any, key: str, known: Sequence[str]) -> str:
        """One of these words."""
        if value not in known:
            self.unknown(value, key, known)
        return str(value)

    def text(self, value: Any, key: str) -> str:
        """A name: printable and not blank."""
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            self.fail(f"is {kind_of(value)}", key, "give a name, in quotes if it looks like anything else")
        return value

    def items(self, value: Any, key: str) -> list[Any]:
        """A list that is not empty."""
        if not isinstance(value, list) or not value:
            self.fail(f"is {kind_of(value)}", key, "give a list, such as [a, b]")
        return value

    def texts(self, value: Any, key: str) -> tuple[str, ...]:
        """Names that differ."""
        names = tuple(self.text(item, f"{key}[{i}]") for i, item in enumerate(self.items(value, key)))
        seen = set()
        for name in names:
            if name in seen:
                self.fail(f"names '{name}' twice", key, "give each once")
            seen.add(name)
        return names

    def unknown(self, value: Any, key: str, known: Sequence[str], what: str = "") -> NoReturn:
        """Complain of a word that is none of those known, and name the nearest."""
        near = difflib.get_close_matches(str(value)[:100], known, 1, 0.0) if isinstance(value, str) else []
        hint = f"the nearest is '{near[0]}', and all are" if near else "they are"
        self.fail(f"there is no {what}'{short(value)}'", key, f"{hint} {', '.join(known)}")

    def fail(self, problem: str, key: str, remedy: str) -> NoReturn:
        """Complain."""
        raise InputError(problem, file=self.file, field=short(key, 200), remedy=remedy)


def short(value: Any, length: int = 60) -> str:
    """A value of any kind, in one short line."""
    if isinstance(value, int) and abs(value) >= 10**length:  # Python refuses to print the very longest
        return "a huge number"
    text = str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else kind_of(value)
    text = "".join(letter if letter.isprintable() else "?" for letter in text[: length + 1])
    return text if len(text) <= length else text[:length] + "…"


def kind_of(value: Any) -> str:
    """What a value is, for a message."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, str | int | float):
        return f"'{short(value)}'"
    return f"a {type(value).__name__}"
