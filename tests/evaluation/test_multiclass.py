import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from jetrep.errors import InputError
from jetrep.evaluation.multiclass import accuracy, confusion, macro_auc
from jetrep.evaluation.tagging import tagging_metrics, working_points


def toy(n=600, n_classes=4, seed=0, decimals=2):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, n)
    logits = rng.standard_normal((n, n_classes)) + 1.2 * np.eye(n_classes)[labels]
    p = np.exp(logits)
    return np.round(p / p.sum(1, keepdims=True), decimals), labels  # rounded: jets of equal score


@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_macro_auc_is_that_of_scikit_learn(n_classes):
    rng = np.random.default_rng(3)
    labels = rng.integers(0, n_classes, 400)
    p = rng.dirichlet(np.ones(n_classes), 400) + 0.3 * np.eye(n_classes)[labels]
    p /= p.sum(1, keepdims=True)
    expected = (
        roc_auc_score(labels, p[:, 1])
        if n_classes == 2
        else roc_auc_score(labels, p, multi_class="ovo", average="macro")
    )
    assert macro_auc(p, labels).value == pytest.approx(expected, abs=1e-12)


def test_macro_auc_counts_ties_one_half_and_its_error_is_that_of_a_bootstrap():
    p, labels = toy()
    slow = np.mean(
        [
            np.mean(
                (p[labels == j, j][:, None] > p[labels == k, j])
                + 0.5 * (p[labels == j, j][:, None] == p[labels == k, j])
            )
            for j in range(4)
            for k in range(4)
            if j != k
        ]
    )
    measured = macro_auc(p, labels)
    assert measured.value == pytest.approx(slow, abs=1e-12)
    rng = np.random.default_rng(1)
    resampled = []
    for _ in range(300):
        rows = np.concatenate([rng.choice(np.flatnonzero(labels == k), (labels == k).sum()) for k in range(4)])
        resampled.append(macro_auc(p[rows], labels[rows]).value)
    assert measured.error == pytest.approx(np.std(resampled), rel=0.2)


def test_accuracy_is_the_trace_of_the_confusion_matrix():
    p, labels = toy()
    matrix = confusion(p, labels)
    assert matrix.sum(1).tolist() == np.bincount(labels).tolist()
    measured = accuracy(p, labels)
    assert measured.value == np.mean(p.argmax(1) == labels) == np.trace(matrix) / len(labels)
    assert measured.error == pytest.approx(np.sqrt(measured.value * (1 - measured.value) / 600))


def test_probabilities_that_cannot_be_used_are_refused():
    p, labels = toy()
    with pytest.raises(InputError, match="do not fit together"):
        accuracy(p[:, :2], labels)
    p[7, 0] = np.nan
    with pytest.raises(InputError, match=r"jet 7.*NaN"):
        macro_auc(p, labels)
    with pytest.raises(InputError, match="a class has no jets"):
        macro_auc(np.nan_to_num(p), np.minimum(labels, 2))


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3])
def test_signal_efficiency_at_a_background_rate_is_the_loosest_cut_that_holds_it(rate):
    rng = np.random.default_rng(5)
    truth = rng.random(1500) < 0.4
    score = np.round(rng.standard_normal(1500) + truth, 1)
    cuts = [np.mean(score[truth] >= cut) for cut in np.unique(score) if np.mean(score[~truth] >= cut) <= rate]
    _, _, found = working_points(score, truth, background_rates=[rate, 1e-9], n_bootstrap=50)
    assert list(found) == [rate]  # a rate below one jet is not measured
    assert found[rate].value == pytest.approx(max(cuts, default=0.0))
    assert found[rate].n <= rate * (~truth).sum()
    assert 0 < found[rate].error < 0.1


def test_working_points_agree_with_the_metrics_of_the_tagger():
    rng = np.random.default_rng(6)
    truth = rng.random(800) < 0.5
    score = rng.standard_normal(800) + 1.5 * truth
    reference = tagging_metrics(score, truth.astype(int), n_bootstrap=40)
    auc, rejection, _ = working_points(score, truth, efficiency=0.3, n_bootstrap=40)
    assert auc.value == pytest.approx(reference.auc.value)
    assert (rejection.value, rejection.n) == (reference.rejection_30.value, reference.rejection_30.n)
