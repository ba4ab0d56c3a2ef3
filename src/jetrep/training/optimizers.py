"""Optimisers and their schedules, by name: AdamW, Ranger, Lion and Muon."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer, RAdam

from jetrep.errors import InputError, at_least
from jetrep.objectives.schedules import flat_exponential, warmup_cosine

__all__ = ["OptimizerConfig", "build_optimizer", "schedule"]

_LATER = {"later": True}  # see `jetrep.training.run.settings_of`
# (betas, eps) that are usual: RAdam's within Ranger are those of the recipe of Particle Transformer (arXiv 2202.03772).
_USUAL = {
    "adamw": ((0.9, 0.999), 1e-6),
    "ranger": ((0.95, 0.999), 1e-5),
    "lion": ((0.9, 0.99), 0.0),
    "muon": ((0.9, 0.999), 1e-6),
}


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimiser, and its learning rate over the steps.

    Attributes:
        lr: peak learning rate (of the heads, if there is layer-wise decay). Lion wants a third to a tenth of AdamW's.
        weight_decay: decoupled weight decay.
        betas: decay of the moments; by default those usual for the optimiser, 0.9 and 0.999 for AdamW.
        eps: ε of the denominator; by default the usual one, 1e-6 for AdamW and 1e-5 for Ranger.
        layer_decay: factor on the learning rate per layer, from the heads down to the stem.
        warmup: fraction of the steps in which the rate rises.
        final_lr: rate at the end, as a fraction of the peak.
        clip: largest gradient norm, applied to encoder and heads apart; 0 for none.
        name: adamw; ranger (RAdam with Lookahead); lion; muon for the matrices of the encoder's blocks, with updates
            of the size of AdamW's, and AdamW for all else.
        schedule: after the warm-up, a cosine, or flat and then exponential.
        flat: fraction of the steps before the exponential fall begins.
    """

    lr: float = 1e-3
    weight_decay: float = 0.05
    betas: tuple[float, float] | None = None
    eps: float | None = None
    layer_decay: float = 1.0
    warmup: float = 0.1
    final_lr: float = 0.05
    clip: float = 3.0
    name: Literal["adamw", "ranger", "lion", "muon"] = field(default="adamw", metadata=_LATER)
    schedule: Literal["cosine", "flat_exponential"] = field(default="cosine", metadata=_LATER)
    flat: float = field(default=0.7, metadata=_LATER)

    def __post_init__(self) -> None:
        for name in ("lr", "weight_decay", "eps", "layer_decay", "warmup", "final_lr", "clip", "flat"):
            at_least(0, **{f"optimizer.{name}": getattr(self, name)})
        if not all(0 <= beta < 1 for beta in self.betas or ()):
            raise InputError(f"are {self.betas}", field="optimizer.betas", remedy="give numbers from 0 to below 1")
        if self.schedule == "flat_exponential":
            if not self.final_lr:
                raise InputError(
                    "is 0", field="optimizer.final_lr", remedy="an exponential never ends there: give 0.01"
                )
            if not self.warmup <= self.flat <= 1:
                raise InputError(
                    f"is {self.flat}", field="optimizer.flat", remedy="give a fraction from that of the warm-up to 1"
                )

    def resolved(self) -> OptimizerConfig:
        """The same with the usual ``betas`` and ``eps`` written out."""
        betas, eps = _USUAL[self.name]
        return replace(
            self,
            betas=betas if self.betas is None else self.betas,
            eps=eps if self.eps is None else self.eps,
        )


def schedule(config: OptimizerConfig, total_steps: int) -> Callable[[int], float]:
    """The factor on the learning rate for each step, from 0; the first step already moves."""
    if config.schedule == "cosine":
        return lambda step: warmup_cosine((step + 1) / total_steps, config.warmup, config.final_lr)
    return lambda step: flat_exponential((step + 1) / total_steps, config.warmup, config.flat, config.final_lr)


