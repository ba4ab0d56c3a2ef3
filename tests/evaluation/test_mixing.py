import numpy as np
import pytest

from jetrep.evaluation.mixing import autocorrelation, batch_spread


def test_two_classes_give_the_usual_autocorrelation():
    rng = np.random.default_rng(0)
    # A chain that keeps its state with probability 0.9: correlation 0.8 from one to the next, 0.8^k over k steps.
    state = np.cumsum(rng.random(200_000) > 0.9) % 2
    rho, error = autocorrelation(state, [1, 2, 5])
    np.testing.assert_allclose(rho, 0.8 ** np.array([1, 2, 5]), atol=0.02)
    centred = state - state.mean()
    assert rho[0] == pytest.approx(np.mean(centred[:-1] * centred[1:]) / centred.var(), abs=1e-4)
    assert error == pytest.approx(1 / np.sqrt(200_000), rel=1e-2)


def test_random_and_sorted_orders():
    rng = np.random.default_rng(1)
    for n_kinds in (2, 20):
        files = np.repeat(np.arange(n_kinds), 5000)
        assert autocorrelation(files, [1])[0] > 0.99
        shuffled = [autocorrelation(rng.permutation(files), [1, 64, 1000]) for _ in range(20)]
        pulls = np.concatenate([rho / error for rho, error in shuffled])
        assert 0.7 < pulls.std() < 1.3
        assert batch_spread(files, 50) > 6
        assert batch_spread(rng.permutation(files), 50) == pytest.approx(1, abs=0.2)


def test_one_kind():
    assert autocorrelation(np.ones(10), [1, 2])[0].tolist() == [0, 0]
    assert batch_spread(np.ones(10), 2) == 0
