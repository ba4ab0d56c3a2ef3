"""The verb `pretrain`: learn a representation from jets without their labels."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from rich.console import Console

from jetrep.encoders.base import JetEncoder
from jetrep.encoders.build import EncoderConfig, build_encoder
from jetrep.encoders.transformer import SIZES
from jetrep.errors import at_least
from jetrep.features import FeatureConfig, Features
from jetrep.model import JetModel, ModelConfig
from jetrep.objectives.autoencoding import Autoencoding
from jetrep.objectives.build import ObjectiveConfig, build_objective, check_needs, sized
from jetrep.objectives.self_distillation import PRESETS
from jetrep.store.gather import JetPool
from jetrep.training.autoencoders import save_autoencoder
from jetrep.training.batches import LoadingConfig, ShuffledBatches
from jetrep.training.checkpoint import load_tokenizer, save_tokenizer, tokenizer_record
from jetrep.training.data import classes_of, open_pool
from jetrep.training.engine import EngineConfig, OptimizerConfig, fit
from jetrep.training.run import RunFolder, run_settings

__all__ = ["initial_encoder", "pretrain"]


def pretrain(
    data: list[Path],
    *,
    out: Path,
    features: FeatureConfig = FeatureConfig(),
    encoder: EncoderConfig = SIZES["laptop"],
    objective: ObjectiveConfig = PRESETS["small_batch"],
    optimizer: OptimizerConfig = OptimizerConfig(lr=3e-3, layer_decay=0.9),
    epochs: int = 10,
    steps: int | None = None,
    batch_size: int = 128,
    classes: list[str] | None = None,
    max_jets: int | None = None,
    max_particles: int | None = None,
    loading: LoadingConfig = LoadingConfig(),
    tokenizer_from: Path | None = None,
    seed: int = 0,
    engine: EngineConfig = EngineConfig(),
    overwrite: bool = False,
    quiet: bool = False,
) -> Path:
    """Learn a representation of jets, without labels unless the objective needs them.

    Writes to the folder OUT: model.safetensors and model.json (the encoder, for finetune, probe and embed),
    metrics.jsonl and training.png, TensorBoard files, a tokeniser or a whole autoencoder if the objective has one, and
    the state from which the same command resumes if it was stopped.

    Args:
        data: stores with the jets; labels are used by the objective that needs them, supcon, and by sampling by class.
        out: folder of the run.
        features: particle features and their standardisation.
        encoder: architecture.
        objective: what is learned; RINO's self-distillation between renormalisation-group views by default.
        optimizer: the optimiser and its schedule.
        epochs: passes over the jets.
        steps: train for this many steps instead of a number of epochs.
        batch_size: jets per step, over all devices.
        classes: use only jets of these classes, such as qcd; all by default.
        max_jets: use at most this many jets, the first of each store; all by default.
        max_particles: keep this many leading particles of each jet; by default all, or as many as the objective takes.
        loading: how jets are shuffled, sampled and padded. They stay on disk but for two windows at a time.
        tokenizer_from: folder of a pretraining whose tokeniser is used, instead of a new one. Its features must be
            those of this run; of objective.tokenizer only n_codes counts, which must be its own for next_token.
        seed: determines initial weights, batches, views and masks.
        engine: hardware, precision and logs.
        overwrite: start anew even if OUT holds another run.
        quiet: show no progress.

    Returns:
        The folder of the run.
    """
    objective = sized(objective, max_particles)
    settings = run_settings("pretrain", locals())
    if steps is None:
        del settings["steps"]  # runs from before there was this option are still the same runs
    if tokenizer_from is None:
        del settings["tokenizer_from"]
    else:
        settings["tokenizer_weights"] = tokenizer_record(tokenizer_from)["weights"]
    at_least(1, epochs=epochs, steps=steps, batch_size=batch_size, max_particles=max_particles)
    at_least(0, seed=seed)
    needs = check_needs(objective, features, max_particles)
    max_particles = max_particles or needs.max_particles
    run = RunFolder(out, settings, overwrite=overwrite)
    if run.finished:
        Console(stderr=True, quiet=quiet).print(f"{out}: already trained with these settings")
        return out
    jets = open_pool(
        data,
        classes=classes,
        max_jets=max_jets,
        labelled=True if needs.labels else None if classes or loading.balance.startswith("classes") else False,
        history=needs.history,
        columns=tuple(dict.fromkeys((*features.columns, *needs.columns))),
        max_particles=max_particles,
    )
    weights = loading.weights(jets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inputs, network = initial_encoder(jets, features, encoder)
        tokenizer = None if tokenizer_from is None else load_tokenizer(tokenizer_from, inputs)
        module = build_objective(
            objective, inputs, network, sample=lambda: jets.sample(20_000), tokenizer=tokenizer, seed=seed
        )
    batches = ShuffledBatches(jets, batch_size, seed, loading=loading, weights=weights)
    start = time.monotonic()
    fit(
        module,
        batches,
        run=run,
        total_steps=steps or epochs * batches.steps_per_epoch,
        optimizer=optimizer,
        engine=engine,
        seed=seed,
        description="pretrain",
        quiet=quiet,
    )
    model = JetModel(
        ModelConfig(features=features, encoder=encoder, max_particles=max_particles),
        module.features,
        module.encoder,
    )
    seconds = round(time.monotonic() - start, 1)
    if run.writes and module.tokenizer is not None:
        save_tokenizer(module.tokenizer, module.features, jets.sample(2_000), out)
    if run.writes and isinstance(module, Autoencoding):
        save_autoencoder(module, out)
    run.finish(model, {"n_jets": len(jets), "trained_on": classes_of(data, classes), "seconds": seconds})
    run.draw_curves()
    return out


def initial_encoder(
    jets: JetPool, features: FeatureConfig, encoder: EncoderConfig, *, sample: int = 20_000
) -> tuple[Features, JetEncoder]:
    """Features and encoder as a pretraining begins with them; weights are drawn from torch's global generator.

    Args:
        jets: those to pretrain on.
        features: feature set and standardisation.
        encoder: kind and shape.
        sample: fit a standardisation by "data" to this many of the jets.
    """
    inputs = Features(features, fit_on=jets.sample(sample) if features.standardization == "data" else None)
    return inputs, build_encoder(encoder, len(inputs.names))
