"""The verb `probe`: what a frozen representation knows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from jetrep.encoders.build import build_encoder
from jetrep.errors import InputError, at_least
from jetrep.evaluation.probes import PROBES, observables
from jetrep.evaluation.probes import probe as probe_scores
from jetrep.evaluation.tagging import multiclass_metrics
from jetrep.jets import Jets
from jetrep.model import JetModel
from jetrep.report.files import check_writable
from jetrep.report.measurement import Measurement
from jetrep.report.tables import ResultsTable
from jetrep.studies.environment import environment
from jetrep.studies.testsets import choose_background, load_tests
from jetrep.training.checkpoint import load_model
from jetrep.training.data import data_hashes, load_jets
from jetrep.training.finetune import stratified_subset

__all__ = ["probe", "randomized"]


def probe(
    run: Path,
    *,
    train: list[Path],
    on: list[Path],
    out: Path | None = None,
    kinds: list[Literal["knn", "logistic", "bdt"]] | None = None,
    n_labels: int | None = None,
    n_subjets: int = 0,
    max_particles: int | None = None,
    baselines: bool = True,
    background: str | None = None,
    n_bootstrap: int = 200,
    seed: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train simple classifiers on the frozen embeddings of a run, and judge them on one or several stores.

    Args:
        run: folder of a pretrained or fine-tuned run.
        train: labelled stores to train the probes on.
        on: labelled stores to judge them on.
        out: file for the table, .json or .md; none by default.
        kinds: probes: knn (20 neighbours), logistic, bdt (boosted trees); all by default.
        n_labels: train on this many jets, drawn by class and seed; all by default.
        n_subjets: embed each jet as this many kT subjets; 0 embeds all particles.
        max_particles: keep this many leading particles of each jet; all by default.
        baselines: also probe the same encoder with random weights, and (jet mass, multiplicity) alone.
        background: class against which the others are tagged; "qcd" if there is one, else the first class.
        n_bootstrap: number of resamples for the errors.
        seed: seed of subsets, probes, random weights and resamples.
        quiet: print nothing.

    Returns:
        The table as JSON.
    """
    at_least(0, seed=seed)
    at_least(2, n_bootstrap=n_bootstrap)
    if out is not None:
        if out.suffix not in (".json", ".md"):
            raise InputError(f"no table format is called '{out.suffix}'", file=out, remedy="use .json or .md")
        check_writable(out.parent)
    model = load_model(run, "auto").with_view(n_subjets, max_particles)
    train_jets = load_jets(train, labelled=True)
    train_jets = train_jets[stratified_subset(train_jets.truth, n_labels, seed)]
    classes = train_jets.classes
    background = choose_background(background, classes, train[0])
    tests = load_tests(on, classes, background)
    sources: dict[str, Callable[[Jets], NDArray[Any]]] = {"frozen": model.embed}
    if baselines:
        sources |= {"random weights": randomized(model, seed).embed, "mass, multiplicity": observables}
    results: dict[str, dict[str, dict[str, Measurement]]] = {}
    for source, embedding_of in sources.items():
        train_x = embedding_of(train_jets)
        test_x = {domain: embedding_of(jets) for domain, jets in tests.items()}
        for kind in kinds or PROBES:
            for domain, jets in tests.items():
                scores = probe_scores(train_x, train_jets.truth, test_x[domain], kind, seed=seed)
                probabilities = scores if scores.ndim == 2 else np.stack([1 - scores, scores], -1)
                metrics = multiclass_metrics(
                    probabilities,
                    jets.truth,
                    classes=classes,
                    background=classes.index(background),
                    n_bootstrap=n_bootstrap,
                    seed=seed,
                )
                for signal, measured in metrics.items():
                    name = f"{source}, {kind}" + (f", {signal}" if len(metrics) > 1 else "")
                    results.setdefault(name, {})[domain] = measured.measurements()
    table = ResultsTable.collect(
        f"probes of {run.name}, {len(train_jets)} labelled jets",
        results,
        provenance={
            "data": {"train": data_hashes(train), "on": data_hashes(on)},
            "environment": environment(),
            "n_subjets": n_subjets,
            "max_particles": max_particles,
            "seed": seed,
        },
    )
    if out is not None:
        table.save(out)
    if not quiet:
        table.show()
    return table.to_json()


def randomized(model: JetModel, seed: int) -> JetModel:
    """The same architecture and features with new random weights: the baseline of every learned representation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = build_encoder(model.config.encoder, len(model.features.names))
    return JetModel(model.config, model.features, encoder).to(next(model.parameters()).device).eval()
