"""What is written is what is read: bit by bit, without a copy, by us and by others."""

import json
from dataclasses import replace
from pathlib import Path

import awkward as ak
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather as feather
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.physics.clustering import cluster
from jetrep.store import Store, StoreWriter
from jetrep.store.manifest import MANIFEST, SCHEMA

COUNTS = (5, 1, 30, 2, 17, 60, 3, 44)


def write(out: Path, jets: Jets, classes: tuple[str, ...] | None = None, **settings) -> Store:
    classes = jets.classes if classes is None else classes
    with StoreWriter(out, classes=classes, provenance={"made": "by hand"}, **settings) as writer:
        writer.write(jets)
    return Store(out)


def assert_same(a: Jets, b: Jets) -> None:
    assert a.p4.tobytes() == b.p4.tobytes()
    np.testing.assert_array_equal(a.offsets, b.offsets)
    assert (a.labels is None) == (b.labels is None)
    if a.labels is not None:
        np.testing.assert_array_equal(a.labels, b.labels)
    assert a.classes == b.classes


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    per_shard=st.integers(1, 12),
    pieces=st.integers(1, 4),
    classes=st.sampled_from([(), ("qcd",), ("qcd", "top", "w")]),
    seed=st.integers(0, 9),
)
def test_ragged_jets_come_back_bit_by_bit(tmp_path_factory, make_jets, counts, per_shard, pieces, classes, seed):
    jets = make_jets(counts, seed=seed, classes=classes)
    out = tmp_path_factory.mktemp("stores") / "store"
    with StoreWriter(out, classes=classes, provenance={}, jets_per_shard=per_shard) as writer:
        step = -(-len(jets) // pieces)
        for start in range(0, len(jets), step):
            writer.write(jets[start : start + step])
    store = Store(out)
    store.verify()
    assert len(store) == len(jets)
    assert store.labelled == bool(classes)
    assert [len(part) for part in store.shards()][:-1] == [per_shard] * ((len(jets) - 1) // per_shard)
    read = store.jets()
    assert_same(read, jets)
    expected = cluster(jets.p4, jets.offsets)
    for name in ("order", "join", "d_ij"):
        np.testing.assert_array_equal(getattr(read.history, name), getattr(expected, name))
    for n in {1, len(jets) // 2 or 1, len(jets) + 5}:
        assert_same(store.jets(n), jets[:n])


def test_constituents_are_stored_in_descending_pt_and_clustered_in_that_order(tmp_path, make_jets):
    jets = make_jets(COUNTS)
    backwards = jets[np.arange(len(jets))]
    mixed = backwards.p4.copy()
    for start, stop in zip(jets.offsets[:-1], jets.offsets[1:], strict=True):
        mixed[start:stop] = mixed[start:stop][::-1]
    store = write(tmp_path / "s", Jets(mixed, jets.offsets))
    assert_same(store.jets(), jets)
    np.testing.assert_array_equal(store.jets().history.order, cluster(jets.p4, jets.offsets).order)


@pytest.mark.parametrize("kind", [np.int8, np.int32, np.int64, np.float32, np.float64])
def test_columns_come_back_with_their_type_and_beside_their_constituents(tmp_path, make_jets, kind):
    jets = make_jets(COUNTS)
    jets = replace(
        jets,
        measured={"charge": np.arange(len(jets.p4)).astype(kind)},
        observers={"weight": np.arange(len(jets)).astype(kind)},
    )
    backwards = Jets.concatenate([jets[[j]] for j in range(len(jets))])  # nothing changes, but everything is copied
    store = write(tmp_path / "s", backwards, jets_per_shard=3)
    read = store.jets()
    assert read.measured["charge"].dtype == read.observers["weight"].dtype == kind
    np.testing.assert_array_equal(read.measured["charge"], jets.measured["charge"])
    np.testing.assert_array_equal(read.observers["weight"], jets.observers["weight"])


def test_measured_columns_follow_the_sorting_by_pt(tmp_path, make_jets):
    jets = make_jets(COUNTS)
    mixed = np.random.default_rng(0).permutation(COUNTS[0])
    p4, number = jets.p4.copy(), np.arange(len(jets.p4))
    p4[: COUNTS[0]], number[: COUNTS[0]] = p4[mixed], mixed
    read = write(tmp_path / "s", Jets(p4, jets.offsets, measured={"number": number})).jets()
    np.testing.assert_array_equal(read.measured["number"], np.arange(len(jets.p4)))


def test_a_store_of_the_first_schema_is_read(tmp_path, make_jets):
    write(tmp_path / "s", make_jets(COUNTS))
    manifest = json.loads((tmp_path / "s" / MANIFEST).read_text())
    (tmp_path / "s" / MANIFEST).write_text(json.dumps(manifest | {"schema": 1}))
    assert len(Store(tmp_path / "s").jets()) == len(COUNTS)


def test_a_history_that_jets_bring_along_is_kept(tmp_path, make_jets):
    jets = make_jets(COUNTS)
    history = cluster(jets.p4, jets.offsets, algorithm="antikt", R=0.4)
    assert not np.array_equal(history.order, cluster(jets.p4, jets.offsets).order)
    store = write(tmp_path / "s", Jets(jets.p4, jets.offsets, history=history), algorithm="antikt", R=0.4)
    np.testing.assert_array_equal(store.jets().history.order, history.order)
    np.testing.assert_array_equal(store.jets().history.d_ij, history.d_ij)
    assert (store.manifest.algorithm, store.manifest.R) == ("antikt", 0.4)


def test_a_single_shard_is_mapped_not_copied(tmp_path, make_jets):
    store = write(tmp_path / "s", make_jets(COUNTS * 50, classes=("qcd", "top")))
    before = pa.total_allocated_bytes()
    jets = store.jets()
    assert pa.total_allocated_bytes() == before
    arrays = [jets.p4, jets.offsets, jets.labels, jets.history.order, jets.history.join, jets.history.d_ij]
    arrays += [store.jets(7).p4, store.jets(7).history.order]
    assert not any(array.flags.owndata or array.flags.writeable for array in arrays)
    maps = Path("/proc/self/maps")
    if maps.exists():
        spans = [
            tuple(int(bound, 16) for bound in line.split()[0].split("-"))
            for line in maps.read_text().splitlines()
            if line.endswith("shard-00000.arrow")
        ]
        for array in arrays:
            assert any(first <= array.ctypes.data < last for first, last in spans)


def test_others_can_read_a_shard(tmp_path, make_jets):
    jets = make_jets(COUNTS, classes=("qcd", "top"))
    write(tmp_path / "s", jets)
    file = tmp_path / "s" / "shard-00000.arrow"

    array = ak.from_feather(file)
    assert str(array.type) == (
        "8 * {p4: var * 4 * float32, order: var * int32, join: var * int32, d_ij: var * float32, label: int64}"
    )
    assert ak.to_numpy(ak.flatten(array.p4)).tobytes() == jets.p4.tobytes()

    frame = pd.read_feather(file)
    np.testing.assert_array_equal(frame["label"], jets.labels)
    np.testing.assert_array_equal(np.stack(frame["p4"][2]), jets[2])

    note = json.loads(feather.read_table(file).schema.metadata[b"jetrep"])
    assert note["classes"] == ["qcd", "top"]
    assert note["clustering"] == {"algorithm": "kt", "R": 0.8}


def test_the_content_hash_knows_jets_classes_and_clustering_but_not_the_date(tmp_path, make_jets):
    jets = make_jets(COUNTS, classes=("qcd", "top"))
    first = write(tmp_path / "a", jets)
    assert write(tmp_path / "b", jets).content_hash == first.content_hash
    others = [
        write(tmp_path / "c", jets[:-1]),
        write(tmp_path / "d", jets.with_labels(jets.labels, ("w", "z"))),
        write(tmp_path / "e", jets.with_labels(1 - jets.labels, jets.classes)),
        write(tmp_path / "f", jets, algorithm="cambridge"),
    ]
    assert len({first.content_hash, *(store.content_hash for store in others)}) == 5


def test_the_manifest_counts(tmp_path, make_jets):
    jets = make_jets(COUNTS, classes=("qcd", "top"))
    with StoreWriter(tmp_path / "s", classes=jets.classes, provenance={"from": "here"}, jets_per_shard=3) as writer:
        writer.write(jets)
        writer.drop("empty", 2)
        writer.drop("empty", 1)
        writer.drop("duplicate", 0)
    manifest = Store(tmp_path / "s").manifest
    assert (manifest.jets, manifest.constituents) == (len(COUNTS), sum(COUNTS))
    assert manifest.label_counts == {"qcd": int((jets.labels == 0).sum()), "top": int((jets.labels == 1).sum())}
    assert manifest.dropped == {"empty": 3}
    assert manifest.provenance == {"from": "here"}
    assert [shard.jets for shard in manifest.shards] == [3, 3, 2]
    assert json.loads((tmp_path / "s" / MANIFEST).read_text())["schema"] == SCHEMA


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda jets: jets.with_labels(None), "no labels"),
        (lambda jets: jets.with_labels(jets.labels, ("a", "b")), "classes a, b"),
        (
            lambda jets: Jets(
                np.where(np.arange(len(jets.p4))[:, None] == 40, np.nan, jets.p4),
                jets.offsets,
                jets.labels,
                jets.classes,
            ),
            "jet 4, field 'p4'",
        ),
        (
            lambda jets: Jets(
                jets.p4, np.insert(jets.offsets, 3, jets.offsets[3]), np.append(jets.labels, 0), jets.classes
            ),
            "jet 3: the jet has no constituents",
        ),
    ],
)
def test_jets_that_a_store_cannot_promise_are_refused(tmp_path, make_jets, spoil, words):
    jets = make_jets(COUNTS, classes=("qcd", "top"))
    writer = StoreWriter(tmp_path / "s", classes=jets.classes, provenance={})
    with writer:
        writer.write(jets)
        with pytest.raises(InputError, match=words):
            writer.write(spoil(jets))
    assert len(Store(tmp_path / "s")) == len(jets)


def test_a_refused_jet_ends_the_writer_without_a_store(tmp_path, make_jets):
    with pytest.raises(InputError, match="no labels"):
        write(tmp_path / "s", make_jets(COUNTS), classes=("qcd",))
    assert list(tmp_path.iterdir()) == []


def test_jets_of_more_than_a_thousand_constituents(tmp_path, make_jets):
    jets = make_jets((1, 2_500, 2))
    store = write(tmp_path / "s", jets)
    store.verify()
    assert_same(store.jets(), jets)
