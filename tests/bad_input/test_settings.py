"""Settings that make no sense, on the command line and in recipes."""

from pathlib import Path

import pytest
from commands import PRETRAINING, TRAINING, jetrep, transfer


@pytest.mark.parametrize(
    ("command", "field"),
    [
        *((f"pretrain good --out new {PRETRAINING} --{option} {value}", option) for option, value in [
            ("epochs", 0), ("batch_size", 0), ("batch_size", 65), ("max_jets", 0), ("max_jets", -3),
            ("max_particles", 0), ("seed", -1), ("optimizer.lr", -1), ("optimizer.betas", "[0.9,1.0]"),
            ("engine.devices", 0), ("engine.log_every", 0), ("engine.checkpoint_every", 0), ("encoder.heads", 3),
        ]),
        (f"pretrain good --out new {PRETRAINING} --objective.teacher_scales []", "teacher_scales"),
        *((f"finetune good --out new {TRAINING} --{option} {value}", option) for option, value in [
            ("epochs", 0), ("batch_size", -1), ("n_subjets", -1), ("max_particles", 0), ("validation", 0),
            ("validation", 1), ("n_labels", 0), ("n_labels", -5), ("n_labels", 65), ("patience", 0), ("max_jets", -3),
            ("head.hidden", "[0]"), ("head.dropout", 1), ("seed", -1), ("encoder_lr", -1),
        ]),
        *((f"evaluate tagger --on good --out new --{option} {value}", option) for option, value in [
            ("max_jets", -1), ("n_bootstrap", 0), ("seed", -1),
        ]),
        *((f"probe pretrained --train good --on good --{option} {value}", option) for option, value in [
            ("n_subjets", -1), ("n_labels", 0), ("max_particles", 0), ("n_bootstrap", 1), ("seed", -1),
        ]),
        ("embed pretrained --on good --out new.parquet --max_jets -1", "max_jets"),
        ("inspect good --max_jets 0", "max_jets"),
        ("prepare arrays good.npz --out new --max_jets -1", "max_jets"),
        ("prepare arrays good.npz --out new --R 0", "R"),
        ("simulate new --jets 0", "jets"),
        ("simulate new --workers 0", "workers"),
        ("simulate new --seed -1", "seed"),
        ("demo --out new --seeds 0", "seeds"),
        *((f"{transfer()} --{option} {value}", option.rpartition(".")[2]) for option, value in [
            ("seeds", 0), ("n_subjets", -1), ("max_particles", 0), ("n_bootstrap", 0), ("finetuning.epochs", 0),
            ("finetuning.n_labels", 0), ("pretraining.batch_size", 1000), ("engine.devices", 2),
        ]),
    ],
)  # fmt: skip
def test_numbers_that_make_no_sense(refused, command, field):
    refused(command, f"{field}'")


def test_hardware_that_is_not_there(refused):
    refused(f"pretrain good --out new {PRETRAINING} --engine.strategy none", "field 'engine'", "strategy")


def test_training_that_diverges_ends_in_an_error(capsys):
    command = f"pretrain good --out diverged {PRETRAINING} --engine.log_every 2"
    assert jetrep(f"{command} --optimizer.lr 1e30") == 1
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert "diverged/metrics.jsonl: training has diverged: the loss is nan at step" in complaint
    assert "smaller --optimizer.lr" in complaint
    assert not Path("diverged/model.json").exists()
    assert jetrep(f"{command} --overwrite") == 0


@pytest.mark.parametrize(
    ("recipe", "word"),
    [
        ("epochz: 3", "epochz"),
        ("encoder:\n  widht: 3", "widht"),
        ("epochs: many", "epochs"),
        ("encoder:\n  norm: batchnorm", "encoder.norm"),
        ("epochs: [3", "line 1"),
    ],
)
def test_a_typo_in_a_recipe(refused, recipe, word):
    Path("recipe.yaml").write_text(recipe)
    refused("pretrain good --out new --config recipe.yaml", word, "recipe.yaml", code=2)


def test_a_recipe_that_is_not_there(refused):
    refused("pretrain good --out new --config nowhere.yaml", "nowhere.yaml", code=2)
    refused("pretrain good --out new --config rino-nanoo", "rino-nanoo", code=2)
