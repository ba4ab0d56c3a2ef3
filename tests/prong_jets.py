"""Labelled jets that a tagger must be able to tell apart: one prong (qcd) against three (top)."""

from pathlib import Path

import numpy as np

from jetrep.jets import Jets
from jetrep.store.writer import StoreWriter


def prong_jets(n_jets: int, seed: int = 0, classes: tuple[str, str] = ("qcd", "top"), *, mistaken: float = 0.0) -> Jets:
    """Jets of 10 to 30 massless particles, pT about 600 GeV, classes in turn, clustered.

    A share ``mistaken`` of them, drawn at random, bears the label of the other class: no tagger is perfect then.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(n_jets) % 2
    counts = rng.integers(10, 31, n_jets)
    jet = np.repeat(np.arange(n_jets), counts)
    total = counts.sum()
    eta0, phi0 = rng.uniform(-1.5, 1.5, n_jets), rng.uniform(-np.pi, np.pi, n_jets)
    # Prongs stand on a circle of radius 0.3 around the axis; a jet of one prong has all its particles in the first.
    prong = rng.integers(0, 3, total) * labels[jet]
    angle = rng.uniform(0, 2 * np.pi, n_jets)[jet] + 2 * np.pi * prong / 3
    radius = 0.3 * labels[jet]
    eta = eta0[jet] + radius * np.cos(angle) + 0.05 * rng.standard_normal(total)
    phi = phi0[jet] + radius * np.sin(angle) + 0.05 * rng.standard_normal(total)
    pt = rng.exponential(1.0, total)
    pt *= (600 / np.bincount(jet, pt))[jet]
    p4 = np.stack([pt * np.cosh(eta), pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)], -1)
    labels = np.where(rng.random(n_jets) < mistaken, 1 - labels, labels)
    jets = Jets(p4.astype(np.float32), np.concatenate([[0], np.cumsum(counts)]), labels, classes)
    return jets.sorted_by_pt().clustered()


def write_store(path: Path, jets: Jets) -> Path:
    """The jets as a store at ``path``."""
    with StoreWriter(path, classes=jets.classes, provenance={}) as writer:
        writer.write(jets)
    return path
