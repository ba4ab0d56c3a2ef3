"""What `jetrep compress` writes: one Parquet file of all numbers, tables of their means over seeds, and curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from jetrep.evaluation.tagging import combine_measurements
from jetrep.report.files import replacing
from jetrep.report.measurement import Measurement
from jetrep.report.tables import ResultsTable
from jetrep.studies.anomalies import LATENT
from jetrep.studies.environment import distinct
from jetrep.studies.evaluate_autoencoder import REFERENCE_SIZE

__all__ = ["Cell", "write_results"]

_RECONSTRUCTION = {
    "pT / jet pT: IQR": ("reconstruction", "particle pT / jet pT", "IQR"),
    "Δη: IQR": ("reconstruction", "particle Δη", "IQR"),
    "Δφ: IQR": ("reconstruction", "particle Δφ", "IQR"),
    "lost particles": ("reconstruction", "lost particles", "mean"),
    "jet mass: median |r|": ("reconstruction", "jet mass, relative", "median |r|"),
    "jet mass: IQR": ("reconstruction", "jet mass, relative", "IQR"),
    "jet pT: IQR": ("reconstruction", "jet pT, relative", "IQR"),
    "energy mover's distance: median": ("reconstruction", "energy mover's distance", "median"),
    "W1 of jet mass [GeV]": ("distances", "W1 jet mass [GeV]", "distance"),
    "FPD": ("distances", "FPD", "distance"),
    "KPD": ("distances", "KPD", "distance"),
}
_RESIDUALS = {
    f"{what} {name}: {metric}": ("reconstruction", f"{what} {name}, relative", metric)
    for what, names in (("particle", ("pT", "η", "φ")), ("jet", ("mass", "pT", "η", "φ")))
    for name in names
    for metric in ("median", "IQR")
}
_FLAT, _ALONE = ", decorrelated", ("jet mass", "multiplicity")
_CURVES = {
    "jet mass: median |r|": ("mass", r"Median $|\delta m / m|$ of jets"),
    "pT / jet pT: IQR": ("particles", r"IQR of particle $p_T$ / jet $p_T$"),
    "energy mover's distance: median": ("emd", "Median energy mover's distance"),
}


@dataclass(frozen=True)
class Cell:
    """One trained and judged model.

    Attributes:
        model: its name.
        n_jets: number of jets it was trained on, None for all.
        seed: of its training.
        content: what the cell wrote.
    """

    model: str
    n_jets: int | None
    seed: int
    content: Mapping[str, Any]


class _Number(NamedTuple):
    """One measurement of one cell; ``model`` is that of the cell, or a baseline that keeps as many numbers."""

    model: str
    of: str
    n_jets: int | None
    seed: int
    store: str
    size: int
    table: str
    row: str
    domain: str
    metric: str
    measurement: Measurement


def _numbers(cells: Sequence[Cell]) -> Iterator[_Number]:
    for cell in cells:
        for store, found in cell.content["stores"].items():
            sizes = {"": int(found["size"]), **found["sizes"]}
            for table in ("reconstruction", "distances", "anomaly", "decorrelation"):
                for row, domains in found.get(table, {}).get("results", {}).items():
                    for domain, metrics in domains.items():
                        # A baseline is named in the domain of residuals, and in the row of scores.
                        label = domain if table in ("reconstruction", "distances") else row
                        baseline = next((name for name in sizes if name and f", {name}" in label), "")
                        for metric, measured in metrics.items():
                            yield _Number(
                                *(baseline or cell.model, cell.model, cell.n_jets, cell.seed, store, sizes[baseline]),
                                *(table, row.replace(f", {baseline}", "") if baseline else row),
                                *(domain.replace(f", {baseline}", "") if baseline else domain, metric),
                                Measurement.from_json(measured),
                            )


def write_results(cells: Sequence[Cell], out: Path, *, title: str, provenance: Mapping[str, Any]) -> list[ResultsTable]:
    """Write results.parquet, tables and figures; see `jetrep.compress`.

    Args:
        cells: all cells.
        out: folder.
        title: of the tables.
        provenance: settings, for the JSON.

    Returns:
        The tables.
    """
    numbers = list(_numbers(cells))
    _write_parquet(numbers, out / "results.parquet")
    stores = list(dict.fromkeys(number.store for number in numbers))
    tables: dict[str, ResultsTable] = {}
    for store in stores:
        suffix, on = ("", "") if len(stores) == 1 else (f"-{store}", f" on {store}")
        own = [number for number in numbers if number.store == store]
        at_full = [number for number in own if number.n_jets is None]
        exact = [cell.model for cell in cells if cell.content["stores"][store]["conserves"]]
        notes = [f"numbers: real numbers kept of a jet; {REFERENCE_SIZE} is what 30 massless particles have"]
        if exact:
            names = ", ".join(dict.fromkeys(exact))
            notes.append(
                f"scaled to the momentum kept of the jet, whose mass and momentum are exact by design: {names}"
            )
        for name, columns, what in (
            ("reconstruction", _RECONSTRUCTION, "reconstruction"),
            ("residuals", _RESIDUALS, "residuals, (reconstructed − true)/true"),
        ):
            tables[f"{name}{suffix}"] = _reconstruction(at_full, columns, f"{title}{on}: {what}", notes)
        if any(number.table == "anomaly" for number in own):
            tables[f"anomaly{suffix}"] = _anomaly(at_full, f"{title}{on}: anomaly detection")
            tables[f"scores{suffix}"] = _all_scores(at_full, f"{title}{on}: all scores, all signals together")
        _draw(tables[f"reconstruction{suffix}"], at_full, out, suffix)
        if any(number.n_jets for number in own):
            sizes = {cell.n_jets: int(cell.content["n_jets"]) for cell in cells}
            tables[f"data-efficiency{suffix}"] = _data_efficiency(
                own, sizes, f"{title}{on}: jets to train on", out, suffix
            )
    tables["costs"] = _costs(cells, f"{title}: costs")
    extra = {**provenance, "environments": distinct(cell.content.get("environment") for cell in cells)}
    for name, table in tables.items():
        table = ResultsTable(**{**vars(table), "provenance": extra})
        table.save(out / f"{name}.json")
        table.save(out / f"{name}.md")
    return list(tables.values())


def _write_parquet(numbers: Sequence[_Number], file: Path) -> None:
    columns = {name: [getattr(number, name) for number in numbers] for name in _Number._fields[:-1]}
    measured = ("value", "error", "low", "high", "n", "limit")
    columns |= {name: [getattr(number.measurement, name) for number in numbers] for name in measured}
    with replacing(file) as stream:
        pq.write_table(pa.table(columns), stream)


def _mean(numbers: Sequence[_Number]) -> Measurement | None:
    """Mean and spread over seeds. An untrained baseline is the same in every cell that it stands beside."""
    by_seed = {number.seed: number.measurement for number in numbers}
    baseline = bool(numbers) and numbers[0].model != numbers[0].of
    values = list(by_seed.values())[:1] if baseline else list(by_seed.values())
    return combine_measurements(values) if values else None


def _models(numbers: Sequence[_Number]) -> list[str]:
    """Models in the order in which they come, then baselines by what they keep."""
    own = dict.fromkeys(n.model for n in numbers if n.model == n.of)
    others = {n.model: (n.model.split(" ", 1)[-1], n.size) for n in numbers if n.model not in own}
    return [*own, *sorted(others, key=lambda name: others[name])]


def _reconstruction(
    numbers: Sequence[_Number], columns: Mapping[str, tuple[str, str, str]], title: str, notes: Sequence[str]
) -> ResultsTable:
    reference = numbers[0].domain if numbers else ""
    results: dict[str, dict[str, dict[str, Measurement]]] = {}
    for model in _models(numbers):
        own = [n for n in numbers if n.model == model and n.domain == reference]
        if not own:
            continue
        size = float(own[0].size)
        cells = {"numbers": Measurement(size, 0.0, size, size)}
        for heading, key in columns.items():
            found = _mean([n for n in own if (n.table, n.row, n.metric) == key])
            if found is not None:
                cells[heading] = found
        results.setdefault(model, {})[reference] = cells
    return ResultsTable.collect(title, results, notes=notes)


def _anomaly(numbers: Sequence[_Number], title: str) -> ResultsTable:
    """The score of each model and baseline and its distance in the latent, as they are and decorrelated; mass and
    multiplicity once.
    """
    results: dict[str, dict[str, dict[str, Measurement]]] = {}
    for model, row, found in _scores(numbers):
        flat = row.endswith(_FLAT)
        plain = row.removesuffix(_FLAT)
        if plain in _ALONE:
            name = plain
        elif plain == LATENT:
            name = f"{model}, latent"
        elif "(score)" in plain or found[0].model != found[0].of:
            name = model
        else:
            continue  # another distance of a model
        for domain in dict.fromkeys(n.domain for n in found):
            for metric in dict.fromkeys(n.metric for n in found):
                mean = _mean([n for n in found if (n.domain, n.metric) == (domain, metric)])
                if mean is not None:
                    results.setdefault(name + flat * _FLAT, {}).setdefault(domain, {}).setdefault(metric, mean)
    last = [name for name in results if name.startswith(_ALONE)]
    ordered = {name: results[name] for name in (*(n for n in results if n not in last), *last)}
    notes = (
        "score: the distance that the model was trained on, larger = more anomalous; latent: distance from background "
        "jets in what is kept; decorrelated: quantile among background jets of equal mass; equal mass: signal jets "
        "weighted to the masses of the background",
    )
    return ResultsTable.collect(title, ordered, notes=notes)


def _scores(numbers: Sequence[_Number]) -> Iterator[tuple[str, str, list[_Number]]]:
    """Model, name of the score, and its numbers."""
    scores = [n for n in numbers if n.table == "anomaly"]
    for model in _models(scores):
        own = [n for n in scores if n.model == model]
        for row in dict.fromkeys(n.row for n in own):
            yield model, row, [n for n in own if n.row == row]


def _all_scores(numbers: Sequence[_Number], title: str) -> ResultsTable:
    """AUC of every distance of every model, of all signals together, as it is and at equal mass."""
    results: dict[str, dict[str, dict[str, Measurement]]] = {}
    for model, row, found in _scores(numbers):
        if row.endswith(_FLAT) or row in _ALONE:
            continue
        name = row.replace(" (score)", "")
        for metric, heading in (("auc", name), ("auc at equal mass", f"{name}, equal mass")):
            # One signal alone is all there are.
            domains = {n.domain for n in found}
            domain = "combined" if "combined" in domains else next(iter(domains))
            mean = _mean([n for n in found if (n.domain, n.metric) == (domain, metric)])
            if mean is not None:
                results.setdefault(model, {}).setdefault("", {})[heading] = mean
    notes = ("no score is chosen by this table: that of each model is the distance that it was trained on",)
    return ResultsTable.collect(title, results, notes=notes)


def _costs(cells: Sequence[Cell], title: str) -> ResultsTable:
    results: dict[str, dict[str, dict[str, Measurement]]] = {}
    for model in dict.fromkeys(cell.model for cell in cells):
        costs = [cell.content["costs"] for cell in cells if cell.model == model and cell.n_jets is None]
        for key in ("parameters", "seconds"):
            values = [float(cost[key]) for cost in costs]
            found = combine_measurements([Measurement(v, 0.0, v, v) for v in values])
            results.setdefault(model, {}).setdefault("", {})[key] = found
    return ResultsTable.collect(title, results, notes=("seconds: wall time of the training",))


def _family(model: str) -> str:
    """The curve that a model is a point of: its name without the number before or after it."""
    first, _, rest = model.partition(" ")
    if first.isdigit():
        return rest
    head, _, last = model.rpartition(" ")
    return head if head and last.isdigit() else model


def _draw(table: ResultsTable, numbers: Sequence[_Number], out: Path, suffix: str) -> None:
    from jetrep.report.reconstruction_figures import curves
    from jetrep.report.style import save

    sizes = {n.model: n.size for n in numbers}
    for metric, (name, label) in _CURVES.items():
        lines: dict[str, list[tuple[float, Measurement]]] = {}
        for (model, _, heading), measured in table.cells.items():
            if heading == metric:
                lines.setdefault(_family(model), []).append((sizes[model] / REFERENCE_SIZE, measured))
        if lines:
            save(curves(lines, y_label=label), out / f"compression-{name}{suffix}.png")


def _data_efficiency(
    numbers: Sequence[_Number], sizes: Mapping[int | None, int], title: str, out: Path, suffix: str
) -> ResultsTable:
    from jetrep.report.reconstruction_figures import curves
    from jetrep.report.style import save

    reference = numbers[0].domain
    fewer = {n.model for n in numbers if n.n_jets}
    results: dict[str, dict[str, dict[str, Measurement]]] = {}
    for metric, (name, label) in _CURVES.items():
        lines: dict[str, list[tuple[float, Measurement]]] = {}
        for model in (m for m in _models(numbers) if m in fewer):
            for n_jets, size in sorted(sizes.items(), key=lambda item: item[1]):
                chosen = (
                    n
                    for n in numbers
                    if (n.model, n.of, n.n_jets, n.domain) == (model, model, n_jets, reference)
                    and (n.table, n.row, n.metric) == _RECONSTRUCTION[metric]
                )
                found = _mean(list(chosen))
                if found is not None:
                    lines.setdefault(model, []).append((float(size), found))
                    results.setdefault(model, {}).setdefault(f"{size} jets", {})[metric] = found
        if lines:
            figure = curves(lines, x_label="Jets to train on", y_label=label, log_x=True)
            save(figure, out / f"data-efficiency-{name}{suffix}.png")
    return ResultsTable.collect(title, results)
