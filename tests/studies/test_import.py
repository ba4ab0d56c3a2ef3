"""Weights that were trained elsewhere, on jets that were made elsewhere, through our features and encoder."""

import json
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from jetrep import cli
from jetrep.errors import InputError
from jetrep.features import FEATURE_SETS, FeatureConfig, Features
from jetrep.studies.embed import embed
from jetrep.studies.evaluate import evaluate
from jetrep.studies.import_weights import JETCLASS, import_weights
from jetrep.studies.probe import probe
from jetrep.training.checkpoint import load_model, model_record
from jetrep.training.engine import EngineConfig
from jetrep.training.finetune import finetune
from prong_jets import prong_jets, write_store
from random_jets import random_jets
from weaver_arrays import weaver_jets

ENGINE = EngineConfig(accelerator="cpu", logger="none")


def weaver_network(n_features: int = 7, n_classes: int = 10):
    module = pytest.importorskip("weaver.nn.model.ParticleNet")
    torch.manual_seed(0)
    network = module.ParticleNet(
        n_features,
        n_classes,
        conv_params=[(16, (64, 64, 64)), (16, (128, 128, 128)), (16, (256, 256, 256))],
        fc_params=[(256, 0.1)],
        use_fusion=False,
        trim=False,
    )
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    return network.eval()


def saved(network, file, change=lambda state: None):
    """Weights as weaver's wrapper for this network saves them."""
    state = OrderedDict((f"mod.{name}", value) for name, value in network.state_dict().items())
    change(state)
    torch.save(state, file)
    return file


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("import")
    network = weaver_network()
    return network, import_weights("weaver", saved(network, folder / "w.pt"), out=folder / "run", quiet=True)


def test_an_imported_model_says_what_the_network_says(imported):
    network, run = imported
    model = load_model(run)
    assert model.config.classes == JETCLASS
    jets = random_jets([40, 5, 17, 60])
    view = Features(FeatureConfig("kin", "weaver", signed_eta=True))(jets.batch())
    with torch.no_grad():
        logits = network(view.angles.transpose(1, 2), view.features.transpose(1, 2), view.mask.unsqueeze(1))
    np.testing.assert_allclose(model.predict(jets), logits.softmax(-1), atol=1e-5)


def test_the_record_names_the_origin(imported):
    _, run = imported
    provenance = model_record(run)["provenance"]
    assert provenance["file"] == "w.pt"
    assert len(provenance["sha256"]) == 64
    text = json.dumps(provenance)
    for part in ("1902.08570", "2202.03772", "MIT"):
        assert part in text
    assert model_record(run)["config"]["encoder"]["kind"] == "particlenet"


@pytest.mark.parametrize("names", ["kin", "full"])
@pytest.mark.parametrize("older", [False, True])
def test_particle_transformer_says_what_weavers_says(tmp_path, names, older):
    module = pytest.importorskip("weaver.nn.model.ParticleTransformer")
    n = len(FEATURE_SETS[names])
    torch.manual_seed(0)
    network = module.ParticleTransformer(n, 10, use_pre_activation_pair=False, trim=False).eval()
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm1d):
            part.running_mean.normal_(0, 0.2)
            part.running_var.uniform_(0.5, 2)

    def spell(state):
        if older:
            for name in [name for name in state if "in_proj." in name]:
                state[name.replace("in_proj.", "in_proj_")] = state.pop(name)

    run = import_weights("weaver", saved(network, tmp_path / "w.pt", spell), out=tmp_path / "run", quiet=True)
    model = load_model(run)
    assert model.config.features == FeatureConfig(names, "weaver", signed_eta=True)
    assert "2202.03772" in json.dumps(model_record(run)["provenance"])
    rng = np.random.default_rng(0)
    jets = random_jets([40, 5, 1, 60])
    columns = {name: rng.normal(size=len(jets.p4)).astype(np.float32) for name in model.config.features.columns}
    jets = replace(jets, measured=columns)
    view = model.features(jets.batch())
    with torch.no_grad():
        logits = network(view.features.mT, view.p4.mT[:, [1, 2, 3, 0]], view.mask.unsqueeze(1))
    np.testing.assert_allclose(model.predict(jets), logits.softmax(-1), atol=1e-5)


