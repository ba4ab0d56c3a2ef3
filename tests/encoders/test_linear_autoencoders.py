"""The autoencoders that nothing trains keep what they say, and the linear one is the best equivariant map."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from central_jets import DEGENERATE, central_jets, degenerate_jets
from jetrep.encoders.linear_autoencoders import HardestParticles, LinearLorentz
from jetrep.encoders.relative import pt_eta_phi
from jetrep.errors import InputError
from jetrep.objectives.reconstruction_losses import chamfer, hungarian
from jetrep.physics.lorentz import RestFrame
from jetrep.sources.toptagging import TopTagging
from lorentz_jets import jets_of, observers, seen_by

N = 12


def at_rest(p4, mask) -> tuple[RestFrame, torch.Tensor]:
    return RestFrame.of_particles(p4.masked_fill(~mask.unsqueeze(-1), 0.0))


def by_energy(p4, mask) -> tuple[torch.Tensor, torch.Tensor]:
    """Particles in the order of their energies at rest, in the laboratory and at rest."""
    momenta = at_rest(p4, mask)[1]
    order = momenta[..., 0].masked_fill(~mask, -1.0).argsort(1, descending=True).unsqueeze(-1).expand_as(p4)
    return p4.gather(1, order), momenta.gather(1, order)


def error(model, p4, mask) -> torch.Tensor:
    """Mean squared distance at rest, the one that the fit makes small, slots without particles counting as well."""
    frame, _ = at_rest(p4, mask)
    true = by_energy(p4, mask)[1] * torch.arange(p4.shape[1]).lt(mask.sum(1, keepdim=True)).unsqueeze(-1)
    return (model(p4, mask).at_rest(frame) - true).square().sum((1, 2)).mean()


@pytest.fixture(scope="module")
def jets():
    return jets_of([N, 7, 9, 12, 3] * 40)


@pytest.mark.parametrize("k", [1, 3, 9])
def test_the_hardest_particles_come_out_as_they_were(k):
    p4, mask = central_jets([9, 2], width=N)
    model = HardestParticles(k, N)
    numbers = model.encode(p4, mask)
    assert numbers.shape == (2, model.size) == (2, 3 * k)
    out = model.decode(numbers)
    assert out.mask.sum(1).tolist() == [min(k, 9), min(k, 2)]
    pt = pt_eta_phi(p4)[..., 0]
    order = pt.masked_fill(~mask, -1).argsort(1, descending=True)[:, :k]
    expected = p4.gather(1, order.unsqueeze(-1).expand(-1, -1, 4))
    torch.testing.assert_close(out.p4[:, :k], expected)
    assert not out.p4[:, k:].any()


@pytest.mark.parametrize("model", [HardestParticles(4, 9), LinearLorentz(3, 9)], ids=["hardest", "linear"])
def test_order_and_padding_do_not_matter_and_every_number_is_used(model):
    p4, mask = central_jets([9, 4], width=N)
    if isinstance(model, LinearLorentz):
        model.fit(*central_jets([9] * 50))
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    expected, out = model.encode(p4, mask), model(p4, mask)
    torch.testing.assert_close(model.encode(p4[:, order], mask[:, order]), expected)
    torch.testing.assert_close(model.encode(p4.masked_fill(~mask.unsqueeze(-1), 55.0), mask), expected)
    assert torch.equal(model.decode(expected.clone()).p4, out.p4)
    for i in range(model.size):
        other = expected.clone()
        other[:, i] -= 1.0
        changed = model.decode(other)
        assert ((changed.p4 != out.p4).flatten(1).any(1) | (changed.mask != out.mask).any(1))[0], i
    with pytest.raises(InputError, match=rf"not \(jets, {model.size}\)"):
        model.decode(expected[:, 1:])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), gamma=st.floats(1, 20), n_vectors=st.integers(1, N))
def test_the_linear_map_is_equivariant(seed, gamma, n_vectors):
    p4, mask = jets_of([N, 7, 4], seed)
    model = LinearLorentz(n_vectors, N).fit(*jets_of([N] * 20))
    matrix = observers(3, gamma, seed)
    here, there = seen_by(matrix, model(p4, mask).p4), model(seen_by(matrix, p4), mask)
    assert (there.p4 - here).abs().max() < 1e-10 * here.abs().max()
    assert torch.equal(there.mask, mask)


def test_error_falls_with_the_number_of_vectors_to_none_at_all(jets):
    errors = [error(LinearLorentz(k, N).fit(*jets), *jets).item() for k in range(1, N + 1)]
    assert all(a > b for a, b in pairwise(errors))
    assert errors[-1] < 1e-20
    model = LinearLorentz(N, N).fit(*jets)
    torch.testing.assert_close(model(*jets).p4, by_energy(*jets)[0] * jets[1].unsqueeze(-1))


def test_error_is_the_sum_of_the_eigenvalues_that_are_left_out(jets):
    rest = by_energy(*jets)[1] * jets[1].unsqueeze(-1)
    second = sum(x.mT @ x for x in rest.movedim(2, 0)) / len(rest)  # by components, summed over jets
    values = torch.linalg.eigvalsh(second)
    for k in (1, 4, 9):
        torch.testing.assert_close(error(LinearLorentz(k, N).fit(*jets), *jets), values[: N - k].sum())


def test_no_other_map_does_better(jets):
    """Neither a nearby nor a far one, with coefficients of its own for the way back."""
    generator = torch.Generator().manual_seed(0)
    model = LinearLorentz(4, N).fit(*jets)
    rest = by_energy(*jets)[1] * jets[1].unsqueeze(-1)
    best = error(model, *jets)
    for size in (1e-4, 1e-2, 1.0):
        for _ in range(30):
            there, back = (
                model.coefficients + size * torch.randn(N, 4, dtype=torch.float64, generator=generator)
                for _ in range(2)
            )
            assert (back @ (there.mT @ rest) - rest).square().sum((1, 2)).mean() > best
    assert error(LinearLorentz(4, N), *jets) > best  # the four hardest


def test_on_real_jets_the_map_beats_the_particles_that_it_may_be(real_data):
    """Keeping the first vectors is one of the maps that the fit chooses from; on other jets it loses too."""
    chunk = next(TopTagging([real_data / "toptagging" / "top_train_00.npz"]).read(0, 0, 600))
    batch = chunk.jets.leading(30).batch()
    train, test = ((batch.p4[part], batch.mask[part]) for part in (slice(400), slice(400, None)))
    for k in (3, 10):
        first, fitted = (
            error(model, *test).item() for model in (LinearLorentz(k, 30), LinearLorentz(k, 30).fit(*train))
        )
        assert fitted < first
    exact = LinearLorentz(30, 30).fit(*train)(*test)
    torch.testing.assert_close(exact.p4.sum(1), test[0].double().sum(1), rtol=1e-6, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(kind=st.sampled_from(DEGENERATE), energy=st.floats(1e-3, 5e3), linear=st.booleans())
def test_degenerate_jets_are_finite(kind, energy, linear):
    p4, mask = degenerate_jets(kind, energy)
    model = LinearLorentz(2, 6).fit(*jets_of([6] * 5)) if linear else HardestParticles(2, 6)
    out = model(p4, mask)
    assert torch.isfinite(out.p4).all()
    assert not out.mask[1].any()
    true = at_rest(p4, mask)
    for distance in (chamfer, hungarian):
        assert torch.isfinite(distance(true[1], out.at_rest(true[0]), mask, out.mask)).all()


def test_fits_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="no particles"):
        LinearLorentz(2, 3).fit(torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool))
    p4, mask = jets_of([3])
    p4[0, 0, 1] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        LinearLorentz(2, 3).fit(p4, mask)


@pytest.mark.parametrize(("model", "field"), [(HardestParticles, "'k'"), (LinearLorentz, "n_vectors")])
@pytest.mark.parametrize("kept", [0, 5])
def test_settings_out_of_range(model, field, kept):
    with pytest.raises(InputError, match=field):
        model(kept, 4)
