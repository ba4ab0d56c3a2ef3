"""The figures of `jetrep evaluate` of an autoencoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jetrep.encoders.autoencoder import Autoencoder
from jetrep.encoders.linear_autoencoders import HardestParticles, LinearLorentz
from jetrep.evaluation.comparison import Comparison, reconstruct
from jetrep.evaluation.latent import latent_quantities, signed_mass
from jetrep.evaluation.reconstruction import jet_residuals, particle_residuals, residuals
from jetrep.evaluation.scores import HALF_WIDTH
from jetrep.evaluation.tagging import rejection_curve
from jetrep.report.figures import RocCurve, roc
from jetrep.report.histograms import Distribution, histograms
from jetrep.report.measurement import Measurement
from jetrep.report.reconstruction_figures import correlation_matrix, curves, images, residual_histograms
from jetrep.report.style import save
from jetrep.studies.evaluate_autoencoder import REFERENCE_SIZE, Groups

__all__ = ["draw_all"]

_EFFICIENCIES = np.linspace(0.02, 1.0, 197)
_SHOWN = 2  # single jets
_KEPT = (1, 2, 3, 4, 6, 8, 11, 15, 20, 30, 50)  # particles or vectors of the baselines
_CURVE_JETS = 5000
_PANELS = (
    *("particle pT / jet pT", "particle Δη", "particle Δφ"),
    *("jet mass, relative", "jet pT, relative", "jet Δη", "jet Δφ", "multiplicity"),
)


def draw_all(
    model: Autoencoder,
    own: Mapping[str, Comparison],
    everything: Mapping[str, Mapping[str, Comparison]],
    groups: Groups,
    slots: int,
    scores: Mapping[str, NDArray[np.float64]],
    latent: Mapping[str, Any],
    out: Path,
) -> None:
    """Every figure; those for which there is nothing to draw are left out.

    Args:
        model: the autoencoder.
        own: its comparisons by class.
        everything: those of the model ("") and of baselines.
        groups: the jets.
        slots: particles of the baselines.
        scores: anomaly scores (n_jets,) of all classes by row.
        latent: `latent.json`.
        out: folder.
    """
    first, reference = next(iter(own.items()))
    for kind, comparison in own.items():
        true, other = ({"mean": s.image} for s in (comparison.true, comparison.reconstructed))
        for k in range(min(_SHOWN, len(comparison))):
            true[f"jet {k + 1}"], other[f"jet {k + 1}"] = comparison.true.images[k], comparison.reconstructed.images[k]
        suffix = "" if len(own) == 1 else f"-{_file(kind)}"
        save(images(true, other, half_width=HALF_WIDTH, title=kind), out / f"images{suffix}.png")
    named = {first: reference} | {kind: c for kind, c in own.items() if kind != first}
    named |= {f"{first}, {name}": found[first] for name, found in everything.items() if name}
    values = {
        kind: {n: v for n, (v, _) in (particle_residuals(c) | jet_residuals(c)).items()} for kind, c in named.items()
    }
    panels = {name: {kind: found[name] for kind, found in values.items() if name in found} for name in _PANELS}
    save(residual_histograms(panels), out / "residuals.png")
    if len(everything) > 1:
        _compression(model, reference, groups, slots, out)
    _rocs(own, scores, [name for name in everything if name], out)
    _latent(model, own, latent, out)


def _file(name: str) -> str:
    return name.replace("/", "_")


def _compression(model: Autoencoder, reference: Comparison, groups: Groups, slots: int, out: Path) -> None:
    """Median |δm/m| against the numbers that are kept, beside both baselines at other sizes."""
    jets = next(iter(groups.tests.values()))[:_CURVE_JETS]
    fit_on = (groups.validation if groups.validation is not None else jets)[:_CURVE_JETS].batch()

    def point(m: Autoencoder, comparison: Comparison) -> tuple[float, Measurement] | None:
        measured = residuals(comparison, n_bootstrap=50).get("jet mass, relative")
        return None if measured is None else (m.size / REFERENCE_SIZE, measured["median |r|"])

    lines: dict[str, list[tuple[float, Measurement]]] = {}
    for name, found in (
        ("this model", [(model, reference)]),
        # Whoever keeps all has no error but rounding.
        ("hardest particles", [(HardestParticles(k, slots), None) for k in _KEPT if k < slots]),
        (
            "linear map",
            [(LinearLorentz(k, slots).fit(fit_on.p4, fit_on.mask), None) for k in _KEPT if 4 * k < 3 * slots],
        ),
    ):
        points = [point(m, c if c is not None else reconstruct(m, jets, with_distances=False)) for m, c in found]
        lines[name] = [p for p in points if p is not None]
    if lines["this model"]:
        save(curves(lines), out / "compression.png")


def _rocs(
    own: Mapping[str, Comparison], scores: Mapping[str, NDArray[np.float64]], others: Sequence[str], out: Path
) -> None:
    """A figure for each signal: scores as they are, and decorrelated from the mass, as line styles."""
    kinds = list(own)
    label = np.repeat(np.arange(len(kinds)), [len(c) for c in own.values()])
    for k, signal in enumerate(kinds[1:], start=1):
        chosen = (label == 0) | (label == k)
        truth = (label[chosen] == k).astype(np.int64)
        lines = []
        for row, values in scores.items():
            name = row.removesuffix(", decorrelated")
            # The score and the baselines; other distances of the model are in the table.
            if name.endswith(("(score)", "jet mass", "multiplicity", *others)):
                curve = rejection_curve(values[chosen], truth, _EFFICIENCIES)
                lines.append(RocCurve(name, "as is" if name == row else "decorrelated", _EFFICIENCIES, curve))
        if lines:
            save(roc(lines, signal=signal, background=kinds[0]), out / f"roc-{_file(signal)}.png")


def _latent(model: Autoencoder, own: Mapping[str, Comparison], latent: Mapping[str, Any], out: Path) -> None:
    quantities = {kind: latent_quantities(model, c.numbers) for kind, c in own.items()}
    first = next(iter(quantities.values()))
    squares = [name for name in first if name.endswith("²")][:6]
    if squares:
        spectra = [
            Distribution(f"Mass of {name[:-1]} [GeV]", {kind: signed_mass(q[name]) for kind, q in quantities.items()})
            for name in squares
        ]
        save(histograms(spectra), out / "latent-masses.png")
    if "r" in latent:
        r = np.array([[np.nan if x is None else x for x in row] for row in latent["r"]])
        save(
            correlation_matrix(r, latent["rows"], latent["columns"], title=str(latent["of"])),
            out / "latent-correlations.png",
        )
