"""One rank with eight jets = two ranks with four each: losses and gradients, once averaged over the ranks."""

import contrastive_ranks as ranks
import pytest
import torch
import two_ranks

CASES = ["nt-xent", "supcon", "one view", "one class a rank", "one class"]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return two_ranks.outcomes(tmp_path_factory.mktemp("ranks"), ranks.everything)


@pytest.mark.parametrize("name", CASES)
def test_losses(outcomes, name):
    """Value by value, and gradient jet by jet: a rank's own is that of its own loss, twice its share in the average."""
    one, two = (outcomes[0]["losses"], [rank["losses"] for rank in outcomes[1]])
    torch.testing.assert_close(torch.stack([rank[name] for rank in two]).mean(0), one[name])
    joined = torch.empty_like(one[f"{name} gradient"])
    for r, rank in enumerate(two):
        joined[two_ranks.part(r)] = rank[f"{name} gradient"] / two_ranks.WORLD
    torch.testing.assert_close(joined, one[f"{name} gradient"])
    assert bool(one[f"{name} gradient"].any()) is (name != "one class")


@pytest.mark.parametrize("name", ranks.MODULES)
def test_whole_step(outcomes, name):
    """Views included: a jet is changed alike whichever rank has it."""
    one, two = outcomes[0][name], [rank[name] for rank in outcomes[1]]
    assert set(one) == set(two[0])
    for key, expected in one.items():
        mean = torch.stack([rank[key] for rank in two]).mean(0)
        torch.testing.assert_close(mean, expected, rtol=1e-3, atol=1e-5 * max(1.0, float(expected.abs().max())))
    # The second bias of a projection that is compared by cosines moves all jets alike, but no gradient vanishes.
    assert all(float(x.abs().max()) > 0 for x in one.values() if x.ndim)
