"""A run that was stopped, at whatever step, ends as one that was not."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from jetrep.encoders.transformer import TransformerConfig
from jetrep.errors import InputError
from jetrep.objectives.self_distillation import SelfDistillation
from jetrep.objectives.supervised import Supervised
from jetrep.store import StoreWriter
from jetrep.store.folder import locked
from jetrep.training.batches import LoadingConfig
from jetrep.training.engine import EngineConfig, OptimizerConfig
from jetrep.training.finetune import finetune
from jetrep.training.pretrain import pretrain
from jetrep.training.run import RunFolder
from prong_jets import prong_jets, write_store

ENCODER = TransformerConfig(width=16, depth=2, heads=2, mlp_hidden=16, n_registers=1, position_bins=8, dropout=0.1)
ENGINE = EngineConfig(accelerator="cpu", log_every=1, checkpoint_every=3, logger="none")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("data") / "store", prong_jets(96))


def run(verb, store, out, **settings):
    return verb([store], out=out, encoder=ENCODER, batch_size=16, epochs=2, engine=ENGINE, quiet=True, **settings)


def stop_after(monkeypatch, objective, step, error):
    """The objective fails once, after the given step of the optimiser."""
    original = objective.after_step

    def after_step(self, at, total):
        original(self, at, total)
        if at == step:
            monkeypatch.setattr(objective, "after_step", original)
            raise error

    monkeypatch.setattr(objective, "after_step", after_step)


@pytest.mark.parametrize(("verb", "objective"), [(pretrain, SelfDistillation), (finetune, Supervised)])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_resumed_equals_uninterrupted(tmp_path, store, monkeypatch, verb, objective, error):
    run(verb, store, tmp_path / "whole")
    stop_after(monkeypatch, objective, 7, error)
    with pytest.raises(error):
        run(verb, store, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "model.json").exists()
    assert (tmp_path / "stopped" / "resume.ckpt").exists()
    run(verb, store, tmp_path / "stopped")

    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "stopped")]
    assert [json.loads(line)["loss"] for line in logs[0]] == [json.loads(line)["loss"] for line in logs[1]]
    assert not (tmp_path / "stopped" / "resume.ckpt").exists()


def test_resumed_amid_windows_buckets_and_weights(tmp_path, monkeypatch):
    """What is read ahead, and from which shards, leaves no trace; nor does the number of batches made ahead."""
    with StoreWriter(tmp_path / "store", classes=("qcd", "top"), provenance={}, jets_per_shard=17) as writer:
        writer.write(prong_jets(96))
    loading = LoadingConfig(block=5, window=4, bucket=2, balance="pt_mass", pt_bins=2, mass_bins=3)
    settings = {"loading": loading, "max_particles": 20}
    run(pretrain, tmp_path / "store", tmp_path / "whole", **settings)
    stop_after(monkeypatch, SelfDistillation, 7, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        run(pretrain, tmp_path / "store", tmp_path / "stopped", **settings)
    monkeypatch.setitem(globals(), "ENGINE", replace(ENGINE, prefetch=3))
    run(pretrain, tmp_path / "store", tmp_path / "stopped", **settings)
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    with pytest.raises(InputError, match=r"other settings \(loading\)"):
        run(pretrain, tmp_path / "store", tmp_path / "whole", max_particles=20)


def test_a_finished_run_is_not_trained_again(tmp_path, store):
    out = run(pretrain, store, tmp_path / "run")
    before = (out / "model.safetensors").stat().st_mtime_ns
    run(pretrain, store, tmp_path / "run")
    assert (out / "model.safetensors").stat().st_mtime_ns == before


def test_other_settings_do_not_overwrite_silently(tmp_path, store):
    run(pretrain, store, tmp_path / "run", seed=1)
    with pytest.raises(InputError, match=r"other settings \(seed\)"):
        run(pretrain, store, tmp_path / "run", seed=2)
    run(pretrain, store, tmp_path / "run", seed=2, overwrite=True)
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["seed"] == 2


def test_a_folder_of_something_else_is_left_alone(tmp_path, store):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="something else"):
        run(pretrain, store, tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_a_run_that_was_killed_when_it_had_stopped_early_does_not_go_on(tmp_path, store, monkeypatch):
    settings = {"patience": 1, "optimizer": OptimizerConfig(lr=0.0)}  # which improves nothing
    monkeypatch.setitem(globals(), "ENGINE", replace(ENGINE, checkpoint_every=1))
    run(finetune, store, tmp_path / "whole", **settings)
    with monkeypatch.context() as context:
        context.setattr(RunFolder, "finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(finetune, store, tmp_path / "killed", **settings)
    run(finetune, store, tmp_path / "killed", **settings)
    whole, killed = ((tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "killed"))
    assert len(killed) == len(whole) == 5  # one epoch of the two


def test_data_and_weights_are_known_by_their_content(tmp_path, store):
    """A store, or a run, that was moved is the same one."""
    pretrained = run(pretrain, store, tmp_path / "pretrained")
    tagger = run(finetune, store, tmp_path / "tagger", from_run=pretrained)
    before = (tagger / "model.safetensors").stat().st_mtime_ns
    elsewhere = shutil.copytree(store, tmp_path / "elsewhere")
    moved = pretrained.rename(tmp_path / "moved")
    run(pretrain, elsewhere, moved)
    run(finetune, elsewhere, tagger, from_run=moved)
    assert (tagger / "model.safetensors").stat().st_mtime_ns == before
    other = write_store(tmp_path / "other", prong_jets(96, seed=5))
    with pytest.raises(InputError, match=r"other settings \(data\)"):
        run(pretrain, other, moved)


def test_one_process_at_a_time_trains_a_run(tmp_path, store):
    out = tmp_path / "runs" / "run"
    out.parent.mkdir()
    with locked(out), pytest.raises(InputError, match=r"process \d+ on .* is training this run"):
        run(pretrain, store, out)
    assert not out.exists()
    assert [file.name for file in run(pretrain, store, out).parent.iterdir()] == ["run"]
