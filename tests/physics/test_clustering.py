"""Clustering: slow oracle, parity with FastJet, conservation, invariances, cuts, degenerate and unusable input."""

from itertools import pairwise
from pathlib import Path

import awkward as ak
import fastjet
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jetrep.errors import InputError
from jetrep.physics import fourvector as fv
from jetrep.physics.clustering import MergeHistory, cluster

ALGORITHMS = ("kt", "cambridge", "antikt")
EXPONENTS = {"kt": 1.0, "cambridge": 0.0, "antikt": -1.0}
FASTJET = {
    "kt": fastjet.kt_algorithm,
    "cambridge": fastjet.cambridge_algorithm,
    "antikt": fastjet.antikt_algorithm,
}
# No pseudojet of finite rapidity is farther from another than this, so that the beam never wins (see the module).
LARGE_R = 1000.0

pytestmark = pytest.mark.filterwarnings("ignore:dcut and exclusive jets for jet-finders:UserWarning")


def make_jets(seed: int, counts: list[int], dtype: type = np.float64) -> tuple[np.ndarray, np.ndarray]:
    """Jets of massive and massless particles with steeply falling pT, around random axes."""
    rng = np.random.default_rng(seed)
    n = sum(counts)
    axis = np.repeat(np.arange(len(counts)), counts)
    eta = rng.normal(0, 2, len(counts))[axis] + rng.normal(0, 0.3, n)
    phi = rng.uniform(-np.pi, np.pi, len(counts))[axis] + rng.normal(0, 0.3, n)
    mass = np.where(rng.random(n) < 0.5, 0.0, 0.14)
    p4 = fv.from_ptetaphim(np.exp(rng.normal(1, 1.5, n)), eta, phi, mass)
    return p4.astype(dtype), np.concatenate([[0], np.cumsum(counts)])


def to_awkward(p4: np.ndarray, offsets: np.ndarray) -> ak.Array:
    columns = {name: np.ascontiguousarray(p4[:, i], np.float64) for i, name in enumerate(("E", "px", "py", "pz"))}
    return ak.unflatten(ak.zip(columns, with_name="Momentum4D"), np.diff(offsets))


def from_awkward(jets: ak.Array) -> tuple[np.ndarray, np.ndarray]:
    """Packed (p4, offsets) in descending pT."""
    jets = jets[ak.argsort(jets.px**2 + jets.py**2, ascending=False)]
    offsets = np.concatenate([[0], np.cumsum(ak.to_numpy(ak.num(jets)))])
    return np.stack([ak.to_numpy(ak.flatten(jets[k])) for k in ("E", "px", "py", "pz")], -1), offsets


def fastjet_sequence(p4: np.ndarray, offsets: np.ndarray, algorithm: str) -> fastjet.ClusterSequence:
    return fastjet.ClusterSequence(to_awkward(p4, offsets), fastjet.JetDefinition(FASTJET[algorithm], LARGE_R))


def distances(p4: np.ndarray, exponent: float, R: float) -> np.ndarray:
    """(n, n) distance measure by its textbook formula; infinity on the diagonal."""
    E, px, py, pz = p4.T
    y = 0.5 * np.log((E + pz) / (E - pz))
    phi = np.arctan2(py, px)
    dphi = np.abs(phi[:, None] - phi)
    dphi = np.where(dphi > np.pi, 2 * np.pi - dphi, dphi)
    weight = (px**2 + py**2) ** exponent
    d = np.minimum(weight[:, None], weight) * ((y[:, None] - y) ** 2 + dphi**2) / R**2
    np.fill_diagonal(d, np.inf)
    return d


