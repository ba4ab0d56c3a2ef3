"""The verb `evaluate` of an autoencoder, with a tiny model."""

import json

import numpy as np
import pytest
import torch

from jetrep.encoders.linear_autoencoders import HardestParticles
from jetrep.encoders.lorentz import LorentzConfig, LorentzEncoder
from jetrep.encoders.lorentz_decoder import LorentzAutoencoder, LorentzDecoderConfig
from jetrep.errors import InputError
from jetrep.evaluation.anomaly import size_weighted_mean
from jetrep.jets import Jets
from jetrep.objectives.autoencoding import AutoencoderConfig
from jetrep.report.tables import ResultsTable
from jetrep.studies.evaluate import evaluate
from jetrep.studies.evaluate_autoencoder import baselines, grouped, judge
from jetrep.training.data import classes_of
from jetrep.training.engine import EngineConfig
from jetrep.training.pretrain import pretrain
from prong_jets import prong_jets, write_store


def tiny():
    torch.manual_seed(0)
    encoder = LorentzEncoder(LorentzConfig(width=8, vectors=4, heads=2, depth=1, hidden=8, pooled=2))
    config = LorentzDecoderConfig(n_particles=10, width=8, vectors=4, heads=2, depth=1, hidden=8)
    return LorentzAutoencoder(encoder, 4, config)


def trained(store, out, classes=None):
    """A run of two steps."""
    return pretrain(
        [store],
        out=out,
        encoder=LorentzConfig(width=8, vectors=4, heads=2, depth=1, hidden=8, pooled=2),
        objective=AutoencoderConfig(
            loss="chamfer", latent=4, decoder=LorentzDecoderConfig(5, width=8, vectors=4, heads=2, depth=1, hidden=8)
        ),
        steps=2,
        batch_size=16,
        classes=classes,
        engine=EngineConfig(accelerator="cpu", logger="none"),
        quiet=True,
    )


def three_classes(n=280):
    jets = prong_jets(n).leading(10)
    labels = jets.truth.copy()
    labels[1::4] = 2
    return jets.with_labels(labels, ("qcd", "top", "W"))


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    out = tmp_path_factory.mktemp("judged") / "evaluation"
    groups = grouped(three_classes(), ["qcd"], out)
    settings = {"loss": "hungarian", "slots": 10, "title": "tiny", "provenance": {"run": "x"}, "n_bootstrap": 10}
    return judge(tiny(), groups, out, quiet=True, **settings), groups, out


def test_validation_is_every_fourth_background_jet_and_in_no_table(judged):
    record, groups, _ = judged
    jets = three_classes()
    own = jets[jets.truth == 0]
    np.testing.assert_array_equal(groups.validation.p4, own[np.arange(0, 140, 4)].p4)
    assert list(groups.tests) == ["qcd", "top", "W"]
    seen = {row.tobytes() for row in groups.validation.p4}
    assert not seen & {row.tobytes() for row in groups.tests["qcd"].p4}
    auc = record["anomaly"]["results"]["jet mass"]["top"]["auc"]
    assert auc["n"] == len(groups.tests["qcd"]) + len(groups.tests["top"])


def test_the_score_is_the_loss_and_the_rate_what_is_stored(judged):
    record, _, _ = judged
    assert record["size"] == 4 + 4 * 3
    assert record["rate"] == pytest.approx(16 / 90)
    assert record["score"] == "hungarian"
    assert "Hungarian (score)" in record["anomaly"]["results"]
    assert any("16 real numbers are kept of a jet: 17.8% of 90" in note for note in record["reconstruction"]["notes"])


def test_tables_and_figures_are_there(judged):
    record, _, out = judged
    for name in ("reconstruction", "distances", "anomaly", "decorrelation"):
        assert json.loads((out / f"{name}.json").read_text()) == record[name]
        assert len(ResultsTable.load(out / f"{name}.json").cells) > 5
        assert (out / f"{name}.md").stat().st_size > 500
    latent = json.loads((out / "latent.json").read_text())
    assert np.array(latent["r"], float).shape == (len(latent["rows"]), len(latent["columns"]))
    assert {k: sum(n) for k, n in latent["spectra"]["z2"]["jets"].items()} == {"qcd": 105, "top": 70, "W": 70}
    figures = {"images-qcd", "images-top", "images-W", "residuals", "compression", "roc-top", "roc-W"}
    assert {f.stem for f in out.glob("*.png")} == figures | {"latent-masses", "latent-correlations"}


