"""Settings of the contrastive objectives, `jetrep.objectives.contrastive`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from jetrep.encoders import Pooling
from jetrep.errors import InputError, at_least
from jetrep.views.augment import AugmentationConfig
from jetrep.views.rg import ALL

__all__ = ["ContrastiveConfig", "JetCLRConfig", "JetCLRScaleConfig", "ProjectorConfig", "SupConConfig"]


@dataclass(frozen=True)
class ProjectorConfig:
    """Shape of the head whose outputs are compared, in units of the encoder's width d: an MLP with ReLU.

    Attributes:
        hidden: width of each hidden layer over d.
        outputs: number of outputs over d.
        pooling: what it is made of.
    """

    hidden: tuple[float, ...] = (1.0,)
    outputs: float = 1.0
    pooling: Pooling = "cls"

    def __post_init__(self) -> None:
        for size in (*self.hidden, self.outputs):
            if not (math.isfinite(size) and size > 0):
                raise InputError(f"has a layer of {size} · width", field="objective.head", remedy="give more than 0")


@dataclass(frozen=True)
class ContrastiveConfig:
    """What the contrastive objectives have in common.

    Attributes:
        temperature: divides the cosines.
        head: shape of the projection.
        monitor_every: alignment, uniformity and the signs of collapse are among the metrics of every such step,
            counted from 1.
    """

    temperature: float = 0.1
    head: ProjectorConfig = ProjectorConfig()
    monitor_every: int = 10

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise InputError(f"is {self.temperature}", field="objective.temperature", remedy="give more than 0")
        at_least(1, **{"objective.monitor_every": self.monitor_every})


@dataclass(frozen=True)
class JetCLRConfig(ContrastiveConfig):
    """Settings of `JetCLR`.

    Attributes:
        temperature: divides the cosines.
        head: shape of the projection.
        monitor_every: alignment, uniformity and the signs of collapse are among the metrics of every such step,
            counted from 1.
        augmentation: how views are made.
        kind: tells the kinds of objectives apart.
    """

    augmentation: AugmentationConfig = AugmentationConfig()
    kind: Literal["jetclr"] = "jetclr"


@dataclass(frozen=True)
class SupConConfig(ContrastiveConfig):
    """Settings of `SupCon`.

    Attributes:
        temperature: divides the cosines.
        head: shape of the projection.
        monitor_every: alignment, uniformity and the signs of collapse are among the metrics of every such step,
            counted from 1.
        augmentation: how views are made.
        kind: tells the kinds of objectives apart.
    """

    augmentation: AugmentationConfig = AugmentationConfig()
    kind: Literal["supcon"] = "supcon"


@dataclass(frozen=True)
class JetCLRScaleConfig(ContrastiveConfig):
    """Settings of `JetCLRScale`.

    Attributes:
        temperature: divides the cosines.
        head: shape of the projection.
        monitor_every: alignment, uniformity and the signs of collapse are among the metrics of every such step,
            counted from 1.
        tiers: scales, numbers of subjets, in groups; 0 stands for all particles. For each batch two of the groups are
            drawn, and one scale of each.
        max_rapidity: each view is put at a random azimuth and a random rapidity of the jet within ± this; None leaves
            jets where they are.
        kind: tells the kinds of objectives apart.
    """

    tiers: tuple[tuple[int, ...], ...] = ((2, 3, 4), (6, 8), (16, ALL))
    max_rapidity: float | None = 2.0
    kind: Literal["jetclr_scale"] = "jetclr_scale"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.tiers) < 2 or not all(self.tiers):
            raise InputError(
                f"are {self.tiers}", field="objective.tiers", remedy="give two or more groups of scales, none empty"
            )
        at_least(0, **{"objective.tiers": min(map(min, self.tiers))})
        scales = [scale for tier in self.tiers for scale in tier]
        if len(set(scales)) < len(scales):
            raise InputError("name a scale twice", field="objective.tiers", remedy="name each scale once")
        at_least(0, **{"objective.max_rapidity": self.max_rapidity})
        if self.max_rapidity == math.inf:
            raise InputError("is infinite", field="objective.max_rapidity", remedy="give a finite number")
