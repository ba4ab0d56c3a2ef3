r"""Named particle and jet features, computed on the device from four-vectors and measured columns, and standardised.

All features of all views of a jet refer to the axis and momentum of the whole jet (`JetBatch.jet_p4`), never to
numbers stored in files: conventions such as the sign of Δη differ between data sets, four-vectors do not.

======================  ================================================================================
``log_pt``              :math:`\ln p_T`, pT in GeV
``log_energy``          :math:`\ln E`
``log_pt_rel``          :math:`\ln (p_T / p_T^{jet})`
``log_energy_rel``      :math:`\ln (E / E^{jet})`
``delta_r``             :math:`\sqrt{\Delta\eta^2 + \Delta\phi^2}`
``delta_eta``           :math:`\eta - \eta^{jet}`, unsigned by hemisphere
``delta_eta_signed``    :math:`\mathrm{sign}(\eta^{jet}) (\eta - \eta^{jet})`: jets of both hemispheres look alike
``delta_phi``           :math:`\phi - \phi^{jet}`, wrapped
``px py pz energy``     components in GeV
``charge``, ``is_…``    charge in units of e; the five flags of particle type of `jetrep.jets.columns.MEASURED`
``tanh_d0 tanh_dz``     hyperbolic tangent of an impact parameter in mm
``d0_error dz_error``   its error in mm, clipped to [0, 1]
======================  ================================================================================

The last three rows are measured, not derived: only particles have them, subjets do not. What was not measured (NaN)
counts as zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from jetrep.errors import InputError
from jetrep.jets import JetBatch, Jets
from jetrep.physics import fourvector as fv

__all__ = [
    "CLIPPED",
    "FEATURE_SETS",
    "JET_FEATURES",
    "MEASURED_FEATURES",
    "STANDARDIZATIONS",
    "FeatureConfig",
    "Features",
    "ModelInput",
]

_FLOOR = 1e-8  # GeV; keeps the logarithm of a vanishing momentum finite


@dataclass(frozen=True)
class ModelInput:
    """What an encoder sees of one view.

    Attributes:
        features: (batch, n, n_features) standardised, zero where padded.
        mask: (batch, n) bool, True for a real particle.
        coordinates: (batch, n, 2) standardised (Δη, Δφ), for position embeddings; survives the masking of features.
        jet_features: (batch, 4) standardised `JET_FEATURES` of the whole jet.
        angles: (batch, n, 2) (Δη, Δφ) as they are, zero where padded, for encoders that measure distances between
            particles; survives the masking of features.
        p4: (batch, n, 4) four-vectors in GeV, zero where padded or masked, for encoders that make features of pairs.
    """

    features: Tensor
    mask: Tensor
    coordinates: Tensor
    jet_features: Tensor
    angles: Tensor | None = None
    p4: Tensor | None = None

    def with_masked(self, masked: Tensor) -> ModelInput:
        """The same view without features and momenta of the ``masked`` (batch, n) particles; coordinates stay."""
        hidden = masked.unsqueeze(-1)
        p4 = None if self.p4 is None else self.p4.masked_fill(hidden, 0.0)
        return replace(self, features=self.features.masked_fill(hidden, 0.0), p4=p4)

    def jets(self, rows: Tensor) -> ModelInput:
        """The jets ``rows`` of this view."""
        angles, p4 = (None if values is None else values[rows] for values in (self.angles, self.p4))
        return ModelInput(
            self.features[rows], self.mask[rows], self.coordinates[rows], self.jet_features[rows], angles, p4
        )


JET_FEATURES = ("jet_log_energy", "jet_log_pt", "jet_eta", "jet_phi")

_FLAGS = ("is_charged_hadron", "is_neutral_hadron", "is_photon", "is_electron", "is_muon")
_PID = ("charge", *_FLAGS)
_TRACK = ("tanh_d0", "d0_error", "tanh_dz", "dz_error")

MEASURED_FEATURES: Mapping[str, str] = MappingProxyType(
    {**{name: name for name in (*_PID, "d0_error", "dz_error")}, "tanh_d0": "d0", "tanh_dz": "dz"}
)
"""Features that are not derived from four-vectors, and the column of `Jets.measured` that each is made from."""

_MOMENTA = ("log_pt", "log_energy", "log_pt_rel", "log_energy_rel", "delta_r")
_ANGLES = ("delta_eta", "delta_phi")
_KIN = (*_MOMENTA, *_ANGLES)

FEATURE_SETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "kin": _KIN,
        "kin_p4": ("px", "py", "pz", "energy", *_KIN),
        "kinpid": (*_MOMENTA, *_PID, *_ANGLES),
        "full": (*_MOMENTA, *_PID, *_TRACK, *_ANGLES),
    }
)

_UNTOUCHED = dict.fromkeys(MEASURED_FEATURES, (0.0, 1.0))

_RINO_G2 = {
    "log_pt": (1.7, 1.8),
    "log_energy": (2.0, 1.8),
    "log_pt_rel": (-4.7, 1.8),
    "log_energy_rel": (-4.7, 1.8),
    "delta_r": (0.14, 0.25),
    "delta_eta": (0.0, 0.14),
    "delta_phi": (0.0, 0.14),
    "jet_log_energy": (6.7, 0.5),
    "jet_log_pt": (6.4, 0.25),
    "jet_eta": (0.0, 1.3),
    "jet_phi": (0.0, torch.pi),
    **_UNTOUCHED,
}

# (mean, scale) of each feature: (x − mean) / scale enters the model. RINO: arXiv 2509.07486 (g1) and its code (g2);
# weaver: the configurations for JetClass that go with Particle Transformer, arXiv 2202.03772.
STANDARDIZATIONS: Mapping[str, Mapping[str, tuple[float, float]]] = MappingProxyType(
    {
        "rino_g2": _RINO_G2,
        "rino_g1": {
            **dict.fromkeys(("px", "py", "pz", "energy"), (0.0, 25.0)),
            "log_pt": (1.5, 1.5),
            "log_energy": (1.5, 1.5),
            "log_pt_rel": (-4.5, 1.5),
            "log_energy_rel": (-5.0, 1.5),
            "delta_r": (0.3, 0.2),
            "delta_eta": (0.0, 0.3),
            "delta_phi": (0.0, 0.3),
            "jet_log_energy": (7.0, 1.0),
            "jet_log_pt": (6.5, 0.5),
            "jet_eta": (0.0, 2.0),
            "jet_phi": (0.0, torch.pi),
            **_UNTOUCHED,
        },
        "weaver": {
            "log_pt": (1.7, 1 / 0.7),
            "log_energy": (2.0, 1 / 0.7),
            "log_pt_rel": (-4.7, 1 / 0.7),
            "log_energy_rel": (-4.7, 1 / 0.7),
            "delta_r": (0.2, 1 / 4.0),
            "delta_eta": (0.0, 1.0),
            "delta_phi": (0.0, 1.0),
            # weaver has no features of the jet.
            **{name: _RINO_G2[name] for name in JET_FEATURES},
            **_UNTOUCHED,
        },
    }
)

CLIPPED: Mapping[str, Mapping[str, float]] = MappingProxyType({"weaver": dict.fromkeys(_MOMENTA, 5.0)})
"""Standardised features that are clipped to ± this value, by standardisation."""


@dataclass(frozen=True)
class FeatureConfig:
    """Which features, and how they are standardised.

    Attributes:
        names: feature set, a key of `FEATURE_SETS`: "kin" (7 kinematic features), "kin_p4" (11, with the components),
            "kinpid" (13, with charge and particle type), "full" (17, with impact parameters too).
        standardization: fixed constants, a key of `STANDARDIZATIONS`, or "data": mean and standard deviation of the
            particles (without padding) of the training set. Charge and flags are left as they are.
        signed_eta: give Δη the sign that it has in JetClass files and for models trained on them: jets in the
            backward hemisphere are reflected.
        scale_pt: multiply all four-vectors of a jet, in every view, by one number, so that the jet has this pT in GeV
            (arXiv 2511.12829 has 500); by default jets are taken as they are.
    """

    names: Literal["kin", "kin_p4", "kinpid", "full"] = "kin"
    standardization: Literal["rino_g2", "rino_g1", "weaver", "data"] = "rino_g2"
    signed_eta: bool = False
    scale_pt: float | None = field(default=None, metadata={"later": True})

    def __post_init__(self) -> None:
        if self.scale_pt is not None and not (math.isfinite(self.scale_pt) and self.scale_pt > 0):
            raise InputError(f"is {self.scale_pt}", field="features.scale_pt", remedy="give a pT in GeV above 0")

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of `Jets.measured` that the feature set needs."""
        return tuple(MEASURED_FEATURES[name] for name in FEATURE_SETS[self.names] if name in MEASURED_FEATURES)


