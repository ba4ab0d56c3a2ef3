import math

import pytest
import torch
from plain_flow import plain_nll

from jetrep.objectives.flows import ConditionalFlow

NAMES = ("log_pt_rel", "delta_eta", "delta_phi", "delta_r", "log_pt")


def flow(n, spread=0.3, **kwargs):
    """A flow that is not near the identity."""
    torch.manual_seed(0)
    target = ConditionalFlow(3, NAMES[:n], hidden=(16, 16), **kwargs)
    with torch.no_grad():
        for p in target.parameters():
            p.add_(spread * torch.randn_like(p))
    return target


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_likelihood_is_that_of_one_particle_at_a_time(n):
    target, context = flow(n).double(), torch.randn(7, 3).double()
    x = 3 * torch.randn(7, n).double()  # some beyond the tails
    with torch.no_grad():
        got = target.transform(context).call_and_ladj(x)
        nll = 0.5 * got[0].square().sum(1) + 0.5 * n * math.log(2 * math.pi) - got[1]
    expected = torch.stack([plain_nll(target, a, c) for a, c in zip(x, context, strict=True)]).detach()
    torch.testing.assert_close(nll, expected)
    torch.testing.assert_close(flow(n).nll(x, context).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("n", "points"), [(1, 20_001), (2, 401)])
def test_density_integrates_to_one(n, points):
    target, context = flow(n, spread=0.15), torch.randn(3)
    axis = torch.linspace(-8, 8, points)
    grid = torch.stack(torch.meshgrid(*[axis] * n, indexing="ij"), -1).view(-1, n)
    with torch.no_grad():
        density = torch.exp(-target.nll(grid, context.expand(len(grid), 3)))
        normal = torch.exp(-0.5 * grid.square().sum(1)) / (2 * math.pi) ** (n / 2)
    cell = (16 / (points - 1)) ** n
    assert float(density.double().sum()) * cell == pytest.approx(1, abs=1e-3)
    assert float((density - normal).abs().sum()) * cell > 0.1  # it is another one than what it started from


@pytest.mark.parametrize("n", [1, 2, 5])
def test_layers_can_be_undone(n):
    target, context = flow(n).double(), torch.randn(20, 3).double()
    transform = target.transform(context)
    x = 2 * torch.randn(20, n).double()
    torch.testing.assert_close(transform.inv(transform(x)), x)


def test_beyond_the_tails_nothing_is_changed():
    target, context = flow(2, tail=4.0), torch.randn(2, 3)
    x = torch.tensor([[4.5, -20.0], [1e3, 6.0]])
    torch.testing.assert_close(target.nll(x, context), 0.5 * x.square().sum(1) + math.log(2 * math.pi))


def test_it_learns_a_conditional_distribution_and_draws_from_it():
    """Two correlated features, whose means the context shifts; one of them has two peaks."""
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    target = ConditionalFlow(1, NAMES[:2], layers=3, hidden=(32, 32))
    optimizer = torch.optim.Adam(target.parameters(), 5e-3)

    def draw(m):
        context = torch.rand(m, 1, generator=g) * 2 - 1
        peak = torch.randint(0, 2, (m, 1), generator=g) * 2.0 - 1
        first = context + 0.2 * torch.randn(m, 1, generator=g)
        return torch.cat([first, peak + 0.5 * first + 0.2 * torch.randn(m, 1, generator=g)], 1), context

    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - step / 400)
        loss = target.nll(*draw(256)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # The entropy of the truth: two normal numbers of width 0.2, and one of two peaks.
    entropy = 2 * (0.5 * math.log(2 * math.pi * math.e) + math.log(0.2)) + math.log(2)
    with torch.no_grad():
        assert float(target.nll(*draw(4000)).mean()) == pytest.approx(entropy, abs=0.1)
    for c in (-0.8, 0.0, 0.8):
        x = target.sample(torch.full((4000, 1), c), g)
        up = x[:, 1] > 0.5 * c
        assert float(up.float().mean()) == pytest.approx(0.5, abs=0.06)
        assert x.mean(0).tolist() == pytest.approx([c, 0.5 * c], abs=0.12)
        assert x[up].mean(0).tolist() == pytest.approx([c, 1 + 0.5 * c], abs=0.12)
        assert float(x[:, 0].std()) == pytest.approx(0.2, abs=0.06)


def test_noise_is_on_measured_features_alone():
    torch.manual_seed(0)
    target = ConditionalFlow(2, ("log_pt_rel", "tanh_d0", "delta_eta", "tanh_dz"), hidden=(8,))
    assert target.n_noise == 2
    x, context = torch.randn(1, 5, 4), torch.randn(5, 2)
    noise = torch.randn(5, 2, generator=torch.Generator().manual_seed(1))
    every = torch.ones(1, 5, dtype=torch.bool)
    shifted = x[0].clone()
    shifted[:, 1] += 0.05 * noise[:, 0]
    shifted[:, 3] += 0.05 * noise[:, 1]
    torch.testing.assert_close(target(context, x, every, every, noise)[0], target.nll(shifted, context))


@pytest.mark.parametrize("n", [1, 3])
def test_it_computes_in_single_precision_whatever_the_run_does(n):
    target, x = flow(n), torch.randn(6, n)
    context = torch.randn(6, 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        nll = target.nll(x, context)
        drawn = target.sample(context, torch.Generator().manual_seed(0))
    assert nll.dtype == drawn.dtype == torch.float32
    assert torch.equal(nll, target.nll(x, context.float()))
    nll.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in target.parameters())


def test_no_particle_has_no_loss_and_gradients_of_zero():
    target = flow(2)
    context = torch.zeros(0, 3, requires_grad=True)
    target.nll(torch.zeros(0, 2), context).sum().backward()
    assert all(not p.grad.any() for p in target.parameters())
    assert context.grad.shape == (0, 3)
