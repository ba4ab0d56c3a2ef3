"""One rank with eight jets = two ranks with four each, for generative objectives."""

import generative_ranks
import pytest
import torch
import two_ranks


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return two_ranks.outcomes(tmp_path_factory.mktemp("ranks"), generative_ranks.everything, generative_ranks.made)


@pytest.mark.parametrize("name", generative_ranks.CONFIGS)
def test_whole_step(outcomes, name):
    one, two = outcomes
    for key, expected in one[name].items():
        mean = torch.stack([rank[name][key] for rank in two]).mean(0)
        torch.testing.assert_close(mean, expected, rtol=1e-3, atol=1e-5 * max(1.0, float(expected.abs().max())))
    assert float(two[0][name]["loss"]) != float(two[1][name]["loss"])
