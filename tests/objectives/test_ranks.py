"""One rank with eight jets = two ranks with four each: losses and gradients, once averaged over the ranks."""

import pytest
import ranks
import torch
import two_ranks


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return two_ranks.outcomes(tmp_path_factory.mktemp("ranks"), ranks.everything)


@pytest.mark.parametrize("name", ["koleo", "dino", "center"])
def test_values_average_to_those_of_one_rank(outcomes, name):
    one, two = outcomes
    mean = torch.stack([rank["losses"][name] for rank in two]).mean(0)
    torch.testing.assert_close(mean, one["losses"][name])


@pytest.mark.parametrize("name", ["koleo gradient", "dino gradient", "sinkhorn", "uneven"])
def test_what_belongs_to_a_jet_is_the_same_on_either_rank(outcomes, name):
    """The gradients of the averaged loss: a rank's own are those of its own loss, twice the share in the average."""
    one, two = outcomes
    joined = torch.cat([rank["losses"][name] for rank in two])
    if "gradient" in name:
        joined = joined / two_ranks.WORLD
    torch.testing.assert_close(joined, one["losses"][name])


@pytest.mark.parametrize("name", ranks.CONFIGS)
def test_whole_step(outcomes, name):
    one, two = outcomes
    assert set(one[name]) == set(two[0][name])
    for key, expected in one[name].items():
        mean = torch.stack([rank[name][key] for rank in two]).mean(0)
        torch.testing.assert_close(mean, expected, rtol=1e-3, atol=1e-5 * max(1.0, float(expected.abs().max())))
    assert float(torch.stack([g.abs().max() for key, g in one[name].items() if key != "loss"]).min()) > 0
