"""A folder with everything that a command can be given, and the check that a command is refused in one line."""

import contextlib
import json
import shutil

import pytest
from commands import PRETRAINING, TRAINING, jetrep, save

from jetrep.store.manifest import SCHEMA
from prong_jets import prong_jets


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder of files, stores and runs, good and bad."""
    folder = tmp_path_factory.mktemp("world")
    with contextlib.chdir(folder):
        fill(folder)
    return folder


def fill(folder):
    jets = prong_jets(64)
    save("good.npz", jets)
    save("judged.npz", prong_jets(64, 1))
    save("unlabelled.npz", jets.with_labels(None))
    for name, options in {
        "good": "good.npz --classes qcd top",
        "judged": "judged.npz --classes qcd top",
        "higgs": "good.npz --classes qcd higgs",
        "only-qcd": "good.npz --classes qcd top --select qcd",
        "unlabelled": "unlabelled.npz",
    }.items():
        assert jetrep(f"prepare arrays {options} --out {name} --quiet") == 0
    assert jetrep(f"pretrain good --out pretrained {PRETRAINING}") == 0
    assert jetrep(f"finetune good --out tagger --from pretrained {TRAINING}") == 0
    (folder / "empty").mkdir()
    (folder / "other").mkdir()
    (folder / "other" / "thesis.tex").write_text("precious")
    damaged_stores(folder)
    for name, lost in {"no-model": "model.json", "no-weights": "model.safetensors"}.items():
        shutil.copytree("pretrained", name)
        (folder / name / lost).unlink()


@pytest.fixture(autouse=True)
def in_world(world, monkeypatch):
    """All commands are given in that folder."""
    monkeypatch.chdir(world)


def damaged_stores(folder):
    for name in ("newer", "truncated", "flipped", "no-shard"):
        shutil.copytree(folder / "good", folder / name)
    manifest = json.loads((folder / "good" / "manifest.json").read_text())
    (folder / "newer" / "manifest.json").write_text(json.dumps(manifest | {"schema": SCHEMA + 1}))
    content = bytearray((folder / "good" / "shard-00000.arrow").read_bytes())
    (folder / "truncated" / "shard-00000.arrow").write_bytes(content[:-50])
    content[len(content) // 2] ^= 1
    (folder / "flipped" / "shard-00000.arrow").write_bytes(content)
    (folder / "no-shard" / "shard-00000.arrow").unlink()


@pytest.fixture
def refused(world, capsys):
    """Gives a command that must be refused in one line, leaving everything as it was."""

    def check(command, *words, code=1):
        before = snapshot(world)
        capsys.readouterr()
        assert jetrep(command) == code
        complaint = capsys.readouterr().err
        assert complaint.startswith(f"jetrep {command.split()[0]}: ")
        assert complaint.count("\n") == 1
        assert "; " in complaint  # the remedy
        for word in words:
            assert word in complaint
        assert snapshot(world) == before

    return check


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
