"""Rate and memory of training steps of Lorentz-equivariant networks against the number of particles, beside lgatr's.

``autoencoder`` is the whole `LorentzAutoencoder` with its objective: encode, decode, Chamfer distance, presence. The
others are encoders alone: ours, and L-GATr and L-GATr-slim of lgatr 2.x with as many parameters (within 10 %) and as
many blocks and heads. They take the same kind of step on the same jets: encode, mean over particles of the invariant
outputs (ours: its CLS token), linear layer, cross-entropy, backward, fused AdamW. All jets of a batch have the same
number of particles, so that nobody computes padding. Float32 (our boost to the rest frame is in float64), one thread.

Memory is what a fresh process holds at its peak while it takes steps, less what it held before it built the model.

The code of arXiv:2212.07347 is slow enough to be quoted: its figures are not of this run, and of its own default sizes.

The peers come from ``pip install lgatr==2.0.0``.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from _harness import Timing, alternate, command_line, outcome, publish
from jetrep.encoders.lorentz import LorentzConfig, LorentzEncoder
from jetrep.encoders.lorentz_decoder import LorentzDecoder, LorentzDecoderConfig
from jetrep.features import FeatureConfig, Features
from jetrep.jets import JetBatch
from jetrep.objectives.autoencoding import AutoencoderConfig, Autoencoding
from loading import memory

BATCH, CENTRAL = 64, 30
COUNTS = (10, 20, 30, 50, 100, 150)
CONTENDERS = ("autoencoder", "encoder", "LGATrSlim", "LGATr")
# Default sizes (34,114 + 28,862 weights), batch 64, 30 particles, one thread of a server CPU.
QUOTED: dict[str, Any] = {
    "code": "arXiv:2212.07347, lgn-autoencoder",
    "measured in this run": False,
    "precision": "float64",
    "particles": 30,
    "jets/s": 15.0,
    "jets/s without its debugging": 22.0,
    "peak memory in MB": 3100.0,
}


class Ours(nn.Module):
    """Our encoder and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = LorentzEncoder(LorentzConfig())
        self.head = nn.Linear(self.encoder.width, 2)

    def forward(self, p4: Tensor, mask: Tensor) -> Tensor:
        """Logits (batch, 2)."""
        logits: Tensor = self.head(self.encoder.jets(p4, mask).cls)
        return logits


class Slim(nn.Module):
    """L-GATr-slim: vectors and scalars."""

    def __init__(self) -> None:
        super().__init__()
        from lgatr import LGATrSlim

        self.network = LGATrSlim(4, 1, 1, 8, 1, 32, 30, num_heads=4)
        self.head = nn.Linear(32, 2)

    def forward(self, p4: Tensor, mask: Tensor) -> Tensor:
        """Logits (batch, 2)."""
        p4 = (p4 / 20).float()
        scalars = self.network(p4.unsqueeze(-2), torch.log1p(p4[..., :1].abs()))[1]
        logits: Tensor = self.head(scalars.mean(1))
        return logits


class Multivectors(nn.Module):
    """L-GATr: multivectors and scalars."""

    def __init__(self) -> None:
        super().__init__()
        from lgatr import LGATr

        self.network = LGATr(4, 1, 1, 4, 1, 32, 8, attention={"num_heads": 4}, mlp={})
        self.head = nn.Linear(32, 2)

    def forward(self, p4: Tensor, mask: Tensor) -> Tensor:
        """Logits (batch, 2)."""
        from lgatr import embed_vector

        p4 = (p4 / 20).float()
        scalars = self.network(embed_vector(p4).unsqueeze(-2), torch.log1p(p4[..., :1].abs()))[1]
        logits: Tensor = self.head(scalars.mean(1))
        return logits


class Whole(nn.Module):
    """Our autoencoder with its loss."""

    def __init__(self, n: int) -> None:
        super().__init__()
        config = AutoencoderConfig("chamfer", decoder=LorentzDecoderConfig(n))
        self.objective = Autoencoding(Features(FeatureConfig()), LorentzEncoder(LorentzConfig()), config)

    def forward(self, p4: Tensor, mask: Tensor) -> Tensor:
        """The loss."""
        batch = JetBatch(p4, mask, p4.sum(1))
        loss: Tensor = self.objective(batch, 0, 1, torch.Generator().manual_seed(0)).loss
        return loss


def model(name: str, n: int) -> nn.Module:
    """A contender for jets of ``n`` particles."""
    torch.manual_seed(0)
    if name == "autoencoder":
        return Whole(n)
    kinds: dict[str, type[nn.Module]] = {"encoder": Ours, "LGATrSlim": Slim, "LGATr": Multivectors}
    return kinds[name]()


def jets(n: int) -> tuple[Tensor, Tensor]:
    """A batch of collimated jets of massless particles, float32, and its mask."""
    generator = torch.Generator().manual_seed(n)
    direction = 0.2 * torch.randn(BATCH, n, 3, generator=generator) + torch.tensor([1.0, 0.0, 0.0])
    energy = 100 * torch.rand(BATCH, n, 1, generator=generator).pow(3) + 0.5
    p4 = torch.cat([energy, energy * F.normalize(direction, dim=-1)], -1)
    return p4, torch.ones(BATCH, n, dtype=torch.bool)


