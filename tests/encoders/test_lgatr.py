"""L-GATr and L-GATr-slim as encoders: they keep the symmetries that they claim, and say what is missing."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from jetrep.encoders.build import build_encoder
from jetrep.encoders.lgatr import LGATrConfig, LGATrEncoder
from jetrep.errors import InputError
from jetrep.features import FeatureConfig, Features, ModelInput
from jetrep.model import JetModel, ModelConfig
from jetrep.objectives.masked import MaskedParticles, MaskedParticlesConfig
from jetrep.objectives.self_distillation import PRESETS, SelfDistillation
from jetrep.physics.lorentz import rotation
from jetrep.training.checkpoint import load_model, save_model
from lorentz_jets import jets_of, observers, seen_by
from prong_jets import prong_jets

SMALL = LGATrConfig(width=8, vectors=4, heads=2, depth=2)
VARIANTS = ["lgatr", "slim"]


def built(config, dtype=torch.float64):
    pytest.importorskip("lgatr", "2.0")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = LGATrEncoder(config, 7).eval()
        # Blocks begin as little more than the identity: here they shall say something.
        for parameter in encoder.parameters():
            parameter.data.mul_(2.0)
    return encoder.to(dtype)


def view_of(p4, mask, features=None):
    features = torch.zeros(*mask.shape, 7) if features is None else features
    return ModelInput(features, mask, torch.zeros(*mask.shape, 2), torch.zeros(len(mask), 4), p4=p4)


def encoded(encoder, *view):
    with torch.no_grad():
        [out] = encoder([view_of(*view)])
    return out.cls, out.tokens


@pytest.mark.parametrize("spurions", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_and_order_change_nothing(variant, spurions):
    encoder = built(replace(SMALL, variant=variant, spurions=spurions, features=True))
    p4, mask = jets_of([7, 4, 1, 5])
    features = torch.randn(*mask.shape, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cls, tokens = encoded(encoder, p4, mask, features)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    other = encoded(encoder, p4[:, order], mask[:, order], features[:, order])
    torch.testing.assert_close(other, (cls, tokens[:, order]))
    wide = [torch.nn.functional.pad(x, (0, 0, 0, 4), value=3.0) for x in (p4, features)]
    other = encoded(encoder, wide[0], torch.nn.functional.pad(mask, (0, 4)), wide[1])
    torch.testing.assert_close(other[0], cls)
    torch.testing.assert_close(other[1][:, :7], tokens)
    alone = encoded(encoder, p4[1:2, :4], mask[1:2, :4], features[1:2, :4])
    torch.testing.assert_close(alone[0], cls[1:2])
    assert not tokens[~mask].any()
    assert (cls - cls[0]).abs().amax(1)[1:].min() > 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_spurions_all_observers_agree(variant):
    encoder = built(replace(SMALL, variant=variant, spurions=False))
    p4, mask = jets_of([7, 4, 5])
    here = encoded(encoder, p4, mask)
    there = encoded(encoder, seen_by(observers(3, 20.0), p4), mask)
    torch.testing.assert_close(there, here, rtol=1e-7, atol=1e-9)
    assert {"boost", "rotation", "azimuth"} <= encoder.symmetries


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_rest_frame_is_a_matter_of_rounding_alone(variant, monkeypatch):
    """Without spurions, the network gives in the laboratory what it gives in the rest frame of the jet."""
    encoder = built(replace(SMALL, variant=variant, spurions=False))
    p4, mask = jets_of([7, 4, 5])
    at_rest = encoded(encoder, p4, mask)
    encoder.config = replace(
        encoder.config, spurions=True
    )  # momenta as they are, and still no spurion among the tokens
    torch.testing.assert_close(encoded(encoder, p4, mask), at_rest, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("variant", VARIANTS)
def test_spurions_leave_rotations_about_the_beam(variant):
    encoder = built(replace(SMALL, variant=variant))
    p4, mask = jets_of([7, 4, 5])
    here = encoded(encoder, p4, mask)
    z, x, angle = torch.tensor([0.0, 0, 1]).double(), torch.tensor([1.0, 0, 0]).double(), torch.tensor(1.0).double()
    torch.testing.assert_close(encoded(encoder, seen_by(rotation(z, angle), p4), mask), here)
    if variant == "slim":  # both beams are alike; the plane across them has a sense of rotation
        torch.testing.assert_close(encoded(encoder, seen_by(rotation(x, torch.pi * angle), p4), mask), here)
    for matrix in (rotation(x, angle), observers(3, 2.0)):
        assert (encoded(encoder, seen_by(matrix, p4), mask)[0] - here[0]).abs().max() > 1e-5
    assert encoder.symmetries == {"permutation", "padding", "azimuth"}


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, variant="slim", features=True), replace(SMALL, dropout=0.1)])
def test_every_parameter_that_is_listed_learns_and_the_others_do_not(config):
    encoder = built(config, torch.float32).train()
    view = Features(FeatureConfig())(prong_jets(8).batch())
    [out] = encoder([view])
    assert out.pooled("cls+mean").shape == (8, 16)
    (out.cls.square().sum() + out.tokens.square().sum()).backward()
    layers = encoder.layers()
    assert len(layers) == config.depth + 1
    listed = {path for layer in layers for path, _ in layer}
    for path, parameter in encoder.named_parameters():
        assert parameter.requires_grad == (path in listed)
        assert path not in listed or parameter.grad.any(), path


def test_shapes_and_sizes():
    pytest.importorskip("lgatr", "2.0")
    sizes = {
        variant: sum(p.numel() for p in build_encoder(LGATrConfig(variant=variant), 7).parameters())
        for variant in VARIANTS
    }
    assert sizes == {"lgatr": 808_512, "slim": 164_368}
    empty = encoded(built(SMALL), torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool))
    assert all(x.isfinite().all() for x in empty)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_model_is_the_same(variant, tmp_path):
    pytest.importorskip("lgatr", "2.0")
    config = ModelConfig(encoder=replace(SMALL, variant=variant))
    model = JetModel(config)
    save_model(model, tmp_path, provenance={})
    jets = prong_jets(6)
    again = load_model(tmp_path)
    assert again.config.encoder == config.encoder
    assert (again.embed(jets) == model.embed(jets)).all()


@pytest.mark.parametrize("objective", [PRESETS["small_batch"], MaskedParticlesConfig(target="regression")])
def test_objectives_with_a_teacher_and_with_hidden_particles(objective):
    torch.manual_seed(0)
    encoder = built(SMALL, torch.float32)
    kind = SelfDistillation if objective.kind == "self_distillation" else MaskedParticles
    module = kind(Features(FeatureConfig()), encoder, objective).train()
    out = module(prong_jets(8).batch(), 0, 10, torch.Generator().manual_seed(0))
    out.loss.backward()
    module.after_step(0, 10)
    assert out.loss.isfinite()
    assert all(p.grad is not None for layer in module.trained.layers() for _, p in layer)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_was_used_for_inference_first_can_be_trained_after(variant):
    pytest.importorskip("lgatr", "2.0")
    code = f"""if True:
        import torch
        from jetrep.encoders.lgatr import LGATrConfig, LGATrEncoder
        from jetrep.features import ModelInput
        encoder = LGATrEncoder(LGATrConfig({variant!r}, width=8, vectors=2, heads=2, depth=1), 7)
        p4, mask = torch.rand(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)
        view = ModelInput(torch.zeros(2, 3, 7), mask, torch.zeros(2, 3, 2), torch.zeros(2, 4), p4=p4)
        with torch.inference_mode():
            encoder([view])
        encoder([view])[0].cls.sum().backward()
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_the_package_it_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "lgatr", None)
    with pytest.raises(InputError, match=r"lgatr, version 2 or newer, is not installed; pip install 'jetrep\[lgatr\]'"):
        build_encoder(SMALL, 7)


def test_the_package_is_loaded_only_when_it_is_used():
    code = "import sys, jetrep.encoders.build; sys.exit('lgatr' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
