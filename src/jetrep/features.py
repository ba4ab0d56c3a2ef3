r"""Named particle and jet features, computed on the device from four-vectors, and their standardisation.

All features of all views of a jet refer to the axis and momentum of the whole jet (`JetBatch.jet_p4`), never to
numbers stored in files: conventions such as the sign of Δη differ between data sets, four-vectors do not.

===================  ==================================================
``log_pt``           :math:`\ln p_T`, pT in GeV
``log_energy``       :math:`\ln E`
``log_pt_rel``       :math:`\ln (p_T / p_T^{jet})`
``log_energy_rel``   :math:`\ln (E / E^{jet})`
``delta_r``          :math:`\sqrt{\Delta\eta^2 + \Delta\phi^2}`
``delta_eta``        :math:`\eta - \eta^{jet}`, unsigned by hemisphere
``delta_phi``        :math:`\phi - \phi^{jet}`, wrapped
``px py pz energy``  components in GeV
===================  ==================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

from jetrep.errors import InputError
from jetrep.jets import JetBatch, Jets
from jetrep.physics import fourvector as fv

__all__ = ["FEATURE_SETS", "JET_FEATURES", "STANDARDIZATIONS", "FeatureConfig", "Features", "ModelInput"]

_FLOOR = 1e-8  # GeV; keeps the logarithm of a vanishing momentum finite


@dataclass(frozen=True)
class ModelInput:
    """What an encoder sees of one view.

    Attributes:
        features: (batch, n, n_features) standardised, zero where padded.
        mask: (batch, n) bool, True for a real particle.
        coordinates: (batch, n, 2) standardised (Δη, Δφ), for position embeddings; survives the masking of features.
        jet_features: (batch, 4) standardised `JET_FEATURES` of the whole jet.
    """

    features: Tensor
    mask: Tensor
    coordinates: Tensor
    jet_features: Tensor

    def with_masked(self, masked: Tensor) -> ModelInput:
        """The same view with the features of the ``masked`` (batch, n) particles set to zero; coordinates stay."""
        return replace(self, features=self.features.masked_fill(masked.unsqueeze(-1), 0.0))


def _log(x: Tensor) -> Tensor:
    return torch.log(torch.clamp(x, min=_FLOOR))


def _particle_quantities(p4: Tensor, jet_p4: Tensor) -> dict[str, Tensor]:
    """Every particle feature of the table above: ``p4`` (batch, n, 4), ``jet_p4`` (batch, 1, 4) → (batch, n) each."""
    energy, px, py, pz = p4.unbind(-1)
    log_pt, log_energy = _log(fv.pt(p4)), _log(energy)
    delta_eta = fv.eta(p4) - fv.eta(jet_p4)
    delta_phi = fv.delta_phi(fv.phi(p4), fv.phi(jet_p4))
    return {
        "log_pt": log_pt,
        "log_energy": log_energy,
        "log_pt_rel": log_pt - _log(fv.pt(jet_p4)),
        "log_energy_rel": log_energy - _log(jet_p4[..., fv.E]),
        "delta_r": torch.hypot(delta_eta, delta_phi),
        "delta_eta": delta_eta,
        "delta_phi": delta_phi,
        "px": px,
        "py": py,
        "pz": pz,
        "energy": energy,
    }


JET_FEATURES = ("jet_log_energy", "jet_log_pt", "jet_eta", "jet_phi")

_KIN = ("log_pt", "log_energy", "log_pt_rel", "log_energy_rel", "delta_r", "delta_eta", "delta_phi")

FEATURE_SETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"kin": _KIN, "kin_p4": ("px", "py", "pz", "energy", *_KIN)}
)

# (mean, scale) of each feature: (x − mean) / scale enters the model. RINO: arXiv 2509.07486 (g1) and its code (g2).
STANDARDIZATIONS: Mapping[str, Mapping[str, tuple[float, float]]] = MappingProxyType(
    {
        "rino_g2": {
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
        },
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
        },
    }
)


@dataclass(frozen=True)
class FeatureConfig:
    """Which features, and how they are standardised.

    Attributes:
        names: feature set, a key of `FEATURE_SETS`.
        standardization: fixed constants, a key of `STANDARDIZATIONS`, or "data": mean and standard deviation of the
            particles (without padding) of the training set.
    """

    names: Literal["kin", "kin_p4"] = "kin"
    standardization: Literal["rino_g2", "rino_g1", "data"] = "rino_g2"


class Features(nn.Module):
    """`JetBatch` → `ModelInput`. The constants are buffers: they are saved with the weights and move with the model.

    Args:
        config: feature set and standardisation.
        fit_on: jets to derive the constants from; needed, and only used, for the standardisation "data" of a new model.
    """

    mean: Tensor
    scale: Tensor
    coordinate_scale: Tensor
    jet_mean: Tensor
    jet_scale: Tensor

    def __init__(self, config: FeatureConfig, fit_on: Jets | None = None) -> None:
        super().__init__()
        self.names = FEATURE_SETS[config.names]
        self._coordinates = [self.names.index(name) for name in ("delta_eta", "delta_phi")]
        constants = STANDARDIZATIONS.get(config.standardization) or STANDARDIZATIONS["rino_g2"]
        names = [*self.names, "delta_eta", "delta_phi"]
        if missing := [name for name in (*names, *JET_FEATURES) if name not in constants]:
            if config.standardization != "data":
                raise InputError(
                    f"no constants for {', '.join(missing)} in '{config.standardization}'",
                    field="features.standardization",
                    remedy="choose another feature set, or 'data'",
                )
            constants = dict(constants) | dict.fromkeys(missing, (0.0, 1.0))
        pairs = torch.tensor([constants[name] for name in names], dtype=torch.float32)
        jet_pairs = torch.tensor([constants[name] for name in JET_FEATURES], dtype=torch.float32)
        self.register_buffer("mean", pairs[:-2, 0].clone())
        self.register_buffer("scale", pairs[:-2, 1].clone())
        self.register_buffer("coordinate_scale", pairs[-2:, 1].clone())
        self.register_buffer("jet_mean", jet_pairs[:, 0].clone())
        self.register_buffer("jet_scale", jet_pairs[:, 1].clone())
        if config.standardization == "data" and fit_on is not None:
            self.fit(fit_on)

    def raw(self, batch: JetBatch) -> Tensor:
        """Unstandardised features (batch, n, n_features); padded entries are meaningless."""
        quantities = _particle_quantities(batch.p4, batch.jet_p4.unsqueeze(1))
        return torch.stack([quantities[name] for name in self.names], -1)

    def raw_jet(self, batch: JetBatch) -> Tensor:
        """Unstandardised `JET_FEATURES` (batch, 4)."""
        jet = batch.jet_p4
        return torch.stack([_log(jet[..., fv.E]), _log(fv.pt(jet)), fv.eta(jet), fv.phi(jet)], -1)

    def fit(self, jets: Jets, max_jets: int = 20_000) -> None:
        """Set mean and scale to those of the particles of up to ``max_jets`` jets, evenly drawn from the set."""
        step = -(-len(jets) // max_jets)
        batch = jets.batch(slice(0, None, step))
        particles = self.raw(batch)[batch.mask].double()
        jet = self.raw_jet(batch).double()
        for name, values in (("", particles), ("jet_", jet)):
            getattr(self, f"{name}mean").copy_(values.mean(0))
            # A constant feature is centred, not divided by zero.
            getattr(self, f"{name}scale").copy_(values.std(0).clamp(min=1e-6))
        self.coordinate_scale.copy_(self.scale[self._coordinates])

    def forward(self, batch: JetBatch) -> ModelInput:
        """Standardised features of one view."""
        valid = batch.mask.unsqueeze(-1)
        raw = self.raw(batch)
        features = torch.where(valid, (raw - self.mean) / self.scale, 0.0)
        coordinates = torch.where(valid, raw[..., self._coordinates] / self.coordinate_scale, 0.0)
        return ModelInput(features, batch.mask, coordinates, (self.raw_jet(batch) - self.jet_mean) / self.jet_scale)
