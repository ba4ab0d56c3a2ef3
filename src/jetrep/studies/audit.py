"""The verb `audit`: which symmetries a trained model has, and whether those that it claims."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from jetrep.encoders.autoencoder import Autoencoder
from jetrep.encoders.base import Symmetry
from jetrep.errors import InputError, JetrepError, at_least
from jetrep.evaluation.audit import BOOSTS, SymmetryError, audit_covariant, audit_model
from jetrep.model import JetModel
from jetrep.physics.lorentz import boost, random_directions, transform
from jetrep.report.files import check_writable, replacing
from jetrep.studies.environment import environment
from jetrep.training.checkpoint import load_model, weights_hash
from jetrep.training.data import data_hashes, load_jets

__all__ = ["BrokenSymmetryError", "audit", "toy_jets"]

_PARTICLES = 30
_PRECISIONS = (torch.float32, torch.float64)


class BrokenSymmetryError(JetrepError):
    """A symmetry that a model claims does not hold."""


def audit(
    run: Path,
    *,
    on: Path | None = None,
    out: Path | None = None,
    boosts: list[float] | None = None,
    jets: int = 64,
    seed: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """Measure the symmetries of a run, layer by layer, in float32 and float64: boosts, rotations, rotations about the
    beam, order of the particles, padding, infrared and collinear safety.

    Errors are relative, the median over jets, from the momenta to what comes out, normalisation included. The exit code
    is 1 if a symmetry that the model claims does not hold. Writes ``audit.json``, ``audit.md`` and ``audit.png``.

    Args:
        run: folder of a run: pretrained, fine-tuned, imported, or an autoencoder.
        on: store with the jets to use, its first; by default toy jets, massless particles that fly apart isotropically
            in the rest frame of a jet of some 500 GeV.
        out: folder for table and figure; by default "audit" in the folder of the run.
        boosts: Lorentz factors; by default 1.1 to 11013 (cosh 10).
        jets: number of jets.
        seed: seed of toy jets, directions, orders and places.
        quiet: print nothing.

    Returns:
        The record that is written as audit.json.

    Raises:
        BrokenSymmetryError: after table and figure were written.
    """
    at_least(1, jets=jets)
    at_least(0, seed=seed)
    factors = tuple(boosts or BOOSTS)
    for gamma in factors:
        if not 1 <= gamma < math.inf:
            raise InputError(f"{gamma} is no Lorentz factor", field="boosts", remedy="give finite numbers from 1")
    out = out or run / "audit"
    check_writable(out)
    model, autoencoder = load_model(run), _autoencoder(run)
    p4, mask = _jets_for(model, on, jets, seed)
    table: list[SymmetryError] = []
    for dtype in _PRECISIONS:
        table += audit_model(model, p4, mask, dtype=dtype, boosts=factors, seed=seed)
        if autoencoder is not None:
            table += _chain(autoencoder, p4, mask, dtype, factors, seed)
    rows = [(row, row.symmetry in _claims(model, autoencoder, row)) for row in table]
    broken = sorted({row.symmetry for row, claimed in rows if claimed and not row.holds})
    # NaN, of errors and of changes without a parameter, is no JSON.
    record: dict[str, Any] = {
        "run": run.name,
        "weights": weights_hash(run),
        "encoder": model.config.encoder.kind,
        "claimed": sorted({row.symmetry for row, claimed in rows if claimed}),
        "broken": broken,
        "jets": len(mask),
        "data": "toy jets" if on is None else data_hashes([on]),
        "seed": seed,
        "rows": [
            {
                **_finite(asdict(row)),
                "claimed": claimed,
                "tolerance": row.tolerance if claimed else None,
                "holds": row.holds,
            }
            for row, claimed in rows
        ],
        "environment": environment(),
    }
    _save(rows, record, out)
    if not quiet:
        console = Console()
        if not console.is_terminal:
            console.width = max(console.width, 200)
        for dtype in _PRECISIONS:
            console.print(_printed(rows, str(dtype).removeprefix("torch.")))
        console.print(_summary(record))
    if broken:
        raise BrokenSymmetryError(f"{run}: claims {', '.join(broken)}, which does not hold; see {out / 'audit.md'}")
    return record


def toy_jets(counts: Sequence[int], seed: int) -> tuple[Tensor, Tensor]:
    """Jets of massless particles that fly apart isotropically in the rest frame, each jet at γ of 2 to 10.

    Returns:
        (batch, n, 4) float64 momenta in GeV, zero where padded, and (batch, n) bool.
    """
    generator = torch.Generator().manual_seed(seed)
    batch, n = len(counts), max(counts)
    mask = torch.arange(n) < torch.tensor(counts).unsqueeze(1)
    energy = -torch.log1p(-torch.rand(batch, n, dtype=torch.float64, generator=generator)) + 0.01
    energy = energy * mask * (100 / (energy * mask).sum(1, keepdim=True))  # GeV
    direction = random_directions(batch * n, generator).view(batch, n, 3)
    p4 = torch.cat([energy.unsqueeze(-1), energy.unsqueeze(-1) * direction], -1)
    gamma = 2 + 8 * torch.rand(batch, dtype=torch.float64, generator=generator)
    return transform(boost(gamma, random_directions(batch, generator)).unsqueeze(1), p4), mask


def _jets_for(model: JetModel, on: Path | None, n_jets: int, seed: int) -> tuple[Tensor, Tensor]:
    """Float64 momenta and mask of the jets to use, as many particles as the model takes."""
    limits = (model.config.max_particles, model.encoder.most_particles)
    most = min([limit for limit in limits if limit is not None], default=None)
    if on is None:
        n = min(most or _PARTICLES, _PARTICLES)
        counts = np.random.default_rng(seed).integers(min(3, n), n, n_jets, endpoint=True).tolist()
        return toy_jets(counts, seed)
    jets = load_jets([on], max_jets=n_jets)
    jets = jets[jets.counts > 0]
    if not len(jets):
        raise InputError("has no jets with particles", file=on, remedy="give another store")
    batch = (jets if most is None else jets.leading(most)).batch()
    energy, momentum = batch.p4[..., :1].double(), batch.p4[..., 1:].double()
    size = torch.linalg.vector_norm(momentum, dim=-1, keepdim=True)
    # Masses below the rounding of float32 are none: left as they are, they would be masses for float64, or imaginary.
    massless = (energy - size) * (energy + size) <= 16 * torch.finfo(torch.float32).eps * energy.square()
    return torch.cat([torch.where(massless, size, energy), momentum], -1), batch.mask


def _autoencoder(run: Path) -> Autoencoder | None:
    """The autoencoder of a run that has one."""
    if not (run / "autoencoder.json").is_file():
        return None
    from jetrep.training.autoencoders import load_autoencoder

    return load_autoencoder(run)


def _chain(
    autoencoder: Autoencoder, p4: Tensor, mask: Tensor, dtype: torch.dtype, boosts: Sequence[float], seed: int
) -> list[SymmetryError]:
    """From momenta to momenta; the precision of the autoencoder is changed."""
    autoencoder = autoencoder.eval().to(dtype)
    return audit_covariant(
        lambda momenta, real: autoencoder(momenta, real).p4,
        p4,
        mask,
        dtype=dtype,
        boosts=boosts,
        seed=seed,
        layer="chain",
        most_particles=autoencoder.encoder.most_particles,
    )


def _claims(model: JetModel, autoencoder: Autoencoder | None, row: SymmetryError) -> frozenset[Symmetry]:
    """What the model says of the output that a row is about."""
    if row.layer == "chain" and autoencoder is not None:
        return autoencoder.symmetries
    if row.layer == "features":
        return frozenset()  # they claim nothing: an encoder may not even look at them
    claimed = model.encoder.symmetries
    components = {"px", "py"} & set(model.features.names)
    return claimed - {"azimuth"} if components and "rotation" not in claimed else claimed


def _save(rows: Sequence[tuple[SymmetryError, bool]], record: dict[str, Any], out: Path) -> None:
    from jetrep.report.style import save
    from jetrep.report.symmetry import errors_of_boosts

    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    markdown = f"# Symmetries of {record['run']}\n\n"
    panels: dict[str, dict[str, list[float]]] = {}
    for dtype in _PRECISIONS:
        name = str(dtype).removeprefix("torch.")
        heads, cells = _cells(rows, name)
        lines = [["layer", *heads], [":--", *("--:" for _ in heads)], *([label, *cells[label]] for label in cells)]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        markdown += f"## {name}\n\n{table}\n\n"
        panels[name] = {}
        for row, _ in rows:
            if row.symmetry == "boost" and row.dtype == name:
                panels[name].setdefault(_label(row), []).append(row.median)
    gammas = list(dict.fromkeys(row.parameter for row, _ in rows if row.symmetry == "boost"))
    tolerances = {
        name: [r.tolerance for r, _ in rows if r.symmetry == "boost" and r.dtype == name and r.layer == "features"]
        for name in (panels if "boost" in record["claimed"] else ())
    }
    worst = {
        name: {label: np.array(values).reshape(len(gammas), -1).max(1) for label, values in layers.items()}
        for name, layers in panels.items()
    }
    with replacing(out / "audit.json") as stream:
        stream.write(text.encode())
    with replacing(out / "audit.md") as stream:
        stream.write((markdown + _summary(record) + "\n").encode())
    save(errors_of_boosts(worst, gammas, tolerances), out / "audit.png")


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in values.items()}


def _label(row: SymmetryError) -> str:
    """Blocks are told in one line, what comes out at the end by its parts."""
    return f"{row.layer}: {row.output}" if row.layer == "end" else row.layer


def _change(row: SymmetryError) -> str:
    if row.symmetry == "boost":
        return f"γ = {row.parameter:g}"
    return f"{row.symmetry} {row.parameter:g}" if row.symmetry in ("soft", "collinear") else row.symmetry


def _cells(rows: Sequence[tuple[SymmetryError, bool]], dtype: str) -> tuple[list[str], dict[str, list[str]]]:
    """Heads of the columns, one for each change, and the rows of one precision: the worst of the outputs of a layer."""
    chosen = [(row, claimed) for row, claimed in rows if row.dtype == dtype]
    heads = list(dict.fromkeys(_change(row) for row, _ in chosen))
    worst: dict[tuple[str, str], tuple[SymmetryError, bool]] = {}
    for row, claimed in chosen:
        place = (_label(row), _change(row))
        if place not in worst or not row.median <= worst[place][0].median:
            worst[place] = row, claimed
    labels = dict.fromkeys(label for label, _ in worst)
    return heads, {label: [_text(worst.get((label, head))) for head in heads] for label in labels}


def _text(cell: tuple[SymmetryError, bool] | None) -> str:
    if cell is None:
        return "–"
    row, claimed = cell
    return f"{row.median:.0e}" + (" ✓" if claimed and row.holds else " ✗" if claimed else "")


def _printed(rows: Sequence[tuple[SymmetryError, bool]], dtype: str) -> Table:
    heads, cells = _cells(rows, dtype)
    table = Table(title=f"Relative errors, {dtype}", header_style="bold", title_justify="left")
    table.add_column("layer", no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right")
    for label, texts in cells.items():
        table.add_row(label, *texts)
    return table


def _summary(record: dict[str, Any]) -> str:
    claimed = ", ".join(record["claimed"]) or "nothing"
    verdict = f"does not hold: {', '.join(record['broken'])}" if record["broken"] else "all of it holds"
    source = record["data"] if isinstance(record["data"], str) else ", ".join(record["data"])
    return f"Claimed (✓): {claimed}; {verdict}.\nRelative errors, median of {record['jets']} jets ({source})."
