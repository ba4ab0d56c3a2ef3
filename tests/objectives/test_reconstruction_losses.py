"""Each loss equals a slow oracle, ignores padding, and is the same for every observer."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from jetrep.objectives.reconstruction_losses import (
    assignment,
    chamfer,
    hungarian,
    in_rest_frame,
    invariant_distance2,
    mse,
    pair_distance2,
    presence_loss,
)
from jetrep.physics.lorentz import RestFrame, transform
from lorentz_jets import jets_of, observers, seen_by

LOSSES = [chamfer, hungarian, mse]


def sets(counts_p, counts_q, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    result = []
    for counts in (counts_p, counts_q):
        mask = torch.arange(width) < torch.tensor(counts).unsqueeze(1)
        result.append((torch.randn(len(counts), width, 4, dtype=torch.float64, generator=generator), mask))
    (p, p_mask), (q, q_mask) = result
    return p, q, p_mask, q_mask


def oracle(loss, p, q):
    """One jet of (n, 4) and (m, 4) NumPy arrays without padding, by loops."""
    if loss is chamfer:
        if not len(p) or not len(q):
            return 0.5 * ((p**2).sum() + (q**2).sum())
        there = sum(min(((a - b) ** 2).sum() for b in q) for a in p)
        back = sum(min(((a - b) ** 2).sum() for a in p) for b in q)
        return 0.5 * (there + back)
    n = max(len(p), len(q))
    p, q = (np.concatenate([x, np.zeros((n - len(x), 4))]) for x in (p, q))
    if loss is mse:
        return ((p - q) ** 2).sum()
    cost = ((p[:, None] - q[None]) ** 2).sum(-1)
    rows, columns = linear_sum_assignment(cost)
    return cost[rows, columns].sum()


@pytest.mark.parametrize("loss", LOSSES)
def test_equals_the_slow_oracle(loss):
    p, q, p_mask, q_mask = sets([8, 5, 3, 1, 0, 4, 0], [8, 2, 6, 1, 3, 0, 0])
    expected = [oracle(loss, p[i][p_mask[i]].numpy(), q[i][q_mask[i]].numpy()) for i in range(7)]
    torch.testing.assert_close(loss(p, q, p_mask, q_mask), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_is_that_of_the_definition(loss):
    p, q, p_mask, q_mask = sets([8, 5, 3], [6, 5, 8])
    torch.autograd.gradcheck(lambda x, y: loss(x, y, p_mask, q_mask), (p.requires_grad_(), q.requires_grad_()))


@pytest.mark.parametrize("loss", LOSSES)
def test_padding_takes_no_part(loss):
    p, q, p_mask, q_mask = sets([4, 2], [3, 8])
    expected = loss(p, q, p_mask, q_mask)
    p[~p_mask], q[~q_mask] = 1e3, -1e3
    torch.testing.assert_close(loss(p, q, p_mask, q_mask), expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_zero_only_at_equality(loss):
    p, _, mask, _ = sets([8, 5], [8, 5])
    assert not loss(p, p, mask, mask).any()
    changed = p.clone()
    changed[:, 0] += 1e-3
    assert (loss(p, changed, mask, mask) > 0).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("gamma", "tolerance"), [(2.0, 1e-9), (50.0, 1e-7), (1e4, 1e-2)])
def test_same_for_every_observer(loss, gamma, tolerance):
    p4, mask = jets_of([12, 7, 5])
    other = p4 + 0.1 * jets_of([12, 7, 5], seed=1)[0]
    matrix = observers(3, gamma)
    here, there = (
        loss(*in_rest_frame(*pair, mask), mask, mask)
        for pair in ((p4, other), (seen_by(matrix, p4), seen_by(matrix, other)))
    )
    torch.testing.assert_close(there, here, rtol=tolerance, atol=0)


def test_distance_is_the_euclidean_one_in_the_rest_frame_and_is_positive():
    p4, mask = jets_of([9, 9])
    other = jets_of([9, 9], seed=1)[0]
    frame = RestFrame.of(p4.sum(1))
    by_definition = invariant_distance2(p4, other, frame.velocity.unsqueeze(1)) / frame.mass.square().unsqueeze(1)
    one, two = in_rest_frame(p4, other, mask)
    torch.testing.assert_close(by_definition, (one - two).square().sum(-1), rtol=1e-8, atol=1e-8)
    assert (by_definition > 0).all()
    matrix = observers(2, 3.0)
    moved = [seen_by(matrix, x) for x in (p4, other)]
    velocity = transform(matrix[:, 0], frame.velocity).unsqueeze(1)
    torch.testing.assert_close(
        invariant_distance2(*moved, velocity) / frame.mass.square().unsqueeze(1), by_definition, rtol=1e-6, atol=1e-6
    )


@settings(max_examples=80, deadline=None)
@given(
    batch=st.integers(0, 4),
    n=st.integers(0, 12),
    seed=st.integers(0, 1000),
    digits=st.sampled_from([0, 1, 12]),
    scale=st.sampled_from([1e-12, 1.0, 1e12]),
)
def test_assignment_costs_what_scipy_finds(batch, n, seed, digits, scale):
    """Few digits make ties, where several assignments are best."""
    cost = np.random.default_rng(seed).normal(size=(batch, n, n)).round(digits) * scale
    found = assignment(torch.from_numpy(cost)).numpy()
    for matrix, columns in zip(cost, found, strict=True):
        assert sorted(columns) == list(range(n))
        best = matrix[linear_sum_assignment(matrix)].sum()
        np.testing.assert_allclose(matrix[np.arange(n), columns].sum(), best, rtol=1e-9, atol=1e-9 * scale)


def test_assignment_undoes_a_permutation_that_is_not_its_own_inverse():
    p, _, mask, _ = sets([8], [8])
    order = torch.tensor([2, 0, 1, 4, 5, 6, 7, 3])
    q = p[:, order]
    torch.testing.assert_close(q.gather(1, assignment(pair_distance2(p, q)).unsqueeze(-1).expand(-1, -1, 4)), p)
    assert float(hungarian(p, q, mask, mask)) == 0 < float(mse(p, q, mask, mask))


def test_assignment_of_infinite_costs_is_refused():
    with pytest.raises(ValueError, match="finite"):
        assignment(torch.full((1, 2, 2), torch.inf))


def test_presence_is_cross_entropy_of_the_multiplicity():
    logits = torch.tensor([[2.0, -1.0, 0.5]])
    p = logits.sigmoid()
    expected = -(p[:, 0].log() + p[:, 1].log() + (1 - p[:, 2]).log())
    torch.testing.assert_close(presence_loss(logits, torch.tensor([[True, True]])), expected)
