r"""Random changes of a jet that a representation should not notice: the augmentations of JetCLR (arXiv 2108.04253).

They act on four-vectors, all jets of a batch at once, on the device of the batch; features are computed afterwards.

===============  =======================================================  ==========================================
`place`          boost along the beam and rotation about it               an exact symmetry: everything relative
`rotate`         about the jet axis in the plane (η, φ)                   pT and mass of each constituent, ΔR to axis
`translate`      all constituents by one shift (Δη, Δφ)                   pT and mass of each, all ΔR between them
`split`          constituents into two collinear ones                     four-momentum, infrared-safe observables
`smear`          each constituent by a random (Δη, Δφ) ∝ 1/pT             pT and mass of each
===============  =======================================================  ==========================================

The last column says what stays the same.

**The jet axis** is that of `JetBatch.jet_p4`, and stays the one of the jet that came in: views measure against one
reference. A rotated jet is turned in this frame and a translated one stands beside its centre, which is what the
published method means by it. Only `place` moves the axis, together with everything else.

**Energy.** A constituent that moves keeps pT and mass, and its energy follows. A negative m² counts as zero.

**What travels along.** Measured columns stay with constituents that move, and are dropped by `split`, whose daughters
have no charge or impact parameter of their own. The merge history stays in `place`, which changes no distance between
constituents. It is dropped by all others, also by `rotate` and `translate`: they are rigid in pseudorapidity, while
clustering works with rapidity.

**Randomness.** A generator gives one key for each jet. All numbers for a jet follow from its key and the places of its
constituents, by a hash. They are the same on every device and for every width of the padding, and a jet gets the same
numbers whether its batch is on one rank or shared by several (see `jet_keys`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jetrep.errors import InputError, at_least
from jetrep.jets import JetBatch
from jetrep.physics import fourvector as fv

__all__ = ["AugmentationConfig", "augmented", "jet_keys", "place", "rotate", "smear", "split", "translate"]

# Beyond this |η| hyperbolic functions leave single precision behind; no constituent of a jet is there.
_FORWARD = 30.0
_SOFTEST = 0.1  # GeV; softer constituents are smeared like this one


@dataclass(frozen=True)
class AugmentationConfig:
    """Which changes the two views of a jet undergo; the defaults are JetCLR's but for two, which say so.

    View one is placed, rotated and translated; view two is placed, rotated, split, smeared and translated.

    Attributes:
        max_rapidity: each view is put at a random azimuth and a random rapidity of the jet within ± this; None leaves
            jets where they are. Ours.
        rotation: turn the jet about its axis.
        translation: largest shift over the extent of the jet; 0 for none, our default. Published is 1. Features are
            measured from the axis, around which all jets lie: an encoder meets shifted ones in training alone.
        split_passes: times that constituents are split; 0 for never, which measured features need.
        split_fraction: largest part of the constituents that one pass splits.
        max_particles: splitting stops at this many constituents. The published value is that of jets cut to their
            50 leading constituents: longer ones are not split at all.
        smearing: scale Λ of the smearing of soft constituents in GeV; 0 for none.
    """

    max_rapidity: float | None = 2.0
    rotation: bool = True
    translation: float = 0.0
    split_passes: int = 2
    split_fraction: float = 1.0
    max_particles: int = 50
    smearing: float = 0.1

    def __post_init__(self) -> None:
        at_least(0, **{"objective.augmentation.split_passes": self.split_passes})
        at_least(1, **{"objective.augmentation.max_particles": self.max_particles})
        for name in ("max_rapidity", "translation", "smearing"):
            _check(**{f"objective.augmentation.{name}": getattr(self, name)})
        if not 0 <= self.split_fraction <= 1:
            raise InputError(
                f"is {self.split_fraction}",
                field="objective.augmentation.split_fraction",
                remedy="give a number from 0 to 1",
            )


def jet_keys(n_jets: int, generator: torch.Generator) -> Tensor:
    """Keys from which the random numbers of jets follow.

    Args:
        n_jets: number of jets. A rank that has a part of a batch draws for the whole batch and takes its own:
            ``jet_keys(n_ranks * n, generator)[rank::n_ranks]``.
        generator: where the keys come from; they are drawn on its device.

    Returns:
        (n_jets,) int64.
    """
    bound = torch.iinfo(torch.int64).max
    return torch.randint(-bound, bound, (n_jets,), generator=generator, device=generator.device)


def place(batch: JetBatch, source: torch.Generator | Tensor, *, max_rapidity: float = 2.0) -> JetBatch:
    """Puts each jet at a random direction: uniform azimuth, and uniform rapidity of the jet within ±``max_rapidity``.

    The jet is boosted along the beam and rotated about it. Both are symmetries of collisions of equal beams, so pT,
    masses, and distances in rapidity and azimuth stay, and so does the merge history. Two views placed apart cannot be
    matched by the direction of their jet.

    Args:
        batch: jets.
        source: generator, or the (batch,) keys of `jet_keys`.
        max_rapidity: of the jet, afterwards.
    """
    _check(max_rapidity=max_rapidity)
    rapidity, phi = _uniform(source, batch, 1).squeeze(1).unbind(-1)
    by_rapidity = (2 * rapidity - 1) * max_rapidity - fv.rapidity(batch.jet_p4)
    by_phi = (2 * phi - 1) * math.pi
    p4 = _boosted(batch.p4, by_rapidity.unsqueeze(1), by_phi.unsqueeze(1))
    jet_p4 = _boosted(batch.jet_p4, by_rapidity, by_phi)
    return replace(batch, p4=_real(p4, batch.mask), jet_p4=jet_p4)


def rotate(batch: JetBatch, source: torch.Generator | Tensor) -> JetBatch:
    """Turns each jet about its axis in the plane (Δη, Δφ), by a uniform angle.

    pT and mass of every constituent stay, and so does its ΔR to the axis.

    Args:
        batch: jets.
        source: generator, or the (batch,) keys of `jet_keys`.
    """
    angle = 2 * math.pi * _uniform(source, batch, 1)[..., 0]
    cos, sin = angle.cos(), angle.sin()
    delta_eta, delta_phi = _plane(batch)
    return _moved(batch, cos * delta_eta - sin * delta_phi, sin * delta_eta + cos * delta_phi)


def translate(batch: JetBatch, source: torch.Generator | Tensor, *, width: float = 1.0) -> JetBatch:
    """Shifts all constituents of a jet by one (η, φ), while the axis stays.

    The shift along each direction is uniform within ± ``width`` times the extent of the jet along it, its largest
    minus its smallest coordinate; that in φ is bounded so that no constituent goes beyond π from the axis. A jet of one
    constituent has no extent, and stays. pT and mass of every constituent stay, and so do all ΔR between them.

    Args:
        batch: jets.
        source: generator, or the (batch,) keys of `jet_keys`.
        width: largest shift over the extent.
    """
    _check(width=width)
    plane = _plane(batch)
    draws = _uniform(source, batch, 1).unbind(-1)
    shifted = []
    for x, draw, bound in zip(plane, draws, (math.inf, math.pi), strict=True):
        least = x.masked_fill(~batch.mask, math.inf).amin(1, keepdim=True)
        largest = x.masked_fill(~batch.mask, -math.inf).amax(1, keepdim=True)
        # The extent of an empty jet would be infinite.
        reach = torch.where(least <= largest, width * (largest - least), 0.0)
        low, high = torch.maximum(-reach, -bound - least), torch.minimum(reach, bound - largest)
        shifted.append(x + low.clamp(max=0) + draw * (high.clamp(min=0) - low.clamp(max=0)))
    return _moved(batch, *shifted)


def split(
    batch: JetBatch, source: torch.Generator | Tensor, *, fraction: float = 1.0, max_particles: int = 50
) -> JetBatch:
    """Splits random constituents into two with the same direction, each with a uniform share of the momentum.

    Of a jet with n constituents, min(⌊fraction · n⌋, max_particles − n) are split, none if that is negative. The
    default is the published rule for arrays of 50 places, which doubles the constituents until the array is full. One
    daughter stays in the place of its mother and the other takes a free one. The daughters of a massive constituent
    share its mass as they share its momentum, so the four-momentum of the jet stays, up to rounding, and with it
    every observable that does not tell collinear constituents apart.

    Args:
        batch: jets.
        source: generator, or the (batch,) keys of `jet_keys`.
        fraction: largest part of the constituents that is split.
        max_particles: largest number of constituents afterwards.

    Returns:
        A batch that is wider where daughters need it, by an amount that the width of this one determines; without
        measured columns and merge history.
    """
    if not 0 <= fraction <= 1:
        raise InputError(f"is {fraction}", field="fraction", remedy="give a number from 0 to 1")
    at_least(1, max_particles=max_particles)
    width = batch.p4.shape[1]
    # What the longest possible jet may need: known without asking the device.
    room = max(width, min(width + math.floor(fraction * width + 1e-9), max_particles))
    p4 = torch.cat([batch.p4, batch.p4.new_zeros(len(batch), room - width, 4)], 1)
    mask = torch.cat([batch.mask, batch.mask.new_zeros(len(batch), room - width)], 1)

    counts = batch.counts
    k = torch.minimum(torch.floor(counts.double() * fraction + 1e-9).long(), max_particles - counts).clamp(min=0)
    lottery, share = _uniform(source, batch, width).unbind(-1)
    rank = lottery.masked_fill(~batch.mask, math.inf).argsort(dim=1, stable=True).argsort(1)
    chosen = (rank < k.unsqueeze(1)) & batch.mask
    # The i-th free place takes the second daughter of the i-th chosen constituent.
    mothers = (~chosen).byte().argsort(dim=1, stable=True)
    number = ((~mask).cumsum(1) - 1).clamp(min=0)
    taken = ~mask & (number < k.unsqueeze(1))
    mother = mothers.gather(1, number.clamp(max=width - 1))
    second = (batch.p4 * (1 - share).unsqueeze(-1)).gather(1, mother.unsqueeze(-1).expand(-1, -1, 4))
    first = torch.where(chosen.unsqueeze(-1), batch.p4 * share.unsqueeze(-1), batch.p4)
    p4 = torch.cat([first, p4[:, width:]], 1)
    p4 = torch.where(taken.unsqueeze(-1), second, p4)
    return replace(batch, p4=p4, mask=mask | taken, order=None, join=None, measured={})


def smear(batch: JetBatch, source: torch.Generator | Tensor, *, scale: float = 0.1) -> JetBatch:
    """Moves each constituent by normal (Δη, Δφ) of standard deviation ``scale`` / max(pT, 0.1 GeV) each.

    Soft radiation moves far, hard constituents hardly at all; pT and mass of every constituent stay.

    Args:
        batch: jets.
        source: generator, or the (batch,) keys of `jet_keys`.
        scale: Λ in GeV.
    """
    _check(scale=scale)
    # Box and Muller: two uniform numbers become two independent normal ones.
    radius, angle = _uniform(source, batch, batch.p4.shape[1]).unbind(-1)
    radius = torch.sqrt(-2 * radius.log()) * scale / fv.pt(batch.p4).clamp(min=_SOFTEST)
    angle = 2 * math.pi * angle
    delta_eta, delta_phi = _plane(batch)
    return _moved(batch, delta_eta + radius * angle.cos(), delta_phi + radius * angle.sin())


def augmented(
    batch: JetBatch, keys: Callable[[], torch.Generator | Tensor], config: AugmentationConfig
) -> tuple[JetBatch, JetBatch]:
    """Two views of each jet.

    Args:
        batch: jets.
        keys: called for each change in turn; gives its source of randomness.
        config: which changes, and in which order.
    """
    views = []
    for passes, smearing in ((0, 0.0), (config.split_passes, config.smearing)):
        view = batch
        if config.max_rapidity is not None:
            view = place(view, keys(), max_rapidity=config.max_rapidity)
        if config.rotation:
            view = rotate(view, keys())
        for _ in range(passes):
            view = split(view, keys(), fraction=config.split_fraction, max_particles=config.max_particles)
        if smearing:
            view = smear(view, keys(), scale=smearing)
        if config.translation:
            view = translate(view, keys(), width=config.translation)
        views.append(view)
    return views[0], views[1]


def _check(**lengths: float | None) -> None:
    at_least(0, **lengths)
    for name, value in lengths.items():
        if value == math.inf:
            raise InputError("is infinite", field=name, remedy="give a finite number")


def _real(p4: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask.unsqueeze(-1), p4, 0.0)


def _plane(batch: JetBatch) -> tuple[Tensor, Tensor]:
    """(Δη, Δφ) of the constituents to the axis, (batch, n) each."""
    axis = batch.jet_p4.unsqueeze(1)
    return fv.eta(batch.p4) - fv.eta(axis), fv.delta_phi(fv.phi(batch.p4), fv.phi(axis))


def _moved(batch: JetBatch, delta_eta: Tensor, delta_phi: Tensor) -> JetBatch:
    """The constituents at these places relative to the axis, with pT and mass of their own, without a history."""
    axis = batch.jet_p4.unsqueeze(1)
    eta = (fv.eta(axis) + delta_eta).clamp(-_FORWARD, _FORWARD)
    p4 = fv.from_ptetaphim(fv.pt(batch.p4), eta, fv.phi(axis) + delta_phi, fv.mass(batch.p4))
    # Constituents along the beam have no place in the plane, and stay.
    movable = batch.mask & (fv.eta(batch.p4).abs() < _FORWARD)
    return replace(batch, p4=torch.where(movable.unsqueeze(-1), p4, batch.p4), order=None, join=None)


def _boosted(p4: Tensor, by_rapidity: Tensor, by_phi: Tensor) -> Tensor:
    """Four-vectors (..., 4) boosted along the beam and rotated about it.

    The boost scales E + pz and E − pz by inverse factors. The smaller of the two follows from the transverse mass,
    since a difference would lose its digits.
    """
    energy, px, py, pz = p4.unbind(-1)
    large = energy + pz.abs()
    transverse2 = fv.pt(p4).square() + fv.mass2(p4).clamp(min=0)
    small = transverse2 / large.clamp(min=1e-30)
    plus = torch.where(pz >= 0, large, small) * by_rapidity.exp()
    minus = torch.where(pz >= 0, small, large) * (-by_rapidity).exp()
    cos, sin = by_phi.cos(), by_phi.sin()
    return torch.stack([(plus + minus) / 2, cos * px - sin * py, sin * px + cos * py, (plus - minus) / 2], -1)


def _uniform(source: torch.Generator | Tensor, batch: JetBatch, n: int) -> Tensor:
    """(batch, n, 2) uniform numbers, strictly between 0 and 1, float32 on the device of the batch."""
    keys = jet_keys(len(batch), source) if isinstance(source, torch.Generator) else source
    if keys.shape != (len(batch),):
        raise InputError(
            f"{tuple(keys.shape)} keys for {len(batch)} jets", field="source", remedy="give one key for each jet"
        )
    keys = keys.to(batch.p4.device, non_blocking=True)
    places = torch.arange(1, 2 * n + 1, device=keys.device) * -0x61C8864680B583EB
    hashed = _hashed(keys.unsqueeze(1) + places)
    # Of the upper bits as many as keep the middle of an interval an exact number.
    return (((hashed >> 41) & 0x7FFFFF).float() + 0.5).mul(2.0**-23).view(len(batch), n, 2)


def _hashed(x: Tensor) -> Tensor:
    """The output function of SplitMix64 (Steele, Lea, Flood, doi:10.1145/2660193.2660195); products wrap around."""
    x = (x ^ _shifted(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shifted(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, n: int) -> Tensor:
    """``x`` >> n as an unsigned number."""
    return (x >> n) & ((1 << (64 - n)) - 1)