def stepper(name: str, n: int, compiled: bool = False) -> tuple[Callable[[], None], int]:
    """A training step of a contender, and its parameters."""
    network = model(name, n)
    if compiled:
        for module in network.modules():
            if isinstance(module, LorentzEncoder | LorentzDecoder):
                module.compile()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, fused=True)
    p4, mask = jets(n)
    labels = torch.arange(BATCH) % 2

    def step() -> None:
        out = network(p4, mask)
        loss = out if out.dim() == 0 else F.cross_entropy(out, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, sum(parameter.numel() for parameter in network.parameters())


def peak(name: str, n: int) -> float:
    """Megabytes that a fresh process needs for the steps of a contender."""
    command = [sys.executable, __file__, "--remember", name, str(n)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def remember(name: str, n: int) -> None:
    """Print what `peak` reads."""
    if name.startswith("LGATr"):
        import lgatr  # noqa: F401  # its own modules are not what the steps need
    before = memory("VmRSS")
    step, _ = stepper(name, n)
    for _ in range(3):
        step()
    print(memory("VmHWM") - before)


def exponent(counts: Sequence[int], seconds: Sequence[float]) -> float:
    """α of seconds ∝ N^α, fitted to logarithms."""
    return float(np.polyfit(np.log(counts), np.log(seconds), 1)[0]) if len(counts) > 1 else math.nan


def ratio(ours: Timing, peer: Timing) -> dict[str, float]:
    """How much faster ours is: median, lowest and highest of the rounds, each of which timed both."""
    each = np.array(peer.cpu) / np.array(ours.cpu)
    return {"median": float(np.median(each)), "lowest": float(each.min()), "highest": float(each.max())}


def draw(rates: Mapping[str, Mapping[int, float]], peaks: Mapping[str, Mapping[int, float]], file: Path) -> None:
    """Rate and memory against the number of particles."""
    from matplotlib.ticker import NullLocator

    from jetrep.report.style import colour, line, marker, new_figure, save, style

    with style():
        figure = new_figure(11.0, 4.8)
        left, right = figure.subplots(1, 2)
        for axes, values, quoted, label in (
            (left, rates, QUOTED["jets/s"], "Jets per second"),
            (right, peaks, QUOTED["peak memory in MB"], "Peak memory [MB]"),
        ):
            for i, (name, points) in enumerate(values.items()):
                look = {"color": colour(i), "linestyle": line(i), "marker": marker(i)}
                axes.plot(list(points), list(points.values()), label=name, **look)
            axes.plot([CENTRAL], [quoted], color="0.3", linestyle="none", marker="*", label="reference code (quoted)")
            axes.set(xscale="log", yscale="log", xlabel="Particles per jet", ylabel=label)
            counts = sorted({n for points in values.values() for n in points})
            axes.set_xticks(counts, [str(n) for n in counts])
            axes.xaxis.set_minor_locator(NullLocator())
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper")
    save(figure, file)


def main() -> None:
    parser = command_line(__doc__, repetitions=5)
    parser.add_argument("--quick", action="store_true", help="10 and 30 particles, one round: does it run?")
    parser.add_argument("--compile", action="store_true", help="also ours through torch.compile")
    parser.add_argument("--figure", type=Path, help="draw rate and memory against the number of particles")
    parser.add_argument("--remember", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.remember:
        remember(args.remember[0], int(args.remember[1]))
        return
    counts = (10, CENTRAL) if args.quick else COUNTS
    repetitions = 1 if args.quick else args.repetitions
    names = [*CONTENDERS, *(["autoencoder compiled", "encoder compiled"] if args.compile else [])]
    timings: dict[str, Timing] = {}
    parameters: dict[str, int] = {}
    ratios: dict[str, dict[str, Any]] = {"LGATrSlim": {}, "LGATr": {}}
    for n in counts:
        steps: dict[str, Callable[[], None]] = {}
        for name in names:
            kind, _, compiled = name.partition(" ")
            steps[name], size = stepper(kind, n, bool(compiled))
            if n == CENTRAL:
                parameters[name] = size
        taken = alternate(steps, repetitions=repetitions, warm_up=2, clock="cpu")
        timings |= {f"{name}, {n} particles": timing for name, timing in taken.items()}
        for peer, found in ratios.items():
            found[str(n)] = ratio(taken["encoder"], taken[peer])
    seconds = {name: {n: timings[f"{name}, {n} particles"].seconds for n in counts} for name in names}
    rates = {name: {n: BATCH / s for n, s in of.items()} for name, of in seconds.items()}
    peaks = {name: {n: peak(name, n) for n in counts} for name in CONTENDERS}
    if args.figure:
        draw(rates, peaks, args.figure)

    def by_count(values: Mapping[str, Mapping[int, float]]) -> dict[str, dict[str, float]]:
        return {name: {str(n): value for n, value in of.items()} for name, of in values.items()}

    publish(
        outcome(
            "lorentz",
            rates["encoder"][CENTRAL],
            rates["LGATrSlim"][CENTRAL],
            "jets/s",
            settings={
                "batch": BATCH,
                "particles": list(counts),
                "particles of ours and peer": CENTRAL,
                "parameters": parameters,
                "blocks": 4,
                "heads": 4,
                "threads": 1,
                "precision": "float32",
                "step": "forward, loss, backward, fused AdamW",
                "ours": "LorentzEncoder, default shape",
                "peer": "LGATrSlim",
                "clock": "CPU time",
            },
            timings=timings,
            packages=("torch", "lgatr"),
            rates=by_count(rates),
            ratios=ratios,
            exponents={name: exponent(counts, list(of.values())) for name, of in seconds.items()},
            exponents_from_50={
                name: exponent([n for n in counts if n >= 50], [s for n, s in of.items() if n >= 50])
                for name, of in seconds.items()
                if max(counts) > 50
            },
            peak_memory_mb=by_count(peaks),
            quoted=QUOTED | {"ratio of our autoencoder": rates["autoencoder"][CENTRAL] / QUOTED["jets/s"]},
        ),
        args,
    )


if __name__ == "__main__":
    main()
