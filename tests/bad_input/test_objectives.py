"""Objectives with jets, settings or tokenisers that do not fit them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import TRAINING, jetrep, logged

from jetrep.encoders import TransformerConfig, build_encoder
from jetrep.features import FeatureConfig, Features
from jetrep.jets import JetBatch
from jetrep.objectives.build import OBJECTIVES, build_objective
from jetrep.objectives.masked import MaskedParticlesConfig
from jetrep.objectives.self_distillation import HeadConfig, SelfDistillationConfig
from jetrep.objectives.tokenizer import TokenizerConfig
from random_jets import random_jets

VQ = "--objective.kind masked_particles --objective.target vq --objective.tokenizer.n_codes 8"
TOKENS = f"{VQ} --objective.tokenizer.steps 3"
CLASSES = "field 'label': the jets are unlabelled"


@pytest.fixture(scope="module")
def tokenized(world):
    """A run with a tokeniser."""
    run = world / "tokenized"
    if not run.exists():
        assert jetrep(f"pretrain {world}/good --out {run} {TOKENS} {TRAINING}") == 0
    return run


# Labels


@pytest.mark.parametrize("options", ["--objective.kind supcon", "--loading.balance classes", "--config supcon"])
def test_labels_that_are_not_there(refused, options):
    refused(f"pretrain unlabelled --out new {options} {TRAINING}", "unlabelled", CLASSES)


def test_fine_tuning_that_samples_by_class_needs_labels(refused):
    refused(f"finetune unlabelled --out new --loading.balance classes {TRAINING}", CLASSES)


def test_jets_of_one_class_teach_supcon_nothing_and_do_no_harm():
    """The loss is zero, and a warning tells why."""
    command = f"pretrain only-qcd --out one --objective.kind supcon {TRAINING} --engine.log_every 1"
    with pytest.warns(UserWarning, match="one class only"):
        assert jetrep(command) == 0
    assert set(logged("one", "loss")) == {0.0}
    assert set(logged("one", "classes")) == {1.0}
    assert jetrep("probe one --train good --on good --n_bootstrap 2 --quiet") == 0


def test_jets_of_one_class_cannot_be_told_apart(refused):
    refused(f"finetune only-qcd --out new --loading.balance classes {TRAINING}", "all jets are of one class")


# Numbers of codes, prototypes and neighbours


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            "--objective.kind masked_particles --objective.n_codes 100000",
            ["field 'objective.n_codes'", "100000 codes are to be fitted to", "ask for at most"],
        ),
        (
            f"{VQ}0000",
            ["field 'objective.tokenizer.n_codes'", "80000 codes are to be fitted to", "ask for at most"],
        ),
        ("--objective.kind masked_particles --objective.n_codes 1", ["n_codes", "give 2 or more"]),
    ],
)
def test_more_codes_than_particles(refused, options, words):
    refused(f"pretrain good --out new {TRAINING} {options}", *words)


@pytest.mark.parametrize(
    "options",
    [
        "--objective.head.n_prototypes 500",  # a batch has 16 jets
        "--objective.kind masked_particles --objective.n_codes 300",  # more than the hidden particles of a batch
        "--objective.kind masked_particles --objective.n_codes 64 --batch-size 1",
        "--batch-size 1 --objective.head.n_prototypes 32",  # no jet has a neighbour
    ],
)
def test_more_codes_than_a_batch_has_jets_or_particles(options, tmp_path):
    assert jetrep(f"pretrain good --out {tmp_path}/run {TRAINING} --engine.log_every 1 {options}") == 0
    losses = torch.tensor(logged(tmp_path / "run", "loss"))
    assert losses.isfinite().all()


def test_a_batch_of_one_jet_has_nothing_to_be_compared_with(tmp_path, capsys):
    assert jetrep(f"pretrain good --out {tmp_path}/run {TRAINING} --objective.kind jetclr --batch-size 1") == 1
    assert "field 'batch_size': a batch of one jet has nothing to compare it with" in capsys.readouterr().err


def test_more_neighbours_than_particles(tmp_path):
    encoder = "--encoder.kind particlenet --encoder.neighbours 500 --encoder.channels [[8],[8]]"
    common = "--epochs 1 --batch-size 16 --engine.accelerator cpu --engine.logger none --quiet"
    assert jetrep(f"pretrain good --out {tmp_path}/run {encoder} --objective.kind jetclr {common}") == 0


# Tokenisers


def test_a_tokeniser_is_used_again(tokenized, tmp_path):
    again = f"pretrain good --out {tmp_path}/again --tokenizer-from {tokenized} {VQ} {TRAINING} --seed 3"
    assert jetrep(again) == 0
    one, other = (json.loads((run / "tokenizer.json").read_text()) for run in (tokenized, tmp_path / "again"))
    assert one["weights"] == other["weights"]
    record = json.loads((tmp_path / "again" / "settings.json").read_text())
    assert record["tokenizer_weights"] == one["weights"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--features.standardization rino_g1", ["another standardisation", "log_pt_rel are -4.7, 1.8 there and -4.5"]),
        ("--features.standardization data", ["another standardisation", "mean and scale of log_pt_rel"]),
        ("--features.signed_eta true", ["made for delta_eta, which is not among the features"]),
        ("--objective.predicted [log_pt,delta_eta]", ["made for log_pt_rel, delta_eta, delta_phi, not for log_pt"]),
    ],
)  # fmt: skip
def test_a_tokeniser_of_other_features(tokenized, refused, options, words):
    refused(
        f"pretrain good --out new --tokenizer-from tokenized {VQ} {TRAINING} {options}", "field 'tokenizer'", *words
    )


def test_a_tokeniser_of_jets_on_another_scale(refused, world):
    predicted = "--objective.predicted [log_pt,delta_eta]"
    if not (world / "scaled").exists():
        assert jetrep(f"pretrain good --out scaled {TOKENS} {TRAINING} {predicted} --features.scale_pt 500") == 0
    command = f"pretrain good --tokenizer-from scaled {VQ} {TRAINING} {predicted}"
    refused(f"{command} --out new", "made for log_pt of jets with features.scale_pt = 500.0, not None")
    assert jetrep(f"{command} --out scaled-again --features.scale_pt 500") == 0


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("no record", ["tokenizer.json: there is no tokeniser here"]),
        ("no weights", ["tokenizer.json: the tokeniser cannot be read"]),
        ("other weights", ["tokenizer.safetensors: the weights are not those of the record"]),
        ("cut weights, old record", ["tokenizer.safetensors: the weights cannot be read"]),
        ("not JSON", ["tokenizer.json: the tokeniser cannot be read"]),
        ("a list", ["tokenizer.json: not the record of a tokeniser"]),
        ("settings", ["tokenizer.json, field 'tokenizer': not the record of a tokeniser"]),
    ],
)
def test_a_damaged_tokeniser(tokenized, refused, damage, words):
    shutil.rmtree("damaged", ignore_errors=True)
    shutil.copytree(tokenized, "damaged")
    record, weights = Path("damaged/tokenizer.json"), Path("damaged/tokenizer.safetensors")
    content = json.loads(record.read_text())
    if damage == "no record":
        record.unlink()
    elif damage == "no weights":
        weights.unlink()
    elif damage == "other weights":
        weights.write_bytes(weights.read_bytes()[:-1] + b"\7")
    elif damage == "cut weights, old record":
        del content["weights"]
        record.write_text(json.dumps(content))
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "settings":
        content["config"]["codes"] = 3
        record.write_text(json.dumps(content))
    else:
        record.write_text("{" if damage == "not JSON" else "[]")
    refused(f"pretrain good --out new --tokenizer-from damaged {VQ} {TRAINING}", *words)


@pytest.mark.parametrize("options", ["", "--objective.kind jetclr", "--objective.kind masked_particles"])
def test_a_tokeniser_that_is_not_needed(tokenized, refused, options):
    command = f"pretrain good --out new --tokenizer-from tokenized {TRAINING} {options}"
    refused(command, "field 'tokenizer_from'", "no use for a tokeniser")


def test_a_run_without_a_tokeniser(refused):
    refused(f"pretrain good --out new --tokenizer-from pretrained {VQ} {TRAINING}", "there is no tokeniser here")


# Views without particles


TOKENIZER = TokenizerConfig(n_codes=8, steps=2)
CONFIGS = {config.kind: config for config in (kind() for kind in OBJECTIVES)}
CONFIGS |= {
    name: replace(config, tokenizer=TOKENIZER) for name, config in CONFIGS.items() if hasattr(config, "tokenizer")
}
CONFIGS |= {
    f"masked_particles {target}": MaskedParticlesConfig(target=target, n_codes=8, tokenizer=TOKENIZER)
    for target in ("regression", "kmeans", "vq", "flow", "flow_matching")
}
del CONFIGS["masked_particles"]  # each target is there
CONFIGS["self_distillation"] = SelfDistillationConfig(head=HeadConfig(n_prototypes=16))


@pytest.mark.parametrize("counts", [[0, 0, 0, 0], [0, 9, 1, 4]], ids=["all empty", "one empty"])
@pytest.mark.parametrize("name", CONFIGS)
def test_jets_that_lost_all_particles(name, counts):
    """Loss and gradients are finite, and every parameter has one."""
    jets = random_jets([12, 9, 7, 20])
    torch.manual_seed(0)
    features = Features(FeatureConfig())
    encoder = build_encoder(TransformerConfig(16, 1, 2, 16), len(features.names))
    module = build_objective(CONFIGS[name], features, encoder, sample=lambda: jets).train()
    batch = random_jets([max(n, 1) for n in counts]).batch()
    real = torch.tensor(counts).unsqueeze(1) > 0
    mask = batch.mask & real
    batch = JetBatch(
        p4=batch.p4 * mask.unsqueeze(-1),
        mask=mask,
        jet_p4=batch.jet_p4 * real,
        labels=torch.tensor([0, 1, 0, 1]),
        order=batch.order,
        join=batch.join.masked_fill(~mask, -1),
    )
    out = module(batch, 0, 10, torch.Generator().manual_seed(0))
    out.loss.backward()
    assert out.loss.isfinite()
    gradients = [p.grad for part in module.parts().values() for p in part]
    assert all(grad is not None and grad.isfinite().all() for grad in gradients)
