r"""A tokeniser of particles: a vector-quantised autoencoder of sets (VQ-VAE, arXiv 1711.00937; of jets: 2401.13537).

An encoder gives every particle of a jet a latent vector, which is replaced by the nearest of K codes; a decoder gets
the particles back from the codes. The number of its code is then what a masked particle is known by. It is trained
before the encoder of the run, on the same jets, and does not change afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jetrep.encoders.decoder import SetTransformer, SetTransformerConfig
from jetrep.errors import InputError, at_least
from jetrep.features import Features
from jetrep.jets import Jets
from jetrep.objectives.hiding import per_jet_weights
from jetrep.objectives.quantizer import VectorQuantizer, perplexity
from jetrep.objectives.schedules import warmup_cosine

__all__ = ["TokenizerConfig", "VQTokenizer"]

_OF_SCALE = ("px", "py", "pz", "energy", "log_pt", "log_energy")  # features that change when all momenta are scaled


@dataclass(frozen=True)
class TokenizerConfig:
    """Shape and training of a `VQTokenizer`. The published one has a transformer of width 128, depth 3, 16 heads.

    Attributes:
        n_codes: size of the codebook.
        latent: features of a code.
        net: shape of encoder and decoder, each.
        cosine: compare directions of latents alone.
        decay: of the running means that make the codes.
        dead: a code that gets less than this fraction of an equal share is replaced.
        commitment: weight of the distance of latents to their codes, beside the mean absolute error. (The published
            loss has 10 times a codebook loss of which 0.9 is this.)
        steps: optimiser steps.
        warmup: fraction of them before there are codes: a plain autoencoder, whose latents k-means then starts from.
        batch_size: jets of a step.
        lr: peak learning rate of AdamW.
    """

    n_codes: int = 512
    latent: int = 16
    net: SetTransformerConfig = SetTransformerConfig(width=64, depth=2, heads=4)
    cosine: bool = False
    decay: float = 0.99
    dead: float = 0.1
    commitment: float = 9.0
    steps: int = 500
    warmup: float = 0.1
    batch_size: int = 64
    lr: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("latent", "steps", "batch_size"):
            at_least(1, **{f"objective.tokenizer.{name}": getattr(self, name)})
        at_least(2, **{"objective.tokenizer.n_codes": self.n_codes})
        at_least(0, **{"objective.tokenizer.commitment": self.commitment, "objective.tokenizer.lr": self.lr})
        for name in ("decay", "dead", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(
                    f"is {getattr(self, name)}", field=f"objective.tokenizer.{name}", remedy="give 0 to below 1"
                )


class VQTokenizer(nn.Module):
    """Particles → codes → particles; see the module.

    It knows what it was made for: the names of its features and the constants that they were standardised by.

    Args:
        features: the features of the run.
        names: those of them that are tokenised, in this order.
        config: shape and training.
    """

    mean: Tensor
    scale: Tensor
    trained: Tensor

    def __init__(self, features: Features, names: Sequence[str], config: TokenizerConfig) -> None:
        super().__init__()
        self.names, self.config, self.scale_pt = tuple(names), config, features.config.scale_pt
        index = [features.names.index(name) for name in self.names]
        width, n = config.net.width, len(self.names)
        self.embed, self.encoder = nn.Linear(n, width), SetTransformer(config.net)
        self.to_latent, self.from_latent = nn.Linear(width, config.latent), nn.Linear(config.latent, width)
        self.decoder, self.output = SetTransformer(config.net), nn.Linear(width, n)
        self.quantizer = VectorQuantizer(
            config.n_codes, config.latent, decay=config.decay, dead=config.dead, cosine=config.cosine
        )
        self.register_buffer("mean", features.mean[index].clone())
        self.register_buffer("scale", features.scale[index].clone())
        self.register_buffer("trained", torch.tensor(False))

    def check(self, features: Features, names: Sequence[str]) -> None:
        """Whether this tokeniser was made for these features.

        Raises:
            InputError: if names or constants of the standardisation differ, or it was never trained.
        """
        remedy = "train a tokeniser for the features of this run"
        if tuple(names) != self.names:
            raise InputError(
                f"the tokeniser was made for {', '.join(self.names)}, not for {', '.join(names)}",
                field="tokenizer",
                remedy=remedy,
            )
        for i, name in enumerate(names):
            j = features.names.index(name)
            own = float(self.mean[i]), float(self.scale[i])
            theirs = float(features.mean[j]), float(features.scale[j])
            if own != theirs:
                raise InputError(
                    "the tokeniser was made for another standardisation: mean and scale of "
                    f"{name} are {own[0]:.6g}, {own[1]:.6g} there and {theirs[0]:.6g}, {theirs[1]:.6g} here",
                    field="tokenizer",
                    remedy=remedy,
                )
        scaled = features.config.scale_pt
        if self.scale_pt != scaled and (changed := [name for name in names if name in _OF_SCALE]):
            raise InputError(
                f"the tokeniser was made for {', '.join(changed)} of jets with features.scale_pt = {self.scale_pt}, "
                f"not {scaled}",
                field="tokenizer",
                remedy=remedy,
            )
        if not self.trained:
            raise InputError("the tokeniser was not trained", field="tokenizer", remedy="give it jets to be fitted to")

    def latents(self, x: Tensor, mask: Tensor) -> Tensor:
        """(batch, n, features) → (m, latent) of the real particles, jet by jet."""
        latents: Tensor = self.to_latent(self.encoder(self.embed(x), mask))
        return latents

    def reconstructed(self, latents: Tensor, mask: Tensor) -> Tensor:
        """(m, latent) of the real particles → (m, features)."""
        embedded = self.from_latent(latents)
        x = embedded.new_zeros(*mask.shape, embedded.shape[1])
        x[mask] = embedded
        reconstructed: Tensor = self.output(self.decoder(x, mask))
        return reconstructed

    @torch.no_grad()
    def tokens(self, x: Tensor, mask: Tensor) -> Tensor:
        """(batch, n, features) → (m,) codes of the real particles, jet by jet."""
        return self.quantizer.nearest(self.latents(x, mask))

    def loss(
        self, x: Tensor, mask: Tensor, generator: torch.Generator | None = None, *, quantized: bool = True
    ) -> Tensor:
        """Mean absolute error and commitment, averaged per jet, then over jets.

        Args:
            x: (batch, n, features) standardised.
            mask: (batch, n) bool.
            generator: see `VectorQuantizer`.
            quantized: without, it is a plain autoencoder.
        """
        latents = self.latents(x, mask)
        each = torch.zeros(len(latents), device=x.device)
        if quantized:
            latents, _, commitment = self.quantizer(latents, generator)
            each = self.config.commitment * commitment
        each = each + (self.reconstructed(latents, mask).float() - x[mask]).abs().mean(1)
        return (each * per_jet_weights(mask)).sum()

    def fit(self, features: Features, jets: Jets, seed: int = 0) -> list[float]:
        """Train it. All randomness but that of the initial weights is a function of ``seed``.

        Args:
            features: those it was made for.
            jets: what to train on.
            seed: of batches, clusters and replacements.

        Returns:
            The loss of each step.

        Raises:
            InputError: if the jets have fewer particles than there are codes, or the loss is not finite.
        """
        if len(jets.p4) < self.config.n_codes:
            raise InputError(
                f"{self.config.n_codes} codes are to be fitted to {len(jets.p4)} particles",
                field="objective.tokenizer.n_codes",
                remedy=f"ask for at most {len(jets.p4)}, or give more jets",
            )
        index, config = [features.names.index(name) for name in self.names], self.config
        generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
        optimizer = torch.optim.AdamW(self.parameters(), lr=config.lr, weight_decay=0.01)
        first, losses = round(config.warmup * config.steps), []
        device = self.mean.device
        self.train().requires_grad_(True)
        for step in range(config.steps):
            if step == first:
                self._start(features, jets, rng, seed)
            rows = np.sort(rng.choice(len(jets), min(config.batch_size, len(jets)), replace=False))
            inputs = features(jets.batch(rows).to(device))
            loss = self.loss(inputs.features[..., index], inputs.mask, generator, quantized=step >= first)
            for group in optimizer.param_groups:
                group["lr"] = config.lr * warmup_cosine((step + 1) / config.steps, 0.1, 0.01)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.parameters(), 5.0)
            optimizer.step()
            losses.append(float(loss.detach()))
        if not all(np.isfinite(losses)):
            raise InputError("the loss is not finite", field="objective.tokenizer", remedy="lower its lr")
        self.trained.fill_(True)
        self.eval().requires_grad_(False)
        return losses

    @torch.no_grad()
    def _start(self, features: Features, jets: Jets, rng: np.random.Generator, seed: int) -> None:
        """Codes from the latents of up to 40 K particles."""
        index = [features.names.index(name) for name in self.names]
        found: list[Tensor] = []
        order = rng.permutation(len(jets))
        for start in range(0, len(order), 256):
            inputs = features(jets.batch(np.sort(order[start : start + 256])).to(self.mean.device))
            found.append(self.latents(inputs.features[..., index], inputs.mask))
            if sum(map(len, found)) >= 40 * self.config.n_codes:
                break
        self.quantizer.initialize(torch.cat(found)[: 40 * self.config.n_codes], seed)

    @torch.no_grad()
    def inspect(self, features: Features, jets: Jets) -> dict[str, float]:
        """How good it is on some jets.

        Returns:
            ``codes_used``: fraction of the codes that occur; ``codebook_perplexity``: their effective number;
            ``error``: mean absolute error in standardised units; ``error_<feature>`` the same in the unit of each
            feature; ``error_of_mean``: that of a tokeniser of one code, the mean of all particles.
        """
        index = [features.names.index(name) for name in self.names]
        codes, truth, again = [], [], []
        for start in range(0, len(jets), 256):
            inputs = features(jets.batch(slice(start, start + 256)).to(self.mean.device))
            x, mask = inputs.features[..., index], inputs.mask
            codes.append(self.tokens(x, mask))
            again.append(self.reconstructed(self.quantizer.codes[codes[-1]], mask))
            truth.append(x[mask])
        numbers, x = torch.cat(codes), torch.cat(truth)
        error = (torch.cat(again) - x).abs().mean(0)
        by_feature = zip(self.names, (error * self.scale).tolist(), strict=True)
        return {
            "codes_used": int((torch.bincount(numbers) > 0).sum()) / self.config.n_codes,
            "codebook_perplexity": float(perplexity(numbers, self.config.n_codes)),
            "error": float(error.mean()),
            "error_of_mean": float((x - x.mean(0)).abs().mean()),
            **{f"error_{name}": value for name, value in by_feature},
        }

    def record(self) -> dict[str, Any]:
        """What is needed beside the weights to build it again, as JSON can hold it: names and settings."""
        return {"names": list(self.names), "config": asdict(self.config), "scale_pt": self.scale_pt}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], weights: Mapping[str, Tensor], features: Features) -> VQTokenizer:
        """The tokeniser of another run, for the features of this one.

        Args:
            record: what `record` gave.
            weights: its ``state_dict()``.
            features: those of this run.

        Raises:
            InputError: if the record or the weights are not a tokeniser's, or it was made for other features.
        """
        remedy = "give the record and the weights of one tokeniser, made by this version"
        try:
            settings, names = dict(record["config"]), tuple(record["names"])
            settings["net"] = SetTransformerConfig(**settings["net"])
            config = TokenizerConfig(**settings)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"not the record of a tokeniser ({error})", field="tokenizer", remedy=remedy) from error
        if unknown := [name for name in names if name not in features.names]:
            raise InputError(
                f"the tokeniser was made for {', '.join(unknown)}, which is not among the features",
                field="tokenizer",
                remedy="choose the features that it was made for, or train another",
            )
        tokenizer = cls(features, names, config)
        tokenizer.scale_pt = record.get("scale_pt")
        try:
            tokenizer.load_state_dict(dict(weights))
        except RuntimeError as error:
            problem = f"weights do not fit the record ({' '.join(str(error).split())[:200]})"
            raise InputError(problem, field="tokenizer", remedy=remedy) from error
        tokenizer.check(features, names)
        return tokenizer.eval().requires_grad_(False)
