"""Renormalisation-group views: the same jet resolved into N subjets by exclusive kT clustering (arXiv 2509.07486).

Every view is a cut of the merge history that travels with the batch: a comparison, a cumulative sum and a scatter,
on the device of the batch; on CPUs a compiled loop gives the same numbers faster. Nothing is clustered again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

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
    plain = batch.p4.dtype == torch.float32 and not batch.p4.requires_grad and not torch.compiler.is_compiling()
    if batch.p4.device.type == "cpu" and plain:
        p4, mask = _on_host(batch.p4, batch.mask, batch.order, batch.join, n)
    else:
        p4, mask = _anywhere(batch.p4, batch.mask, batch.order, batch.join, n)
    return replace(batch, p4=p4, mask=mask, order=None, join=None, measured={})


def _anywhere(p4: Tensor, mask: Tensor, order: Tensor, join: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Four-momenta and mask of the subjets, by tensor operations."""
    counts = mask.sum(1)
    # Subjets begin where merges have not yet happened after counts − n of them. Padding (join = −1) begins none, and
    # adds its zero four-vector to the last subjet. The first particle of a jet always begins one.
    begins = join >= (counts - n).clamp(min=0).unsqueeze(1)
    index = (begins.cumsum(1) - 1).clamp(min=0).unsqueeze(-1).expand(-1, -1, 4)
    particles = p4.gather(1, order.unsqueeze(-1).expand(-1, -1, 4))
    subjet_p4 = particles.new_zeros(len(p4), n, 4).scatter_add_(1, index, particles)
    return subjet_p4, torch.arange(n, device=p4.device) < counts.clamp(max=n).unsqueeze(1)


def _on_host(p4: Tensor, mask: Tensor, order: Tensor, join: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The same in one pass over the particles, padding left out: tensor operations cost a CPU ten times as much."""
    subjet_p4 = np.empty((len(p4), n, 4), np.float32)
    subjet_mask = np.empty((len(p4), n), np.bool_)
    _sum(p4.numpy(), mask.numpy(), order.numpy(), join.numpy(), subjet_p4, subjet_mask)
    return torch.from_numpy(subjet_p4), torch.from_numpy(subjet_mask)


@numba.njit(cache=True, nogil=True)
def _sum(p4: Any, mask: Any, order: Any, join: Any, subjet_p4: Any, subjet_mask: Any) -> None:
    n = subjet_p4.shape[1]
    for jet in range(len(p4)):
        count = 0
        for i in range(mask.shape[1]):
            count += mask[jet, i]
        merged = max(count - n, 0)
        # Sums are kept in single precision, so that both ways to add give the same number.
        zero = np.float32(0)
        e, x, y, z = zero, zero, zero, zero
        subjet = 0
        for i in range(count):
            if i > 0 and join[jet, i] >= merged:
                subjet_p4[jet, subjet, 0], subjet_p4[jet, subjet, 1] = e, x
                subjet_p4[jet, subjet, 2], subjet_p4[jet, subjet, 3] = y, z
                e, x, y, z = zero, zero, zero, zero
                subjet += 1
            particle = order[jet, i]
            e += p4[jet, particle, 0]
            x += p4[jet, particle, 1]
            y += p4[jet, particle, 2]
            z += p4[jet, particle, 3]
        if count > 0:
            subjet_p4[jet, subjet, 0], subjet_p4[jet, subjet, 1] = e, x
            subjet_p4[jet, subjet, 2], subjet_p4[jet, subjet, 3] = y, z
            subjet += 1
        subjet_mask[jet, :subjet] = True
        subjet_mask[jet, subjet:] = False
        subjet_p4[jet, subjet:] = 0.0
