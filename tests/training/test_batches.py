"""Batches: every jet once an epoch, the same for every way to make them, mixed as the windows say."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jetrep.errors import InputError
from jetrep.store import StoreWriter
from jetrep.store.gather import JetPool
from jetrep.training.batches import LoadingConfig, ShuffledBatches
from jetrep.training.data import open_pool
from jetrep.training.order import Order
from jetrep.training.sampling import balancing_weights, balancing_weights_of
from prong_jets import prong_jets

JETS = prong_jets(50)
SMALL = LoadingConfig(block=4, window=3)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """200 jets in shards of 30, sorted by class: 120 qcd, then 80 top."""
    path = tmp_path_factory.mktemp("data") / "store"
    jets = prong_jets(240, seed=3)
    by_class = np.concatenate([np.flatnonzero(jets.labels == 0), np.flatnonzero(jets.labels == 1)[:80]])
    with StoreWriter(path, classes=jets.classes, provenance={}, jets_per_shard=30) as writer:
        writer.write(jets[by_class])
    return path


def equal(one, other) -> bool:
    pairs = [(getattr(one, f.name), getattr(other, f.name)) for f in fields(one) if f.name != "measured"]
    return all((a is None and b is None) or torch.equal(a, b) for a, b in pairs)


def take(batches: ShuffledBatches, start: int, n: int) -> list:
    stream = batches.from_step(start)
    found = [next(stream) for _ in range(n)]
    stream.close()
    return found


@given(seed=st.integers(0, 1000), batch_size=st.integers(1, 50))
def test_an_epoch_is_a_permutation_and_the_next_one_another(seed, batch_size):
    batches = ShuffledBatches(JETS, batch_size, seed)
    n = batches.steps_per_epoch
    epochs = [np.concatenate([batches.rows(step) for step in range(i * n, (i + 1) * n)]) for i in range(2)]
    for rows in epochs:
        assert len(np.unique(rows)) == len(rows) == n * batch_size
    if n * batch_size > 20:
        assert not np.array_equal(*epochs)
    if n > 1 and batch_size > 3:
        # Not only the order of the batches changes, but who is in them.
        first, second = ({frozenset(rows) for rows in epoch.reshape(n, -1)} for epoch in epochs)
        assert first != second


@given(step=st.integers(0, 40), world_size=st.sampled_from([1, 2, 5]))
def test_ranks_share_the_global_batch(step, world_size):
    together = ShuffledBatches(JETS, 10, 3).rows(step)
    apart = [ShuffledBatches(JETS, 10, 3, rank, world_size).rows(step) for rank in range(world_size)]
    assert sorted(np.concatenate(apart)) == sorted(together)
    assert {len(rows) for rows in apart} == {10 // world_size}


def test_stream_from_a_step_is_the_tail_of_the_stream():
    whole, tail = ShuffledBatches(JETS, 16, 1).from_step(0), ShuffledBatches(JETS, 16, 1).from_step(4)
    skipped = [next(whole) for _ in range(5)][-1]
    assert np.array_equal(skipped.p4.numpy(), next(tail).p4.numpy())


def test_refusals():
    with pytest.raises(InputError, match="fewer than one batch"):
        ShuffledBatches(JETS, 51)
    with pytest.raises(InputError, match="cannot be shared"):
        ShuffledBatches(JETS, 9, world_size=2)
    with pytest.raises(InputError, match="3 weights for 50 jets"):
        ShuffledBatches(JETS, 9, weights=np.ones(3, np.float32))
    with pytest.raises(InputError, match="does not fit into 12"):
        ShuffledBatches(JETS, 9, loading=LoadingConfig(width=12)).batch(0)
    for wrong in ({"block": 0}, {"window": -1}, {"max_repeats": 0.5}, {"mass_bins": 0}):
        with pytest.raises(InputError, match=f"loading.{next(iter(wrong))}"):
            LoadingConfig(**wrong)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**12),
    epoch=st.integers(0, 5),
    block=st.integers(1, 40),
    window=st.integers(0, 8),
    batch_size=st.integers(1, 40),
)
def test_any_windows_show_every_jet_once(store, seed, epoch, block, window, batch_size):
    batches = ShuffledBatches(open_pool([store]), batch_size, seed, loading=LoadingConfig(block=block, window=window))
    order = batches._order.epoch(epoch)
    shown = [order.jets(w)[order.picks(w)] for w in range(batches._order.n_windows)]
    assert sorted(np.concatenate(shown)) == list(range(200))
    assert order.starts[-1] == 200
    if window:
        # Memory is bounded: as many windows as were asked for, one block of each group. Shards end in smaller blocks.
        assert batches._order.n_windows >= min(200 / (block * window), len(batches._order.blocks))
        groups = -(-len(batches._order.blocks) // batches._order.n_windows)
        assert max(map(len, shown)) <= block * groups
    steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
    rows = np.concatenate([batches.rows(step) for step in steps])
    np.testing.assert_array_equal(rows, np.concatenate(shown)[: len(rows)])


def test_what_fits_into_one_window_is_permuted_as_a_whole(store):
    at_rest, in_memory = open_pool([store]), open_pool([store]).fetch(open_pool([store]).blocks(1))
    for loading in (LoadingConfig(), LoadingConfig(block=7, window=0)):
        one, other = ShuffledBatches(at_rest, 32, 9, loading=loading), ShuffledBatches(in_memory, 32, 9)
        assert all(equal(a, b) for a, b in zip(take(one, 0, 14), take(other, 0, 14), strict=True))
    expected = np.random.default_rng((9, 1)).permutation(200)
    np.testing.assert_array_equal(one.rows(one.steps_per_epoch), expected[:32])


@pytest.mark.parametrize("bucket", [0, 3])
def test_a_batch_depends_on_nothing_but_seed_and_step(store, bucket):
    loading = LoadingConfig(block=4, window=5, bucket=bucket)
    make = lambda **settings: ShuffledBatches(open_pool([store]), 16, 2, loading=loading, **settings)  # noqa: E731
    expected = take(make(prefetch=0), 0, 30)
    assert not equal(expected[0], expected[12])
    for prefetch in (1, 4):
        assert all(map(equal, take(make(prefetch=prefetch), 0, 30), expected))
    for start in (1, 11, 12, 25):  # in the midst of a window, and of an epoch of 12 steps
        assert all(map(equal, take(make(), start, 3), expected[start:]))
        assert equal(make().batch(start), expected[start])
    for world_size in (2, 4):
        shares = [take(make(rank=rank, world_size=world_size), 5, 8) for rank in range(world_size)]
        for step, parts in enumerate(zip(*shares, strict=True), 5):
            for rank, part in enumerate(parts):
                width = part.p4.shape[1]
                assert torch.equal(part.jet_p4, expected[step].jet_p4[rank::world_size])
                assert torch.equal(part.p4, expected[step].p4[rank::world_size, :width])


def test_every_window_covers_a_sorted_store(store):
    """A store sorted by class: the share of a class in a window is right to one block."""
    order = Order(open_pool([store]).blocks(5), 50, seed=0)
    labels = open_pool([store]).labels()
    assert order.n_windows == 4
    for number in range(3):
        epoch = order.epoch(number)
        tops = [labels[epoch.jets(w)].sum() for w in range(4)]
        assert sum(tops) == 80
        assert max(abs(n - 20) for n in tops) <= 5
    assert not np.array_equal(order.epoch(0).members, order.epoch(1).members)


def test_buckets_hold_the_same_jets_with_less_padding(store):
    loading = LoadingConfig(block=4, window=30, bucket=5)
    plain = ShuffledBatches(open_pool([store]), 10, 1, loading=LoadingConfig(block=4, window=30))
    bucketed = ShuffledBatches(open_pool([store]), 10, 1, loading=loading)
    rows = [np.concatenate([batches.rows(step) for step in range(20)]) for batches in (plain, bucketed)]
    assert sorted(rows[0]) == sorted(rows[1])
    padded = [sum((~batch.mask).sum().item() for batch in take(batches, 0, 20)) for batches in (plain, bucketed)]
    assert padded[1] < 0.5 * padded[0]
    lengths = [batch.counts.float().mean().item() for batch in take(bucketed, 0, 20)]
    assert lengths != sorted(lengths)  # short jets do not come first
    second = [batch.counts.float().mean().item() for batch in take(bucketed, 20, 20)]
    assert lengths != second


def test_width():
    batch = ShuffledBatches(JETS, 8, loading=LoadingConfig(width=40)).batch(0)
    assert batch.p4.shape == (8, 40, 4)
    assert batch.order.shape == (8, 40)
    tight = ShuffledBatches(JETS, 8).batch(0)
    assert torch.equal(batch.p4[:, : tight.p4.shape[1]], tight.p4)
    assert not batch.mask[:, tight.p4.shape[1] :].any()


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 100), block=st.integers(1, 60), window=st.integers(0, 6), epoch=st.integers(0, 3))
def test_weighted_jets_are_shown_as_often_as_their_weight_says(store, seed, block, window, epoch):
    weights = np.random.default_rng(seed).exponential(1, 200).astype(np.float32)
    weights[seed % 50 :: 7] = 0
    loading = LoadingConfig(block=block, window=window)
    batches = ShuffledBatches(open_pool([store]), 1, seed, loading=loading, weights=weights)
    steps = range(epoch * 200, (epoch + 1) * 200)
    shown = np.bincount(np.concatenate([batches.rows(step) for step in steps]), minlength=200)
    expected = 200 * weights.astype(np.float64) / weights.sum(dtype=np.float64)
    assert shown.sum() == 200
    assert (shown >= np.floor(expected - 1e-6)).all()
    assert (shown <= np.ceil(expected + 1e-6)).all()


def test_the_mean_over_epochs_is_the_weight(store):
    weights = np.random.default_rng(1).exponential(1, 200).astype(np.float32)
    order = Order(open_pool([store]).blocks(7), 28, seed=4, weights=weights)
    shown = np.zeros(200)
    for number in range(400):
        epoch = order.epoch(number)
        for w in range(order.n_windows):
            np.add.at(shown, epoch.jets(w)[epoch.picks(w)], 1)
    expected = 200 * weights / weights.sum()
    fraction = expected % 1
    error = np.sqrt(np.maximum(fraction * (1 - fraction), 1e-3) / 400)
    assert np.abs((shown / 400 - expected) / error).max() < 5


def test_classes_are_balanced(store):
    pool = open_pool([store])
    weights = balancing_weights(pool, "classes")
    batches = ShuffledBatches(pool, 20, 0, loading=SMALL, weights=weights)
    labels = pool.labels()[np.concatenate([batches.rows(step) for step in range(10)])]
    assert np.bincount(labels).tolist() == [100, 100]
    with pytest.raises(InputError, match="unlabelled"):
        balancing_weights(open_pool([store], labelled=False), "classes")
    assert balancing_weights(pool, "none") is None


def test_momentum_and_mass_become_flat(store):
    rng = np.random.default_rng(0)
    pt, labels = 500 + rng.exponential(50, 20_000), rng.choice(3, 20_000, p=[0.7, 0.2, 0.1])
    mass = rng.gamma(2, 30 * (1 + labels))
    low, high = np.quantile(pt, [0.005, 0.995])
    bins = np.clip((pt - low) / (high - low) * 5, 0, 4).astype(int)
    weights = balancing_weights_of(None, pt, mass, pt_bins=5, mass_bins=1, max_repeats=100)
    assert weights.mean() == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(np.bincount(bins, weights) / 20_000, 0.2, rtol=1e-4)
    both = balancing_weights_of(labels, pt, mass, pt_bins=5, mass_bins=1, max_repeats=100)
    for label in range(3):
        own = labels == label
        np.testing.assert_allclose(np.bincount(bins[own], both[own]) / 20_000, 1 / 15, rtol=1e-4)
    capped = balancing_weights_of(labels, pt, mass, max_repeats=4)
    assert capped.max() == pytest.approx(4, rel=1e-5)
    assert capped.mean() == pytest.approx(1, rel=1e-5)
    with pytest.raises(InputError, match="max_repeats"):
        balancing_weights_of(labels, None, None, max_repeats=0.1)
    # From a store, momenta and masses are those of its jets.
    pool = open_pool([store])
    jets = pool.fetch(pool.blocks(1))
    p4 = jets.jet_p4
    expected = balancing_weights_of(
        jets.labels,
        np.hypot(p4[:, 1], p4[:, 2]),
        np.sqrt(p4[:, 0] ** 2 - (p4[:, 1:] ** 2).sum(1)),
        pt_bins=3,
        mass_bins=2,
    )
    found = balancing_weights(pool, "classes_pt_mass", pt_bins=3, mass_bins=2)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_damaged_shard_stops_whoever_asks_for_a_batch(store, tmp_path):
    for file in store.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    pool = open_pool([tmp_path])
    shard = tmp_path / "shard-00003.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    batches = ShuffledBatches(pool, 10, loading=LoadingConfig(block=30, window=1))
    with pytest.raises(InputError, match=r"shard-00003.arrow: .*hash disagrees"):
        take(batches, 0, 20)


_STREAM = """
import sys
from pathlib import Path
from jetrep.training.batches import LoadingConfig, ShuffledBatches
from jetrep.training.data import open_pool

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024

