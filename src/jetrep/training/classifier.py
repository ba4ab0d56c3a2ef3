"""Supervised training of a tagger, with the best epoch chosen on held-out jets."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn.functional import nll_loss

from jetrep.jets import Jets
from jetrep.model import JetModel
from jetrep.objectives.supervised import Supervised
from jetrep.store.gather import JetPool
from jetrep.training.batches import LoadingConfig, ShuffledBatches
from jetrep.training.engine import EngineConfig, OptimizerConfig, fit
from jetrep.training.run import RunFolder
from jetrep.training.sampling import class_weights

__all__ = ["train_classifier"]


class _BestEpoch(Callback):
    """After each epoch, the loss on held-out jets: keeps the best weights, and stops when they no longer improve.

    Of several processes each judges all held-out jets, so that all keep the same weights; they stop together.
    """

    def __init__(self, model: JetModel, valid: Jets, class_weights: Tensor, every: int, patience: int) -> None:
        self.model, self.valid, self.class_weights = model, valid, class_weights
        self.every, self.patience = every, patience
        # The weights that training starts from count as epoch 0: fine-tuning can only improve on the probe.
        self.best_loss, self.best_step = self._loss(), 0
        self.best_weights = self._weights()

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}

    def _loss(self) -> float:
        probabilities = torch.from_numpy(self.model.predict(self.valid)).clamp(min=1e-12)
        labels = torch.from_numpy(self.valid.labels)
        return float(nll_loss(probabilities.log(), labels, weight=self.class_weights))

    def _stop(self, trainer: L.Trainer) -> None:
        stop = trainer.global_step - self.best_step >= self.patience * self.every
        trainer.should_stop = trainer.should_stop or trainer.strategy.reduce_boolean_decision(stop, all=False)

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """A run that was killed when it had just stopped does not go on."""
        self._stop(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Validate at the end of an epoch."""
        step = trainer.global_step
        if step % self.every:
            return
        loss = self._loss()
        if loss < self.best_loss:
            self.best_loss, self.best_step, self.best_weights = loss, step, self._weights()
        self._stop(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Survives a resume: the best epoch may lie before it."""
        return {"loss": self.best_loss, "step": self.best_step, "weights": self.best_weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where the killed run was."""
        self.best_loss, self.best_step = state_dict["loss"], state_dict["step"]
        self.best_weights = state_dict["weights"]


def train_classifier(
    model: JetModel,
    train: Jets,
    valid: Jets,
    *,
    encoder_lr: float,
    optimizer: OptimizerConfig,
    epochs: int,
    patience: int,
    batch_size: int,
    run: RunFolder,
    engine: EngineConfig,
    seed: int,
    loading: LoadingConfig = LoadingConfig(),
    quiet: bool = False,
) -> None:
    """Train a tagger in place and leave it with the weights of its best epoch on ``valid``.

    Classes are weighted in both losses so that each counts the same; in training, as far as ``loading`` does not show
    them equally often already.

    Args:
        model: a model with a classifier head.
        train: labelled jets, already in the view of the model.
        valid: labelled jets that choose the epoch.
        encoder_lr: learning rate of the encoder, as a fraction of the head's.
        optimizer: optimiser and its schedule.
        epochs: passes over the training jets.
        patience: epochs without improvement before training stops.
        batch_size: jets per step; the whole set (or what of it the processes can share), if that is smaller.
        run: folder for metrics and for the state to resume from.
        engine: hardware, precision, logs.
        seed: determines batches and dropout.
        loading: how jets are shuffled, sampled and padded.
        quiet: show no progress.
    """
    if len(train) < batch_size:
        batch_size = max(len(train) - len(train) % engine.processes, engine.processes)
    shown = loading.weights(JetPool.of(train))
    batches = ShuffledBatches(train, batch_size, seed, loading=loading, weights=shown)
    best = _BestEpoch(model, valid, class_weights(train), batches.steps_per_epoch, patience)
    fit(
        Supervised(model, class_weights(train, shown), encoder_lr),
        batches,
        run=run,
        total_steps=epochs * batches.steps_per_epoch,
        optimizer=optimizer,
        engine=engine,
        seed=seed,
        description="fine-tune",
        callbacks=[best],
        quiet=quiet,
    )
    model.load_state_dict(best.best_weights)
    model.eval()