def slow_oracle(p4: np.ndarray, exponent: float, R: float) -> tuple[list[frozenset[frozenset[int]]], list[float]]:
    """Partitions of the particles after 0, 1, … merges, and the distances of the merges, without any cleverness."""
    members = [frozenset([i]) for i in range(len(p4))]
    nodes = list(p4.astype(np.float64))
    partitions, d_ij = [frozenset(members)], []
    while len(nodes) > 1:
        d = distances(np.stack(nodes), exponent, R)
        i, j = np.unravel_index(np.argmin(d), d.shape)
        d_ij.append(float(d[i, j]))
        i, j = min(i, j), max(i, j)
        nodes[i] = nodes[i] + nodes.pop(j)
        members[i] = members[i] | members.pop(j)
        partitions.append(frozenset(members))
    return partitions, d_ij


def partition(history: MergeHistory, n: int) -> frozenset[frozenset[int]]:
    """The cut of a single jet into n subjets, as sets of particles."""
    labels = history.subjet_index(n=n)
    return frozenset(frozenset(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels))


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, 0.5, -0.25, 2.0])
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 24), R=st.floats(0.1, 3.0))
@settings(max_examples=25, deadline=None)
def test_equals_slow_oracle(algorithm, seed: int, n: int, R: float) -> None:
    p4, offsets = make_jets(seed, [n])
    history = cluster(p4, offsets, algorithm=algorithm, R=R)
    history.validate()
    partitions, d_ij = slow_oracle(p4, EXPONENTS.get(algorithm, algorithm), R)
    np.testing.assert_allclose(history.d_ij[:-1], d_ij, rtol=1e-5)
    for n_subjets in range(1, n + 1):
        assert partition(history, n_subjets) == partitions[n - n_subjets]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([1.0, 2.0, 10.0]), st.sampled_from([-0.1, 0.0, 0.1]), st.sampled_from([-3.1, 0.0, 3.1])
        ),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from(ALGORITHMS),
)
@settings(max_examples=60, deadline=None)
def test_every_merge_is_a_closest_pair_even_among_ties(coordinates, algorithm: str) -> None:
    pt, eta, phi = (np.array(values) for values in zip(*coordinates, strict=True))
    p4 = fv.from_ptetaphim(pt, eta, phi, np.full(len(pt), 0.1))
    history = cluster(p4, np.array([0, len(pt)]), algorithm=algorithm, R=1.0)
    history.validate()
    left, right = history.merges()
    nodes = dict(enumerate(p4))
    for k in range(len(pt) - 1):
        ids = list(nodes)
        d = distances(np.stack([nodes[i] for i in ids]), EXPONENTS[algorithm], 1.0)
        chosen = d[ids.index(left[k]), ids.index(right[k])]
        assert chosen <= d.min() * (1 + 1e-9) + 1e-12
        assert history.d_ij[k] == pytest.approx(chosen, rel=1e-5, abs=1e-12)
        nodes[len(pt) + k] = nodes.pop(int(left[k])) + nodes.pop(int(right[k]))
    assert len(nodes) == 1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(
    seed=st.integers(0, 2**32 - 1),
    counts=st.lists(st.integers(1, 80), min_size=1, max_size=8),
    n=st.sampled_from([1, 2, 3, 5, 8, 20]),
)
@settings(max_examples=20, deadline=None)
def test_equals_fastjet(algorithm: str, seed: int, counts: list[int], n: int) -> None:
    counts = [max(count, n) for count in counts]
    p4, offsets = make_jets(seed, counts)
    history = cluster(p4, offsets, algorithm=algorithm, R=LARGE_R)
    sequence = fastjet_sequence(p4, offsets, algorithm)
    expected, _ = from_awkward(sequence.exclusive_jets(n_jets=n))
    subjets, cut = history.subjets(p4, n=n)
    assert np.all(np.diff(cut) == n)
    np.testing.assert_allclose(subjets, expected, rtol=1e-11, atol=1e-9)
    if n < min(counts):
        ours = history.d_ij[offsets[1:] - 1 - n]
        np.testing.assert_allclose(ours, ak.to_numpy(sequence.exclusive_dmerge(n)), rtol=1e-5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(seed=st.integers(0, 2**32 - 1), quantile=st.floats(0.01, 0.99))
@settings(max_examples=20, deadline=None)
def test_d_cut_means_what_it_means_in_fastjet(algorithm: str, seed: int, quantile: float) -> None:
    p4, offsets = make_jets(seed, [1, 2, 30, 60])
    history = cluster(p4, offsets, algorithm=algorithm, R=LARGE_R)
    finite = np.unique(history.d_ij[np.isfinite(history.d_ij)].astype(np.float64))
    # Between two distances that occur, so that their rounding to float32 cannot decide.
    place = int(quantile * (len(finite) - 1))
    d_cut = float(np.sqrt(finite[place] * finite[place + 1]))
    expected, expected_offsets = from_awkward(fastjet_sequence(p4, offsets, algorithm).exclusive_jets(dcut=d_cut))
    subjets, cut = history.subjets(p4, d_cut=d_cut)
    # FastJet drops a jet that is softer than the cut, by its beam distance; here every particle belongs to the jet.
    beam = fv.pt(history.subjets(p4, n=1)[0]) ** (2 * EXPONENTS[algorithm]) > d_cut
    np.testing.assert_array_equal(np.diff(cut)[beam], np.diff(expected_offsets)[beam])
    np.testing.assert_array_equal(np.diff(cut), history.n_subjets(d_cut))
    if beam.all():
        np.testing.assert_allclose(subjets, expected, rtol=1e-11, atol=1e-9)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_d_cut_keeps_the_merges_up_to_and_including_it(algorithm: str) -> None:
    p4, offsets = make_jets(31, [40])
    history = cluster(p4, offsets, algorithm=algorithm)
    running_maximum = np.maximum.accumulate(history.d_ij[:-1])
    for d_cut in [0.0, *history.d_ij[:-1].tolist(), np.inf]:
        assert history.n_subjets(d_cut)[0] == 40 - np.count_nonzero(running_maximum <= d_cut)


def load_top(folder: Path, n_jets: int) -> tuple[np.ndarray, np.ndarray]:
    with np.load(folder / "toptagging" / "top_train_00.npz") as file:
        counts = file["n"][:n_jets].astype(np.int64)
        return file["p4"][: counts.sum()], np.concatenate([[0], np.cumsum(counts)])


@pytest.mark.parametrize(("algorithm", "n_jets"), [("kt", 10_000), ("cambridge", 2_000), ("antikt", 2_000)])
def test_equals_fastjet_on_real_jets(real_data: Path, algorithm: str, n_jets: int) -> None:
    p4, offsets = load_top(real_data, n_jets)
    history = cluster(p4, offsets, algorithm=algorithm)
    history.validate()
    counts = np.diff(offsets)
    for n in (1, 2, 3, 4, 6, 8, 16):
        rows = np.flatnonzero(counts >= n)
        enough = np.repeat(counts >= n, counts)
        packed = np.concatenate([[0], np.cumsum(counts[rows])])
        expected, _ = from_awkward(fastjet_sequence(p4[enough], packed, algorithm).exclusive_jets(n_jets=n))
        # In double precision the sums agree to rounding; the float32 result is the same number, rounded once.
        subjets, cut = history.subjets(p4.astype(np.float64), n=n)
        chosen = (cut[rows][:, None] + np.arange(n)).ravel()
        differ = np.any(np.abs(subjets[chosen] - expected) > 1e-11 * np.abs(expected[:, :1]), axis=1)
        assert not differ.any(), f"N = {n}: {np.unique(np.flatnonzero(differ) // n).size} jets differ"
        single, _ = history.subjets(p4, n=n)
        np.testing.assert_allclose(single, subjets, rtol=1e-6, atol=1e-6)


@given(seed=st.integers(0, 2**32 - 1), counts=st.lists(st.integers(0, 40), max_size=6))
@settings(max_examples=25, deadline=None)
def test_four_momentum_is_conserved_at_every_cut(seed: int, counts: list[int]) -> None:
    p4, offsets = make_jets(seed, counts)
    history = cluster(p4, offsets)
    total = [p4[start:stop].sum(0) for start, stop in pairwise(offsets)]
    for n in (1, 2, 3, 7, 40, 1000):
        subjets, cut = history.subjets(p4, n=n)
        np.testing.assert_array_equal(np.diff(cut), np.minimum(counts, n))
        for jet in range(len(counts)):
            np.testing.assert_allclose(subjets[cut[jet] : cut[jet + 1]].sum(0), total[jet], rtol=1e-12, atol=1e-9)
            pt = fv.pt(subjets[cut[jet] : cut[jet + 1]])
            assert np.all(np.diff(pt) <= 1e-12 * pt[:-1])


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 40))
@settings(max_examples=25, deadline=None)
def test_cuts_are_nested(seed: int, n: int) -> None:
    p4, offsets = make_jets(seed, [n])
    history = cluster(p4, offsets)
    for fine in range(2, n + 1):
        parents = partition(history, fine - 1)
        children = partition(history, fine)
        assert len(children) == fine
        assert all(any(child <= parent for parent in parents) for child in children)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_order_of_particles_does_not_matter(algorithm: str) -> None:
    p4, offsets = make_jets(11, [50])
    shuffle = np.random.default_rng(0).permutation(50)
    one, other = (cluster(x, offsets, algorithm=algorithm) for x in (p4, p4[shuffle]))
    np.testing.assert_array_equal(one.d_ij, other.d_ij)
    np.testing.assert_array_equal(one.join, other.join)
    np.testing.assert_array_equal(one.order, shuffle[other.order])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(seed=st.integers(0, 2**32 - 1), boost=st.floats(-3, 3), turn=st.floats(-7, 7))
