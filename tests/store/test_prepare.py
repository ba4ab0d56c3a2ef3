"""The verb `prepare`: no jet is lost, bad input is named, and nothing half-written remains."""

import importlib
import inspect
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.sources.chunks import Chunk
from jetrep.sources.registry import SOURCES
from jetrep.store import Store, StoreWriter, build
from jetrep.store import prepare as prepare_module
from jetrep.store.manifest import file_hash
from jetrep.store.parts import make_part, split_rows
from jetrep.store.prepare import prepare


def save(file: Path, jets, **change) -> Path:
    arrays = {"p4": jets.p4, "n": jets.counts}
    if jets.labels is not None:
        arrays["y"] = jets.labels
    np.savez(file, **{**arrays, **change})
    return file


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=30),
    bad=st.sets(st.integers(0, 29)),
    minimum=st.integers(1, 5),
    max_particles=st.one_of(st.none(), st.integers(5, 8)),
    max_jets=st.one_of(st.none(), st.integers(1, 20)),
    select=st.sampled_from([None, ["qcd"], ["top", "w"]]),
    unlabeled=st.booleans(),
)
def test_read_is_kept_plus_dropped(
    tmp_path, make_jets, counts, bad, minimum, max_particles, max_jets, select, unlabeled
):
    """Against the plain definition, jet by jet."""
    classes = ["qcd", "top", "w"]
    jets = make_jets(counts, classes=tuple(classes))
    p4 = jets.p4.copy()
    bad = {jet for jet in bad if jet < len(counts) and counts[jet]}
    for jet in bad:
        p4[jets.offsets[jet + 1] - 1, jet % 4] = [np.nan, np.inf, -np.inf][jet % 3]
    kept, dropped = [], {}
    for jet, n in enumerate(counts):
        if max_jets is not None and len(kept) == max_jets:
            break
        reason = (
            "other class" if select and classes[jets.labels[jet]] not in select
            else "invalid" if jet in bad
            else "empty" if n == 0
            else "too few constituents" if n < minimum
            else None
        )  # fmt: skip
        if reason is None:
            kept.append(jet)
        else:
            dropped[reason] = dropped.get(reason, 0) + 1
    file = save(tmp_path / "a.npz", jets, p4=p4)
    how = {
        "classes": classes,
        "min_particles": minimum,
        "max_particles": max_particles,
        "max_jets": max_jets,
        "select": select,
        "unlabeled": unlabeled,
        "drop_invalid": True,
        "overwrite": True,
        "quiet": True,
    }
    if not kept:
        with pytest.raises(InputError, match="no jets to store"):
            prepare("arrays", [file], out=tmp_path / "s", **how)
        return
    store = prepare("arrays", [file], out=tmp_path / "s", **how)
    assert store.manifest.dropped == dropped
    expected = jets[np.array(kept)]
    if max_particles is not None:
        expected = expected.leading(max_particles)
    read = store.jets()
    assert read.p4.tobytes() == expected.p4.tobytes()
    np.testing.assert_array_equal(read.counts, expected.counts)
    if unlabeled:
        assert read.labels is None
    else:
        np.testing.assert_array_equal(read.labels, expected.labels)