def build_optimizer(config: OptimizerConfig, groups: list[dict[str, Any]]) -> Optimizer:
    """The optimiser of an objective.

    Args:
        config: which, and its constants.
        groups: `Objective.parameter_groups`: ``params``, ``lr``, ``weight_decay``, ``name``.
    """
    config = config.resolved()
    assert config.betas is not None
    assert config.eps is not None
    if config.name == "ranger":
        from pytorch_optimizer import Lookahead

        fast = RAdam(groups, lr=config.lr, betas=config.betas, eps=config.eps, decoupled_weight_decay=True)
        ranger: Optimizer = Lookahead(fast, k=6, alpha=0.5, pullback_momentum="none")
        return ranger
    if config.name == "lion":
        from pytorch_optimizer import Lion

        lion: Optimizer = Lion(groups, lr=config.lr, betas=config.betas)
        return lion
    if config.name == "muon":
        return _MuonAndAdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)
    return AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)


class _StackedMuon(Muon):
    """torch's Muon, Nesterov's, on all matrices of one shape at once, in bfloat16 on GPUs alone.

    One matrix after the other, its small kernels are a third of a training step of Particle Transformer on a GPU; and
    few CPUs multiply bfloat16 as fast as float32.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step; a parameter without a gradient stays as it is."""
        alike: dict[tuple[torch.Size, torch.device], list[tuple[nn.Parameter, dict[str, Any]]]] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault((parameter.shape, parameter.device), []).append((parameter, group))
        for (shape, device), members in alike.items():
            parameters: list[Tensor] = [parameter for parameter, _ in members]
            gradients = torch.stack([cast(Tensor, parameter.grad) for parameter in parameters])
            for parameter in parameters:
                if not self.state[parameter]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            moments = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
            momentum = members[0][1]["momentum"]
            torch._foreach_lerp_(moments, gradients.unbind(), 1 - momentum)
            updates = _orthogonal(gradients.lerp(torch.stack(moments), momentum), members[0][1]["ns_coefficients"])
            # The root mean square of a step of AdamW is about 0.2.
            rates = [-0.2 * math.sqrt(max(shape)) * group["lr"] for _, group in members]
            torch._foreach_mul_(parameters, [1 - group["lr"] * group["weight_decay"] for _, group in members])
            scale = torch.tensor(rates, dtype=gradients.dtype).to(device, non_blocking=True)
            torch._foreach_add_(parameters, list((updates * scale.view(-1, 1, 1)).unbind()))


def _orthogonal(x: Tensor, coefficients: tuple[float, float, float], steps: int = 5) -> Tensor:
    """(n, a, b) matrices → close ones with singular values near 1, by the quintic iteration of Newton and Schulz."""
    a, b, c = coefficients
    wide = x if x.shape[1] <= x.shape[2] else x.mT
    if x.is_cuda:
        wide = wide.bfloat16()
    wide = wide / torch.linalg.matrix_norm(wide, keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return (wide if x.shape[1] <= x.shape[2] else wide.mT).to(x.dtype)


class _MuonAndAdamW(Optimizer):
    """Muon for the matrices of the blocks of an encoder, AdamW for all other parameters, as one optimiser.

    The updates of Muon are scaled to the root mean square of AdamW's (arXiv 2502.16982), so that both share one
    learning rate and weight decay.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float, momentum: float = 0.95
    ) -> None:
        matrices: list[dict[str, Any]] = []
        others: list[dict[str, Any]] = []
        for group in groups:
            split: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
            for parameter in group["params"]:
                is_matrix = parameter.ndim == 2 and min(parameter.shape) > 1
                split[not (is_matrix and group["name"].startswith("block "))].append(parameter)
            for kind, parameters, name in zip((matrices, others), split, (", matrices", ""), strict=True):
                if parameters:
                    kind.append({**group, "params": parameters, "name": group["name"] + name})
        self._parts: list[Optimizer] = []
        if matrices:
            self._parts.append(_StackedMuon(matrices, lr=lr, momentum=momentum))
        if others:
            self._parts.append(AdamW(others, lr=lr, betas=betas, eps=eps))
        super().__init__([group for part in self._parts for group in part.param_groups], {"lr": lr})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Both optimisers; the closure, if there is one, is called once before."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        first = 0
        for part in self._parts:
            # Groups and state are this optimiser's: they are other objects after a state was loaded.
            last = first + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[first:last], self.state
            part.step()
            first = last
        return loss
