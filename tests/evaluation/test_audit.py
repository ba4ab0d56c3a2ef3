"""The audit finds the symmetries that hold, and those that do not."""

import math

import pytest
import torch

from jetrep.encoders import JetTransformer, ParticleNet, ParticleNetConfig, TransformerConfig
from jetrep.encoders.lorentz import LorentzConfig, LorentzEncoder
from jetrep.encoders.lorentz_decoder import LorentzAutoencoder, LorentzDecoderConfig
from jetrep.errors import InputError
from jetrep.evaluation.audit import audit_covariant, audit_model, largest
from jetrep.features import FeatureConfig
from jetrep.model import JetModel, ModelConfig
from lorentz_jets import jets_of

ENCODER = LorentzConfig(width=16, vectors=4, heads=2, depth=2, hidden=16, pooled=3)
KEPT = ("boost", "rotation", "azimuth", "permutation", "padding")
TINY = TransformerConfig(width=16, depth=2, heads=2)


def audit(encoder, counts, config=FeatureConfig(), **options):
    model = JetModel(ModelConfig(config, encoder.config), encoder=encoder)
    return audit_model(model, *jets_of(counts), **options)


def seeded(make, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def test_lorentz_encoder_passes_and_the_table_is_complete():
    encoder = seeded(lambda: LorentzEncoder(ENCODER))
    table = audit(encoder, [12] * 20 + [7] * 20)
    assert max(largest(table, symmetry) for symmetry in ("rotation", "permutation", "padding")) < 1e-6
    assert (
        max(row.median for row in table if row.layer == "end" and row.symmetry == "boost" and row.parameter <= 50)
        < 1e-6
    )
    assert largest(table, "boost") < 1e-5
    seen = {(row.symmetry, row.output) for row in table if row.layer == "end"}
    assert seen == {
        *((s, o) for s in KEPT for o in ("cls", "tokens", "vectors")),
        *((s, o) for s in ("soft", "collinear") for o in ("cls", "vectors")),
    }
    assert {row.layer for row in table} == {"features", "block 1", "end"}
    assert {(row.symmetry, row.output) for row in table if row.layer == "block 1"} == {
        (s, o) for s in KEPT for o in ("cls", "tokens", "vectors")
    }
    assert all(row.n_jets == 40 and row.dtype == "float32" and row.median <= row.maximum for row in table)
    assert next(encoder.parameters()).dtype == torch.float32


def test_float64_is_more_exact():
    encoder = seeded(lambda: LorentzEncoder(ENCODER))
    tables = [audit(encoder, [12] * 10, dtype=dtype, boosts=(5.0,)) for dtype in (torch.float32, torch.float64)]
    assert largest(tables[1], "boost") < 1e-3 * largest(tables[0], "boost")
    assert next(encoder.parameters()).dtype == torch.float32  # the copy was converted, not the encoder


@pytest.mark.parametrize(
    "make", [lambda: JetTransformer(TINY, 7), lambda: ParticleNet(ParticleNetConfig(4, ((8,), (12,))), 7)]
)
def test_encoders_of_jet_coordinates_fail_boosts_but_not_permutation_and_padding(make):
    table = audit(seeded(make), [12] * 20 + [7] * 20, boosts=(2.0,))
    assert largest(table, "boost") > 1e-3
    assert largest(table, "rotation") > 1e-3
    assert largest(table, "permutation") < 1e-5
    assert largest(table, "padding") < 1e-5


def test_autoencoder_is_covariant_end_to_end():
    model = seeded(lambda: LorentzAutoencoder(LorentzEncoder(ENCODER), 4, LorentzDecoderConfig(12, 16, 4, 2, 2, 16)))
    p4, mask = jets_of([12] * 20 + [7] * 20)
    table = audit_covariant(lambda p, m: model(p, m).p4, p4, mask)
    assert (
        max(row.median for row in table if row.layer == "end" and row.symmetry == "boost" and row.parameter <= 50)
        < 1e-6
    )
    assert largest(table, "boost") < 1e-5
    assert max(largest(table, s, "vectors") for s in ("rotation", "permutation", "padding")) < 1e-6


def test_sums_of_momenta_are_safe_and_counts_are_not():
    """An error of random sign does not average out, and infrared and collinear safety are told apart."""
    p4, mask = jets_of([12] * 30)
    safe = audit_covariant(lambda p, m: p.sum(1, keepdim=True), p4, mask, dtype=torch.float64)
    counts = audit_covariant(lambda p, m: p.sum(1, keepdim=True) * m.sum(1)[:, None, None], p4, mask)
    soft = [row.median for row in safe if row.symmetry == "soft"]
    assert soft == sorted(soft, reverse=True)
    assert soft[-1] < 1e-5
    assert largest(safe, "collinear") < 1e-14
    assert min(row.median for row in counts if row.symmetry in ("soft", "collinear")) > 0.05
    noise = torch.Generator().manual_seed(0)

    def noisy(p, m):
        return p.sum(1, keepdim=True) * (1 + 0.1 * torch.randn(len(p), 1, 1, generator=noise))

    assert largest(audit_covariant(noisy, p4, mask), "rotation") > 0.03


def test_largest_of_what_is_not_a_number_is_not_a_number():
    p4, mask = jets_of([5, 5])
    table = audit_covariant(lambda p, m: p.sum(1, keepdim=True) * float("nan"), p4, mask, boosts=(2.0, 3.0))
    assert math.isnan(largest(table, "boost"))
    with pytest.raises(InputError, match="was not measured"):
        largest(table, "boost", "tokens")


def test_what_cannot_be_audited_is_refused():
    encoder = seeded(lambda: LorentzEncoder(ENCODER))
    with pytest.raises(InputError, match=r"jet 1.*at least one particle"):
        audit(encoder, [5, 0])
