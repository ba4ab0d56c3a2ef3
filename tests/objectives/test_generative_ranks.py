"""One rank with eight jets = two ranks with four each, for generative objectives."""

import generative_ranks
import pytest
import torch


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    return generative_ranks.outcomes(tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", generative_ranks.CONFIGS)
def test_whole_step(two_ranks, name):
    one, two = two_ranks
    for key, expected in one[name].items():
        mean = torch.stack([rank[name][key] for rank in two]).mean(0)
        torch.testing.assert_close(mean, expected, rtol=1e-3, atol=1e-5 * max(1.0, float(expected.abs().max())))
    assert float(two[0][name]["loss"]) != float(two[1][name]["loss"])
