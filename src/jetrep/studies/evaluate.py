"""The verb `evaluate`: how well a tagger, or an autoencoder, does on one or several stores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from jetrep.errors import InputError, at_least
from jetrep.evaluation.projection import project
from jetrep.evaluation.tagging import discriminant, multiclass_metrics, rejection_curve, rejection_curve_band
from jetrep.jets import Jets
from jetrep.model import JetModel
from jetrep.report.figures import RocCurve, embedding, roc, score_distributions
from jetrep.report.files import check_writable
from jetrep.report.measurement import Measurement
from jetrep.report.style import save
from jetrep.report.tables import ResultsTable
from jetrep.studies.environment import environment
from jetrep.studies.evaluate_autoencoder import evaluate_autoencoder
from jetrep.studies.predictions import write_predictions
from jetrep.studies.testsets import choose_background, load_tests
from jetrep.training.autoencoders import AUTOENCODER
from jetrep.training.checkpoint import load_model, model_record, weights_hash
from jetrep.training.data import data_hashes

__all__ = ["EFFICIENCIES", "draw_embedding", "evaluate"]

# Below a tenth of the signal, rejections rest on a handful of background jets.
EFFICIENCIES = np.linspace(0.1, 1.0, 181)


def evaluate(
    run: Path,
    *,
    on: list[Path],
    out: Path | None = None,
    background: str | None = None,
    max_jets: int | None = None,
    n_bootstrap: int = 200,
    projection: bool = True,
    seed: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Judge a tagger, or an autoencoder, on one or several stores.

    Prints accuracy at 0.5, ROC AUC and background rejection at signal efficiencies 0.3 and 0.5, each with its bootstrap
    error, and writes evaluation.json, a Markdown table, figures (ROC, scores, PCA and t-SNE of the embeddings), and for
    each store a Parquet file with what the tagger says of every jet, beside its label, kinematics and observers.

    Of an autoencoder: residuals of particles and jets, distances between distributions, anomaly scores as they are and
    decorrelated from the jet mass, and what its latent has to do with observables, as tables and figures, beside
    baselines that keep as many numbers. Every fourth jet of the background is for validation and in no table.

    Args:
        run: folder of a fine-tuned run, or of a run with the objective "autoencoder".
        on: labelled stores to judge it on; their classes are matched to those of the tagger by name. Autoencoders take
            unlabelled ones too.
        out: folder for the results; RUN/evaluation by default.
        background: class against which the others are tagged; "qcd" if there is one, else the first class. For an
            autoencoder the class or classes ("g+q") that are no anomalies: those that it was trained on.
        max_jets: use at most this many jets of each store, the first; all by default.
        n_bootstrap: number of resamples for the errors.
        projection: draw the embeddings too (t-SNE takes a minute).
        seed: seed of the resamples and of the projections.
        quiet: show no progress.

    Returns:
        What evaluation.json holds.
    """
    at_least(0, seed=seed)
    at_least(2, n_bootstrap=n_bootstrap)
    if (run / AUTOENCODER).exists():
        out = run / "evaluation" if out is None else out
        check_writable(out)
        return evaluate_autoencoder(
            run,
            on=on,
            out=out,
            background=background,
            max_jets=max_jets,
            n_bootstrap=n_bootstrap,
            seed=seed,
            quiet=quiet,
        )
    model, record = load_model(run, "auto"), model_record(run)
    classes = model.config.classes
    if model.head is None:
        raise InputError("a pretrained encoder, not a tagger", file=run, remedy="run jetrep finetune --from RUN first")
    out = run / "evaluation" if out is None else out
    check_writable(out)
    background = choose_background(background, classes, run)
    tests = load_tests(on, classes, background, max_jets=max_jets)
    probabilities = {domain: model.predict(jets, quiet=quiet) for domain, jets in tests.items()}
    files = _file_names(tests)
    for (domain, jets), store in zip(tests.items(), on, strict=True):
        write_predictions(
            out / "predictions" / files[domain],
            jets,
            classes=classes,
            probabilities=probabilities[domain],
            provenance={"run": run, "weights": weights_hash(run), "data": data_hashes([store])},
        )
    results: dict[str, dict[str, dict[str, Measurement]]] = {}
    for domain, jets in tests.items():
        metrics = multiclass_metrics(
            probabilities[domain],
            jets.truth,
            classes,
            background=classes.index(background),
            n_bootstrap=n_bootstrap,
            seed=seed,
        )
        for signal, measured in metrics.items():
            results.setdefault(f"{signal} against {background}", {})[domain] = measured.measurements()
    table = ResultsTable.collect(
        f"{run.name} on {', '.join(tests)}",
        results,
        provenance={
            "model": record.get("provenance"),
            "data": data_hashes(on),
            "environment": environment(),
            "n_bootstrap": n_bootstrap,
            "seed": seed,
        },
    )
    table.save(out / "evaluation.json")
    table.save(out / "evaluation.md")
    for signal in (name for name in classes if name != background):
        pair = (classes.index(background), classes.index(signal))
        _draw(probabilities, tests, classes, pair, out, "" if len(classes) == 2 else f"-{signal}", n_bootstrap, seed)
    if projection and sum(map(len, tests.values())) >= 3:
        draw_embedding(model, tests, out / "embedding.png", seed=seed, quiet=quiet)
    if not quiet:
        table.show()
        Console(stderr=True, highlight=False).print(f"results and figures: {out}")
    return table.to_json()


