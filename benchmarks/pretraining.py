"""Rate of a whole pretraining step of RINO: all views packed into one pass, against one padded forward for each view.

Both contenders take the same step on the same batch with the same weights, losses and optimiser: views, features,
forward, losses, backward, clipping, fused AdamW, teacher update. Ours is `jetrep.objectives.SelfDistillation`. The
peer follows the published scheme plainly: every view is a padded forward of its own through stock attention (eleven
of them for the later recipe: three fixed and three drawn views and the masked jet for the student, three views and
the clean jet for the teacher), the unclustered view is as wide as the longest jet of the batch, and the iBOT heads
see every token, padding included. Views, features and losses are the same functions for both.

Each contender takes one step in float32 and one under bfloat16 autocast; the faster precision is then timed. The
draws of student views cycle through their four equally likely values, the same for both.

With JETREP_TEST_DATA set to the folder with ``toptagging/``, jets are real; otherwise they have a similar
multiplicity.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from _harness import Timing, alternate, command_line, outcome, publish
from jetrep.encoders import SIZES, JetTransformer, ProjectionHead
from jetrep.encoders.layers import Block
from jetrep.features import FeatureConfig, Features, ModelInput
from jetrep.jets import JetBatch, Jets
from jetrep.objectives import PRESETS, SelfDistillation
from jetrep.objectives.losses import dino_loss, ibot_loss, koleo_loss
from jetrep.views.masking import random_particles
from jetrep.views.rg import ALL, subjets

BATCH = 64
RECIPES = {
    "g2 production": ("g2", "production", FeatureConfig("kin", "rino_g2")),
    "g1 nano": ("g1", "nano", FeatureConfig("kin_p4", "rino_g1")),
}


class Peer(SelfDistillation):
    """The same parameters and losses, one padded forward for each view."""

    def plain_encoder(self, encoder: JetTransformer, view: ModelInput) -> tuple[Tensor, Tensor]:
        """CLS (batch, width) and particle tokens (batch, n, width) of one view."""
        x = encoder.stem(view.features)
        if encoder.stem_norm is not None:
            x = encoder.stem_norm(x)
        if encoder.position is not None:
            x = x + encoder.position(view.coordinates)
        prefix = []
        if encoder.cls_from_jet is not None:
            prefix.append(encoder.cls_from_jet(view.jet_features).unsqueeze(1))
        if encoder.prefix is not None:
            prefix.append(encoder.prefix.expand(len(x), -1, -1))
        n_prefix = sum(part.shape[1] for part in prefix)
        x = torch.cat([*prefix, x], 1)
        mask = F.pad(view.mask, (n_prefix, 0), value=True)[:, None, None]
        for block in encoder.blocks:
            assert isinstance(block, Block)
            x = self.plain_block(block, x, mask)
        x = encoder.norm(x)
        return x[:, 0], x[:, n_prefix:]

    def plain_block(self, block: Block, x: Tensor, mask: Tensor) -> Tensor:
        """One block on padded tokens, attention through the stock function."""
        batch, length, width = x.shape
        qkv = block.qkv(block.norm1(x)).view(batch, length, 3, block.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv.unbind(0), attn_mask=mask)
        mixed = block.proj(mixed.transpose(1, 2).reshape(batch, length, width))
        x = x + (mixed if block.gamma1 is None else block.gamma1 * mixed)
        hidden = block.fc1(block.norm2(x))
        if block.gated:
            gate, value = hidden.chunk(2, -1)
            hidden = F.silu(gate) * value
        else:
            hidden = F.gelu(hidden)
        hidden = block.fc2(hidden)
        return x + (hidden if block.gamma2 is None else block.gamma2 * hidden)

    def peer_step(self, batch: JetBatch, scales: Sequence[int], generator: torch.Generator) -> Tensor:
        """The loss of one batch."""
        c, n_teacher = self.config, len(self.config.teacher_scales)
        inputs = [self.features(subjets(batch, scale)) for scale in scales]
        student = [self.plain_encoder(self.student.encoder, view)[0] for view in inputs]
        with torch.no_grad():
            teacher = [self.plain_encoder(self.teacher.encoder, view)[0] for view in inputs[:n_teacher]]
            targets = self._targets(head(self.teacher.dino, torch.cat(teacher)), c.teacher_temperature, None)
        logits = head(self.student.dino, torch.cat(student))
        weights = (torch.arange(n_teacher).unsqueeze(1) != torch.arange(len(scales))).float()
        loss = c.dino_weight * dino_loss(
            logits.view(len(scales), len(batch), -1),
            targets.view(n_teacher, len(batch), -1),
            c.student_temperature,
            weights.expand(len(batch), -1, -1),
        )
        loss = loss + c.koleo_weight * koleo_loss(torch.stack(student[:n_teacher]))
        if c.ibot_weight:
            loss = loss + c.ibot_weight * self.peer_ibot(batch, generator)
        return loss

    def peer_ibot(self, batch: JetBatch, generator: torch.Generator) -> Tensor:
        """The iBOT loss, from heads on every token."""
        view = self.features(batch)
        hidden = random_particles(batch.mask, self.config.mask_fraction, generator)
        with torch.no_grad():
            seen = head(self.teacher.ibot, self.plain_encoder(self.teacher.encoder, view)[1])
            targets = self._targets(seen[hidden], self.config.teacher_temperature, None)
        predicted = head(self.student.ibot, self.plain_encoder(self.student.encoder, view.with_masked(hidden))[1])
        per_jet = hidden.sum(1, keepdim=True).clamp(min=1) * len(batch)
        weights = (1 / per_jet).expand_as(hidden)[hidden]
        return ibot_loss(predicted[hidden], targets, self.config.student_temperature, weights)


def head(module: ProjectionHead | None, x: Tensor) -> Tensor:
    assert module is not None
    return module(x)


def jets(n: int) -> tuple[Jets, str]:
    folder = os.environ.get("JETREP_TEST_DATA")
    path = Path(folder or "", "toptagging", "top_train_00.npz")
    if folder and path.exists():
        with np.load(path) as file:
            counts = file["n"][:n].astype(np.int64)
            p4 = file["p4"][: counts.sum()]
        return Jets(p4, np.concatenate([[0], np.cumsum(counts)])).clustered(), "real top-tagging jets"
    rng = np.random.default_rng(1)
    counts = rng.negative_binomial(7, 7 / 47, n) + 3
    pt, eta, phi = rng.exponential(12, counts.sum()), rng.normal(0, 0.3, counts.sum()), rng.normal(0, 0.3, counts.sum())
    p4 = np.stack([pt * np.cosh(eta), pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)], -1).astype(np.float32)
    return Jets(p4, np.concatenate([[0], np.cumsum(counts)])).clustered(), "synthetic jets"


Step = Callable[[JetBatch, tuple[int, ...]], float]


def stepper(objective: SelfDistillation, dtype: torch.dtype) -> Step:
    """A function that takes one step on a batch with the given draw of student views, and returns the loss."""
    optimizer = torch.optim.AdamW(objective.parameter_groups(1e-4, 0.05, 0.9), fused=True)
    fixed = objective.config.teacher_scales

    def step(batch: JetBatch, drawn: tuple[int, ...]) -> float:
        generator = torch.Generator().manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            if isinstance(objective, Peer):
                loss = objective.peer_step(batch, (*fixed, *drawn), generator)
            else:
                objective.draw_scales = lambda _: drawn  # type: ignore[method-assign]
                loss = objective(batch, 1, 1000, generator).loss
        loss.backward()
        for parameters in objective.parts().values():
            torch.nn.utils.clip_grad_norm_(parameters, 3.0)
        optimizer.step()
        optimizer.zero_grad()
        objective.after_step(1, 1000)
        return float(loss.detach())

    return step


def faster(steps: dict[str, Step], batch: JetBatch, drawn: tuple[int, ...]) -> str:
    """The precision in which a step takes less time, judged by one step after another for warm-up."""
    timings = alternate({name: lambda step=step: step(batch, drawn) for name, step in steps.items()}, repetitions=1)
    return min(timings, key=lambda name: timings[name].seconds)


def measure(name: str, data: Jets, repetitions: int, threads: int) -> tuple[dict[str, Timing], dict[str, Any], int]:
    """Timings of one round over all draws, what else is to be told, and the jets in a round."""
    preset, size, feature_config = RECIPES[name]
    torch.set_num_threads(threads)
    config = PRESETS[preset]
    draws: list[tuple[int, ...]] = [(2, 3, ALL), (2, 3, 4), (2, 4, ALL), (3, 4, ALL)]
    if preset == "g1":
        draws = [config.student_scales]
    batches = [data.batch(slice(i * BATCH, (i + 1) * BATCH)) for i in range(len(draws))]
    rounds: dict[str, Callable[[], None]] = {}
    told: dict[str, Any] = {}
    for kind, contender in (("ours", SelfDistillation), ("peer", Peer)):
        torch.manual_seed(0)
        features = Features(feature_config)
        objective = contender(features, JetTransformer(SIZES[size], len(features.names)), config)
        types = {"float32": torch.float32, "bfloat16": torch.bfloat16}
        steps = {label: stepper(objective, dtype) for label, dtype in types.items()}
        told[f"{kind} first loss"] = steps["float32"](batches[0], draws[0])
        told[f"{kind} precision"] = faster(steps, batches[0], draws[0])

        def work(step: Step = steps[told[f"{kind} precision"]]) -> None:
            for batch, drawn in zip(batches, draws, strict=True):
                step(batch, drawn)

        if threads == 1:
            with FlopCounterMode(display=False) as counter:
                work()
            told[f"{kind} GFLOP per jet"] = counter.get_total_flops() / (BATCH * len(draws)) / 1e9
        rounds[kind] = work
    if abs(told["ours first loss"] / told["peer first loss"] - 1) > 1e-4:
        raise SystemExit(f"the contenders do not take the same step: {told}")
    timings = alternate(rounds, repetitions=repetitions, clock="cpu" if threads == 1 else "wall")
    return timings, told, BATCH * len(draws)


def main() -> None:
    parser = command_line(__doc__, repetitions=3)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="threads of the second run")
    args = parser.parse_args()
    data, source = jets(4 * BATCH)
    all_timings: dict[str, Timing] = {}
    more: dict[str, Any] = {}
    for threads in sorted({1, args.threads}):
        for name in RECIPES:
            key = f"{name}, {threads} thread" + "s" * (threads > 1)
            timings, told, n_jets = measure(name, data, args.repetitions, threads)
            rate = {kind: n_jets / timing.seconds for kind, timing in timings.items()}
            more[key] = rate | {"ratio": rate["ours"] / rate["peer"]} | told
            all_timings |= {f"{key}, {kind}": timing for kind, timing in timings.items()}
    first = more["g2 production, 1 thread"]
    settings = {
        "batch": BATCH,
        "jets": source,
        "mean multiplicity": statistics.fmean(data.counts.tolist()),
        "threads": 1,
        "ours": "jetrep SelfDistillation, packed views",
        "peer": "one padded forward for each view",
        "clock": "CPU time on one thread, elapsed time on more",
    }
    publish(
        outcome(
            "pretraining",
            first["ours"],
            first["peer"],
            "jets/s",
            settings=settings,
            timings=all_timings,
            packages=("torch",),
            **more,
        ),
        args,
    )


if __name__ == "__main__":
    main()
