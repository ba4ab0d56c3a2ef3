"""Probes: better than chance where there is something to learn, chance where there is not, reproducible."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from jetrep.errors import InputError
from jetrep.evaluation.probes import PROBES, observable_baseline, observables, probe
from jetrep.evaluation.tagging import tagging_metrics
from jetrep.jets import Jets


def blobs(rng, n, separation, d=6, classes=2):
    labels = rng.integers(0, classes, n)
    x = rng.normal(size=(n, d))
    x[:, 0] += separation * labels
    return x, labels


@pytest.mark.parametrize("kind", PROBES)
def test_separable_blobs_are_learned_and_noise_is_not(kind):
    rng = np.random.default_rng(0)
    x, y = blobs(rng, 1200, 3.0)
    scores = probe(x[:600], y[:600], x[600:], kind)
    assert scores.shape == (600,)
    # The best possible AUC of two unit Gaussians 3 apart is Φ(3/√2) = 0.983.
    assert 0.95 < roc_auc_score(y[600:], scores) < 1.0
    noise = tagging_metrics(probe(x[:600, 1:], y[:600], x[600:, 1:], kind), y[600:])
    assert abs(noise.auc.value - 0.5) < 4 * noise.auc.error


@pytest.mark.parametrize("kind", PROBES)
def test_scores_do_not_depend_on_the_scale_of_the_embedding_and_are_reproducible(kind):
    x, y = blobs(np.random.default_rng(1), 300, 1.0)
    scores = probe(x[:200], y[:200], x[200:], kind, seed=3)
    np.testing.assert_array_equal(scores, probe(x[:200], y[:200], x[200:], kind, seed=3))
    # A power of two, so that rounding is the same and the bins of the trees are too.
    np.testing.assert_allclose(scores, probe(1024 * x[:200], y[:200], 1024 * x[200:], kind, seed=3), atol=1e-6)


@pytest.mark.parametrize("kind", PROBES)
def test_several_classes_give_probabilities(kind):
    x, y = blobs(np.random.default_rng(2), 900, 4.0, classes=3)
    scores = probe(x[:600], y[:600], x[600:], kind)
    assert scores.shape == (300, 3)
    np.testing.assert_allclose(scores.sum(1), 1.0)
    assert np.mean(scores.argmax(1) == y[600:]) > 0.9


def test_test_jets_do_not_influence_each_other():
    x, y = blobs(np.random.default_rng(3), 300, 1.0)
    for kind in PROBES:
        together = probe(x[:200], y[:200], x[200:], kind)
        # Anything fitted on the test jets, such as their mean, would show here.
        alone = probe(x[:200], y[:200], np.concatenate([x[200:210], 50 + x[210:]]), kind)
        np.testing.assert_allclose(alone[:10], together[:10], atol=1e-9)


def test_neighbours_against_a_slow_oracle():
    rng = np.random.default_rng(4)
    x, y = blobs(rng, 120, 1.0)
    train, test = (x[:100] - x[:100].mean(0)) / x[:100].std(0), (x[100:] - x[:100].mean(0)) / x[:100].std(0)
    expected = []
    for jet in test:
        distance = np.sqrt(((train - jet) ** 2).sum(1))
        nearest = np.argsort(distance)[:20]
        expected.append(np.sum(y[:100][nearest] / distance[nearest]) / np.sum(1 / distance[nearest]))
    np.testing.assert_allclose(probe(x[:100], y[:100], x[100:], "knn"), expected, atol=1e-9)


def test_regularisation_follows_from_the_training_jets():
    """With 60 jets in 300 dimensions a weak penalty is overconfident; with 2,000 in 6 it does no harm."""
    rng = np.random.default_rng(5)
    for n, d in ((60, 300), (2000, 6)):
        x, y = blobs(rng, n + 1000, 4.0, d=d)
        ours = log_loss(y[n:], probe(x[:n], y[:n], x[n:], "logistic"))
        weak = make_pipeline(StandardScaler(), LogisticRegression(C=10.0, max_iter=1000)).fit(x[:n], y[:n])
        assert ours < min(0.69, 1.02 * log_loss(y[n:], weak.predict_proba(x[n:])))


@pytest.mark.parametrize("kind", PROBES)
def test_a_handful_of_training_jets_is_enough_to_run(kind):
    scores = probe(np.eye(3), np.array([0, 1, 1]), np.eye(3), kind)
    assert np.isfinite(scores).all()


def two_prong_jets(rng, n):
    """Class 1: two prongs, mass near 80 GeV and few particles; class 0: one prong, light, many particles."""
    jets, labels = [], rng.integers(0, 2, n)
    for label in labels:
        count = rng.integers(8, 14) if label else rng.integers(12, 20)
        phi = rng.normal(0, 0.05, count) + (np.arange(count) % 2) * 0.3 * label
        pt = rng.exponential(20.0, count) + 1
        jets.append(np.stack([pt * 1.01, pt * np.cos(phi), pt * np.sin(phi), np.zeros(count)], 1))
    return Jets(np.concatenate(jets), np.cumsum([0, *map(len, jets)]), labels, ("qcd", "top"))


def test_observables_and_their_baseline():
    train, test = (two_prong_jets(np.random.default_rng(seed), 400) for seed in (6, 7))
    values = observables(train)
    total = train[0].astype(np.float64).sum(0)
    assert values[0, 0] == pytest.approx(np.sqrt(total[0] ** 2 - total[1] ** 2 - total[2] ** 2), rel=1e-5)
    assert values[0, 1] == len(train[0])
    for kind in PROBES:
        baseline = tagging_metrics(observable_baseline(train, test, kind), test.labels).auc.value
        mass_alone = roc_auc_score(test.labels, observables(test)[:, 0])
        assert baseline > max(0.9, mass_alone - 0.02)
    with pytest.raises(InputError, match="labels"):
        observable_baseline(train.with_labels(None), test)


def test_mass_and_multiplicity_on_real_jets(real_data):
    """On these jets the mass alone has an AUC of 0.9007 and the multiplicity 0.695, measured by others."""
    parts = [np.load(real_data / "toptagging" / f"top_test_{part}.npz") for part in ("00", "01a")]
    counts = np.concatenate([part["n"] for part in parts]).astype(np.int64)
    jets = Jets(
        np.concatenate([part["p4"] for part in parts]),
        np.concatenate([[0], np.cumsum(counts)]),
        np.concatenate([part["y"] for part in parts]).astype(np.int64),
        ("qcd", "top"),
    )
    mass, multiplicity = observables(jets).T
    assert roc_auc_score(jets.labels, mass) == pytest.approx(0.9007, abs=5e-4)
    assert roc_auc_score(jets.labels, multiplicity) == pytest.approx(0.695, abs=5e-4)
    scores = observable_baseline(jets[:10_000], jets[10_000:], "bdt")
    assert roc_auc_score(jets.labels[10_000:], scores) > 0.94


@pytest.mark.parametrize(
    ("x", "y", "test", "kind", "message"),
    [
        (np.zeros((4, 2)), [0, 1, 0, 1], np.zeros((4, 3)), "knn", "fit together"),
        (np.zeros((4, 2)), [0, 1, 0], np.zeros((4, 2)), "knn", "fit together"),
        (np.zeros((4, 2)), [0, 2, 0, 2], np.zeros((4, 2)), "knn", "jets per class"),
        (np.zeros((4, 2)), [0, 0, 0, 0], np.zeros((4, 2)), "knn", "jets per class"),
        (np.zeros((4, 2)), [0.0, 1.0, 0.0, 1.0], np.zeros((4, 2)), "knn", "integers"),
        (np.zeros((4, 2)), [0, 1, 0, 1], np.full((4, 2), np.nan), "knn", "jet 0, field 'test_x'"),
        (np.zeros((4, 2)), [0, 1, 0, 1], np.zeros((4, 2)), "svm", "svm"),
    ],
)
def test_bad_input_is_named(x, y, test, kind, message):
    with pytest.raises(InputError, match=message):
        probe(x, np.array(y), test, kind)
