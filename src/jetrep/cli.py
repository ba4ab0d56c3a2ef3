"""The command line: a table of verbs. Every verb is a typed function; its signature and docstring are its interface."""

from __future__ import annotations

import errno
import importlib
import inspect
import os
import signal
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

import yaml
from docstring_parser import parse

from jetrep import __version__
from jetrep.errors import InputError, JetrepError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["VERBS", "main"]

# verb: (module, what it does); the function bears the name of the verb
VERBS = {
    "demo": ("jetrep.studies.demo", "The whole story in minutes: simulate, pretrain, fine-tune, compare"),
    "simulate": ("jetrep.store.simulate", "Pythia 8 jets with a parametric detector → store"),
    "prepare": ("jetrep.store.prepare", "Files of public data sets or your own arrays → store"),
    "datasets": ("jetrep.store.catalog_verbs", "Public data sets: size, classes, licence, citation, what is here"),
    "download": ("jetrep.store.catalog_verbs", "Files of a public data set, verified"),
    "inspect": ("jetrep.studies.inspect", "What is in a store: counts, classes, histograms"),
    "pretrain": ("jetrep.training.pretrain", "Learn a representation without labels"),
    "probe": ("jetrep.studies.probe", "What a frozen representation knows: k-NN, logistic, boosted trees"),
    "finetune": ("jetrep.training.finetune", "Train a tagger, from a pretrained encoder or from scratch"),
    "evaluate": (
        "jetrep.studies.evaluate",
        "A tagger or an autoencoder on stores: metrics, errors, figures",
    ),
    "audit": ("jetrep.studies.audit", "Symmetries of a run, layer by layer; fails if a claimed one does not hold"),
    "embed": ("jetrep.studies.embed", "Embeddings and scores → Parquet"),
    "import": ("jetrep.studies.import_weights", "Published weights of others → a run"),
    "transfer": ("jetrep.studies.transfer", "The study of the demo on stores of your choice"),
    "compare": ("jetrep.studies.compare", "Every objective on one encoder, under one protocol"),
    "compress": ("jetrep.studies.compress", "Autoencoders beside each other: compression and anomalies"),
}

# Options whose natural name is a Python keyword.
_ALIASES = {"--from": "--from_run"}

_TERMINATED = 128 + signal.SIGTERM
_REMEDIES = {
    errno.ENOSPC: "free space or choose another folder",
    errno.EDQUOT: "free space or choose another folder",
    errno.EFBIG: "choose another folder",
    errno.ENOENT: "check the name",
    errno.EACCES: "check the permissions",
    errno.EPERM: "check the permissions",
    errno.EROFS: "choose a folder that can be written",
}

_HELP = """usage: jetrep VERB [options]

Representations of particle jets, learned without labels, that hold on real data.

{verbs}

jetrep VERB --help           every option of a verb, with its default
jetrep VERB --print_config   the same as YAML, ready for --config
jetrep VERB --config FILE    read options from YAML, or from a recipe shipped with jetrep:
{recipes}
jetrep --version
"""


def _recipes() -> list[str]:
    return sorted(Path(str(entry)).stem for entry in files("jetrep.recipes").iterdir() if entry.name.endswith(".yaml"))


def _help() -> str:
    verbs = "\n".join(f"  {verb:<10} {purpose}" for verb, (_, purpose) in VERBS.items())
    return _HELP.format(verbs=verbs, recipes="\n".join(f"  {name}" for name in _recipes()))


def _resolve(arguments: list[str]) -> list[str]:
    """Spell out aliases, and turn names of shipped recipes into paths."""
    resolved: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            name = name.replace("-", "_").replace("__", "--", 1)
            name = _ALIASES.get(name, name)
            argument = name + equals + value
        if resolved and resolved[-1] == "--config" and argument in _recipes() and not Path(argument).exists():
            argument = str(files("jetrep.recipes") / f"{argument}.yaml")
        elif name == "--config" and value in _recipes() and not Path(value).exists():
            argument = f"--config={files('jetrep.recipes') / value}.yaml"
        resolved.append(argument)
    return resolved


def _config_files(arguments: Sequence[str]) -> list[str]:
    """The YAML files among resolved arguments."""
    apart = [value for name, value in pairwise(arguments) if name == "--config"]
    return apart + [argument.partition("=")[2] for argument in arguments if argument.startswith("--config=")]


def _kinds(annotation: Any) -> dict[str, type]:
    """For an option whose settings depend on its kind (a union of dataclasses), these by the name of the kind."""
    return {member.kind: member for member in get_args(annotation) if hasattr(member, "kind")}


def _kind_given(option: str, arguments: Sequence[str]) -> str | None:
    """The kind that the arguments, or else the YAML files among them, name: what else they may say depends on it."""
    kind = None
    for file in _config_files(arguments):
        try:
            settings = yaml.safe_load(Path(file).read_text(encoding="utf-8")).get(option)
            kind = settings.get("kind", kind)
        except (OSError, ValueError, AttributeError, yaml.YAMLError):
            continue  # the parser tells what is wrong with it
    for name, value in pairwise([*arguments, ""]):
        if name == f"--{option}.kind":
            kind = value
        elif name.startswith(f"--{option}.kind="):
            kind = name.partition("=")[2]
    return kind


