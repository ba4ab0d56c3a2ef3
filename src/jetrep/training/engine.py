"""One training loop for every objective, on Lightning: devices, precision, clipping, resuming and logs.

The physics and the mathematics of a step stand in the objective (`jetrep.objectives`); this module only drives it.
"""

from __future__ import annotations

import json
import logging
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from torch import Tensor

from jetrep.encoders.transformer import JetTransformer
from jetrep.jets import JetBatch
from jetrep.objectives.base import Objective, StepOutput
from jetrep.objectives.schedules import warmup_cosine
from jetrep.progress import progress
from jetrep.training.batches import ShuffledBatches

__all__ = ["EngineConfig", "OptimizerConfig", "fit"]

_TRAINED = 300  # steps
METRICS, RESUME = "metrics.jsonl", "resume.ckpt"


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a cosine schedule over the steps.

    Attributes:
        lr: peak learning rate (of the heads, if there is layer-wise decay).
        weight_decay: decoupled weight decay.
        betas: AdamW's moments.
        eps: AdamW's ε.
        layer_decay: factor on the learning rate per layer, from the heads down to the stem.
        warmup: fraction of the steps in which the rate rises.
        final_lr: rate at the end, as a fraction of the peak.
        clip: largest gradient norm, applied to encoder and heads apart; 0 for none.
    """

    lr: float = 1e-3
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    layer_decay: float = 1.0
    warmup: float = 0.1
    final_lr: float = 0.05
    clip: float = 3.0


@dataclass(frozen=True)
class EngineConfig:
    """Where and how to run; none of it changes what is computed, but for rounding.

    Attributes:
        accelerator: "auto" takes a GPU if there is one.
        devices: number of devices on each node.
        num_nodes: number of nodes.
        strategy: Lightning's name of the parallel strategy, such as "ddp".
        precision: arithmetic; bf16-mixed halves the time of large models.
        compile: compile the encoder with torch.compile.
        log_every: steps between two lines of metrics.jsonl.
        checkpoint_every: steps between two states to resume from.
        logger: where metrics go besides metrics.jsonl.
    """

    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    compile: bool = False
    log_every: int = 20
    checkpoint_every: int = 200
    logger: Literal["tensorboard", "wandb", "mlflow", "none"] = "tensorboard"


class _Batches:
    """What Lightning iterates over: it begins at the step that the run has reached."""

    def __init__(self, module: TrainingModule, batches: ShuffledBatches) -> None:
        self.module, self.batches = module, batches

    def __iter__(self) -> Iterator[JetBatch]:
        self.batches.rank = self.module.global_rank
        self.batches.world_size = self.module.trainer.world_size
        return self.batches.from_step(self.module.global_step)


class TrainingModule(L.LightningModule):
    """Drives one objective."""

    def __init__(self, objective: Objective, optimizer: OptimizerConfig, total_steps: int, seed: int) -> None:
        super().__init__()
        self.objective, self.optimizer_config = objective, optimizer
        self.total_steps, self.seed = total_steps, seed
        self.metrics: dict[str, Tensor] = {}

    def training_step(self, batch: JetBatch, batch_idx: int) -> Tensor:
        """One forward pass. All randomness is a function of (seed, step), so that a resumed run repeats it."""
        step = self.global_step
        seed = (self.seed * 1_000_003 + step) % 2**63
        devices = [batch.p4.device] if batch.p4.is_cuda else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            output: StepOutput = self.objective(batch, step, self.total_steps, torch.Generator().manual_seed(seed))
        self.metrics = {"loss": output.loss.detach(), **output.metrics}
        return output.loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The optimiser, then averages and the like: a checkpoint holds both or neither."""
        step = self.global_step
        super().optimizer_step(*args, **kwargs)
        self.objective.after_step(step, self.total_steps)

    def configure_optimizers(self) -> Any:
        """AdamW over the groups of the objective, with a warm-up and a cosine fall."""
        config = self.optimizer_config
        groups = self.objective.parameter_groups(config.lr, config.weight_decay, config.layer_decay)
        optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            # The first step already moves: the schedule is read at the end of each step.
            lambda step: warmup_cosine((step + 1) / self.total_steps, config.warmup, config.final_lr),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Clip each part of the objective by itself, so that a head cannot silence the encoder."""
        clip = self.optimizer_config.clip
        for name, parameters in self.objective.parts().items():
            norm = torch.nn.utils.clip_grad_norm_(parameters, clip if clip > 0 else float("inf"))
            self.metrics[f"gradient_norm/{name}"] = norm.detach()

    def transfer_batch_to_device(self, batch: JetBatch, device: torch.device, dataloader_idx: int) -> JetBatch:
        """Our batches move themselves."""
        return batch.to(device)


class MetricsLog(Callback):
    """Writes metrics.jsonl, moves the progress bar, and says aloud when training goes wrong."""

    def __init__(self, path: Path, total_steps: int, every: int, description: str, quiet: bool) -> None:
        self.path, self.total_steps, self.every = path, total_steps, every
        self.description, self.quiet = description, quiet
        self.warned: set[str] = set()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the lines that a killed run wrote after its last checkpoint, and open the bar."""
        if trainer.is_global_zero and self.path.exists():
            lines = [line for line in self.path.read_text().splitlines() if line.endswith("}")]
            kept = [line for line in lines if json.loads(line)["step"] <= trainer.global_step]
            self.path.write_text("".join(line + "\n" for line in kept))
        self.bar = progress(
            total=self.total_steps,
            description=self.description,
            unit="step",
            quiet=self.quiet or not trainer.is_global_zero,
        )
        self.bar.update(trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """One step of the bar; a line of the log every so often."""
        self.bar.update(1)
        step = trainer.global_step
        if (step % self.every and step != self.total_steps) or not trainer.is_global_zero:
            return
        values = {name: float(value) for name, value in pl_module.metrics.items()}
        values["lr"] = trainer.optimizers[0].param_groups[-1]["lr"]
        self.bar.set_postfix(loss=f"{values['loss']:.3f}")
        with self.path.open("a") as stream:
            stream.write(json.dumps({"step": step, **values}) + "\n")
        for logger in trainer.loggers:
            logger.log_metrics(values, step)
        # A net that has hardly been trained may look collapsed.
        for sentence in pl_module.objective.alarms(values) if step >= min(_TRAINED, self.total_steps) else ():
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


def _logger(config: EngineConfig, run: Path) -> Logger | bool:
    if config.logger == "tensorboard":
        from lightning.pytorch.loggers import TensorBoardLogger

        return TensorBoardLogger(run, name=None, version="tensorboard")
    if config.logger == "wandb":
        from lightning.pytorch.loggers import WandbLogger

        return WandbLogger(name=run.name, save_dir=run)
    if config.logger == "mlflow":
        from lightning.pytorch.loggers import MLFlowLogger

        return MLFlowLogger(run_name=run.name, save_dir=str(run))
    return False


def fit(
    objective: Objective,
    batches: ShuffledBatches,
    *,
    run: Path,
    total_steps: int,
    optimizer: OptimizerConfig,
    engine: EngineConfig,
    seed: int,
    description: str,
    callbacks: list[Callback] | None = None,
    quiet: bool = False,
) -> None:
    """Train ``objective`` for ``total_steps``, from the checkpoint in ``run`` if there is one.

    Args:
        objective: trained in place.
        batches: global batches.
        run: folder for metrics.jsonl and the state to resume from.
        total_steps: optimiser steps, those before a resume included.
        optimizer: optimiser and its schedule.
        engine: hardware, precision, logs.
        seed: with the step, determines everything random in a step.
        description: label of the progress bar.
        callbacks: further Lightning callbacks.
        quiet: show no progress.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    run.mkdir(parents=True, exist_ok=True)
    module = TrainingModule(objective, optimizer, total_steps, seed)
    if engine.compile:
        for part in objective.modules():
            if isinstance(part, JetTransformer):
                part.compile(dynamic=True)
    checkpoint = ModelCheckpoint(
        dirpath=run,
        filename=Path(RESUME).stem,
        every_n_train_steps=engine.checkpoint_every,
        enable_version_counter=False,
        save_on_train_epoch_end=False,
    )
    with warnings.catch_warnings():
        # Lightning's advice on data-loader workers and log directories does not apply to batches made in place.
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        warnings.filterwarnings("ignore", message=".*isinstance.*LeafSpec.*")
        trainer = L.Trainer(
            accelerator=engine.accelerator,
            devices=engine.devices,
            num_nodes=engine.num_nodes,
            strategy=engine.strategy,
            precision=engine.precision,
            max_steps=total_steps,
            logger=_logger(engine, run),
            callbacks=[
                checkpoint,
                MetricsLog(run / METRICS, total_steps, engine.log_every, description, quiet),
                *(callbacks or []),
            ],
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
        )
        resume = run / RESUME
        with _interruptible():
            trainer.fit(
                module,
                train_dataloaders=_Batches(module, batches),
                ckpt_path=resume if resume.exists() else None,
                weights_only=True,
            )


@contextmanager
def _interruptible() -> Iterator[None]:
    """Lightning turns Ctrl-C into an exit and ignores the next one; this gives both back to the caller."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stop
        raise
    finally:
        if in_main_thread:
            signal.signal(signal.SIGINT, handler)
