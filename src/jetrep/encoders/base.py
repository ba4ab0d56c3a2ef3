"""What every encoder is: `ModelInput`s in, one vector and one token for each particle out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from jetrep.features import ModelInput

__all__ = ["Encoded", "JetEncoder", "Pooling", "Symmetry"]

Pooling = Literal["cls", "mean", "cls+mean"]
Symmetry = Literal["boost", "rotation", "azimuth", "permutation", "padding", "soft", "collinear"]
"""What may be done to a jet without a change of what it is; `jetrep.evaluation.audit` says how each is measured."""


class Encoded:
    """One view as seen by the encoder. Only what is asked for is gathered from the packed tokens.

    The CLS token is what the encoder has to say of the whole jet: a token of its own for a transformer, the pooled
    particles for a graph network.

    Args:
        packed: (T, width) tokens of all views.
        cls_rows: (batch,) row of the CLS token of each jet.
        particle_rows: (batch, n) row of each particle.
        mask: (batch, n) bool, True for a real particle.
        complete: False if only the chosen particles are there.
    """

    def __init__(
        self, packed: Tensor, cls_rows: Tensor, particle_rows: Tensor, mask: Tensor, complete: bool = True
    ) -> None:
        self._packed, self._cls_rows, self._particle_rows, self.mask = packed, cls_rows, particle_rows, mask
        self._complete = complete

    @cached_property
    def cls(self) -> Tensor:
        """(batch, width) CLS tokens."""
        return self._packed.index_select(0, self._cls_rows)

    @cached_property
    def tokens(self) -> Tensor:
        """(batch, n, width) particle tokens, zero where padded; registers are not among them."""
        if not self._complete:
            raise RuntimeError("only the CLS and chosen tokens were computed: call the encoder without `chosen`")
        rows = self._packed.index_select(0, self._particle_rows.flatten())
        return rows.view(*self.mask.shape, rows.shape[1]).masked_fill(~self.mask.unsqueeze(-1), 0.0)

    def at(self, chosen: Tensor) -> Tensor:
        """(m, width) tokens of the ``chosen`` (batch, n) real particles, jet by jet."""
        return self._packed.index_select(0, self._particle_rows[chosen])

    def pooled(self, pooling: Pooling = "cls") -> Tensor:
        """One vector a jet: (batch, width), or (batch, 2 · width) for "cls+mean".

        The mean is over real particles alone, zero for an empty jet.
        """
        if pooling == "cls":
            return self.cls
        mean = self.tokens.sum(1) / self.mask.sum(1, keepdim=True).clamp(min=1)
        return mean if pooling == "mean" else torch.cat([self.cls, mean], -1)


class JetEncoder(nn.Module, ABC):
    """Views of jets in, `Encoded` views out.

    What comes out for a jet depends on its own particles alone, not on padding or on the order of the particles; not
    on other jets either, once the model is in evaluation mode.

    Attributes:
        n_features: features of a particle.
    """

    n_features: int

    @property
    def symmetries(self) -> frozenset[Symmetry]:
        """What is claimed to leave CLS and particle tokens as they are (vectors turn along), for features that it
        leaves as they are too. ``jetrep audit`` measures it.
        """
        return frozenset({"permutation", "padding"})

    @property
    def stages(self) -> nn.ModuleList:
        """Blocks, one after the other, of which a copy that has only the first works as well; none if there are no
        such. ``jetrep audit`` looks behind each.
        """
        return nn.ModuleList()

    @property
    def most_particles(self) -> int | None:
        """Places that a jet may have at most, padding included; None for any number."""
        return None

    @property
    @abstractmethod
    def width(self) -> int:
        """Features of a token."""

    @abstractmethod
    def forward(self, views: Sequence[ModelInput], chosen: Sequence[Tensor | None] | None = None) -> list[Encoded]:
        """Encodes any number of views, of any widths and batch sizes.

        Args:
            views: what the encoder sees.
            chosen: for each view (batch, n) bool, the particles whose tokens will be read with `Encoded.at`, or None if
                only the CLS tokens will be; an encoder may leave out the others. By default, all are computed.

        Returns:
            For each view, its `Encoded`.
        """

    @abstractmethod
    def layers(self) -> list[list[tuple[str, nn.Parameter]]]:
        """All named parameters by depth, the stem first, for learning rates that fall with depth."""
