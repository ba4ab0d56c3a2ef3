r"""Symmetries of an encoder, measured: what changes in its output where nothing should.

Errors are those of each jet, :math:`\|f(Tx) - f(x)\| / \|f(x)\|`, as median and maximum over jets. Means of signed
differences are not used: errors of opposite sign would cancel in them.

==============  =========================================================================================
boost, rotation another observer of the same jet; for a `Covariant` function, f(Λp) against Λf(p)
permutation     the particles in another order
padding         empty places among the particles
soft            one more particle, with a small fraction of the energy of the hardest, at a random angle to it
collinear       the hardest particle split in two along its direction
==============  =========================================================================================

Soft and collinear errors are not meant to be zero for every encoder: they tell whether it is infrared and collinear
safe, which is the case if the error vanishes with the energy of the soft particle, and for every collinear split.

All transformations act on float64 momenta, whatever the precision of the network.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from jetrep.encoders.base import JetEncoder
from jetrep.errors import InputError
from jetrep.features import Features
from jetrep.jets import JetBatch
from jetrep.physics.lorentz import boost, random_directions, rotation, transform

__all__ = ["BOOSTS", "SOFT", "Covariant", "SymmetryError", "audit_covariant", "audit_encoder", "largest"]

Symmetry = Literal["boost", "rotation", "permutation", "padding", "soft", "collinear"]
Covariant = Callable[[Tensor, Tensor], Tensor]
"""(batch, n, 4) float64 momenta and (batch, n) bool mask → (batch, m, 4) vectors that transform as momenta do."""

BOOSTS = (1.1, 2.0, 5.0, 50.0, 1e3, 11013.0)
"""Lorentz factors γ; the last is cosh 10."""

SOFT = (1e-1, 1e-2, 1e-3, 1e-6)
"""Energies of the soft particle, as fractions of that of the hardest."""


@dataclass(frozen=True)
class SymmetryError:
    """One row of the table.

    Attributes:
        symmetry: what was done to the jets.
        parameter: Lorentz factor of a boost, fraction of energy of a soft particle or of a collinear split, number of
            empty places; NaN where there is none.
        output: "cls", "tokens" or "vectors".
        dtype: precision of the network, "float32" or "float64".
        median: of the relative error over jets.
        maximum: over jets.
        n_jets: number of jets.
    """

    symmetry: Symmetry
    parameter: float
    output: str
    dtype: str
    median: float
    maximum: float
    n_jets: int


def largest(table: Sequence[SymmetryError], symmetry: Symmetry, output: str | None = None) -> float:
    """The largest median error of a symmetry, over its parameters and outputs (or of one output); NaN if any is.

    Raises:
        InputError: if the table has no such row.
    """
    medians = [row.median for row in table if row.symmetry == symmetry and output in (None, row.output)]
    if not medians:
        raise InputError("was not measured", field=symmetry, remedy="choose a symmetry that stands in the table")
    return float(torch.tensor(medians, dtype=torch.float64).max())


def _relative(changed: Tensor, expected: Tensor) -> Tensor:
    """‖changed − expected‖/‖expected‖ of each jet; 0 where both vanish."""
    a, b = changed.double().flatten(1), expected.double().flatten(1)
    error, size = torch.linalg.vector_norm(a - b, dim=1), torch.linalg.vector_norm(b, dim=1)
    return torch.where((error == 0) & (size == 0), 0.0, error / size)


def _row(
    symmetry: Symmetry, parameter: float, output: str, dtype: torch.dtype, changed: Tensor, expected: Tensor
) -> SymmetryError:
    error = _relative(changed, expected)
    name = str(dtype).removeprefix("torch.")
    return SymmetryError(
        symmetry, parameter, output, name, float(error.median()), float(error.max()), n_jets=len(error)
    )


@dataclass(frozen=True)
class _Jets:
    """Changed jets.

    Attributes:
        p4: (batch, m, 4) float64.
        mask: (batch, m) bool.
        symmetry: what was done.
        parameter: how much.
        places: (batch, n) where the particles stand now, or None if they cannot be compared one by one.
        matrix: (batch, 1, 4, 4) what another observer sees, or None.
    """

    p4: Tensor
    mask: Tensor
    symmetry: Symmetry
    parameter: float
    places: Tensor | None = None
    matrix: Tensor | None = None


def _changes(p4: Tensor, mask: Tensor, boosts: Sequence[float], soft: Sequence[float], seed: int) -> Iterator[_Jets]:
    """All that the table asks for."""
    generator = torch.Generator().manual_seed(seed)
    batch, n = mask.shape
    device = p4.device
    here = torch.arange(n, device=device).expand(batch, n)
    for gamma in boosts:
        factors = torch.full((batch,), gamma, dtype=torch.float64)
        matrix = boost(factors, random_directions(batch, generator)).to(device).unsqueeze(1)
        yield _Jets(transform(matrix, p4), mask, "boost", gamma, here, matrix)
    angle = 2 * torch.pi * torch.rand(batch, dtype=torch.float64, generator=generator)
    matrix = rotation(random_directions(batch, generator), angle).to(device).unsqueeze(1)
    yield _Jets(transform(matrix, p4), mask, "rotation", float("nan"), here, matrix)

    order = torch.rand(batch, n, generator=generator).argsort(1).to(device)
    permuted = p4.gather(1, order.unsqueeze(-1).expand(-1, -1, 4))
    yield _Jets(permuted, mask.gather(1, order), "permutation", float("nan"), order.argsort(1))

    places = torch.rand(batch, 2 * n, generator=generator).argsort(1)[:, :n].sort(1).values.to(device)
    padded = p4.new_zeros(batch, 2 * n, 4).scatter(1, places.unsqueeze(-1).expand(-1, -1, 4), p4)
    padded_mask = torch.zeros(batch, 2 * n, dtype=torch.bool, device=device).scatter(1, places, mask)
    yield _Jets(padded, padded_mask, "padding", float(n), places)

    hardest = p4[..., 0].masked_fill(~mask, -torch.inf).argmax(1)
    rows, one = torch.arange(batch, device=device), torch.ones(batch, 1, dtype=torch.bool, device=device)
    longer = torch.cat([mask, one], 1)
    leading = p4[rows, hardest]
    direction = torch.nn.functional.normalize(leading[:, 1:], dim=-1)
    aside = torch.nn.functional.normalize(direction + 0.3 * random_directions(batch, generator).to(device), dim=-1)
    light = torch.cat([torch.ones_like(aside[:, :1]), aside], -1) * leading[:, :1]
    for fraction in soft:
        yield _Jets(torch.cat([p4, fraction * light.unsqueeze(1)], 1), longer, "soft", fraction)
    for fraction in (0.5, 0.1):
        split = p4.clone()
        split[rows, hardest] = (1 - fraction) * leading
        yield _Jets(torch.cat([split, fraction * leading.unsqueeze(1)], 1), longer, "collinear", fraction)


def audit_encoder(
    encoder: JetEncoder,
    features: Features,
    batch: JetBatch,
    *,
    dtype: torch.dtype = torch.float32,
    boosts: Sequence[float] = BOOSTS,
    soft: Sequence[float] = SOFT,
    seed: int = 0,
) -> list[SymmetryError]:
    """How far the invariance of CLS and particle tokens holds, for any encoder. The models are copied, not changed.

    Args:
        encoder: what to test, in evaluation mode.
        features: make its input from momenta.
        batch: jets, on the device of the encoder, each with at least one particle. Give float64 momenta: in float32,
            rounding has taken the masses that boosts are to preserve.
        dtype: precision of the network.
        boosts: Lorentz factors.
        soft: fractions of energy.
        seed: of directions, orders and places.

    Returns:
        One row for each change and output. Tokens are compared place by place, so not for soft and collinear changes.

    Raises:
        InputError: if a jet is empty, or the features need measured columns.
    """
    _refuse_empty(batch.mask)
    if features.config.columns:
        raise InputError(
            f"the feature set '{features.config.names}' needs columns that transformed jets lack",
            field="features.names",
            remedy="audit an encoder of kinematic features",
        )
    encoder, features = copy.deepcopy(encoder).eval().to(dtype), copy.deepcopy(features).eval().to(dtype)
    p4 = batch.p4.double() * batch.mask.unsqueeze(-1)

    def encoded(momenta: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        view = features(JetBatch(momenta, mask, momenta.sum(1)))
        floats = {name: getattr(view, name).to(dtype) for name in ("features", "coordinates", "jet_features", "angles")}
        output = encoder([type(view)(mask=view.mask, p4=view.p4, **floats)])[0]
        return output.cls, output.tokens

    table = []
    with torch.no_grad():
        cls, tokens = encoded(p4, batch.mask)
        for change in _changes(p4, batch.mask, boosts, soft, seed):
            new_cls, new_tokens = encoded(change.p4, change.mask)
            table.append(_row(change.symmetry, change.parameter, "cls", dtype, new_cls, cls))
            if change.places is not None:
                new_tokens = new_tokens.gather(1, change.places.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
                table.append(_row(change.symmetry, change.parameter, "tokens", dtype, new_tokens, tokens))
    return table


def audit_covariant(
    function: Covariant,
    p4: Tensor,
    mask: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    boosts: Sequence[float] = BOOSTS,
    soft: Sequence[float] = SOFT,
    seed: int = 0,
) -> list[SymmetryError]:
    """How far four-vectors made from momenta transform as momenta: f(Λp) against Λf(p).

    Args:
        function: for example encoding and decoding, all normalisation included; without regard to order and padding.
        p4: (batch, n, 4) float64 momenta in GeV.
        mask: (batch, n) bool, True for a real particle; at least one in each jet.
        dtype: precision of the network in ``function``, for the record.
        boosts: Lorentz factors.
        soft: fractions of energy.
        seed: of directions, orders and places.

    Raises:
        InputError: if a jet is empty.
    """
    _refuse_empty(mask)
    p4, table = p4.double() * mask.unsqueeze(-1), []
    with torch.no_grad():
        expected = function(p4, mask).double()
        for change in _changes(p4, mask, boosts, soft, seed):
            moved = expected if change.matrix is None else transform(change.matrix, expected)
            changed = function(change.p4, change.mask)
            table.append(_row(change.symmetry, change.parameter, "vectors", dtype, changed, moved))
    return table


def _refuse_empty(mask: Tensor) -> None:
    if not len(mask) or not bool(mask.any(1).all()):
        empty = int((~mask.any(1)).float().argmax()) if len(mask) else None
        raise InputError("has no particles", jet=empty, field="mask", remedy="audit jets with at least one particle")
