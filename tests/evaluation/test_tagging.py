"""Metrics against slow oracles, analytic errors, published taggers, and the symmetries that they must have."""

import json
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jetrep.errors import InputError
from jetrep.evaluation.tagging import (
    METRICS,
    TaggingMetrics,
    combine,
    combine_measurements,
    discriminant,
    multiclass_metrics,
    rejection_curve,
    rejection_curve_band,
    tagging_metrics,
)
from jetrep.report.measurement import Measurement


def gaussian_jets(rng, n_signal, n_background, separation):
    scores = np.concatenate([rng.normal(separation, 1, n_signal), rng.normal(0, 1, n_background)])
    return scores, np.repeat([1, 0], [n_signal, n_background])


def slow_auc(scores, labels):
    pairs = [1.0 if s > b else 0.5 if s == b else 0.0 for s in scores[labels == 1] for b in scores[labels == 0]]
    return sum(pairs) / len(pairs)


def slow_passing_background(scores, labels, efficiency):
    """Try every cut, tightest first."""
    for cut in sorted(set(scores), reverse=True):
        if np.mean(scores[labels == 1] >= cut) >= efficiency:
            return int(np.sum(scores[labels == 0] >= cut))
    raise AssertionError


# Scores on a coarse grid, so that most jets share theirs with others.
tied_jets = st.lists(
    st.tuples(st.integers(0, 8).map(lambda i: i / 8), st.integers(0, 1)), min_size=2, max_size=60
).filter(lambda jets: len({label for _, label in jets}) == 2)


@settings(max_examples=60, deadline=None)
@given(tied_jets)
def test_metrics_equal_slow_oracles_with_ties(jets):
    scores, labels = (np.array(column) for column in zip(*jets, strict=True))
    metrics = tagging_metrics(scores, labels, n_bootstrap=2)
    assert metrics.auc.value == pytest.approx(slow_auc(scores, labels), abs=1e-12)
    assert metrics.accuracy.value == np.mean([(s > 0.5) == (y == 1) for s, y in jets])
    n_background = int(np.sum(labels == 0))
    for efficiency, rejection in ((0.3, metrics.rejection_30), (0.5, metrics.rejection_50)):
        passing = slow_passing_background(scores, labels, efficiency)
        assert rejection.n == passing
        assert rejection.limit == (passing == 0)
        if passing:
            assert rejection.value == pytest.approx(n_background / passing)
            assert rejection_curve(scores, labels, [efficiency])[0] == pytest.approx(n_background / passing)


@settings(max_examples=30, deadline=None)
@given(tied_jets, st.sampled_from([np.exp, np.cbrt, lambda x: 3 * x - 7, lambda x: 1e-6 * x]), st.integers(0, 99))
def test_only_the_order_of_scores_matters(jets, transform, seed):
    scores, labels = (np.array(column) for column in zip(*jets, strict=True))
    before = tagging_metrics(scores, labels, n_bootstrap=5, seed=seed)
    after = tagging_metrics(transform(scores), labels, n_bootstrap=5, seed=seed)
    for name in METRICS[1:]:
        # The same resamples too, so errors and intervals agree, not only values.
        np.testing.assert_equal(getattr(after, name).to_json(), getattr(before, name).to_json())


@settings(max_examples=30, deadline=None)
@given(tied_jets)
def test_swapping_labels_reverses_the_order(jets):
    scores, labels = (np.array(column) for column in zip(*jets, strict=True))
    direct = tagging_metrics(scores, labels, n_bootstrap=2)
    swapped = tagging_metrics(scores, 1 - labels, n_bootstrap=2)
    negated = tagging_metrics(-scores, 1 - labels, n_bootstrap=2)
    assert swapped.auc.value == pytest.approx(1 - direct.auc.value, abs=1e-12)
    assert negated.auc.value == pytest.approx(direct.auc.value, abs=1e-12)


def test_order_of_jets_changes_no_value():
    rng = np.random.default_rng(1)
    scores, labels = gaussian_jets(rng, 300, 500, 1.5)
    shuffled = rng.permutation(800)
    a, b = tagging_metrics(scores, labels), tagging_metrics(scores[shuffled], labels[shuffled])
    assert a == b


def test_perfect_classifier_scores_one_and_states_limits():
    labels = np.repeat([1, 0], [200, 600])
    metrics = tagging_metrics(np.where(labels == 1, 0.9, 0.1), labels)
    assert metrics.accuracy.value == metrics.auc.value == 1.0
    assert metrics.accuracy.error == metrics.auc.error == 0.0
    for rejection in (metrics.rejection_30, metrics.rejection_50):
        assert rejection.limit
        assert rejection.n == 0
        assert rejection.high == math.inf
        # At the limit, none of 600 background jets passes with probability 5 %.
        assert (1 - 1 / rejection.value) ** 600 == pytest.approx(0.05)


