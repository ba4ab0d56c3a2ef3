"""The verb `inspect`: what it prints is what is in the store."""

from dataclasses import replace

import numpy as np
import pytest

from jetrep.errors import InputError
from jetrep.jets import Jets
from jetrep.physics import observables
from jetrep.store import StoreWriter
from jetrep.store.manifest import SCHEMA
from jetrep.studies.inspect import inspect


@pytest.fixture
def jets() -> Jets:
    rng = np.random.default_rng(5)
    counts = rng.integers(1, 40, 300)
    momentum = rng.normal(0, 10, (counts.sum(), 3))
    p4 = np.hstack([np.linalg.norm(momentum, axis=1, keepdims=True), momentum]).astype(np.float32)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return Jets(p4, offsets, np.arange(300) // 100, ("qcd", "top", "w"))


def write(out, jets: Jets, **settings):
    with StoreWriter(out, classes=jets.classes, provenance={"command": "by hand"}, **settings) as writer:
        writer.write(jets)
        writer.drop("empty", 7)
    return out


def test_what_is_printed(tmp_path, jets, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    jets = replace(jets, measured={"charge": np.zeros(len(jets.p4), np.int8)}, observers={"weight": np.ones(300)})
    result = inspect(write(tmp_path / "s", jets, jets_per_shard=90), out=tmp_path / "s.png")
    printed = " ".join(capsys.readouterr().out.split())
    for words in (
        f"300, with {len(jets.p4):,} constituents",
        "class qcd 100 jets (33.3%)",
        "dropped: empty 7",
        "4 shards",
        f"schema {SCHEMA}",
        "command by hand",
        "measured charge",
        "observers weight",
        result["manifest"].content_hash,
        "Jet pT [GeV]",
        "Jet mass [GeV]",
        "Constituents",
        f"median {np.median(observables.mass(jets)[:100]):.4g}",
        "300 of 300 jets drawn",
    ):
        assert words in printed
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    np.testing.assert_array_equal(result["observables"]["label"], jets.labels)
    # Constituents are stored in another order, so sums may round differently.
    np.testing.assert_allclose(result["observables"]["pt"], observables.pt(jets), rtol=1e-9)
    np.testing.assert_array_equal(result["observables"]["multiplicity"], jets.counts)


@pytest.mark.parametrize("max_jets", [1, 7, 100, 299])
def test_thinning_is_even_over_shards_and_classes(tmp_path, jets, max_jets, capsys):
    result = inspect(write(tmp_path / "s", jets, jets_per_shard=37), max_jets=max_jets)
    every = -(-300 // max_jets)
    np.testing.assert_array_equal(result["observables"]["multiplicity"], jets.counts[::every])
    assert f"{len(jets.counts[::every])} of 300 jets drawn" in capsys.readouterr().out


def test_an_unlabelled_store(tmp_path, jets, capsys):
    result = inspect(write(tmp_path / "s", jets.with_labels(None)))
    assert "label" not in result["observables"]
    assert "none, the jets are unlabelled" in capsys.readouterr().out


def test_of_many_classes_the_largest_are_drawn_and_the_others_together(tmp_path, jets, capsys):
    names = tuple(f"c{i}" for i in range(40))
    labels = np.concatenate([np.arange(100) % 40, np.repeat(np.arange(5), 40)])
    inspect(write(tmp_path / "s", jets.with_labels(labels, names)))
    printed = capsys.readouterr().out
    assert "28 more classes" in printed
    histogram = printed.split("Constituents")[-1]
    assert [line.split()[0] for line in histogram.splitlines() if "median" in line] == [
        *("c0", "c1", "c2", "c3", "c4", "c5", "c6"),
        "others",
    ]


def test_a_damaged_store_is_not_drawn(tmp_path, jets):
    write(tmp_path / "s", jets)
    shard = tmp_path / "s" / "shard-00000.arrow"
    content = bytearray(shard.read_bytes())
    content[5_000] ^= 1
    shard.write_bytes(content)
    with pytest.raises(InputError, match="hash disagrees"):
        inspect(tmp_path / "s")
    with pytest.raises(InputError, match="max_jets"):
        inspect(tmp_path / "s", max_jets=0)
