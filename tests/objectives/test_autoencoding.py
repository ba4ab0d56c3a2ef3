"""Autoencoding: what the loss compares, and that every encoder learns from it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from jetrep.encoders.autoencoder import InLaboratory
from jetrep.encoders.build import KINDS, build_encoder
from jetrep.encoders.decoder import SetTransformerConfig
from jetrep.encoders.lorentz_decoder import LorentzDecoderConfig
from jetrep.encoders.set_autoencoder import SetAutoencoder
from jetrep.encoders.transformer import TransformerConfig
from jetrep.errors import InputError
from jetrep.features import FeatureConfig, Features
from jetrep.jets import JetBatch
from jetrep.objectives.autoencoding import AutoencoderConfig, Autoencoding
from jetrep.physics import fourvector as fv
from lorentz_jets import jets_of, observers, seen_by
from prong_jets import prong_jets

SMALL = AutoencoderConfig(
    latent=6, decoder=LorentzDecoderConfig(30, 8, 4, 2, 1, 16), set_decoder=SetTransformerConfig(16, 1, 2), axes=4
)
SETTINGS = {
    "cnnae": {"pixels": 8, "channels": (4, 4), "latent": 5},
    "gnnae": {"width": 8},
    "lgatr": {"variant": "slim", "width": 8, "vectors": 4, "heads": 2, "depth": 1},
    "lorentz": {"width": 8, "vectors": 4, "heads": 2, "depth": 1, "hidden": 16, "pooled": 2},
    "particle_transformer": {"width": 16, "depth": 1, "heads": 2},
    "particlenet": {"neighbours": 3, "channels": ((8,), (8,))},
    "transformer": {"width": 16, "depth": 1, "heads": 2},
}
LOSSES = ["hungarian", "chamfer", "mixture", "mse", "emd", "sinkhorn", "sliced"]


@pytest.fixture(scope="module")
def batch():
    return prong_jets(24).batch(np.arange(24))


def objective(kind="lorentz", config=SMALL, seed=0, **settings):
    torch.manual_seed(seed)
    features = Features(FeatureConfig())
    encoder = build_encoder(KINDS[kind](**{**SETTINGS[kind], **settings}), len(features.names))
    return Autoencoding(features, encoder, config)


def loss_of(module, batch, step=0):
    return module(batch, step, 10, torch.Generator().manual_seed(0))


class _Given(torch.nn.Module):
    """A decoder that says what it is told to."""

    def __init__(self, p4, presence):
        super().__init__()
        self.p4, self.presence = p4, presence

    def forward(self, p4, mask):
        return InLaboratory(self.presence, self.p4)


@pytest.mark.parametrize("space", ["rest", "relative"])
@pytest.mark.parametrize("loss", LOSSES)
def test_loss_is_zero_for_what_went_in_and_only_then(batch, loss, space):
    if space == "relative" and loss in ("emd", "sinkhorn", "sliced"):
        with pytest.raises(InputError, match=r"objective\.space"):
            replace(SMALL, loss=loss, space=space)
        return
    module = objective(config=replace(SMALL, loss=loss, space=space, presence_weight=0.0))
    slots = torch.nn.functional.pad(batch.p4.double(), (0, 0, 0, 30 - batch.p4.shape[1]))
    real = torch.nn.functional.pad(batch.mask, (0, 30 - batch.p4.shape[1]))
    module.autoencoder = _Given(slots, torch.where(real, 5.0, -5.0))
    exact = loss_of(module, batch)
    # Distances, other than their squares, are of the order of the rounding itself.
    assert abs(float(exact.loss)) < (1e-4 if loss in ("emd", "sinkhorn", "sliced") else 1e-8)
    assert float(exact.metrics["mass_error"]) < 1e-3
    assert float(exact.metrics["multiplicity_error"]) == 0
    moved = slots.clone()
    moved[:, 0, 1] *= 1.2
    module.autoencoder.p4 = fv.from_ptetaphim(fv.pt(moved), fv.eta(moved), fv.phi(moved), 0 * fv.pt(moved))
    assert float(loss_of(module, batch).loss) > 10 * abs(float(exact.loss)) + 1e-6


def test_mixture_goes_from_chamfer_to_hungarian(batch):
    losses = {name: objective(config=replace(SMALL, loss=name)) for name in ("chamfer", "mixture", "hungarian")}
    at = {
        name: [float(loss_of(module, batch, step).loss.detach()) for step in (0, 2, 5, 9)]
        for name, module in losses.items()
    }
    first, half = at["chamfer"][0], at["hungarian"][0]
    assert first != pytest.approx(half, rel=1e-3)
    assert at["mixture"] == pytest.approx([first, 0.6 * first + 0.4 * half, half, half], rel=1e-5)


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_parameter_gets_gradient(batch, kind):
    module = objective(kind).train()
    loss_of(module, batch).loss.backward()
    named = dict(module.named_parameters())
    silent = {name for name, p in named.items() if p.grad is None or not p.grad.any()}
    unread = {name for name in silent if kind == "lgatr" and "encoder" in name.split(".")}  # its last vectors
    assert silent == unread
    trained = sum(len(group["params"]) for group in module.parameter_groups(1e-3, 0.0))
    assert trained == len(named) - len(unread)


@pytest.mark.parametrize("kind", list(KINDS))
def test_learns(batch, kind):
    module = objective(kind)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3 if kind == "gnnae" else 1e-2)
    losses = []
    for step in range(30):
        loss = loss_of(module, batch, step).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_all_kinds_of_encoders_are_here():
    assert set(SETTINGS) >= set(KINDS)


@pytest.mark.parametrize("loss", LOSSES)
def test_padding_takes_no_part(batch, loss):
    module = objective(config=replace(SMALL, loss=loss, emd_weight=0.1 if loss == "hungarian" else 0.0)).eval()
    expected = loss_of(module, batch).loss
    p4 = torch.nn.functional.pad(batch.p4, (0, 0, 0, 3), value=7.0)
    mask = torch.nn.functional.pad(batch.mask, (0, 3))
    p4[~mask] = 3.0
    torch.testing.assert_close(loss_of(module, JetBatch(p4, mask, batch.jet_p4)).loss, expected, rtol=1e-4, atol=1e-6)


# The axes of the sliced distance are those of the observer: it is the same for all only in the mean over axes.
@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss != "sliced"])
def test_loss_of_a_lorentz_autoencoder_is_the_same_for_every_observer(loss):
    p4, mask = jets_of([9, 5, 12])
    module = objective(config=replace(SMALL, loss=loss)).double().eval()
    matrices = observers(3, 5.0)
    here, there = (JetBatch(x, mask, x.sum(1)) for x in (p4, seen_by(matrices, p4)))
    torch.testing.assert_close(loss_of(module, there).loss, loss_of(module, here).loss, rtol=1e-5, atol=1e-8)


def test_more_particles_than_slots_are_refused(batch):
    module = objective(config=replace(SMALL, decoder=LorentzDecoderConfig(12, 8, 4, 2, 1, 16)))
    with pytest.raises(InputError, match=r"objective\.decoder\.n_particles.*12 slots"):
        loss_of(module, batch)


@pytest.mark.parametrize(
    ("setting", "value"), [("latent", 0), ("axes", 0), ("presence_weight", -1.0), ("emd_weight", float("nan"))]
)
def test_bad_settings_are_refused(setting, value):
    with pytest.raises(InputError, match=f"objective.{setting}"):
        replace(SMALL, **{setting: value})


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "particle_transformer"])
def test_empty_and_massless_jets_give_finite_gradients(kind):
    p4 = torch.zeros(3, 4, 4)
    p4[1, 0] = torch.tensor([5.0, 3.0, 4.0, 0.0])
    p4[2, :2] = torch.tensor([5.0, 3.0, 4.0, 0.0])
    mask = torch.tensor([[False] * 4, [True, False, False, False], [True, True, False, False]])
    module = objective(kind, replace(SMALL, emd_weight=0.1)).eval()
    loss_of(module, JetBatch(p4, mask, p4.sum(1))).loss.backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


class TestSetAutoencoder:
    def build(self, features=None):
        torch.manual_seed(0)
        features = features or Features(FeatureConfig())
        encoder = build_encoder(TransformerConfig(width=16, depth=1, heads=2), len(features.names))
        return SetAutoencoder(encoder, features, 6, 30, SetTransformerConfig(16, 1, 2)).eval()

    def test_what_is_kept_is_all_that_the_decoder_knows(self, batch):
        autoencoder = self.build()
        numbers = autoencoder.encode(batch.p4, batch.mask)
        assert numbers.shape == (24, autoencoder.size) == (24, 9)
        whole = autoencoder(batch.p4, batch.mask)
        torch.testing.assert_close(autoencoder.decode(numbers).p4, whole.p4)
        for k in range(9):
            changed = numbers.clone()
            changed[:, k] *= 1.1
            assert not torch.allclose(autoencoder.decode(changed).p4, whole.p4, rtol=1e-4)

    def test_numbers_of_another_model_are_refused(self):
        with pytest.raises(InputError, match="latent"):
            self.build().decode(torch.zeros(2, 8))

    def test_measured_columns_are_refused(self):
        with pytest.raises(InputError, match=r"features\.names"):
            self.build(Features(FeatureConfig("kinpid", "weaver")))


def test_a_small_power_makes_soft_particles_count(batch):
    """The loss of a wrong soft particle, in units of that of a hard one, is the square root of what it was."""
    slots = torch.nn.functional.pad(batch.p4.double(), (0, 0, 0, 30 - batch.p4.shape[1]))
    real = torch.nn.functional.pad(batch.mask, (0, 30 - batch.p4.shape[1]))
    ratios = []
    for power in (1.0, 0.5):
        module = objective(config=replace(SMALL, loss="mse", power=power, presence_weight=0.0))
        losses = []
        for i in (0, 9):  # particles in the order of pT
            changed = slots.clone()
            changed[:, i] *= 1.01
            module.autoencoder = _Given(changed, torch.where(real, 5.0, -5.0))
            losses.append(float(loss_of(module, batch).loss))
        ratios.append(losses[1] / losses[0])
    assert ratios[0] < 0.2
    assert 0.5 * ratios[0] ** 0.5 < ratios[1] < 2 * ratios[0] ** 0.5


@pytest.mark.parametrize("kind", SETTINGS)
def test_scaled_momenta_are_for_autoencoders_of_features(kind):
    """The others learn to give back the momenta that they see."""
    torch.manual_seed(0)
    features = Features(FeatureConfig(scale_pt=500.0))
    encoder = build_encoder(KINDS[kind](**SETTINGS[kind]), len(features.names))
    if kind in ("lorentz", "gnnae", "cnnae"):
        with pytest.raises(InputError, match=r"features.scale_pt.*meet scaled ones"):
            Autoencoding(features, encoder, SMALL)
    else:
        assert Autoencoding(features, encoder, SMALL).autoencoder.encoder is encoder


def test_what_is_decoded_relative_to_the_axis_does_not_turn_along():
    settings = {**SETTINGS["lgatr"], "spurions": False}
    encoder = build_encoder(KINDS["lgatr"](**settings), 7)
    assert {"boost", "rotation"} <= encoder.symmetries
    autoencoder = Autoencoding(Features(FeatureConfig()), encoder, SMALL).autoencoder
    assert autoencoder.symmetries == encoder.symmetries - {"boost", "rotation"}
