"""What objectives share that hide particles: which are hidden, what is left to see, and how losses are averaged.

**What still speaks of hidden particles.** Features of visible particles, as everywhere in jetrep, are measured from the
axis and the momentum of the *whole* jet (`JetBatch.jet_p4`), and so are the jet's own features. The sum of the hidden
momenta is therefore not a secret, and meant to be none: an encoder sees whole jets later, against the same axis.
Nothing else of a hidden particle is left: neither its features, nor its coordinates, angles or momentum.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from jetrep.errors import InputError
from jetrep.features import ModelInput
from jetrep.objectives.distributed import all_max, rank, world_size
from jetrep.views.masking import random_particles

__all__ = [
    "blanked",
    "check_fraction",
    "hidden_particles",
    "normal_numbers",
    "per_jet_weights",
    "pt_ranks",
    "survivors",
]


def check_fraction(fraction: float, field: str) -> None:
    """Refuse a fraction of particles that hides none or all.

    Raises:
        InputError: naming the field.
    """
    if not 0 < fraction < 1:
        raise InputError(f"is {fraction}", field=field, remedy="give a fraction above 0 and below 1")


def _everyone(mask: Tensor) -> tuple[tuple[int, int], tuple[slice, slice]]:
    """Shape (batch of all ranks, particles), and which part of it is this rank's.

    Rank r of R has every R-th jet of the batch, from the r-th on.
    """
    n_ranks = world_size()
    width = mask.shape[1] if n_ranks == 1 else int(all_max(torch.tensor(mask.shape[1], device=mask.device)))
    return (n_ranks * len(mask), width), (slice(rank(), None, n_ranks), slice(mask.shape[1]))


def hidden_particles(mask: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """`random_particles` of this rank, drawn with those of all: a jet is masked alike by any number of ranks.

    Of a jet with two particles or more at least one is hidden and at least one is not; of others, none is hidden.

    Args:
        mask: (batch, n) bool, True for a real particle.
        fraction: fraction of the particles of each jet to hide.
        generator: where the numbers come from.

    Returns:
        (batch, n) bool, True for a hidden particle.
    """
    shape, own = _everyone(mask)
    everyone = mask.new_zeros(shape)
    everyone[own] = mask
    return random_particles(everyone, fraction, generator)[own]


def normal_numbers(mask: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """(batch, particles, n) standard normal numbers, the same for a jet by any number of ranks."""
    shape, own = _everyone(mask)
    return torch.randn(*shape, n, generator=generator, device=generator.device)[own].to(mask.device)


def pt_ranks(p4: Tensor, among: Tensor) -> Tensor:
    """Rank in transverse momentum of each particle among the chosen ones of its jet, the hardest first.

    Args:
        p4: (batch, n, 4) in GeV.
        among: (batch, n) bool.

    Returns:
        (batch, n) int64 from 0; those not chosen come after all others. Of equal momenta, the first comes first.
    """
    pt = torch.hypot(p4[..., 1], p4[..., 2]).masked_fill(~among, -1.0)
    return pt.argsort(dim=1, descending=True, stable=True).argsort(1)


def survivors(inputs: ModelInput, hidden: Tensor) -> ModelInput:
    """The same view without the ``hidden`` (batch, n) particles: they are padding, and zero everywhere."""
    view = _emptied(inputs, hidden)
    return replace(view, features=inputs.features.masked_fill(hidden.unsqueeze(-1), 0.0), mask=inputs.mask & ~hidden)


def blanked(inputs: ModelInput, hidden: Tensor, blank: Tensor) -> ModelInput:
    """The same view with ``blank`` (n_features,) as the features of the ``hidden`` (batch, n) particles.

    They stay in the set, on the axis of the jet and without momentum.
    """
    return replace(_emptied(inputs, hidden), features=torch.where(hidden.unsqueeze(-1), blank, inputs.features))


def _emptied(inputs: ModelInput, hidden: Tensor) -> ModelInput:
    where = hidden.unsqueeze(-1)
    angles, p4 = (None if x is None else x.masked_fill(where, 0.0) for x in (inputs.angles, inputs.p4))
    return replace(inputs, coordinates=inputs.coordinates.masked_fill(where, 0.0), angles=angles, p4=p4)


def per_jet_weights(hidden: Tensor) -> Tensor:
    """(m,) weights with which a sum over hidden particles is a mean over those of a jet, then over all jets.

    A jet of which nothing is hidden counts as a jet with loss zero, so that weights depend on no other jet.
    """
    per_jet = hidden.sum(1, keepdim=True).clamp(min=1) * len(hidden)
    return (1 / per_jet).expand_as(hidden)[hidden]
