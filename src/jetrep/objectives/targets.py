r"""What is predicted of a hidden particle, from the vector that stands for it.

=================  ====================================================================================
`Regression`       its standardised features, by mean absolute error
`ClusterTokens`    the number of its cluster among K of k-means, by cross-entropy
`VQTokens`         its code by a `jetrep.objectives.tokenizer.VQTokenizer`, by cross-entropy
`FlowMatching`     the distribution of its features, by conditional flow matching (arXiv 2210.02747)
`ConditionalFlow`  the same by maximum likelihood (`jetrep.objectives.flows`)
`Identity`         its type and charge, by cross-entropy
=================  ====================================================================================

Each gives one loss for each hidden particle; `jetrep.objectives.masked` averages them. What belongs to a particle
depends on no other particle of the batch, so losses do not depend on the number of ranks.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jetrep.encoders import ClassifierHead
from jetrep.errors import InputError
from jetrep.features import Features
from jetrep.jets import Jets
from jetrep.objectives.quantizer import kmeans, perplexity
from jetrep.objectives.tokenizer import VQTokenizer

__all__ = ["ClusterTokens", "FlowMatching", "Identity", "Regression", "Target", "VQTokens", "columns_of"]


def columns_of(features: Features, names: Sequence[str]) -> tuple[str, ...]:
    """The named features as they are called in ``features``: "delta_eta" may be the signed one.

    Raises:
        InputError: if one of them is not among the features.
    """
    found = []
    for name in names:
        known = "delta_eta_signed" if name == "delta_eta" and name not in features.names else name
        if known not in features.names:
            raise InputError(
                f"'{name}' is to be predicted, but is not among the features",
                field="objective.predicted",
                remedy=f"choose from {', '.join(features.names)}",
            )
        found.append(known)
    return tuple(found)


class Target(nn.Module, ABC):
    """A head with its loss.

    Attributes:
        n_noise: random numbers that it needs for each particle.
    """

    n_noise: int = 0

    @abstractmethod
    def forward(
        self, context: Tensor, x: Tensor, mask: Tensor, hidden: Tensor, noise: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses and what to log.

        Args:
            context: (m, width) of the hidden particles, jet by jet.
            x: (batch, n, features) standardised features to predict, of whole jets.
            mask: (batch, n) bool, True for a real particle.
            hidden: (batch, n) bool, True for a hidden one.
            noise: (m, n_noise) standard normal numbers.

        Returns:
            (m,) losses, and scalars without gradient.
        """

    def check(self, features: Features, names: Sequence[str]) -> None:
        """Whether it is ready to be used with these features.

        Raises:
            InputError: if it was fitted to others, or not at all.
        """
        return


