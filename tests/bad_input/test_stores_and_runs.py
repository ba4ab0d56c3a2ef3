"""Stores and runs that are damaged, of another kind, or do not fit."""

import json
import shutil
from pathlib import Path

import pytest
from commands import PRETRAINING, SIMULATION, TRAINING, jetrep, transfer

READERS = {
    "inspect": "inspect {}",
    "pretrain": f"pretrain {{}} --out new {PRETRAINING}",
    "finetune": f"finetune {{}} --out new {TRAINING}",
    "finetune, pretrained": f"finetune {{}} --out new --from pretrained {TRAINING}",
    "evaluate": "evaluate tagger --on {} --out new",
    "probe, train": "probe pretrained --train {} --on good",
    "probe, on": "probe pretrained --train good --on {}",
    "embed": "embed pretrained --on {} --out new.parquet",
    "transfer, collisions": transfer(collisions="{}"),
    "transfer, simulation": transfer(simulation="{}"),
    "transfer, test": transfer(test="{}"),
}
NEED_LABELS = set(READERS) - {"inspect", "pretrain", "embed", "transfer, collisions"}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("store", "words"),
    [
        ("newer", ["newer/manifest.json: written by a newer jetrep", "upgrade jetrep"]),
        ("truncated", ["truncated/shard-00000.arrow: the shard is truncated", "prepare the store again"]),
        ("flipped", ["flipped/shard-00000.arrow: the shard is damaged: its hash disagrees"]),
        ("no-shard", ["no-shard/shard-00000.arrow: the shard is missing"]),
        ("nowhere", ["nowhere: does not exist"]),
        ("empty", ["empty: is no jetrep store"]),
        ("other", ["other: is no jetrep store"]),
        ("good.npz", ["good.npz: is no jetrep store", "jetrep prepare"]),
        ("tagger", ["tagger: is no jetrep store"]),
    ],
)
def test_stores_that_are_none(refused, reader, store, words):
    refused(READERS[reader].format(store), *words)


@pytest.mark.parametrize("reader", sorted(NEED_LABELS))
def test_unlabelled_jets_where_labels_are_needed(refused, reader):
    refused(READERS[reader].format("unlabelled"), "unlabelled, field 'label': the jets are unlabelled")


def test_labels_play_no_part_in_pretraining():
    assert jetrep(f"pretrain good unlabelled --out mixed {PRETRAINING} --max-jets 100") == 0


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("evaluate tagger --on higgs", ["higgs, field 'label': jets of class higgs are not among qcd, top"]),
        ("evaluate tagger --on only-qcd", ["only-qcd, field 'label': holds only jets of class qcd"]),
        ("evaluate tagger --on good --background w", ["tagger, field 'background'", "known: qcd, top"]),
        ("evaluate tagger --on good ../{}/good", ["good", "given twice"]),
        ("probe pretrained --train good --on higgs", ["higgs, field 'label': jets of class higgs"]),
        ("probe pretrained --train only-qcd --on good", ["jets per class are [32]"]),
        ("probe pretrained --train good --on good --background w", ["field 'background'"]),
        (f"finetune only-qcd --out new {TRAINING}", ["all jets are of one class"]),
        (f"finetune good --classes w --out new {TRAINING}", ["no jets of class 'w'", "known: qcd, top"]),
        (f"pretrain unlabelled --classes qcd --out new {PRETRAINING}", ["unlabelled, field 'classes'"]),
        (transfer(test="higgs"), ["higgs, field 'label': jets of class higgs"]),
        (transfer(test="only-qcd"), ["only-qcd, field 'label': all jets are qcd"]),
        (transfer(test="judged good"), ["good, field 'collisions_test': holds the jets to train on"]),
        (transfer(simulation="good higgs"), ["one signal from qcd, not qcd, top, higgs"]),
    ],
)
def test_classes_that_do_not_match(world, refused, command, words):
    refused(command.format(world.name), *words)


def test_stores_of_one_name_are_told_apart():
    for folder in ("a", "b"):
        shutil.copytree("good", f"{folder}/test", dirs_exist_ok=True)
    assert jetrep("evaluate tagger --on a/test b/test --out both --n-bootstrap 2 --no-projection --quiet") == 0
    assert json.loads(Path("both/evaluation.json").read_text())["domains"] == ["a/test", "b/test"]


@pytest.mark.parametrize(
    "command",
    [
        "evaluate {} --on good --out new",
        "embed {} --on good --out new.parquet",
        "probe {} --train good --on good",
        f"finetune good --from {{}} --out new {TRAINING}",
    ],
)
@pytest.mark.parametrize(
    ("run", "words"),
    [
        ("no-model", ["no-model/model.json: there is no trained model here"]),
        ("no-weights", ["no-weights/model.safetensors: weights cannot be read", "train again"]),
        ("good", ["good/model.json: there is no trained model here", "--out folder of pretrain or finetune"]),
        ("nowhere", ["nowhere/model.json: there is no trained model here"]),
        ("good.npz", ["good.npz/model.json: there is no trained model here"]),
    ],
)
def test_runs_that_are_none(refused, command, run, words):
    refused(command.format(run), *words)


def test_an_encoder_is_no_tagger(refused):
    refused("evaluate pretrained --on good", "pretrained: a pretrained encoder, not a tagger", "jetrep finetune --from")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (f"pretrain good --out other {PRETRAINING}", ["other: the folder holds something else"]),
        (f"pretrain good --out good.npz {PRETRAINING}", ["good.npz: is a file", "--out"]),
        (f"pretrain good --out good.npz/run {PRETRAINING}", ["good.npz: is a file", "--out"]),
        (f"pretrain good --out tagger {PRETRAINING}", ["tagger: the folder holds a run with other settings"]),
        (f"finetune good --out good.npz {TRAINING}", ["good.npz: is a file"]),
        ("prepare arrays good.npz --out good", ["good: a store already stands there", "--overwrite"]),
        ("prepare arrays good.npz --out other --overwrite", ["other: exists and is no store"]),
        ("prepare arrays good.npz --out good.npz", ["good.npz: is in the way"]),
        ("prepare arrays good.npz --out good.npz/s", ["good.npz/s: cannot be written", "--out"]),
        (f"simulate good.npz/s {SIMULATION}", ["good.npz/s: cannot be written", "--out"]),
        ("embed pretrained --on good --out other", ["other, field 'out': is a folder"]),
        ("embed pretrained --on good --out good.npz/e", ["good.npz: is a file, not a folder"]),
        ("evaluate tagger --on good --out good.npz", ["good.npz: is a file, not a folder"]),
        ("probe pretrained --train good --on good --out table.txt", ["table.txt", "use .json or .md"]),
        ("probe pretrained --train good --on good --out good.npz/t.md", ["good.npz: is a file"]),
        (transfer(out="good.npz/study"), ["good.npz: is a file, not a folder"]),
    ],
)
def test_places_that_cannot_be_written(refused, command, words):
    refused(command, *words)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder in which nobody can write")
@pytest.mark.parametrize(
    "command",
    [
        "prepare arrays good.npz --out /proc/self/new",
        f"simulate /proc/self/new {SIMULATION}",
        f"pretrain good --out /proc/self/new {PRETRAINING}",
        f"finetune good --out /proc/self/new {TRAINING}",
        "embed pretrained --on good --out /proc/self/new.parquet --quiet",
        "evaluate tagger --on good --out /proc/self/new --n-bootstrap 2 --no-projection --quiet",
        "inspect good --out /proc/self/new.png",
    ],
)
def test_a_folder_in_which_nobody_can_write(refused, command):
    refused(command, "/proc/self", "cannot be written")
