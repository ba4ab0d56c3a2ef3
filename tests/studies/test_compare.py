import json
import shutil
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jetrep import cli
from jetrep.encoders.build import build_encoder
from jetrep.encoders.lgatr import LGATrConfig
from jetrep.encoders.lorentz import LorentzConfig
from jetrep.encoders.particlenet import ParticleNetConfig
from jetrep.encoders.transformer import TransformerConfig
from jetrep.errors import InputError
from jetrep.evaluation.differences import auc_difference_error, rejection_difference_error
from jetrep.evaluation.multiclass import macro_auc
from jetrep.features import FeatureConfig
from jetrep.model import ClassifierConfig
from jetrep.objectives.build import OBJECTIVES
from jetrep.store.folder import locked
from jetrep.studies import compare_cells
from jetrep.studies.compare import compare
from jetrep.studies.compare_rows import rows_of
from jetrep.studies.compare_study import Row, TaggerTraining
from jetrep.training.checkpoint import RECORD, load_model
from jetrep.training.engine import EngineConfig, OptimizerConfig
from jetrep.training.run import RunFolder
from prong_jets import prong_jets, write_store

COSTS = ("row", "parameters", "flops_per_jet")
ENCODER = TransformerConfig(width=16, depth=2, heads=2, mlp_hidden=32)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    root = tmp_path_factory.mktemp("stores")
    return {
        "train": [write_store(root / "train", prong_jets(160, 1))],
        "test": [write_store(root / "test", prong_jets(240, 2))],
    }


def settings(stores, out, **changes):
    return {
        **stores,
        "out": out,
        "objectives": ["self_distillation", {"kind": "supcon", "name": "SupCon", "optimizer": {"lr": 0.001}}],
        "encoder": ENCODER,
        "epochs": 1,
        "batch_size": 40,
        "finetuning": TaggerTraining(epochs=1),
        "n_labels": [60],
        "seeds": 1,
        "n_bootstrap": 5,
        "projection": False,
        "quiet": True,
    } | changes


@pytest.fixture(scope="module")
def finished(stores, tmp_path_factory):
    """A comparison of two objectives and all baselines, the first cells computed one by one."""
    out = tmp_path_factory.mktemp("study") / "out"
    for cell in (3, 1):
        record = compare(**settings(stores, out), cell=cell)
        assert [line["done"] for line in record["cells"]].count(True) == (0 if cell == 3 else 1)
        assert not (out / "results.parquet").exists()
    return out, compare(**settings(stores, out))


def content(out):
    return pq.read_table(out / "results.parquet").to_pydict()


def test_the_output_is_complete(finished):
    out, record = finished
    expected = {"results.parquet", "results.json", "results.md", "results.tex", "auc.png", "accuracy.png"}
    expected |= {"gain.png", "label_efficiency.png", "confusion-finetune.png", "confusion-knn.png"}
    assert expected <= {file.name for file in out.iterdir()}
    assert [line["row"] for line in record["cells"]] == [
        *("self_distillation", "SupCon", "supervised", "random", "mass, multiplicity")
    ]
    rows = content(out)
    found = defaultdict(set)
    for row, head, n in zip(rows["row"], rows["head"], rows["n_labels"], strict=True):
        found[row].add((head, n))
    heads = {(head, n) for head in ("knn", "linear_cls", "linear_mean", "finetune") for n in (60, 160)}
    for row in ("self_distillation", "SupCon", "supervised", "random"):
        assert found[row] == heads
    assert found["mass, multiplicity"] == {(head, n) for head in ("knn", "linear", "bdt") for n in (60, 160)}
    # 120 background jets resolve an ε_B of 1 %, but not of 0.1 %
    assert set(rows["metric"]) == {"accuracy", "auc_ovo", "auc", "rejection", "efficiency_at_0.01"}
    assert "pretrained with the labels of all jets: SupCon" in (out / "results.md").read_text()


