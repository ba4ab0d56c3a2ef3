"""`jetrep audit`: runs of several encoders, claims that hold and claims that do not."""

import json
import math

import numpy as np
import pytest
import torch

from jetrep import cli
from jetrep.encoders.lgatr import LGATrConfig
from jetrep.encoders.lorentz import LorentzConfig, LorentzEncoder
from jetrep.encoders.particle_transformer import ParticleTransformerConfig
from jetrep.encoders.particlenet import ParticleNetConfig
from jetrep.encoders.transformer import JetTransformer, TransformerConfig
from jetrep.features import FeatureConfig
from jetrep.model import ClassifierConfig, JetModel, ModelConfig
from jetrep.physics.lorentz import minkowski
from jetrep.studies.audit import BrokenSymmetryError, audit, toy_jets
from jetrep.training.checkpoint import save_model
from prong_jets import prong_jets, write_store

LORENTZ = LorentzConfig(width=16, vectors=4, heads=2, depth=3, hidden=16, pooled=3)
TRANSFORMER = TransformerConfig(width=16, depth=2, heads=2, mlp_hidden=16, n_registers=1)
OTHERS = {
    "transformer": TRANSFORMER,
    "jet-token": TransformerConfig(16, 2, 2, 16, n_registers=0, cls="jet", position="none"),
    "part": ParticleTransformerConfig(16, 2, 1, 2, embed=(16,), pair_hidden=(8,)),
    "particlenet": ParticleNetConfig(4, ((8,), (12,), (16,))),
    "mix": LorentzConfig(16, 4, 2, 2, 16, 3, aggregation="mix", max_particles=20),
    "tensors": LorentzConfig(16, 4, 2, 2, 16, 3, maxdim=3, tensors=2),
    "by-energy": LorentzConfig(16, 4, 2, 2, 16, 3, weighting="energy"),
    "ranks": LorentzConfig(16, 4, 2, 2, 16, 3, ranks=6),
    "lgatr": LGATrConfig("slim", 16, 4, 2, 1, spurions=False),
    "spurions": LGATrConfig("slim", 16, 4, 2, 1),
}


def run_of(folder, encoder, **settings):
    torch.manual_seed(0)
    save_model(JetModel(ModelConfig(encoder=encoder, **settings)), folder, provenance={})
    return folder


def errors(record, layer, symmetry, dtype="float32"):
    found = [r for r in record["rows"] if (r["layer"], r["symmetry"], r["dtype"]) == (layer, symmetry, dtype)]
    return {(r["output"], r["parameter"]): r["median"] for r in found}


def test_lorentz_run_passes(tmp_path, capsys):
    run = run_of(tmp_path / "run", LORENTZ, head=ClassifierConfig((8,)), classes=("qcd", "top"))
    assert cli.main(["audit", str(run)]) == 0
    printed = capsys.readouterr().out
    record = json.loads((run / "audit" / "audit.json").read_text())
    assert record["broken"] == []
    assert record["claimed"] == ["azimuth", "boost", "padding", "permutation", "rotation"]
    assert {r["layer"] for r in record["rows"]} == {"features", "block 1", "block 2", "end"}
    assert {r["output"] for r in record["rows"] if r["layer"] == "end"} == {"cls", "tokens", "vectors", "scores"}
    assert {r["output"] for r in record["rows"] if r["layer"] == "block 1"} == {"cls", "tokens", "vectors"}
    for (_, gamma), error in errors(record, "end", "boost").items():
        assert error < (1e-6 if gamma <= 50 else 1e-5)
    assert max(errors(record, "end", "boost", "float64").values()) < 1e-5
    assert (run / "audit" / "audit.png").stat().st_size > 1000
    for text in (printed, (run / "audit" / "audit.md").read_text()):
        assert "γ = 11013" in text
        assert "✗" not in text
        assert "all of it holds" in text


