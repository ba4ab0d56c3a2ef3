"""The latent of an autoencoder and the observables of jets."""

import numpy as np
import pytest
import torch

from jetrep.encoders.lorentz import LorentzConfig, LorentzEncoder
from jetrep.encoders.lorentz_decoder import LorentzAutoencoder, LorentzDecoderConfig
from jetrep.errors import InputError
from jetrep.evaluation.latent import correlations, latent_quantities, mass_spectra, signed_mass
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