def test_tables_hold_what_the_parquet_file_holds(finished):
    out, record = finished
    rows = content(out)
    main = record["tables"][0]["results"]
    for row, head, domain in (("SupCon", "knn", "k-NN"), ("random", "finetune", "fine-tuned")):
        [value] = [
            value
            for value, *key in zip(
                *(rows[name] for name in ("value", "row", "head", "metric", "n_labels")), strict=True
            )
            if key == [row, head, "auc_ovo", 160]
        ]
        assert main[row][domain]["macro AUC"]["value"] == value
    gain = record["tables"][1]["results"]["SupCon"]["k-NN"]["macro AUC"]["value"]
    assert gain == pytest.approx(
        main["SupCon"]["k-NN"]["macro AUC"]["value"] - main["random"]["k-NN"]["macro AUC"]["value"]
    )
    assert json.loads((out / "results.json").read_text()) == record["tables"]
    latex = (out / "results.tex").read_text()
    assert latex.count(r"\begin{table}") == len(record["tables"])
    assert "self\\_distillation" in latex
    assert "ε" not in latex


def test_all_rows_share_steps_and_encoder_and_say_what_they_cost(finished):
    rows = content(finished[0])
    cost = {
        row: (parameters, steps, forward, step, seconds)
        for row, parameters, steps, forward, step, seconds in zip(
            *(rows[name] for name in ("row", "parameters", "steps", "flops_per_jet", "step_flops_per_jet", "seconds")),
            strict=True,
        )
    }
    assert cost["self_distillation"][1] == cost["SupCon"][1] == 4
    assert cost["supervised"][1] == pytest.approx(4, abs=1)  # in whole epochs
    assert cost["random"][1] == 0
    assert len({values[0] for row, values in cost.items() if row != "mass, multiplicity"}) == 1
    assert all(values[4] > 0 for row, values in cost.items() if row != "mass, multiplicity")
    forward, step = cost["supervised"][2:4]
    assert 2 < step / forward < 3.5  # the backward pass has two products for each of the forward pass
    # A transformer multiplies each token by each weight once: this much, and attention and few others on top.
    tokens, width, hidden = 1 + ENCODER.n_registers + 20, ENCODER.width, ENCODER.mlp_hidden
    products = ENCODER.depth * tokens * 2 * (4 * width * width + 2 * width * hidden)
    assert 0.7 * products < forward < 5 * products


def test_a_finished_comparison_is_not_computed_again(finished, stores, monkeypatch):
    out, record = finished
    monkeypatch.setattr(RunFolder, "begin", lambda self: pytest.fail("trained again"))
    before = content(out)
    again = compare(**settings(stores, out))
    assert all(line["done"] for line in again["cells"])
    assert content(out) == before
    assert again["tables"] == record["tables"]


def test_a_stopped_cell_goes_on_and_gives_the_same_numbers(stores, tmp_path):
    changes = {"objectives": ["supcon"], "baselines": []}
    compare(**settings(stores, tmp_path / "out", **changes))
    folder = tmp_path / "out" / "cells" / "supcon-seed-0"
    weights = (folder / "pretrain" / "model.safetensors").stat().st_mtime_ns
    before = json.loads((folder / "cell.json").read_text())
    (folder / "cell.json").unlink()
    shutil.rmtree(folder / "finetune-60")
    compare(**settings(stores, tmp_path / "out", **changes), cell=0)
    after = json.loads((folder / "cell.json").read_text())
    assert after["results"] == before["results"]
    assert (folder / "pretrain" / "model.safetensors").stat().st_mtime_ns == weights


def test_changed_settings_are_refused(finished, stores):
    out, _ = finished
    for changes, named in (
        ({"epochs": 2}, "epochs"),
        ({"finetuning": TaggerTraining(epochs=2)}, "finetuning"),
        ({"n_labels": [80]}, "n_labels"),
    ):
        with pytest.raises(InputError, match=f"other settings .{named}.*--overwrite"):
            compare(**settings(stores, out, **changes))