def test_false_claims_fail_after_the_table_is_written(tmp_path, monkeypatch, capsys):
    run = run_of(tmp_path / "run", TRANSFORMER)
    claims = frozenset({"permutation", "boost"})
    monkeypatch.setattr(JetTransformer, "symmetries", property(lambda self: claims))
    assert cli.main(["audit", str(run), "--jets", "10", "--boosts", "2", "--quiet"]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "claims boost, which does not hold" in message
    assert json.loads((run / "audit" / "audit.json").read_text())["broken"] == ["boost"]
    assert "✗" in (run / "audit" / "audit.md").read_text()


def test_an_encoder_that_gives_no_numbers_fails(tmp_path, monkeypatch):
    run = run_of(tmp_path / "run", LORENTZ)
    whole = LorentzEncoder.at_rest
    monkeypatch.setattr(
        LorentzEncoder, "at_rest", lambda self, p, m, k: tuple(math.nan * x for x in whole(self, p, m, k))
    )
    with pytest.raises(BrokenSymmetryError):
        audit(run, jets=5, boosts=[2.0], quiet=True)
    assert {r["median"] for r in json.loads((run / "audit" / "audit.json").read_text())["rows"]} >= {None}


@pytest.mark.parametrize("name", OTHERS)
def test_every_encoder_keeps_what_it_claims(tmp_path, name):
    run = run_of(tmp_path / "run", OTHERS[name])
    record = audit(run, jets=20, boosts=[2.0, 50.0], quiet=True)
    assert record["claimed"]
    lorentz = name in ("mix", "tensors", "by-energy", "ranks", "lgatr")
    assert ("collinear" in record["claimed"]) == (name == "by-energy")
    assert ("boost" in record["claimed"]) == lorentz
    assert ("permutation" in record["claimed"]) == (name != "mix")
    # what is not claimed is not there
    broken = [max(errors(record, "end", s).values()) for s in ("boost", "azimuth") if s not in record["claimed"]]
    broken += [errors(record, "end", "permutation")["cls", None]] if name == "mix" else []
    assert all(error > 1e-3 for error in broken)
    assert ("azimuth" in record["claimed"]) == (name != "jet-token")


def test_features_may_break_what_an_encoder_keeps(tmp_path):
    run = run_of(tmp_path / "run", TRANSFORMER, features=FeatureConfig("kin_p4", "rino_g1"))
    record = audit(run, jets=10, boosts=[2.0], quiet=True)
    assert record["claimed"] == ["padding", "permutation"]
    assert errors(record, "features", "azimuth")["features", None] > 1e-3
    measured = run_of(tmp_path / "measured", TRANSFORMER, features=FeatureConfig("full"))
    assert audit(measured, jets=10, boosts=[2.0], quiet=True)["broken"] == []


def test_jets_of_a_store(tmp_path):
    """Their masses are rounding; the audit takes them for what they are."""
    store = write_store(tmp_path / "store", prong_jets(40))
    run = run_of(tmp_path / "run", LORENTZ, max_particles=12)
    record = audit(run, on=store, jets=30, out=tmp_path / "there", seed=3, quiet=True)
    assert record["jets"] == 30
    assert list(record["data"]) == [str(store)]
    assert (tmp_path / "there" / "audit.png").exists()
    assert not (run / "audit").exists()


def test_toy_jets_are_what_they_say():
    p4, mask = toy_jets([5, 30, 12], 0)
    assert mask.sum(1).tolist() == [5, 30, 12]
    assert p4[~mask].abs().max() == 0
    particles = p4[mask]
    np.testing.assert_allclose(minkowski(particles, particles) / particles[:, 0] ** 2, 0, atol=1e-13)
    jets = p4.sum(1)
    # momenta in the rest frame do not quite balance
    gamma = jets[:, 0] / minkowski(jets, jets).sqrt()
    assert gamma.min() > 1.5
    assert gamma.max() < 30
    assert torch.equal(p4, toy_jets([5, 30, 12], 0)[0])
    assert not torch.equal(p4, toy_jets([5, 30, 12], 1)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--boosts", "0.5"], "0.5 is no Lorentz factor"),
        (["--boosts", "1e999"], "inf is no Lorentz factor"),
        (["--jets", "0"], "jets"),
        (["--seed", "-1"], "seed"),
        (["--on", "nowhere"], "nowhere"),
    ],
)
def test_bad_input(tmp_path, options, message, capsys):
    run = run_of(tmp_path / "run", LORENTZ)
    assert cli.main(["audit", str(run), *options]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not (run / "audit").exists()


def test_no_run(tmp_path, capsys):
    assert cli.main(["audit", str(tmp_path)]) == 1
    assert "model.json" in capsys.readouterr().err


AUTOENCODERS = {
    "lorentz": "--encoder.width 8 --encoder.depth 2",
    "transformer": "--encoder.width 8 --encoder.depth 1 --encoder.heads 2",
    "gnnae": "--encoder.width 8",
    "cnnae": "--encoder.latent 8 --encoder.pixels 8 --encoder.channels [4,4]",
}


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_autoencoders_are_audited_from_momenta_to_momenta(tmp_path, kind):
    store = write_store(tmp_path / "store", prong_jets(64))
    command = f"pretrain {store} --out {tmp_path / 'run'} --encoder.kind {kind} {AUTOENCODERS[kind]}"
    more = (
        "--objective.kind autoencoder --batch_size 32 --epochs 1 --engine.accelerator cpu --engine.logger none --quiet"
    )
    assert cli.main(f"{command} {more}".split()) == 0
    record = audit(tmp_path / "run", jets=20, boosts=[2.0, 50.0], quiet=True)
    chain = errors(record, "chain", "boost")
    assert set(chain) == {("vectors", 2.0), ("vectors", 50.0)}
    assert (max(chain.values()) < 1e-6) == (kind == "lorentz")
    assert {"permutation", "padding"} <= set(record["claimed"])