def test_random_scores_are_chance_within_errors():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 20_000)
    metrics = tagging_metrics(rng.random(20_000), labels)
    for measurement, chance in (
        (metrics.accuracy, 0.5),
        (metrics.auc, 0.5),
        (metrics.rejection_30, 1 / 0.3),
        (metrics.rejection_50, 2.0),
    ):
        assert abs(measurement.value - chance) < 4 * measurement.error


def test_permuted_labels_are_chance():
    rng = np.random.default_rng(10)
    scores, labels = gaussian_jets(rng, 1500, 500, 2.0)
    assert tagging_metrics(scores, labels).auc.value > 0.9
    permuted = tagging_metrics(scores, rng.permutation(labels))
    assert abs(permuted.auc.value - 0.5) < 4 * permuted.auc.error < 0.1


def test_constant_scores_pass_or_fail_together():
    metrics = tagging_metrics(np.full(50, 0.7), np.repeat([0, 1], 25))
    assert (metrics.auc.value, metrics.rejection_30.value, metrics.accuracy.value) == (0.5, 1.0, 0.5)


def test_resamples_treat_ties_as_the_value_does():
    """A score of three levels: the resamples must scatter about the value, not about one with ties won or lost."""
    rng = np.random.default_rng(11)
    labels = rng.integers(0, 2, 4000)
    metrics = tagging_metrics(np.clip(rng.integers(0, 3, 4000) + labels, 0, 2) / 2, labels, n_bootstrap=400)
    for measurement in metrics.measurements().values():
        centre = (measurement.low + measurement.high) / 2
        assert abs(centre - measurement.value) < 0.4 * (measurement.error + 1e-12)


def hanley_mcneil(auc, n_signal, n_background):
    """Standard error of the AUC for the exponential model, Hanley and McNeil 1982."""
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (n_signal - 1) * (q1 - auc**2) + (n_background - 1) * (q2 - auc**2)
    return math.sqrt(variance / (n_signal * n_background))


def test_bootstrap_errors_equal_analytic_errors():
    rng = np.random.default_rng(3)
    # Exponential scores obey the Hanley–McNeil model exactly.
    n_signal, n_background = 3000, 4000
    scores = np.concatenate([rng.exponential(4.0, n_signal), rng.exponential(1.0, n_background)])
    labels = np.repeat([1, 0], [n_signal, n_background])
    metrics = tagging_metrics(scores, labels, threshold=1.5, n_bootstrap=1000)
    assert metrics.auc.error == pytest.approx(hanley_mcneil(0.8, n_signal, n_background), rel=0.12)
    right = [np.mean(scores[:n_signal] > 1.5), np.mean(scores[n_signal:] <= 1.5)]
    variance = n_signal * right[0] * (1 - right[0]) + n_background * right[1] * (1 - right[1])
    assert metrics.accuracy.error == pytest.approx(math.sqrt(variance) / (n_signal + n_background), rel=0.1)


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(4)
    # P(signal > background) of two unit Gaussians one apart; ε_B at the median of the signal.
    truth = {"auc": 0.76025, "rejection_50": 1 / 0.158655}
    experiments = 250
    covered = dict.fromkeys(truth, 0)
    for seed in range(experiments):
        scores, labels = gaussian_jets(rng, 400, 400, 1.0)
        metrics = tagging_metrics(scores, labels, n_bootstrap=100, seed=seed)
        for name, value in truth.items():
            covered[name] += getattr(metrics, name).low <= value <= getattr(metrics, name).high
    for name, hits in covered.items():
        # 68.27 % with a binomial error of 2.9 %; 100 resamples cost about one more per cent.
        assert 0.58 < hits / experiments < 0.78, name


def test_the_same_seed_gives_the_same_errors():
    scores, labels = gaussian_jets(np.random.default_rng(5), 200, 200, 1.0)
    assert tagging_metrics(scores, labels, seed=7) == tagging_metrics(scores, labels, seed=7)
    assert tagging_metrics(scores, labels, seed=7).auc.error != tagging_metrics(scores, labels, seed=8).auc.error


def test_few_background_jets_leave_the_interval_open():
    # One background jet passes: more than a third of the resamples have none.
    scores = np.concatenate([np.linspace(0.6, 1.0, 50), [0.95], np.linspace(0, 0.5, 99)])
    metrics = tagging_metrics(scores, np.repeat([1, 0], [50, 100]), n_bootstrap=500)
    assert metrics.rejection_50.n == 1
    assert metrics.rejection_50.value == 100
    assert metrics.rejection_50.high == math.inf
    assert 20 < metrics.rejection_50.low < 100
    assert 50 < metrics.rejection_50.error < 200


