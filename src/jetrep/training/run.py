"""The folder of a run: its settings, and whether it may be resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from jetrep.errors import InputError
from jetrep.training.checkpoint import RECORD, WEIGHTS
from jetrep.training.data import data_hashes
from jetrep.training.engine import METRICS, RESUME

__all__ = ["RunFolder", "run_settings"]

_SETTINGS = "settings.json"


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
            settings[name] = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    return settings | {"data": data_hashes(arguments["data"])}


@dataclass
class RunFolder:
    """A run's folder holds one run: the same settings resume it, other settings need ``overwrite``.

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
    _record: Path = field(init=False)

    def __post_init__(self) -> None:
        self._record = self.path / _SETTINGS
        wanted = json.loads(json.dumps(self.settings, default=str))
        if self.path.exists() and any(self.path.iterdir()) and not self._record.exists():
            raise InputError("the folder holds something else", file=self.path, remedy="choose another --out")
        if self._record.exists():
            found = json.loads(self._record.read_text())
            if self.overwrite:
                self._clear()
            elif found != wanted:
                changed = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
                raise InputError(
                    f"the folder holds a run with other settings ({', '.join(changed)})",
                    file=self.path,
                    remedy="choose another --out, or --overwrite",
                )
        self.path.mkdir(parents=True, exist_ok=True)
        self._record.write_text(json.dumps(wanted, indent=2) + "\n")

    @property
    def finished(self) -> bool:
        """Whether the model of this run is there."""
        return (self.path / RECORD).exists() and not (self.path / RESUME).exists()

    def finish(self) -> None:
        """The model is saved: the state to resume from is no longer needed."""
        (self.path / RESUME).unlink(missing_ok=True)

    def _clear(self) -> None:
        """Remove what a run writes, and nothing else."""
        for name in (_SETTINGS, METRICS, RESUME, RECORD, WEIGHTS):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.path / "tensorboard", ignore_errors=True)
