"""Residuals and distances of reconstructed jets, against numbers computed by hand."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import wasserstein_distance
from torch import nn

from jetrep.encoders.autoencoder import Autoencoder, InLaboratory
from jetrep.errors import InputError
from jetrep.evaluation.comparison import FEATURES, compare, reconstruct, relative
from jetrep.evaluation.distances import _over_halves, _wasserstein, distribution_distances, fpd
from jetrep.evaluation.reconstruction import jet_residuals, particle_residuals, residuals
from jetrep.evaluation.scores import DISTANCES
from jetrep.physics import fourvector as fv
from jetrep.physics.observables import OBSERVABLES
from prong_jets import prong_jets
from random_jets import random_jets


class Memory(Autoencoder):
    """Keeps every particle, and disturbs what it decodes by a factor of its momentum."""

    def __init__(self, width: int, factor: float = 1.0) -> None:
        super().__init__()
        self.factor, self.width = nn.Parameter(torch.tensor(factor, dtype=torch.float64)), width

    @property
    def size(self) -> int:
        return 5 * self.width

    def encode(self, p4, mask):
        p4, mask = (nn.functional.pad(x, pad) for x, pad in self._pads(p4, mask))
        return torch.cat([p4.double(), mask.unsqueeze(-1).double()], -1).flatten(1)

    def _pads(self, p4, mask):
        room = self.width - mask.shape[1]
        return (p4, (0, 0, 0, room)), (mask, (0, room))

    def decode(self, numbers):
        table = numbers.view(len(numbers), self.width, 5)
        return InLaboratory(2 * table[..., 4] - 1, table[..., :4] * self.factor)


def massless(*particles):
    """(1, n, 4) of (pT, η, φ)."""
    pt, eta, phi = np.array(particles, np.float64).T
    return fv.from_ptetaphim(pt, eta, phi, np.zeros(len(pt)))[None]


def shown(p4):
    return p4, np.ones(p4.shape[:2], np.bool_)


def test_residuals_by_hand():
    true = massless((60, 1.1, 3.1), (40, 0.85, -3.1), (20, 1.0, 3.0))
    # In another order, one particle short, on the other side of the seam, with errors of 10 % and 0.02.
    other = massless((44, 0.85, 3.15), (60, 1.12, 3.1))
    comparison = compare(*shown(true), *shown(other))
    jet = true.sum(1)
    assert comparison.pairs.tolist() == [[0, 1], [1, 0]]
    assert comparison.unmatched == (1, 0)
    found = {name: values for name, (values, _) in particle_residuals(comparison).items()}
    np.testing.assert_allclose(found["particle pT / jet pT"], [0, 4 / fv.pt(jet)[0]], atol=1e-12)
    np.testing.assert_allclose(found["particle Δη"], [0.02, 0], atol=1e-12)
    turn = 3.15 - (2 * np.pi - 3.1)
    np.testing.assert_allclose(found["particle Δφ"], [0, turn], atol=1e-12)
    eta, phi = fv.eta(jet)[0], fv.phi(jet)[0]
    np.testing.assert_allclose(found["particle pT, relative"], [0, 0.1], atol=1e-12)
    np.testing.assert_allclose(found["particle η, relative"], [0.02 / (1.1 - eta), 0], atol=1e-12)
    np.testing.assert_allclose(found["particle φ, relative"], [0, turn / (2 * np.pi - 3.1 - phi)], atol=1e-9)
    jets = {name: values[0] for name, (values, _) in jet_residuals(comparison).items()}
    rec = other.sum(1)
    # Divided by the true value, not by the reconstructed one.
    for name, function in (("mass", fv.mass), ("pT", fv.pt), ("η", fv.eta)):
        assert jets[f"jet {name}, relative"] == pytest.approx((function(rec)[0] - function(jet)[0]) / function(jet)[0])
    assert jets["jet Δφ"] == pytest.approx(fv.delta_phi(fv.phi(rec), fv.phi(jet))[0])
    assert jets["multiplicity"] == -1


def test_true_values_of_zero_have_no_relative_residual():
    true = massless((50, 0.0, 0.0))
    true[0, 0, 0] = np.hypot(50, 1)
    single = compare(*shown(true), *shown(1.1 * true))
    found = residuals(single, n_bootstrap=2)
    assert not {"particle η, relative", "jet η, relative"} & set(found)
    assert found["jet mass, relative"]["median"].value == pytest.approx(0.1)
    assert found["particle pT, relative"]["median"].value == pytest.approx(0.1)


def test_distances_of_jets_from_their_reconstructions_are_summed_up():
    true = massless((50, 0.0, 0.0), (30, 0.2, 0.1)).repeat(3, 0)
    found = residuals(compare(*shown(true), *shown(true), distances={"emd": np.array([0.1, 0.4, 0.2])}), n_bootstrap=2)
    assert found["energy mover's distance"]["median"].value == pytest.approx(0.2)
    assert "energy mover's distance" not in residuals(compare(*shown(true), *shown(true)), n_bootstrap=2)


@pytest.mark.parametrize(("n", "m"), [(3, 3), (5, 2), (1, 6)])
def test_matching_is_the_best_of_all(n, m):
    rng = np.random.default_rng(n)
    true, other = (
        massless(*zip(rng.exponential(9, k) + 1, rng.normal(0, 0.3, k), rng.normal(3, 0.3, k), strict=True))
        for k in (n, m)
    )
    comparison = compare(*shown(true), *shown(other))
    a, b = (relative(*shown(x), true.sum(1))[0] for x in (true, other))
    cost = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))
    rows, columns = comparison.pairs.T
    assert cost[rows, columns].sum() == pytest.approx(cost[linear_sum_assignment(cost)].sum())
    assert comparison.unmatched == (n - min(n, m), m - min(n, m))


def test_a_perfect_reconstruction_has_no_residuals():
    jets = random_jets([1, 4, 9, 3] * 20)
    comparison = reconstruct(Memory(12), jets, batch_size=32)
    assert comparison.numbers.shape == (80, 60)
    for name, measured in residuals(comparison, n_bootstrap=5).items():
        for m in measured.values():
            assert m.value == pytest.approx(0, abs=1e-12), name
    assert set(comparison.distances) == set(DISTANCES)
    for values in comparison.distances.values():
        np.testing.assert_allclose(values, 0, atol=1e-9)
    np.testing.assert_array_equal(comparison.true.counts, jets.counts)
    for distance in distribution_distances(comparison, n_repeats=4).values():
        assert abs(distance["distance"].value - distance["floor"].value) < 5 * distance["floor"].error + 1e-9


def test_every_distance_is_positive_for_a_disturbed_reconstruction():
    comparison = reconstruct(Memory(9, factor=0.9), random_jets([2, 9, 5]))
    for name, values in comparison.distances.items():
        assert (values > 1e-6).all(), name
    found = residuals(comparison, n_bootstrap=5)
    for name in ("particle pT, relative", "jet mass, relative", "jet pT, relative"):
        assert found[name]["median"].value == pytest.approx(-0.1, abs=1e-6)
        assert found[name]["median |r|"].value == pytest.approx(0.1, abs=1e-6)


def test_batches_and_padding_change_nothing():
    jets = random_jets([2, 9, 5, 1, 7])
    whole, parts = (reconstruct(Memory(9, factor=0.9), jets, batch_size=size) for size in (5, 2))
    np.testing.assert_allclose(parts.true.features, whole.true.features, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(parts.pairs, whole.pairs)
    np.testing.assert_allclose(parts.true.image, whole.true.image, atol=1e-12)
    for name, values in whole.distances.items():
        np.testing.assert_allclose(parts.distances[name], values, rtol=1e-9)


def test_bootstrap_errors_are_those_of_repeated_experiments():
    rng = np.random.default_rng(0)

    def experiment():
        n = 400
        true = massless(*zip(np.full(n, 50.0), rng.normal(0, 1, n), rng.normal(0, 1, n), strict=True))[0][:, None]
        return residuals(compare(*shown(true), *shown(true * rng.normal(1, 0.1, (n, 1, 1)))), n_bootstrap=60)

    found = [experiment()["jet pT, relative"] for _ in range(40)]
    for name in ("median", "IQR"):
        spread = np.std([m[name].value for m in found], ddof=1)
        assert np.mean([m[name].error for m in found]) == pytest.approx(spread, rel=0.4)
    # Of a Gaussian: 1.349 σ, and 1.2533 σ/√n.
    assert np.mean([m["IQR"].value for m in found]) == pytest.approx(0.1349, rel=0.03)
    assert np.mean([m["median"].error for m in found]) == pytest.approx(0.1 * 1.2533 / 20, rel=0.25)


def test_features_are_observables():
    jets = prong_jets(20)
    comparison = reconstruct(Memory(30), jets)
    for name in ("mass", "pt", "multiplicity", "width", "pt_dispersion"):
        np.testing.assert_allclose(
            comparison.true.features[:, FEATURES.index(name)], OBSERVABLES[name](jets), rtol=1e-4
        )


def test_frechet_distance_of_gaussians_does_not_depend_on_their_number():
    rng = np.random.default_rng(0)
    far = np.array([1.0, 0, 0])

    def distance(n):
        a, b = rng.normal(size=(n, 3)), 2 * rng.normal(size=(n, 3)) + far
        return fpd(torch.from_numpy(a), torch.from_numpy(b))

    # |Δμ|² + Σ (σ_a − σ_b)² = 1 + 3
    for n in (100, 1000):
        values = [distance(n) for _ in range(40)]
        assert np.mean(values) == pytest.approx(4, abs=4 * np.std(values) / np.sqrt(40))


def test_wasserstein_distance_of_some_jets_from_others_is_that_of_their_values():
    rng = np.random.default_rng(3)
    jets = [np.sort(rng.integers(0, 40, n)) for n in (200, 150)]
    a, b = rng.normal(0, 1, 200), rng.normal(0.5, 2, 150)
    distance = _wasserstein(a, jets[0], b, jets[1])
    for _ in range(20):
        i, j = (rng.choice(40, n, replace=False) for n in (17, 9))
        expected = wasserstein_distance(a[np.isin(jets[0], i)], b[np.isin(jets[1], j)])
        assert distance(i, j) == pytest.approx(expected)
    assert np.isnan(distance(i[:0], j))


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_error_of_a_distance_is_the_spread_over_data_sets(shift):
    """Halves of the same jets, true and reconstructed, are no repeated experiments."""
    rng, n = np.random.default_rng(4), 200
    found, group, each = [], np.arange(n) % 10, np.arange(n)
    for _ in range(200):
        true = rng.normal(0, 1, n)
        distance = _wasserstein(true, each, true + shift + rng.normal(0, 0.05, n), each)
        orders = [rng.permutation(n) for _ in range(20)]
        found.append(_over_halves(distance, [(order[:100], order[100:]) for order in orders], group))
    values, errors = np.transpose(found)
    # Deleting jets overestimates the error of what is not smooth.
    assert 0.9 < np.sqrt(np.mean(errors**2)) / np.std(values) < 1.8


def test_distances_see_what_changed():
    found = distribution_distances(reconstruct(Memory(30, factor=0.8), prong_jets(400)), n_repeats=6)
    for name in ("W1 particle pT", "FPD"):
        assert found[name]["distance"].value > found[name]["floor"].value + 5 * found[name]["floor"].error
    # A common factor leaves the angles alone.
    assert abs(found["W1 particle η"]["distance"].value - found["W1 particle η"]["floor"].value) < 0.01


def test_bad_input_is_named():
    with pytest.raises(InputError, match="no jets"):
        reconstruct(Memory(3), random_jets([2])[:0])
    with pytest.raises(InputError, match=r"jet 1.*NaN"):
        compare(*shown(np.ones((2, 1, 4))), *shown(np.array([[[1.0, 0, 0, 0]], [[np.nan, 0, 0, 0]]])))
    with pytest.raises(InputError, match="too few"):
        distribution_distances(reconstruct(Memory(3), random_jets([2, 3])))