def test_every_verb_accepts_an_imported_model(imported, tmp_path):
    _, run = imported
    jets = prong_jets(60, classes=("QCD", "Tbqq"))
    store = write_store(tmp_path / "jets", jets)
    record = evaluate(run, on=[store], out=tmp_path / "e", background="QCD", n_bootstrap=2, quiet=True)
    assert "Tbqq against QCD" in record["results"]
    frame = pd.read_parquet(tmp_path / "e" / "predictions" / "jets.parquet")
    assert [f"score_{name}" for name in JETCLASS] == [name for name in frame.columns if name.startswith("score_")]
    embedding = np.stack(pd.read_parquet(embed(run, on=store, out=tmp_path / "e.parquet", quiet=True))["embedding"])
    assert embedding.shape == (60, 256)
    table = probe(run, train=[store], on=[store], kinds=["logistic"], n_bootstrap=2, quiet=True)
    assert "frozen, logistic" in table["results"]
    settings = {"epochs": 1, "batch_size": 16, "engine": ENGINE, "quiet": True}
    tuned = load_model(finetune([store], out=tmp_path / "tuned", from_run=run, **settings))
    assert tuned.config.classes == ("QCD", "Tbqq")
    assert tuned.config.pooling == "cls"
    assert (tuned.predict(jets).argmax(1) == jets.truth).mean() > 0.9


def test_the_command_line(imported, tmp_path, capsys):
    network, _ = imported
    file = saved(network, tmp_path / "w.pt")
    assert cli.main(["import", "weaver", str(file), "--out", str(tmp_path / "run"), "--features", "kin"]) == 0
    assert load_model(tmp_path / "run").config.features.names == "kin"
    # The same again leaves it alone, other weights in the same folder are refused.
    assert cli.main(["import", "weaver", str(file), "--out", str(tmp_path / "run"), "--features", "kin"]) == 0
    saved(weaver_network(13), file)
    assert cli.main(["import", "weaver", str(file), "--out", str(tmp_path / "run")]) == 1
    assert "other settings" in capsys.readouterr().err


@pytest.mark.parametrize("names", ["kinpid", "full"])
def test_the_feature_set_follows_from_the_width(names, tmp_path):
    file = saved(weaver_network(len(FEATURE_SETS[names])), tmp_path / "w.pt")
    model = load_model(import_weights("weaver", file, out=tmp_path / "run", quiet=True))
    assert model.config.features == FeatureConfig(names, "weaver", signed_eta=True)
    with pytest.raises(InputError, match="'charge'"):
        model.predict(random_jets([5]))


def test_other_classes(tmp_path):
    file = saved(weaver_network(n_classes=2), tmp_path / "w.pt")
    with pytest.raises(InputError, match="2 outputs with --classes"):
        import_weights("weaver", file, out=tmp_path / "run", quiet=True)
    run = import_weights("weaver", file, out=tmp_path / "run", classes=["qcd", "top"], quiet=True)
    assert load_model(run).config.classes == ("qcd", "top")
    assert "JetClass" not in json.dumps(model_record(run)["provenance"])


def drop(state):
    del state["mod.edge_convs.1.sc.weight"]


def add(state):
    state["mod.fusion_block.0.weight"] = torch.zeros(3)


def widen(state):
    state["mod.edge_convs.2.convs.1.weight"] = torch.zeros(300, 300, 1, 1)


def spoil(state):
    state["mod.fc.1.bias"] = torch.full((10,), torch.nan)


def narrow(state):
    state["mod.bn_fts.weight"] = torch.ones(5)


