from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jetrep.errors import InputError
from jetrep.features import FeatureConfig, Features
from jetrep.views.rg import ALL, subjets
from random_jets import random_jets

COUNTS = st.lists(st.integers(1, 40), min_size=1, max_size=6)


@settings(deadline=None, max_examples=40)
@given(COUNTS, st.integers(1, 20), st.integers(0, 1000))
def test_every_view_carries_the_four_momentum_of_the_jet(counts, n, seed):
    batch = random_jets(counts, seed).batch()
    view = subjets(batch, n)
    torch.testing.assert_close(view.p4.sum(1), batch.jet_p4, rtol=1e-5, atol=1e-4)
    assert view.mask.sum(1).tolist() == [min(n, count) for count in counts]
    assert not view.p4[~view.mask].any()
    assert (view.p4[view.mask][:, 0] > 0).all()


@settings(deadline=None, max_examples=30)
@given(COUNTS, st.integers(0, 1000))
def test_a_view_at_least_as_fine_as_the_jet_is_the_jet_feature_by_feature(counts, seed):
    batch = random_jets(counts, seed).batch()
    features = Features(FeatureConfig("kin_p4", "rino_g1"))
    all_particles, view = features(batch), features(subjets(batch, max(counts) + 2))
    assert (batch.jet_p4[:, 3] < 0).all()
    for jet, count in enumerate(counts):
        expected = sorted(all_particles.features[jet, :count].tolist())
        found = sorted(view.features[jet, :count].tolist())
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(view.jet_features, all_particles.jet_features)


@settings(deadline=None, max_examples=20)
@given(st.integers(4, 40), st.integers(1, 12), st.integers(0, 1000))
def test_views_are_nested_cuts_of_one_tree(count, n, seed):
    """Going from n + 1 to n subjets joins exactly two of them."""
    batch = random_jets([count], seed).batch()
    fine, coarse = subjets(batch, n + 1), subjets(batch, n)
    if count <= n:
        return
    distance = torch.cdist(coarse.p4[0], fine.p4[0])
    unchanged = (distance.min(1).values < 1e-3).sum().item()
    assert unchanged == n - 1


def test_views_equal_those_of_the_merge_history_on_the_host():
    jets = random_jets([30, 5, 1, 16])
    for n in (1, 2, 6, 16):
        host = jets.subjets(n)
        view = subjets(jets.batch(), n)
        for jet in range(4):
            got = sorted(view.p4[jet][view.mask[jet]].tolist())
            torch.testing.assert_close(
                torch.tensor(got), torch.tensor(sorted(host[jet].tolist())), rtol=1e-4, atol=1e-3
            )


@settings(deadline=None, max_examples=40)
@given(COUNTS, st.integers(1, 20), st.integers(0, 1000))
def test_the_compiled_loop_gives_what_tensor_operations_give(counts, n, seed):
    batch = random_jets(counts, seed).batch()
    compiled, tensors = subjets(batch, n), subjets(replace(batch, p4=batch.p4.clone().requires_grad_()), n)
    assert tensors.p4.requires_grad
    assert torch.equal(compiled.p4, tensors.p4)
    assert torch.equal(compiled.mask, tensors.mask)


def test_all_is_the_batch_and_unclustered_jets_are_refused():
    jets = random_jets([5, 6])
    batch = jets.batch()
    assert subjets(batch, ALL) is batch
    with pytest.raises(InputError, match="clustered"):
        subjets(jets.leading(4).batch(), 2)