@pytest.mark.parametrize(
    ("component", "value", "words"),
    [
        (2, np.nan, "jet 2, field 'py': constituent 1 has py = nan; .*--drop-invalid"),
        (0, np.inf, "jet 2, field 'E': constituent 1 has E = inf"),
        (0, -3, "jet 2, field 'E': constituent 1 has the energy -3.0 GeV; give the components in the order E, px"),
    ],
)
def test_an_impossible_momentum_is_named(tmp_path, make_jets, component, value, words):
    jets = make_jets([3, 0, 4, 4])
    p4 = jets.p4.copy()
    p4[4, component] = value
    good, bad = save(tmp_path / "good.npz", jets), save(tmp_path / "bad.npz", jets, p4=p4)
    with pytest.raises(InputError, match=f"bad.npz, {words}"):
        prepare("arrays", [good, bad], out=tmp_path / "s", quiet=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.npz", "good.npz"]
    # Jets behind the last one that is asked for do not matter.
    assert len(prepare("arrays", [good, bad], out=tmp_path / "s", max_jets=4, quiet=True)) == 4


def test_the_manifest_tells_where_the_jets_come_from(tmp_path, make_jets):
    jets = make_jets([3, 0, 4], classes=("a", "b"))
    file = save(tmp_path / "mine.npz", jets)
    store = prepare("arrays", [file], out=tmp_path / "s", algorithm="cambridge", R=0.4, quiet=True)
    told = store.manifest.provenance
    assert told["files"] == [{"file": "mine.npz", "bytes": file.stat().st_size, "hash": file_hash(file)}]
    assert told["settings"]["algorithm"] == store.manifest.algorithm == "cambridge"
    assert told["settings"]["min_particles"] == 1
    assert {"python", "jetrep", "numpy"} <= set(told["versions"])


def test_the_summary_names_what_was_dropped(tmp_path, make_jets, capsys):
    prepare("arrays", [save(tmp_path / "a.npz", make_jets([3, 0, 0, 4], classes=("a", "b")))], out=tmp_path / "s")
    printed = " ".join(capsys.readouterr().out.split())
    assert "read 4 jets" in printed
    assert "kept 2 jets, 7 constituents" in printed
    assert "dropped: empty 2 jets" in printed
    prepare("arrays", [tmp_path / "a.npz"], out=tmp_path / "t", quiet=True)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"min_particles": 0}, "field 'min_particles'"),
        ({"max_particles": 2, "min_particles": 3}, "field 'max_particles': is 2, below min_particles"),
        ({"max_jets": 0}, "field 'max_jets'"),
        ({"select": ["higgs"]}, "field 'select': no class is called 'higgs', only 0, 1"),
        ({"select": ["0"], "label_column": "flavour"}, "has no labels 'flavour'"),
        ({"classes": ["a"]}, "field 'y': label 1 is outside of the 1 classes"),
        ({"classes": ["a", "a"]}, "field 'classes': two classes have the same name"),
        ({"duplicates": Path("x.npz")}, "field 'duplicates'"),
        ({"jets_per_shard": 0}, "field 'jets_per_shard'"),
        ({"R": -1.0}, "field 'R'"),
        ({"source": "toptagging", "classes": ["a", "b"]}, "field 'classes': is no setting of 'toptagging' files"),
        ({"source": "toptagging", "label_column": "y"}, "field 'label_column'"),
        ({"source": "jetclass9"}, "no source is called 'jetclass9'"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, make_jets, settings, words):
    jets = make_jets([3, 4, 5, 3]).with_labels(np.array([0, 1, 0, 1]))
    file = save(tmp_path / "a.npz", jets)
    with pytest.raises(InputError, match=words):
        prepare(**{"source": "arrays", "files": [file], "out": tmp_path / "s", "quiet": True, **settings})
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_selecting_from_unlabelled_jets(tmp_path, make_jets):
    file = save(tmp_path / "a.npz", make_jets([3, 4]))
    with pytest.raises(InputError, match="none, the jets are unlabelled"):
        prepare("arrays", [file], out=tmp_path / "s", select=["qcd"], quiet=True)


class Threads:
    """A crew whose parts are finished in any order."""

    place, reports = 6, False

    def __init__(self):
        self.pool = ThreadPoolExecutor(3)

    def submit(self, job, part, limit):
        return self.pool.submit(make_part, job, part, limit)

    def revive(self):
        raise AssertionError


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.lists(st.lists(st.integers(0, 5), max_size=14), min_size=1, max_size=4),
    bad=st.one_of(st.none(), st.integers(0, 40)),
    max_jets=st.one_of(st.none(), st.integers(1, 30)),
    jets_per_shard=st.integers(1, 9),
)
def test_parts_in_any_order_give_the_store_of_one_after_the_other(
    tmp_path, make_jets, files, bad, max_jets, jets_per_shard
):
    """The first jets are kept, those behind do not matter, and the first error is the one that is told."""
    counts = [n for file in files for n in file]
    names, start = [], 0
    for number, file in enumerate(files):
        jets = make_jets(file, seed=number)
        p4 = jets.p4.copy()
        if bad is not None and start <= bad < start + len(file) and file[bad - start]:
            p4[jets.offsets[bad - start], 1] = np.nan
        names.append(save(tmp_path / f"{number}.npz", jets, p4=p4))
        start += len(file)
    how = {"max_jets": max_jets, "jets_per_shard": jets_per_shard, "quiet": True, "overwrite": True}

    def outcome(**more):
        try:
            store = prepare("arrays", names, out=tmp_path / "s", **how, **more)
        except InputError as problem:
            return str(problem)
        store.verify()
        return store.content_hash, store.manifest.dropped, store.manifest.provenance, store.manifest.shards

    alone = outcome(workers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_module, "processes", lambda number: nullcontext(Threads()))
        assert outcome(workers=2) == alone
    if isinstance(alone, str):
        return
    kept = [jet for jet, n in enumerate(counts) if n][:max_jets]
    store = Store(tmp_path / "s")
    assert store.jets().counts.tolist() == [counts[jet] for jet in kept]
    assert bad not in kept
    last = kept[-1] + 1 if max_jets is not None and len(kept) == max_jets else len(counts)
    assert sum(store.manifest.dropped.values()) == sum(n == 0 for n in counts[:last])


