"""Renormalisation-group views: the same jet resolved into N subjets by exclusive kT clustering (arXiv 2509.07486).

Every view is a cut of the merge history that travels with the batch: a comparison, a cumulative sum and a scatter,
on the device of the batch. Nothing is clustered again.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from jetrep.errors import InputError
from jetrep.jets import JetBatch

__all__ = ["ALL", "subjets"]

ALL = 0
"""The scale that stands for the unclustered particles."""


def subjets(batch: JetBatch, n: int) -> JetBatch:
    """The view with ``n`` subjets (E-scheme sums); `ALL` gives the particles themselves.

    A jet of fewer than ``n`` particles keeps them all. The summed four-momentum of each jet is that of its
    particles, at every scale, and `JetBatch.jet_p4` is passed on.

    Args:
        batch: particles (batch, n_particles, 4) with their merge history.
        n: number of subjets, or `ALL`.

    Returns:
        A batch of width ``n``; subjets stand in dendrogram order, not in order of pT.

    Raises:
        InputError: if the jets have not been clustered.
    """
    if n == ALL:
        return batch
    if batch.order is None or batch.join is None:
        raise InputError("the jets carry no merge history", remedy="cluster them first: jets.clustered()")
    counts = batch.counts
    # Subjets begin where merges have not yet happened after counts − n of them. Padding (join = −1) begins none, and
    # adds its zero four-vector to the last subjet. The first particle of a jet always begins one.
    begins = batch.join >= (counts - n).clamp(min=0).unsqueeze(1)
    index = (begins.cumsum(1) - 1).clamp(min=0).unsqueeze(-1).expand(-1, -1, 4)
    particles = batch.p4.gather(1, batch.order.unsqueeze(-1).expand(-1, -1, 4))
    p4 = particles.new_zeros(len(batch), n, 4).scatter_add_(1, index, particles)
    mask = torch.arange(n, device=p4.device) < counts.clamp(max=n).unsqueeze(1)
    return replace(batch, p4=p4, mask=mask, order=None, join=None, measured={})
