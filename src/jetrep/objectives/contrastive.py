r"""Contrastive objectives: representations of what belongs together are alike, those of other jets are not.

- `JetCLR` (arXiv 2108.04253): two augmented views of a jet belong together.
- `JetCLRScale`: two views of a jet at different scales, cuts of its merge history, belong together.
- `SupCon` (arXiv 2004.11362): all views of all jets of a class belong together. It needs labels.

All three compare projections z, the output of a small head on the representation, by their cosine over a temperature.
The head is dropped after training.

**Shortcuts.** Two views of a jet are matched most easily by what the views leave alone and no other jet has. Jets of
the published method are centred; here features may hold the direction of the jet, so each view is put at a random
direction of its own (`jetrep.views.augment.place`). Views still share the pT of the jet, as they do in the published
method, unless the features scale all jets to one pT.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jetrep.encoders import ClassifierHead, JetEncoder
from jetrep.errors import InputError
from jetrep.features import Features, ModelInput
from jetrep.jets import JetBatch
from jetrep.objectives.base import Objective, StepOutput
from jetrep.objectives.contrastive_config import (
    ContrastiveConfig,
    JetCLRConfig,
    JetCLRScaleConfig,
    ProjectorConfig,
    SupConConfig,
)
from jetrep.objectives.contrastive_losses import alignment, nt_xent_loss, supcon_loss, uniformity
from jetrep.objectives.distributed import gather, rank, world_size
from jetrep.objectives.monitors import alarms, feature_rank
from jetrep.views.augment import augmented, jet_keys, place
from jetrep.views.rg import subjets

__all__ = [
    "Contrastive",
    "ContrastiveConfig",
    "JetCLR",
    "JetCLRConfig",
    "JetCLRScale",
    "JetCLRScaleConfig",
    "ProjectorConfig",
    "SupCon",
    "SupConConfig",
]


class _Net(nn.Module):
    """Encoder and projection."""

    def __init__(self, encoder: JetEncoder, config: ProjectorConfig) -> None:
        super().__init__()
        width = encoder.width
        self.pooling = config.pooling
        self.encoder = encoder
        self.head = ClassifierHead(
            width * (2 if config.pooling == "cls+mean" else 1),
            max(1, round(width * config.outputs)),
            [max(1, round(width * ratio)) for ratio in config.hidden],
        )

    def forward(self, views: list[ModelInput]) -> tuple[Tensor, Tensor]:
        """Representations (views, batch, width) and projections (views, batch, d); all views have one batch."""
        # Without the particles' tokens, an encoder has less to do.
        chosen = [None for _ in views] if self.pooling == "cls" else None
        representations = [view.pooled(self.pooling) for view in self.encoder(views, chosen)]
        joined = torch.stack(representations)
        return joined, self.head(joined.flatten(0, 1)).view(*joined.shape[:2], -1)


class Contrastive(Objective):
    """What the contrastive objectives share; each says how views are made and what belongs together.

    Args:
        features: from four-vectors to inputs.
        encoder: the encoder; trained in place.
        config: settings.
    """

    def __init__(self, features: Features, encoder: JetEncoder, config: ContrastiveConfig) -> None:
        super().__init__()
        self.common, self.features = config, features
        self.net = _Net(encoder, config.head)

    @property
    def encoder(self) -> JetEncoder:
        """The encoder that is trained."""
        return self.net.encoder

    @abstractmethod
    def views(self, batch: JetBatch, generator: torch.Generator) -> tuple[JetBatch, JetBatch]:
        """Two views of every jet; see `Objective.forward` about the generator."""

    @abstractmethod
    def loss(self, z: Tensor, batch: JetBatch) -> Tensor:
        """Loss of projections (2, batch, d)."""

    def forward(self, batch: JetBatch, step: int, total_steps: int, generator: torch.Generator) -> StepOutput:
        """Loss of one batch; see `Objective.forward`.

        Raises:
            InputError: if there is but one jet, or the jets lack what the objective needs.
        """
        if world_size() * len(batch) < 2:
            raise InputError(
                "a batch of one jet has nothing to compare it with", field="batch_size", remedy="give at least 2"
            )
        first, second = self.views(batch, generator)
        representations, z = self.net([self.features(first), self.features(second)])
        loss = self.loss(z, batch)
        metrics = {"loss": loss.detach(), **self.more_metrics(batch, first, second)}
        if (step + 1) % self.common.monitor_every == 0:
            metrics |= self._monitors(representations.detach().float(), z.detach().float())
        return StepOutput(loss, metrics)

    def more_metrics(self, batch: JetBatch, first: JetBatch, second: JetBatch) -> dict[str, Tensor]:
        """What else to log of each step."""
        return {}

    @torch.no_grad()
    def _monitors(self, representations: Tensor, z: Tensor) -> dict[str, Tensor]:
        """Of the jets of this rank: alignment and uniformity of projections, rank and spread of representations."""
        with torch.autocast(z.device.type, enabled=False):
            u, unit = F.normalize(z, dim=-1), F.normalize(representations, dim=-1)
            n = u.shape[1]
            found = (u[0] @ u[1].T).argmax(1) == torch.arange(n, device=u.device)
            return {
                "alignment": alignment(u),
                "uniformity": uniformity(u),
                "matched": found.float().mean(),
                "feature_rank": feature_rank(representations.flatten(0, 1)).float(),
                "cls_std": (unit - unit.mean(1, keepdim=True)).square().sum(-1).mean().sqrt(),
            }

    def heads(self) -> dict[str, nn.Module]:
        """The projection."""
        return {"head": self.net.head}

    def alarms(self, metrics: Mapping[str, float]) -> list[str]:
        """Signs of collapse; see `jetrep.objectives.monitors`, and projections that are the same for all jets."""
        found = alarms(metrics)
        if (x := metrics.get("uniformity", -math.inf)) > -0.02:
            found.append(f"projections are the same for all jets: their uniformity is {x:.2g}")
        return found


def _keys(batch: JetBatch, generator: torch.Generator) -> Tensor:
    """Keys of the jets of this rank, drawn with those of all: a jet is changed alike by any number of ranks.

    Rank r of R has every R-th jet of the batch, from the r-th on.
    """
    n_ranks = world_size()
    return jet_keys(n_ranks * len(batch), generator)[rank() :: n_ranks]


class _Augmented(Contrastive):
    """Views by augmentation."""

    def __init__(self, features: Features, encoder: JetEncoder, config: JetCLRConfig | SupConConfig) -> None:
        super().__init__(features, encoder, config)
        if features.config.columns and config.augmentation.split_passes:
            raise InputError(
                f"collinear daughters have no measured column '{features.config.columns[0]}', "
                f"which the feature set '{features.config.names}' needs",
                field="objective.augmentation.split_passes",
                remedy="set it to 0, or choose the feature set 'kin'",
            )
        self.config = config

    def views(self, batch: JetBatch, generator: torch.Generator) -> tuple[JetBatch, JetBatch]:
        """The views of `AugmentationConfig`."""
        return augmented(batch, lambda: _keys(batch, generator), self.config.augmentation)


class JetCLR(_Augmented):
    """NT-Xent between two augmented views of a jet (arXiv 2108.04253).

    Args:
        features: from four-vectors to inputs.
        encoder: the encoder; trained in place.
        config: settings.

    Raises:
        InputError: if the features need measured columns and the augmentation splits particles.
    """

    def __init__(self, features: Features, encoder: JetEncoder, config: JetCLRConfig) -> None:
        super().__init__(features, encoder, config)

    def loss(self, z: Tensor, batch: JetBatch) -> Tensor:
        """`nt_xent_loss`."""
        return nt_xent_loss(z, self.config.temperature)


class SupCon(_Augmented):
    """Supervised contrastive learning (arXiv 2004.11362) on two augmented views of each jet.

    A batch that holds one class only, over all ranks, has loss zero and leaves the gradient at zero; the metric
    ``classes`` counts them, and an alarm tells.

    Args:
        features: from four-vectors to inputs.
        encoder: the encoder; trained in place.
        config: settings.

    Raises:
        InputError: if the features need measured columns and the augmentation splits particles.
    """

    def __init__(self, features: Features, encoder: JetEncoder, config: SupConConfig) -> None:
        super().__init__(features, encoder, config)

    def views(self, batch: JetBatch, generator: torch.Generator) -> tuple[JetBatch, JetBatch]:
        """The views of `AugmentationConfig`.

        Raises:
            InputError: if the jets are unlabelled.
        """
        _labels(batch)
        return super().views(batch, generator)

    def loss(self, z: Tensor, batch: JetBatch) -> Tensor:
        """`supcon_loss`."""
        return supcon_loss(z, _labels(batch), self.config.temperature)

    def more_metrics(self, batch: JetBatch, first: JetBatch, second: JetBatch) -> dict[str, Tensor]:
        """Number of classes in the batch of all ranks."""
        labels = gather(_labels(batch)).sort().values
        return {"classes": (labels[1:] != labels[:-1]).sum().float() + 1}

    def alarms(self, metrics: Mapping[str, float]) -> list[str]:
        """Those of `Contrastive`, but for the rank, which falls to the number of classes by design."""
        found = super().alarms({name: x for name, x in metrics.items() if name != "feature_rank"})
        if metrics.get("classes", math.inf) < 2:
            found.append("the batch holds one class only, from which nothing is learned: use larger batches")
        return found


def _labels(batch: JetBatch) -> Tensor:
    if batch.labels is None:
        raise InputError(
            "the jets are unlabelled", field="label", remedy="supervised contrastive training needs labels"
        )
    return batch.labels


class JetCLRScale(Contrastive):
    """NT-Xent between two views of a jet at different scales of its merge history.

    A jet that has no more particles than either scale is the same set of particles in both; such pairs stay in the
    loss, and their fraction is the metric ``identical_pairs``.

    Args:
        features: from four-vectors to inputs.
        encoder: the encoder; trained in place.
        config: settings.

    Raises:
        InputError: if the features need measured columns.
    """

    def __init__(self, features: Features, encoder: JetEncoder, config: JetCLRScaleConfig) -> None:
        super().__init__(features, encoder, config)
        if features.config.columns:
            raise InputError(
                f"subjets have no measured column '{features.config.columns[0]}', "
                f"which the feature set '{features.config.names}' needs",
                field="features.names",
                remedy="choose 'kin' or 'kin_p4'",
            )
        self.config = config

    def draw_scales(self, generator: torch.Generator) -> tuple[int, int]:
        """The scales of one batch, from two different tiers, in the order of the tiers."""
        tiers = self.config.tiers
        drawn = torch.randperm(len(tiers), generator=generator, device=generator.device)[:2].sort().values.tolist()
        draws = torch.rand(2, generator=generator, device=generator.device).tolist()
        first, second = (tiers[i][int(draw * len(tiers[i]))] for i, draw in zip(drawn, draws, strict=True))
        return first, second

    def views(self, batch: JetBatch, generator: torch.Generator) -> tuple[JetBatch, JetBatch]:
        """Subjets at two scales, each view put somewhere else."""
        views = [subjets(batch, scale) for scale in self.draw_scales(generator)]
        if self.config.max_rapidity is not None:
            views = [place(view, _keys(batch, generator), max_rapidity=self.config.max_rapidity) for view in views]
        return views[0], views[1]

    def loss(self, z: Tensor, batch: JetBatch) -> Tensor:
        """`nt_xent_loss`."""
        return nt_xent_loss(z, self.config.temperature)

    def more_metrics(self, batch: JetBatch, first: JetBatch, second: JetBatch) -> dict[str, Tensor]:
        """Fraction of jets that are the same set of particles in both views."""
        counts = batch.counts
        return {"identical_pairs": ((first.counts == counts) & (second.counts == counts)).float().mean()}