@settings(max_examples=60, deadline=None)
@given(tied_jets, st.integers(0, 999))
@example([(0.0, 0)] * 2 + [(0.125, 0)] * 4 + [(0.125, 1)], 0)  # no resample of the reversed scores keeps background
def test_intervals_hold_the_value_however_few_the_jets(jets, seed):
    scores, labels = (np.array(column) for column in zip(*jets, strict=True))
    for direction in (1, -1):
        truth = labels if direction == 1 else 1 - labels
        metrics = tagging_metrics(direction * scores, truth, n_bootstrap=2, seed=seed)
        for measurement in metrics.measurements().values():
            assert 0 <= measurement.low <= measurement.value <= measurement.high
            assert np.isfinite(measurement.error) != measurement.limit
        for rejection in (metrics.rejection_30, metrics.rejection_50):
            assert rejection.low >= 1.0 - 1e-12


def test_class_probabilities_become_one_against_background():
    rng = np.random.default_rng(6)
    probabilities = rng.dirichlet([1, 1, 1], 500)
    labels = np.array([rng.choice(3, p=p) for p in probabilities])
    score, truth = discriminant(probabilities, labels, signal=2, background=0)
    two = labels != 1
    np.testing.assert_allclose(score, (probabilities[:, 2] / (probabilities[:, 0] + probabilities[:, 2]))[two])
    np.testing.assert_array_equal(truth, (labels == 2)[two])
    by_class = multiclass_metrics(probabilities, labels, ("qcd", "top", "w"), n_bootstrap=2)
    assert list(by_class) == ["top", "w"]
    assert by_class["w"] == tagging_metrics(score, truth.astype(int), n_bootstrap=2)
    both, _ = discriminant(probabilities, labels, signal=2, background=(0, 1))
    np.testing.assert_allclose(both, probabilities[:, 2])


@pytest.mark.parametrize("signal", range(10))
@pytest.mark.parametrize("background", [0, 4])
def test_perfect_probabilities_score_one_for_every_class_pair(signal, background):
    """Whatever the numbers of the classes are, a label 8 is not to be compared with a prediction in {0, 1}."""
    if signal == background:
        return
    labels = np.repeat(np.arange(10), 5)
    metrics = tagging_metrics(np.eye(10)[labels], labels, signal=signal, background=background, n_bootstrap=2)
    assert metrics.accuracy.value == metrics.auc.value == 1.0
    assert (metrics.n_signal, metrics.n_background) == (5, 5)


def test_combining_seeds():
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 2, 2000)
    seeds = [tagging_metrics(labels + rng.normal(0, 0.8 + 0.1 * i, 2000), labels) for i in range(3)]
    mean = combine(seeds)
    values = np.array([m.auc.value for m in seeds])
    assert mean.auc.value == pytest.approx(values.mean())
    assert mean.auc.seed_error == pytest.approx(math.sqrt(((values - values.mean()) ** 2).sum() / 2))
    # All seeds see the same jets: their sampling error does not shrink with the number of seeds.
    assert min(m.auc.error for m in seeds) <= mean.auc.sampling_error <= max(m.auc.error for m in seeds)
    assert mean.auc.error == pytest.approx(math.hypot(mean.auc.seed_error, mean.auc.sampling_error))
    assert mean.auc.low < mean.auc.value < mean.auc.high
    assert mean.auc.n_seeds == 3
    assert combine(seeds[:1]) == seeds[0]
    same = combine([seeds[0]] * 3)
    assert same.auc.seed_error == pytest.approx(0.0, abs=1e-15)
    assert same.auc.error == pytest.approx(seeds[0].auc.error)


def test_a_limit_among_the_seeds_makes_a_limit():
    labels = np.repeat([1, 0], 100)
    perfect = tagging_metrics(labels, labels)
    poor = tagging_metrics(np.random.default_rng(8).random(200), labels)
    mean = combine([perfect, poor])
    assert mean.rejection_50.limit
    assert 1 < mean.rejection_50.value < poor.rejection_50.value < perfect.rejection_50.value
    assert mean.rejection_50.high == math.inf
    assert combine([perfect, perfect]).rejection_50.value == perfect.rejection_50.value


@pytest.mark.parametrize("rejection", [500.0, 320.0, 200.0])
def test_a_limit_of_seeds_holds_in_95_percent_of_the_cases(rejection):
    """Of three models that let some of 1,000 jets pass, one or more may let none: what is said then must hold."""
    rng, n_background = np.random.default_rng(9), 1000
    stated = wrong = trials = 0
    for passing in rng.binomial(n_background, 1 / rejection, (4000, 3)):
        parts = [
            Measurement(n_background / k, 1.0, 0.0, math.inf, int(k))
            if k
            else Measurement(1 / (1 - 0.05 ** (1 / n_background)), math.nan, 0.0, math.inf, 0, limit=True)
            for k in passing
        ]
        found = combine_measurements(parts)
        trials += 1
        stated += found.limit
        wrong += found.limit and found.value > rejection
    assert stated > 0
    assert wrong <= 0.05 * trials


