"""Commands as a user gives them, small enough for tests."""

import json
from pathlib import Path

import numpy as np

from jetrep import cli

ENCODER = "--encoder.width 16 --encoder.depth 1 --encoder.heads 2 --encoder.mlp_hidden 16 --encoder.n_registers 1"
TRAINING = f"{ENCODER} --epochs 2 --batch-size 16 --engine.accelerator cpu --engine.logger none --quiet"
PRETRAINING = f"{TRAINING} --objective.head.n_prototypes 32"
SIMULATION = "--processes qcd --jets 12 --preset toptagging --workers 1 --quiet"


def transfer(collisions="good", simulation="good", test="judged", out="new"):
    """The command of a study on stores; only one of them is bad, as a rule."""
    tests = f"--simulation-test judged --collisions-test {test}"
    return f"transfer --collisions {collisions} --simulation {simulation} {tests} --out {out} --quiet"


def jetrep(command):
    """Run the command in this process; its exit code."""
    return cli.main(command.split())


def save(file, jets, **change):
    """Jets as the user's own arrays."""
    labels = {} if jets.labels is None else {"y": jets.labels}
    np.savez(file, **{"p4": jets.p4, "n": jets.counts, **labels, **change})


def logged(run, name):
    """A quantity of metrics.jsonl, line by line."""
    return [json.loads(line)[name] for line in Path(run, "metrics.jsonl").read_text().splitlines()]
