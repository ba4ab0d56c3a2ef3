"""Differences of numbers whose scores were kept, and of those that have limits alone."""

from types import SimpleNamespace

import numpy as np
import pytest

from jetrep.studies.compare_numbers import Numbers

TRUTH = np.arange(200) % 2


def numbers_of(monkeypatch, kept):
    """The numbers of rows with these scores for the second class."""
    study = SimpleNamespace(
        rows=[SimpleNamespace(name=name) for name in kept],
        test_jets=SimpleNamespace(truth=TRUTH, classes=("qcd", "top")),
        background="qcd",
        efficiencies={"top": 0.5},
        n_bootstrap=20,
    )

    def scores_of(_, row, seed, head):
        score = kept[row.name]
        return None if score is None else np.stack([1 - score, score], 1)

    monkeypatch.setattr("jetrep.studies.compare_numbers.read_scores", scores_of)
    return Numbers(study, [])


def test_a_rejection_without_background_above_the_cut_has_no_error_of_its_difference(monkeypatch):
    perfect = np.where(TRUTH == 1, 0.9, 0.1)
    mistaken = perfect.copy()
    mistaken[:10:2] = 0.95
    numbers = numbers_of(monkeypatch, {"perfect": perfect, "mistaken": mistaken})
    assert numbers.difference_error("perfect", "mistaken", "finetune", "rejection", "top", [0]) is None
    assert numbers.difference_error("mistaken", "mistaken", "finetune", "rejection", "top", [0]) == 0.0
    assert numbers.difference_error("perfect", "mistaken", "finetune", "auc", "top", [0]) > 0.0


@pytest.mark.parametrize("metric", ["accuracy", "auc_ovo", "auc", "rejection"])
def test_without_the_scores_of_both_rows_the_error_is_unknown(monkeypatch, metric):
    numbers = numbers_of(monkeypatch, {"kept": np.linspace(0, 1, 200), "lost": None})
    assert numbers.difference_error("kept", "lost", "knn", metric, "top", [0, 1]) is None
