"""ParticleNet against weaver's on real weights and jets, and what must not matter to it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from jetrep.encoders import PARTICLENETS, ClassifierHead, ParticleNet, ParticleNetConfig
from jetrep.encoders.particlenet import nearest
from jetrep.errors import InputError
from jetrep.features import FeatureConfig, Features, ModelInput
from random_jets import random_jets
from weaver_arrays import weaver_jets

SMALL = ParticleNetConfig(4, ((8, 8), (12, 12)))
WEAVER = FeatureConfig("kin", "weaver", signed_eta=True)


def n_parameters(*modules: torch.nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def view_of(counts, seed: int = 0, config: FeatureConfig = WEAVER) -> ModelInput:
    return Features(config)(random_jets(counts, seed).batch())


def built(config: ParticleNetConfig = SMALL, n_features: int = 7, seed: int = 0) -> ParticleNet:
    """An encoder whose norms have seen something."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = ParticleNet(config, n_features)
        for module in encoder.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.normal_(module.bias, 0, 0.3)
    return encoder.eval()


def weaver_network(config: ParticleNetConfig, n_features: int, n_classes: int = 10):
    module = pytest.importorskip("weaver.nn.model.ParticleNet")
    return module.ParticleNet(
        n_features,
        n_classes,
        conv_params=[(config.neighbours, channels) for channels in config.channels],
        fc_params=[(256, 0.1)],
        use_fusion=False,
        use_fts_bn=True,
        use_counts=True,
        trim=False,
    )


def copy_to_weaver(encoder: ParticleNet, head: ClassifierHead, network) -> None:
    """Our weights into weaver's network."""
    state = {}
    for name, value in encoder.state_dict().items():
        theirs = "bn_fts." + name[5:] if name.startswith("norm.") else name.replace("blocks.", "edge_convs.")
        theirs = theirs.replace("first.linear.", "convs.0.").replace("first.norm.", "bns.0.")
        theirs = theirs.replace("shortcut.linear.", "sc.").replace("shortcut.norm.", "sc_bn.")
        if ".others." in theirs:
            block, rest = theirs.split(".others.")
            layer, kind, leaf = rest.split(".", 2)
            theirs = f"{block}.{'convs' if kind == 'linear' else 'bns'}.{int(layer) + 1}.{leaf}"
        state[theirs] = value.reshape(network.state_dict()[theirs].shape)
    layers = head.state_dict()
    for ours, theirs in (("layers.0.", "fc.0.0."), ("layers.3.", "fc.1.")):
        state |= {theirs + leaf: layers[ours + leaf] for leaf in ("weight", "bias")}
    network.load_state_dict(state)


def both(config: ParticleNetConfig, view: ModelInput, *, train: bool = False, dtype=torch.float64):
    """Logits of ours and of weaver's, and the gradients by the features, at the same weights."""
    encoder, n_features = built(config, view.features.shape[-1]), view.features.shape[-1]
    head = ClassifierHead(config.width, 10, (256,), 0.0)
    network = weaver_network(config, n_features)
    network.fc[0][2].p = 0.0
    copy_to_weaver(encoder, head, network)
    for module in (encoder, head, network):
        module.to(dtype).train(train)
    results = []
    for ours in (True, False):
        features = view.features.to(dtype).clone().requires_grad_()
        if ours:
            seen = replace(view, features=features, angles=view.angles.to(dtype))
            logits = head(encoder([seen])[0].cls)
        else:
            points = view.angles.to(dtype).transpose(1, 2)
            logits = network(points, features.transpose(1, 2), view.mask.unsqueeze(1))
        weights = torch.arange(logits.numel(), dtype=dtype).reshape(logits.shape).sin()
        (gradient,) = torch.autograd.grad((logits * weights).sum(), features)
        results.append((logits.detach(), gradient * view.mask.unsqueeze(-1)))
    return results, encoder, network


@pytest.mark.parametrize(("n_features", "expected"), [(17, 370_156), (7, 368_216), (13, 369_380)])
def test_number_of_parameters(n_features, expected):
    encoder = ParticleNet(PARTICLENETS["standard"], n_features)
    assert n_parameters(encoder, ClassifierHead(encoder.width, 10, (256,), 0.1)) == expected


@pytest.mark.parametrize("config", [SMALL, PARTICLENETS["lite"], ParticleNetConfig(3, ((7,), (7, 9)))])
def test_equals_weaver_on_padded_jets(config):
    view = view_of([30, 12, 25, 18])
    (ours, theirs), *_ = both(config, view)
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(ours[1], theirs[1], atol=1e-9, rtol=1e-9)


def test_equals_weaver_on_jets_with_fewer_particles_than_neighbours():
    """Missing neighbours are particles without features, as weaver finds them among the padding."""
    view = view_of([30, 3, 9, 1, 2])
    (ours, theirs), *_ = both(PARTICLENETS["lite"], view)
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(ours[1], theirs[1], atol=1e-9, rtol=1e-9)


def test_equals_weaver_in_training_where_nothing_is_padded():
    view = view_of([20, 20, 20])
    (ours, theirs), encoder, network = both(PARTICLENETS["lite"], view, train=True)
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(ours[1], theirs[1], atol=1e-9, rtol=1e-9)
    for name in ("running_mean", "running_var"):
        own, other = getattr(encoder.blocks[1].first.norm, name), getattr(network.edge_convs[1].bns[0], name)
        torch.testing.assert_close(own, other, atol=1e-9, rtol=1e-9)


