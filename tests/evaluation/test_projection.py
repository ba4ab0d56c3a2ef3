"""Projections keep what is far apart, apart."""

import numpy as np
import pytest

from jetrep.errors import InputError
from jetrep.evaluation.projection import project


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_two_distant_groups_stay_apart_at_any_scale(method):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 60))
    x[60:] += 5.0
    plane = project(x, method, seed=1)
    assert plane.shape == (120, 2)
    centre = [plane[:60].mean(0), plane[60:].mean(0)]
    nearer = np.argmin([np.linalg.norm(plane - c, axis=1) for c in centre], axis=0)
    np.testing.assert_array_equal(nearer, np.repeat([0, 1], 60))
    np.testing.assert_array_equal(plane, project(x, method, seed=1))
    if method == "pca":
        np.testing.assert_allclose(plane, project(1e3 * x + 7.0, method), atol=1e-8)


def test_principal_components_are_uncorrelated_and_ordered():
    rng = np.random.default_rng(1)
    plane = project(rng.normal(size=(500, 4)) @ rng.normal(size=(4, 4)), "pca")
    covariance = np.cov(plane.T)
    assert covariance[0, 1] == pytest.approx(0.0, abs=1e-10)
    assert covariance[0, 0] > covariance[1, 1]


def test_bad_input_is_named():
    with pytest.raises(InputError, match="plane"):
        project(np.zeros((2, 4)))
    with pytest.raises(InputError, match="umap"):
        project(np.random.default_rng(2).normal(size=(9, 4)), "umap")
    with pytest.raises(InputError, match="jet 1"):
        project([[0.0, 1.0], [np.nan, 1.0], [0.0, 2.0]])
    assert project(np.arange(5.0)[:, None]).shape == (5, 2)
