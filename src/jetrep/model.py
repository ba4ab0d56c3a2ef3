"""`JetModel`: jets in, embeddings and class probabilities out. What training leaves behind and evaluation loads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from jetrep.encoders.base import Encoded, JetEncoder, Pooling
from jetrep.encoders.build import EncoderConfig, build_encoder
from jetrep.encoders.gnnae import GraphConfig
from jetrep.encoders.heads import ClassifierHead
from jetrep.encoders.particlenet import ParticleNetConfig
from jetrep.encoders.transformer import TransformerConfig
from jetrep.errors import InputError, at_least
from jetrep.features import FeatureConfig, Features
from jetrep.jets import JetBatch, Jets
from jetrep.progress import progress
from jetrep.views.rg import ALL, subjets

__all__ = ["ClassifierConfig", "JetModel", "ModelConfig"]


@dataclass(frozen=True)
class ClassifierConfig:
    """Shape of a classifier head.

    Attributes:
        hidden: widths of its hidden layers; none for a linear head.
        dropout: after each hidden layer, in training.
    """

    hidden: tuple[int, ...] = (64, 32)
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for width in self.hidden:
            at_least(1, **{"head.hidden": width})
        if not 0 <= self.dropout < 1:
            raise InputError(f"is {self.dropout}", field="head.dropout", remedy="give a number from 0 to below 1")


@dataclass(frozen=True)
class ModelConfig:
    """Everything needed to build a `JetModel` before its weights are loaded.

    Attributes:
        features: feature set and standardisation.
        encoder: kind and shape of the encoder.
        head: classifier head, or None for an encoder alone.
        pooling: what the head and the embeddings are made of. A ParticleNet or GNNAE has nothing but the mean of its
            particles, so all three are "cls" for it.
        n_subjets: the view in which jets are shown: this many subjets, or 0 for all particles.
        max_particles: jets are truncated to this many leading particles first; None keeps all.
        classes: names of the head's outputs.
    """

    features: FeatureConfig = FeatureConfig()
    encoder: EncoderConfig = TransformerConfig()
    head: ClassifierConfig | None = None
    pooling: Pooling = "cls+mean"
    n_subjets: int = ALL
    max_particles: int | None = None
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        at_least(0, n_subjets=self.n_subjets)
        at_least(1, max_particles=self.max_particles)
        if self.n_subjets != ALL and self.features.columns:
            raise InputError(
                f"the feature set '{self.features.names}' needs {', '.join(self.features.columns)}, which subjets lack",
                field="n_subjets",
                remedy="show all particles (0), or choose the features 'kin'",
            )
        if isinstance(self.encoder, ParticleNetConfig | GraphConfig):
            object.__setattr__(self, "pooling", "cls")


class JetModel(nn.Module):
    """Features, encoder and, for a tagger, a classifier head.

    Args:
        config: what to build.
        features: use this instance (with its constants) instead of a new one.
        encoder: use this instance (with its weights) instead of a new one.
    """

    def __init__(
        self, config: ModelConfig, features: Features | None = None, encoder: JetEncoder | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.features = features if features is not None else Features(config.features)
        self.encoder = encoder if encoder is not None else build_encoder(config.encoder, len(self.features.names))
        width = config.encoder.width * (2 if config.pooling == "cls+mean" else 1)
        self.head = (
            None
            if config.head is None
            else ClassifierHead(width, len(config.classes), config.head.hidden, config.head.dropout)
        )

    def view(self, jets: Jets) -> Jets:
        """The jets as this model wants them: truncated, and clustered if it looks at subjets.

        Truncated jets are clustered as they were before, by kT if they had no history.

        Raises:
            InputError: if they lack a measured column that the features need, or jets that have to be clustered again
                were clustered differently.
        """
        self.features.check(jets.measured)
        limit = self.config.max_particles
        # Jets that are short enough keep their merge history.
        if limit is not None and jets.counts.max(initial=0) > limit:
            former, jets = jets.history, jets.leading(limit)
            if self.config.n_subjets != ALL and former is not None:
                jets = jets.clustered_like(former)
        if self.config.n_subjets != ALL and jets.history is None:
            jets = jets.clustered()
        return jets

    def encode(self, batch: JetBatch) -> Encoded:
        """Encode the configured view of a batch of `view`-ed jets."""
        views: list[Encoded] = self.encoder([self.features(subjets(batch, self.config.n_subjets))])
        return views[0]

    def pooled(self, batch: JetBatch) -> Tensor:
        """(batch, width or 2·width) embedding."""
        # No token of a particle is read for "cls": an encoder may leave them out.
        views = [self.features(subjets(batch, self.config.n_subjets))]
        encoded: Encoded = self.encoder(views, [None] if self.config.pooling == "cls" else None)[0]
        return encoded.pooled(self.config.pooling)

    def forward(self, batch: JetBatch) -> Tensor:
        """(batch, n_classes) logits."""
        if self.head is None:
            raise InputError("the model is an encoder without a classifier", remedy="fine-tune it first")
        logits: Tensor = self.head(self.pooled(batch))
        return logits

    def embed(self, jets: Jets, *, batch_size: int = 512, quiet: bool = True) -> NDArray[np.float32]:
        """(n_jets, width or 2·width) embeddings, in the order of the jets."""
        return self._infer(jets, self.pooled, batch_size, "embed", quiet)

    def predict(self, jets: Jets, *, batch_size: int = 512, quiet: bool = True) -> NDArray[np.float32]:
        """(n_jets, n_classes) class probabilities, in the order of the jets."""
        return self._infer(jets, lambda batch: self(batch).softmax(-1), batch_size, "predict", quiet)

    def _infer(
        self, jets: Jets, function: Callable[[JetBatch], Tensor], batch_size: int, description: str, quiet: bool
    ) -> NDArray[np.float32]:
        jets = self.view(jets)
        device = next(self.parameters()).device
        # Jets of similar length go together, so that little is padded.
        by_length = np.argsort(jets.counts, kind="stable")
        outputs: list[NDArray[np.float32]] = []
        was_training = self.training
        self.eval()
        with torch.inference_mode(), progress(total=len(jets), description=description, quiet=quiet) as bar:
            for start in range(0, len(jets), batch_size):
                batch = jets.batch(by_length[start : start + batch_size]).to(device)
                outputs.append(function(batch).float().cpu().numpy())
                bar.update(len(batch))
        self.train(was_training)
        if not outputs:
            raise InputError("there are no jets", remedy="give at least one jet")
        result = np.concatenate(outputs)
        result[by_length] = result.copy()
        return result

    def with_view(self, n_subjets: int, max_particles: int | None = None) -> JetModel:
        """The same weights (shared, not copied) looking at another view."""
        other = JetModel(
            replace(self.config, n_subjets=n_subjets, max_particles=max_particles), self.features, self.encoder
        )
        other.head = self.head
        return other.train(self.training)
