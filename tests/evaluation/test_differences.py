import numpy as np
import pytest

from jetrep.errors import InputError
from jetrep.evaluation.differences import (
    accuracy_difference_error,
    auc_difference_error,
    rejection_difference_error,
)
from jetrep.evaluation.multiclass import accuracy, macro_auc
from jetrep.evaluation.tagging import rejection_curve, working_points


def taggers(n_classes=4, n=600):
    """Probabilities of two taggers that are alike, for two seeds, and the labels."""
    rng = np.random.default_rng(2)
    labels = rng.integers(0, n_classes, n)
    p = np.exp(rng.standard_normal((n, n_classes)) + 1.2 * np.eye(n_classes)[labels])
    pairs = []
    for _ in range(2):
        a, b = (np.round(q / q.sum(1, keepdims=True), 3) for q in (p, p * np.exp(0.3 * rng.standard_normal(p.shape))))
        pairs.append((a, b))
    return pairs, labels


def bootstrap(labels, difference, n=300):
    """Spread of a difference over resamples that both taggers have in common."""
    rng = np.random.default_rng(4)
    classes = [np.flatnonzero(labels == k) for k in np.unique(labels)]
    return np.std([difference(np.concatenate([rng.choice(rows, len(rows)) for rows in classes])) for _ in range(n)])


@pytest.mark.parametrize(
    ("metric", "error_of"), [(macro_auc, auc_difference_error), (accuracy, accuracy_difference_error)]
)
def test_errors_of_differences_are_those_of_a_bootstrap_of_the_jets_that_both_have(metric, error_of):
    pairs, labels = taggers()

    def mean(rows):
        return np.mean([metric(a[rows], labels[rows]).value - metric(b[rows], labels[rows]).value for a, b in pairs])

    error = error_of(pairs, labels)
    assert error == pytest.approx(bootstrap(labels, mean), rel=0.2)
    assert error < 0.8 * metric(pairs[0][0], labels).error
    assert error_of([(pairs[0][0], pairs[0][0])], labels) == 0.0


def test_the_error_of_a_difference_of_rejections_is_that_of_a_bootstrap():
    pairs, labels = taggers(n_classes=2, n=6000)
    scores = [(a[:, 1], b[:, 1]) for a, b in pairs]

    def mean(rows):
        return np.mean([np.subtract(*(rejection_curve(s[rows], labels[rows], 0.5) for s in pair)) for pair in scores])

    error = rejection_difference_error(scores, labels == 1, efficiency=0.5)
    assert error == pytest.approx(bootstrap(labels, mean), rel=0.25)
    _, rejection, _ = working_points(scores[0][0], labels == 1, efficiency=0.5)
    assert error < rejection.error
    assert rejection_difference_error([(scores[0][0], scores[0][0])], labels == 1) == 0.0


def test_few_background_jets_leave_a_finite_error_and_none_a_clear_message():
    truth = np.arange(200) < 100
    a, b = np.where(truth, 0.9, 0.1), np.where(truth, 0.9, 0.1)
    a[150] = b[[150, 160]] = 0.95  # one and two jets pass: some resamples have neither
    error = rejection_difference_error([(a, b)], truth, efficiency=0.5)
    assert np.isfinite(error)
    assert error > 20
    with pytest.raises(InputError, match="no background jet passes"):
        rejection_difference_error([(np.where(truth, 0.9, 0.1), b)], truth)
