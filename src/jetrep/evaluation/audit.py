r"""Symmetries of a model, measured: what changes in its output where nothing should.

Errors are those of each jet, :math:`\|f(Tx) - f(x)\| / \|f(x)\|`, as median and maximum over jets. Means of signed
differences are not used: errors of opposite sign would cancel in them.

==============  =========================================================================================
boost, rotation another observer of the same jet; for a `Covariant` function, f(Λp) against Λf(p)
azimuth         a rotation about the beam
permutation     the particles in another order
padding         empty places among the particles
soft            one more particle, with a small fraction of the energy of the hardest, at a random angle to it
collinear       the hardest particle split in two along its direction
==============  =========================================================================================

Soft and collinear errors are not meant to be zero for every encoder: they tell whether it is infrared and collinear
safe, which is the case if the error vanishes with the energy of the soft particle, and for every collinear split.

All transformations act on float64 momenta, whatever the precision of the network.

A claimed symmetry holds if the median error is at most 10⁻⁵ in float32 and 10⁻¹⁰ in float64; for boosts and rotations
in float32, 10⁻⁶. A boost adds 7·10⁻¹⁴ γ², what rounding of float64 momenta costs: in all 10⁻⁵ at γ = cosh 10. A soft
particle adds ten times its fraction of energy. A mistake of logic shows as 10⁻³ and more.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jetrep.encoders.base import Encoded, JetEncoder, Symmetry
from jetrep.encoders.lorentz import LorentzEncoder
from jetrep.errors import InputError
from jetrep.features import Features, ModelInput
from jetrep.jets import JetBatch
from jetrep.model import JetModel
from jetrep.physics.lorentz import boost, random_directions, rotation, transform

__all__ = ["BOOSTS", "SOFT", "Covariant", "SymmetryError", "audit_covariant", "audit_model", "largest"]

Covariant = Callable[[Tensor, Tensor], Tensor]
"""(batch, n, 4) float64 momenta and (batch, n) bool mask → (batch, m, 4) vectors that transform as momenta do."""

BOOSTS = (1.1, 2.0, 5.0, 50.0, 1e3, 11013.0)
"""Lorentz factors γ; the last is cosh 10."""

SOFT = (1e-1, 1e-2, 1e-3, 1e-6)
"""Energies of the soft particle, as fractions of that of the hardest."""

_PER_GAMMA2, _PER_SOFTNESS = 7e-14, 10.0


@dataclass(frozen=True)
class SymmetryError:
    """One row of the table.

    Attributes:
        symmetry: what was done to the jets.
        parameter: Lorentz factor of a boost, fraction of energy of a soft particle or of a collinear split, number of
            empty places; NaN where there is none.
        layer: where in the model: "features", "block k", "end"; of an autoencoder "chain".
        output: "features", "cls", "tokens", "vectors" or "scores".
        dtype: precision of the network, "float32" or "float64".
        median: of the relative error over jets.
        maximum: over jets.
        n_jets: number of jets.
    """

    symmetry: Symmetry
    parameter: float
    layer: str
    output: str
    dtype: str
    median: float
    maximum: float
    n_jets: int

    @property
    def tolerance(self) -> float:
        """The largest ``median`` with which a claimed symmetry holds; see the module."""
        lorentz = self.symmetry in ("boost", "rotation")
        floor = 1e-10 if self.dtype == "float64" else 1e-6 if lorentz else 1e-5
        if self.symmetry == "boost":
            return floor + _PER_GAMMA2 * self.parameter**2
        return floor + (_PER_SOFTNESS * self.parameter if self.symmetry == "soft" else 0.0)

    @property
    def holds(self) -> bool:
        """Whether the error is within the tolerance; not if it is no number."""
        return self.median <= self.tolerance


def largest(table: Sequence[SymmetryError], symmetry: Symmetry, output: str | None = None, layer: str = "end") -> float:
    """The largest median error of a symmetry in a layer, over its parameters and outputs (or of one); NaN if any is.

    Raises:
        InputError: if the table has no such row.
    """
    rows = [row for row in table if row.symmetry == symmetry and row.layer == layer]
    medians = [row.median for row in rows if output in (None, row.output)]
    if not medians:
        raise InputError("was not measured", field=symmetry, remedy="choose a symmetry that stands in the table")
    return float(torch.tensor(medians, dtype=torch.float64).max())


def _relative(changed: Tensor, expected: Tensor) -> Tensor:
    """‖changed − expected‖/‖expected‖ of each jet; 0 where both vanish."""
    a, b = changed.double().flatten(1), expected.double().flatten(1)
    error, size = torch.linalg.vector_norm(a - b, dim=1), torch.linalg.vector_norm(b, dim=1)
    return torch.where((error == 0) & (size == 0), 0.0, error / size)


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


def _row(change: _Jets, layer: str, output: str, dtype: torch.dtype, after: Tensor, expected: Tensor) -> SymmetryError:
    error = _relative(after, expected)
    name = str(dtype).removeprefix("torch.")
    return SymmetryError(
        change.symmetry,
        change.parameter,
        layer,
        output,
        name,
        float(error.median()),
        float(error.max()),
        n_jets=len(error),
    )


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
    beam = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand(batch, 3)
    axes: dict[Symmetry, Tensor] = {"rotation": random_directions(batch, generator), "azimuth": beam}
    for symmetry, axis in axes.items():
        matrix = rotation(axis, angle).to(device).unsqueeze(1)
        yield _Jets(transform(matrix, p4), mask, symmetry, float("nan"), here, matrix)

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


Function = Callable[[Tensor, Tensor], dict[str, Tensor]]


def _measured(
    function: Function,
    p4: Tensor,
    mask: Tensor,
    changes: Iterable[_Jets],
    dtype: torch.dtype,
    layer: str,
    most_particles: int | None = None,
) -> list[SymmetryError]:
    """One row for each change and output of ``function``, by name: "tokens" and "features" are (batch, n, …), one for
    each particle, "vectors" (batch, m, 4) turn along with the jet, others (batch, …) stay as they are.
    """
    table = []
    with torch.no_grad():
        before = function(p4, mask)
        for change in changes:
            if most_particles is not None and change.mask.shape[1] > most_particles:
                continue
            for name, after in function(change.p4, change.mask).items():
                expected = before[name]
                if name in ("tokens", "features"):
                    if change.places is None:
                        continue
                    after = after.gather(1, change.places.unsqueeze(-1).expand_as(expected))
                elif name == "vectors" and change.matrix is not None:
                    expected = transform(change.matrix, expected.double())
                table.append(_row(change, layer, name, dtype, after, expected))
    return table


def audit_model(
    model: JetModel,
    p4: Tensor,
    mask: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    boosts: Sequence[float] = BOOSTS,
    soft: Sequence[float] = SOFT,
    seed: int = 0,
) -> list[SymmetryError]:
    """How far symmetries hold for a model, features and their normalisation included, and where they are lost.

    The model is copied, not changed. It is shown all particles. Columns that the features need beside momenta count as
    not measured.

    Args:
        model: what to test, in evaluation mode.
        p4: (batch, n, 4) momenta in GeV, on the device of the model, zero where padded. Give float64 momenta: in
            float32, rounding has taken the masses that boosts are to preserve.
        mask: (batch, n) bool, True for a real particle; at least one in each jet.
        dtype: precision of the network.
        boosts: Lorentz factors.
        soft: fractions of energy.
        seed: of directions, orders and places.

    Returns:
        One row for each change and output. Layers are "features", what goes into the encoder; "block k", the encoder
        without all that follows block k; "end", the whole model. Outputs are "features" and "tokens" of particles,
        compared place by place, so not for soft and collinear changes, which are looked at in the end only; "cls";
        "vectors" of a `LorentzEncoder`; "scores" (probabilities) of a tagger. Where an encoder takes only so many
        particles, changes that need more places are left out.

    Raises:
        InputError: if a jet is empty.
    """
    _refuse_empty(mask)
    model = copy.deepcopy(model).eval().to(dtype)
    p4 = p4.double() * mask.unsqueeze(-1)
    changes = list(_changes(p4, mask, boosts, soft, seed))
    kept = [change for change in changes if change.places is not None]
    depth, most = len(model.encoder.stages), model.encoder.most_particles

    def view(momenta: Tensor, real: Tensor) -> ModelInput:
        return _view(model.features, momenta, real, dtype)

    table = _measured(lambda p, m: {"features": view(p, m).features}, p4, mask, kept, dtype, "features", most)
    for k in range(1, depth):
        cut = copy.deepcopy(model.encoder)
        del cut.stages[k:]
        table += _measured(_outputs(cut, view), p4, mask, kept, dtype, f"block {k}", most)
    return table + _measured(_outputs(model.encoder, view, model), p4, mask, changes, dtype, "end", most)


def _view(features: Features, p4: Tensor, mask: Tensor, dtype: torch.dtype) -> ModelInput:
    """What the encoder sees, with float64 momenta."""
    unknown = torch.full_like(p4[..., 0], torch.nan)
    view = features(JetBatch(p4, mask, p4.sum(1), measured=dict.fromkeys(features.config.columns, unknown)))
    floats = {name: getattr(view, name).to(dtype) for name in ("features", "coordinates", "jet_features", "angles")}
    return ModelInput(mask=mask, p4=p4, **floats)


def _outputs(
    encoder: JetEncoder, view: Callable[[Tensor, Tensor], ModelInput], model: JetModel | None = None
) -> Function:
    """What `_measured` compares: all that an encoder says, and the scores of a tagger."""

    def outputs(p4: Tensor, mask: Tensor) -> dict[str, Tensor]:
        encoded: Encoded = encoder([view(p4, mask)])[0]
        found = {"cls": encoded.cls, "tokens": encoded.tokens}
        if isinstance(encoder, LorentzEncoder):
            jets = encoder.jets(p4, mask)
            found["vectors"] = jets.frame.to_lab(jets.vectors.mT)
        if model is not None and model.head is not None:
            found["scores"] = model.head(encoded.pooled(model.config.pooling)).softmax(-1)
        return found

    return outputs


def audit_covariant(
    function: Covariant,
    p4: Tensor,
    mask: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    boosts: Sequence[float] = BOOSTS,
    soft: Sequence[float] = SOFT,
    seed: int = 0,
    layer: str = "end",
    most_particles: int | None = None,
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
        layer: for the record.
        most_particles: leave out changes that need more places.

    Raises:
        InputError: if a jet is empty.
    """
    _refuse_empty(mask)
    p4 = p4.double() * mask.unsqueeze(-1)
    changes = _changes(p4, mask, boosts, soft, seed)
    return _measured(lambda p, m: {"vectors": function(p, m)}, p4, mask, changes, dtype, layer, most_particles)


def _refuse_empty(mask: Tensor) -> None:
    if not len(mask) or not bool(mask.any(1).all()):
        empty = int((~mask.any(1)).float().argmax()) if len(mask) else None
        raise InputError("has no particles", jet=empty, field="mask", remedy="audit jets with at least one particle")
