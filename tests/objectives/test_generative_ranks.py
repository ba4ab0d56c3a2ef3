"""One rank with eight jets = two ranks with four each, for generative objectives."""

import generative_ranks
import pytest
import two_ranks


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return two_ranks.outcomes(tmp_path_factory.mktemp("ranks"), generative_ranks.everything, generative_ranks.made)


@pytest.mark.parametrize("name", generative_ranks.CONFIGS)
def test_whole_step(outcomes, name):
    one, two = outcomes
    two_ranks.assert_the_same_step(one[name], [rank[name] for rank in two])
