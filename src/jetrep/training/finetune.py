"""The verb `finetune`: a tagger from a pretrained encoder (LP-FT) or from scratch."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from jetrep.encoders.base import Pooling
from jetrep.encoders.build import EncoderConfig
from jetrep.encoders.transformer import SIZES
from jetrep.errors import InputError, at_least
from jetrep.features import FeatureConfig, Features
from jetrep.jets import Jets
from jetrep.model import ClassifierConfig, JetModel, ModelConfig
from jetrep.training.batches import LoadingConfig
from jetrep.training.checkpoint import load_model, weights_hash
from jetrep.training.classifier import train_classifier
from jetrep.training.data import load_jets
from jetrep.training.devices import device_for
from jetrep.training.engine import EngineConfig, OptimizerConfig
from jetrep.training.linear_probe import fit_head
from jetrep.training.run import RunFolder, run_settings
from jetrep.training.sampling import class_weights

__all__ = ["finetune", "stratified_subset"]


def finetune(
    data: list[Path],
    *,
    out: Path,
    from_run: Path | Literal["none"] = "none",
    encoder: EncoderConfig = SIZES["laptop"],
    features: FeatureConfig = FeatureConfig(),
    head: ClassifierConfig = ClassifierConfig(),
    pooling: Pooling = "cls+mean",
    n_subjets: int = 0,
    max_particles: int | None = None,
    n_labels: int | None = None,
    validation: float = 0.15,
    freeze: bool = False,
    encoder_lr: float = 0.1,
    optimizer: OptimizerConfig = OptimizerConfig(),
    epochs: int = 20,
    patience: int = 5,
    batch_size: int = 128,
    classes: list[str] | None = None,
    max_jets: int | None = None,
    loading: LoadingConfig = LoadingConfig(),
    seed: int = 0,
    engine: EngineConfig = EngineConfig(),
    overwrite: bool = False,
    quiet: bool = False,
) -> Path:
    """Train a tagger on labelled jets, from a pretrained encoder or from scratch.

    A pretrained encoder is fine-tuned in two phases (LP-FT, arXiv 2202.10054): the head is trained to convergence on
    the frozen encoder, then everything is trained, the encoder more slowly. The epoch with the smallest
    validation loss is kept. Classes are weighted so that each counts the same, however often its jets are shown.

    Args:
        data: stores with labelled jets.
        out: folder of the run.
        from_run: folder of a pretrained run, or "none" for supervised training from scratch. Also written --from.
        encoder: architecture, for training from scratch; otherwise that of the pretrained run is used.
        features: features, for training from scratch; otherwise those of the pretrained run are used.
        head: classifier head; without hidden layers it is linear.
        pooling: what the head sees: class token, mean over particles, or both.
        n_subjets: show each jet as this many kT subjets; 0 shows all particles.
        max_particles: keep this many leading particles of each jet; all by default.
        n_labels: use this many labelled jets (training and validation together), drawn by class and seed, all by
            default; a smaller number of the same seed is a subset of a larger one.
        validation: fraction of the labelled jets held out to choose the epoch.
        freeze: train the head only.
        encoder_lr: learning rate of a pretrained encoder, as a fraction of the head's.
        optimizer: optimiser and its schedule.
        epochs: passes over the training jets in the second phase.
        patience: stop after this many epochs without a smaller validation loss.
        batch_size: jets per step, over all devices.
        classes: use only jets of these classes.
        max_jets: read at most this many jets, the first of each store; all by default.
        loading: how training jets are shuffled, sampled and padded in the second phase, such as --loading.balance
            classes. Weights of classes stay those that are left to do: none, if batches are balanced already. Jets are
            in memory, as one window.
        seed: determines initial weights, subsets, the held-out jets and batches.
        engine: hardware, precision and logs.
        overwrite: start anew even if OUT holds another run.
        quiet: show no progress.

    Returns:
        The folder of the run.
    """
    settings = run_settings("finetune", locals())
    if loading == LoadingConfig():
        del settings["loading"]  # runs from before there was this option are still the same runs
    at_least(1, epochs=epochs, batch_size=batch_size, patience=patience)
    at_least(0, encoder_lr=encoder_lr, seed=seed)
    if not 0 < validation < 1:
        raise InputError(f"is {validation}", field="validation", remedy="give a fraction between 0 and 1")
    pretrained = None if str(from_run) == "none" else Path(from_run)
    if pretrained is not None:
        settings["from_weights"] = weights_hash(pretrained)
    if freeze and pretrained is None:
        raise InputError(
            "there is no pretrained encoder to freeze", field="freeze", remedy="give --from RUN, or leave out --freeze"
        )
    run = RunFolder(out, settings, overwrite=overwrite)
    if run.finished:
        Console(stderr=True, quiet=quiet).print(f"{out}: already trained with these settings")
        return out
    start = time.monotonic()
    jets = load_jets(data, classes=classes, max_jets=max_jets, labelled=True)
    if n_labels is not None:
        jets = jets[stratified_subset(jets.truth, n_labels, seed)]
    if pretrained is None:
        # Initial weights are drawn under the seed of the run, and the caller's random state is left alone.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            source = JetModel(ModelConfig(features, encoder), Features(features, fit_on=jets))
    else:
        source = load_model(pretrained)
    model = _tagger(source, head, pooling, n_subjets, max_particles, jets.classes, seed).to(
        device_for(engine.accelerator)
    )
    train, valid = _split(model.view(jets), validation, seed)
    if pretrained is not None:
        _fit_head(model, train, valid, seed, quiet)
    if not freeze:
        train_classifier(
            model,
            train,
            valid,
            loading=loading,
            encoder_lr=1.0 if pretrained is None else encoder_lr,
            optimizer=optimizer,
            epochs=epochs,
            patience=patience,
            batch_size=batch_size,
            run=run,
            engine=engine,
            seed=seed,
            quiet=quiet,
        )
    seconds = round(time.monotonic() - start, 1)
    run.finish(model, {"n_train": len(train), "n_valid": len(valid), "seconds": seconds})
    return out


def stratified_subset(labels: NDArray[np.int64], n: int | None, seed: int) -> NDArray[np.int64]:
    """Rows of ``n`` labelled jets in which every class keeps its share, in a fixed random order of the seed.

    Subsets of one seed are nested: each is the beginning of every larger one, up to the rounding of the shares.

    Raises:
        InputError: if there are fewer than ``n`` jets, or ``n`` is below one.
    """
    if n is None:
        return np.arange(len(labels))
    at_least(1, n_labels=n)
    if n > len(labels):
        raise InputError(f"{len(labels)} labelled jets, fewer than {n}", field="n_labels", remedy="ask for fewer")
    order = np.random.default_rng((seed, 1)).permutation(len(labels))
    # Within each class, the position of a jet as a fraction: taking the smallest keeps all shares equal.
    fraction = np.empty(len(labels))
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        fraction[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return order[np.argsort(fraction[order], kind="stable")[:n]]


def _split(jets: Jets, fraction: float, seed: int) -> tuple[Jets, Jets]:
    """Training and validation jets, each class in the same share."""
    n_classes = len(np.unique(jets.truth))
    if n_classes < 2:
        raise InputError("all jets are of one class", field="label", remedy="give jets of at least two classes")
    held_out = stratified_subset(jets.truth, max(1, round(fraction * len(jets))), seed)
    keep = np.ones(len(jets), np.bool_)
    keep[held_out] = False
    train, valid = jets[keep], jets[np.sort(held_out)]
    for part, name in ((train, "training"), (valid, "validation")):
        if len(np.unique(part.truth)) < n_classes:
            raise InputError(f"a class is absent from the {name} jets", field="label", remedy="give more jets")
    return train, valid


def _tagger(
    source: JetModel,
    head: ClassifierConfig,
    pooling: Pooling,
    n_subjets: int,
    max_particles: int | None,
    classes: tuple[str, ...],
    seed: int,
) -> JetModel:
    """A classifier with a new head on the encoder of ``source``."""
    config = replace(
        source.config,
        head=head,
        pooling=pooling,
        n_subjets=n_subjets,
        max_particles=max_particles if max_particles is not None else source.config.max_particles,
        classes=classes,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return JetModel(config, source.features, source.encoder)


def _fit_head(model: JetModel, train: Jets, valid: Jets, seed: int, quiet: bool) -> None:
    """First phase of LP-FT."""
    assert model.head is not None
    parts = []
    for jets in (train, valid):
        embedding = torch.from_numpy(model.embed(jets, quiet=quiet))
        parts.append((embedding, torch.from_numpy(jets.truth)))
    device = next(model.parameters()).device
    model.head.cpu()  # so small that a GPU would only wait
    fit_head(model.head, parts[0], parts[1], class_weights=class_weights(train), seed=seed)
    model.head.to(device)
