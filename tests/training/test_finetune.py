import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from jetrep.cli import main
from jetrep.encoders.transformer import TransformerConfig
from jetrep.errors import InputError
from jetrep.evaluation.tagging import tagging_metrics
from jetrep.features import FeatureConfig
from jetrep.model import ClassifierConfig
from jetrep.objectives.contrastive import SupCon
from jetrep.objectives.supervised import Supervised
from jetrep.training.batches import LoadingConfig
from jetrep.training.checkpoint import load_model, model_record
from jetrep.training.data import load_jets
from jetrep.training.engine import EngineConfig
from jetrep.training.finetune import finetune, stratified_subset
from jetrep.training.linear_probe import fit_head
from jetrep.training.pretrain import pretrain
from jetrep.training.sampling import class_weights
from prong_jets import prong_jets, write_store

ENCODER = TransformerConfig(width=16, depth=1, heads=2, mlp_hidden=16, n_registers=1, position="none")
ENGINE = EngineConfig(accelerator="cpu", logger="none")
SETTINGS = {"engine": ENGINE, "quiet": True, "batch_size": 32}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    store = write_store(folder / "store", prong_jets(400))
    run = pretrain([store], out=folder / "pretrained", encoder=ENCODER, epochs=2, **SETTINGS)
    return store, run


def auc(run, jets):
    return tagging_metrics(load_model(run).predict(jets)[:, 1], jets.truth).auc.value


@pytest.mark.parametrize("from_run", ["none", "pretrained"])
@pytest.mark.parametrize("n_subjets", [0, 4])
def test_taggers_learn_to_count_prongs(tmp_path, data, from_run, n_subjets):
    store, run = data
    tagger = finetune(
        [store],
        out=tmp_path / "run",
        from_run=run if from_run == "pretrained" else "none",
        encoder=ENCODER,
        n_subjets=n_subjets,
        epochs=6,
        **SETTINGS,
    )
    assert auc(tagger, prong_jets(200, seed=9)) > 0.95
    record = model_record(tagger)
    assert record["provenance"]["n_train"] + record["provenance"]["n_valid"] == 400
    assert record["config"]["n_subjets"] == n_subjets


def test_frozen_encoder_stays_as_it_was(tmp_path, data):
    store, run = data
    tagger = load_model(finetune([store], out=tmp_path / "run", from_run=run, freeze=True, **SETTINGS))
    pretrained = load_model(run)
    for ours, theirs in zip(tagger.encoder.parameters(), pretrained.encoder.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_fine_tuning_moves_every_part(tmp_path, data):
    store, run = data
    out = finetune([store], out=tmp_path / "run", from_run=run, epochs=6, encoder_lr=1.0, **SETTINGS)
    tagger = load_model(out)
    moved = [
        not torch.equal(ours, theirs)
        for ours, theirs in zip(tagger.encoder.parameters(), load_model(run).encoder.parameters(), strict=True)
    ]
    assert all(moved)


def test_probe_phase_reaches_a_converged_linear_probe():
    """The published schedule left the head untrained; ours must equal a fit to convergence on the same features."""
    rng = np.random.default_rng(3)
    mixing = rng.normal(size=(20, 20)) * 10 ** rng.uniform(-2, 2, 20)
    x = rng.normal(size=(3000, 20)) @ mixing + 5.0
    y = (np.linalg.solve(mixing.T, (x - 5.0).T)[0] + 0.5 * rng.normal(size=3000) > 0).astype(np.int64)
    scale = x[:2000].std(0)
    converged = LogisticRegression(C=1e3, max_iter=5000).fit(x[:2000] / scale, y[:2000])
    torch.manual_seed(0)
    head = torch.nn.Sequential(torch.nn.Linear(20, 2))
    tensors = torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y)
    train, valid = tuple(t[:1600] for t in tensors), tuple(t[1600:2000] for t in tensors)
    fit_head(head, train, valid, class_weights=None, seed=0)
    ours = (head(tensors[0][2000:]).argmax(1).numpy() == y[2000:]).mean()
    assert ours == pytest.approx(converged.score(x[2000:] / scale, y[2000:]), abs=0.01)


@pytest.mark.parametrize("constant", [0.0, 7.3])
def test_probe_phase_gives_no_weight_to_what_never_changed(constant):
    """A component that wakes up later, in other jets or as the encoder moves, is not to decide all by itself."""
    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(1))
    x[:, 1] = constant
    y = (x[:, 0] > 0).long()
    head = torch.nn.Sequential(torch.nn.Linear(3, 2))
    fit_head(head, (x[:300], y[:300]), (x[300:], y[300:]), class_weights=None, seed=0)
    assert (head[0].weight[:, 1] == 0).all()
    assert (head[0].weight[:, [0, 2]] != 0).all()
    assert (head(x).argmax(1) == y).float().mean() > 0.9


@given(
    n_signal=st.integers(2, 60),
    n_background=st.integers(2, 60),
    sizes=st.tuples(st.integers(1, 100), st.integers(1, 100)),
    seed=st.integers(0, 50),
)
def test_label_subsets_are_stratified_and_nested(n_signal, n_background, sizes, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat([0, 1], [n_background, n_signal]))
    small, large = sorted(min(size, len(labels)) for size in sizes)
    inner, outer = (stratified_subset(labels, n, seed) for n in (small, large))
    assert len(np.unique(outer)) == large
    assert set(inner) <= set(outer)
    share = n_signal / len(labels)
    assert abs((labels[outer] == 1).sum() - share * large) <= 1


