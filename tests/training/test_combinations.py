"""Any encoder with any objective, from the command line: kinds are chosen by name, and each has settings of its own."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from jetrep.cli import main
from jetrep.encoders.build import KINDS, build_encoder
from jetrep.errors import InputError
from jetrep.features import FeatureConfig, Features
from jetrep.jets.columns import particle_types
from jetrep.objectives.build import OBJECTIVES
from jetrep.objectives.contrastive_config import JetCLRConfig, SupConConfig
from jetrep.objectives.masked import MaskedParticlesConfig
from jetrep.objectives.tokenizer import TokenizerConfig, VQTokenizer
from jetrep.training.checkpoint import load_model
from jetrep.training.engine import EngineConfig
from jetrep.training.pretrain import pretrain
from jetrep.views.augment import AugmentationConfig
from prong_jets import prong_jets, write_store

SMALL = {
    "transformer": ["--encoder.width", "8", "--encoder.depth", "1", "--encoder.heads", "2"],
    "particle_transformer": ["--encoder.width", "8", "--encoder.depth", "1", "--encoder.heads", "2"],
    "lorentz": ["--encoder.width", "8", "--encoder.depth", "1"],
    "lgatr": ["--encoder.variant", "slim", "--encoder.width", "8", "--encoder.depth", "1", "--encoder.heads", "2"],
    "particlenet": ["--encoder.neighbours", "3", "--encoder.channels", "[[8], [8]]"],
    "gnnae": ["--encoder.width", "8", "--encoder.edges", "[[8], [8]]", "--encoder.nodes", "[[8], [8]]"],
    "cnnae": ["--encoder.latent", "8", "--encoder.pixels", "8", "--encoder.channels", "[4, 4]"],
}
# Tokenisers that do not take long.
QUICK = {"next_token": ["--objective.tokenizer.steps", "3", "--objective.tokenizer.n_codes", "16"]}
COMMON = ["--batch_size", "32", "--epochs", "1", "--engine.accelerator", "cpu", "--engine.logger", "none", "--quiet"]
FEW = ["--batch_size", "16", "--max_particles", "10"]
KINDS_OF_OBJECTIVES = [config().kind for config in OBJECTIVES]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("data") / "train", prong_jets(96))


@pytest.mark.parametrize("objective", KINDS_OF_OBJECTIVES)
@pytest.mark.parametrize("encoder", list(SMALL))
def test_every_encoder_learns_from_every_objective(store, tmp_path, encoder, objective):
    out = tmp_path / "run"
    chosen = ["--encoder.kind", encoder, *SMALL[encoder], "--objective.kind", objective, *QUICK.get(objective, [])]
    assert main(["pretrain", str(store), "--out", str(out), *chosen, *COMMON, "--steps", "2", *FEW]) == 0
    model = load_model(out)
    assert model.config.encoder.kind == encoder
    assert model.config.encoder.width == 8
    assert model.embed(prong_jets(8, seed=1)).shape[0] == 8


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_encoder_takes_a_view_without_jets_beside_one_with_some(kind):
    """As when no jet of a batch has particles enough for a number of subjets."""
    features = Features(FeatureConfig())
    torch.manual_seed(0)
    encoder = build_encoder(KINDS[kind](), len(features.names)).eval()
    view = features(prong_jets(3).leading(8).batch())
    with torch.no_grad():
        none, some = encoder([view.jets(torch.arange(0)), view])
        (alone,) = encoder([view])
    assert none.cls.shape == (0, encoder.width)
    assert none.tokens.shape == (0, 8, encoder.width)
    torch.testing.assert_close(some.cls, alone.cls)


def test_all_kinds_are_among_the_combinations():
    assert set(SMALL) == set(KINDS)
    assert len(set(KINDS_OF_OBJECTIVES)) == len(OBJECTIVES)


def test_a_recipe_names_the_kind_and_the_command_line_goes_before(store, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"encoder": {"kind": "particlenet", "neighbours": 5, "channels": [[8], [6]]}}))
    command = ["pretrain", str(store), "--config", str(recipe), *COMMON, "--objective.kind", "jetclr"]
    assert main([*command, "--out", str(tmp_path / "a")]) == 0
    assert load_model(tmp_path / "a").config.encoder.neighbours == 5
    assert main([*command, "--encoder.neighbours", "4", "--out", str(tmp_path / "b")]) == 0
    assert load_model(tmp_path / "b").config.encoder.neighbours == 4


def test_help_shows_the_settings_of_the_kind(capsys):
    with pytest.raises(SystemExit):
        main(["pretrain", "--encoder.kind", "particlenet", "--help"])
    shown = capsys.readouterr().out
    assert "--encoder.neighbours" in shown
    assert "--encoder.mlp_hidden" not in shown
    assert set(KINDS) <= set(re.search(r"Kinds: ([\w\s,]+)\(", shown)[1].replace(",", " ").split())


def test_an_unknown_kind_and_a_setting_of_another_kind_are_refused(store, tmp_path, capsys):
    command = ["pretrain", str(store), "--out", str(tmp_path / "run"), *COMMON]
    assert main([*command, "--encoder.kind", "perceiver"]) == 1
    assert "there is no encoder of kind 'perceiver'; known: transformer" in capsys.readouterr().err
    assert main([*command, "--encoder.kind", "particlenet", "--encoder.heads", "2"]) == 2
    assert not (tmp_path / "run").exists()


def test_labels_are_asked_for_where_they_are_needed(tmp_path):
    unlabelled = write_store(tmp_path / "data", prong_jets(64).with_labels(None))
    with pytest.raises(InputError, match="unlabelled"):
        pretrain([unlabelled], out=tmp_path / "run", objective=SupConConfig(), quiet=True)


def test_columns_that_augmented_jets_lack_are_refused(store, tmp_path):
    features = FeatureConfig("kinpid", "weaver")
    with pytest.raises(InputError, match=r"needs charge.* which the views of 'supcon' lack"):
        pretrain([store], out=tmp_path / "run", features=features, objective=SupConConfig(), quiet=True)


def test_a_tokeniser_is_saved_with_the_run_and_can_be_used_again(store, tmp_path):
    config = MaskedParticlesConfig(target="vq", tokenizer=TokenizerConfig(n_codes=16, steps=5, batch_size=16))
    settings = {"epochs": 1, "batch_size": 32, "engine": EngineConfig(accelerator="cpu", logger="none"), "quiet": True}
    run = pretrain([store], out=tmp_path / "run", objective=config, **settings)
    record, features = json.loads((run / "tokenizer.json").read_text()), load_model(run).features
    assert 0 < record["inspection"]["codes_used"] <= 1
    assert 0 < record["inspection"]["error"] < 10
    tokenizer = VQTokenizer.from_record(record, load_file(run / "tokenizer.safetensors"), features)
    assert tokenizer.names == ("log_pt_rel", "delta_eta", "delta_phi")


def test_particle_types_are_predicted_from_the_columns_of_the_store(tmp_path):
    jets = prong_jets(64)
    types = particle_types(np.full(len(jets.p4), 211))
    store = write_store(tmp_path / "data", replace(jets, measured=types))
    config = MaskedParticlesConfig(identity_weight=0.3, n_codes=8)
    settings = {"epochs": 2, "batch_size": 32, "engine": EngineConfig(accelerator="cpu", logger="none"), "quiet": True}
    run = pretrain([store], out=tmp_path / "run", objective=config, **settings)
    assert load_model(run).config.features.names == "kin"
    plain = write_store(tmp_path / "plain", jets)
    with pytest.raises(InputError, match="is_charged_hadron"):
        pretrain([plain], out=tmp_path / "other", objective=config, **settings)


@pytest.mark.parametrize("kind", [JetCLRConfig, SupConConfig])
def test_measured_features_go_with_augmentations_that_split_nothing(tmp_path, kind):
    jets = prong_jets(64)
    store = write_store(tmp_path / "data", replace(jets, measured=particle_types(np.full(len(jets.p4), 211))))
    settings = {"epochs": 1, "batch_size": 32, "engine": EngineConfig(accelerator="cpu", logger="none"), "quiet": True}
    settings["features"] = FeatureConfig("kinpid", "weaver")
    with pytest.raises(InputError, match=f"the views of '{kind().kind}' lack"):
        pretrain([store], out=tmp_path / "run", objective=kind(), **settings)
    unsplit = kind(augmentation=AugmentationConfig(split_passes=0))
    run = pretrain([store], out=tmp_path / "run", objective=unsplit, **settings)
    assert load_model(run).config.features.names == "kinpid"


def test_damaged_particle_codes_have_no_charge():
    """Of a nucleus with 999 protons, which no byte holds."""
    types = particle_types(np.array([211, 1009999990, -11]))
    assert types["charge"].tolist() == [1, 0, 1]