class Regression(Target):
    """Mean absolute error over the features.

    Args:
        width: of the context.
        n: number of features.
        hidden: widths of hidden layers of the head.
    """

    def __init__(self, width: int, n: int, hidden: Sequence[int] = ()) -> None:
        super().__init__()
        self.head = ClassifierHead(width, n, hidden)

    def forward(
        self, context: Tensor, x: Tensor, mask: Tensor, hidden: Tensor, noise: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Target.forward`."""
        return (self.head(context).float() - x[hidden].float()).abs().mean(1), {}


class _Tokens(Target):
    """Cross-entropy over the numbers of K codes.

    Args:
        width: of the context.
        k: number of codes.
        smoothing: share of the target that is spread over all codes.
        hidden: widths of hidden layers of the head.
    """

    def __init__(self, width: int, k: int, smoothing: float, hidden: Sequence[int] = ()) -> None:
        super().__init__()
        self.k, self.smoothing = k, smoothing
        self.head = ClassifierHead(width, k, hidden)

    @abstractmethod
    def codes(self, x: Tensor, mask: Tensor, hidden: Tensor) -> Tensor:
        """(m,) int64, the codes of the hidden particles."""

    def forward(
        self, context: Tensor, x: Tensor, mask: Tensor, hidden: Tensor, noise: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Target.forward`. Logged: how often the first guess is right, and how many codes are in use.

        ``codebook_perplexity`` is that of the codes of the hidden particles of the batch; ``predicted_perplexity``
        that of the mean prediction.
        """
        codes = self.codes(x, mask, hidden)
        logits = self.head(context).float()
        each = F.cross_entropy(logits, codes, reduction="none", label_smoothing=self.smoothing)
        if not len(codes):  # the same names on all ranks
            return each, dict.fromkeys(
                ("code_accuracy", "codebook_perplexity", "predicted_perplexity"), each.new_zeros(())
            )
        with torch.no_grad():
            mean = torch.softmax(logits, -1).mean(0)
            metrics = {
                "code_accuracy": (logits.argmax(-1) == codes).float().mean(),
                "codebook_perplexity": perplexity(codes, self.k),
                "predicted_perplexity": torch.exp(torch.special.entr(mean).sum()),
            }
        return each, metrics


class ClusterTokens(_Tokens):
    """Clusters of k-means over the features of single particles.

    Args:
        width: of the context.
        n: number of features.
        k: number of clusters.
        smoothing: of the targets.
        hidden: widths of hidden layers of the head.
    """

    centres: Tensor
    constants: Tensor
    fitted: Tensor

    def __init__(self, width: int, n: int, k: int, smoothing: float, hidden: Sequence[int] = ()) -> None:
        super().__init__(width, k, smoothing, hidden)
        self.register_buffer("centres", torch.zeros(k, n))
        self.register_buffer("constants", torch.zeros(2, n))
        self.register_buffer("fitted", torch.tensor(False))

    def fit(self, features: Features, names: Sequence[str], jets: Jets, seed: int = 0) -> None:
        """Find the clusters of the particles of up to 20,000 jets, evenly drawn.

        Raises:
            InputError: if there are fewer particles than clusters.
        """
        index = [features.names.index(name) for name in names]
        rows = torch.arange(0, len(jets), max(1, -(-len(jets) // 20_000))).numpy()
        parts = [torch.zeros(0, len(index))]
        with torch.no_grad():
            for start in range(0, len(rows), 1024):
                inputs = features(jets.batch(rows[start : start + 1024]).to(self.centres.device))
                parts.append(inputs.features[inputs.mask][:, index].cpu())
        self.centres.copy_(kmeans(torch.cat(parts), self.k, seed))
        self.constants.copy_(torch.stack([features.mean[index], features.scale[index]]))
        self.fitted.fill_(True)

    def check(self, features: Features, names: Sequence[str]) -> None:
        """See `Target.check`."""
        if not self.fitted:
            raise InputError(
                "the clusters were not fitted", field="objective.target", remedy="give jets to fit them to"
            )
        index = [features.names.index(name) for name in names]
        if not torch.equal(self.constants, torch.stack([features.mean[index], features.scale[index]])):
            raise InputError(
                "the clusters are those of features with another standardisation",
                field="objective.target",
                remedy="fit them to the features of this run",
            )

    @torch.no_grad()
    def codes(self, x: Tensor, mask: Tensor, hidden: Tensor) -> Tensor:
        """The nearest centre."""
        with torch.autocast(x.device.type, enabled=False):
            offset = self.centres.square().sum(1)
            pieces = [(offset - 2 * piece @ self.centres.T).argmin(1) for piece in torch.split(x[hidden].float(), 4096)]
            return torch.cat(pieces)


class VQTokens(_Tokens):
    """Codes of a tokeniser that saw the whole jet.

    Args:
        width: of the context.
        tokenizer: made for the features to predict; it is not trained further.
        smoothing: of the targets.
        hidden: widths of hidden layers of the head.
    """

    def __init__(self, width: int, tokenizer: VQTokenizer, smoothing: float, hidden: Sequence[int] = ()) -> None:
        super().__init__(width, tokenizer.config.n_codes, smoothing, hidden)
        self.tokenizer = tokenizer.requires_grad_(False)

    def check(self, features: Features, names: Sequence[str]) -> None:
        """See `Target.check`."""
        self.tokenizer.check(features, names)

    @torch.no_grad()
    def codes(self, x: Tensor, mask: Tensor, hidden: Tensor) -> Tensor:
        """The tokeniser's."""
        with torch.autocast(x.device.type, enabled=False):
            return self.tokenizer.tokens(x.float(), mask)[hidden[mask]]


class FlowMatching(Target):
    r"""The velocity field that carries noise to the features of a particle.

    With features x, normal noise ε and :math:`x_t = (1-t)\,x + t\,\varepsilon`, a network of (x_t, t, context) learns
    :math:`\varepsilon - x` by mean squared error; t is the logistic function of a normal number.

    Args:
        width: of the context.
        n: number of features.
        hidden: widths of the hidden layers.
    """

    def __init__(self, width: int, n: int, hidden: Sequence[int] = (128, 128, 128)) -> None:
        super().__init__()
        self.n, self.n_noise = n, n + 1
        self.register_buffer("frequencies", math.pi * torch.arange(1.0, 5.0), persistent=False)
        layers: list[nn.Module] = []
        sizes = [width + n + 8, *hidden]
        for a, b in pairwise(sizes):
            layers += [nn.Linear(a, b), nn.SiLU()]
        self.net = nn.Sequential(*layers, nn.Linear(sizes[-1], n))

    frequencies: Tensor

    def velocity(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """(m, n) at (m, n) points and (m, 1) times."""
        phase = t * self.frequencies
        velocity: Tensor = self.net(torch.cat([x, phase.cos(), phase.sin(), context.to(x.dtype)], -1))
        return velocity

    def forward(
        self, context: Tensor, x: Tensor, mask: Tensor, hidden: Tensor, noise: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Target.forward`."""
        truth, t, noise = x[hidden].float(), torch.sigmoid(noise[:, :1]), noise[:, 1:]
        predicted = self.velocity((1 - t) * truth + t * noise, t, context)
        return (predicted.float() - (noise - truth)).square().mean(1), {}

    @torch.no_grad()
    def sample(self, context: Tensor, generator: torch.Generator, steps: int = 50) -> Tensor:
        """Features drawn from what the context tells: (m, width) → (m, n), by Heun's method from t = 1 to 0."""
        x = torch.randn(len(context), self.n, generator=generator, device=generator.device).to(context.device)
        times = torch.linspace(1, 0, steps + 1, device=x.device)
        for now, then in pairwise(times):
            before = self.velocity(x, now.expand(len(x), 1), context)
            step = then - now
            after = self.velocity(x + step * before, then.expand(len(x), 1), context)
            x = x + step * (before + after) / 2
        return x


class Identity(nn.Module):
    """Type (five) and charge (−, 0, +) of hidden particles; what was not measured is left out.

    Args:
        width: of the context.
    """

    TYPES = ("is_charged_hadron", "is_neutral_hadron", "is_photon", "is_electron", "is_muon")
    COLUMNS = (*TYPES, "charge")

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, len(self.TYPES) + 3)

    def forward(self, context: Tensor, measured: Mapping[str, Tensor], hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(m,) sums of both cross-entropies, and the fraction of types guessed right.

        Raises:
            InputError: if the jets lack a column.
        """
        for name in self.COLUMNS:
            if name not in measured:
                raise InputError(
                    f"particle types are to be predicted, but the jets have no measured column '{name}'",
                    field=name,
                    remedy="set objective.identity_weight to 0, or prepare the jets from a data set that has it",
                )
        flags = torch.stack([measured[name][hidden] for name in self.TYPES], -1) == 1
        charge = measured["charge"][hidden]
        known, charged = flags.sum(1) == 1, charge.isfinite()
        kind, sign = flags.long().argmax(1), torch.sign(charge.nan_to_num()).long() + 1
        logits = self.head(context).float()
        of_kind, of_sign = logits.split([len(self.TYPES), 3], 1)
        each = F.cross_entropy(of_kind, kind, reduction="none") * known
        each = each + F.cross_entropy(of_sign, sign, reduction="none") * charged
        right = ((of_kind.argmax(1) == kind) & known).sum() / known.sum().clamp(min=1)
        return each, right.detach().float()
