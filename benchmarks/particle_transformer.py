"""Rate of a training step of Particle Transformer: ours, packed, against weaver-core's, padded and trimmed.

Both contenders hold the same weights (2.14 million parameters) and take the same kind of step on the same batches:
features given, forward with dropout and trimming as published, cross-entropy, backward, fused AdamW. Weaver trims to
the same random quantiles of multiplicity. Timed in float32 and under bfloat16 autocast, on one thread of a CPU or,
with ``--device cuda``, on a GPU. What ``--compile`` names is also timed through torch.compile, as its trainer has it on
request; how long compiling takes is printed to standard error and not counted.

With JETREP_TEST_DATA set to the folder with ``toptagging/``, jets are real; otherwise they have a similar
multiplicity. The peer comes from ``pip install weaver-core==0.5.3``.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from _harness import Timing, alternate, command_line, outcome, publish, silenced
from jetrep.encoders.particle_transformer import ParticleTransformer, ParticleTransformerConfig
from jetrep.features import FeatureConfig, Features, ModelInput
from pretraining import jets

WIDTH = 128  # particles, as weaver pads


class Ours(nn.Module):
    """Encoder and classifier."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.encoder, self.head = ParticleTransformer(ParticleTransformerConfig(), n_features), nn.Linear(128, 2)

    def compiled(self) -> None:
        """As ``--engine.compile`` does it."""
        self.encoder.compile(dynamic=True)

    def forward(self, view: ModelInput) -> torch.Tensor:
        """Logits (batch, 2)."""
        logits: torch.Tensor = self.head(self.encoder([view])[0].cls)
        return logits


class Peer(nn.Module):
    """Weaver's network, on what its loader would give: 128 places for each jet."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        with silenced():
            from weaver.nn.model.ParticleTransformer import ParticleTransformer as Weaver
        self.network = Weaver(n_features, 2, use_pre_activation_pair=False)
        self.network.trimmer._counter += 5  # its warm-up, in which it does not trim

    def compiled(self) -> None:
        """As weaver's ``--compile`` does it, for shapes that vary, as they do with its trimming."""
        self.network.compile(dynamic=True)

    def forward(self, view: ModelInput) -> torch.Tensor:
        """Logits (batch, 2)."""
        assert view.p4 is not None
        missing = WIDTH - view.mask.shape[1]
        features, p4 = (F.pad(x, (0, 0, 0, missing))[:, :WIDTH].mT for x in (view.features, view.p4))
        mask = F.pad(view.mask, (0, missing))[:, None, :WIDTH]
        logits: torch.Tensor = self.network(features, p4[:, [1, 2, 3, 0]], mask)
        return logits


def stepper(model: nn.Module, dtype: torch.dtype, device: str) -> Callable[[ModelInput, torch.Tensor], None]:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    model.train()

    def step(view: ModelInput, labels: torch.Tensor) -> None:
        with torch.autocast(device, torch.bfloat16, enabled=dtype is torch.bfloat16):
            logits = model(view)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    parser = command_line(__doc__, repetitions=3)
    parser.add_argument("--batches", type=int, default=4, help="steps of a timed round (4)")
    parser.add_argument("--batch", type=int, default=128, help="jets of a step (128)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where (cpu)")
    parser.add_argument(
        "--compile", nargs="+", choices=("ours", "peer"), default=(), help="whom to time through torch.compile too"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    on_gpu = args.device == "cuda"
    n_jets = args.batches * args.batch
    data, source = jets(n_jets)
    features = Features(FeatureConfig("kin", "weaver")).to(args.device)
    parts = [data[slice(i * args.batch, (i + 1) * args.batch)] for i in range(args.batches)]
    views = [features(part.batch().to(args.device)) for part in parts]
    labels = torch.arange(args.batch, device=args.device) % 2
    rounds: dict[str, Callable[[], None]] = {}
    gflop: dict[str, float] = {}
    contenders: dict[str, type[Ours | Peer]] = {"ours": Ours, "peer": Peer}
    for kind, compiled in [*((kind, False) for kind in contenders), *((kind, True) for kind in args.compile)]:
        torch.manual_seed(0)
        model = contenders[kind](len(features.names)).to(args.device)
        if compiled:
            model.compiled()
        else:
            with FlopCounterMode(display=False) as counter:
                stepper(model, torch.float32, args.device)(views[0], labels)
            gflop[f"{kind} GFLOP per jet"] = counter.get_total_flops() / args.batch / 1e9
        for dtype in (torch.float32, torch.bfloat16):
            name = f"{kind}{' compiled' * compiled} {str(dtype).removeprefix('torch.')}"
            step = stepper(model, dtype, args.device)

            def work(step: Callable[[ModelInput, torch.Tensor], None] = step) -> None:
                for view in views:
                    step(view, labels)

            rounds[name], start = work, time.perf_counter()
            if compiled:
                work()
                print(f"{name}: first steps in {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    timings: dict[str, Timing] = alternate(
        rounds,
        repetitions=args.repetitions,
        clock="wall" if on_gpu else "cpu",
        synchronize=torch.cuda.synchronize if on_gpu else None,
    )
    rates = {name: n_jets / timing.seconds for name, timing in timings.items()}
    more: dict[str, Any] = {
        "ratio float32": rates["ours float32"] / rates["peer float32"],
        "ratio bfloat16": rates["ours bfloat16"] / rates["peer bfloat16"],
        "rates": rates,
        **gflop,
    }
    publish(
        outcome(
            "particle_transformer",
            rates["ours float32"],
            rates["peer float32"],
            "jets/s",
            settings={
                "batch": args.batch,
                "jets": source,
                "mean multiplicity": statistics.fmean(data.counts.tolist()),
                "device": torch.cuda.get_device_name() if on_gpu else "cpu, one thread",
                "step": "forward, backward, AdamW; dropout 0.1, trimming",
                "peer": "weaver-core ParticleTransformer",
                "clock": "wall" if on_gpu else "CPU time",
            },
            timings=timings,
            packages=("torch", "weaver-core"),
            **more,
        ),
        args,
    )


if __name__ == "__main__":
    main()
