"""The folder of a run: its settings, whether it may be resumed, and its model once that is trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from jetrep.errors import InputError
from jetrep.model import JetModel
from jetrep.report.curves import training_curves
from jetrep.report.files import check_writable, replacing
from jetrep.report.style import save
from jetrep.store.folder import locked
from jetrep.training.autoencoders import AUTOENCODER, AUTOENCODER_WEIGHTS
from jetrep.training.checkpoint import RECORD, TOKENIZER, TOKENIZER_WEIGHTS, WEIGHTS, save_model
from jetrep.training.data import data_hashes
from jetrep.training.optimizers import OptimizerConfig

__all__ = ["METRICS", "RESUME", "RunFolder", "run_settings", "settings_of"]

METRICS, RESUME = "metrics.jsonl", "resume.ckpt"
_SETTINGS, CURVES = "settings.json", "training.png"


# Arguments of a verb that do not change its result.
_IMMATERIAL = ("out", "engine", "overwrite", "quiet")


def run_settings(verb: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What determines the result of a training verb: its arguments, and the content of its data.

    Args:
        verb: name of the verb.
        arguments: its arguments, as ``locals()`` gives them at its beginning.
    """
    settings: dict[str, Any] = {"verb": verb}
    for name, value in arguments.items():
        if name not in _IMMATERIAL:
            settings[name] = settings_of(value)
    return settings | {"data": data_hashes(arguments["data"])}


def settings_of(value: Any) -> Any:
    """A dataclass as a dict, its members too, for the record of a run; anything else as it is.

    A field with the metadata ``later`` came after the first runs: at its default it is left out, so that those are
    still the same runs.
    """
    if isinstance(value, (list, tuple)):
        return [settings_of(member) for member in value]
    if not is_dataclass(value) or isinstance(value, type):
        return value
    if isinstance(value, OptimizerConfig):
        value = value.resolved()
    settings = {entry.name: (entry, getattr(value, entry.name)) for entry in fields(value)}
    return {
        name: settings_of(given)
        for name, (entry, given) in settings.items()
        if not (entry.metadata.get("later") and given == entry.default)
    }


@dataclass
class RunFolder:
    """A run's folder holds one run: the same settings resume it, other settings need ``overwrite``.

    Nothing is written before `begin`, so that a command that fails on its input leaves no trace. Of several processes
    that train together only the first writes.

    Args:
        path: the folder, made if needed.
        settings: everything that determines the result; anything JSON can hold.
        overwrite: forget a run that is there.

    Raises:
        InputError: if the folder holds a run with other settings, or files of something else.
    """

    path: Path
    settings: Mapping[str, Any]
    overwrite: bool = False
    _begun: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        check_writable(self.path)
        # Names with a dot are files that another process of this run is about to write.
        occupied = self.path.exists() and any(not entry.name.startswith(".") for entry in self.path.iterdir())
        if not occupied:
            return
        if not (self.path / _SETTINGS).exists():
            raise InputError("the folder holds something else", file=self.path, remedy="choose another --out")
        if not self.overwrite:
            self._compare()

    def _compare(self) -> None:
        """Whether the settings of the run that is there are ours."""
        file = self.path / _SETTINGS
        try:
            found = json.loads(file.read_text())
            if not isinstance(found, dict):
                raise ValueError("not an object")
        except (OSError, ValueError) as problem:
            raise InputError(
                f"the settings of the run cannot be read ({problem})",
                file=file,
                remedy="choose another --out, or --overwrite",
            ) from problem
        found, wanted = _identity(found), _identity(self._json())
        if found != wanted:
            changed = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
            raise InputError(
                f"the folder holds a run with other settings ({', '.join(changed)})",
                file=self.path,
                remedy="choose another --out, or --overwrite",
            )

    def _json(self) -> dict[str, Any]:
        """The settings as they are read back."""
        settings: dict[str, Any] = json.loads(json.dumps(self.settings, default=str))
        return settings

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes: the only one of its run, or the first of several."""
        return _first_process()

    @property
    def finished(self) -> bool:
        """Whether the model of this run is there."""
        return not self.overwrite and (self.path / RECORD).exists() and not (self.path / RESUME).exists()

    @property
    def state(self) -> Path | None:
        """The state to resume from, if there is one."""
        file = self.path / RESUME
        return file if file.exists() and not self.overwrite else None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other commands from training the same run.

        Raises:
            InputError: if another process is at it.
        """
        if not self.writes:
            yield
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path, "training this run"):
            yield

    def begin(self) -> None:
        """Note the settings, and forget the former run if there is one."""
        if self._begun or not self.writes:
            return
        self._begun = True
        if self.overwrite:
            self._clear()
        with replacing(self.path / _SETTINGS) as stream:
            stream.write((json.dumps(self._json(), indent=2) + "\n").encode())

    def finish(self, model: JetModel, history: Mapping[str, Any]) -> None:
        """Save the trained model; the state to resume from is no longer needed.

        Args:
            model: the model.
            history: what to note beside the settings: numbers of jets, seconds and the like.
        """
        if not self.writes:
            return
        self.begin()
        save_model(model, self.path, provenance={**self.settings, **history})
        (self.path / RESUME).unlink(missing_ok=True)

    def draw_curves(self) -> None:
        """Everything that was logged against the step, as training.png."""
        if self.writes:
            save(training_curves(self.path / METRICS), self.path / CURVES)

    def _clear(self) -> None:
        """Remove what a run writes, and nothing else."""
        models = RECORD, WEIGHTS, TOKENIZER, TOKENIZER_WEIGHTS, AUTOENCODER, AUTOENCODER_WEIGHTS
        for name in (_SETTINGS, METRICS, CURVES, RESUME, *models):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.path / "tensorboard", ignore_errors=True)


def _identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with data and weights told by their content, wherever they are."""
    found = dict(settings)
    if isinstance(found.get("data"), dict):
        found["data"] = list(found["data"].values())
    for path, content in (("from_run", "from_weights"), ("tokenizer_from", "tokenizer_weights")):
        if content in found:
            found.pop(path, None)
    return found


def _first_process() -> bool:
    """Whether this process is the only one of its run, or the first of several; known before they meet."""
    return not getattr(rank_zero_only, "rank", 0)