@settings(max_examples=20, deadline=None)
def test_tree_is_invariant_under_boosts_along_and_rotations_about_the_beam(
    algorithm: str, seed: int, boost: float, turn: float
) -> None:
    p4, offsets = make_jets(seed, [30, 45])
    E, px, py, pz = p4.T
    moved = np.stack(
        [
            E * np.cosh(boost) + pz * np.sinh(boost),
            px * np.cos(turn) - py * np.sin(turn),
            px * np.sin(turn) + py * np.cos(turn),
            pz * np.cosh(boost) + E * np.sinh(boost),
        ],
        -1,
    )
    one, other = (cluster(x, offsets, algorithm=algorithm) for x in (p4, moved))
    np.testing.assert_allclose(one.d_ij, other.d_ij, rtol=1e-4)
    for n in (1, 2, 5, 12, 29):
        np.testing.assert_array_equal(one.subjet_index(n=n, p4=p4), other.subjet_index(n=n, p4=p4))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 30), share=st.floats(0.05, 0.95))
@settings(max_examples=20, deadline=None)
def test_collinear_splitting_leaves_all_coarser_cuts(algorithm: str, seed: int, n: int, share: float) -> None:
    p4, _ = make_jets(seed, [n])
    victim = seed % n
    split = np.concatenate([p4, p4[victim : victim + 1] * (1 - share)])
    split[victim] *= share
    one = cluster(p4, np.array([0, n]), algorithm=algorithm)
    other = cluster(split, np.array([0, n + 1]), algorithm=algorithm)
    assert other.d_ij[0] < 1e-9
    for n_subjets in range(1, n + 1):
        before, _ = one.subjets(p4, n=n_subjets)
        after, _ = other.subjets(split, n=n_subjets)
        np.testing.assert_allclose(after, before, rtol=1e-9, atol=1e-9)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 30))
