r"""Next-token prediction for any encoder, after OmniJet-α (arXiv 2403.05618).

The particles of a jet in falling order of pT are words: codes of a `VQTokenizer`. A stop word ends the jet. What is
learned is the cross-entropy per word,

.. math:: L = -\frac{1}{\sum_j T_j} \sum_j \sum_{k<T_j} \ln p(t_{j,k+1} \mid k \text{ leading particles of jet } j),

T being the multiplicity plus one, or the greatest length that is looked at. OmniJet-α computes all k in one pass of a
causal transformer. Here causality is by **prefixes**: the encoder sees a jet that has the k leading particles and no
others, and a head predicts the next word from its representation and k. So any encoder will do, and the representation
that learns is that of a jet. Of each jet, S lengths are drawn, one from each S-th of 0 … T − 1: all lengths have the
same probability, so the expectation of the loss is L.

What the encoder is shown of the k particles is either how they were measured, words being targets alone, as in arXiv
2512.04149; or what the tokeniser makes of their k words, as in OmniJet-α: then L is the negative log-likelihood of the
words, and what is shown while jets are generated is just what was shown in training. The tokeniser saw the whole jet
when it chose the words, as it does in masked particle modelling.

**The jet's own momentum is known**, as in `jetrep.objectives.hiding`: features are measured from the axis and momentum
of the whole jet. What is learned is therefore the distribution of particles at a given jet momentum,
:math:`p(\text{particles} \mid p^{jet})`, and `NextToken.generate` asks for momenta. Nothing else of the particles after
the k-th is seen: neither features nor angles, momenta or their number (but for what words tell, if these are shown).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jetrep.encoders import ClassifierHead, JetEncoder, Pooling
from jetrep.errors import InputError, at_least
from jetrep.features import Features, ModelInput
from jetrep.jets import JetBatch, Jets
from jetrep.objectives.base import Objective, StepOutput
from jetrep.objectives.distributed import all_sum, rank, world_size
from jetrep.objectives.hiding import pt_ranks, survivors
from jetrep.objectives.monitors import alarms, spread
from jetrep.objectives.quantizer import perplexity
from jetrep.objectives.targets import columns_of
from jetrep.objectives.tokenizer import TokenizerConfig, VQTokenizer
from jetrep.physics import fourvector as fv

__all__ = ["NextToken", "NextTokenConfig", "prefix_lengths"]


@dataclass(frozen=True)
class NextTokenConfig:
    """Settings of `NextToken`; the published vocabulary has 8192 words.

    Attributes:
        shown: what the encoder sees: "particles" as they are, or decoded from their "words", to generate jets.
        prefixes: S, lengths that are drawn for each jet and step.
        max_tokens: words of a jet that are predicted, the stop among them; those of longer jets are left out.
        pooling: what the next word is predicted from.
        head: widths of hidden layers of the head.
        tokenizer: shape and training of the tokeniser.
        monitor_every: the signs of collapse are among the metrics of every such step, counted from 1.
    """

    shown: Literal["particles", "words"] = "particles"
    prefixes: int = 4
    max_tokens: int = 128
    pooling: Pooling = "cls"
    head: tuple[int, ...] = (128,)
    tokenizer: TokenizerConfig = TokenizerConfig()
    monitor_every: int = 10
    kind: Literal["next_token"] = "next_token"

    def __post_init__(self) -> None:
        for name in ("prefixes", "max_tokens", "monitor_every"):
            at_least(1, **{f"objective.{name}": getattr(self, name)})
        at_least(1, **{"objective.head": min(self.head, default=None)})


def prefix_lengths(words: Tensor, draws: Tensor) -> Tensor:
    """Lengths of prefixes: (batch, S) int64, one from each S-th of 0 … T − 1.

    Args:
        words: (batch,) T of each jet, 1 or more.
        draws: (batch, S) uniform in [0, 1).
    """
    n = draws.shape[1]
    places = (torch.arange(n, device=draws.device) + draws) / n * words.unsqueeze(1)
    # Rounding may reach T.
    return torch.minimum(places.long(), words.unsqueeze(1) - 1)


class _Head(nn.Module):
    """Logits of the next word from a representation and the number of words before it."""

    def __init__(self, width: int, n_words: int, config: NextTokenConfig) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(config.max_tokens, width) * 0.02)
        self.words = ClassifierHead(width, n_words, config.head)

    def forward(self, pooled: Tensor, length: Tensor) -> Tensor:
        """(m, width) and (m,) → (m, words), float32."""
        logits: Tensor = self.words(pooled + self.positions[length])
        return logits.float()


class _Net(nn.Module):
    """What is trained."""

    def __init__(self, encoder: JetEncoder, config: NextTokenConfig) -> None:
        super().__init__()
        self.encoder, self.pooling = encoder, config.pooling
        width = encoder.width * (2 if config.pooling == "cls+mean" else 1)
        self.head = _Head(width, config.tokenizer.n_codes + 1, config)

    def forward(self, views: list[ModelInput]) -> Tensor:
        """Representations of views of one batch: (views, batch, width)."""
        # Without the particles' tokens, an encoder has less to do.
        chosen = [None] * len(views) if self.pooling == "cls" else None
        return torch.stack([view.pooled(self.pooling) for view in self.encoder(views, chosen)])


class NextToken(Objective):
    """Prediction of the next particle; see the module and `NextTokenConfig`.

    Args:
        features: from four-vectors to inputs.
        encoder: the encoder; trained in place.
        config: settings.
        fit_on: jets that the tokeniser is fitted to, before any step. Without, its state has to be loaded before the
            first step.
        tokenizer: one that is trained already.
        seed: of the fit.

    Raises:
        InputError: if the tokeniser was made for other features or settings, there are fewer particles than codes, or
            words are to be shown and the features need measured columns.
    """

    PREDICTED = ("log_pt_rel", "delta_eta", "delta_phi")

    def __init__(
        self,
        features: Features,
        encoder: JetEncoder,
        config: NextTokenConfig,
        *,
        fit_on: Jets | None = None,
        tokenizer: VQTokenizer | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if config.shown == "words":
            features.check({})
        self.config, self.features = config, features
        self.names = columns_of(features, self.PREDICTED)
        self._index = [features.names.index(name) for name in self.names]
        self.net = _Net(encoder, config)
        if tokenizer is None:
            tokenizer = VQTokenizer(features, self.names, config.tokenizer)
            if fit_on is not None:
                tokenizer.fit(features, fit_on, seed)
        elif tokenizer.config.n_codes != config.tokenizer.n_codes:
            raise InputError(
                f"the tokeniser has {tokenizer.config.n_codes} codes, not {config.tokenizer.n_codes}",
                field="objective.tokenizer.n_codes",
                remedy="give the number that it has",
            )
        else:
            tokenizer.check(features, self.names)
        self.vq = tokenizer.requires_grad_(False)
        self.stop = config.tokenizer.n_codes
        self._checked = False

    @property
    def encoder(self) -> JetEncoder:
        """The encoder that is trained."""
        return self.net.encoder

    @property
    def tokenizer(self) -> VQTokenizer:
        """The tokeniser."""
        return self.vq

    def heads(self) -> dict[str, nn.Module]:
        """What predicts words."""
        return {"head": self.net.head}

    def words(self, batch: JetBatch) -> Tensor:
        """The jets as words, (batch, n + 1) int64: codes in falling order of pT; the rest is the stop word."""
        return self._sentences(self.features(batch), pt_ranks(batch.p4, batch.mask))

    @torch.no_grad()
    def _sentences(self, inputs: ModelInput, ranks: Tensor) -> Tensor:
        mask = inputs.mask
        by_place = torch.full_like(ranks, self.stop)
        with torch.autocast(inputs.features.device.type, enabled=False):
            by_place[mask] = self.vq.tokens(inputs.features[..., self._index].float(), mask)
        return F.pad(by_place, (0, 1), value=self.stop).scatter(1, ranks, by_place)

    def _prepared(self, batch: JetBatch) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
        """Jets, ready to be looked at.

        Returns:
            From lengths (batch, S) of prefixes to their representations (S, batch, width); the words (batch, n + 1);
            how many of them each jet has (batch,).
        """
        if not self._checked:  # once: comparing constants makes a GPU wait
            self.vq.check(self.features, self.names)
            self._checked = True
        inputs, ranks = self.features(batch), pt_ranks(batch.p4, batch.mask)
        words = self._sentences(inputs, ranks)
        place = torch.arange(ranks.shape[1], device=ranks.device)

        def view(length: Tensor) -> ModelInput:
            if self.config.shown == "particles":
                return survivors(inputs, ranks >= length)
            shown: ModelInput = self.features(
                self._decoded(words[:, :-1].masked_fill(place >= length, self.stop), batch.jet_p4)
            )
            return shown

        def representations(lengths: Tensor) -> Tensor:
            pooled: Tensor = self.net([view(length.unsqueeze(1)) for length in lengths.T])
            return pooled

        return representations, words, (batch.counts + 1).clamp(max=self.config.max_tokens)

    def forward(self, batch: JetBatch, step: int, total_steps: int, generator: torch.Generator) -> StepOutput:
        """Loss of one batch; see `Objective.forward`.

        Raises:
            InputError: if the tokeniser was not fitted, or to other features.
        """
        representations, words, counts = self._prepared(batch)
        # Drawn for the jets of all ranks, of which this one has every R-th: a jet has one by any number of ranks.
        shape = (world_size() * len(batch), self.config.prefixes)
        draws = torch.rand(shape, generator=generator, device=generator.device)[rank() :: world_size()]
        lengths = prefix_lengths(counts, draws.to(counts.device))
        pooled = representations(lengths)
        logits = self.net.head(pooled.flatten(0, 1), lengths.T.flatten())
        targets = words.gather(1, lengths).T.flatten()
        each = F.cross_entropy(logits, targets, reduction="none").view(-1, len(batch)).mean(0)
        loss = (counts * each).sum() / (all_sum(counts.sum()) / world_size())
        with torch.no_grad():
            codes, guess = targets[targets != self.stop], logits.argmax(1)
            metrics = {
                "loss": loss,
                "token_accuracy": (guess == targets).float().mean(),
                "codebook_perplexity": perplexity(codes, self.stop),
                "predicted_perplexity": torch.exp(torch.special.entr(logits.softmax(1).mean(0)).sum()),
            }
            if (step + 1) % self.config.monitor_every == 0:
                metrics |= spread(pooled[-1].float())
        return StepOutput(loss, {name: x.detach() for name, x in metrics.items()})

    @torch.no_grad()
    def log_likelihood(self, batch: JetBatch) -> Tensor:
        """(batch,) sums over all words of ln p(word | prefix), one prefix after the other."""
        representations, words, counts = self._prepared(batch)
        total = torch.zeros(len(batch), device=words.device)
        for k in range(int(counts.max())):
            lengths = torch.full_like(counts, k)
            logits = self.net.head(representations(lengths.unsqueeze(1))[0], lengths)
            total -= F.cross_entropy(logits, words[:, k], reduction="none") * (k < counts)
        return total

    @torch.no_grad()
    def generate(
        self, jet_p4: Tensor, generator: torch.Generator, *, temperature: float = 1.0
    ) -> tuple[JetBatch, Tensor]:
        """Draw jets of given momenta, particle by particle, all shown to the encoder as their words are decoded.

        Args:
            jet_p4: (batch, 4) momenta of the jets in GeV, whose axes and scales the particles refer to.
            generator: source of randomness.
            temperature: divides the logits; 1 draws from what was learned.

        Returns:
            Jets of massless particles with ``jet_p4`` as it was given, which the sum of the particles need not be; and
            their words (batch, max_tokens) int64, the stop word after the last particle. A jet ends at the stop word,
            or has ``max_tokens`` particles.

        Raises:
            InputError: if the features are measured ones, which generated particles do not have, or the temperature is
                not above 0.
        """
        if not temperature > 0:
            raise InputError(f"is {temperature}", field="temperature", remedy="give more than 0")
        self.features.check({})
        self.vq.check(self.features, self.names)
        training = self.training
        self.eval()
        words = torch.full((len(jet_p4), self.config.max_tokens), self.stop, device=jet_p4.device)
        running = torch.arange(len(jet_p4), device=jet_p4.device)
        for k in range(self.config.max_tokens):
            if not len(running):
                break
            # The set of no particles has one place, for padding.
            view = self.features(self._decoded(words[running, : max(k, 1)], jet_p4[running]))
            logits = self.net.head(self.net([view])[0], torch.full_like(running, k)) / temperature
            drawn = torch.multinomial(logits.softmax(1).to(generator.device), 1, generator=generator)[:, 0]
            words[running, k] = drawn.to(words.device)
            running = running[drawn.to(running.device) != self.stop]
        self.train(training)
        return self._decoded(words, jet_p4), words

    @torch.no_grad()
    def _decoded(self, words: Tensor, jet_p4: Tensor) -> JetBatch:
        """The particles that (batch, n) words stand for."""
        mask = words != self.stop
        with torch.autocast(words.device.type, enabled=False):
            x = self.vq.reconstructed(self.vq.quantizer.codes[words[mask]], mask).double()
        x = x * self.vq.scale + self.vq.mean
        jet = jet_p4.double()[mask.nonzero()[:, 0]]
        eta = fv.eta(jet)
        delta_eta = x[:, 1] * torch.copysign(torch.ones_like(eta), eta) if self.features.config.signed_eta else x[:, 1]
        pt = fv.pt(jet) * x[:, 0].exp()
        p4 = jet_p4.new_zeros(*words.shape, 4)
        own = fv.from_ptetaphim(pt, eta + delta_eta, fv.phi(jet) + x[:, 2], torch.zeros_like(pt))
        p4[mask] = own.to(p4.dtype)
        return JetBatch(p4, mask, jet_p4)

    def alarms(self, metrics: Mapping[str, float]) -> list[str]:
        """Signs of collapse, of the representation or of the codes."""
        return alarms(metrics)