@pytest.mark.parametrize(
    ("rows", "size", "expected"),
    [
        ([], 3, []),
        ([0, 0], 3, []),
        ([7], 3, [((0, 0, 3),), ((0, 3, 6),), ((0, 6, 7),)]),
        ([2, 0, 3, 1], 3, [((0, 0, 2), (2, 0, 1)), ((2, 1, 3), (3, 0, 1))]),
        ([3, 3], 3, [((0, 0, 3),), ((1, 0, 3),)]),
    ],
)
def test_rows_are_split_into_parts(rows, size, expected):
    assert [part.spans for part in split_rows(rows, size)] == expected


def test_processes_give_the_same_store(tmp_path, make_jets):
    rng = np.random.default_rng(1)
    files = [
        save(tmp_path / f"{i}.npz", make_jets(rng.integers(0, 20, 300), seed=i, classes=("a", "b"))) for i in range(4)
    ]
    for more in ({}, {"max_jets": 500}):
        stores = [
            prepare("arrays", files, out=tmp_path / f"s{n}", workers=n, jets_per_shard=130, overwrite=True, quiet=True,
                    **more)
            for n in (1, 2)
        ]  # fmt: skip
        assert stores[0].content_hash == stores[1].content_hash
        assert stores[0].manifest.provenance == stores[1].manifest.provenance
        assert stores[0].manifest.shards == stores[1].manifest.shards


def test_jets_that_do_not_fit_into_memory_wait_on_disk(tmp_path, make_jets, monkeypatch):
    jets = make_jets(np.random.default_rng(0).integers(1, 30, 60), classes=("a", "b"))
    columns = {"measured": {"charge": np.arange(len(jets.p4), dtype=np.int8)}}
    columns["observers"] = {"weight": np.arange(len(jets)) / 7}
    jets = replace(jets, **columns)

    def written(out):
        with StoreWriter(out, classes=jets.classes, provenance={}, jets_per_shard=40) as writer:
            for start in range(0, 60, 7):
                writer.write(jets[start : start + 7])
        return Store(out)

    before = written(tmp_path / "a")
    monkeypatch.setattr(build, "SPILL", 3000)
    spilt = []
    monkeypatch.setattr(build._Pile, "_spill", lambda pile, real=build._Pile._spill: (spilt.append(1), real(pile)))
    assert written(tmp_path / "b").content_hash == before.content_hash
    assert len(spilt) > 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


class Events:
    """Rows that hold any number of jets, as files of events do: row i of file f holds i % 3 jets of f + 1 particles."""

    classes = ()

    def __init__(self, files, *, labels=True):
        self.files, self.rows = files, [len(np.load(file)) for file in files]

    def read(self, file, start, stop):
        for row in range(start, stop, 4):
            n = sum(i % 3 for i in range(row, min(row + 4, stop)))
            p4 = np.tile(np.float32([[5, 3, 0, 4]]), (n * (file + 1), 1))
            column = np.full(len(p4), file, self.types[file] if self.types else np.int8)
            jets = Jets(p4, np.arange(n + 1) * (file + 1), measured={"charge": column} if self.measured[file] else {})
            yield Chunk(jets, self.files[file], row)

    types = None
    measured = (True, True, True)


