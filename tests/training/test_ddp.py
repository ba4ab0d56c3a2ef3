"""Two processes that share each batch train the model that one process trains, masks included, and write it once."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from jetrep import cli
from jetrep.objectives.base import StepOutput
from jetrep.store.writer import StoreWriter
from jetrep.training.engine import OptimizerConfig, TrainingModule
from prong_jets import prong_jets

ENCODER = "--encoder.width 16 --encoder.depth 2 --encoder.heads 2 --encoder.mlp_hidden 16 --encoder.n_registers 1"
ENGINE = "--engine.accelerator cpu --engine.logger none --engine.log_every 1"
# With its usual ε, AdamW divides small gradients, rounding included, by themselves.
COMMON = f"{ENCODER} {ENGINE} --epochs 3 --batch-size 16 --optimizer.lr 1e-2 --optimizer.eps 1e-3"
# A teacher that follows at once shows every difference between the students.
PRETRAIN = "--objective.head.n_prototypes 32 --objective.ema 0 --objective.ema_end 0"
TWO = "--engine.devices 2 --engine.strategy ddp"


CASES = [
    ("pretrain", f"{PRETRAIN} --objective.koleo_weight 0", 1e-5),
    # Which neighbour is nearest may be decided by rounding, and where that is depends on the processor.
    ("pretrain", PRETRAIN, 0.02),
    ("finetune", "--validation 0.08 --head.dropout 0 --classes qcd top", 1e-5),
]
# Through the command line, one command after the other; Lightning starts the script once more for the second process.
SCRIPT = """
import json, sys
from jetrep.cli import main
for command in json.loads(sys.argv[1]):
    assert main(command) == 0
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "store"
    with StoreWriter(path, classes=("qcd", "top"), provenance={}) as writer:
        jets = prong_jets(100)
        # Classes of unequal weight, so that the processes' halves of a batch weigh unequally too.
        writer.write(jets[(jets.labels == 0) | (np.arange(100) < 40)])
    return path


@pytest.fixture(scope="module")
def in_two(store, tmp_path_factory):
    """The folders of what two processes have trained, case by case."""
    folder = tmp_path_factory.mktemp("two")
    outs = [folder / f"{i}" for i in range(len(CASES))]
    commands = [words(verb, store, out, f"{more} {TWO}") for (verb, more, _), out in zip(CASES, outs, strict=True)]
    (folder / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(folder / "script.py"), json.dumps(commands)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("100%") == len(CASES)  # one bar a command: the second process shows none
    return outs


def words(verb, store, out, settings):
    return [verb, str(store), "--out", str(out), *COMMON.split(), *settings.split()]


def train(verb, store, out, settings):
    """In one process, this one."""
    assert cli.main([*words(verb, store, out, settings), "--quiet"]) == 0
    return read(out)


def read(out):
    """Weights, and the losses: one line a step, so one process has written them."""
    names = {path.name for path in out.iterdir()}
    assert {"metrics.jsonl", "model.json", "model.safetensors", "settings.json"} <= names
    assert not [name for name in names if name.startswith(".") or name == "resume.ckpt"]
    log = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == list(range(1, 13))
    return load_file(out / "model.safetensors"), torch.tensor([line["loss"] for line in log])


@pytest.mark.parametrize("case", range(len(CASES)))
def test_two_processes_train_what_one_does(tmp_path, store, in_two, case):
    verb, settings, bound = CASES[case]
    one, losses = train(verb, store, tmp_path / "one", settings)
    two, shared_losses = read(in_two[case])
    # Half of each batch has another loss: only the mean over both processes is that of the whole.
    torch.testing.assert_close(shared_losses, losses, rtol=1e-5, atol=1e-5)
    start, _ = train(verb, store, tmp_path / "start", f"{settings} --optimizer.lr 0")
    assert one.keys() == two.keys()
    moved = [name for name in one if (one[name] - start[name]).abs().max() > 1e-3]
    assert len(moved) > len(one) / 2  # equality says something
    # As part of the way that the weights have gone.
    apart, way = (sum(float((one[n] - other[n]).square().sum()) for n in one) ** 0.5 for other in (two, start))
    assert apart < bound * way


def test_a_batch_that_cannot_be_shared(tmp_path, store, capsys):
    command = ["pretrain", str(store), "--out", str(tmp_path / "run"), *COMMON.split(), "--batch-size", "15"]
    assert cli.main([*command, *TWO.split()]) == 1
    assert "a batch of 15 jets cannot be shared by 2 processes" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


class _Draws(torch.nn.Module):
    def forward(self, batch, step, total_steps, generator):
        return StepOutput(torch.rand(5), {"view": torch.rand(5, generator=generator)})


def test_processes_drop_out_other_tokens_and_draw_the_same_views(monkeypatch):
    found = []
    for rank in range(3):
        monkeypatch.setattr(TrainingModule, "global_rank", rank)
        module = TrainingModule(_Draws(), OptimizerConfig(), 10, seed=4)
        dropped = module.training_step(prong_jets(2).batch(), 0)
        found.append((dropped, module.metrics["view"]))
    assert not torch.equal(found[0][0], found[1][0])
    assert not torch.equal(found[1][0], found[2][0])
    assert all(torch.equal(view, found[0][1]) for _, view in found)
