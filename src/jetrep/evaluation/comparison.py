r"""True and reconstructed jets side by side: what an autoencoder makes of jets, as arrays that metrics are made from.

Particles are described relative to the **true** jet, the reconstructed ones too: :math:`p_T/p_T^{jet}`,
:math:`\eta - \eta^{jet}`, :math:`\phi - \phi^{jet}`. An error of the jet's axis or momentum is therefore an error of
its particles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from jetrep.encoders.autoencoder import Autoencoder, JetImages
from jetrep.errors import InputError
from jetrep.evaluation.scores import distances as distances_of
from jetrep.evaluation.scores import pixels
from jetrep.jets import Jets
from jetrep.physics import fourvector as fv
from jetrep.physics.energy_flow import ENERGY_FLOW, energy_flow
from jetrep.progress import progress

__all__ = ["FEATURES", "Comparison", "Set", "compare", "reconstruct", "relative"]

FEATURES = ("mass", "pt", "multiplicity", "width", "pt_dispersion", *ENERGY_FLOW)
"""Columns of `Set.features`."""

_HARDEST = 100  # slots that the energy-flow polynomials see: pixels are many, and their number enters cubed


@dataclass(frozen=True)
class Set:
    """Jets, true or reconstructed.

    Attributes:
        p4: (n_jets, 4) float64 summed momenta in GeV.
        counts: (n_jets,) numbers of particles.
        particles: (n_particles, 3) pT, η and φ relative to the true jet, those of one jet after those of the other.
        features: (n_jets, 13) observables of each jet, see `FEATURES`.
        image: (n_pixels, n_pixels) mean share of the true jet's pT over η and φ, see `scores.pixels`.
        images: (k, n_pixels, n_pixels) the same of the first jets.
    """

    p4: NDArray[np.float64]
    counts: NDArray[np.int64]
    particles: NDArray[np.float64]
    features: NDArray[np.float64]
    image: NDArray[np.float64]
    images: NDArray[np.float64]

    @property
    def jet(self) -> NDArray[np.int64]:
        """(n_particles,) the jet of each particle."""
        return np.repeat(np.arange(len(self.counts)), self.counts)


@dataclass(frozen=True)
class Comparison:
    """Jets and what became of them.

    Attributes:
        true: the jets.
        reconstructed: their reconstructions, in the same order.
        pairs: (n_pairs, 2) indices into ``true.particles`` and ``reconstructed.particles`` of matched particles; None
            for images, whose pixels are no particles.
        distances: (n_jets,) distance between jet and reconstruction by several measures, see `scores.distances`.
        numbers: (n_jets, size) what was stored of each jet; empty if unknown.
        described: (n_jets, k) what that says of the jet, see `Autoencoder.describe`; empty if unknown.
    """

    true: Set
    reconstructed: Set
    pairs: NDArray[np.int64] | None
    distances: Mapping[str, NDArray[np.float64]]
    numbers: NDArray[np.float64]
    described: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.true.p4)

    @property
    def unmatched(self) -> tuple[int, int]:
        """Particles without a partner: true ones that were lost, reconstructed ones that were invented."""
        n = 0 if self.pairs is None else len(self.pairs)
        return len(self.true.particles) - n, len(self.reconstructed.particles) - n


def relative(p4: NDArray[np.float64], mask: NDArray[np.bool_], jet_p4: NDArray[np.float64]) -> NDArray[np.float64]:
    """(batch, n, 3) pT, η, φ of particles relative to jets; zero where padded.

    Args:
        p4: (batch, n, 4) momenta in GeV.
        mask: (batch, n) True for a real particle.
        jet_p4: (batch, 4) momenta of the jets; those without transverse momentum count as 1 GeV.
    """
    pt = fv.pt(jet_p4)
    pt = np.where(pt > 0, pt, 1.0)
    angle = fv.delta_phi(fv.phi(p4), fv.phi(jet_p4)[:, None])
    coordinates = np.stack([fv.pt(p4) / pt[:, None], fv.eta(p4) - fv.eta(jet_p4)[:, None], angle], -1)
    return np.where(mask[..., None], coordinates, 0.0)


def compare(
    true: NDArray[np.float64],
    true_mask: NDArray[np.bool_],
    other: NDArray[np.float64],
    other_mask: NDArray[np.bool_],
    *,
    match: bool = True,
    distances: Mapping[str, NDArray[np.float64]] | None = None,
    numbers: NDArray[np.float64] | None = None,
    described: NDArray[np.float64] | None = None,
    n_images: int = 8,
) -> Comparison:
    """Jets beside their reconstructions.

    Args:
        true: (batch, n, 4) momenta in GeV.
        true_mask: (batch, n) True for a real particle.
        other: (batch, m, 4) momenta of the slots.
        other_mask: (batch, m) True for a slot that is a particle.
        match: pair particles, by the assignment with the smallest sum of Euclidean distances in `relative`.
        distances: `Comparison.distances`.
        numbers: `Comparison.numbers`.
        described: `Comparison.described`.
        n_images: images of single jets that are kept.

    Raises:
        InputError: if a momentum is not finite.
    """
    other = np.where(other_mask[..., None], other, 0.0)
    finite = np.isfinite(other).all((1, 2))
    if not finite.all():
        raise InputError(
            "the reconstruction is NaN or infinite", jet=int(np.argmin(finite)), remedy="check the model and its input"
        )
    true = np.where(true_mask[..., None], true, 0.0)
    jet_p4 = true.sum(1)
    coordinates = [relative(p4, mask, jet_p4) for p4, mask in ((true, true_mask), (other, other_mask))]
    sets = [
        _set(p4, mask, particles, pixels(*map(torch.from_numpy, (p4, mask, jet_p4))).numpy(), n_images)
        for p4, mask, particles in zip((true, other), (true_mask, other_mask), coordinates, strict=True)
    ]
    pairs = _matched(sets[0], sets[1]) if match else None
    nothing = np.zeros((len(true), 0))
    kept = (nothing if array is None else array for array in (numbers, described))
    return Comparison(sets[0], sets[1], pairs, distances or {}, *kept)


def _set(
    p4: NDArray[np.float64],
    mask: NDArray[np.bool_],
    particles: NDArray[np.float64],
    images: NDArray[np.float64],
    n_images: int,
) -> Set:
    total = p4.sum(1)
    pt, eta, phi = fv.pt(p4), fv.eta(p4), fv.phi(p4)
    hardest = np.argsort(-pt, 1, kind="stable")[:, :_HARDEST]
    scalar = pt.sum(1)
    share = np.divide(pt, scalar[:, None], out=np.zeros_like(pt), where=scalar[:, None] > 0)
    apart = np.hypot(eta - fv.eta(total)[:, None], fv.delta_phi(phi, fv.phi(total)[:, None]))
    columns = [fv.mass(total), fv.pt(total), mask.sum(1), (share * apart).sum(1), np.sqrt((share**2).sum(1))]
    flow = energy_flow(*(np.take_along_axis(x, hardest, 1) for x in (pt, eta, phi)))
    return Set(
        total,
        mask.sum(1),
        particles[mask],
        np.concatenate([np.stack(columns, 1), flow], 1),
        images.mean(0),
        images[:n_images],
    )


def _matched(true: Set, other: Set) -> NDArray[np.int64]:
    first = [np.concatenate([[0], np.cumsum(s.counts)]) for s in (true, other)]
    pairs = []
    for a, b, c, d in zip(first[0], first[0][1:], first[1], first[1][1:], strict=False):
        rows, columns = linear_sum_assignment(cdist(true.particles[a:b], other.particles[c:d]))
        pairs.append(np.stack([rows + a, columns + c], 1))
    return np.concatenate(pairs) if pairs else np.zeros((0, 2), np.int64)


def reconstruct(
    model: Autoencoder, jets: Jets, *, with_distances: bool = True, batch_size: int = 128, quiet: bool = True
) -> Comparison:
    """Jets beside what an autoencoder makes of them, in the order of the jets.

    Args:
        model: the autoencoder.
        jets: the jets, as the model wants them (`Jets.leading` cuts them to its number of slots).
        with_distances: compute `Comparison.distances`, which takes most of the time.
        batch_size: jets at a time.
        quiet: show no progress.

    Raises:
        InputError: if there are no jets, or a reconstruction is not finite.
    """
    if not len(jets):
        raise InputError("there are no jets", remedy="give at least one jet")
    weight = next(model.parameters(), None)
    device = torch.device("cpu") if weight is None else weight.device
    was_training = model.training
    model.eval()
    parts = []
    with torch.inference_mode(), progress(total=len(jets), description="reconstruct", quiet=quiet) as bar:
        for start in range(0, len(jets), batch_size):
            batch = jets.batch(slice(start, start + batch_size)).to(device)
            p4 = batch.p4.double()
            numbers = model.encode(p4, batch.mask)
            decoded = model.decode(numbers)
            found = distances_of(p4, batch.mask, decoded) if with_distances else {}
            parts.append(
                compare(
                    p4.cpu().numpy(),
                    batch.mask.cpu().numpy(),
                    decoded.p4.double().cpu().numpy(),
                    decoded.mask.cpu().numpy(),
                    match=not isinstance(decoded, JetImages),
                    distances={name: values.double().cpu().numpy() for name, values in found.items()},
                    numbers=numbers.double().cpu().numpy(),
                    described=model.describe(numbers).cpu().numpy(),
                )
            )
            bar.update(len(batch))
    model.train(was_training)
    return _joined(parts)


def _joined(parts: Sequence[Comparison]) -> Comparison:
    weights = np.array([len(part) for part in parts], np.float64)
    sets = [
        Set(
            np.concatenate([s.p4 for s in kind]),
            np.concatenate([s.counts for s in kind]),
            np.concatenate([s.particles for s in kind]),
            np.concatenate([s.features for s in kind]),
            np.average([s.image for s in kind], 0, weights),
            kind[0].images,
        )
        for kind in ([part.true for part in parts], [part.reconstructed for part in parts])
    ]
    before = np.cumsum([[0, 0], *((len(p.true.particles), len(p.reconstructed.particles)) for p in parts)], axis=0)
    pairs = [part.pairs + shift for part, shift in zip(parts, before, strict=False) if part.pairs is not None]
    return Comparison(
        sets[0],
        sets[1],
        np.concatenate(pairs) if pairs else None,
        {name: np.concatenate([part.distances[name] for part in parts]) for name in parts[0].distances},
        np.concatenate([part.numbers for part in parts]),
        np.concatenate([part.described for part in parts]),
    )