def test_equals_weaver_on_real_jets(real_data):
    """To the last digits in double precision, so the neighbours are the same; to rounding in single precision."""
    jets = weaver_jets(real_data / "jetclass" / "jetclass_10class_250_kin.npz")[:20]
    view = Features(WEAVER)(jets.batch())
    (ours, theirs), *_ = both(PARTICLENETS["standard"], view)
    assert (view.mask.sum(1) < 17).any()
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(ours[1], theirs[1], atol=1e-9, rtol=1e-9)
    (ours, theirs), *_ = both(PARTICLENETS["standard"], view, dtype=torch.float32)
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-5, rtol=1e-5)
    # A gradient is a sum over neighbours and may be small beside its terms.
    torch.testing.assert_close(ours[1], theirs[1], atol=1e-5, rtol=1e-3)


def test_running_statistics_are_those_of_real_particles_alone():
    view = view_of([30, 5, 12])
    encoder = built().train()
    encoder.norm.reset_running_stats()
    encoder([view])
    torch.testing.assert_close(encoder.norm.running_mean, 0.1 * view.features[view.mask].mean(0))


def padded(view: ModelInput, n: int) -> ModelInput:
    def more(x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x, (0, 0, 0, n))

    mask = torch.nn.functional.pad(view.mask, (0, n))
    return ModelInput(more(view.features), mask, more(view.coordinates), view.jet_features, more(view.angles))


@pytest.mark.parametrize("train", [False, True])
def test_padding_changes_nothing(train):
    view = view_of([9, 2, 5, 1])
    encoder = built().train(train)
    for n in (1, 40):
        narrow, wide = encoder([view])[0], encoder([padded(view, n)])[0]
        torch.testing.assert_close(wide.cls, narrow.cls)
        torch.testing.assert_close(wide.tokens[:, :9], narrow.tokens)
        assert not wide.tokens[:, 9:].any()


def test_permuted_particles_give_permuted_tokens():
    view = view_of([17, 17])
    order = torch.from_numpy(np.random.default_rng(0).permutation(17))
    mixed = ModelInput(
        view.features[:, order],
        view.mask[:, order],
        view.coordinates[:, order],
        view.jet_features,
        view.angles[:, order],
    )
    encoder = built()
    first, second = encoder([view])[0], encoder([mixed])[0]
    torch.testing.assert_close(second.cls, first.cls)
    torch.testing.assert_close(second.tokens, first.tokens[:, order])


def test_views_do_not_see_each_other():
    views = [view_of([9, 3]), view_of([20], seed=1), view_of([1, 7, 4], seed=2)]
    encoder = built()
    for view, together in zip(views, encoder(views), strict=True):
        alone = encoder([view])[0]
        torch.testing.assert_close(together.cls, alone.cls)
        torch.testing.assert_close(together.tokens, alone.tokens)
        torch.testing.assert_close(together.at(view.mask), alone.tokens[view.mask])


def test_pooled_is_the_mean_of_the_tokens_and_zero_for_an_empty_jet():
    jets = random_jets([6, 4])
    batch = jets.batch()
    batch = replace(
        batch, mask=batch.mask & torch.tensor([[True], [False]]), p4=batch.p4 * torch.tensor([1.0, 0])[:, None, None]
    )
    encoded = built()([Features(WEAVER)(batch)])[0]
    torch.testing.assert_close(encoded.cls[0], encoded.tokens[0].mean(0))
    assert not encoded.cls[1].any()


def test_inference_in_pieces_equals_the_whole(monkeypatch):
    view, encoder = view_of([40, 30, 2]), built()
    whole = encoder([view])[0].cls
    monkeypatch.setattr("jetrep.encoders.particlenet._PIECE", 4 * 12 * 5)
    with torch.no_grad():
        torch.testing.assert_close(encoder([view])[0].cls, whole)


def test_neighbours_are_the_nearest_others_with_wrapped_azimuth():
    points = torch.tensor([[[0.0, 3.1], [0.0, -3.1], [0.0, 0.0], [0.3, 3.1], [9.0, 9.0]]])
    mask = torch.tensor([[True, True, True, True, False]])
    index = nearest(points, mask, 4, angles=True)
    assert index[0, 0].tolist() == [1, 3, 2, -1]
    assert index[0, 1].tolist() == [0, 3, 2, -1]
    # Without wrapping the particles on both sides of π are far apart.
    assert nearest(points, mask, 1)[0, 0].tolist() == [3]


def test_particles_at_one_place_are_neighbours_and_nobody_is_their_own():
    points = torch.zeros(1, 4, 2)
    index = nearest(points, torch.ones(1, 4, dtype=torch.bool), 3, angles=True)
    for i in range(4):
        assert sorted(index[0, i].tolist()) == [j for j in range(4) if j != i]


def test_layers_hold_every_parameter_once():
    encoder = built()
    layers = encoder.layers()
    assert len(layers) == 3
    assert sorted(name for layer in layers for name, _ in layer) == sorted(n for n, _ in encoder.named_parameters())
    assert {name for name, _ in layers[0]} == {"norm.weight", "norm.bias"}


@pytest.mark.parametrize(
    ("settings", "field"),
    [({"neighbours": 0}, "neighbours"), ({"channels": ()}, "channels"), ({"channels": ((8, 0),)}, "channels")],
)
def test_settings_out_of_range(settings, field):
    with pytest.raises(InputError, match=field):
        ParticleNetConfig(**settings)