@settings(max_examples=20, deadline=None)
def test_soft_emission_leaves_all_coarser_kt_cuts(seed: int, n: int) -> None:
    p4, _ = make_jets(seed, [n])
    soft, _ = make_jets(seed + 1, [1])
    one = cluster(p4, np.array([0, n]))
    other = cluster(np.concatenate([p4, soft * 1e-9]), np.array([0, n + 1]))
    for n_subjets in range(1, n + 1):
        before, _ = one.subjets(p4, n=n_subjets)
        after, _ = other.subjets(np.concatenate([p4, soft * 1e-9]), n=n_subjets)
        np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-5)


@given(seed=st.integers(0, 2**32 - 1), counts=st.lists(st.integers(0, 25), min_size=1, max_size=5))
@settings(max_examples=25, deadline=None)
def test_merges_give_the_same_tree_as_order_and_join(seed: int, counts: list[int]) -> None:
    p4, offsets = make_jets(seed, counts)
    history = cluster(p4, offsets)
    left, right = history.merges()
    for jet, n in enumerate(counts):
        if n == 0:
            continue
        start = offsets[jet]
        members = {i: [i] for i in range(n)}
        momentum = {i: p4[start + i] for i in range(n)}
        for k in range(n - 1):
            a, b = int(left[start + k]), int(right[start + k])
            assert fv.pt(momentum[a]) >= fv.pt(momentum[b])
            members[n + k] = members.pop(a) + members.pop(b)
            momentum[n + k] = momentum[a] + momentum[b]
            labels = history.subjet_index(n=n - k - 1)[start : start + n]
            expected = {frozenset(m) for m in members.values()}
            assert {frozenset(np.flatnonzero(labels == x).tolist()) for x in set(labels.tolist())} == expected
        (leaves,) = members.values()
        np.testing.assert_array_equal(leaves, history.order[start : start + n])
        assert left[start + n - 1] == right[start + n - 1] == -1


