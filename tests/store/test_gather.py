"""Blocks of jets at rest are those that loading everything gives, whatever is selected, cut or damaged."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.physics import fourvector as fv
from jetrep.store import Store, StoreWriter, gather
from jetrep.store.gather import JetPool
from jetrep.training.data import load_jets, open_pool


def with_columns(jets: Jets, kind: type = np.int8) -> Jets:
    number = np.arange(len(jets.p4))
    measured = {"charge": (number % 3 - 1).astype(kind), "d0": number.astype(np.float32)}
    return Jets(jets.p4, jets.offsets, jets.labels, jets.classes, None, measured, {"event": np.arange(len(jets))})


@pytest.fixture(scope="module")
def stores(tmp_path_factory, make_jets) -> list[Path]:
    """Two stores whose classes have other numbers and overlap, in small shards."""
    rng = np.random.default_rng(5)
    paths = []
    for name, classes, n in (("a", ("qcd", "top"), 53), ("b", ("w", "qcd"), 40)):
        jets = with_columns(make_jets(rng.integers(1, 25, n), seed=n, classes=classes), np.int8 if n > 50 else np.int16)
        paths.append(tmp_path_factory.mktemp("stores") / name)
        with StoreWriter(paths[-1], classes=classes, provenance={}, jets_per_shard=9) as writer:
            writer.write(jets)
    return paths


def same(found: Jets, expected: Jets, columns: tuple[str, ...] = ()) -> None:
    assert_array_equal(found.p4, expected.p4)
    assert_array_equal(found.offsets, expected.offsets)
    assert_array_equal(found.truth, expected.truth)
    assert found.classes == expected.classes
    assert_array_equal(found.history.order, expected.history.order)
    assert_array_equal(found.history.join, expected.history.join)
    assert tuple(found.measured) == columns
    for name in columns:
        assert_array_equal(found.measured[name], expected.measured[name])


def everything(pool: JetPool, size: int = 7) -> Jets:
    return pool.fetch(pool.blocks(size))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    which=st.sampled_from([[0], [1], [0, 1], [1, 0]]),
    classes=st.sampled_from([None, ["qcd"], ["qcd", "top", "w"], ["qcd", "qcd"]]),
    max_jets=st.sampled_from([None, 1, 10, 31, 77, 1000]),
    size=st.integers(1, 60),
    data=st.data(),
)
def test_blocks_in_any_order_are_those_of_the_loaded_jets(stores, which, classes, max_jets, size, data):
    paths = [stores[i] for i in which]
    if classes is not None and not {*classes} <= {name for path in paths for name in Store(path).classes}:
        return
    expected = load_jets(paths, classes=classes, max_jets=max_jets)
    pool = open_pool(paths, classes=classes, max_jets=max_jets, columns=("charge", "d0"))
    assert len(pool) == len(expected)
    blocks = pool.blocks(size)
    assert_array_equal(blocks.first, np.cumsum(np.concatenate([[0], blocks.sizes]))[:-1])
    assert (blocks.sizes >= 1).all()
    assert (blocks.sizes <= size).all()
    same(pool.fetch(blocks), expected, ("charge", "d0"))
    chosen = np.array(data.draw(st.lists(st.integers(0, len(blocks) - 1), min_size=1, max_size=6)))
    rows = np.concatenate([np.arange(blocks.first[i], blocks.first[i] + blocks.sizes[i]) for i in chosen])
    same(pool.fetch(blocks[chosen]), expected[rows], ("charge", "d0"))
    assert_array_equal(pool.labels(), expected.truth)
    np.testing.assert_allclose(pool.jet_p4(), expected.jet_p4, rtol=1e-6)


def test_only_what_is_asked_for_travels(stores):
    bare = everything(open_pool(stores, history=False, labelled=False))
    assert (bare.labels, bare.classes, bare.history, bare.measured, bare.observers) == (None, (), None, {}, {})
    pool = open_pool(stores, columns=("d0",))
    jets = everything(pool)
    assert tuple(jets.measured) == ("d0",)
    assert not jets.observers
    assert np.isnan(jets.history.d_ij).all()  # said to be absent, and not something else
    with pytest.raises(InputError, match="no measured column 'dz'"):
        open_pool(stores, columns=("d0", "dz"))


@pytest.mark.parametrize("n", [1, 5, 24])
def test_leading_constituents_are_clustered_as_if_alone(stores, n):
    expected = load_jets(stores[:1]).leading(n).clustered()
    pool = open_pool(stores[:1], max_particles=n)
    same(everything(pool), expected)
    assert everything(pool).counts.max() <= n
    assert pool.sample(1000).counts.max() <= n


def test_stores_that_were_clustered_differently(tmp_path, stores, make_jets):
    with StoreWriter(tmp_path / "c", classes=("qcd", "top"), provenance={}, algorithm="cambridge") as writer:
        writer.write(make_jets([3, 20], classes=("qcd", "top")))
    open_pool([*stores, tmp_path / "c"])
    open_pool([*stores, tmp_path / "c"], max_particles=4, history=False)
    with pytest.raises(InputError, match="clustered differently"):
        open_pool([*stores, tmp_path / "c"], max_particles=4)
    alone = everything(open_pool([tmp_path / "c"], max_particles=4))
    expected = load_jets([tmp_path / "c"]).leading(4).clustered(algorithm="cambridge")
    assert_array_equal(alone.history.join, expected.history.join)


def test_a_single_shard_and_jets_in_memory_are_not_copied(tmp_path, make_jets):
    jets = make_jets([3, 4, 2], classes=("qcd", "top"))
    pool = JetPool.of(jets)
    assert pool.in_memory
    assert np.shares_memory(everything(pool, 2).p4, jets.p4)
    with StoreWriter(tmp_path / "s", classes=jets.classes, provenance={}) as writer:
        writer.write(jets)
    pool = open_pool([tmp_path / "s"])
    assert not pool.in_memory
    whole = everything(pool, 2)
    assert not whole.p4.flags.owndata
    assert not whole.p4.flags.writeable
    same(whole, load_jets([tmp_path / "s"]))
    same(pool.fetch(pool.blocks(2)[1:]), load_jets([tmp_path / "s"])[2:])


def test_few_shards_are_open_at_a_time(stores, monkeypatch):
    monkeypatch.setattr(gather, "_MAPPED", 2)
    pool = open_pool(stores)
    same(everything(pool), load_jets(stores))
    assert len(pool._mapped) == 2
    copy = pickle.loads(pickle.dumps(pool))  # a mapping belongs to a process
    same(everything(copy), load_jets(stores))


def test_a_sample_is_spread_over_all_shards(stores):
    expected = load_jets(stores)
    sample = open_pool(stores).sample(31)
    assert_array_equal(sample.p4, expected[np.arange(0, 93, 3)].p4)
    assert sample.history is None
    assert_array_equal(open_pool(stores).sample(10_000).p4, expected.p4)


def test_damage_is_found_before_a_jet_is_used(tmp_path, make_jets):
    jets = make_jets([5] * 40, classes=("qcd", "top"))
    with StoreWriter(tmp_path / "s", classes=jets.classes, provenance={}, jets_per_shard=10) as writer:
        writer.write(jets)
    shard = tmp_path / "s" / "shard-00002.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    pool = open_pool([tmp_path / "s"])
    blocks = pool.blocks(10)
    assert len(pool.fetch(blocks[:2])) == 20
    for read in (lambda: pool.fetch(blocks), pool.jet_p4):
        with pytest.raises(InputError, match=r"shard-00002.arrow: .*hash disagrees"):
            read()
    shard.unlink()
    with pytest.raises(InputError, match="missing"):
        pool.fetch(blocks[2:3])


def test_pages_are_given_back_and_read_again(stores):
    mapped = Store(stores[0]).map(1)
    before = mapped.jets.p4.copy()
    mapped.will_need(mapped.jets.p4[3:])
    mapped.will_need(mapped.jets.p4[:0])
    mapped.release()
    assert_array_equal(mapped.jets.p4, before)
    assert (fv.pt(mapped.jets.p4) > 0).all()
