"""The energy mover's distance equals a linear programme; its approximations stand where mathematics puts them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.stats import wasserstein_distance

from jetrep.objectives.reconstruction_losses import in_rest_frame
from jetrep.objectives.transport import (
    energy_movers_distance,
    sinkhorn_divergence,
    sliced_energy_movers_distance,
)
from jetrep.physics.lorentz import random_directions
from lorentz_jets import jets_of, observers, seen_by

AXES = random_directions(64, torch.Generator().manual_seed(1))


def sliced(p, q, p_mask, q_mask):
    return sliced_energy_movers_distance(p, q, p_mask, q_mask, AXES)


def sinkhorn(p, q, p_mask, q_mask):
    return sinkhorn_divergence(p, q, p_mask, q_mask, 0.1, 1000)


DISTANCES = {"exact": energy_movers_distance, "sinkhorn": sinkhorn, "sliced": sliced}


@pytest.fixture(params=list(DISTANCES))
def distance(request):
    return DISTANCES[request.param]


def sets(counts_p, counts_q, width=7, seed=0):
    """Two sets of massless momenta of order one, energies of different sums, and their masks."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for counts in (counts_p, counts_q):
        momentum = torch.randn(len(counts), width, 3, dtype=torch.float64, generator=generator) / width
        mask = torch.arange(width) < torch.tensor(counts).unsqueeze(1)
        result.append((torch.cat([momentum.norm(dim=-1, keepdim=True), momentum], -1), mask))
    (p, p_mask), (q, q_mask) = result
    return p, q, p_mask, q_mask


def linear_programme(p, q):
    """The definition, for one pair of (n, 4) and (m, 4) arrays."""
    energies, directions = (
        [x[:, 0] for x in (p, q)],
        [x[:, 1:] / np.linalg.norm(x[:, 1:], axis=1)[:, None] for x in (p, q)],
    )
    n, m = len(p), len(q)
    total_p, total_q = (e.sum() for e in energies)
    if not n or not m:
        return abs(total_p - total_q)
    cost = np.linalg.norm(directions[0][:, None] - directions[1][None], axis=-1).ravel()
    flows = np.arange(n * m).reshape(n, m)
    limits = np.zeros((n + m, n * m))
    for i in range(n):
        limits[i, flows[i]] = 1
    for j in range(m):
        limits[n + j, flows[:, j]] = 1
    found = linprog(cost, limits, np.concatenate(energies), np.ones((1, n * m)), [min(total_p, total_q)])
    assert found.success
    return found.fun + abs(total_p - total_q)


def test_exact_equals_the_linear_programme():
    p, q, p_mask, q_mask = sets([7, 5, 3, 1, 0, 4, 0], [7, 2, 6, 1, 3, 0, 0])
    expected = [linear_programme(p[i][p_mask[i]].numpy(), q[i][q_mask[i]].numpy()) for i in range(7)]
    found = energy_movers_distance(p, q, p_mask, q_mask)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-7, atol=1e-9)


def test_energy_of_one_jet_alone_costs_its_amount(distance):
    p, q, p_mask, q_mask = sets([4], [4])
    found = distance(p, q, p_mask, torch.zeros_like(q_mask))
    expected = p[0, :4, 0].sum()
    if distance is sliced:  # energy on all sides, seen along the axes
        assert 0.9 < found / expected < 1.1
    else:
        torch.testing.assert_close(found, expected.unsqueeze(0), rtol=0.1, atol=0)


def test_sinkhorn_tends_to_the_exact_distance():
    p, q, p_mask, q_mask = sets([7, 5, 3], [7, 2, 6])
    exact = energy_movers_distance(p, q, p_mask, q_mask)
    errors = [
        float((sinkhorn_divergence(p, q, p_mask, q_mask, epsilon, 3000) - exact).abs().max())
        for epsilon in (0.2, 0.05, 0.01)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-2 * float(exact.max())


def test_sliced_equals_scipy_along_each_axis():
    p, q, p_mask, q_mask = sets([7, 5], [7, 3])
    q[..., :] *= (p[..., 0] * p_mask).sum(1)[:, None, None] / (q[..., 0] * q_mask).sum(1)[:, None, None]
    found = sliced(p, q, p_mask, q_mask)
    for i in range(2):
        (a, x), (b, y) = ((s[:, 0], s[:, 1:] / s[:, :1]) for s in (p[i][p_mask[i]], q[i][q_mask[i]]))
        along = [wasserstein_distance(x @ axis, y @ axis, a, b) for axis in AXES]
        torch.testing.assert_close(found[i], 2 * a.sum() * np.mean(along))


def test_sliced_never_exceeds_the_exact_distance():
    p, q, p_mask, q_mask = sets([7, 5, 3, 1, 2] * 8, [7, 2, 6, 1, 7] * 8)
    exact = energy_movers_distance(p, q, p_mask, q_mask)
    each = torch.stack([sliced_energy_movers_distance(p, q, p_mask, q_mask, axis.unsqueeze(0)) for axis in AXES])
    assert (0.5 * each <= exact + 1e-12).all()  # along every single axis
    axes = random_directions(4000, torch.Generator().manual_seed(2))
    mean = sliced_energy_movers_distance(p, q, p_mask, q_mask, axes)
    assert (mean <= 1.03 * exact).all()
    # Two jets of one particle of the same energy: equality.
    q[3::5, 0] *= p[3::5, :1, 0] / q[3::5, :1, 0]
    exact, mean = (
        energy_movers_distance(p, q, p_mask, q_mask),
        sliced_energy_movers_distance(p, q, p_mask, q_mask, axes),
    )
    torch.testing.assert_close(mean[3::5], exact[3::5], rtol=0.03, atol=0)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000))
