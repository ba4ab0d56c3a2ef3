import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jetrep.encoders import SIZES, ClassifierHead, HeadConfig, JetTransformer, ProjectionHead, TransformerConfig
from jetrep.encoders.layers import Block, PolarEmbedding
from jetrep.errors import InputError
from jetrep.features import ModelInput

SMALL = {
    "later": TransformerConfig(width=32, depth=2, heads=4, mlp_hidden=48, layer_scale=0.5, n_registers=3),
    "published": replace(SIZES["nano"], depth=2),
}
N_FEATURES = 5


def n_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def random_view(counts: list[int], width: int, seed: int = 0) -> ModelInput:
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(width) < torch.tensor(counts).unsqueeze(1)
    features = torch.randn(len(counts), width, N_FEATURES, generator=g) * mask.unsqueeze(-1)
    coordinates = torch.randn(len(counts), width, 2, generator=g) * mask.unsqueeze(-1)
    return ModelInput(features, mask, coordinates, torch.randn(len(counts), 4, generator=g))


def jet(view: ModelInput, i: int, particles: Tensor | slice = slice(None)) -> ModelInput:
    return ModelInput(
        view.features[i : i + 1, particles],
        view.mask[i : i + 1, particles],
        view.coordinates[i : i + 1, particles],
        view.jet_features[i : i + 1],
    )


def built(config: TransformerConfig, seed: int = 0) -> JetTransformer:
    """An encoder in which no parameter is at a special value, so that none can be left out unnoticed."""
    torch.manual_seed(seed)
    encoder = JetTransformer(config, N_FEATURES)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


def oracle(encoder: JetTransformer, view: ModelInput) -> tuple[Tensor, Tensor]:
    """The textbook forward of one jet of one view: no padding, no packing, attention written out."""

    def norm(module: nn.Module, x: Tensor) -> Tensor:
        if isinstance(module, nn.LayerNorm):
            x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
            return x * module.weight + module.bias
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * module.weight

    real = view.mask[0]
    x = encoder.stem(view.features[0, real])
    if encoder.stem_norm is not None:
        x = norm(encoder.stem_norm, x)
    if encoder.position is not None:
        x = x + encoder.position.table[encoder.position.cells(view.coordinates[0, real])]
    prefix = [] if encoder.cls_from_jet is None else [encoder.cls_from_jet(view.jet_features)]
    prefix += [] if encoder.prefix is None else [encoder.prefix]
    x = torch.cat([*prefix, x])
    for block in encoder.blocks:
        assert isinstance(block, Block)
        q, k, v = block.qkv(norm(block.norm1, x)).chunk(3, -1)
        size = q.shape[1] // block.heads
        mixed = []
        for head in range(block.heads):
            of = slice(head * size, (head + 1) * size)
            weights = torch.softmax(q[:, of] @ k[:, of].T / math.sqrt(size), -1)
            mixed.append(weights @ v[:, of])
        x = x + block.proj(torch.cat(mixed, -1)) * (1 if block.gamma1 is None else block.gamma1)
        hidden = block.fc1(norm(block.norm2, x))
        if block.gated:
            gate, value = hidden.chunk(2, -1)
            hidden = gate * torch.sigmoid(gate) * value
        else:
            hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + block.fc2(hidden) * (1 if block.gamma2 is None else block.gamma2)
    x = norm(encoder.norm, x)
    return x[0], x[1 + encoder.config.n_registers :]


@pytest.mark.parametrize(
    ("size", "expected"),
    [("nano", 51_424), ("lite", 201_152), ("mini", 1_192_064), ("base", 4_743_424)],
)
def test_published_sizes(size, expected):
    assert n_parameters(JetTransformer(SIZES[size], 11)) == expected


def test_production_size():
    encoder = JetTransformer(SIZES["production"], 7)
    assert encoder.position is not None
    assert n_parameters(encoder.position) == 2_560_000
    assert n_parameters(encoder) == 8_427_264 + 2_560_000


@pytest.mark.parametrize(("size", "expected"), [("nano", 6_272), ("lite", 24_832), ("mini", 98_816), ("base", 394_240)])
def test_published_heads(size, expected):
    head = ProjectionHead(SIZES[size].width, HeadConfig(hidden=(4.0,), bottleneck=None, n_prototypes=None))
    assert n_parameters(head) == expected


