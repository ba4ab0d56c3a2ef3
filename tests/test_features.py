import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from jetrep.features import FEATURE_SETS, STANDARDIZATIONS, FeatureConfig, Features
from jetrep.jets import Jets
from random_jets import random_jets


def column(features: Features, name: str) -> int:
    return features.names.index(name)


def test_features_equal_their_definitions_particle_by_particle():
    jets = random_jets([5, 1, 9])
    batch = jets.batch()
    features = Features(FeatureConfig("kin_p4", "rino_g1"))
    raw = features.raw(batch)
    for jet in range(3):
        ex, px, py, pz = jets[jet].astype(np.float64).sum(0)
        axis_eta, axis_phi, jet_pt = math.asinh(pz / math.hypot(px, py)), math.atan2(py, px), math.hypot(px, py)
        for i, (e, x, y, z) in enumerate(jets[jet].astype(np.float64)):
            pt = math.hypot(x, y)
            d_eta = math.asinh(z / pt) - axis_eta
            d_phi = math.remainder(math.atan2(y, x) - axis_phi, 2 * math.pi)
            expected = {
                "px": x,
                "py": y,
                "pz": z,
                "energy": e,
                "log_pt": math.log(pt),
                "log_energy": math.log(e),
                "log_pt_rel": math.log(pt / jet_pt),
                "log_energy_rel": math.log(e / ex),
                "delta_r": math.hypot(d_eta, d_phi),
                "delta_eta": d_eta,
                "delta_phi": d_phi,
            }
            for name, value in expected.items():
                assert float(raw[jet, i, column(features, name)]) == pytest.approx(value, rel=1e-4, abs=2e-5), name


def test_azimuthal_difference_does_not_jump_at_pi():
    jets = random_jets([200])
    features = Features(FeatureConfig())
    raw = features.raw(jets.batch())[0]
    assert (jets.p4[:, 2] > 0).any()
    assert (jets.p4[:, 2] < 0).any()
    assert raw[:, column(features, "delta_phi")].abs().max() < 1.6


def test_standardised_values_are_those_of_the_declared_constants():
    batch = random_jets([6, 3]).batch()
    features = Features(FeatureConfig("kin", "rino_g2"))
    out, raw = features(batch), features.raw(batch)
    for i, name in enumerate(FEATURE_SETS["kin"]):
        mean, scale = STANDARDIZATIONS["rino_g2"][name]
        expected = torch.where(batch.mask, (raw[..., i] - mean) / scale, 0.0)
        torch.testing.assert_close(out.features[..., i], expected)
    torch.testing.assert_close(out.coordinates[..., 0], out.features[..., column(features, "delta_eta")])


def test_data_standardisation_is_that_of_real_particles_whatever_the_padding():
    jets = random_jets([40, 3, 17, 8, 25])
    features = Features(FeatureConfig("kin_p4", "data"), fit_on=jets)
    batch = jets.batch()
    real = features(batch).features[batch.mask]
    torch.testing.assert_close(real.mean(0), torch.zeros(11), atol=2e-4, rtol=0)
    torch.testing.assert_close(real.std(0), torch.ones(11), atol=2e-4, rtol=0)

    with_long_jet = Jets.concatenate([jets, random_jets([1]).leading(0).clustered()])
    other = Features(FeatureConfig("kin_p4", "data"), fit_on=with_long_jet)
    torch.testing.assert_close(other.mean, features.mean)


def test_padding_is_zero_and_changes_nothing():
    batch = random_jets([4, 2]).batch()
    wider = replace(
        batch,
        p4=torch.nn.functional.pad(batch.p4, (0, 0, 0, 3)),
        mask=torch.nn.functional.pad(batch.mask, (0, 3)),
        order=None,
        join=None,
    )
    features = Features(FeatureConfig())
    narrow, wide = features(batch), features(wider)
    torch.testing.assert_close(wide.features[:, :4], narrow.features)
    assert not wide.features[~wide.mask].any()
    assert not wide.coordinates[~wide.mask].any()


def test_masking_hides_features_and_keeps_coordinates():
    view = Features(FeatureConfig())(random_jets([5, 4]).batch())
    hidden = torch.zeros_like(view.mask)
    hidden[0, 2] = hidden[1, 0] = True
    masked = view.with_masked(hidden)
    assert not masked.features[hidden].any()
    torch.testing.assert_close(masked.features[~hidden], view.features[~hidden])
    torch.testing.assert_close(masked.coordinates, view.coordinates)
    assert view.features[hidden].any()


def test_constants_are_saved_with_the_weights():
    fitted = Features(FeatureConfig("kin", "data"), fit_on=random_jets([30, 20]))
    loaded = Features(FeatureConfig("kin", "data"))
    loaded.load_state_dict(fitted.state_dict())
    batch = random_jets([7], seed=3).batch()
    torch.testing.assert_close(loaded(batch).features, fitted(batch).features)
    torch.testing.assert_close(loaded(batch).coordinates, fitted(batch).coordinates)