def test_exact_is_a_metric(seed):
    p, q, p_mask, q_mask = sets([5, 3, 1], [4, 7, 2], seed=seed)
    r, _, r_mask, _ = sets([6, 2, 4], [1, 1, 1], seed=seed + 5000)
    there, back = energy_movers_distance(p, q, p_mask, q_mask), energy_movers_distance(q, p, q_mask, p_mask)
    torch.testing.assert_close(there, back)
    detour = energy_movers_distance(p, r, p_mask, r_mask) + energy_movers_distance(r, q, r_mask, q_mask)
    assert (there <= detour + 1e-9).all()


def test_padding_takes_no_part(distance):
    p, q, p_mask, q_mask = sets([4, 2], [3, 7])
    expected = distance(p, q, p_mask, q_mask)
    p[~p_mask], q[~q_mask] = 1e3, -1e3
    torch.testing.assert_close(distance(p, q, p_mask, q_mask), expected)


def test_zero_only_where_the_energy_flow_is_equal(distance):
    p, _, mask, _ = sets([7, 5], [7, 5])
    assert distance(p, p, mask, mask).abs().max() < 1e-9
    order = torch.randperm(5)
    shuffled = p.clone()
    shuffled[:, :5] = p[:, order]
    assert distance(p, shuffled, mask, mask).abs().max() < 1e-9
    for changed in (p.clone(), p.clone()):
        changed[:, 0, 0] += 1e-2
        changed[:, 1, 1:] = changed[:, 1, 1:].roll(1, -1)
        assert (distance(p, changed, mask, mask) > 1e-4).all()


def test_infrared_and_collinear_safe(distance):
    p, q, p_mask, q_mask = sets([4, 5], [6, 6])
    expected = distance(p, q, p_mask, q_mask)
    split = p.clone()
    split[:, 6], split[:, 0] = 0.3 * p[:, 0], 0.7 * p[:, 0]
    mask = p_mask.clone()
    mask[:, 6] = True
    torch.testing.assert_close(distance(split, q, mask, q_mask), expected, rtol=1e-6, atol=1e-8)
    soft = p.clone()
    soft[:, 6] = 1e-9 * p[:, 6]
    torch.testing.assert_close(distance(soft, q, mask, q_mask), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("gamma", [5.0, 50.0])
def test_the_same_for_every_observer(distance, gamma):
    p4, mask = jets_of([9, 5, 12])
    other, other_mask = jets_of([8, 7, 12], seed=1, width=12)
    expected = energy_movers_distance(*in_rest_frame(p4, other, mask), mask, other_mask)
    matrices = observers(3, gamma)
    moved = energy_movers_distance(
        *in_rest_frame(seen_by(matrices, p4), seen_by(matrices, other), mask), mask, other_mask
    )
    torch.testing.assert_close(moved, expected, rtol=1e-5, atol=1e-7)


def test_gradient_is_that_of_the_definition(distance):
    # Energies of their own, so that weights and directions both move.
    p, q, p_mask, q_mask = sets([3], [2], width=3)
    q[:, :, 0] *= 1.3
    torch.autograd.gradcheck(
        lambda x, y: distance(x, y, p_mask, q_mask), (p.requires_grad_(), q.requires_grad_()), atol=1e-4, rtol=1e-3
    )


def test_gradients_are_finite_where_directions_are_not_defined(distance):
    p, q, p_mask, q_mask = sets([7, 0, 3], [6, 5, 0])
    p[0, 0], q[0, 0] = 0.0, p[0, 1]
    q[1, 0, 1:] = 0.0
    p, q = p.float().requires_grad_(), q.float().requires_grad_()
    distance(p, q, p_mask, q_mask).sum().backward()
    assert p.grad.abs().max() < 1e6
    assert q.grad.abs().max() < 1e6


def test_sliced_distance_keeps_its_digits_under_autocast():
    p, _, mask, _ = sets([7, 5], [7, 5])
    near = p + 1e-3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2)).double()
    given = (p.float(), near.float(), mask, mask, AXES.float())
    expected = sliced_energy_movers_distance(*given)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(sliced_energy_movers_distance(*given), expected)