def test_cells_are_listed_and_nothing_is_computed(stores, tmp_path, capsys):
    record = compare(**settings(stores, tmp_path / "out", seeds=2, list_cells=True))
    assert len(record["cells"]) == 10
    assert "6 SupCon, seed 1" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_budget_of_flops_gives_fewer_steps_to_what_costs_more(stores, tmp_path):
    out = tmp_path / "out"
    compare(
        **settings(stores, out, objectives=["self_distillation"], baselines=["supervised"], budget="flops", epochs=4)
    )
    rows = content(out)
    spent = {
        row: (steps, steps * flops)
        for row, steps, flops in zip(*(rows[name] for name in ("row", "steps", "step_flops_per_jet")), strict=True)
    }
    assert 1 <= spent["self_distillation"][0] < spent["supervised"][0]
    assert spent["self_distillation"][1] == pytest.approx(16 / spent["supervised"][0] * spent["supervised"][1], rel=0.2)


def test_an_objective_that_learns_nothing_gains_nothing(stores, tmp_path):
    still = {"kind": "supcon", "optimizer": {"lr": 0.0}}
    given = settings(stores, tmp_path / "out", objectives=[still], baselines=["random"], n_labels=[])
    gains = compare(**given)["tables"][1]["results"]["supcon"]
    assert set(gains) == {"k-NN", "linear, class token", "linear, mean token", "fine-tuned"}
    assert all(gain["macro AUC"]["value"] == gain["macro AUC"]["error"] == 0 for gain in gains.values())
    # Without the scores of the jets the errors of both rows are taken for independent.
    scores = tmp_path / "out" / "cells" / "random-seed-0" / "scores.npz"
    scores.unlink()
    table = compare(**given)["tables"][1]
    assert all(gain["macro AUC"]["error"] > 0 for gain in table["results"]["supcon"].values())
    assert "as if independent" in table["notes"][0]
    scores.write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match=r"scores\.npz: cannot be read"):
        compare(**given)


@pytest.mark.parametrize("where", ["processes", "dask"])
def test_several_processes_compute_what_one_computes(finished, stores, tmp_path, where):
    given = settings(stores, tmp_path / "out", objectives=[], baselines=["random", "observables"])
    if where == "dask":  # a worker runs its tasks, each of them one cell, in a thread beside its main one
        distributed = pytest.importorskip("distributed")
        with distributed.Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
            client.gather(client.map(lambda i: compare(**given, cell=i), range(2)))
        assert all(line["done"] for line in compare(**given, list_cells=True)["cells"])
    compare(**given, jobs=2)
    rows, whole = (content(out) for out in (tmp_path / "out", finished[0]))

    def values(table, kind):
        return [v for v, k in zip(table["value"], table["kind"], strict=True) if k == kind]

    for kind in ("random", "observables"):
        np.testing.assert_allclose(values(rows, kind), values(whole, kind), rtol=1e-6)


def test_an_encoder_with_one_vector_has_one_linear_probe(stores, tmp_path):
    encoder = ParticleNetConfig(neighbours=4, channels=((8,),))
    compare(**settings(stores, tmp_path / "out", objectives=[], baselines=["random"], encoder=encoder, n_labels=[]))
    assert set(content(tmp_path / "out")["head"]) == {"knn", "linear_cls", "finetune"}


def test_every_kind_of_objective_is_known_by_its_name(stores, tmp_path):
    record = compare(**settings(stores, tmp_path, objectives=["all"], baselines=[], list_cells=True))
    kinds = [config.kind for config in OBJECTIVES]
    assert [line["row"] for line in record["cells"]] == kinds
    # A row of one kind with other settings stands in its place.
    given = ["all", {"kind": "jepa", "mask_fraction": 0.3}, {"kind": "jetclr", "name": "cold", "temperature": 0.05}]
    found = compare(**settings(stores, tmp_path, objectives=given, baselines=[], list_cells=True))["cells"]
    assert sorted(line["row"] for line in found) == sorted([*kinds, "cold"])