def test_subjet_index_numbers_the_subjets_in_their_order() -> None:
    p4, offsets = make_jets(5, [30, 0, 1, 17])
    history = cluster(p4, offsets)
    for n in (1, 4, 100):
        subjets, cut = history.subjets(p4, n=n)
        labels = history.subjet_index(n=n, p4=p4)
        sums = np.zeros_like(subjets)
        np.add.at(sums, labels + np.repeat(cut[:-1], np.diff(offsets)), p4)
        np.testing.assert_allclose(sums, subjets, rtol=1e-12)


def test_small_jets_are_defined() -> None:
    p4, _ = make_jets(3, [3])
    history = cluster(p4, np.array([0, 0, 1, 3, 3]))
    np.testing.assert_array_equal(history.order[0], 0)
    np.testing.assert_array_equal(history.join, [0, 1, 0])
    np.testing.assert_array_equal(np.isinf(history.d_ij), [True, False, True])
    subjets, cut = history.subjets(p4, n=2)
    np.testing.assert_array_equal(cut, [0, 0, 1, 3, 3])
    np.testing.assert_array_equal(subjets[0], p4[0])
    for empty in (np.array([0]), np.array([0, 0, 0])):
        nothing = cluster(np.zeros((0, 4), np.float32), empty)
        assert len(nothing) == len(empty) - 1
        assert nothing.subjets(np.zeros((0, 4), np.float32), n=3)[0].shape == (0, 4)
        assert nothing.merges()[0].shape == (0,)


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, 3.0, -3.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_degenerate_particles_are_defined(algorithm, dtype) -> None:
    odd = np.array(
        [
            [0, 0, 0, 0],
            [0, 0, 0, 0],
            [5, 0, 0, 5],
            [5, 0, 0, -5],
            [7, 0, 0, 7],
            [4.9, 3, 4, 0],
            [1, 3, 4, 0],
            [1e-30, 1e-30, 0, 0],
            [1e30, 1e30, 0, 0],
            [3, -3, 0, 0],
            [3, 3, 0, 0],
            [10, 1, 1, 1],
            [10, 1, 1, 1],
            [10, 1, 1, 1],
        ],
        dtype,
    )
    history = cluster(odd, np.array([0, len(odd)]), algorithm=algorithm)
    history.validate()
    for n in range(1, len(odd) + 1):
        subjets, cut = history.subjets(odd, n=n)
        assert np.all(np.isfinite(subjets))
        np.testing.assert_array_equal(cut, [0, n])
    labels = history.subjet_index(n=len(odd) - 1)
    assert len(np.unique(labels)) == len(odd) - 1


