"""`jetrep evaluate` of an autoencoder: reconstruction, anomaly detection and latent, beside baselines of its size."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from jetrep.encoders.autoencoder import Autoencoder
from jetrep.encoders.linear_autoencoders import HardestParticles, LinearLorentz
from jetrep.encoders.lorentz_decoder import LorentzDecoderConfig
from jetrep.errors import InputError
from jetrep.evaluation.comparison import FEATURES, Comparison, reconstruct
from jetrep.evaluation.distances import distribution_distances
from jetrep.evaluation.latent import correlations, latent_quantities, mass_spectra
from jetrep.evaluation.reconstruction import residuals
from jetrep.evaluation.scores import DISTANCES
from jetrep.jets import Jets
from jetrep.physics import fourvector as fv
from jetrep.report.files import replacing
from jetrep.report.measurement import Measurement
from jetrep.report.tables import ResultsTable
from jetrep.studies.anomalies import LATENT, anomaly_tables, score_of
from jetrep.studies.environment import environment
from jetrep.training.autoencoders import load_autoencoder
from jetrep.training.checkpoint import model_record
from jetrep.training.data import data_hashes, load_jets

__all__ = ["REFERENCE_SIZE", "Groups", "baselines", "evaluate_autoencoder", "grouped", "judge"]

REFERENCE_SIZE = 90
"""Numbers of a jet of 30 particles, three for each, to which rates of compression refer."""

_VALIDATION = 4  # every fourth jet of the background
_MIN_DISTRIBUTION = 40


@dataclass(frozen=True)
class Groups:
    """The jets of a store, apart.

    Attributes:
        background: name of the class or classes that the model was trained on, as one; empty if unknown.
        validation: every fourth jet of the background, in the order of the store; they are in no table. None if there
            is nothing to detect.
        tests: the other jets, by class, the background first.
    """

    background: str
    validation: Jets | None
    tests: Mapping[str, Jets]


def evaluate_autoencoder(
    run: Path,
    *,
    on: Sequence[Path],
    out: Path,
    background: str | None = None,
    max_jets: int | None = None,
    with_baselines: bool = True,
    with_figures: bool = True,
    n_bootstrap: int = 200,
    seed: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Judge an autoencoder on one or several stores; see `judge` for what is written, into a folder for each store.

    Args:
        run: folder of a run of `pretrain` with the objective "autoencoder".
        on: the stores; classes that the model was not trained on are signals.
        out: folder for the results; with several stores, each has a folder of its own in it.
        background: class or classes ("g+q") that are no anomalies; by default those that the run was trained on, or
            "qcd" if its jets bore no labels.
        max_jets: use at most this many jets of each store, the first.
        with_baselines: judge the baselines that keep as many numbers, too.
        with_figures: draw the figures.
        n_bootstrap: number of resamples.
        seed: seed of the resamples.
        quiet: show no progress.

    Returns:
        What `judge` returns, by store; also written to evaluation.json.
    """
    model, settings = load_autoencoder(run), dict(model_record(run).get("provenance") or {})
    objective = dict(settings.get("objective") or {})
    slots = int(dict(objective.get("decoder") or {}).get("n_particles") or LorentzDecoderConfig().slots)
    limit = min(settings.get("max_particles") or slots, slots)
    stores = {store.name: store for store in on}
    if len(stores) < len(on):
        stores = {str(store).strip("/.").replace("/", "_"): store for store in on}
    results: dict[str, Any] = {}
    for name, store in stores.items():
        jets, hashes = load_jets([store], max_jets=max_jets), data_hashes([store])
        chosen = _background(background, settings.get("trained_on") or settings.get("classes"), jets, store)
        groups = grouped(jets.leading(limit), chosen, store)
        seen = set(hashes.values()) & set(dict(settings.get("data") or {}).values())
        results[name] = judge(
            model,
            groups,
            out if len(stores) == 1 else out / name,
            loss=objective.get("loss"),
            slots=slots,
            title=f"{run.name} on {name}{', ON WHICH IT WAS TRAINED' if seen else ''}",
            provenance={
                "model": settings,
                "data": hashes,
                "environment": environment(),
                "n_bootstrap": n_bootstrap,
                "seed": seed,
            },
            with_baselines=with_baselines,
            with_figures=with_figures,
            n_bootstrap=n_bootstrap,
            seed=seed,
            quiet=quiet,
        )
    with replacing(out / "evaluation.json") as stream:
        stream.write((json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())
    return results


def _background(wanted: str | None, trained: Sequence[str] | None, jets: Jets, store: Path) -> list[str]:
    """The classes of a store that are no anomalies; none if nobody says which."""
    if wanted is None:
        if trained:
            return [name for name in jets.classes if name in trained]
        return [name for name in jets.classes if name == "qcd"]
    names = wanted.split("+")
    for name in names:
        if name not in jets.classes:
            known = ", ".join(jets.classes) or "none: the jets are unlabelled"
            raise InputError(
                f"there are no jets of class '{name}'", file=store, field="background", remedy=f"known: {known}"
            )
    return names


def grouped(jets: Jets, background: Sequence[str], file: Path) -> Groups:
    """The jets of a store by class; see `Groups`.

    Args:
        jets: of one store.
        background: classes that count as background; none if they are all to be treated alike.
        file: the store, for messages.

    Raises:
        InputError: if there is no jet, or too few of the background for validation and test.
    """
    if not len(jets):
        raise InputError("there are no jets", file=file, remedy="give a store with jets")
    if jets.labels is None:
        return Groups("", None, {"jets": jets})
    names = np.array(jets.classes, dtype=object)[jets.labels]
    is_background = np.isin(names, list(background))
    signals = {name: jets[names == name] for name in jets.classes if (names == name).any() and name not in background}
    if not is_background.any():
        return Groups("", None, signals)
    own = jets[is_background]
    name = "+".join(c for c in jets.classes if c in background and (names == c).any())
    if not signals:
        return Groups(name, None, {name: own})
    if len(own) < 2 * _VALIDATION:
        raise InputError(
            f"{len(own)} jets of {name} are too few to fit and to test scores",
            file=file,
            field="label",
            remedy=f"give {2 * _VALIDATION} or more",
        )
    chosen = np.arange(len(own)) % _VALIDATION == 0
    return Groups(name, own[chosen], {name: own[~chosen]} | signals)


def baselines(size: int, slots: int, fit_on: Jets) -> dict[str, Autoencoder]:
    """What keeps no more numbers than a model, without training: the hardest particles, a linear equivariant map.

    Args:
        size: numbers that the model keeps of a jet.
        slots: particles that come out.
        fit_on: jets that the linear map is fitted to.
    """
    found: dict[str, Autoencoder] = {}
    if k := min(size // 3, slots):
        found[f"{k} hardest particles"] = HardestParticles(k, slots)
    if k := min((size - 1) // 4, slots):
        batch = fit_on[:10_000].batch()
        found[f"{k} linear vectors"] = LinearLorentz(k, slots).fit(batch.p4, batch.mask)
    return found


def judge(
    model: Autoencoder,
    groups: Groups,
    out: Path,
    *,
    loss: str | None,
    slots: int,
    title: str,
    provenance: Mapping[str, Any],
    with_baselines: bool = True,
    with_figures: bool = True,
    n_bootstrap: int = 200,
    seed: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Everything about one model on the jets of one store: tables, figures, and a summary.

    Writes reconstruction, distances, anomaly and decorrelation (.json, .md), latent.json, and the figures images,
    residuals, compression, roc-SIGNAL, latent-masses and latent-correlations.

    Args:
        model: the autoencoder.
        groups: the jets, already cut to what the model takes.
        out: folder.
        loss: on what the model was trained; by it the anomaly score is chosen.
        slots: particles that the baselines may use.
        title: of the tables.
        provenance: what identifies run and data.
        with_baselines: judge the baselines that keep as many numbers, and draw the compression curve, too.
        with_figures: draw the figures.
        n_bootstrap: number of resamples for the errors.
        seed: seed of the resamples.
        quiet: show no progress.

    Returns:
        Size, rate, name of the score, sizes of the baselines, and the tables as JSON.
    """
    fit_on = groups.validation if groups.validation is not None else next(iter(groups.tests.values()))
    models = {"": model} | (baselines(model.size, slots, fit_on) if with_baselines else {})
    everything = {
        name: {kind: reconstruct(m, jets, quiet=quiet) for kind, jets in groups.tests.items()}
        for name, m in models.items()
    }
    own = everything[""]
    size = next(iter(own.values())).numbers.shape[1]
    if size != model.size:
        raise InputError(f"keeps {size} numbers, not {model.size}", field="size", remedy="report this as a bug")
    notes = [f"{size} real numbers are kept of a jet: {size / REFERENCE_SIZE:.1%} of {REFERENCE_SIZE}"]
    if model.conserves:
        notes.append(
            "what comes out is scaled to the momentum kept of the jet, whose mass and momentum are exact by design"
        )
    reference = next(iter(groups.tests))
    bars = {"n_bootstrap": n_bootstrap, "seed": seed}

    cells: dict[str, dict[str, dict[str, Measurement]]] = {}
    spread: dict[str, dict[str, dict[str, Measurement]]] = {}
    for name, comparisons in everything.items():
        for kind, comparison in comparisons.items():
            if name and kind != reference:
                continue
            domain = f"{kind}, {name}" if name else kind
            for quantity, measured in residuals(comparison, **bars).items():
                cells.setdefault(quantity, {})[domain] = measured
            if len(comparison) >= _MIN_DISTRIBUTION:
                for quantity, measured in distribution_distances(comparison, seed=seed).items():
                    spread.setdefault(quantity, {})[domain] = measured
    tables = {
        "reconstruction": ResultsTable.collect(
            f"{title}: residuals", cells, notes=[*notes, *_unmatched(own)], provenance=provenance
        )
    }
    if spread:
        tables["distances"] = ResultsTable.collect(
            f"{title}: distances between distributions",
            spread,
            notes=[*notes, "floor: of true jets from other true jets"],
            provenance=provenance,
        )
    score = ""
    rows: dict[str, NDArray[np.float64]] = {}
    if groups.validation is not None:
        score = score_of(loss, own[reference])
        validation = {name: reconstruct(m, groups.validation, quiet=quiet) for name, m in models.items()}
        rows, found = anomaly_tables(everything, validation, score, quiet=quiet, **bars)
        rule = (
            f"score: {DISTANCES[score]}, the distance of momenta that the training loss is, or is nearest to; "
            "larger = more anomalous; chosen without labels; the others stand beside it",
            f"{LATENT}: distance of what is kept of a jet from the same of background jets",
            f"decorrelated: quantile at equal mass among {len(groups.validation)} validation jets of "
            f"{groups.background}, every fourth in the order of the store, which are not in this table",
        )
        for key, what in (("anomaly", "anomaly detection"), ("decorrelation", "mass of selected background")):
            if found[key]:
                tables[key] = ResultsTable.collect(f"{title}: {what}", found[key], notes=rule, provenance=provenance)
    for key, table in tables.items():
        table.save(out / f"{key}.json")
        table.save(out / f"{key}.md")
    latent = _latent(model, own, out, **bars)
    if with_figures:
        from jetrep.studies.autoencoder_figures import draw_all  # matplotlib takes a second to import

        draw_all(model, own, everything, groups, slots, rows, latent, out)
    if not quiet:
        for table in tables.values():
            table.show()
        Console(stderr=True, highlight=False).print(f"{notes[0]}\nresults and figures: {out}")
    sizes = {name: m.size for name, m in models.items() if name}
    summary = {"size": size, "rate": size / REFERENCE_SIZE, "score": score or None, "sizes": sizes}
    summary["conserves"] = model.conserves
    return summary | {key: table.to_json() for key, table in tables.items()}


def _unmatched(comparisons: Mapping[str, Comparison]) -> list[str]:
    return [
        f"{kind}: {lost} of {len(c.true.particles)} particles lost, {invented} of "
        f"{len(c.reconstructed.particles)} invented"
        for kind, c in comparisons.items()
        if c.pairs is not None
        for lost, invented in [c.unmatched]
    ]


def _latent(
    model: Autoencoder, comparisons: Mapping[str, Comparison], out: Path, *, n_bootstrap: int, seed: int
) -> dict[str, Any]:
    """Correlations on the first class, and spectra of all, as they are written to latent.json."""
    quantities = {kind: latent_quantities(model, c.numbers) for kind, c in comparisons.items()}
    kind, first = next(iter(comparisons.items()))
    found: dict[str, Any] = {"of": kind, "size": first.numbers.shape[1]}
    if len(first) >= 3:
        jet = first.true.p4
        observables = {name: first.true.features[:, k] for k, name in enumerate(FEATURES[:6])}
        observables |= {"eta": fv.eta(jet)} | {name: jet[:, k] for k, name in enumerate(("E", "px", "py", "pz"))}
        table = correlations(quantities[kind], observables, n_bootstrap=n_bootstrap, seed=seed)
        found |= {"rows": list(table.rows), "columns": list(table.columns)}
        found |= {name: _listed(values) for name, values in (("r", table.r), ("error", table.error))}
    found["spectra"] = {
        name: {"edges": edges.tolist(), "jets": {k: n.tolist() for k, n in counts.items()}}
        for name, (edges, counts) in mass_spectra(quantities).items()
    }
    with replacing(out / "latent.json") as stream:
        stream.write((json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
    return found


def _listed(values: NDArray[np.float64]) -> list[list[float | None]]:
    return [[float(x) if np.isfinite(x) else None for x in row] for row in values]