def _file_names(domains: Iterable[str]) -> dict[str, str]:
    """A file for each store: its name, or its path where stores share a name, without what no file can be called."""
    files: dict[str, str] = {}
    for domain in domains:
        stem = domain.strip("/.").replace("/", "_") or "store"
        while f"{stem}.parquet" in files.values():
            stem += "_"
        files[domain] = f"{stem}.parquet"
    return files


def _draw(
    probabilities: Mapping[str, NDArray[np.float32]],
    tests: Mapping[str, Jets],
    classes: tuple[str, ...],
    pair: tuple[int, int],
    out: Path,
    suffix: str,
    n_bootstrap: int,
    seed: int,
) -> None:
    """ROC and scores of one signal against the background, on every store that holds both."""
    background, signal = pair
    curves, scores = [], {}
    for domain, jets in tests.items():
        labels = jets.truth
        if not {background, signal} <= set(labels.tolist()):
            continue
        score, truth = discriminant(probabilities[domain], labels, signal=signal, background=background)
        band = rejection_curve_band(score, truth, EFFICIENCIES, n_bootstrap=n_bootstrap, seed=seed)
        curves.append(RocCurve(domain, "", EFFICIENCIES, rejection_curve(score, truth, EFFICIENCIES), *band))
        scores[domain] = (score, truth.astype(int))
    if curves:
        save(roc(curves, signal=classes[signal], background=classes[background]), out / f"roc{suffix}.png")
        names = [classes[background], classes[signal]]
        save(score_distributions(scores, names, label=f"Score of {classes[signal]}"), out / f"scores{suffix}.png")


def draw_embedding(
    model: JetModel, tests: Mapping[str, Jets], file: Path, *, seed: int, n_jets: int = 1500, quiet: bool = False
) -> None:
    """PCA and t-SNE of the embeddings of up to ``n_jets`` jets of each domain, projected together."""
    rng = np.random.default_rng(seed)
    chosen = {name: jets[np.sort(rng.permutation(len(jets))[:n_jets])] for name, jets in tests.items()}
    embeddings = np.concatenate([model.embed(jets, quiet=quiet) for jets in chosen.values()])
    panels = {"PCA": project(embeddings, "pca", seed=seed), "t-SNE": project(embeddings, "tsne", seed=seed)}
    labels = np.concatenate([jets.truth for jets in chosen.values()])
    domains = np.repeat(np.arange(len(chosen)), [len(jets) for jets in chosen.values()])
    classes = next(iter(chosen.values())).classes
    save(embedding(panels, labels, classes, domains, list(chosen)), file)