def test_a_thousand_constituents_and_more() -> None:
    p4, offsets = make_jets(2, [1500, 3])
    history = cluster(p4, offsets)
    history.validate()
    sequence = fastjet_sequence(p4[:1500], offsets[:2], "kt")
    for n in (1, 10, 300):
        expected, _ = from_awkward(sequence.exclusive_jets(n_jets=n))
        np.testing.assert_allclose(history.subjets(p4, n=n)[0][:n], expected, rtol=1e-10, atol=1e-9)


def test_threads_batches_and_types_change_nothing(tmp_path: Path) -> None:
    counts = np.random.default_rng(4).integers(0, 90, 3000).tolist()
    p4, offsets = make_jets(9, counts, np.float32)
    one, many = cluster(p4, offsets, threads=1), cluster(p4, offsets, threads=5)
    double = cluster(p4.astype(np.float64), offsets.astype(np.int32))
    np.save(tmp_path / "p4.npy", p4)
    mapped = np.load(tmp_path / "p4.npy", mmap_mode="r")
    for other in (many, double, cluster(mapped, offsets), cluster(np.asfortranarray(p4), offsets)):
        for name in ("order", "join", "d_ij", "offsets"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for cut in ({"n": 4}, {"d_cut": 5.0}):
        for a, b in zip(one.subjets(p4, threads=1, **cut), one.subjets(mapped, threads=5, **cut), strict=True):
            np.testing.assert_array_equal(a, b)
    last = offsets[-2]
    alone = cluster(p4[last:], offsets[-2:] - last)
    np.testing.assert_array_equal(alone.d_ij, one.d_ij[last:])


def test_radius_only_scales_the_distances() -> None:
    p4, offsets = make_jets(21, [40])
    small, large = cluster(p4, offsets, R=0.4), cluster(p4, offsets, R=1.2)
    np.testing.assert_array_equal(small.order, large.order)
    np.testing.assert_array_equal(small.join, large.join)
    np.testing.assert_allclose(small.d_ij, large.d_ij * 9, rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("component", range(4))
def test_unusable_momenta_name_the_jet(value: float, component: int) -> None:
    p4, offsets = make_jets(1, [5, 4, 6], np.float32)
    p4[7, component] = value
    with pytest.raises(InputError, match="jet 1, field 'p4'"):
        cluster(p4, offsets)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"algorithm": "durham"}, "algorithm"),
        ({"algorithm": float("nan")}, "algorithm"),
        ({"R": 0.0}, "R"),
        ({"R": float("nan")}, "R"),
    ],
)
def test_bad_settings_are_refused(arguments: dict, field: str) -> None:
    p4, offsets = make_jets(1, [5])
    with pytest.raises(InputError) as error:
        cluster(p4, offsets, **arguments)
    assert error.value.field == field


def test_bad_shapes_and_cuts_are_refused() -> None:
    p4, offsets = make_jets(1, [5, 3])
    history = cluster(p4, offsets)
    for bad in (p4[:-1], p4[:, :3], p4.ravel()):
        with pytest.raises(InputError, match="p4"):
            cluster(bad, offsets)
        with pytest.raises(InputError, match="p4"):
            history.subjets(bad, n=2)
    for bad_offsets in (np.array([1, 5, 8]), np.array([0, 6, 5, 8]), np.array([], np.int64)):
        with pytest.raises(InputError, match="offsets"):
            cluster(p4, bad_offsets)
    for cut in ({}, {"n": 2, "d_cut": 1.0}, {"n": 0}, {"d_cut": float("nan")}):
        with pytest.raises(InputError):
            history.subjets(p4, **cut)


@pytest.mark.parametrize("field", ["order", "join", "d_ij"])
def test_damaged_histories_are_refused(field: str) -> None:
    p4, offsets = make_jets(1, [5, 4, 6])
    history = cluster(p4, offsets)
    getattr(history, field)[6] = {"order": 3, "join": 3, "d_ij": np.nan}[field]
    if field != "d_ij":
        getattr(history, field)[7] = 3
    with pytest.raises(InputError, match=f"jet 1, field '{field}'"):
        history.validate()
