"""The latent of an autoencoder and the observables of jets."""

import numpy as np
import pytest
import torch

from jetrep.encoders.linear_autoencoders import HardestParticles, LinearLorentz
from jetrep.encoders.lorentz import LorentzConfig, LorentzEncoder
from jetrep.encoders.lorentz_decoder import LorentzAutoencoder, LorentzDecoderConfig
from jetrep.errors import InputError
from jetrep.evaluation.latent import correlations, latent_quantities, mahalanobis, mass_spectra, signed_mass
from jetrep.physics.lorentz import minkowski
from lorentz_jets import jets_of, observers, seen_by


def tiny():
    torch.manual_seed(0)
    encoder = LorentzEncoder(LorentzConfig(width=8, vectors=4, heads=2, depth=1, hidden=8, pooled=2))
    config = LorentzDecoderConfig(n_particles=6, width=8, vectors=4, heads=2, depth=1, hidden=8)
    return LorentzAutoencoder(encoder, 2, config).eval()


def test_products_of_vectors_are_those_of_their_components_and_invariant():
    model = tiny()
    p4, mask = jets_of([3, 6, 5, 4])
    boosted = seen_by(observers(4, 3.0), p4)
    with torch.no_grad():
        found, moved = (latent_quantities(model, model.encode(x, mask).numpy()) for x in (p4, boosted))
    z = [torch.tensor(np.stack([found[f"z{a} {k}"] for k in ("E", "px", "py", "pz")], -1)) for a in (1, 2, 3)]
    np.testing.assert_allclose(found["z2·z3"], minkowski(z[1], z[2]), rtol=1e-6)
    np.testing.assert_allclose(found["z1²"], minkowski(z[0], z[0]), rtol=1e-6)
    np.testing.assert_allclose(found["Σz px"], sum(x[:, 1] for x in z), rtol=1e-9)
    jet = p4.sum(1)
    np.testing.assert_allclose(z[0], jet, rtol=1e-6)
    for name, values in found.items():
        if name.startswith("s") or "·" in name or "²" in name:
            np.testing.assert_allclose(moved[name], values, rtol=1e-3, atol=1e-3 * np.abs(values).max(), err_msg=name)
    assert not np.allclose(moved["z1 E"], found["z1 E"], rtol=0.1)
    assert len(found) == 2 + 4 * 3 + 4 + 6


def test_correlations_against_numpy():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=400), rng.normal(size=400)
    latent = {"a": x, "b": 2 * x + y, "constant": np.full(400, 7.0)}
    found = correlations(latent, {"x": -3 * x + 1, "y": y}, n_bootstrap=200)
    assert found.r[0, 0] == pytest.approx(-1)
    assert found.error[0, 0] < 1e-9
    assert found.r[1, 1] == pytest.approx(np.corrcoef(latent["b"], y)[0, 1])
    # (1 − r²)/√n
    assert found.error[1, 1] == pytest.approx((1 - found.r[1, 1] ** 2) / 20, rel=0.25)
    assert np.isnan(found.r[2]).all()
    with pytest.raises(InputError, match="no correlation"):
        correlations({"a": x[:2]}, {"y": y[:2]})


def test_signed_mass():
    assert signed_mass(np.array([4.0, -9.0, 0.0])).tolist() == [2.0, -3.0, 0.0]


def test_spectra_hold_every_jet_of_every_class():
    rng = np.random.default_rng(0)
    latent = {
        kind: {"s1": rng.normal(size=n), "z1²": rng.normal(scale, 50, n)}
        for kind, n, scale in (("qcd", 50, 400), ("top", 80, 3e4))
    }
    ((name, (edges, counts)),) = mass_spectra(latent).items()
    assert name == "z1"
    assert {kind: n.sum() for kind, n in counts.items()} == {"qcd": 50, "top": 80}
    centre = 0.5 * (edges[1:] + edges[:-1])
    assert np.average(centre, weights=counts["top"]) == pytest.approx(np.sqrt(3e4), rel=0.02)
    assert mass_spectra({"qcd": {"z1": rng.normal(size=5)}}) == {}


def test_distances_of_normal_numbers_are_chi_squared():
    """Whatever their scale, units and correlations are."""
    rng = np.random.default_rng(0)
    mix, shift = rng.normal(size=(5, 5)) * [1, 10, 1e-3, 1e4, 1], rng.normal(size=5)
    known, same, far = (rng.normal(size=(4000, 5)) @ mix + shift for _ in range(3))
    own, others = mahalanobis(known, {"same": same, "far": far + 3 * mix[0]})
    assert own.mean() == pytest.approx(5, rel=0.05)
    assert others["same"].mean() == pytest.approx(5, rel=0.05)
    assert others["far"].mean() == pytest.approx(5 + 9, rel=0.05)


def test_known_jets_are_judged_by_others():
    """With fewer jets than quantities, a jet that the covariance has seen would look closer than it is."""
    rng = np.random.default_rng(0)
    known, same = rng.normal(size=(60, 40)), rng.normal(size=(2000, 40))
    own, others = mahalanobis(known, {"same": same})
    assert own.mean() == pytest.approx(others["same"].mean(), rel=0.1)
    # A quantity that is the same for all says nothing.
    more = [np.concatenate([x, np.full((len(x), 1), 7.0)], 1) for x in (known, same)]
    assert np.corrcoef(mahalanobis(more[0], {"same": more[1]})[1]["same"], others["same"])[0, 1] > 0.999
    with pytest.raises(InputError, match="no covariance"):
        mahalanobis(known[:3], {})


@pytest.mark.parametrize("model", [tiny(), LinearLorentz(3, 6), HardestParticles(3, 6)], ids=lambda m: type(m).__name__)
def test_what_describes_a_jet_does_not_know_its_direction(model):
    p4, mask = jets_of([3, 6, 5, 4])
    turned = p4.clone()
    turned[..., 1], turned[..., 2] = -p4[..., 2], p4[..., 1]
    # Along the beam, the hardest particles know the transverse momentum alone.
    others = [turned] if isinstance(model, HardestParticles) else [turned, seen_by(observers(4, 3.0), p4)]
    with torch.no_grad():
        described, *moved = (model.describe(model.encode(x, mask)) for x in (p4, *others))
        assert (described.std(0) > 0).any()
        for other in moved:
            torch.testing.assert_close(other, described, rtol=1e-4, atol=1e-4)
        # All of it comes of the numbers: jets differ in it.
        assert not torch.allclose(described[0], described[1], rtol=1e-2)