def main(arguments: list[str] | None = None) -> int:
    """Run one verb.

    Returns:
        The exit code: 0 done, 1 bad input, 2 bad usage, 130 interrupted, 143 terminated.

    Raises:
        SystemExit: after ``--help`` and ``--print_config``.
    """
    # Threads that wait must not spin for long: on a machine that others use too, it makes small models thirty times
    # slower. To sleep at once makes them two times slower on a machine of their own: on Linux, they spin for some
    # microseconds. The OpenMP runtime reads this when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    warnings.formatwarning = lambda message, *_, **__: f"jetrep: {message}\n"
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"jetrep {__version__}")
        return 0
    verb = arguments[0]
    if verb not in VERBS:
        print(f"jetrep: there is no verb '{verb}'; choose from {', '.join(VERBS)}", file=sys.stderr)
        return 2
    arguments = _resolve(arguments[1:])
    try:
        _run(verb, arguments)
    except ArgumentError as error:
        recipes = "".join(f"{name}, " for name in _config_files(arguments))
        print(f"jetrep {verb}: {' '.join(str(error).split())}; see {recipes}jetrep {verb} --help", file=sys.stderr)
        return 2
    except JetrepError as error:
        print(f"jetrep {verb}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        remedy = _REMEDIES.get(error.errno or 0, "check the disk and the network")
        print(f"jetrep {verb}: {place}{error.strerror or error}; {remedy}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\njetrep {verb}: interrupted; the same command goes on where it can", file=sys.stderr)
        return 130
    except SystemExit as stop:
        if stop.code != _TERMINATED:
            raise
        print(f"jetrep {verb}: terminated; the same command goes on where it can", file=sys.stderr)
        return _TERMINATED
    return 0


def _parser(verb: str, function: Callable[..., Any], arguments: Sequence[str] = ()) -> ArgumentParser:
    """The parser of one verb, from the signature and docstring of its function.

    jsonargparse does the work; on top of it, lists are written ``--on A B`` instead of ``--on '["A", "B"]'``, switches
    ``--quiet`` instead of ``--quiet true``, and an option of several kinds has the settings of the one that is given.
    """
    from jsonargparse import ActionYesNo, ArgumentParser

    documentation = parse(function.__doc__ or "")
    summary = "\n\n".join(filter(None, (documentation.short_description, documentation.long_description)))
    summary = summary.replace("``", "")
    help_of = {
        parameter.arg_name: " ".join((parameter.description or "").split()) for parameter in documentation.params
    }
    parser = ArgumentParser(
        prog=f"jetrep {verb}",
        usage=_usage(verb, function),
        description=summary,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file, or the name of a recipe")
    types = get_type_hints(function)
    own: set[str | int] = set()
    for name, parameter in inspect.signature(function).parameters.items():
        # Of "list[X] | None", the list is what the user writes.
        alternatives = [t for t in (types[name], *get_args(types[name])) if get_origin(t) is list]
        settings: dict[str, Any] = {"help": help_of.get(name)}
        if kinds := _kinds(types[name]):
            kind = _kind_given(name, arguments)
            if kind is not None and kind not in kinds:
                raise InputError(
                    f"there is no {name} of kind '{kind}'", field=f"{name}.kind", remedy=f"known: {', '.join(kinds)}"
                )
            default = parameter.default if kind in (None, parameter.default.kind) else kinds[kind]()
            settings |= {"type": type(default), "default": default}
            settings["help"] = f"{settings['help']} Kinds: {', '.join(kinds)} (--{name}.kind KIND --help)."
            parser.add_argument(f"--{name}", **settings)
            own.add(name)
            continue
        if alternatives:
            settings |= {"nargs": "+", "type": get_args(alternatives[0])[0]}
        elif types[name] is bool:
            settings |= {"action": ActionYesNo}
        elif parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
            continue
        else:
            settings |= {"type": types[name]}
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            if parameter.default is not parameter.empty:
                settings |= {"nargs": "*" if alternatives else "?", "default": parameter.default}
            parser.add_argument(name, **settings)
        elif parameter.default is parameter.empty:
            parser.add_argument(f"--{name}", required=True, **settings)
        else:
            parser.add_argument(f"--{name}", default=parameter.default, **settings)
        own.add(name)
    parser.add_function_arguments(function, as_group=False, skip=own)
    return parser


def _usage(verb: str, function: Callable[..., Any]) -> str:
    """One line with what must be given; the list of options follows below it."""
    words = [f"jetrep {verb}"]
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default is parameter.empty:
            several = " ..." if "list" in str(parameter.annotation) else ""
            flag = "" if parameter.kind is parameter.POSITIONAL_OR_KEYWORD else f"--{name} "
            words.append(flag + name.upper() + several)
    return " ".join([*words, "[options]"])


def _run(verb: str, arguments: list[str]) -> Any:
    from jsonargparse import set_parsing_settings

    from jetrep.store.interrupt import orderly_termination

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    function = getattr(importlib.import_module(VERBS[verb][0]), verb)
    parser = _parser(verb, function, arguments)
    settings = parser.instantiate(parser.parse_args(arguments)).as_dict()
    settings.pop("config", None)
    with orderly_termination():
        return function(**settings)


if __name__ == "__main__":
    sys.exit(main())
