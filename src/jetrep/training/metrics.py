"""The log of a run: metrics.jsonl, the progress bar, and warnings."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from jetrep.errors import InputError
from jetrep.progress import progress
from jetrep.report.files import replacing

__all__ = ["MetricsLog"]

_TRAINED = 300  # steps


class MetricsLog(Callback):
    """Writes metrics.jsonl, moves the progress bar, and says aloud when training goes wrong.

    Args:
        path: the file.
        total_steps: length of the run.
        every: steps between two lines; the last step has one in any case.
        description: label of the progress bar.
        quiet: show no bar.
    """

    def __init__(self, path: Path, total_steps: int, every: int, description: str, quiet: bool) -> None:
        self.path, self.total_steps, self.every = path, total_steps, every
        self.description, self.quiet = description, quiet
        self.warned: set[str] = set()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the lines that a killed run wrote after its last checkpoint, and open the bar."""
        if trainer.is_global_zero and self.path.exists():
            lines = self.path.read_text(errors="replace").splitlines()
            with replacing(self.path) as stream:
                stream.writelines(f"{line}\n".encode() for line in lines if 0 < _step(line) <= trainer.global_step)
        self.bar = progress(
            total=self.total_steps,
            description=self.description,
            unit="step",
            quiet=self.quiet or not trainer.is_global_zero,
        )
        self.bar.update(trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """One step of the bar; a line of the log every so often, with the means over all processes.

        Raises:
            InputError: if the loss is not finite, and not only for this step: no later one can mend the weights.
        """
        self.bar.update(1)
        step = trainer.global_step
        if step % self.every and step != self.total_steps:
            return
        values = self._means(trainer, pl_module.metrics)
        if trainer.is_global_zero:
            self._write(trainer, step, values)
        # A step that was skipped has done no harm; the engine tells when there are too many.
        skipped = pl_module.skipped_in_a_row == 1 or (pl_module.skipped_in_a_row and step < self.total_steps)
        if not math.isfinite(values["loss"]) and not skipped:
            raise InputError(
                f"training has diverged: the loss is {values['loss']} at step {step}",
                file=self.path,
                remedy="give --overwrite and a smaller --optimizer.lr",
            )
        # A net that has hardly been trained may look collapsed.
        if trainer.is_global_zero and step >= min(_TRAINED, self.total_steps):
            self._warn(step, pl_module.objective.alarms(values))

    def _means(self, trainer: L.Trainer, metrics: dict[str, torch.Tensor]) -> dict[str, float]:
        stacked = torch.stack([value.float() for value in metrics.values()])
        means = trainer.strategy.reduce(stacked, reduce_op="mean")
        assert isinstance(means, torch.Tensor)
        return dict(zip(metrics, means.tolist(), strict=True))

    def _write(self, trainer: L.Trainer, step: int, values: dict[str, float]) -> None:
        values["lr"] = trainer.optimizers[0].param_groups[-1]["lr"]
        self.bar.set_postfix(loss=f"{values['loss']:.3f}")
        with self.path.open("a") as stream:
            stream.write(json.dumps({"step": step, **values}) + "\n")
        for logger in trainer.loggers:
            logger.log_metrics(values, step)

    def _warn(self, step: int, sentences: list[str]) -> None:
        for sentence in sentences:
            if sentence not in self.warned:
                self.warned.add(sentence)
                warnings.warn(f"step {step}: {sentence}", stacklevel=1)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the bar."""
        self.bar.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Close the bar before the message is printed."""
        if hasattr(self, "bar"):
            self.bar.close()


def _step(line: str) -> int:
    """The step of a line of metrics.jsonl, 0 if it is damaged."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return 0