def test_rows_with_encoders_of_their_own_beside_the_common_one(stores, tmp_path):
    pytest.importorskip("lgatr", "2.0")
    tiny = {"depth": 1, "mlp_hidden": 16}
    rows = [
        {"kind": "supervised", "name": "shallow", "encoder": tiny, "head": {"hidden": [8]}},
        {"kind": "supervised", "name": "Lorentz", "encoder": {"kind": "lorentz", "width": 8, "depth": 1}},
        {"kind": "supervised", "name": "L-GATr", "encoder": {"kind": "lgatr", "width": 8, "vectors": 2, "depth": 1}},
        {"kind": "random", "name": "random, shallow", "encoder": tiny, "features": {"signed_eta": True}},
    ]
    changes = {"objectives": rows, "baselines": ["supervised"], "reference": "supervised", "n_labels": []}
    record = compare(**settings(stores, tmp_path / "out", **changes))
    table = content(tmp_path / "out")
    costs = {row: (n, flops) for row, n, flops in zip(*(table[k] for k in COSTS), strict=True)}
    parameters = {
        "supervised": build_encoder(ENCODER, 7),
        "shallow": build_encoder(replace(ENCODER, **tiny), 7),
        "Lorentz": build_encoder(LorentzConfig(width=8, depth=1), 7),
        "L-GATr": build_encoder(LGATrConfig(width=8, vectors=2, depth=1), 7),
    }
    for row, encoder in parameters.items():
        assert costs[row][0] == sum(p.numel() for p in encoder.parameters())
    assert costs["shallow"] == costs["random, shallow"]
    assert costs["shallow"][1] < costs["supervised"][1] != costs["Lorentz"][1]
    assert "shallow, random, shallow" in record["tables"][-1]["notes"][0]
    for row in ("shallow", "Lorentz", "L-GATr"):
        model = load_model(tmp_path / "out" / "cells" / f"{row}-seed-0" / "supervised-all").config
        assert model.encoder == parameters[row].config
        assert model.head.hidden == ((8,) if row == "shallow" else (64, 32))
    assert load_model(tmp_path / "out" / "cells" / "random-shallow-seed-0" / "pretrain").config.features.signed_eta


def test_differences_to_the_reference_are_those_of_paired_seeds(stores, tmp_path):
    other = {"kind": "random", "name": "other", "encoder": {"depth": 1}}
    names = ("other", "random")
    changes = {"objectives": [other], "baselines": ["random", "observables"], "reference": "random", "seeds": 3}
    jets = prong_jets(240, 2, mistaken=0.2)
    changes |= {"n_labels": [], "test": [write_store(tmp_path / "test", jets)]}
    changes = settings(stores, tmp_path / "out", **changes)
    record = compare(**changes)
    found = defaultdict(dict)
    table = content(tmp_path / "out")
    for row, seed, value, *key in zip(
        *(table[k] for k in ("row", "seed", "value", "head", "metric", "signal")), strict=True
    ):
        found[row, *key][seed] = value
    titles = [table["title"] for table in record["tables"]]
    assert titles[1:3] == ["Difference to random, seed by seed", "Difference to random, seed by seed, k-NN"]
    for head, domain in (("knn", "k-NN"), ("finetune", "fine-tuned")):
        by_class = record["tables"][titles.index(f"{titles[1]}, {domain}")]["results"]
        for cells, heading, metric, signal in (
            (record["tables"][1]["results"]["other"][domain], "macro AUC", "auc_ovo", ""),
            (by_class["other"]["top"], "AUC", "auc", "top"),
        ):
            assert set(by_class) == {"other"}
            pairs = [
                found["other", head, metric, signal][s] - found["random", head, metric, signal][s] for s in (0, 1, 2)
            ]
            error = np.std(pairs, ddof=1) / 3**0.5
            assert cells[heading]["value"] == pytest.approx(np.mean(pairs))
            assert cells[heading]["seed_error"] == pytest.approx(error)
            scores = [
                [np.load(tmp_path / "out" / "cells" / f"{row}-seed-{s}" / "scores.npz")[head] for row in names]
                for s in (0, 1, 2)
            ]
            truth = jets.truth
            if signal:  # by p_S/(p_S + p_B), which single precision rounds to 1 later than p_S
                scores = [[p.astype(float) / p.astype(float).sum(1, keepdims=True) for p in pair] for pair in scores]
                scores = [[np.stack([1 - p[:, 1], p[:, 1]], 1) for p in pair] for pair in scores]
            kept = macro_auc(scores[0][0], truth).value  # in single precision: a few more jets of equal score
            assert found["other", head, metric, signal][0] == pytest.approx(kept, abs=5e-4)
            assert cells[heading]["sampling_error"] == pytest.approx(auc_difference_error(scores, truth))
            assert cells[f"{heading}: σ"]["value"] == pytest.approx(np.mean(pairs) / error)
        scores = [[p[:, 1] for p in pair] for pair in scores]
        error = rejection_difference_error(scores, truth == 1, n_bootstrap=5)
        assert by_class["other"]["top"]["1/ε_B"]["sampling_error"] == pytest.approx(error)
    assert "± standard error of the mean over paired seeds" in (tmp_path / "out" / "results.md").read_text()
    assert (tmp_path / "out" / "difference.png").exists()


