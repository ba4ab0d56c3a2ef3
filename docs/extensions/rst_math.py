"""Formulas and tables of docstrings, written as reStructuredText, turned into Markdown for the site."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_RULE = re.compile(r"=+( +=+)+")


class RstMath(Extension):
    """Rewrites the docstring of every object before it is rendered."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called once for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
    """Roles, display formulas, simple tables and double backquotes of reStructuredText → Markdown."""
    text = re.sub(r":math:`([^`]+)`", lambda m: f"${m[1]}$", text)
    text = re.sub(
        r"^( *)\.\. math:: *((?:.+\n?)+(?:\n+\1 {2,}.+)*)",
        lambda m: f"{m[1]}$$\n{m[1]}{' '.join(m[2].split())}\n{m[1]}$$\n",
        text,
        flags=re.MULTILINE,
    )
    return _tables(text).replace("``", "`")


def _tables(text: str) -> str:
    lines: list[str] = []
    starts: list[int] | None = None
    for line in text.splitlines():
        if _RULE.fullmatch(line.strip()):
            if starts is None:
                starts = [m.start() for m in re.finditer("=+", line)]
                lines += ["|" + " |" * len(starts), "|" + "---|" * len(starts)]
            else:
                starts = None
        elif starts is not None:
            cells = [line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
            lines.append("| " + " | ".join(cells) + " |")
        else:
            lines.append(line)
    return "\n".join(lines)
