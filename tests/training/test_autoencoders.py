"""An autoencoder comes back from its run whole; files of another one are refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from jetrep.cli import main
from jetrep.errors import InputError
from jetrep.training.autoencoders import load_autoencoder
from jetrep.training.checkpoint import load_model
from prong_jets import prong_jets, write_store

SMALL = {
    "lorentz": ["--encoder.width", "8", "--encoder.depth", "1"],
    "transformer": ["--encoder.width", "8", "--encoder.depth", "1", "--encoder.heads", "2"],
    "gnnae": ["--encoder.width", "8"],
    "cnnae": ["--encoder.latent", "8", "--encoder.pixels", "8", "--encoder.channels", "[4, 4]"],
}
COMMON = ["--objective.kind", "autoencoder", "--objective.latent", "5", "--batch_size", "32", "--epochs", "1"]
QUIET = ["--engine.accelerator", "cpu", "--engine.logger", "none", "--quiet"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("data") / "train", prong_jets(64))


def trained(store, out, kind, *more):
    command = ["pretrain", str(store), "--out", str(out), "--encoder.kind", kind, *SMALL[kind], *COMMON, *QUIET, *more]
    assert main(command) == 0
    return out


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    return trained(store, tmp_path_factory.mktemp("run") / "lorentz", "lorentz")


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copy")


@pytest.mark.parametrize("kind", list(SMALL))
def test_comes_back_whole(store, tmp_path, kind):
    run = trained(store, tmp_path / "run", kind)
    autoencoder, record = load_autoencoder(run), json.loads((run / "autoencoder.json").read_text())
    batch = prong_jets(8, seed=1).batch(np.arange(8))
    with torch.no_grad():
        numbers = autoencoder.encode(batch.p4, batch.mask)
    assert numbers.shape == (8, autoencoder.size)
    assert record["size"] == autoencoder.size
    assert record["n_parameters"] == sum(p.numel() for p in autoencoder.parameters())
    # Its encoder is the model of the run; what was saved is what was trained.
    own, saved = autoencoder.encoder.state_dict(), load_model(run).encoder.state_dict()
    assert own.keys() == saved.keys()
    assert all(torch.equal(own[name], saved[name]) for name in own)
    weights = load_file(run / "autoencoder.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in autoencoder.state_dict().items())


def test_leading_particles_are_as_many_as_slots(store, tmp_path, capsys):
    run = trained(store, tmp_path / "a", "lorentz", "--objective.decoder.n_particles", "12")
    assert load_model(run).config.max_particles == 12
    run = trained(store, tmp_path / "b", "lorentz", "--max_particles", "13")
    assert load_model(run).config.max_particles == 13
    assert len(load_autoencoder(run).decoder.slots) == 13
    command = ["pretrain", str(store), "--out", str(tmp_path / "c"), *COMMON, *QUIET, "--max_particles", "40"]
    assert main([*command, "--objective.decoder.n_particles", "12"]) == 1
    assert "objective.decoder.n_particles" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_overwriting_forgets_the_autoencoder(store, tmp_path):
    out = trained(store, tmp_path / "run", "transformer")
    command = ["pretrain", str(store), "--out", str(out), "--encoder.kind", "transformer", *SMALL["transformer"]]
    assert main([*command, "--epochs", "1", "--batch_size", "32", *QUIET, "--overwrite"]) == 0
    assert not (out / "autoencoder.safetensors").exists()
    with pytest.raises(InputError, match="there is no autoencoder here"):
        load_autoencoder(out)


def test_another_encoder_is_refused(store, copy, tmp_path):
    other = trained(store, tmp_path / "other", "lorentz", "--encoder.width", "16")
    for name in ("model.json", "model.safetensors"):
        shutil.copy(other / name, copy / name)
    with pytest.raises(InputError, match=r"autoencoder\.safetensors.*another architecture"):
        load_autoencoder(copy)


def test_other_settings_are_refused(copy):
    file = copy / "autoencoder.json"
    record = json.loads(file.read_text())
    record["objective"]["latent"] = 6
    file.write_text(json.dumps(record))
    with pytest.raises(InputError, match="another architecture"):
        load_autoencoder(copy)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"size": 1000}, "field 'size'"),
        ({"size": None}, "not a number"),
        ({"schema_version": 99}, "newer jetrep"),
        ({"format": "x"}, "not the record"),
        ({"objective": {"latent": "many"}}, "field 'objective'"),
        ({"objective": {"unknown": 1}}, "field 'objective'"),
        ({"objective": {"latent": 0}}, "objective.latent"),
        ({"objective": None}, "field 'objective'"),
    ],
)
def test_damaged_records_are_refused_in_one_line(copy, change, problem):
    file = copy / "autoencoder.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(InputError, match=problem) as caught:
        load_autoencoder(copy)
    assert "\n" not in str(caught.value)


def test_damaged_weights_are_refused(copy):
    file = copy / "autoencoder.safetensors"
    weights = load_file(file)
    save_file({name: tensor for name, tensor in weights.items() if "presence" not in name}, file)
    with pytest.raises(InputError, match="another architecture"):
        load_autoencoder(copy)
    file.write_bytes(b"\xff" * 64)
    with pytest.raises(InputError, match="cannot be read"):
        load_autoencoder(copy)
    file.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        load_autoencoder(copy)