def test_what_rows_have_in_common_is_where_what_they_have_of_their_own_begins():
    usual = Row("", "supervised", OptimizerConfig(lr=0.1, clip=2), ENCODER, FeatureConfig("kinpid"), ClassifierConfig())
    plain, deeper, graph, learned, _ = rows_of(
        [
            "supervised",
            {"kind": "supervised", "name": "deeper", "encoder": {"depth": 3}, "optimizer": {"lr": 0.2}},
            {"kind": "random", "encoder": {"kind": "particlenet", "neighbours": 3}},
            {"kind": "jetclr", "temperature": 0.3, "features": {"names": "kin"}, "head": {"hidden": [32]}},
            "observables",
        ],
        usual,
        max_particles=None,
    )
    assert plain == replace(usual, name="supervised")
    assert deeper.encoder == replace(ENCODER, depth=3)
    assert (deeper.optimizer, deeper.features) == (replace(usual.optimizer, lr=0.2), usual.features)
    assert graph.encoder == ParticleNetConfig(neighbours=3)
    assert (learned.features.names, learned.objective.temperature, learned.head) == ("kin", 0.3, usual.head)
    assert learned.objective.head.hidden == (32,)


def test_an_autoencoder_has_a_slot_for_each_particle_that_is_kept(stores, tmp_path):
    given = settings(stores, tmp_path / "out", objectives=["autoencoder"], baselines=[], max_particles=37)
    compare(**given, cell=0)
    cell = json.loads((tmp_path / "out/cells/autoencoder-seed-0/settings.json").read_text())
    assert cell["objective"]["decoder"]["n_particles"] == 37


def test_rows_that_would_see_less_of_a_jet_are_refused(stores, tmp_path):
    few = {"kind": "autoencoder", "decoder": {"n_particles": 12}}
    given = settings(stores, tmp_path / "out", objectives=[few], baselines=["random"])
    with pytest.raises(InputError, match=r"would see the 12 leading particles of jets that have up to 30"):
        compare(**given)
    assert compare(**given, max_particles=12, list_cells=True)["cells"]


def test_cells_tell_where_they_were_computed(stores, tmp_path):
    given = settings(stores, tmp_path / "out", objectives=[], baselines=["observables", "random"], n_labels=[])
    compare(**given, cell=0)
    table = compare(**given, engine=EngineConfig(accelerator="cpu", precision="bf16-mixed"))["tables"][0]
    one, other = table["provenance"]["environments"]
    assert (one["precision"], other["precision"], other["accelerator"]) == ("32-true", "bf16-mixed", None)
    assert {**one, "precision": ""} == {**other, "precision": ""}
    assert table["notes"][-1].startswith("the cells were not all computed alike")


