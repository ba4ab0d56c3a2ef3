"""Files that cannot be read, and jets that are unusual but none the worse for it."""

import contextlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from commands import PRETRAINING, TRAINING, jetrep, logged, save

from jetrep.jets import Jets
from jetrep.store import Store
from prong_jets import prong_jets
from random_jets import random_jets


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("truncated.npz", ["truncated.npz: is truncated, damaged, or no .npz archive", "save it again"]),
        ("text.npz", ["text.npz: is truncated, damaged"]),
        ("schema.npz", ["schema.npz, field 'p4': has no array 'p4', only a, b"]),
        ("shape.npz", ["shape.npz, field 'p4': has shape (64, 3)", "E, px, py, pz"]),
        ("counts.npz", ["counts.npz, field 'n'", "p4 has"]),
        ("nan.npz", ["nan.npz, jet 1, field 'py': constituent 2 has py = nan", "--drop-invalid"]),
        ("infinite.npz", ["infinite.npz, jet 0, field 'E': constituent 1 has E = inf"]),
        ("labels.npz", ["labels.npz, jet 3, field 'y': label 0.5 is no whole number"]),
        ("text.parquet", ["text.parquet"]),
        ("truncated.parquet", ["truncated.parquet"]),
        ("jets.root", ["jets.root: '.root' is no known kind of file"]),
        ("nowhere.npz", ["nowhere.npz: does not exist"]),
        ("other", ["other: is a folder"]),
    ],
)
def test_files(refused, name, words):
    jets = prong_jets(64)
    change = jets.p4.copy()
    if name == "truncated.npz":
        Path(name).write_bytes(Path("good.npz").read_bytes()[:3000])
    elif name.startswith("text") or name == "jets.root":
        Path(name).write_text("E px py pz")
    elif name == "schema.npz":
        np.savez(name, a=1, b=2)
    elif name == "shape.npz":
        np.savez(name, p4=np.ones((64, 3)), n=np.ones(64, int))
    elif name == "counts.npz":
        save(name, jets, n=jets.counts + 1)
    elif name == "nan.npz":
        change[jets.offsets[1] + 2, 2] = np.nan
        save(name, jets, p4=change)
    elif name == "infinite.npz":
        change[1, 0] = np.inf
        save(name, jets, p4=change)
    elif name == "labels.npz":
        save(name, jets, y=np.where(np.arange(64) == 3, 0.5, jets.labels))
    elif name == "truncated.parquet":
        assert jetrep("embed pretrained --on good --out whole.parquet --quiet") == 0
        Path(name).write_bytes(Path("whole.parquet").read_bytes()[:2000])
    refused(f"prepare arrays {name} --out new", *words)


def test_top_tagging_files(refused):
    refused("prepare toptagging good.npz --out new", "good.npz, field 'ttv': has no array 'ttv'")
    Path("table.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    refused("prepare toptagging table.h5 --out new", "table.h5")


def test_labels_that_are_not_there(refused):
    refused("prepare arrays good.npz --label-column flavour --out new", "good.npz, field 'flavour'", "--unlabeled")
    refused("prepare arrays unlabelled.npz --classes qcd top --out new", "unlabelled.npz", "leave out --classes")
    refused("prepare arrays unlabelled.npz --select qcd --out new", "field 'select'", "unlabelled")


@pytest.fixture(scope="session")
def odd(world):
    """A store of jets with 1, 2, 3 and more than 1,000 constituents; empty ones stood in the file."""
    counts = np.array([0, 1, 2, 1500, 3, 1, 2, 1, 0, 1200, *[1] * 10, *[2] * 10, *[20] * 10])
    jets = random_jets(counts.tolist())
    jets = Jets(jets.p4, jets.offsets, np.arange(len(counts)) // 2 % 2, ("qcd", "top"))
    with contextlib.chdir(world):
        save("odd.npz", jets)
        assert jetrep("prepare arrays odd.npz --classes qcd top --out odd --quiet") == 0
        assert jetrep(f"pretrain odd --out odd-run {PRETRAINING} --engine.log_every 1") == 0
    return "odd"


def test_empty_jets_are_counted(odd):
    manifest = Store(Path(odd)).manifest
    assert manifest.dropped == {"empty": 2}
    assert manifest.jets == 38


@pytest.mark.parametrize("view", ["", "--n-subjets 4", "--max-particles 30"])
def test_short_and_long_jets_go_all_the_way(odd, view):
    assert np.isfinite(logged("odd-run", "loss")).all()
    run = f"odd-tagger{view}".replace(" ", "-")
    assert jetrep(f"finetune {odd} --out {run} --from odd-run {TRAINING} {view} --engine.log_every 1") == 0
    assert len(logged(run, "loss")) == 4
    assert np.isfinite(logged(run, "loss")).all()
    assert jetrep(f"evaluate {run} --on {odd} --n-bootstrap 2 --no-projection --quiet") == 0
    assert jetrep(f"embed {run} --on {odd} --out {run}.parquet --quiet") == 0
    table = pq.read_table(f"{run}.parquet").to_pandas()
    assert len(table) == 38
    assert np.isfinite(np.stack(table["embedding"])).all()
    assert table["n_constituents"].max() == 1500
    np.testing.assert_allclose(table["score_qcd"] + table["score_top"], 1, rtol=1e-5)


@pytest.mark.parametrize("n", [1, 2])
def test_batches_of_the_shortest_jets_alone(n):
    jets = random_jets([n] * 32).with_labels(np.arange(32) % 2, ("qcd", "top"))
    save(f"short-{n}.npz", jets)
    assert jetrep(f"prepare arrays short-{n}.npz --classes qcd top --out short-{n} --quiet") == 0
    assert jetrep(f"pretrain short-{n} --out short-run-{n} {PRETRAINING} --engine.log_every 1") == 0
    assert jetrep(f"finetune short-{n} --out short-tagger-{n} {TRAINING} --engine.log_every 1") == 0
    assert np.isfinite(logged(f"short-run-{n}", "loss") + logged(f"short-tagger-{n}", "loss")).all()
