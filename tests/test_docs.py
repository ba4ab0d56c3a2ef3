"""Documentation that is wrong fails: commands that do not parse, links and names that lead nowhere."""

import argparse
import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from jetrep import cli

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").glob("*.md")),
]
RECIPES = sorted((ROOT / "src" / "jetrep" / "recipes").glob("*.yaml"))

_FENCE = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"")
_CODE_PATH = re.compile(r"(?:src|tests|benchmarks|examples|docs|\.ci)/[\w./-]+\.\w+(?:::\w+)?")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def inline_code(page: Path) -> Iterator[str]:
    for code in _INLINE.findall(prose(page)):
        yield " ".join(code.split())


def command_lines(page: Path) -> Iterator[str]:
    """Calls of jetrep in the code blocks of a page, or in the comments of a recipe."""
    text = page.read_text(encoding="utf-8")
    blocks = ["\n".join(re.findall(r"^#   (.*)$", text, re.MULTILINE))] if page in RECIPES else []
    blocks += [block for language, block in _FENCE.findall(text) if language in ("console", "bash", "sh", "shell", "")]
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            # A prompt, and settings of the environment, may stand in front.
            call = re.match(r"\s*(?:[$>] )?(?:\w+=\S* )*((?:\S*/)?jetrep )(.*)", line)
            if call:
                yield call[2]


COMMANDS = [
    pytest.param(line, id=f"{name_of(page)}: {line}") for page in (*PAGES, *RECIPES) for line in command_lines(page)
]


@cache
def parser_of(verb: str, arguments: tuple[str, ...] = ()) -> Any:
    return cli._parser(verb, vars(importlib.import_module(cli.VERBS[verb][0]))[verb], arguments)


def refusal(line: str, capsys: pytest.CaptureFixture) -> str | None:
    """Why the command line ``jetrep LINE`` does not parse, or None if it does."""
    words = shlex.split(line, comments=True)
    if words[0] in ("--help", "--version"):
        return None
    if words[0] not in cli.VERBS:
        return f"there is no verb {words[0]}"
    try:
        arguments = cli._resolve(words[1:])
        parser_of(words[0], tuple(arguments)).parse_args(arguments)
    except argparse.ArgumentError as problem:
        return str(problem)
    except SystemExit as stop:
        return capsys.readouterr().err if stop.code else None
    return None


def test_there_are_commands_for_every_verb():
    shown = {parameter.values[0].split()[0] for parameter in COMMANDS}
    assert set(cli.VERBS) <= shown


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line, capsys):
    assert refusal(line, capsys) is None


@pytest.mark.parametrize(
    "line",
    [
        "pretrian stores/qcd --out runs/x",
        "pretrain stores/qcd --out runs/x --epoch-s 3",
        "pretrain stores/qcd --out runs/x --encoder.widht 3",
        "pretrain stores/qcd",
        "pretrain stores/qcd --out runs/x --config rino-pico",
        "prepare arrays mine.npz --out x --algorithm anti-kt",
    ],
)
def test_commands_with_mistakes_do_not(line, capsys):
    assert refusal(line, capsys)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_verbs_and_options_named_in_the_text_exist(page):
    for code in inline_code(page):
        words = code.split()
        if words[0] != "jetrep" or len(words) == 1 or words[1] in ("VERB", "--help", "--version"):
            continue
        assert words[1] in cli.VERBS, code
        options = {word.partition("=")[0] for word in cli._resolve(words[2:]) if word.startswith("--")}
        assert options <= set(parser_of(words[1])._option_string_actions), code
    known = {option for verb in cli.VERBS for option in parser_of(verb)._option_string_actions}
    for code in inline_code(page):
        option = code.split()[0]
        if re.fullmatch(r"--[a-z][\w.-]*", option) and page.parent.name != "api" and page.name != "CONTRIBUTING.md":
            assert cli._resolve([option])[0] in known | {"--json"}, code


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for groups in _LINK.findall(prose(page)):
        target = groups[0] or groups[1]
        if re.match(r"https?:|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}
            assert anchor in slugs, target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_code_that_is_named_exists(page):
    """Files, tests within them, and dotted names of the package."""
    text = page.read_text(encoding="utf-8")
    for found in _CODE_PATH.findall(text):
        file, _, test = found.partition("::")
        assert (ROOT / file).exists(), found
        if test:
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            assert test in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, found
    for dotted in re.findall(r"\bjetrep(?:\.[a-zA-Z_]\w*)+", text):
        assert resolves(dotted), dotted


def resolves(dotted: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    names = dotted.split(".")
    for n in range(len(names), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(names[:n]))
        except ModuleNotFoundError:
            continue
        for name in names[n:]:
            if not hasattr(found, name):
                return False
            found = getattr(found, name)
        return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_in_the_text_compiles_and_imports_what_exists(page):
    for language, block in _FENCE.findall(page.read_text(encoding="utf-8")):
        if language not in ("python", "py"):
            continue
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jetrep":
                for alias in node.names:
                    assert resolves(f"{node.module}.{alias.name}"), f"from {node.module} import {alias.name}"
