"""The scripts in examples/ do what they promise, on small data."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jetrep.encoders.transformer import TransformerConfig
from jetrep.model import JetModel, ModelConfig
from jetrep.store.writer import StoreWriter
from jetrep.training.checkpoint import load_model, save_model
from prong_jets import prong_jets

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")


def test_own_jets(tmp_path, monkeypatch, capsys):
    jets = prong_jets(60)
    # The first jet occurs twice: nothing is nearer to it than its copy.
    p4, counts = np.concatenate([jets.p4, jets[0]]), np.append(jets.counts, jets.counts[0])
    np.savez(tmp_path / "jets.npz", p4=p4, n=counts, y=np.append(jets.truth, jets.truth[0]))
    encoder = TransformerConfig(width=16, depth=1, heads=2, mlp_hidden=16, n_registers=1, position="none")
    save_model(JetModel(ModelConfig(encoder=encoder)), tmp_path / "run", provenance={})
    run(monkeypatch, "own_jets.py", tmp_path / "jets.npz", "--run", tmp_path / "run", "--out", tmp_path / "out")
    printed = capsys.readouterr().out
    assert "61 jets, embeddings of 32 dimensions" in printed
    rows = printed[printed.index("jet 0 and") :].splitlines()[2:4]
    assert {row.split()[0] for row in rows} == {"0", "60"}
    assert [row.split()[-1] for row in rows] == ["1.00", "1.00"]
    table = pd.read_parquet(tmp_path / "out" / "embeddings.parquet")
    np.testing.assert_array_equal(table["n_constituents"], counts)
    assert table["class"].tolist() == [str(label) for label in np.append(jets.truth, jets.truth[0])]


def test_own_loop(tmp_path, monkeypatch, capsys):
    jets = prong_jets(48)
    with StoreWriter(tmp_path / "store", classes=jets.classes, provenance={}) as writer:
        writer.write(jets)
    options = (tmp_path / "store", "--batch-size", 16, "--out")
    run(monkeypatch, "own_loop.py", *options, tmp_path / "untrained", "--steps", 0)
    run(monkeypatch, "own_loop.py", *options, tmp_path / "run", "--steps", 10)
    assert "feature_rank" in capsys.readouterr().out
    before, after = (load_model(tmp_path / name).embed(jets) for name in ("untrained", "run"))
    assert after.shape == (48, 64)
    assert np.isfinite(after).all()
    # What is kept is the teacher, and it has followed the student.
    assert np.abs(after - before).max() > 1e-3
