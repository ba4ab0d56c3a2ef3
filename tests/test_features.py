import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from jetrep.encoders import TransformerConfig, build_encoder
from jetrep.encoders.lorentz import LorentzConfig
from jetrep.encoders.particle_transformer import ParticleTransformerConfig
from jetrep.errors import InputError
from jetrep.features import FEATURE_SETS, MEASURED_FEATURES, STANDARDIZATIONS, FeatureConfig, Features
from jetrep.jets import JetBatch, Jets
from jetrep.physics import fourvector as fv
from jetrep.views.rg import subjets
from random_jets import random_jets
from weaver_arrays import weaver_jets

# Largest differences from features that refer to the jet axis in the files of JetClass.
AXIS = {"log_energy_rel": 2.4e-2, "delta_r": 7e-2, "delta_eta": 1.8e-2}


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


def with_measured(jets: Jets, seed: int = 0) -> Jets:
    """Columns of every kind; the tracks of neutral particles were not measured."""
    rng = np.random.default_rng(seed)
    n = len(jets.p4)
    charge = rng.integers(-1, 2, n)
    columns = {name: rng.normal(0, 0.5, n) for name in ("d0", "dz")}
    columns |= {name: rng.exponential(0.5, n) for name in ("d0_error", "dz_error")}
    columns = {name: np.where(charge == 0, np.nan, values) for name, values in columns.items()}
    flags = {name: rng.integers(0, 2, n) for name in MEASURED_FEATURES.values() if name.startswith("is_")}
    return replace(jets, measured={"charge": charge, **flags, **columns})


def test_sets_of_features_are_those_of_weaver_in_its_order():
    momenta = ("log_pt", "log_energy", "log_pt_rel", "log_energy_rel", "delta_r")
    pid = ("charge", "is_charged_hadron", "is_neutral_hadron", "is_photon", "is_electron", "is_muon")
    angles = ("delta_eta", "delta_phi")
    assert FEATURE_SETS["kin"] == (*momenta, *angles)
    assert FEATURE_SETS["kinpid"] == (*momenta, *pid, *angles)
    assert FEATURE_SETS["full"] == (*momenta, *pid, "tanh_d0", "d0_error", "tanh_dz", "dz_error", *angles)
    signed = Features(FeatureConfig("full", "weaver", signed_eta=True))
    assert signed.names == tuple("delta_eta_signed" if n == "delta_eta" else n for n in FEATURE_SETS["full"])


