"""The recipes of Particle Transformer and of our changes to it: what they build, and that they run."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from jetrep import cli
from jetrep.encoders.particle_transformer import PARTS, ParticleTransformer
from jetrep.features import FEATURE_SETS, FeatureConfig, Features
from jetrep.recipes import __file__ as recipes
from jetrep.training.checkpoint import load_model
from jetrep.training.data import load_jets
from jetrep.training.finetune import finetune
from prong_jets import prong_jets, write_store
from random_jets import random_jets


def parsed(line: str):
    words = cli._resolve([word for word in shlex.split(line) if word != "finetune"])
    parser = cli._parser("finetune", finetune, tuple(words))
    return parser.instantiate(parser.parse_args(words))


def n_parameters(config, features="kin", classes=2) -> int:
    encoder = ParticleTransformer(config, len(FEATURE_SETS[features]))
    return sum(p.numel() for p in encoder.parameters()) + (config.width + 1) * classes


def flops(config, most: int) -> float:
    """Of a training step on jets of the usual multiplicity, per jet."""
    view = Features(FeatureConfig("kin", "weaver"))(random_jets([min(n, most) for n in range(15, 95, 10)]).batch())
    with FlopCounterMode(display=False) as counter:
        ParticleTransformer(config, 7)([view], [None])[0].cls.sum().backward()
    return counter.get_total_flops() / len(view.mask)


@pytest.mark.parametrize(("ours", "published", "most"), [("upgrade", "part", 128), ("upgrade-mini", "part-mini", 60)])
def test_our_changes_cost_what_the_published_network_does(ours, published, most):
    a, b = replace(PARTS[ours], trim=False), replace(PARTS[published], trim=False)
    assert n_parameters(a) == pytest.approx(n_parameters(b), rel=0.05)
    assert flops(a, most) == pytest.approx(flops(b, most), rel=0.05)


def test_sizes_are_those_that_recipes_state():
    assert n_parameters(PARTS["part"], "full", 10) == 2_143_486
    stated = {"part": 2_141_134, "upgrade": 2_161_670, "part-mini": 126_018, "upgrade-mini": 126_070}
    for name, number in stated.items():
        assert n_parameters(PARTS[name]) == number
        recipe = Path(recipes).parent / f"{name.removesuffix('-mini')}-toptagging.yaml"
        assert f"{number:,} parameters" in recipe.read_text() or f"{number:,} with the head" in recipe.read_text()


@pytest.mark.parametrize("name", ["part", "upgrade"])
def test_recipes_build_the_presets(name):
    recipe = f"{name}-toptagging"
    settings = parsed(f"stores --config {recipe} --out run")
    assert settings.encoder == PARTS[name]
    assert settings.head.hidden == ()
    assert settings.pooling == "cls"
    text = (Path(recipes).parent / f"{recipe}.yaml").read_text()
    (mini,) = [line for line in re.findall(r"^#   jetrep finetune (.*)$", text, re.MULTILINE) if "mini" in line]
    assert parsed(mini).encoder == PARTS[f"{name}-mini"]


def test_jetclass_recipe_is_the_published_one():
    settings = parsed("stores --config part-jetclass --out run")
    assert settings.encoder == PARTS["part"]
    optimizer = settings.optimizer.resolved()
    assert (optimizer.name, optimizer.betas, optimizer.eps) == ("ranger", (0.95, 0.999), 1e-5)
    assert (optimizer.schedule, optimizer.flat, optimizer.final_lr) == ("flat_exponential", 0.7, 0.01)


@pytest.mark.parametrize("name", ["part", "upgrade"])
def test_recipes_train(tmp_path, name):
    """At the size for a CPU, in mixed precision; the loss falls, and the tagger gives probabilities."""
    store = write_store(tmp_path / "store", prong_jets(160))
    text = (Path(recipes).parent / f"{name}-toptagging.yaml").read_text()
    (line,) = [line for line in re.findall(r"^#   jetrep (finetune .*)$", text, re.MULTILINE) if "mini" in line]
    words = shlex.split(line)
    words[1], words[-1] = str(store), str(tmp_path / "run")
    more = "--epochs 3 --batch-size 16 --engine.logger none --engine.accelerator cpu --engine.log_every 1 --quiet"
    assert cli.main([*words, *more.split()]) == 0
    log = [json.loads(entry) for entry in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum(entry["loss"] for entry in log[-5:]) < sum(entry["loss"] for entry in log[:5])
    probabilities = load_model(tmp_path / "run").predict(load_jets([store])[:8])
    torch.testing.assert_close(torch.from_numpy(probabilities).sum(1), torch.ones(8))