def test_combined_auc_is_the_mean_of_the_signals(judged):
    rows = judged[0]["anomaly"]["results"]
    assert {"jet mass", "multiplicity", "Hungarian, 5 hardest particles", "Hungarian, 3 linear vectors"} <= set(rows)
    for row in rows.values():
        aucs = {name: row[name]["auc"]["value"] for name in ("top", "W")}
        assert row["combined"]["auc"]["value"] == pytest.approx(size_weighted_mean(aucs, {"top": 70, "W": 70}))
    # Three prongs are heavier than one, and of the mass nothing is left at equal mass.
    assert rows["jet mass"]["top"]["auc"]["value"] > 0.99
    assert rows["jet mass, decorrelated"]["top"]["auc"]["value"] == pytest.approx(0.5)


def test_a_model_that_keeps_all_has_no_residuals(tmp_path):
    jets = prong_jets(60).leading(6).with_labels(None)
    settings = {"loss": None, "slots": 6, "title": "all", "provenance": {}, "n_bootstrap": 5, "quiet": True}
    record = judge(HardestParticles(6, 6), grouped(jets, [], tmp_path), tmp_path, **settings)
    assert record["score"] is None
    assert "anomaly" not in record
    row = record["reconstruction"]["results"]["jet mass, relative"]["jets"]
    # To the rounding of single precision, in which the jets are stored.
    assert abs(row["median |r|"]["value"]) < 1e-4
    assert record["reconstruction"]["results"]["lost particles"]["jets"]["mean"]["value"] == 0


def test_baselines_keep_no_more_than_the_model():
    jets = prong_jets(20).leading(8)
    for size in (1, 5, 16, 200):
        assert all(model.size <= size for model in baselines(size, 8, jets).values())
    assert len(baselines(16, 8, jets)) == 2


def test_stores_that_cannot_be_judged_are_named(tmp_path):
    jets = prong_jets(8)
    with pytest.raises(InputError, match="too few"):
        grouped(jets, ["qcd"], tmp_path)
    with pytest.raises(InputError, match="no jets"):
        grouped(jets[:0], ["qcd"], tmp_path)
    assert grouped(jets, [], tmp_path).validation is None
    assert list(grouped(jets, ["qcd", "top"], tmp_path).tests) == ["qcd+top"]
    assert isinstance(grouped(jets[::2], ["qcd"], tmp_path).tests["qcd"], Jets)


def test_the_verb_takes_a_run_of_an_autoencoder(tmp_path):
    train, test = (write_store(tmp_path / name, prong_jets(80, seed=i)) for i, name in enumerate(("train", "test")))
    run = trained(train, tmp_path / "run", classes=["qcd"])
    found = evaluate(run, on=[test, train], n_bootstrap=4, quiet=True)
    assert json.loads((run / "evaluation" / "evaluation.json").read_text()) == found
    assert found["test"]["score"] == "chamfer"
    assert set(found["test"]["anomaly"]["results"]["jet mass"]) == {"top"}
    # Cut to the slots of the decoder.
    assert found["test"]["reconstruction"]["results"]["multiplicity"]["qcd"]["mean"]["value"] >= -5
    assert "ON WHICH IT WAS TRAINED" in found["train"]["reconstruction"]["title"]
    assert "TRAINED" not in found["test"]["reconstruction"]["title"]
    assert (run / "evaluation" / "test" / "roc-top.png").exists()
    with pytest.raises(InputError, match=r"background.*no jets of class 'g'.*known: qcd, top"):
        evaluate(run, on=[test], background="g", quiet=True)


@pytest.mark.parametrize("labelled", [True, False])
def test_classes_that_the_run_was_trained_on_are_no_anomalies(tmp_path, labelled):
    """Whether they were chosen, or all that there were; of jets without labels nobody knows: only qcd is usual then."""
    jets = three_classes()
    train = write_store(tmp_path / "train", jets[jets.truth < 2] if labelled else jets.with_labels(None))
    test = write_store(tmp_path / "test", three_classes(320))
    run = trained(train, tmp_path / "run")
    found = evaluate(run, on=[test], n_bootstrap=4, quiet=True)["test"]
    assert set(found["anomaly"]["results"]["jet mass"]) == ({"W"} if labelled else {"top", "W", "combined"})
    assert classes_of([train]) == (["qcd", "top"] if labelled else [])
