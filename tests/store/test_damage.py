"""Whatever happens to the files of a store, the reader says so in one line, and never crashes or guesses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.store import Store, StoreWriter
from jetrep.store.manifest import MANIFEST, SCHEMA, Manifest, Shard, content_hash, file_hash
from jetrep.store.shard import read_shard, write_shard


@pytest.fixture
def store(tmp_path, make_jets) -> Path:
    jets = make_jets([4, 1, 9, 30, 2, 6], classes=("qcd", "top"))
    with StoreWriter(tmp_path / "s", classes=jets.classes, provenance={}, jets_per_shard=4) as writer:
        writer.write(jets)
    return tmp_path / "s"


def edit(store: Path, change) -> None:
    content = json.loads((store / MANIFEST).read_text())
    change(content)
    (store / MANIFEST).write_text(json.dumps(content))


def read_all(store: Path) -> None:
    opened = Store(store)
    opened.jets()
    opened.verify()


def complaint_about(store: Path) -> str | None:
    try:
        read_all(store)
    except InputError as problem:
        return str(problem)
    return None


def test_newer_schema(store):
    edit(store, lambda m: m.update(schema=SCHEMA + 2, surprise=1))
    with pytest.raises(
        InputError, match=rf"newer jetrep \(schema {SCHEMA + 2} > {SCHEMA}\); upgrade jetrep or prepare again"
    ):
        Store(store)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(jets=7), "counts of jets disagree"),
        (lambda m: m.update(constituents=1), "counts of constituents disagree"),
        (lambda m: m["label_counts"].update(top=0), "counts of jets by label disagree"),
        (lambda m: m.update(classes=["top", "qcd"]), "disagree"),
        (lambda m: m["clustering"].update(algorithm="antikt"), "content hash disagrees"),
        (lambda m: m["shards"][0].update(hash="0" * 32), "content hash disagrees"),
        (lambda m: m["shards"][0].update(file="../../etc/passwd"), "damaged"),
        (lambda m: m.pop("shards"), "damaged"),
        (lambda m: m.update(jets="6"), "jets is '6', not a count"),
        (lambda m: m.update(shards=[]), "disagree"),
        (lambda m: m.update(schema="1"), "schema version"),
        (lambda m: m.update(format="zip"), "does not describe"),
    ],
)
def test_manifests_that_contradict_themselves(store, change, words):
    edit(store, change)
    with pytest.raises(InputError, match=words):
        Store(store)


def test_no_store(tmp_path, store):
    with pytest.raises(InputError, match="does not exist"):
        Store(tmp_path / "nowhere")
    (store / MANIFEST).unlink()
    with pytest.raises(InputError, match="has no manifest"):
        Store(store)
    with pytest.raises(InputError, match="has no manifest"):
        Store(store / "shard-00000.arrow")
    (store / MANIFEST).write_bytes(b"\xff\xfe{")
    with pytest.raises(InputError, match="no valid JSON"):
        Store(store)


def test_missing_and_truncated_shards(store):
    shard = store / "shard-00001.arrow"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"shard-00001.arrow: the shard is truncated \(\d+ of \d+ bytes\)"):
        Store(store)
    shard.write_bytes(content + b"\0")
    with pytest.raises(InputError, match="damaged"):
        Store(store)
    shard.unlink()
    with pytest.raises(InputError, match="missing"):
        Store(store)


def test_a_flipped_bit_is_found_on_first_use(store):
    shard = store / "shard-00000.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    opened = Store(store)
    shard.write_bytes(content)
    with pytest.raises(InputError, match="hash disagrees"):
        opened.jets(1)
    next(Store(store, check=False).shards())
    with pytest.raises(InputError, match="hash disagrees"):
        Store(store, check=False).verify()


def test_a_name_that_is_no_text(tmp_path, make_jets):
    write_shard(tmp_path / "s.arrow", make_jets([3, 4]).clustered(), algorithm="kt", R=0.8)
    content = (tmp_path / "s.arrow").read_bytes()
    (tmp_path / "s.arrow").write_bytes(content.replace(b"join", b"\xffoin"))
    with pytest.raises(InputError, match="truncated or damaged"):
        read_shard(tmp_path / "s.arrow", ())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_files_never_crash(store, data):
    """Also where the hash was not checked, or was made to fit the damage: then reading may succeed, or say why not."""
    file = store / data.draw(st.sampled_from([MANIFEST, "shard-00000.arrow"]))
    original = {name: (store / name).read_bytes() for name in (MANIFEST, "shard-00000.arrow")}
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        # Arrow keeps its structure at both ends of the file.
        place = data.draw(st.one_of(st.integers(0, 1500), st.integers(len(content) - 1500, len(content) - 1)))
        content[place % len(content)] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    try:
        file.write_bytes(content)
        if file.name != MANIFEST and content != original[file.name]:
            with pytest.raises(InputError):
                read_all(store)
            edit(store, lambda m: adopt(m, file))
        if (complaint := complaint_about(store)) is not None:
            assert str(store) in complaint
            assert "\n" not in complaint
    finally:
        for name, before in original.items():
            (store / name).write_bytes(before)


def rewrite(file: Path, jets: Jets) -> None:
    """Replace a shard, not in place: the jets may be views of it."""
    write_shard(file.with_suffix(".new"), jets, algorithm="kt", R=0.8)
    file.with_suffix(".new").replace(file)


def adopt(manifest: dict, file: Path) -> None:
    """Make the manifest agree with a damaged file, as far as hashes and sizes go."""
    manifest["shards"][0].update(bytes=file.stat().st_size, hash=file_hash(file))
    refresh(manifest)


def refresh(manifest: dict) -> None:
    shards = [Shard(**shard) for shard in manifest["shards"]]
    clustering = manifest["clustering"]
    manifest["content_hash"] = content_hash(shards, manifest["classes"], clustering["algorithm"], clustering["R"])


@pytest.mark.parametrize("column", ["order", "join"])
def test_verify_finds_histories_that_are_none(store, column):
    jets = next(Store(store).shards())
    values = getattr(jets.history, column).copy()
    values[jets.offsets[2] + 1] = values[jets.offsets[2] + 2]
    spoilt = replace(jets, history=replace(jets.history, **{column: values}))
    file = store / "shard-00000.arrow"
    rewrite(file, spoilt)
    edit(store, lambda m: adopt(m, file))
    with pytest.raises(InputError, match=r"shard-00000.arrow, jet 2: not a jet with a merge history"):
        Store(store).verify()


def test_a_shard_with_other_counts_than_stated(store):
    jets = next(Store(store).shards())
    file = store / "shard-00000.arrow"
    rewrite(file, jets[:-1])
    edit(store, lambda m: adopt(m, file))
    with pytest.raises(InputError, match=r"3 jets with 14 constituents, the manifest says 4 with 44"):
        Store(store).jets()
    assert Manifest.load(store).jets == 6