def test_refusals(tmp_path, data):
    store, _ = data
    with pytest.raises(InputError, match="no pretrained encoder to freeze"):
        finetune([store], out=tmp_path / "a", freeze=True)
    with pytest.raises(InputError, match="fewer than 500"):
        finetune([store], out=tmp_path / "b", n_labels=500, encoder=ENCODER)
    with pytest.raises(InputError, match="no jets of class 'higgs'"):
        finetune([store], out=tmp_path / "c", classes=["higgs"], encoder=ENCODER)
    with pytest.raises(InputError, match="all jets are of one class"):
        finetune([store], out=tmp_path / "d", classes=["top"], encoder=ENCODER)
    unlabelled = write_store(tmp_path / "unlabelled", prong_jets(40).with_labels(None))
    with pytest.raises(InputError, match="unlabelled"):
        finetune([unlabelled], out=tmp_path / "e", encoder=ENCODER)
    with pytest.raises(InputError, match="no trained model"):
        finetune([store], out=tmp_path / "f", from_run=tmp_path / "nowhere")


def test_heads_are_what_was_asked_for(tmp_path, data):
    store, run = data
    for hidden, n_linear in (((), 1), ((8, 4), 3)):
        out = tmp_path / f"run-{n_linear}"
        head = ClassifierConfig(hidden=hidden)
        tagger = load_model(finetune([store], out=out, from_run=run, head=head, freeze=True, **SETTINGS))
        assert sum(isinstance(m, torch.nn.Linear) for m in tagger.head.modules()) == n_linear


# Sampling


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Jets of which one in eight is a top."""
    jets = prong_jets(640)
    rows = np.concatenate([np.flatnonzero(jets.truth == 0)[:280], np.flatnonzero(jets.truth == 1)[:40]])
    return write_store(tmp_path_factory.mktemp("uneven") / "store", jets[rows])


@pytest.fixture
def shown(monkeypatch):
    """The labels of every batch that is trained on, and the class weights in its loss."""
    seen = []
    original = Supervised.forward

    def forward(self, batch, *args):
        seen.append((batch.labels.numpy(), self.class_weights))
        return original(self, batch, *args)

    monkeypatch.setattr(Supervised, "forward", forward)
    return seen


@pytest.mark.parametrize("balance", ["none", "classes", "pt_mass", "classes_pt_mass"])
def test_classes_count_the_same_however_jets_are_sampled(uneven, tmp_path, shown, balance):
    bins = {} if balance == "none" else {"pt_bins": 2, "mass_bins": 2, "max_repeats": 20}
    loading = LoadingConfig(balance=balance, **bins)
    out = finetune([uneven], out=tmp_path / "run", encoder=ENCODER, epochs=4, patience=4, loading=loading, **SETTINGS)
    labels, weights = np.concatenate([labels for labels, _ in shown]), shown[0][1].numpy()
    counts = np.bincount(labels, minlength=2)
    assert weights[0] * counts[0] == pytest.approx(weights[1] * counts[1], rel=0.15)
    if balance.startswith("classes"):
        np.testing.assert_allclose(weights, 1, atol=0.05)
        assert min(np.bincount(labels, minlength=2).min() for labels, _ in shown) >= 4
    if balance == "none":
        np.testing.assert_allclose(weights, [4 / 7, 4], rtol=0.05)
    assert ("loading" in model_record(out)["provenance"]) == (balance != "none")


def test_class_weights_are_what_sampling_leaves_to_do():
    jets = prong_jets(40)
    jets = jets[np.concatenate([np.flatnonzero(jets.truth == 0), np.flatnonzero(jets.truth == 1)[:5]])]
    torch.testing.assert_close(class_weights(jets), torch.tensor([25 / 40, 25 / 10]))
    often = np.where(jets.truth == 1, 4.0, 1.0)
    torch.testing.assert_close(class_weights(jets, often), torch.tensor([1.0, 1.0]))
    only = jets[jets.truth == 0]
    torch.testing.assert_close(class_weights(only), torch.tensor([1.0, 0.0]))


def test_the_recipe_of_supcon_balances_its_batches(uneven, tmp_path, monkeypatch):
    seen = []
    original = SupCon.views
    monkeypatch.setattr(SupCon, "views", lambda self, *args: seen.append(args[0].labels) or original(self, *args))
    width = "--encoder.width 16 --encoder.depth 1 --encoder.heads 2 --encoder.mlp_hidden 16"
    engine = "--engine.accelerator cpu --engine.logger none --quiet"
    command = f"pretrain {uneven} --config supcon --out {tmp_path}/run --batch_size 64 --epochs 2 {width} {engine}"
    assert main(command.split()) == 0
    per_batch = torch.stack([torch.bincount(labels, minlength=2) for labels in seen])
    assert per_batch.sum(0).tolist() == pytest.approx([320, 320], abs=12)  # 10 batches; two epochs of 320 jets
    # A hypergeometric draw of 64 from one epoch has a standard deviation of 3.6.
    assert int(per_batch.min()) >= 32 - 16
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["classes"] == 2


def test_stores_of_different_columns_are_trained_on_by_what_all_have(tmp_path, data):
    store, _ = data
    jets = prong_jets(40, seed=9)
    columns = {name: np.zeros(len(jets.p4), np.float32) for name in ("charge", "tanh_d0")}
    typed = write_store(tmp_path / "typed", replace(jets, measured=columns, observers={"weight": np.ones(40)}))
    both = load_jets([store, typed])
    assert (both.measured, both.observers) == ({}, {})
    np.testing.assert_array_equal(both.p4[-len(jets.p4) :], jets.p4)
    assert set(load_jets([typed, typed]).measured) == set(columns)
    finetune([store, typed], out=tmp_path / "run", encoder=ENCODER, epochs=1, **SETTINGS)
    with pytest.raises(InputError, match="charge"):
        finetune([store, typed], out=tmp_path / "other", features=FeatureConfig("kinpid"), **SETTINGS)
