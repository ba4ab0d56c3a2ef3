"""Masked particle modelling: predict hidden particles of a jet from the others (arXiv 2401.13537, 2409.12589).

In the layout "decoder" (the later one) the encoder sees the visible particles alone, and a small decoder is asked for
the hidden ones by their rank in pT. In the layout "in_place" (the earlier one) hidden particles stay in the set as
blanks, all alike; their rank in pT is told to the head, after the encoder.

Both learn the CLS token beside the particles' tokens: what is asked for is answered from both. (The published networks
have no such token.) `jetrep.objectives.hiding` says what the encoder still knows of the hidden particles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

from jetrep.encoders.base import Encoded, JetEncoder
from jetrep.encoders.decoder import Decoder, DecoderConfig, SetTransformerConfig
from jetrep.errors import InputError, at_least
from jetrep.features import Features
from jetrep.jets import JetBatch, Jets
from jetrep.objectives.base import Objective, StepOutput
from jetrep.objectives.flows import ConditionalFlow
from jetrep.objectives.hiding import (
    blanked,
    check_fraction,
    hidden_particles,
    normal_numbers,
    per_jet_weights,
    pt_ranks,
    survivors,
)
from jetrep.objectives.monitors import alarms, spread
from jetrep.objectives.targets import (
    ClusterTokens,
    FlowMatching,
    Identity,
    Regression,
    Target,
    VQTokens,
    columns_of,
)
from jetrep.objectives.tokenizer import TokenizerConfig, VQTokenizer

__all__ = ["PRESETS", "MaskedParticles", "MaskedParticlesConfig"]


@dataclass(frozen=True)
class MaskedParticlesConfig:
    """Settings of `MaskedParticles`. The defaults are those of the later layout at a size for small encoders.

    Attributes:
        layout: see the module.
        target: what is predicted of a hidden particle; see `jetrep.objectives.targets`. "flow" is a normalising flow.
        predicted: names of the features that are predicted, or that the tokens stand for.
        mask_fraction: fraction of the particles of a jet that is hidden; by default 0.4, or 0.3 in place.
        decoder: shape of the decoder. In place, only its ``ranks`` are used.
        n_codes: clusters of k-means. (The tokeniser has a number of its own.)
        smoothing: of the targets of cross-entropies.
        tokenizer: shape and training of the tokeniser, for the target "vq".
        identity_weight: weight of the cross-entropies of type and charge; 0 leaves them out.
        monitor_every: signs of collapse are among the metrics of every such step, counted from 1.
    """

    layout: Literal["decoder", "in_place"] = "decoder"
    target: Literal["regression", "kmeans", "vq", "flow_matching", "flow"] = "kmeans"
    predicted: tuple[str, ...] = ("log_pt_rel", "delta_eta", "delta_phi")
    mask_fraction: float | None = None
    decoder: DecoderConfig = DecoderConfig()
    n_codes: int = 512
    smoothing: float = 0.1
    tokenizer: TokenizerConfig = TokenizerConfig()
    identity_weight: float = 0.0
    monitor_every: int = 10
    kind: Literal["masked_particles"] = "masked_particles"

    def __post_init__(self) -> None:
        check_fraction(self.fraction, "objective.mask_fraction")
        at_least(2, **{"objective.n_codes": self.n_codes})
        at_least(1, **{"objective.monitor_every": self.monitor_every})
        at_least(0, **{"objective.identity_weight": self.identity_weight})
        if not 0 <= self.smoothing < 1:
            raise InputError(f"is {self.smoothing}", field="objective.smoothing", remedy="give 0 to below 1")
        if not self.predicted or len(set(self.predicted)) < len(self.predicted):
            raise InputError(
                "names no feature, or one of them twice", field="objective.predicted", remedy="name each feature once"
            )

    @property
    def fraction(self) -> float:
        """Fraction of the particles of a jet that is hidden."""
        if self.mask_fraction is not None:
            return self.mask_fraction
        return 0.4 if self.layout == "decoder" else 0.3


PRESETS: Mapping[str, MaskedParticlesConfig] = MappingProxyType(
    {
        "v2": MaskedParticlesConfig(
            decoder=DecoderConfig(width=256, depth=8, heads=4, mlp_ratio=2.0), n_codes=16_384, smoothing=0.1
        ),
        "v1": MaskedParticlesConfig(
            layout="in_place",
            target="vq",
            smoothing=0.0,
            tokenizer=TokenizerConfig(net=SetTransformerConfig(width=128, depth=3, heads=16), steps=20_000),
        ),
        # Our choice, for encoders of a few blocks and some thousand jets.
        "small": MaskedParticlesConfig(n_codes=256, decoder=DecoderConfig(width=64, depth=2, heads=4)),
    }
)
"""Ready settings: "v2" and "v1" at the sizes that were published, "small"."""


class _InPlace(nn.Module):
    """The token of a blank, what its rank adds, and what the CLS token adds."""

    def __init__(self, width: int, n_features: int, ranks: int) -> None:
        super().__init__()
        self.blank = nn.Parameter(torch.zeros(n_features))
        self.ranks = nn.Parameter(torch.randn(ranks, width) * 0.02)
        self.of_cls = nn.Linear(width, width)

    def forward(self, encoded: Encoded, hidden: Tensor, ranks: Tensor) -> Tensor:
        """(m, width) of the hidden particles; see `Decoder.forward`."""
        jet = hidden.nonzero()[:, 0]
        rank = self.ranks[ranks[hidden].clamp(max=len(self.ranks) - 1)]
        of_jet: Tensor = self.of_cls(encoded.cls).index_select(0, jet)
        return encoded.at(hidden) + rank + of_jet


class _Net(nn.Module):
    """What is trained."""

    def __init__(self, encoder: JetEncoder, config: MaskedParticlesConfig) -> None:
        super().__init__()
        self.encoder = encoder
        in_place = config.layout == "in_place"
        self.decoder: Decoder | _InPlace = (
            _InPlace(encoder.width, encoder.n_features, config.decoder.ranks)
            if in_place
            else Decoder(encoder.width, config.decoder)
        )
        self.width = encoder.width if in_place else config.decoder.width


class MaskedParticles(Objective):
    """Masked particle modelling; see the module and `MaskedParticlesConfig`.

    Args:
        features: from four-vectors to inputs.
        encoder: the encoder; trained in place.
        config: settings.
        fit_on: jets that clusters or a tokeniser are fitted to, before any step. Without, their state has to be loaded
            before the first step.
        tokenizer: a tokeniser that is trained already.
        seed: of clusters and tokeniser.

    Raises:
        InputError: if a feature to predict is not among the features, the tokeniser was made for others, or there are
            fewer particles than codes.
    """

    def __init__(
        self,
        features: Features,
        encoder: JetEncoder,
        config: MaskedParticlesConfig,
        *,
        fit_on: Jets | None = None,
        tokenizer: VQTokenizer | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config, self.features = config, features
        self.names = columns_of(features, config.predicted)
        self._index = [features.names.index(name) for name in self.names]
        self.net = _Net(encoder, config)
        self.target = self._build_target(fit_on, tokenizer, seed)
        # Last, so that it takes no random number from the others.
        self.identity = Identity(self.net.width) if config.identity_weight else None
        self._checked = False

    def _build_target(self, fit_on: Jets | None, tokenizer: VQTokenizer | None, seed: int) -> Target:
        config, width, n = self.config, self.net.width, len(self.names)
        hidden = (width,) if config.layout == "in_place" else ()
        if config.target == "regression":
            return Regression(width, n, hidden)
        if config.target == "flow_matching":
            return FlowMatching(width, n)
        if config.target == "flow":
            return ConditionalFlow(width, self.names)
        if config.target == "kmeans":
            clusters = ClusterTokens(width, n, config.n_codes, config.smoothing, hidden)
            if fit_on is not None:
                clusters.fit(self.features, self.names, fit_on, seed)
            return clusters
        if tokenizer is not None:
            tokenizer.check(self.features, self.names)
        else:
            tokenizer = VQTokenizer(self.features, self.names, config.tokenizer)
            if fit_on is not None:
                tokenizer.fit(self.features, fit_on, seed)
        return VQTokens(width, tokenizer, config.smoothing, hidden)

    @property
    def encoder(self) -> JetEncoder:
        """The encoder that is trained."""
        return self.net.encoder

    @property
    def tokenizer(self) -> VQTokenizer | None:
        """The tokeniser, if the target has one: to save and to inspect."""
        return self.target.tokenizer if isinstance(self.target, VQTokens) else None

    def forward(self, batch: JetBatch, step: int, total_steps: int, generator: torch.Generator) -> StepOutput:
        """Loss of one batch; see `Objective.forward`.

        Raises:
            InputError: if clusters or tokeniser were not fitted, or to other features, or the jets lack what the
                objective needs.
        """
        if not self._checked:  # once: comparing constants makes a GPU wait
            self.target.check(self.features, self.names)
            self._checked = True
        inputs = self.features(batch)
        hidden = hidden_particles(batch.mask, self.config.fraction, generator)
        noise = normal_numbers(batch.mask, self.target.n_noise, generator)
        net = self.net
        if isinstance(net.decoder, Decoder):
            encoded = net.encoder([survivors(inputs, hidden)])[0]
            ranks = pt_ranks(batch.p4, hidden)
        else:
            encoded = net.encoder([blanked(inputs, hidden, net.decoder.blank)], [hidden])[0]
            hidden = hidden & encoded.mask  # an encoder may leave out particles in training
            ranks = pt_ranks(batch.p4, batch.mask)
        context = net.decoder(encoded, hidden, ranks)
        weights = per_jet_weights(hidden)
        x = inputs.features[..., self._index].detach()
        each, metrics = self.target(context, x, batch.mask, hidden, noise[hidden])
        loss = (each * weights).sum()
        metrics["loss_masked"] = loss.detach()
        if self.identity is not None:
            kinds, right = self.identity(context, batch.measured, hidden)
            of_identity = (kinds * weights).sum()
            metrics |= {"loss_identity": of_identity.detach(), "identity_accuracy": right}
            loss = loss + self.config.identity_weight * of_identity
        metrics["hidden"] = hidden.sum() / batch.mask.sum().clamp(min=1)
        if (step + 1) % self.config.monitor_every == 0:
            metrics |= spread(encoded.cls.detach().float())
        return StepOutput(loss, {"loss": loss.detach(), **metrics})

    def heads(self) -> dict[str, nn.Module]:
        """Decoder and heads."""
        heads: dict[str, nn.Module] = {"decoder": self.net.decoder, "target": self.target}
        return heads if self.identity is None else {**heads, "identity": self.identity}

    def alarms(self, metrics: Mapping[str, float]) -> list[str]:
        """Signs of collapse, of the representation or of the codes."""
        return alarms(metrics)
