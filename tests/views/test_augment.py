"""Each augmentation by what it must leave alone, on four-vectors, around an axis with η < 0 and φ near π."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jetrep.errors import InputError
from jetrep.features import FeatureConfig, Features
from jetrep.jets import JetBatch, Jets
from jetrep.physics import fourvector as fv
from jetrep.physics.clustering import cluster
from jetrep.sources.toptagging import TopTagging
from jetrep.views import augment
from jetrep.views.augment import AugmentationConfig, augmented, jet_keys, place, rotate, smear, split, translate
from jetrep.views.rg import subjets
from random_jets import random_jets

COUNTS = st.lists(st.integers(1, 40), min_size=1, max_size=6)
SEEDS = st.integers(0, 1000)
ALL_FIVE = [place, rotate, translate, split, smear]
MOVES = [rotate, translate, smear]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def massive(counts, seed: int = 0) -> JetBatch:
    """Jets of massive constituents, with history, labels and a measured column."""
    jets = random_jets(counts, seed)
    rng = np.random.default_rng(seed)
    p4 = jets.p4.astype(np.float64)
    p4[:, 0] = np.hypot(p4[:, 0], rng.choice([0.0, 0.14, 0.94, 20.0], len(p4)))
    measured = {"charge": rng.choice([-1.0, 1.0], len(p4))}
    labels = np.arange(len(jets)) % 2
    return Jets(p4.astype(np.float32), jets.offsets, labels, ("a", "b"), measured=measured).clustered().batch()


def widened(batch: JetBatch, by: int) -> JetBatch:
    n = batch.p4.shape[1]
    pad = torch.nn.functional.pad
    return replace(
        batch,
        p4=pad(batch.p4, (0, 0, 0, by)),
        mask=pad(batch.mask, (0, by)),
        order=torch.cat([batch.order, torch.arange(n, n + by).expand(len(batch), -1)], 1),
        join=pad(batch.join, (0, by), value=-1),
        measured={name: pad(x, (0, by)) for name, x in batch.measured.items()},
    )


def plane(batch: JetBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """(Δη, Δφ) to the axis in double precision, zero where padded."""
    p4, axis = batch.p4.double(), batch.jet_p4.double().unsqueeze(1)
    eta, phi = fv.eta(p4) - fv.eta(axis), fv.delta_phi(fv.phi(p4), fv.phi(axis))
    return torch.where(batch.mask, eta, 0.0), torch.where(batch.mask, phi, 0.0)


def assert_masses(view: JetBatch, batch: JetBatch) -> None:
    """Equal m², as far as single-precision energies hold it."""
    found, wanted = (fv.mass2(x.p4.double()) for x in (view, batch))
    precision = 2e-6 * torch.maximum(view.p4[..., 0], batch.p4[..., 0]).double().square() + 1e-9
    assert bool(((found - wanted).abs() <= precision).all())


def assert_clean(view: JetBatch) -> None:
    assert view.p4.dtype == torch.float32
    assert bool(view.p4.isfinite().all() and view.jet_p4.isfinite().all())
    assert not view.p4[~view.mask].any()
    assert bool((view.p4[view.mask][:, 0] > 0).all())


@settings(deadline=None, max_examples=40)
@given(COUNTS, SEEDS)
def test_rotation_keeps_distance_to_the_axis_pt_and_mass(counts, seed):
    batch = massive(counts, seed)
    view = rotate(batch, generator(seed))
    assert_clean(view)
    assert torch.equal(view.jet_p4, batch.jet_p4)
    torch.testing.assert_close(fv.pt(view.p4), fv.pt(batch.p4), rtol=1e-5, atol=1e-6)
    assert_masses(view, batch)
    before, after = plane(batch), plane(view)
    torch.testing.assert_close(torch.hypot(*after), torch.hypot(*before), rtol=1e-5, atol=1e-5)
    # One angle a jet: the turn of every constituent is the same.
    turned = [torch.complex(*x) for x in (before, after)]
    turn = turned[1] * turned[0].conj()
    for jet, count in enumerate(counts):
        phase = turn[jet, :count] / turn[jet, :count].abs().clamp(min=1e-12)
        clear = turned[0][jet, :count].abs() > 1e-2
        torch.testing.assert_close(phase[clear], phase[clear][:1].expand(int(clear.sum())), rtol=0, atol=2e-3)


def test_rotation_angles_are_uniform():
    batch = massive([3] * 4000)
    x, y = (torch.complex(*plane(b))[:, 0] for b in (batch, rotate(batch, generator())))
    angle = (y / x).angle()
    histogram = torch.histc(angle, 8, -math.pi, math.pi)
    # 500 expected in each, standard deviation 21.
    assert float((histogram - 500).abs().max()) < 105
    assert float((y / x).abs().sub(1).abs().max()) < 1e-2


@settings(deadline=None, max_examples=40)
@given(COUNTS, SEEDS, st.sampled_from([0.0, 0.5, 1.0, 5.0]))
def test_translation_is_one_shift_within_the_extent(counts, seed, width):
    batch = massive(counts, seed)
    view = translate(batch, generator(seed), width=width)  # |η| beyond some 20 is not told from the beam
    assert_clean(view)
    assert torch.equal(view.jet_p4, batch.jet_p4)
    torch.testing.assert_close(fv.pt(view.p4), fv.pt(batch.p4), rtol=1e-5, atol=1e-6)
    assert_masses(view, batch)
    for axis, (before, after) in enumerate(zip(plane(batch), plane(view), strict=True)):
        for jet, count in enumerate(counts):
            x, y = before[jet, :count], after[jet, :count]
            shift = y - x
            assert float(shift.max() - shift.min()) < 2e-5  # also all distances
            assert float(shift.abs().max()) <= width * float(x.max() - x.min()) + 1e-5
            if axis == 1:
                assert float(y.abs().max()) <= math.pi + 1e-5


def test_translation_uses_its_range():
    batch = massive([20] * 4000)
    before, after = plane(batch), plane(translate(batch, generator(), width=1.0))
    for x, y in zip(before, after, strict=True):
        ratio = (y - x)[:, 0] / (x.amax(1) - x.amin(1))
        # Uniform on ±1 unless the bound of π intervenes: mean 0, standard deviation 1/√3.
        assert abs(float(ratio.mean())) < 5 * 0.58 / math.sqrt(4000)
        assert float(ratio.std()) == pytest.approx(1 / math.sqrt(3), abs=0.02)
        assert 0.98 < float(ratio.abs().max()) <= 1.0001


@settings(deadline=None, max_examples=60)
@given(COUNTS, SEEDS, st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([1, 10, 30, 50, 200]))
def test_splitting_conserves_four_momentum_and_fills_free_places_only(counts, seed, fraction, max_particles):
    batch = massive(counts, seed)
    view = split(batch, generator(seed), fraction=fraction, max_particles=max_particles)
    assert_clean(view)
    assert torch.equal(view.jet_p4, batch.jet_p4)
    wanted = [n + max(0, min(math.floor(fraction * n + 1e-9), max_particles - n)) for n in counts]
    assert view.counts.tolist() == wanted
    assert view.p4.shape[1] >= batch.p4.shape[1]
    torch.testing.assert_close(view.p4.double().sum(1), batch.p4.double().sum(1), rtol=1e-6, atol=1e-5)
    # Constituents that were not split are untouched, in their places.
    n = batch.p4.shape[1]
    split_here = (view.p4[:, :n] != batch.p4).any(-1) & batch.mask
    assert split_here.sum(1).tolist() == [w - c for w, c in zip(wanted, counts, strict=True)]
    # Each mother is the sum of two collinear daughters: her share stays in place, the rest stands in a new place.
    for jet, count in enumerate(counts):
        new = view.p4[jet, count : wanted[jet]].double()
        mothers = batch.p4[jet, :n][split_here[jet]].double()
        rest = mothers - view.p4[jet, :n][split_here[jet]].double()
        torch.testing.assert_close(new, rest, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(fv.eta(new), fv.eta(mothers), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(fv.delta_phi(fv.phi(new), fv.phi(mothers)).abs() < 1e-5, torch.ones(len(new)) > 0)
        assert bool((fv.mass2(new) <= fv.mass2(mothers) + 2e-6 * mothers[:, 0] ** 2).all())


def test_published_rule_doubles_until_the_array_is_full():
    """N − max(n, N/2) places are filled at each pass, each constituent split at most once."""
    for n in range(1, 60):
        view = batch = massive([n])
        for _ in range(2):
            view = split(view, generator(n))
        expected = n
        for _ in range(2):
            expected += min(expected, max(0, 50 - max(expected, 25)))
        assert view.counts.tolist() == [expected]
        torch.testing.assert_close(view.p4.sum(1), batch.p4.sum(1), rtol=1e-5, atol=1e-3)


def test_splitting_leaves_infrared_safe_observables_alone():
    batch = massive([35, 4, 18])
    view = split(batch, generator(), fraction=0.7, max_particles=60)
    for b in (view, batch):
        assert b.counts.tolist() == ([59, 6, 30] if b is view else [35, 4, 18])
    girth = [(fv.pt(b.p4.double()) * torch.hypot(*plane(b))).sum(1) for b in (view, batch)]
    torch.testing.assert_close(girth[0], girth[1], rtol=1e-5, atol=1e-5)
    two_point = []
    for b in (view, batch):
        pt, (eta, phi) = fv.pt(b.p4.double()), plane(b)
        delta_r = torch.hypot(eta.unsqueeze(1) - eta.unsqueeze(2), phi.unsqueeze(1) - phi.unsqueeze(2))
        two_point.append((pt.unsqueeze(1) * pt.unsqueeze(2) * delta_r).sum((1, 2)))
    torch.testing.assert_close(two_point[0], two_point[1], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(fv.mass(view.p4.sum(1)), fv.mass(batch.p4.sum(1)), rtol=1e-3, atol=1e-3)
    # The kT subjets are the same, however often the constituents were split.
    flat = view.p4[view.mask].numpy()
    offsets = np.concatenate([[0], np.cumsum(view.counts.numpy())]).astype(np.int64)
    again = Jets(flat, offsets, history=cluster(flat, offsets))
    for jet in range(3):
        found, wanted = (sorted(subjets(b, 3).p4[jet].tolist()) for b in (again.batch(), batch))
        torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=1e-3, atol=2e-2)


def test_shares_are_uniform_and_constituents_chosen_alike():
    batch = massive([10] * 4000)
    view = split(batch, generator(), fraction=0.3)
    share = view.p4[:, :10, 0] / batch.p4[..., 0]
    chosen = share < 1
    # 1200 of 4000 expected for each place, standard deviation 29.
    assert float((chosen.sum(0) - 1200).abs().max()) < 150
    histogram = torch.histc(share[chosen], 8, 0, 1)
    assert float((histogram - 1500).abs().max()) < 5 * math.sqrt(1500 * 7 / 8)


@settings(deadline=None, max_examples=40)
@given(COUNTS, SEEDS)
def test_smearing_keeps_pt_and_mass(counts, seed):
    batch = massive(counts, seed)
    view = smear(batch, generator(seed))
    assert_clean(view)
    assert torch.equal(view.jet_p4, batch.jet_p4)
    torch.testing.assert_close(fv.pt(view.p4), fv.pt(batch.p4), rtol=1e-5, atol=1e-6)
    assert_masses(view, batch)


@pytest.mark.parametrize("pt", [0.02, 0.1, 2.0, 50.0])
def test_smearing_is_normal_with_a_width_of_scale_over_pt(pt):
    n, jets = 50, 400
    p4 = torch.tensor([pt * math.cosh(0.3), pt, 0.0, pt * math.sinh(0.3)]).expand(jets, n, 4).contiguous()
    batch = JetBatch(p4, torch.ones(jets, n, dtype=torch.bool), p4.sum(1))
    moved = plane(smear(batch, generator(), scale=0.05))
    sigma = 0.05 / max(pt, 0.1)
    for x in moved:
        assert float(x.mean()) == pytest.approx(0, abs=5 * sigma / math.sqrt(n * jets) + 1e-6)
        assert float(x.std()) == pytest.approx(sigma, rel=0.03)
        inside = (x.abs() < sigma).double().mean()
        assert float(inside) == pytest.approx(0.683, abs=0.02)
    correlation = torch.corrcoef(torch.stack([x.flatten() for x in moved]))[0, 1]
    assert abs(float(correlation)) < 5 / math.sqrt(n * jets)


@settings(deadline=None, max_examples=40)
@given(COUNTS, SEEDS)
def test_placing_is_a_symmetry(counts, seed):
    """A Lorentz transformation: sums and cuts of the history commute with it, distances and masses stay."""
    batch = massive(counts, seed)
    keys = jet_keys(len(batch), generator(seed))
    view = place(batch, keys)
    assert_clean(view)
    assert bool((fv.rapidity(view.jet_p4).abs() <= 2 + 1e-5).all())
    torch.testing.assert_close(fv.pt(view.p4), fv.pt(batch.p4), rtol=1e-5, atol=1e-6)
    assert_masses(view, batch)
    torch.testing.assert_close(view.p4.sum(1), view.jet_p4, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(fv.mass(view.jet_p4), fv.mass(batch.jet_p4), rtol=1e-2, atol=0.1)
    for before, after in zip(*(distances(b) for b in (batch, view)), strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=2e-4)
    cut_then_placed, placed_then_cut = place(subjets(batch, 3), keys), subjets(view, 3)
    torch.testing.assert_close(cut_then_placed.p4, placed_then_cut.p4, rtol=1e-3, atol=2e-2)
    assert torch.equal(cut_then_placed.mask, placed_then_cut.mask)


def distances(batch: JetBatch) -> tuple[torch.Tensor, torch.Tensor]:
    y, phi = fv.rapidity(batch.p4.double()), fv.phi(batch.p4.double())
    both = (batch.mask.unsqueeze(1) & batch.mask.unsqueeze(2)).double()
    return (y.unsqueeze(1) - y.unsqueeze(2)) * both, fv.delta_phi(phi.unsqueeze(1), phi.unsqueeze(2)) * both


def test_placed_directions_are_uniform_and_tell_nothing_of_the_old_one():
    batch = massive([3] * 4000)
    view = place(batch, generator(), max_rapidity=1.5)
    y, phi = fv.rapidity(view.jet_p4) / 1.5, fv.phi(view.jet_p4) / math.pi
    for x, old in ((y, fv.rapidity(batch.jet_p4)), (phi, fv.phi(batch.jet_p4))):
        assert float((torch.histc(x, 8, -1, 1) - 500).abs().max()) < 105
        assert abs(float(torch.corrcoef(torch.stack([x, old]))[0, 1])) < 5 / math.sqrt(4000)


def test_what_travels_along():
    batch = massive([12, 5])
    for function in ALL_FIVE:
        view = function(batch, generator())
        assert torch.equal(view.labels, batch.labels)
        keeps_history, keeps_columns = function is place, function is not split
        assert (view.order is not None) is (view.join is not None) is keeps_history
        assert (dict(view.measured) == dict(batch.measured)) is keeps_columns
    with pytest.raises(InputError, match="no merge history"):
        subjets(rotate(batch, generator()), 2)


@pytest.mark.parametrize("function", ALL_FIVE)
def test_padding_stays_and_changes_nothing(function):
    batch = massive([12, 1, 7, 30])
    view, wide = function(batch, generator(3)), function(widened(batch, 9), generator(3))
    n = view.p4.shape[1]
    torch.testing.assert_close(wide.p4[:, :n], view.p4, rtol=1e-6, atol=1e-6)
    assert torch.equal(wide.mask[:, :n], view.mask)
    assert not wide.p4[:, n:].any()
    assert not wide.mask[:, n:].any()
    assert_clean(view)


@pytest.mark.parametrize("function", ALL_FIVE)
def test_padding_may_stand_in_the_middle(function):
    batch = massive([12, 1, 7])
    where = torch.tensor([14, 2, 0, 5, 19, 1, 8, 3, 16, 11, 6, 10])
    p4, mask = torch.zeros(3, 20, 4), torch.zeros(3, 20, dtype=torch.bool)
    p4[:, where], mask[:, where] = batch.p4, batch.mask
    view = function(JetBatch(p4, mask, batch.jet_p4), generator())
    assert_clean(view)
    assert bool((view.mask[:, :20] & mask).eq(mask).all())
    if function is split:
        assert view.counts.tolist() == [24, 2, 14]
        torch.testing.assert_close(view.p4.sum(1), batch.p4.sum(1), rtol=1e-5, atol=1e-3)
    else:
        assert torch.equal(view.mask, mask)


@pytest.mark.parametrize("function", ALL_FIVE)
def test_empty_jets_and_batches(function):
    p4, mask = torch.zeros(2, 5, 4), torch.zeros(2, 5, dtype=torch.bool)
    p4[1, 0], mask[1, 0] = torch.tensor([11.0, 3.0, 4.0, 9.0]), True
    view = function(JetBatch(p4, mask, p4.sum(1)), generator())
    assert_clean(view)
    assert view.counts.tolist() == [0, 2 if function is split else 1]
    if function in (rotate, translate):
        torch.testing.assert_close(view.p4, p4)
    none = function(JetBatch(p4[:0], mask[:0], p4[:0].sum(1)), generator())
    assert len(none) == 0


@pytest.mark.parametrize("function", ALL_FIVE)
def test_forward_and_soft_constituents_give_finite_numbers(function):
    p4 = torch.tensor(
        [[[50.0, 30.0, 40.0, 0.0], [900.0, 0.0, 0.0, 900.0], [1e-6, 1e-7, 0.0, 1e-6], [6e3, 1e-3, 0, 6e3]]]
    )
    batch = JetBatch(p4, torch.ones(1, 4, dtype=torch.bool), p4.sum(1))
    for seed in range(20):
        assert_clean(function(batch, generator(seed)))


@pytest.mark.parametrize("function", ALL_FIVE)
def test_draws_repeat_and_belong_to_the_jet(function):
    batch = massive([12, 3, 7, 30])
    first, again, other = (function(batch, generator(seed)) for seed in (5, 5, 6))
    assert torch.equal(first.p4, again.p4)
    assert not torch.equal(first.p4, other.p4)
    # A jet with its key is changed alike in any batch.
    rows = torch.tensor([2, 0])
    part = JetBatch(batch.p4[rows], batch.mask[rows], batch.jet_p4[rows])
    view = function(part, jet_keys(4, generator(5))[rows])
    torch.testing.assert_close(view.p4, first.p4[rows], rtol=1e-6, atol=1e-6)
    with pytest.raises(InputError, match="keys for 4 jets"):
        function(batch, jet_keys(3, generator()))


def test_numbers_are_uniform_and_unrelated():
    batch = massive([1] * 500)
    numbers = augment._uniform(generator(), batch, 60).double()
    assert 0 < float(numbers.min()) < 1e-4 < 1 - 1e-4 < float(numbers.max()) < 1
    histogram = torch.histc(numbers, 20, 0, 1)
    assert float((histogram - 3000).square().sum() / 3000) < 50  # χ² of 19 degrees of freedom
    columns = torch.corrcoef(numbers.flatten(1).T).fill_diagonal_(0).abs().max()
    jets = torch.corrcoef(numbers.flatten(1)).fill_diagonal_(0).abs().max()
    assert float(columns) < 6 / math.sqrt(500)
    assert float(jets) < 6 / math.sqrt(120)
    # Neighbouring keys are as good as any.
    near = augment._uniform(torch.arange(500), batch, 60).double()
    assert float(torch.corrcoef(near.flatten(1)).fill_diagonal_(0).abs().max()) < 6 / math.sqrt(120)
    # SplitMix64 with seed 0, as published with the algorithm.
    assert int(augment._hashed(torch.tensor(-0x61C8864680B583EB))) % 2**64 == 0xE220A8397B1DCDAF


def test_two_views_differ_and_suit_the_features():
    batch = massive([12, 5, 40])
    first, second = augmented(batch, partial(jet_keys, 3, generator()), AugmentationConfig(translation=1.0))
    assert first.counts.tolist() == [12, 5, 40]
    assert second.counts.tolist() == [48, 20, 50]
    torch.testing.assert_close(fv.pt(second.p4).sum(1), fv.pt(batch.p4).sum(1), rtol=1e-5, atol=1e-3)
    assert float((fv.phi(first.jet_p4) - fv.phi(second.jet_p4)).abs().min()) > 1e-3
    for view in (first, second):
        inputs = Features(FeatureConfig())(view)
        assert bool(inputs.features.isfinite().all())
        assert not inputs.features[~view.mask].any()


def test_views_lie_around_the_axis_unless_they_are_to_be_shifted():
    batch = massive([12, 5, 40])

    def delta_r(view):
        axis = view.jet_p4.unsqueeze(1)
        delta_phi = fv.delta_phi(fv.phi(view.p4), fv.phi(axis))
        return torch.hypot(fv.eta(view.p4) - fv.eta(axis), delta_phi)[batch.mask]

    for shift, kept in (({}, True), ({"translation": 1.0}, False)):
        config = AugmentationConfig(max_rapidity=None, split_passes=0, smearing=0.0, **shift)
        for view in augmented(batch, partial(jet_keys, 3, generator()), config):
            assert torch.allclose(delta_r(view), delta_r(batch), rtol=1e-3, atol=1e-4) is kept


def test_changes_that_are_off_are_not_made():
    off = AugmentationConfig(max_rapidity=None, rotation=False, translation=0, split_passes=0, smearing=0)
    batch = massive([3, 4])
    assert all(view is batch for view in augmented(batch, generator, off))


@pytest.mark.parametrize(
    "setting",
    [
        {"translation": -1.0},
        {"translation": math.nan},
        {"smearing": math.inf},
        {"max_rapidity": -0.1},
        {"split_passes": -1},
        {"split_fraction": 1.5},
        {"max_particles": 0},
    ],
)
def test_impossible_settings_are_refused(setting):
    with pytest.raises(InputError, match=f"objective.augmentation.{next(iter(setting))}"):
        AugmentationConfig(**setting)


@pytest.mark.parametrize("function", MOVES)
def test_gradient_is_not_needed(function):
    """Views are data: nothing of them is kept for a backward pass."""
    assert not function(massive([3]), generator()).p4.requires_grad


def test_real_jets(real_data):
    """The invariants hold on jets of a real detector simulation, down to the softest constituents."""
    source = TopTagging([real_data / "toptagging" / "top_train_00.npz"])
    jets = next(iter(source.read(0, 0, 500))).jets
    batch = jets.sorted_by_pt().clustered().batch()
    for function in ALL_FIVE:
        view = function(batch, generator(1))
        assert_clean(view)
        torch.testing.assert_close(fv.pt(view.p4).sum(1), fv.pt(batch.p4).sum(1), rtol=1e-5, atol=1e-3)
    before, after = (torch.hypot(*plane(b)) for b in (batch, rotate(batch, generator())))
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    daughters = split(batch, generator(), max_particles=400)
    assert torch.equal(daughters.counts, 2 * batch.counts)
    mass = fv.mass(batch.p4.double().sum(1))
    torch.testing.assert_close(fv.mass(daughters.p4.double().sum(1)), mass, rtol=1e-4, atol=1e-3)
    placed = place(batch, generator())
    torch.testing.assert_close(fv.mass(placed.p4.double().sum(1)), mass, rtol=1e-3, atol=1e-2)