def test_time_of_all_attempts_is_told(stores, tmp_path, monkeypatch):
    given = settings(stores, tmp_path / "out", objectives=["jetclr"], baselines=[], n_labels=[])
    file = tmp_path / "out" / "cells" / "jetclr-seed-0" / "seconds.json"
    with monkeypatch.context() as context:
        context.setattr(compare_cells, "pretrain", lambda *_, **__: time.sleep(0.3) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            compare(**given, cell=0)
    first = json.loads(file.read_text())["pretrain"]["seconds"]
    compare(**given, cell=0)
    model = json.loads((file.parent / "pretrain" / RECORD).read_text())
    assert first >= 0.3
    assert json.loads(file.read_text())["pretrain"]["seconds"] >= first + model["provenance"]["seconds"] - 0.1


def test_rows_are_added_to_a_finished_comparison(finished, stores):
    changes = settings(stores, finished[0])
    changes["objectives"] = [*changes["objectives"], {"kind": "supervised", "name": "deeper", "encoder": {"depth": 3}}]
    cells = compare(**changes, reference="supervised", list_cells=True)["cells"]
    assert {line["row"] for line in cells if not line["done"]} == {"deeper"}


def test_tables_of_what_is_there(stores, tmp_path):
    given = settings(stores, tmp_path / "out", objectives=["jetclr"], baselines=["random"], n_labels=[], seeds=2)
    with pytest.raises(InputError, match="no cell is there yet"):
        compare(**given, tables_only=True)
    compare(**given, cell=3)
    overall, *_, costs = tables = compare(**given, tables_only=True)["tables"]
    assert compare(**given, tables_only=True, overwrite=True)["tables"] == tables
    assert set(content(tmp_path / "out")["row"]) == set(overall["results"]) == set(costs["results"]) == {"random"}
    assert overall["results"]["random"]["k-NN"]["macro AUC"]["n_seeds"] == 1
    assert overall["notes"][-1] == "3 of 4 cells are missing"
    assert len(list((tmp_path / "out" / "cells").iterdir())) == 1


def test_differences_are_told_of_rows_that_are_there(stores, tmp_path):
    rows = [{"kind": "random", "name": name, "encoder": {"depth": 1}} for name in ("other", "missing")]
    changes = {"objectives": rows, "baselines": ["random"], "reference": "random", "n_labels": [], "seeds": 1}
    given = settings(stores, tmp_path / "out", **changes)
    compare(**given, cell=0)
    titles = [table["title"] for table in compare(**given, tables_only=True)["tables"]]
    assert not [title for title in titles if title.startswith("Difference")]
    compare(**given, cell=2)
    tables = {table["title"]: table for table in compare(**given, tables_only=True)["tables"]}
    table = tables["Difference to random, seed by seed"]
    assert table["methods"] == list(table["results"]) == ["other"]


def test_a_cell_is_computed_by_one_process_at_a_time(stores, tmp_path):
    given = settings(stores, tmp_path / "out", objectives=[], baselines=["observables"], n_labels=[])
    folder = Path(compare(**given, list_cells=True)["cells"][0]["folder"])
    folder.parent.mkdir(parents=True)
    with locked(folder), pytest.raises(InputError, match=r"process \d+ on .* is computing this cell"):
        compare(**given, cell=0)
    assert not folder.exists()
    assert compare(**given)["cells"][0]["row"] == "mass, multiplicity"
    assert [file.name for file in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": ["rhino"]}, "there is no objective 'rhino'; known: self_distillation"),
        ({"objectives": [{"kind": "jetclr", "temprature": 1}]}, "settings of 'jetclr' cannot be used.*temprature"),
        ({"objectives": ["jetclr", "jetclr"]}, "two rows are called 'jetclr'"),
        ({"objectives": [], "baselines": []}, "nothing to compare"),
        ({"objectives": [], "baselines": ["observed"]}, "there is no objective 'observed'.*random, observables, all"),
        ({"objectives": ["all", "jepa", "jepa"]}, "two rows are called 'jepa'"),
        ({"objectives": [{"kind": "random", "optimizer": {"lr": 1}}]}, "settings of 'random' cannot.*optimizer"),
        ({"objectives": [{"kind": "jepa", "encoder": {"kind": "cnn"}}]}, "'jepa' has an encoder of kind 'cnn'; known"),
        ({"objectives": [{"kind": "jepa", "encoder": {"neighbours": 2}}]}, "settings of 'jepa' cannot.*neighbours"),
        ({"objectives": [{"kind": "jepa", "encoder": {"heads": 3}}]}, "16"),
        ({"objectives": [{"kind": "jepa", "features": {"names": "full"}}]}, "no measured column 'charge'"),
        ({"reference": "sota"}, "there is no row 'sota'.*among self_distillation, SupCon"),
        ({"reference": "supervised"}, "no other row is of the kind of 'supervised'"),
        (
            {"objectives": [{"kind": "autoencoder", "decoder": {"n_particles": 8}}], "max_particles": 9},
            "n_particles': is 8; give 9 or more",
        ),
        ({"background": "gluon"}, "there is no class 'gluon'"),
        ({"efficiencies": {"w": 0.5}}, "there is no signal 'w'; known: top"),
        ({"efficiencies": {"top": 1.5}}, "is 1.5 for top"),
        ({"cell": 5}, "there is no cell 5; choose from 0 to 4"),
        ({"batch_size": 500}, "fewer jets than one batch of 500"),
        ({"seeds": 0}, "is 0; give 1 or more"),
        ({"n_labels": [0]}, "is 0; give 1 or more"),
    ],
)
def test_bad_settings_are_told_before_anything_is_computed(stores, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        compare(**settings(stores, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_bad_jets_are_told_before_anything_is_computed(stores, tmp_path):
    unlabelled = write_store(tmp_path / "unlabelled", prong_jets(60, 3).with_labels(None))
    one = write_store(tmp_path / "one", prong_jets(60, 3)[::2])
    other = write_store(tmp_path / "other", prong_jets(60, 3, ("qcd", "w")))
    for changes, message in (
        ({"train": [unlabelled]}, "unlabelled, .*the jets are unlabelled"),
        ({"unlabelled": [unlabelled]}, "unlabelled, .*the jets are unlabelled"),  # by SupCon
        ({"test": [one]}, "one, field 'label': holds no jets of class top"),
        ({"test": [other]}, "jets of class w are not among qcd, top"),
        ({"test": stores["train"]}, "holds the jets to train on"),
        ({"unlabelled": [unlabelled, *stores["test"]]}, "field 'test': holds the jets to train on"),
    ):
        with pytest.raises(InputError, match=message):
            compare(**settings(stores, tmp_path / "out", **changes))
        assert not (tmp_path / "out").exists()


def test_the_command_line_takes_names_and_yaml(stores, tmp_path, capsys):
    config = tmp_path / "study.yaml"
    config.write_text("objectives: [jetclr, {kind: supcon, name: labelled, temperature: 0.2}]\nn_labels: [60]\n")
    places = ["--train", str(stores["train"][0]), "--test", str(stores["test"][0]), "--out", str(tmp_path / "out")]
    assert cli.main(["compare", "--config", str(config), *places, "--seeds", "1", "--list-cells"]) == 0
    assert [line.split(", ")[0].split()[1] for line in capsys.readouterr().out.splitlines()] == [
        *("jetclr", "labelled", "supervised", "random", "mass")
    ]
    assert cli.main(["compare", *places, "--objectives", "supcon", "rhino", "--list-cells"]) == 1
    assert "there is no objective 'rhino'" in capsys.readouterr().err
    config.write_text(
        "objectives: [all]\nbaselines: [{kind: supervised, name: mine, encoder: {kind: particlenet}}, supervised]\n"
        "reference: mine\nseeds: 1\n"
    )
    assert cli.main(["compare", "--config", str(config), *places, "--list-cells"]) == 0
    assert [line.split(", ")[0].split()[1] for line in capsys.readouterr().out.splitlines()] == [
        *(config.kind for config in OBJECTIVES),
        *("mine", "supervised"),
    ]