def test_production_head():
    head = ProjectionHead(256, HeadConfig())
    assert n_parameters(head) == 2_099_456
    logits = head(torch.randn(10, 256))
    assert logits.shape == (10, 2048)
    assert logits.abs().max() <= 1 + 1e-6
    with torch.no_grad():
        head.prototypes.mul_(3.0)
    x = torch.randn(4, 256)
    before = head(x)
    with torch.no_grad():
        head.prototypes.mul_(0.1)
    torch.testing.assert_close(head(x), before)


@pytest.mark.parametrize("config", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("stock", [False, True], ids=["cpu", "stock operations"])
def test_packed_forward_and_gradients_equal_the_textbook(config, stock, monkeypatch):
    if stock:
        monkeypatch.setattr(Block, "forward", Block.plain)
    encoder = built(config)
    # Equal lengths, long, very short, empty jets, and more jets than one group of attention takes.
    views = [random_view([4] * 7, 4), random_view([30, 1, 0, 12, 29, 2, 30], 33, 1), random_view([90] * 40, 90, 2)]
    weights = [torch.randn(config.width), torch.randn(config.width)]
    parameters = list(encoder.parameters())

    encoded = encoder(views)
    loss = torch.stack([(view.cls @ weights[0]).sin().sum() for view in encoded]).sum()
    loss = loss + torch.stack([((view.tokens @ weights[1]).sin() * view.mask).sum() for view in encoded]).sum()
    gradients = torch.autograd.grad(loss, parameters)

    expected = torch.zeros(())
    for view, out in zip(views, encoded, strict=True):
        for i in range(len(view.mask)):
            cls, tokens = oracle(encoder, jet(view, i))
            torch.testing.assert_close(out.cls[i], cls, rtol=1e-4, atol=2e-5)
            torch.testing.assert_close(out.tokens[i, view.mask[i]], tokens, rtol=1e-4, atol=2e-5)
            expected = expected + (cls @ weights[0]).sin().sum() + (tokens @ weights[1]).sin().sum()
        assert not out.tokens[~view.mask].any()
    for parameter, gradient in zip(torch.autograd.grad(expected, parameters), gradients, strict=True):
        torch.testing.assert_close(gradient, parameter, rtol=2e-3, atol=2e-3 * float(parameter.abs().max()))


@pytest.mark.parametrize("config", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("stock", [False, True], ids=["cpu", "stock operations"])
def test_reading_few_tokens_changes_neither_them_nor_their_gradients(config, stock, monkeypatch):
    if stock:
        monkeypatch.setattr(Block, "forward", Block.plain)
    encoder = built(config)
    views = [random_view([4] * 7, 4), random_view([30, 1, 0, 12, 29, 2, 30], 33, 1), random_view([5, 6], 6, 2)]
    hidden = views[1].mask & (torch.rand(views[1].mask.shape, generator=torch.Generator().manual_seed(0)) < 0.3)
    chosen = [None, hidden, None]

    def outcome(few: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        out = encoder(views, chosen if few else None)
        tokens = torch.cat([*(view.cls for view in out), out[1].at(hidden)])
        return tokens.detach(), torch.autograd.grad(tokens.sin().sum(), list(encoder.parameters()))

    tokens, gradients = outcome(few=True)
    expected, expected_gradients = outcome(few=False)
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-5)
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=2e-3, atol=1e-3 * float(other.abs().max()))
    with pytest.raises(RuntimeError, match="chosen"):
        _ = encoder(views, chosen)[0].tokens


@pytest.mark.parametrize("config", SMALL.values(), ids=SMALL)
def test_a_jet_depends_on_nothing_but_itself(config):
    encoder = built(config).eval()
    view = random_view([3, 17, 9, 20], 20)
    together = encoder([random_view([6] * 4, 6, 3), view])[1].pooled("cls+mean")
    alone = torch.cat([encoder([jet(view, i, view.mask[i])])[0].pooled("cls+mean") for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)

    garbage = replace(view, features=torch.where(view.mask.unsqueeze(-1), view.features, 1e4))
    torch.testing.assert_close(encoder([garbage])[0].pooled("cls+mean"), together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", SMALL.values(), ids=SMALL)
def test_particles_have_no_order(config):
    encoder = built(config)
    view = random_view([8, 8], 8)
    shuffled = torch.randperm(8)
    out, other = encoder([jet(view, 0), jet(view, 0, shuffled)])
    torch.testing.assert_close(other.pooled("cls+mean"), out.pooled("cls+mean"), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other.tokens, out.tokens[:, shuffled], rtol=1e-4, atol=1e-5)


def test_real_particles_may_stand_anywhere():
    encoder = built(SMALL["later"])
    view = random_view([5, 7], 10)
    places = torch.tensor([9, 0, 4, 8, 2, 6, 1, 3, 5, 7])
    moved = replace(
        view, features=view.features[:, places], mask=view.mask[:, places], coordinates=view.coordinates[:, places]
    )
    out, other = encoder([view, moved])
    torch.testing.assert_close(other.tokens, out.tokens[:, places], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other.at(moved.mask), other.tokens[moved.mask])


def test_mean_is_over_particles_not_registers_and_zero_for_an_empty_jet():
    out = built(SMALL["later"])([random_view([3, 0], 4)])[0]
    torch.testing.assert_close(out.pooled("mean")[0], out.tokens[0, :3].mean(0))
    assert not out.pooled("mean")[1].any()
    assert out.pooled("cls")[1].isfinite().all()
    torch.testing.assert_close(out.pooled("cls+mean"), torch.cat([out.cls, out.pooled("mean")], -1))


@pytest.mark.parametrize("config", SMALL.values(), ids=SMALL)
def test_bfloat16_is_near_float32(config):
    encoder = built(config)
    views = [random_view([4] * 7, 4), random_view([30, 1, 0, 12, 29, 2, 30], 33, 1)]

    def outcome() -> tuple[Tensor, Tensor]:
        pooled = torch.cat([view.pooled("cls+mean") for view in encoder(views)])
        gradients = torch.autograd.grad((pooled.float() ** 3).mean(), list(encoder.parameters()))
        return pooled.detach().float(), torch.cat([g.flatten() for g in gradients])

    exact, exact_gradient = outcome()
    with torch.autocast("cpu", torch.bfloat16):
        near, near_gradient = outcome()
    assert near.isfinite().all()
    assert near_gradient.isfinite().all()
    assert not torch.equal(near, exact)
    assert (near - exact).norm() < 0.03 * exact.norm()
    assert (near_gradient - exact_gradient).norm() < 0.06 * exact_gradient.norm()


def test_dropout_acts_in_training_alone():
    encoder = built(replace(SMALL["published"], dropout=0.5))
    view = random_view([5, 6], 6)
    assert not torch.allclose(encoder([view])[0].cls, encoder([view])[0].cls)
    encoder.eval()
    assert torch.equal(encoder([view])[0].cls, encoder([view])[0].cls)


def test_layers_hold_each_parameter_once_from_stem_to_norm():
    encoder = JetTransformer(SIZES["production"], 7)
    layers = encoder.layers()
    assert len(layers) == 9
    paths = [path for layer in layers for path, _ in layer]
    assert sorted(paths) == sorted(path for path, _ in encoder.named_parameters())
    assert {"stem.weight", "prefix", "position.table"} <= {path for path, _ in layers[0]}
    assert "norm.weight" in {path for path, _ in layers[-1]}
    assert all(path.startswith("blocks.2.") for path, _ in layers[3])


def test_polar_cells_are_cyclic_logarithmic_and_clamped():
    embedding = PolarEmbedding(8, bins=100, r_scale=0.96, r_max=5.6)

    def cell(r: float, phi: float) -> tuple[int, int]:
        index = int(embedding.cells(torch.tensor([r * math.cos(phi), r * math.sin(phi)])))
        return divmod(index, 100)

    assert cell(1.0, math.pi - 1e-3) == cell(1.0, -math.pi + 1e-3)
    assert cell(1.0, -math.pi + 0.07)[1] == 1
    assert cell(1.0, math.pi - 0.07)[1] == 99
    assert cell(0.0, 0.0)[0] == 0
    assert cell(5.6, 1.0)[0] == cell(80.0, 1.0)[0] == 99
    for r in (0.1, 0.96, 2.0, 4.0):
        assert cell(r, 0.3)[0] == round(99 * math.log(1 + r / 0.96) / math.log(1 + 5.6 / 0.96))
    angles = torch.linspace(-math.pi, math.pi, 20_001)[:-1]
    cells = embedding.cells(torch.stack([angles.cos(), angles.sin()], -1)) % 100
    assert torch.bincount(cells, minlength=100).float().sub(200).abs().max() <= 2


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(InputError, match="multiple of 3 heads"):
        TransformerConfig(width=32, heads=3)


def test_classifier_shapes():
    assert n_parameters(ClassifierHead(32, 1)) == 33
    assert n_parameters(ClassifierHead(256, 2, (256, 128), 0.1)) == 256 * 256 + 256 + 256 * 128 + 128 + 2 * 128 + 2
    linear = ClassifierHead(4, 3)
    x = torch.randn(5, 4)
    torch.testing.assert_close(linear(x), F.linear(x, linear.layers[0].weight, linear.layers[0].bias))
