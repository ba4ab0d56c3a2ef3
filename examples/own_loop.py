"""RINO in a training loop of your own: the objective is plain torch, the loop is yours.

    python examples/own_loop.py stores/qcd --out runs/mine --steps 2000

What it leaves behind is a run like that of `jetrep pretrain`: `jetrep probe`, `finetune` and `embed` read it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from jetrep.encoders import SIZES, JetTransformer
from jetrep.features import FeatureConfig, Features
from jetrep.model import JetModel, ModelConfig
from jetrep.objectives import PRESETS, SelfDistillation
from jetrep.store import Store
from jetrep.training.checkpoint import save_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, help="store with the jets, from jetrep prepare or simulate")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=128)
    args = parser.parse_args()

    store, device = Store(args.store), "cuda" if torch.cuda.is_available() else "cpu"
    jets, rng = store.jets(), np.random.default_rng(0)
    torch.manual_seed(0)
    config = ModelConfig(features=FeatureConfig("kin_p4", "rino_g1"), encoder=SIZES["nano"])
    features = Features(config.features)
    encoder = JetTransformer(config.encoder, n_features=len(features.names))
    objective = SelfDistillation(features, encoder, PRESETS["small_batch"]).to(device)
    optimizer = torch.optim.AdamW(objective.parameter_groups(lr=1e-3, weight_decay=0.05))

    for step in range(args.steps):
        batch = jets.batch(rng.choice(len(jets), args.batch_size, replace=False)).to(device)
        output = objective(batch, step, args.steps, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        output.loss.backward()
        for parameters in objective.parts().values():
            torch.nn.utils.clip_grad_norm_(parameters, 3.0)
        optimizer.step()
        objective.after_step(step, args.steps)  # the teacher follows the student
        if (step + 1) % 10 == 0:
            print(step + 1, {name: round(float(value), 3) for name, value in output.metrics.items()})

    model = JetModel(config, features, objective.encoder)
    save_model(model, args.out, provenance={"data": {str(args.store): store.content_hash}, "steps": args.steps})
    print(f"encoder: {args.out}")


if __name__ == "__main__":
    main()