@pytest.fixture
def events(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "open_source", lambda name, files, labels, **_: Events(files, labels=labels))
    for number, rows in enumerate((10, 0, 9)):
        np.save(tmp_path / f"{number}.npy", np.zeros(rows))
    return [tmp_path / f"{number}.npy" for number in range(3)]


def test_a_row_may_hold_any_number_of_jets(tmp_path, events, capsys):
    store = prepare("arrays", events, out=tmp_path / "s", jets_per_shard=5)
    store.verify()
    expected = [1] * sum(i % 3 for i in range(10)) + [3] * sum(i % 3 for i in range(9))
    assert store.jets().counts.tolist() == expected
    assert f"read {len(expected)} jets" in " ".join(capsys.readouterr().out.split())
    assert [shard.origin for shard in store.manifest.shards] == [
        ((0, 0, 5),), ((0, 5, 10),), ((2, 0, 5),), ((2, 5, 9),)
    ]  # fmt: skip
    assert store.manifest.measured == {"charge": "int8"}
    assert store.manifest.observers == {}
    assert [file["file"] for file in store.manifest.provenance["files"]] == ["0.npy", "1.npy", "2.npy"]


@pytest.mark.parametrize("jets_per_shard", [5, 100])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"measured": (True, True, False)}, "2.npy, field 'charge': the measured column is missing here and int8 in"),
        ({"types": (np.int8, np.int8, np.float32)}, "2.npy, field 'charge': the measured column is float32 here"),
    ],
)
def test_files_of_different_schemas(tmp_path, events, monkeypatch, change, words, jets_per_shard):
    for name, value in change.items():
        monkeypatch.setattr(Events, name, value)
    with pytest.raises(InputError, match=words):
        prepare("arrays", events, out=tmp_path / "s", jets_per_shard=jets_per_shard, quiet=True)
    assert not (tmp_path / "s").exists()


def test_adding_files(tmp_path, make_jets, capsys):
    jets = [make_jets([4] * 10 + [0], seed=i, classes=("a", "b")) for i in range(3)]
    files = [save(tmp_path / f"{i}.npz", jets[i]) for i in range(3)]
    how = {"out": tmp_path / "s", "classes": ["a", "b"], "jets_per_shard": 7}
    prepare("arrays", files[:1], **how)
    before = Store(tmp_path / "s").jets()
    capsys.readouterr()
    store = prepare("arrays", files, **how, add=True)
    store.verify()
    assert "0.npz is in the store already" in capsys.readouterr().err
    expected = Jets.concatenate([part[:10] for part in jets])
    assert store.jets().p4.tobytes() == expected.p4.tobytes()
    np.testing.assert_array_equal(store.jets().labels, expected.labels)
    manifest = store.manifest
    assert manifest.dropped == {"empty": 3}
    assert manifest.label_counts == {"a": int((expected.labels == 0).sum()), "b": int((expected.labels == 1).sum())}
    assert [entry["file"] for entry in manifest.provenance["files"]] == ["0.npz", "1.npz", "2.npz"]
    assert [shard.origin[0] for shard in manifest.shards] == [(0, 0, 7), (0, 7, 11), (1, 0, 7), (1, 7, 11), (2, 3, 10)]
    assert [shard.file for shard in manifest.shards] == [f"shard-{i:05d}.arrow" for i in range(5)]
    assert manifest.provenance["additions"][0]["first_file"] == 1
    assert before.p4.tobytes() == jets[0][:10].p4.tobytes()  # whoever reads the store is not disturbed
    assert prepare("arrays", files, **how, add=True, quiet=True).content_hash == store.content_hash
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.npz", "1.npz", "2.npz", "s"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"R": 0.4}, "R is 0.8 there and 0.4 here"),
        ({"algorithm": "cambridge", "min_particles": 2}, "min_particles is 1 there and 2 here; algorithm is kt there"),
        ({"unlabeled": True}, "unlabeled is False there and True here; the classes are a, b there and none here"),
        ({"classes": ["a", "b", "c"]}, "the classes are a, b there and a, b, c here"),
        ({"max_jets": 5}, "field 'add': cannot be given together with max_jets"),
        ({"overwrite": True}, "field 'add': cannot be given together with overwrite"),
        ({"out": Path("nowhere")}, "nowhere: does not exist"),
    ],
)
def test_what_cannot_be_added(tmp_path, make_jets, change, words):
    files = [save(tmp_path / f"{i}.npz", make_jets([4] * 10, seed=i, classes=("a", "b"))) for i in range(2)]
    how = {"out": tmp_path / "s", "classes": ["a", "b"], "quiet": True}
    before = prepare("arrays", files[:1], **how).content_hash
    with pytest.raises(InputError, match=words):
        prepare("arrays", files, **{**how, **change}, add=True)
    assert Store(tmp_path / "s").content_hash == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.npz", "1.npz", "s"]