def test_json_round_trip():
    labels = np.repeat([1, 0], [40, 60])
    scores = np.where(np.arange(100) % 7 > 0, labels, 0.5)
    for metrics in (
        tagging_metrics(labels, labels),
        tagging_metrics(scores, labels),
        combine([tagging_metrics(s, labels) for s in (scores, 1.0 * labels)]),
    ):
        text = json.dumps(metrics.to_json(), allow_nan=False)
        np.testing.assert_equal(TaggingMetrics.from_json(json.loads(text)).to_json(), metrics.to_json())
        again = TaggingMetrics.from_json(json.loads(text))
        assert again.rejection_30.limit == metrics.rejection_30.limit
        assert math.isinf(again.rejection_30.high) == math.isinf(metrics.rejection_30.high)
    with pytest.raises(InputError, match="auc"):
        TaggingMetrics.from_json({"accuracy": metrics.accuracy.to_json()})


@pytest.mark.parametrize(
    ("scores", "labels", "options", "message"),
    [
        ([0.1, np.nan, 0.3], [0, 1, 0], {}, "jet 1"),
        ([[0.1, 0.9], [np.inf, 0.5]], [0, 1], {}, "jet 1"),
        ([0.1, 0.2], [0, 0], {}, "no signal jet"),
        ([0.1, 0.2], [1, 1], {}, "no background jet"),
        ([0.1, 0.2, 0.3], [0, 1], {}, "shape"),
        ([[0.5, 0.5]] * 2, [0, 1], {"signal": 2}, "no signal jet"),
        ([[0.5, 0.5]] * 2, [0, 2], {"signal": 2}, "columns"),
        ([[-0.5, 1.5]] * 2, [0, 1], {}, "probabilities"),
        ([0.1, 0.2], [0, 1], {"signal": 0}, "signal and background"),
        ([0.1, 0.2], [0, 1], {"n_bootstrap": 1}, "n_bootstrap"),
    ],
)
def test_bad_input_is_named(scores, labels, options, message):
    with pytest.raises(InputError, match=message):
        tagging_metrics(np.array(scores), np.array(labels), **options)


def test_rejection_curve_and_its_band():
    scores, labels = gaussian_jets(np.random.default_rng(9), 2000, 2000, 2.0)
    grid = np.linspace(0.05, 1.0, 96)
    curve = rejection_curve(scores, labels, grid)
    assert np.all(np.diff(1 / curve) >= 0)
    assert curve[0] > 100 > curve[-1] >= 1.0
    low, high = rejection_curve_band(scores, labels, grid, n_bootstrap=100)
    assert np.mean((low <= curve) & (curve <= high)) > 0.95
    half = tagging_metrics(scores, labels).rejection_50
    assert curve[np.argmin(abs(grid - 0.5))] == pytest.approx(half.value)


# AUC, accuracy at 0.5, rejection at ε_S = 0.5, of the taggers of arXiv:1902.09914 on official test jets 0–14,999.
PUBLISHED = {
    "ParticleNet_v2": (0.9840, 0.9372, 418),
    "ResNeXt50_v2": (0.9823, 0.9345, 259),
    "PFN_v0": (0.9810, 0.9308, 221),
    "EFP_v0": (0.9792, 0.9290, 145),
    "P-CNN_v2": (0.9788, 0.9274, 163),
    "EFN_v0": (0.9779, 0.9251, 153),
    "topodnn_v2": (0.9696, 0.9114, 104),
}


@pytest.mark.parametrize("tagger", PUBLISHED)
def test_published_taggers_on_real_jets(real_data, tagger):
    folder = real_data / "toptagging"
    labels = np.concatenate([np.load(folder / f"top_test_{part}.npz")["y"] for part in ("00", "01a")])
    metrics = tagging_metrics(np.load(folder / "published_scores.npz")[tagger], labels)
    auc, accuracy, rejection = PUBLISHED[tagger]
    assert metrics.auc.value == pytest.approx(auc, abs=6e-5)
    assert metrics.accuracy.value == pytest.approx(accuracy, abs=6e-5)
    assert metrics.rejection_50.value == pytest.approx(rejection, abs=0.6)
    assert 18 <= metrics.rejection_50.n <= 72
    assert 6 <= metrics.rejection_30.n <= 24