def test_measured_features_equal_their_definitions():
    jets = with_measured(random_jets([60, 1, 9]))
    batch = jets.batch()
    features = Features(FeatureConfig("full"))
    raw = features.raw(batch)[batch.mask].numpy()
    expected = {
        **{name: jets.measured[name] for name in ("charge", "is_photon", "is_muon")},
        "tanh_d0": np.tanh(np.nan_to_num(jets.measured["d0"])),
        "tanh_dz": np.tanh(np.nan_to_num(jets.measured["dz"])),
        "d0_error": np.clip(np.nan_to_num(jets.measured["d0_error"]), 0, 1),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(raw[:, column(features, name)], values, atol=1e-6, err_msg=name)
    assert (jets.measured["d0_error"] > 1).any()


@pytest.mark.parametrize("names", ["kinpid", "full"])
def test_a_missing_column_is_named_with_the_set_and_the_remedy(names):
    jets = random_jets([5, 3])
    features = Features(FeatureConfig(names))
    with pytest.raises(InputError, match=rf"'charge'.*{names}.*choose 'kin'"):
        features(jets.batch())
    some = with_measured(jets)
    some = replace(some, measured={name: v for name, v in some.measured.items() if name != "is_muon"})
    with pytest.raises(InputError, match="'is_muon'"):
        features(some.batch())


def test_weaver_standardisation_shifts_scales_clips_and_turns_nan_into_zero():
    jets = random_jets([400])
    # A vanishing momentum: its logarithm is far below the clip.
    p4 = np.concatenate([jets.p4, [[1e-9, 1e-9, 0, 0], [np.nan, np.nan, 0, 0]]])
    batch = Jets(p4, [0, len(p4)]).batch()
    batch = replace(batch, jet_p4=jets.batch().jet_p4)
    features = Features(FeatureConfig("kin", "weaver"))
    out, raw = features(batch).features[0], features.raw(batch)[0]
    for i, (a, b) in enumerate([(1.7, 0.7), (2.0, 0.7), (-4.7, 0.7), (-4.7, 0.7), (0.2, 4.0)]):
        torch.testing.assert_close(out[:-1, i], ((raw[:-1, i] - a) * b).clamp(-5, 5), atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(out[:-1, 5:], raw[:-1, 5:])
    assert out[-2, 0] == -5
    assert not out[-1].any()


def test_standardisation_by_data_leaves_charge_and_flags_and_centres_what_is_constant():
    jets = with_measured(random_jets([40, 3, 17, 8, 25]))
    jets = replace(jets, measured={**jets.measured, "dz": np.full(len(jets.p4), 0.3)})
    features = Features(FeatureConfig("full", "data"), fit_on=jets)
    batch = jets.batch()
    real, raw = features(batch).features[batch.mask], features.raw(batch)[batch.mask]
    for i, name in enumerate(features.names):
        if name == "charge" or name.startswith("is_"):
            torch.testing.assert_close(real[:, i], raw[:, i])
        elif name == "tanh_dz":
            torch.testing.assert_close(real[:, i], torch.zeros(len(real)), atol=1e-6, rtol=0)
            assert features.scale[i] == 1
        else:
            assert real[:, i].mean() == pytest.approx(0, abs=2e-4)
            assert real[:, i].std() == pytest.approx(1, abs=2e-4)


def test_constants_do_not_depend_on_how_the_jets_are_cut_into_pieces():
    jets = random_jets([7, 2, 30] * 700)
    features = Features(FeatureConfig("kin_p4", "data"), fit_on=jets)
    whole = features.raw(jets.batch())[jets.batch().mask].double()
    torch.testing.assert_close(features.mean.double(), whole.mean(0), atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(features.scale.double(), whole.std(0), atol=1e-5, rtol=1e-6)


def test_nothing_that_is_padded_or_on_the_axis_has_a_gradient_that_is_not_a_number():
    jets = Jets.concatenate([random_jets([5]), random_jets([1], seed=1), random_jets([1]).leading(0).clustered()])
    batch = jets.batch()
    p4 = batch.p4.clone().requires_grad_()
    for config in (FeatureConfig(), FeatureConfig("kin", "weaver", signed_eta=True), FeatureConfig("kin_p4", "data")):
        view = Features(config)(replace(batch, p4=p4, jet_p4=p4.sum(1)))
        (gradient,) = torch.autograd.grad((view.features**2).sum() + (view.coordinates**2).sum(), p4)
        assert torch.isfinite(gradient).all()
        assert not gradient[~batch.mask & ~batch.mask.any(1, keepdim=True)].any()
        assert gradient[batch.mask].any()


@pytest.mark.parametrize("part", ["hadronic", "leptonic"])
def test_the_published_inputs_of_jetclass_come_back(real_data, part):
    """Four-vectors and measured columns → the 17 features that the published weights were trained on.

    pT and φ of the jets in the files are those of the sum of the constituents, η and E differ from it by some 1e-4, up
    to 2e-2 for a few jets. With the axis of the files everything comes back; with the sum, all but what depends on it.
    """
    file = real_data / "jetclass" / f"jetclass_top_{part}_100_full.npz"
    jets = weaver_jets(file)
    batch = jets.batch()
    with np.load(file) as arrays:
        mask = arrays["mask"][:, 0] > 0
        theirs, kin = (np.moveaxis(arrays[name], 1, -1)[mask] for name in ("features17", "features7_kin"))
    # η and E of the axis in the file, from the first particle of each jet: the others must then agree.
    first, hardest = jets.offsets[:-1], jets.p4[jets.offsets[:-1]].astype(np.float64)
    sign = np.sign(fv.eta(jets.jet_p4))
    eta = fv.eta(hardest) - theirs[first, 15] * sign
    energy = hardest[:, fv.E] / np.exp(theirs[first, 3] / 0.7 - 4.7)
    pt, phi = fv.pt(jets.jet_p4), fv.phi(jets.jet_p4)
    axis = np.stack([energy, pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)], -1)
    stored = replace(batch, jet_p4=torch.from_numpy(axis.astype(np.float32)))

    def differences(config: FeatureConfig, batch: JetBatch, expected: np.ndarray) -> np.ndarray:
        features = Features(config)
        found = features(batch).features[batch.mask].numpy()
        # The files hold ΔR as it was before clipping.
        found[:, 4] = (features.raw(batch)[batch.mask].numpy()[:, 4] - 0.2) * 4
        return np.abs(found - expected).max(0)

    for names, expected in (("full", theirs), ("kin", kin)):
        signed = FeatureConfig(names, "weaver", signed_eta=True)
        assert (differences(signed, stored, expected) < 1e-5).all()
        worst = dict(zip(FEATURE_SETS[names], differences(signed, batch, expected), strict=True))
        assert all(worst.pop(name) < limit for name, limit in AXIS.items()), worst
        assert all(value < 1e-5 for value in worst.values()), worst
        # Jets of both hemispheres are there, and unsigned Δη differs for those behind.
        assert differences(FeatureConfig(names, "weaver"), stored, expected)[-2] > 0.5


# Scaling to one pT

SCALED = FeatureConfig("kin_p4", "rino_g1", scale_pt=500.0)


def times(batch, factor):
    return replace(batch, p4=batch.p4 * factor, jet_p4=batch.jet_p4 * factor)


@pytest.mark.parametrize("names", FEATURE_SETS)
def test_a_jet_and_its_double_look_the_same_when_scaled(names):
    jets = random_jets([20, 1, 7])
    batch = replace(jets.batch(), measured={c: torch.zeros(3, 20) for c in MEASURED_FEATURES.values()})
    scaled = Features(FeatureConfig(names, "data", scale_pt=500.0))
    plain = Features(FeatureConfig(names, "data"))
    one, two = scaled(batch), scaled(times(batch, 2.0))
    for field in ("features", "coordinates", "jet_features", "angles", "p4"):
        torch.testing.assert_close(getattr(one, field), getattr(two, field), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.angles, plain(batch).angles, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(plain(batch).features, plain(times(batch, 2.0)).features)


def test_scaled_features_are_those_of_the_scaled_momenta():
    """Momenta, and with them masses and energies, are multiplied by 500 GeV over the pT of the jet."""
    batch = random_jets([20, 1, 7]).batch()
    factor = 500.0 / torch.hypot(batch.jet_p4[:, 1], batch.jet_p4[:, 2])
    by_hand = replace(batch, p4=batch.p4 * factor.view(-1, 1, 1), jet_p4=batch.jet_p4 * factor.view(-1, 1))
    features = Features(SCALED)
    got, expected = features(batch), Features(replace(SCALED, scale_pt=None))(by_hand)
    for field in ("features", "jet_features", "angles", "p4"):
        torch.testing.assert_close(getattr(got, field), getattr(expected, field))
    torch.testing.assert_close(fv.mass(got.p4.sum(1)), fv.mass(batch.jet_p4) * factor, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(fv.pt(got.p4.sum(1)), torch.full((3,), 500.0), rtol=1e-4, atol=0)
    torch.testing.assert_close(features.raw_jet(batch)[:, 1], torch.full((3,), math.log(500.0)))


def test_every_view_of_a_jet_is_scaled_alike():
    batch = random_jets([20, 9, 7]).batch()
    features = Features(SCALED)
    whole, three = features(batch), features(subjets(batch, 3))
    torch.testing.assert_close(three.p4.sum(1), whole.p4.sum(1), rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(three.jet_features, whole.jet_features)
    some = replace(batch, mask=batch.mask & (torch.arange(20) % 2 == 0))  # the others are hidden
    torch.testing.assert_close(features(some).features[some.mask], whole.features[some.mask])


def test_constants_from_data_are_those_of_scaled_jets():
    jets = random_jets([40, 3, 17, 8, 25])
    features = Features(FeatureConfig("kin_p4", "data", scale_pt=500.0), fit_on=jets)
    batch = times(jets.batch(), 3.0)
    out = features(batch)
    torch.testing.assert_close(out.features[batch.mask].mean(0), torch.zeros(11), atol=2e-4, rtol=0)
    torch.testing.assert_close(out.features[batch.mask].std(0), torch.ones(11), atol=2e-4, rtol=0)
    assert float(out.jet_features[:, 1].abs().max()) < 1e-5  # it is the same for all: centred, and left at its scale


@pytest.mark.parametrize(
    "encoder",
    [
        ParticleTransformerConfig(16, 1, heads=2, embed=(8,)),
        LorentzConfig(),
        TransformerConfig(width=16, depth=1, heads=2, mlp_hidden=16),
    ],
    ids=lambda config: config.kind,
)
def test_encoders_see_scaled_momenta(encoder):
    """Also those that look at four-vectors: jets of one shape are one to them."""
    torch.manual_seed(0)
    features = Features(replace(SCALED, names="kin"))
    net = build_encoder(encoder, len(features.names)).eval()
    batch = random_jets([20, 5, 7]).batch()
    with torch.no_grad():
        one, two = (net([features(times(batch, factor))])[0].cls for factor in (1.0, 2.0))
        other = net([Features(FeatureConfig())(times(batch, 2.0))])[0].cls
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("p4", [[0.0] * 4, [5.0, 0.0, 0.0, 5.0]])
def test_jets_without_pt_are_not_scaled(p4):
    batch = JetBatch(torch.tensor([[p4]]), torch.tensor([[p4[0] > 0]]), torch.tensor([p4]))
    out = Features(SCALED)(batch)
    assert out.features.isfinite().all()
    assert torch.equal(out.p4, batch.p4)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_must_be_a_momentum(value):
    with pytest.raises(InputError, match=r"features.scale_pt"):
        FeatureConfig(scale_pt=value)
