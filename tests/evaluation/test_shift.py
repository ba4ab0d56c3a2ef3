"""Domain shift: its end points, its invariances, and that it is calibrated where there is no shift."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from jetrep.errors import InputError
from jetrep.evaluation.shift import domain_shift, mmd2, proxy_a_distance, standardise, wasserstein

MEASURES = (proxy_a_distance, mmd2, wasserstein)


@pytest.fixture(scope="module")
def domains():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(6, 6))
    return rng.normal(size=(300, 6)) @ mixing, rng.normal(0.3, 1.2, size=(260, 6)) @ mixing


def test_end_points_of_the_proxy_a_distance():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, 8))
    assert proxy_a_distance(x, x).measurement.value == pytest.approx(0.0, abs=1e-12)
    far = x.copy()
    far[:, 3] += 100.0
    separable = proxy_a_distance(x, far)
    assert separable.measurement.value == 2.0
    assert separable.p_value < 1e-100


def test_proxy_a_distance_of_known_overlap():
    """Two unit Gaussians 2δ apart along one axis: the best plane errs with probability Φ(−δ)."""
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(4000, 3)), rng.normal(size=(4000, 3))
    b[:, 0] += 2.0
    shift = proxy_a_distance(a, b)
    assert abs(shift.measurement.value - 2 * (1 - 2 * 0.158655)) < 4 * shift.measurement.error < 0.1


def slow_mmd2(a, b):
    a, b = standardise(a, b)

    def k(x, y):
        return np.exp(-np.sum((x - y) ** 2) / a.shape[1])

    n, m = len(a), len(b)
    within_a = sum(k(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_b = sum(k(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_a + within_b - 2 * np.mean([k(x, y) for x in a for y in b])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(10, 25), st.integers(10, 25), st.integers(1, 4))
def test_mmd_and_wasserstein_equal_slow_oracles(seed, n, m, d):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, d)), np.round(rng.normal(0.5, 2, size=(m, d)))
    assert mmd2(a, b, n_resamples=2).measurement.value == pytest.approx(slow_mmd2(a, b), abs=1e-10)
    x, y = standardise(a, b)
    expected = np.mean([wasserstein_distance(x[:, i], y[:, i]) for i in range(d)])
    assert wasserstein(a, b, n_resamples=2).measurement.value == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("measure", MEASURES)
@settings(max_examples=10, deadline=None)
@given(exponent=st.integers(-6, 6), offset=st.floats(-10, 10))
def test_scale_and_offset_of_the_embedding_do_not_matter(domains, measure, exponent, offset):
    a, b = domains
    c = 10.0**exponent
    before = measure(a, b, n_resamples=5)
    after = measure(c * (a + offset), c * (b + offset), n_resamples=5)
    assert after.measurement.value == pytest.approx(before.measurement.value, rel=1e-6, abs=1e-9)
    assert after.measurement.error == pytest.approx(before.measurement.error, rel=1e-5, abs=1e-8)
    assert after.p_value == pytest.approx(before.p_value)


@pytest.mark.parametrize("measure", MEASURES)
def test_units_of_each_dimension_and_constant_dimensions_do_not_matter(domains, measure):
    a, b = domains
    units = 10.0 ** np.arange(-3, 3)
    value = measure(a, b, n_resamples=2).measurement.value
    assert measure(a * units, b * units, n_resamples=2).measurement.value == pytest.approx(value, rel=1e-6)
    dead = [np.concatenate([x, np.full((len(x), 2), 0.1)], 1) for x in (a, b)]
    assert measure(*dead, n_resamples=2).measurement.value == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("measure", [mmd2, wasserstein])
def test_exchanging_domains_changes_nothing(domains, measure):
    a, b = domains
    value = measure(a, b, n_resamples=2).measurement.value
    assert measure(b, a, n_resamples=2).measurement.value == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("measure", MEASURES)
def test_no_shift_is_not_significant_and_a_shift_is(measure):
    rng = np.random.default_rng(3)
    p_values = []
    for seed in range(20):
        a, b = rng.normal(size=(80, 5)), rng.normal(size=(80, 5))
        shift = measure(a, b, seed=seed, n_resamples=60)
        assert abs(shift.measurement.value - shift.null) < 5 * shift.null_error
        p_values.append(shift.p_value)
    assert 0.2 < np.mean(p_values) < 0.8
    assert np.sum(np.array(p_values) < 0.05) <= 4  # of 20: more than that has a probability of 0.3 %
    shifted = measure(a, b + 1.0, n_resamples=60)
    assert shifted.p_value < 0.02
    assert shifted.measurement.value > shift.null + 5 * shift.null_error


@pytest.mark.parametrize(("measure", "tolerance"), [(mmd2, 0.25), (wasserstein, 0.25)])
def test_bootstrap_errors_equal_the_scatter_of_repeated_experiments(measure, tolerance):
    rng = np.random.default_rng(4)
    shifts = [measure(rng.normal(size=(150, 3)), rng.normal(0.7, 1, size=(150, 3)), n_resamples=50) for _ in range(120)]
    scatter = np.std([s.measurement.value for s in shifts], ddof=1)
    assert np.mean([s.measurement.error for s in shifts]) == pytest.approx(scatter, rel=tolerance)


def test_unequal_numbers_of_jets_are_matched_and_the_result_is_reproducible(domains):
    a, b = domains
    first, second = domain_shift(a, b, n_resamples=10), domain_shift(a, b, n_resamples=10)
    assert first == second
    assert first.n_jets == 260
    assert domain_shift(a, b, n_resamples=10, max_jets=50).n_jets == 50
    json.dumps(first.to_json(), allow_nan=False)
    assert first.pad.measurement.value > 5 * first.pad.null_error


def test_a_collapsed_representation_has_no_shift():
    """All embeddings equal: nothing tells the domains apart, and nothing divides by zero."""
    shift = domain_shift(np.full((50, 4), 0.3), np.full((50, 4), 0.3), n_resamples=5)
    assert shift.pad.measurement.value == shift.wasserstein.measurement.value == 0.0
    assert shift.mmd2.measurement.value == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((20, 3)), np.zeros((20, 4)), "shapes"),
        (np.zeros((20, 3)), np.full((20, 3), np.nan), "jet 0"),
        (np.zeros((5, 3)), np.zeros((20, 3)), "too few"),
        (np.zeros(20), np.zeros(20), "shapes"),
    ],
)
def test_bad_input_is_named(a, b, message):
    with pytest.raises(InputError, match=message):
        domain_shift(a, b)