def test_files_of_a_downloaded_data_set(tmp_path, make_jets, monkeypatch):
    from jetrep.sources import catalog

    file = save(tmp_path / "top.npz", make_jets([4] * 5, classes=("qcd", "top")), ttv=np.zeros(5, int))
    asked = []
    monkeypatch.setattr(catalog, "cached_files", lambda name, split: asked.append((name, split)) or [file])
    store = prepare("toptagging", out=tmp_path / "s", quiet=True)
    assert prepare("toptagging", [], split="val", out=tmp_path / "t", quiet=True).content_hash == store.content_hash
    assert asked == [("toptagging", "train"), ("toptagging", "val")]
    assert store.manifest.provenance["dataset"] == {"name": "toptagging", "split": "train"}
    assert store.classes == ("qcd", "top")
    with pytest.raises(InputError, match="field 'split': belongs to downloaded data sets"):
        prepare("toptagging", [file], split="val", out=tmp_path / "u", quiet=True)
    with pytest.raises(InputError, match="field 'files': no files are given"):
        prepare("arrays", out=tmp_path / "u", quiet=True)
    with pytest.raises(InputError, match="no data set is called 'jetclass9'"):
        prepare("jetclass9", out=tmp_path / "u", quiet=True)


def test_the_help_names_every_kind_of_files():
    text = " ".join(prepare.__doc__.split())
    for name in SOURCES:
        assert re.search(rf"\b{name}\b \(|\b{name}\b,", text[text.index("kind of files") :]), name


@pytest.mark.parametrize(
    ("option", "value", "only"),
    [
        ("grouping", "7", "jetclass2"),
        ("collection", "ak4", "pfnano"),
        ("level", "generator", "mod"),
        ("puppi", False, "aspen"),
        ("seed", 3, "jetnet"),
        ("mapping", Path("map.yaml"), "mapped"),
        ("label_column", "y", "arrays"),
    ],
)
def test_options_belong_to_kinds_of_files(tmp_path, make_jets, option, value, only):
    """Each is given to the kind that knows it, and refused by others."""
    file = save(tmp_path / "a.npz", make_jets([3]))
    with pytest.raises(InputError, match=f"field '{option}': is no setting of 'toptagging' files"):
        prepare("toptagging", [file], out=tmp_path / "s", quiet=True, **{option: value})
    module, kind = SOURCES[only]
    assert option in inspect.signature(getattr(importlib.import_module(module), kind)).parameters


def test_conditions_are_passed_on(tmp_path, make_jets):
    jets = make_jets([5, 9, 2, 30, 7])
    file = save(tmp_path / "a.npz", jets)
    store = prepare("arrays", [file], out=tmp_path / "s", where=["pt > 100"], quiet=True)
    pt = np.hypot(*jets.jet_p4[:, 1:3].T)
    assert 0 < len(store) == (pt > 100).sum() < 5
    assert sum(store.manifest.dropped.values()) == 5 - len(store)


def test_real_top_tagging_jets(real_data, tmp_path):
    folder = real_data / "toptagging"
    files = [folder / "top_test_00.npz", folder / "top_test_01a.npz"]
    store = prepare(
        "toptagging", files, out=tmp_path / "s", duplicates=folder / "duplicates.npz", select=["qcd"], quiet=True
    )
    store.verify()
    manifest = Store(tmp_path / "s").manifest
    assert manifest.dropped["duplicate"] == 18
    assert manifest.jets + sum(manifest.dropped.values()) == 15_000
    assert manifest.label_counts["top"] == 0
    # The order of the file is kept, so published scores still belong to their jets.
    raw = np.load(files[0])
    first = int(np.flatnonzero(raw["y"] == 0)[0])
    assert store.jets()[0].tobytes() == raw["p4"][raw["n"][:first].sum() :][: raw["n"][first]].tobytes()
