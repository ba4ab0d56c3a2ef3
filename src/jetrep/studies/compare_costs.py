"""What learning costs: parameters, and floating-point operations counted on one batch."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from jetrep.encoders.build import build_encoder
from jetrep.errors import InputError
from jetrep.features import FEATURE_SETS, Features
from jetrep.jets import JetBatch
from jetrep.model import JetModel, ModelConfig
from jetrep.objectives.base import Objective
from jetrep.objectives.build import ObjectiveConfig, build_objective, needs_of
from jetrep.objectives.masked import MaskedParticlesConfig
from jetrep.objectives.next_token import NextTokenConfig
from jetrep.objectives.supervised import Supervised
from jetrep.objectives.tokenizer import VQTokenizer
from jetrep.training.batches import ShuffledBatches
from jetrep.training.data import open_pool
from jetrep.training.pretrain import initial_encoder

if TYPE_CHECKING:
    from jetrep.studies.compare_study import Row, Study

__all__ = ["parameters_of", "step_flops", "steps_of"]

_SAMPLE = 2_000
"""Jets that features and tokens are fitted to; the count does not depend on them."""


def parameters_of(row: Row) -> int:
    """Number of parameters of the encoder of a row."""
    with torch.random.fork_rng(devices=[]):
        encoder = build_encoder(row.encoder, len(FEATURE_SETS[row.features.names]))
    return sum(parameter.numel() for parameter in encoder.parameters())


def step_flops(study: Study, row: Row, what: ObjectiveConfig | Literal["supervised", "forward"]) -> float:
    """FLOPs per jet of one training step, forward and backward, or of encoding one jet ("forward").

    The encoder is that of ``row``; what it learns is ``what``.

    Matrix products, convolutions and attention are counted (2 FLOPs for each multiplication with addition) on the
    first batch of the first seed; what is element by element is not. The optimiser is not counted either.
    """
    return _flops(study, row, what)[0]


def _flops(study: Study, row: Row, what: ObjectiveConfig | Literal["supervised", "forward"]) -> tuple[float, float]:
    """`step_flops`, and the FLOPs of the whole training of a tokeniser, which comes before the first step."""
    supervised = isinstance(what, str)
    needs = None if isinstance(what, str) else needs_of(what)
    labelled = supervised or bool(needs and needs.labels)
    pool = open_pool(
        study.train if labelled else study.unlabelled or study.train,
        labelled=labelled,
        history=bool(needs and needs.history),
        columns=tuple(dict.fromkeys((*row.features.columns, *(needs.columns if needs else ())))),
        max_jets=study.max_jets,
        max_particles=study.max_particles or (needs and needs.max_particles),
    )
    batch = next(ShuffledBatches(pool, study.batch_size, 0, prefetch=0).from_step(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inputs, encoder = initial_encoder(pool, row.features, row.encoder, sample=_SAMPLE)
        objective: Objective
        training = None  # of a tokeniser
        if isinstance(what, str):
            classes, pooling = tuple(study.train_jets.classes), study.finetuning.pooling
            config = ModelConfig(row.features, row.encoder, head=row.head, pooling=pooling, classes=classes)
            objective = Supervised(model := JetModel(config, inputs, encoder))
            if what == "forward":
                with torch.no_grad(), FlopCounterMode(display=False) as counter:
                    # The counter cannot follow a parameter that is the input of a module where nothing is recorded.
                    model.eval().requires_grad_(False).pooled(batch)
                return float(counter.get_total_flops()) / len(batch), 0.0
        else:
            if isinstance(what, MaskedParticlesConfig | NextTokenConfig):  # any tokens will do
                training = what.tokenizer
                what = replace(what, tokenizer=replace(training, steps=1))
            objective = build_objective(what, inputs, encoder, sample=lambda: pool.sample(_SAMPLE))
        with FlopCounterMode(display=False) as counter:
            torch.autograd.backward(objective(batch, 0, 1, torch.Generator().manual_seed(0)).loss)
        once = 0.0
        if training is not None and objective.tokenizer is not None:
            once = _tokenizer_flops(objective.tokenizer, objective.features, batch)
            once *= training.steps * training.batch_size
    return float(counter.get_total_flops()) / len(batch), once


def _tokenizer_flops(tokenizer: VQTokenizer, features: Features, batch: JetBatch) -> float:
    """FLOPs per jet of one step of its training."""
    inputs = features(batch)
    x = inputs.features[..., [features.names.index(name) for name in tokenizer.names]]
    tokenizer.train().requires_grad_(True)
    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward(tokenizer.loss(x, inputs.mask))
    return float(counter.get_total_flops()) / len(batch)


def steps_of(study: Study, row: Row) -> int:
    """Steps of the pretraining of a row, or of its supervised training, within the budget.

    A budget of FLOPs is what supervised training of the common encoder spends in the steps of the budget of steps,
    optimisers aside; the training of a tokeniser is paid from it.

    Raises:
        InputError: if a tokeniser takes all of it.
    """
    if study.budget == "steps":
        return study.steps
    common = replace(row, encoder=study.encoder, features=study.features, head=study.finetuning.head)
    step, once = _flops(study, row, "supervised" if isinstance(row.objective, str) else row.objective)
    budget = study.steps * step_flops(study, common, "supervised") - once / study.batch_size
    if budget <= 0:
        raise InputError(
            f"the tokeniser of '{row.name}' takes all the FLOPs of the budget",
            field="objective.tokenizer.steps",
            remedy="train it for fewer steps, or the encoder for more epochs",
        )
    return max(1, round(budget / step))
