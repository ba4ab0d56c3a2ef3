import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from jetrep.objectives.losses import Centering, cross_entropies, dino_loss, ibot_loss, koleo_loss, sinkhorn
from jetrep.objectives.monitors import alarms, collapse_monitors, feature_rank


def slow_sinkhorn(logits: list[list[float]], temperature: float, iterations: int) -> torch.Tensor:
    """Row and column scalings written out, in double precision."""
    q = (torch.tensor(logits, dtype=torch.float64) / temperature).exp().T
    k, m = q.shape
    q = q / q.sum()
    for _ in range(iterations):
        for row in range(k):
            q[row] /= q[row].sum() * k
        for column in range(m):
            q[:, column] /= q[:, column].sum() * m
    return (q * m).T.float()


def slow_cross_entropy(student: torch.Tensor, target: torch.Tensor, temperature: float) -> float:
    log_p = torch.log_softmax(student.double() / temperature, -1)
    return -sum(float(q) * float(lp) for q, lp in zip(target, log_p, strict=True))


@settings(deadline=None, max_examples=40)
@given(
    m=st.integers(1, 9),
    k=st.integers(1, 7),
    temperature=st.sampled_from([0.04, 0.07, 0.5]),
    iterations=st.integers(1, 5),
    seed=st.integers(0, 10_000),
)
def test_sinkhorn_equals_its_definition(m, k, temperature, iterations, seed):
    logits = torch.rand(m, k, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    q = sinkhorn(logits, temperature, iterations)
    torch.testing.assert_close(q, slow_sinkhorn(logits.tolist(), temperature, iterations), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(q.sum(1), torch.ones(m))


def test_sinkhorn_uses_all_prototypes_equally_and_survives_extreme_logits():
    q = sinkhorn(torch.randn(400, 8) * 0.2 + torch.linspace(-1, 1, 8), 0.1, iterations=30)
    torch.testing.assert_close(q.mean(0), torch.full((8,), 1 / 8), rtol=1e-3, atol=1e-4)
    extreme = torch.tensor([[1e4, -1e4, 0.0], [9e3, -2e4, 5.0]])
    q = sinkhorn(extreme, 0.01)
    assert q.isfinite().all()
    torch.testing.assert_close(q.sum(1), torch.ones(2))
    assert sinkhorn(torch.empty(0, 5), 0.1).shape == (0, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_targets_and_cross_entropies_are_in_single_precision_under_autocast(dtype):
    """With as many prototypes as published, half precision does not even hold their weights."""
    logits = torch.rand(96, 2048) * 2 - 1
    targets = sinkhorn(logits, 0.04)
    pairs = cross_entropies(logits[:4], targets[:3], 0.1)
    with torch.autocast("cpu", dtype):
        assert torch.equal(sinkhorn(logits, 0.04), targets)
        assert torch.equal(cross_entropies(logits[:4], targets[:3], 0.1), pairs)


def test_centering_subtracts_a_running_mean():
    centering = Centering(4)
    first, second = torch.randn(6, 4), torch.randn(3, 4)
    torch.testing.assert_close(centering(first, 0.2), torch.softmax(first / 0.2, -1))
    center = 0.1 * first.mean(0)
    torch.testing.assert_close(centering(second, 0.2), torch.softmax((second - center) / 0.2, -1))
    torch.testing.assert_close(centering.center, 0.9 * center + 0.1 * second.mean(0))
    before = centering.center.clone()
    centering(torch.empty(0, 4), 0.2)
    centering.eval()
    centering(first, 0.2)
    torch.testing.assert_close(centering.center, before)


@pytest.mark.parametrize("temperature", [0.1, 0.2, 1.0])
@pytest.mark.parametrize(("n_teacher", "n_student", "batch", "k"), [(3, 6, 4, 16), (1, 2, 1, 3), (4, 9, 5, 8)])
@pytest.mark.parametrize("masked", [False, True])
def test_dino_loss_is_the_mean_over_pairs(temperature, n_teacher, n_student, batch, k, masked):
    student = torch.randn(n_student, batch, k, requires_grad=True)
    targets = torch.softmax(torch.randn(n_teacher, batch, k), -1)
    weights = (torch.arange(n_teacher).unsqueeze(1) != torch.arange(n_student)).expand(batch, -1, -1).float()
    if masked:
        weights = weights * (torch.rand(weights.shape) < 0.6)
    total, pairs = 0.0, 0
    for b in range(batch):
        for t in range(n_teacher):
            for s in range(n_student):
                if weights[b, t, s]:
                    total += slow_cross_entropy(student[s, b].detach(), targets[t, b], temperature)
                    pairs += 1
    loss = dino_loss(student, targets, temperature, weights)
    assert float(loss.detach()) == pytest.approx(total / max(1, pairs), rel=1e-4)

    (gradient,) = torch.autograd.grad(loss, student)
    p = torch.softmax(student.detach() / temperature, -1)
    expected = torch.einsum("bts,tsbk->sbk", weights, p.unsqueeze(0) - targets.unsqueeze(1))
    torch.testing.assert_close(gradient, expected / (max(1, pairs) * temperature), rtol=1e-3, atol=1e-6)


def test_fifteen_pairs_of_the_later_recipe():
    """Uniform student: each pair costs ln K, whatever the number of pairs."""
    weights = (torch.arange(3).unsqueeze(1) != torch.arange(6)).expand(2, -1, -1).float()
    assert weights[0].sum() == 15
    loss = dino_loss(torch.zeros(6, 2, 32), torch.softmax(torch.randn(3, 2, 32), -1), 0.1, weights)
    assert float(loss) == pytest.approx(math.log(32), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_ibot_loss_is_the_mean_over_jets_of_the_mean_over_their_hidden_particles(temperature):
    hidden_of_jet = [3, 0, 1, 5]
    logits, targets = torch.randn(9, 11), torch.softmax(torch.randn(9, 11), -1)
    weights = torch.cat([torch.full((k,), 1 / (k * 4)) for k in hidden_of_jet if k])
    expected, row = 0.0, 0
    for k in hidden_of_jet:
        jet = [slow_cross_entropy(logits[row + i], targets[row + i], temperature) for i in range(k)]
        expected += sum(jet) / max(1, k) / 4
        row += k
    assert float(ibot_loss(logits, targets, temperature, weights)) == pytest.approx(expected, rel=1e-4)
    assert float(ibot_loss(logits[:0], targets[:0], temperature, weights[:0])) == 0.0


@pytest.mark.parametrize(("views", "batch", "d"), [(3, 7, 5), (1, 2, 3), (4, 12, 8)])
def test_koleo_is_the_mean_over_views_of_the_slow_one(views, batch, d):
    x = torch.randn(views, batch, d, requires_grad=True)
    per_view = []
    for v in range(views):
        u = [row / row.norm() for row in x[v]]
        nearest = [
            min(range(batch), key=lambda j, i=i, u=u: math.inf if j == i else float((u[i] - u[j]).norm().detach()))
            for i in range(batch)
        ]
        per_view.append(sum(-torch.log((u[i] - u[nearest[i]]).norm() + 1e-8) for i in range(batch)) / batch)
    expected = sum(per_view) / views
    loss = koleo_loss(x)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(loss, x)
    (slow,) = torch.autograd.grad(expected, x)
    torch.testing.assert_close(gradient, slow, rtol=1e-3, atol=1e-5)
    # Every view is regularised, and none is special.
    assert (gradient.flatten(1).norm(dim=1) > 1e-3).all()
    torch.testing.assert_close(koleo_loss(x[torch.randperm(views)]), loss)


def test_koleo_of_equal_or_lone_jets_is_finite():
    x = torch.ones(2, 3, 4, requires_grad=True)
    loss = koleo_loss(x)
    assert float(loss.detach()) == pytest.approx(-math.log(1e-8), rel=1e-4)
    assert torch.autograd.grad(loss, x)[0].isfinite().all()
    assert float(koleo_loss(torch.randn(2, 1, 4))) == 0.0


def test_monitors_tell_collapsed_from_healthy():
    torch.manual_seed(0)
    prototypes = F.normalize(torch.randn(32, 16), dim=-1)
    healthy = F.normalize(torch.randn(256, 16), dim=-1)
    values = {k: float(v) for k, v in collapse_monitors(healthy @ prototypes.T, 0.04, healthy).items()}
    assert alarms(values) == []
    assert 25 < values["prototype_use"] <= 32
    assert 14 < values["feature_rank"] <= 16
    assert values["cls_std"] == pytest.approx(1, abs=0.02)

    one_point = healthy[:1].expand(256, -1) + 1e-6 * torch.randn(256, 16)
    values = {k: float(v) for k, v in collapse_monitors(torch.eye(32)[:1].expand(256, -1), 0.04, one_point).items()}
    assert [sentence.split(":")[0] for sentence in alarms(values)] == [
        "all jets fall on the same prototypes",
        "representations have shrunk to 1.00 effective dimensions",
        "representations are the same for all jets",
    ]
    values = {k: float(v) for k, v in collapse_monitors(torch.zeros(256, 32), 0.04, healthy).items()}
    assert values["teacher_entropy"] == pytest.approx(1)
    assert len(alarms(values)) == 1
    assert alarms({"loss": math.nan}) == ["loss is not finite: training has diverged"]


def test_feature_rank_of_what_is_not_finite_is_none():
    """A step that overflowed is told by its loss; nothing is to raise before."""
    x = torch.randn(9, 4)
    x[3, 1] = torch.inf
    assert feature_rank(x).isnan()
    assert alarms({"feature_rank": float(feature_rank(x))}) == ["feature_rank is not finite: training has diverged"]


def test_feature_rank_counts_equal_directions():
    basis = torch.linalg.qr(torch.randn(20, 20)).Q
    x = torch.cat([basis[:4], -basis[:4]])
    assert float(feature_rank(x)) == pytest.approx(4, rel=1e-4)
    assert float(feature_rank(3 * x.repeat(5, 1))) == pytest.approx(4, rel=1e-4)
