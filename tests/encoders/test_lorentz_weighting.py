"""With sums weighted by energy, what is said of a jet is infrared and collinear safe, and all symmetries stay."""

import math
from dataclasses import replace

import pytest
import torch

from jetrep.encoders.lorentz import LorentzConfig, LorentzEncoder
from jetrep.encoders.lorentz_decoder import LorentzAutoencoder, LorentzDecoderConfig
from jetrep.errors import InputError
from jetrep.evaluation.audit import audit_covariant, audit_model, largest
from jetrep.features import FeatureConfig
from jetrep.model import JetModel, ModelConfig
from lorentz_jets import jets_of

SAFE = LorentzConfig(width=16, vectors=4, heads=2, depth=2, hidden=16, pooled=3, weighting="energy")
CONFIGS = [SAFE, replace(SAFE, aggregation="mean"), replace(SAFE, maxdim=3, tensors=2), replace(SAFE, mass=False)]
IDS = ["attention", "mean", "rank 2", "no mass"]


def built(config, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LorentzEncoder(config)


def audited(config, **options):
    model = JetModel(ModelConfig(FeatureConfig(), config), encoder=built(config))
    return audit_model(model, *jets_of([12] * 20 + [7] * 20), dtype=torch.float64, **options)


def soft_errors(table, output):
    return {row.parameter: row.median for row in table if row.symmetry == "soft" and row.output == output}


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_soft_particles_fade_out_and_collinear_splits_change_nothing(config):
    table = audited(config, boosts=(2.0,))
    for output in ("cls", "vectors"):
        errors = soft_errors(table, output)
        for large, small in ((1e-2, 1e-3), (1e-3, 1e-6)):
            power = math.log(errors[large] / errors[small]) / math.log(large / small)
            assert 0.9 < power < 1.1
        assert largest(table, "collinear", output) < 1e-10
    assert max(largest(table, symmetry) for symmetry in ("boost", "rotation", "permutation", "padding")) < 1e-9
    assert "collinear" in built(config).symmetries


def test_counting_particles_is_not_safe():
    table = audited(replace(SAFE, weighting="count"), boosts=(2.0,))
    assert min(soft_errors(table, "cls").values()) > 1e-3
    assert largest(table, "collinear", "cls") > 1e-3


def test_an_autoencoder_of_it_is_safe_end_to_end():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LorentzAutoencoder(LorentzEncoder(SAFE), 4, LorentzDecoderConfig(12, 16, 4, 2, 2, 16)).double()
    table = audit_covariant(lambda p, m: model(p, m).p4, *jets_of([12] * 20), boosts=(2.0,), dtype=torch.float64)
    errors = soft_errors(table, "vectors")
    assert errors[1e-6] < 1e-4
    assert errors[1e-3] < 20 * 1e-3 * errors[1e-1] / 1e-1
    assert largest(table, "collinear") < 1e-9


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_every_parameter_receives_gradient(config):
    encoder = built(config)
    jets = encoder.jets(*jets_of([12, 9, 4]))
    (jets.cls.square().sum() + jets.vectors.square().sum()).backward()
    assert not [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]


def test_directions_are_told_apart():
    """Jets of one mass with other directions give other tokens: energies alone do not decide."""
    p4, mask = jets_of([12] * 8)
    cls = built(SAFE).double().jets(p4, mask).cls
    spread = (cls - cls.mean(0)).norm(dim=1).mean() / cls.norm(dim=1).mean()
    assert spread > 1e-2


def test_degenerate_jets_are_finite():
    encoder = built(SAFE)
    p4, mask = torch.zeros(4, 5, 4), torch.zeros(4, 5, dtype=torch.bool)
    mask[1:, 0] = True
    mask[2:, 1] = True
    p4[1:, :2] = torch.tensor([5.0, 3.0, 4.0, 0.0])
    p4[3, 1] = 0.0
    jets = encoder.jets(p4 * mask.unsqueeze(-1), mask)
    (jets.cls.sum() + jets.vectors.sum() + jets.tokens.sum()).backward()
    assert all(torch.isfinite(x).all() for x in (jets.cls, jets.vectors, jets.tokens))
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters() if p.grad is not None)


@pytest.mark.parametrize("aggregation", ["min", "max", "min&max", "mix"])
def test_aggregations_that_single_out_particles_are_refused(aggregation):
    with pytest.raises(InputError, match=r"encoder\.aggregation"):
        replace(SAFE, aggregation=aggregation, max_particles=30)
