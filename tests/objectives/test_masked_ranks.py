"""One rank with eight jets = two ranks with four each, for masked objectives and the codebook."""

import masked_ranks
import pytest
import torch
import two_ranks


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return two_ranks.outcomes(tmp_path_factory.mktemp("ranks"), masked_ranks.everything, masked_ranks.made)


@pytest.mark.parametrize("name", masked_ranks.TARGETS)
def test_whole_step(outcomes, name):
    one, two = outcomes
    two_ranks.assert_the_same_step(one[name], [rank[name] for rank in two])


def test_codebook(outcomes):
    one, two = outcomes
    for name in ("codes", "share", "moment"):
        torch.testing.assert_close(two[0]["quantizer"][name], two[1]["quantizer"][name])
        torch.testing.assert_close(two[0]["quantizer"][name], one["quantizer"][name])
    assert float(one["quantizer"]["replaced"]) > 0
