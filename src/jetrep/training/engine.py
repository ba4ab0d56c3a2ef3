"""One training loop for every objective, on Lightning: devices, precision, clipping and resuming.

The physics and the mathematics of a step stand in the objective (`jetrep.objectives`); this module only drives it.
"""

from __future__ import annotations

import errno
import logging
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from torch import Tensor

from jetrep.encoders.base import JetEncoder
from jetrep.encoders.lorentz_decoder import LorentzDecoder
from jetrep.errors import InputError, at_least
from jetrep.jets import JetBatch
from jetrep.objectives.base import Objective, StepOutput
from jetrep.store.interrupt import orderly_termination
from jetrep.training.batches import ShuffledBatches
from jetrep.training.metrics import MetricsLog
from jetrep.training.optimizers import OptimizerConfig, build_optimizer, schedule
from jetrep.training.resume import ResumeState
from jetrep.training.run import METRICS, RESUME, RunFolder

__all__ = ["EngineConfig", "OptimizerConfig", "fit"]

_HOPELESS = 24  # skipped steps; the scale of half precision begins at 2 ** 16, and each of them halves it


@dataclass(frozen=True)
class EngineConfig:
    """Where and how to run; none of it changes what is computed, but for rounding, and for what dropout draws and batch
    norms see on each of several devices.

    Attributes:
        accelerator: "auto" takes a GPU if there is one.
        devices: number of devices on each node.
        num_nodes: number of nodes.
        strategy: Lightning's name of the parallel strategy, such as "ddp".
        precision: arithmetic; bf16-mixed halves the time of large models. 16-mixed is for GPUs: a CPU takes bf16-mixed.
        compile: torch.compile for the encoder and a Lorentz-equivariant decoder; needs a C++ compiler. On a CPU only
            Lorentz-equivariant networks gain by it.
        log_every: steps between two lines of metrics.jsonl.
        checkpoint_every: steps between two states to resume from.
        prefetch: batches that are made ahead, by a thread.
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
    prefetch: int = 1
    logger: Literal["tensorboard", "wandb", "mlflow", "none"] = "tensorboard"

    def __post_init__(self) -> None:
        for name in ("devices", "num_nodes", "log_every", "checkpoint_every"):
            at_least(1, **{f"engine.{name}": getattr(self, name)})
        at_least(0, **{"engine.prefetch": self.prefetch})

    @property
    def processes(self) -> int:
        """Number of processes that share each batch."""
        return self.devices * self.num_nodes


class _Batches:
    """What Lightning iterates over: it begins at the step that the run has reached."""

    def __init__(self, module: TrainingModule, batches: ShuffledBatches) -> None:
        self.module, self.batches = module, batches

    def __iter__(self) -> Iterator[JetBatch]:
        share = self.batches.share(self.module.global_rank, self.module.trainer.world_size)
        return share.from_step(self.module.global_step)


class TrainingModule(L.LightningModule):
    """Drives one objective."""

    def __init__(self, objective: Objective, optimizer: OptimizerConfig, total_steps: int, seed: int) -> None:
        super().__init__()
        self.objective, self.optimizer_config = objective, optimizer
        self.total_steps, self.seed = total_steps, seed
        self.metrics: dict[str, Tensor] = {}
        self.skipped = self.skipped_in_a_row = 0
        self._before: list[Tensor] = []

    def training_step(self, batch: JetBatch, batch_idx: int) -> Tensor:
        """One forward pass. All randomness is a function of (seed, step), so that a resumed run repeats it.

        Torch's global generator, from which dropout draws, is that of the rank; the explicit one is common to all.
        """
        step = self.global_step
        self._before = [buffer.clone() for buffer in self.objective.buffers()]
        seed = (self.seed * 1_000_003 + step) % 2**63
        devices = [batch.p4.device] if batch.p4.is_cuda else []
        with torch.random.fork_rng(devices):
            torch.manual_seed((seed + self.global_rank * 0x9E3779B97F4A7C15) % 2**63)
            output: StepOutput = self.objective(batch, step, self.total_steps, torch.Generator().manual_seed(seed))
        self.metrics = {"loss": output.loss.detach(), **output.metrics}
        return output.loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The optimiser, then averages and the like: a checkpoint holds both or neither."""
        step = self.global_step
        super().optimizer_step(*args, **kwargs)
        if not self.skipped_in_a_row:
            self.objective.after_step(step, self.total_steps)

    def configure_optimizers(self) -> Any:
        """The optimiser over the groups of the objective, and its schedule."""
        config = self.optimizer_config
        groups = self.objective.parameter_groups(config.lr, config.weight_decay, config.layer_decay)
        optimizer = build_optimizer(config, groups)
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(config, self.total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rates, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Clip each part of the objective by itself, so that a head cannot silence the encoder.

        A step whose gradient is not finite is skipped: weights, moments and running statistics stay as they were. In
        half precision that is how the scale of the loss is found.

        Raises:
            InputError: if no gradient was finite for many steps.
        """
        clip = self.optimizer_config.clip or float("inf")
        norms = {
            f"gradient_norm/{name}": torch.nn.utils.clip_grad_norm_(parameters, clip).detach()
            for name, parameters in self.objective.parts().items()
        }
        self.metrics |= norms
        # Gradients are those of all processes, so these agree.
        if bool(torch.stack([norm.float() for norm in norms.values()]).isfinite().all()):
            self.skipped_in_a_row = 0
        else:
            self._skip()
        if self.skipped:
            self.metrics["skipped_steps"] = torch.tensor(float(self.skipped), device=self.device)

    def _skip(self) -> None:
        self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
        if self.skipped_in_a_row == _HOPELESS:
            raise InputError(
                f"training has diverged: {_HOPELESS} gradients in a row were not finite, up to step "
                f"{self.global_step + 1}",
                file=self.trainer.default_root_dir,
                remedy="give --overwrite and a smaller --optimizer.lr, or another --engine.precision",
            )
        self.objective.zero_grad(set_to_none=True)
        for buffer, before in zip(self.objective.buffers(), self._before, strict=True):
            buffer.copy_(before)

    def transfer_batch_to_device(self, batch: JetBatch, device: torch.device, dataloader_idx: int) -> JetBatch:
        """Our batches move themselves."""
        return batch.to(device)


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
    run: RunFolder,
    total_steps: int,
    optimizer: OptimizerConfig,
    engine: EngineConfig,
    seed: int,
    description: str,
    callbacks: list[Callback] | None = None,
    quiet: bool = False,
) -> None:
    """Train ``objective`` for ``total_steps``, from the state in ``run`` if there is one.

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

    Raises:
        InputError: if the hardware or logger asked for is not there, the batch cannot be shared by the processes, the
            state to resume from is damaged, the disk is full, training diverges, or another process trains the run.
    """
    at_least(1, total_steps=total_steps)
    batches = replace(batches, prefetch=engine.prefetch)
    replace(batches, world_size=engine.processes)  # raises if it cannot be shared
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    module = TrainingModule(objective, optimizer, total_steps, seed)
    if engine.compile:
        for part in objective.modules():
            if isinstance(part, JetEncoder | LorentzDecoder):
                part.compile(dynamic=True)
    log = MetricsLog(run.path / METRICS, total_steps, engine.log_every, description, quiet)
    with warnings.catch_warnings():
        # Lightning's advice on data-loader workers and log directories does not apply to batches made in place.
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        warnings.filterwarnings("ignore", message=".*isinstance.*LeafSpec.*")
        trainer = _trainer(module, engine, run.path, [log, *(callbacks or [])])
        batches.probe()
        with orderly_termination(), run.locked(), _interruptible(trainer), _disk_errors(run.path):
            run.begin()
            trainer.fit(module, train_dataloaders=_Batches(module, batches), ckpt_path=run.state, weights_only=True)
    weights = (tensor for tensor in objective.encoder.state_dict().values() if tensor.is_floating_point())
    if not all(bool(tensor.isfinite().all()) for tensor in weights):
        raise InputError(
            f"training has diverged: the weights are not finite after step {total_steps}",
            file=run.path,
            remedy="give --overwrite and a smaller --optimizer.lr",
        )


def _trainer(module: TrainingModule, engine: EngineConfig, run: Path, callbacks: list[Callback]) -> L.Trainer:
    """Lightning's trainer; what it cannot do with this machine is told in one line."""
    checkpoint = ModelCheckpoint(
        dirpath=run,
        filename=Path(RESUME).stem,
        every_n_train_steps=engine.checkpoint_every,
        enable_version_counter=False,
        save_on_train_epoch_end=False,
    )
    try:
        return L.Trainer(
            accelerator=engine.accelerator,
            devices=engine.devices,
            num_nodes=engine.num_nodes,
            strategy=engine.strategy,
            precision=engine.precision,
            max_steps=module.total_steps,
            logger=_logger(engine, run),
            callbacks=[checkpoint, _OrderlyTermination(), *callbacks],
            plugins=[ResumeState(module)],
            default_root_dir=run,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
        )
    except (MisconfigurationException, ModuleNotFoundError, ValueError) as problem:
        raise InputError(
            " ".join(str(problem).split()), field="engine", remedy="choose what this machine has"
        ) from problem


class _OrderlyTermination(Callback):
    """Keeps the handler of SIGTERM that was there before Lightning's.

    Lightning's ends the program as if all were done, and waits for ever for other processes that it has just killed.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Lightning sets its own after this."""
        self.handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning has set its own by now."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.handler)


@contextmanager
def _interruptible(trainer: L.Trainer) -> Iterator[None]:
    """Lightning turns Ctrl-C into an exit and ignores the next one; this gives both back to the caller.

    Whatever ends this process early ends those that it has started.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except BaseException as stop:
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGTERM)
        if isinstance(stop, SystemExit) and isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stop
        raise
    finally:
        if in_main_thread:
            signal.signal(signal.SIGINT, handler)


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)


@contextmanager
def _disk_errors(run: Path) -> Iterator[None]:
    """Logs are written in many places; whichever hits a full disk first, it is the run that cannot go on."""
    try:
        yield
    except OSError as problem:
        if problem.errno not in _DISK:
            raise
        raise InputError(
            f"cannot be written ({problem.strerror or problem})",
            file=problem.filename or run,
            remedy="free space or mend the folder, and give the same command again",
        ) from problem