class Features(nn.Module):
    """`JetBatch` → `ModelInput`. The constants are buffers: they are saved with the weights and move with the model.

    Args:
        config: feature set and standardisation.
        fit_on: jets to derive the constants from; needed, and only used, for the standardisation "data" of a new model.

    Raises:
        InputError: if the standardisation has no constants for the features, or ``fit_on`` lacks a measured column.
    """

    mean: Tensor
    scale: Tensor
    coordinate_scale: Tensor
    jet_mean: Tensor
    jet_scale: Tensor

    def __init__(self, config: FeatureConfig, fit_on: Jets | None = None) -> None:
        super().__init__()
        self.config = config
        eta = "delta_eta_signed" if config.signed_eta else "delta_eta"
        self.names = tuple(eta if name == "delta_eta" else name for name in FEATURE_SETS[config.names])
        angles = (eta, "delta_phi")
        self._coordinates = [self.names.index(name) for name in angles]
        constants = dict(STANDARDIZATIONS.get(config.standardization) or STANDARDIZATIONS["rino_g2"])
        constants["delta_eta_signed"] = constants["delta_eta"]
        names = [*self.names, *angles]
        if missing := [name for name in (*names, *JET_FEATURES) if name not in constants]:
            if config.standardization != "data":
                raise InputError(
                    f"no constants for {', '.join(missing)} in '{config.standardization}'",
                    field="features.standardization",
                    remedy="choose another feature set, or 'data'",
                )
            constants |= dict.fromkeys(missing, (0.0, 1.0))
        pairs = torch.tensor([constants[name] for name in names], dtype=torch.float32)
        jet_pairs = torch.tensor([constants[name] for name in JET_FEATURES], dtype=torch.float32)
        self.register_buffer("mean", pairs[:-2, 0].clone())
        self.register_buffer("scale", pairs[:-2, 1].clone())
        self.register_buffer("coordinate_scale", pairs[-2:, 1].clone())
        self.register_buffer("jet_mean", jet_pairs[:, 0].clone())
        self.register_buffer("jet_scale", jet_pairs[:, 1].clone())
        if config.standardization == "data" and fit_on is not None:
            self.fit(fit_on)

    def check(self, measured: Mapping[str, object]) -> None:
        """Whether these measured columns are enough.

        Raises:
            InputError: naming a column that is missing.
        """
        for column in self.config.columns:
            if column not in measured:
                raise InputError(
                    f"the feature set '{self.config.names}' needs the measured column '{column}', "
                    "which these jets do not have",
                    field=column,
                    remedy="prepare them from a data set that has it, show particles and not subjets, or choose 'kin'",
                )

    def scaled(self, batch: JetBatch) -> JetBatch:
        """The view with the momenta that features are made of: those of `FeatureConfig.scale_pt`.

        Angles stay, and masses scale. Scaling twice is scaling once. A jet without pT stays as it is.
        """
        if self.config.scale_pt is None:
            return batch
        pt = fv.pt(batch.jet_p4)
        factor = torch.where(pt > _FLOOR, self.config.scale_pt / pt.clamp(min=_FLOOR), 1.0)
        return replace(batch, p4=batch.p4 * factor.view(-1, 1, 1), jet_p4=batch.jet_p4 * factor.unsqueeze(1))

    def _planes(self, batch: JetBatch) -> tuple[dict[str, Tensor], Tensor]:
        """Every particle feature, (batch, n) each, columns as they were measured; and the mask as numbers."""
        self.check(batch.measured)
        real = batch.mask.to(batch.p4.dtype)
        padding = 1 - real
        # The same array with its components apart, as vector instructions want them. Padding becomes a particle
        # along x, and so does the axis of an empty jet: their values are not used, but their gradients stay finite.
        components = batch.p4.movedim(-1, 0).contiguous()
        along_x = components.new_tensor([1.0, 1.0, 0.0, 0.0])
        components = components + along_x.view(4, 1, 1) * padding
        p4, (energy, px, py, pz) = components.movedim(0, -1), components
        jet = (batch.jet_p4 + along_x * padding.amin(1, keepdim=True)).unsqueeze(1)
        pt, jet_eta = fv.pt(p4), fv.eta(jet)
        log_pt, log_energy = _log(pt), _log(energy)
        delta_eta = fv.eta(p4) - jet_eta
        delta_phi = fv.delta_phi(fv.phi(p4), fv.phi(jet))
        planes = {
            "log_pt": log_pt,
            "log_energy": log_energy,
            "log_pt_rel": log_pt - _log(fv.pt(jet)),
            "log_energy_rel": log_energy - _log(jet[..., fv.E]),
            # The floor is far below any angle, and gives a particle on the axis a gradient.
            "delta_r": torch.sqrt((delta_eta.square() + delta_phi.square()).clamp(min=1e-30)),
            "delta_eta": delta_eta,
            "delta_eta_signed": delta_eta * torch.copysign(torch.ones_like(jet_eta), jet_eta.detach()),
            "delta_phi": delta_phi,
            "px": px,
            "py": py,
            "pz": pz,
            "energy": energy,
        }
        columns = {name: batch.measured[column] for name, column in MEASURED_FEATURES.items() if name in self.names}
        return planes | columns, real

    def _stacked(self, batch: JetBatch) -> tuple[Tensor, Tensor]:
        """Features (n_features, batch, n), one after the other in memory, and the mask as numbers."""
        planes, real = self._planes(batch)
        stacked = torch.stack([planes[name].to(real.dtype) for name in self.names])
        # In place, here and below: on a CPU new memory costs more than the arithmetic.
        for i, name in enumerate(self.names):
            row = stacked[i]
            if name in MEASURED_FEATURES:
                row.nan_to_num_(posinf=torch.inf, neginf=-torch.inf)
            if name.startswith("tanh_"):
                row.tanh_()
            elif name.endswith("_error"):
                row.clamp_(0, 1)
        return stacked, real

    def raw(self, batch: JetBatch) -> Tensor:
        """Unstandardised features (batch, n, n_features); padded entries are meaningless.

        Raises:
            InputError: if the jets lack a measured column that the feature set needs.
        """
        return self._stacked(self.scaled(batch))[0].movedim(0, -1)

    def raw_jet(self, batch: JetBatch) -> Tensor:
        """Unstandardised `JET_FEATURES` (batch, 4)."""
        jet = self.scaled(batch).jet_p4
        return torch.stack([_log(jet[..., fv.E]), _log(fv.pt(jet)), fv.eta(jet), fv.phi(jet)], -1)

    def fit(self, jets: Jets, max_jets: int = 20_000) -> None:
        """Set mean and scale to those of the particles of up to ``max_jets`` jets, evenly drawn from the set.

        Jets are taken in pieces, so that memory does not depend on their number. A feature that is the same for all
        particles is centred and keeps its scale; charge and flags are left as they are.

        Raises:
            InputError: if there are no particles, or a measured column is missing.
        """
        rows = np.arange(0, len(jets), -(-len(jets) // max_jets) or 1)
        particles, jet = _Moments(), _Moments()
        for start in range(0, len(rows), 1024):
            batch = jets.batch(rows[start : start + 1024])
            particles.add(self.raw(batch)[batch.mask])
            jet.add(self.raw_jet(batch))
        if not particles.n:
            raise InputError("there are no particles to standardise by", field="data", remedy="give at least one jet")
        untouched = torch.tensor([name in _PID for name in self.names])
        for prefix, (mean, scale), keep in (("", particles.result(), untouched), ("jet_", jet.result(), None)):
            getattr(self, f"{prefix}mean").copy_(mean if keep is None else mean.masked_fill(keep, 0.0))
            getattr(self, f"{prefix}scale").copy_(scale if keep is None else scale.masked_fill(keep, 1.0))
        self.coordinate_scale.copy_(self.scale[self._coordinates])

    def forward(self, batch: JetBatch) -> ModelInput:
        """Standardised features of one view.

        Raises:
            InputError: if the jets lack a measured column that the feature set needs.
        """
        batch = self.scaled(batch)
        features, real = self._stacked(batch)
        angles = torch.stack([features[i] for i in self._coordinates]) * real
        features.sub_(self.mean.view(-1, 1, 1)).div_(self.scale.view(-1, 1, 1))
        limits = CLIPPED.get(self.config.standardization, {})
        for i, name in enumerate(self.names):
            row = features[i]
            if name in limits:
                row.clamp_(-limits[name], limits[name])
            if limits and name not in MEASURED_FEATURES:
                row.nan_to_num_()  # as weaver does
        features.mul_(real)
        return ModelInput(
            features.movedim(0, -1),
            batch.mask,
            (angles / self.coordinate_scale.view(-1, 1, 1)).movedim(0, -1),
            (self.raw_jet(batch) - self.jet_mean) / self.jet_scale,
            angles.movedim(0, -1),
            batch.p4,
        )


class _Moments:
    """Mean and standard deviation of rows that come in pieces, in double precision (Chan, Golub, LeVeque)."""

    def __init__(self) -> None:
        self.n, self.mean, self.squares = 0, torch.zeros(1), torch.zeros(1)

    def add(self, rows: Tensor) -> None:
        """Take in (m, k) more."""
        if not len(rows):
            return
        values = rows.double()
        mean, n = values.mean(0), self.n + len(values)
        shift = mean - self.mean
        self.squares = self.squares + (values - mean).square().sum(0) + shift.square() * (self.n * len(values) / n)
        self.mean, self.n = self.mean + shift * (len(values) / n), n

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean and scale (k,); the scale is 1 where all rows agree."""
        deviation = (self.squares / max(1, self.n - 1)).sqrt()
        return self.mean, torch.where(deviation > 1e-6, deviation, 1.0)


def _log(x: Tensor) -> Tensor:
    return torch.log(torch.clamp(x, min=_FLOOR))