def stream(path, epochs):
    batches = ShuffledBatches(open_pool([Path(path)]), 64, loading=LoadingConfig(block=64, window=8))
    stream, peak = batches.from_step(0), 0
    for _ in range(epochs * batches.steps_per_epoch):
        next(stream)
        peak = max(peak, resident())
    stream.close()
    return peak

small, large = sys.argv[1:]
start = stream(small, 2)  # with all that has to be loaded and compiled
print(stream(large, 2) - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_is_that_of_windows_however_large_the_store(tmp_path):
    """Two epochs over 68 MB in windows of 0.9 MB."""
    jets = prong_jets(15_000)
    for name, copies in (("small", 1), ("large", 8)):
        with StoreWriter(tmp_path / name, classes=jets.classes, provenance={}, jets_per_shard=15_000) as writer:
            for _ in range(copies):
                writer.write(jets if copies > 1 else jets[:2000])
    size = sum(file.stat().st_size for file in (tmp_path / "large").iterdir())
    assert size > 60e6
    stores = [str(tmp_path / name) for name in ("small", "large")]
    done = subprocess.run([sys.executable, "-c", _STREAM, *stores], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20, done.stdout


def test_a_pool_of_one_window_is_read_once(store, monkeypatch):
    read = []
    fetch = JetPool.fetch
    monkeypatch.setattr(JetPool, "fetch", lambda self, blocks: read.append(len(blocks)) or fetch(self, blocks))
    batches = ShuffledBatches(open_pool([store]), 32, loading=LoadingConfig(window=0))
    batches.probe()
    for rank in range(2):
        take(batches.share(rank, 2), 0, 2 * batches.steps_per_epoch)
    assert len(read) == 1
