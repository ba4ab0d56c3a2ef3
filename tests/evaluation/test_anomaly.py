"""Anomaly scores: what is left of them when the jet mass is taken away."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from jetrep.errors import InputError
from jetrep.evaluation.anomaly import (
    AnomalySample,
    anomaly_metrics,
    decorrelate,
    mass_sculpting,
    reweighted_auc,
    size_weighted_mean,
)


def sample(n=2000, seed=0):
    """A falling background, and two signals that are heavy; and a validation sample of the background."""
    rng = np.random.default_rng(seed)
    mass = np.concatenate([40 + rng.exponential(40, 2 * n), rng.normal(80, 8, n // 2), rng.normal(170, 12, n)])
    signal = np.repeat([-1, 0, 1], [2 * n, n // 2, n])
    return AnomalySample(signal, mass, ("W", "top")), 40 + rng.exponential(40, 4 * n), rng


@pytest.mark.parametrize(
    "function", [np.log, lambda m: -(m**2), lambda m: np.abs(m - 80)], ids=["log", "-m2", "turning"]
)
def test_a_function_of_the_mass_alone_says_nothing_when_decorrelated(function):
    jets, validation, _ = sample()
    score = function(jets.mass)
    flat = decorrelate(score, jets.mass, function(validation), validation)
    raw, left = (anomaly_metrics(s, jets, n_bootstrap=10) for s in (score, flat))
    assert max(abs(row["auc"].value - 0.5) for row in raw.values()) > 0.15
    # In a window where the function turns, it is not only the mass below and above that are balanced.
    turns = function(np.array([60.0, 80.0, 100.0])).argmin() == 1
    for row in left.values():
        assert row["auc"].value == pytest.approx(0.5, abs=0.06 if turns else 1e-3)


def test_what_is_more_than_mass_survives():
    jets, validation, rng = sample()
    better = (jets.signal >= 0) + rng.normal(size=len(jets.mass))
    score, known = better + 0.05 * jets.mass, rng.normal(size=len(validation)) + 0.05 * validation
    flat = decorrelate(score, jets.mass, known, validation)
    background = jets.signal < 0
    # A shift by one standard deviation: AUC Φ(1/√2).
    assert anomaly_metrics(flat, jets, n_bootstrap=10)["W"]["auc"].value == pytest.approx(0.7602, abs=0.03)
    raw, left = (mass_sculpting(s[background], jets.mass[background], n_bootstrap=20) for s in (score, flat))
    assert raw["JSD at ε_B = 0.1"].value > 0.3
    assert left["JSD at ε_B = 0.1"].value < 4 * left["floor at ε_B = 0.1"].value
    # Background that took no part in the map is flat: its quantiles are uniform.
    np.testing.assert_allclose(np.histogram(flat[background], 10, (0, 1))[0] / background.sum(), 0.1, atol=0.02)


def test_a_conditional_quantile_by_hand():
    known, at = np.array([5.0, 1.0, 9.0, 3.0]), np.array([1.0, 2.0, 3.0, 4.0])
    # Between the second and the third mass, two on each side: one score is below 2, and (1 + ½)/5 = 0.3.
    assert decorrelate([2.0], [2.5], known, at, k=4).tolist() == [0.3]
    assert decorrelate([2.0], [2.5], known, at, k=2) == pytest.approx([1.5 / 3])
    # One on each side near the edge, none beyond it.
    assert decorrelate([9.0, 7.0], [1.5, 99.0], known, at, k=4).tolist() == pytest.approx([2.5 / 3, 0.5])


@given(st.integers(0, 2**31), st.floats(0.1, 10), st.floats(-5, 5))
def test_decorrelation_depends_on_the_order_of_scores_alone(seed, factor, shift):
    rng = np.random.default_rng(seed)
    s, m, v, vm = rng.normal(size=20), rng.normal(size=20), rng.normal(size=60), rng.normal(size=60)
    once, again = decorrelate(s, m, v, vm), decorrelate(factor * s + shift, m, factor * v + shift, vm)
    np.testing.assert_allclose(once, again, atol=1e-12)
    assert ((once > 0) & (once < 1)).all()


def test_all_signals_together_are_their_weighted_mean():
    jets, _, rng = sample()
    score = rng.normal(size=len(jets.mass)) + 0.5 * jets.signal
    found = anomaly_metrics(score, jets, n_bootstrap=10)
    aucs = {name: found[name]["auc"].value for name in jets.signals}
    sizes = {name: int((jets.signal == i).sum()) for i, name in enumerate(jets.signals)}
    assert found["combined"]["auc"].value == pytest.approx(size_weighted_mean(aucs, sizes), abs=1e-12)
    assert found["top"]["auc"].value == pytest.approx(
        roc_auc_score(jets.signal[jets.signal != 0], score[jets.signal != 0])
    )


def test_efficiencies_at_fixed_background():
    jets, _, _ = sample()
    found = anomaly_metrics(jets.mass, jets, n_bootstrap=10)["top"]
    background, top = jets.mass[jets.signal < 0], jets.mass[jets.signal == 1]
    for rate in (0.1, 0.01, 0.001):
        cut = np.sort(background)[::-1][round(rate * len(background)) - 1]
        assert found[f"ε_S at ε_B = {rate:g}"].value == pytest.approx((top >= cut).mean(), abs=2e-3)


def test_at_equal_mass_the_mass_says_little():
    jets, _, rng = sample()
    chosen = jets.against("W")
    truth, mass = jets.signal[chosen] >= 0, jets.mass[chosen]
    assert roc_auc_score(truth, -np.abs(mass - 80)) > 0.8
    assert reweighted_auc(-np.abs(mass - 80), truth, mass, n_bootstrap=5).value == pytest.approx(0.5, abs=0.05)
    independent = rng.normal(size=len(mass)) + truth
    assert reweighted_auc(independent, truth, mass, n_bootstrap=5).value == pytest.approx(0.76, abs=0.04)


def test_equal_masses_by_weights_is_what_weights_of_others_give():
    jets, _, rng = sample(200)
    chosen = jets.against("top")
    truth, mass = jets.signal[chosen] >= 0, jets.mass[chosen]
    score = np.round(rng.normal(size=len(mass)) + truth + 0.01 * mass, 1)
    edges = np.unique(np.quantile(mass[~truth], np.arange(1, 20) / 20))
    place = np.searchsorted(edges, mass, side="right")
    there = [(place[truth] == i).sum() for i in range(20)]
    weight = [
        ((place[~truth] == i).sum() / there[i] if true else 1.0) if there[i] else 0.0
        for i, true in zip(place, truth, strict=True)
    ]
    found = reweighted_auc(score, truth, mass, n_bootstrap=2)
    assert found.value == pytest.approx(roc_auc_score(truth, score, sample_weight=weight))
    assert found.n == np.count_nonzero(weight) < len(weight)


def test_bad_input_is_named():
    with pytest.raises(InputError, match="background"):
        AnomalySample(np.zeros(3, np.int64), np.ones(3), ("top",))
    with pytest.raises(InputError, match=r"jet 1.*NaN"):
        decorrelate([0.0, np.nan], [1.0, 1.0], [0.0, 1.0], [1.0, 1.0])
    with pytest.raises(InputError, match="no validation"):
        decorrelate([0.0], [1.0], [], [])