def transpose(state):
    state["mod.fc.0.0.weight"] = state["mod.fc.0.0.weight"].reshape(256, 256, 1, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, "'edge_convs.1.sc.weight'.*no such tensor"),
        (add, "'fusion_block.0.weight'.*not a tensor of this network"),
        (widen, r"'edge_convs.2.convs.1.weight'.*\(300, 300, 1, 1\)"),
        (spoil, "'fc.1.bias'.*finite"),
        (narrow, "5 features"),
        (transpose, "'fc.0.0.weight'"),
        (lambda state: state.clear(), "no norm of the features"),
        (lambda state: state.update(epoch=3), "not a table of tensors"),
    ],
)
def test_weights_of_another_network_are_refused(imported, tmp_path, change, message):
    file = saved(imported[0], tmp_path / "w.pt", change)
    with pytest.raises(InputError, match=message):
        import_weights("weaver", file, out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


class Code:
    def __reduce__(self):
        return print, ("this must not run",)


@pytest.mark.parametrize("content", ["code", "nothing", "text", "half", "absent", "folder"])
def test_files_that_hold_no_weights_are_refused_and_run_nothing(imported, tmp_path, capsys, content):
    file = saved(imported[0], tmp_path / "w.pt")
    if content == "code":
        torch.save({"mod.fc.1.bias": Code()}, file)
    elif content == "folder":
        file = tmp_path
    elif content == "absent":
        file = tmp_path / "none.pt"
    else:
        file.write_bytes({"nothing": b"", "text": b"weights\n", "half": file.read_bytes()[:5000]}[content])
    with pytest.raises(InputError, match="cannot be read"):
        import_weights("weaver", file, out=tmp_path / "run", quiet=True)
    assert not capsys.readouterr().out


def test_damaged_files_never_show_a_traceback(imported, tmp_path):
    rng = np.random.default_rng(0)
    file = saved(imported[0], tmp_path / "w.pt")
    good = np.frombuffer(file.read_bytes(), np.uint8)
    for _ in range(30):
        bad = good.copy()
        # The table of contents and the pickle, where damage matters, are at both ends.
        places = np.r_[rng.integers(0, 8000, 8), len(bad) - 1 - rng.integers(0, 8000, 8)]
        bad[places] = rng.integers(0, 256, len(places))
        file.write_bytes(bad.tobytes())
        try:
            import_weights("weaver", file, out=tmp_path / "run", overwrite=True, quiet=True)
        except InputError:
            continue


def test_unknown_source_and_wrong_set(imported, tmp_path):
    file = saved(imported[0], tmp_path / "w.pt")
    with pytest.raises(InputError, match="'sophon'"):
        import_weights("sophon", file, out=tmp_path / "run")
    with pytest.raises(InputError, match="7 features, 'full' has 17"):
        import_weights("weaver", file, out=tmp_path / "run", features="full")


@pytest.fixture(scope="module")
def published(real_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    return {
        name: load_model(
            import_weights("weaver", real_data / "weights" / f"ParticleNet_{name}.pt", out=folder / name, quiet=True)
        )
        for name in ("kin", "kinpid", "full")
    }


def test_published_weights_have_their_number_of_parameters(published):
    numbers = {name: sum(p.numel() for p in model.parameters()) for name, model in published.items()}
    assert numbers == {"kin": 368_216, "kinpid": 369_380, "full": 370_156}


def test_published_weights_tell_ten_classes_apart(published, real_data):
    """182 of 250 jets: what these weights give in weaver too."""
    jets = weaver_jets(real_data / "jetclass" / "jetclass_10class_250_kin.npz")
    right = published["kin"].predict(jets).argmax(1) == jets.truth
    assert 181 <= right.sum() <= 183
    # Δη without the sign of the hemisphere is another input, though the network copes.
    config = published["kin"].config
    unsigned = type(published["kin"])(
        replace(config, features=replace(config.features, signed_eta=False)), encoder=published["kin"].encoder
    )
    unsigned.head = published["kin"].head
    assert np.abs(unsigned.predict(jets) - published["kin"].predict(jets)).max() > 0.01


def test_published_weights_find_tops_with_measured_columns(published, real_data):
    for part, expected in (("hadronic", 94), ("leptonic", 98)):
        jets = weaver_jets(real_data / "jetclass" / f"jetclass_top_{part}_100_full.npz")
        right = {name: int((model.predict(jets).argmax(1) == jets.truth).sum()) for name, model in published.items()}
        assert abs(right["full"] - expected) <= 1
        assert right["full"] >= right["kinpid"] >= right["kin"]


@pytest.mark.parametrize("name", ["kin", "full"])
def test_published_weights_give_what_they_give_in_weaver(published, real_data, name):
    file = "jetclass_10class_250_kin" if name == "kin" else "jetclass_top_leptonic_100_full"
    jets, model = weaver_jets(real_data / "jetclass" / f"{file}.npz")[:100], published[name]
    network = weaver_network(len(model.features.names))
    state = torch.load(real_data / "weights" / f"ParticleNet_{name}.pt", map_location="cpu", weights_only=True)
    network.load_state_dict({key.removeprefix("mod."): value for key, value in state.items()})
    view = model.features(jets.batch())
    with torch.no_grad():
        ours = model.head(model.encoder([view])[0].cls)
        theirs = network(view.angles.transpose(1, 2), view.features.transpose(1, 2), view.mask.unsqueeze(1))
    # Logits go up to 20.
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
