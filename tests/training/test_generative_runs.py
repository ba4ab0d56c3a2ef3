"""Runs of generative objectives: stopped and resumed, saved with their tokeniser, probed."""

import json

import pytest
import torch
from safetensors.torch import load_file

from jetrep.cli import main
from jetrep.encoders.decoder import SetTransformerConfig
from jetrep.encoders.transformer import TransformerConfig
from jetrep.objectives.clip_vae import ClipVAE, ClipVAEConfig
from jetrep.objectives.next_token import NextToken, NextTokenConfig
from jetrep.objectives.tokenizer import TokenizerConfig, VQTokenizer
from jetrep.training.checkpoint import load_model
from jetrep.training.engine import EngineConfig
from jetrep.training.pretrain import pretrain
from prong_jets import prong_jets, write_store

ENCODER = TransformerConfig(width=16, depth=2, heads=2, mlp_hidden=16, n_registers=1, position_bins=8, dropout=0.1)
NET = SetTransformerConfig(16, 1, 2)
KINDS = {
    "clip_vae": (ClipVAE, ClipVAEConfig(latent=8, decoder=NET, partner="subjets")),
    "next_token": (NextToken, NextTokenConfig(tokenizer=TokenizerConfig(n_codes=16, latent=4, net=NET, steps=5))),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("data") / "store", prong_jets(64))


def run(store, out, config):
    engine = EngineConfig(accelerator="cpu", log_every=1, checkpoint_every=2, logger="none")
    return pretrain(
        [store], out=out, encoder=ENCODER, objective=config, batch_size=16, epochs=2, engine=engine, quiet=True
    )


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_equals_uninterrupted_and_can_be_probed(tmp_path, store, monkeypatch, kind):
    objective, config = KINDS[kind]
    run(store, tmp_path / "whole", config)
    original = objective.after_step

    def after_step(self, at, total):
        if at == 5:
            monkeypatch.setattr(objective, "after_step", original)
            raise KeyboardInterrupt

    monkeypatch.setattr(objective, "after_step", after_step)
    with pytest.raises(KeyboardInterrupt):
        run(store, tmp_path / "stopped", config)
    assert (tmp_path / "stopped" / "resume.ckpt").exists()
    run(store, tmp_path / "stopped", config)
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    probe = ["probe", str(tmp_path / "whole"), "--train", str(store), "--on", str(store), "--kinds", "logistic"]
    assert main([*probe, "--out", str(tmp_path / "probe.json"), "--quiet"]) == 0


def test_the_tokeniser_of_a_run_reads_and_decodes_other_jets(tmp_path, store):
    out = run(store, tmp_path / "run", KINDS["next_token"][1])
    record, model = json.loads((out / "tokenizer.json").read_text()), load_model(out)
    tokenizer = VQTokenizer.from_record(record, load_file(out / "tokenizer.safetensors"), model.features)
    module = NextToken(model.features, model.encoder, KINDS["next_token"][1], tokenizer=tokenizer)
    batch = prong_jets(4, seed=2).batch()
    assert module.log_likelihood(batch).isfinite().all()
    assert module.generate(batch.jet_p4, torch.Generator().manual_seed(0))[0].p4.isfinite().all()
