r"""The density of a hidden particle's features as the target, by a conditional normalising flow.

Layers of a flow (arXiv 1906.04032, from the library zuko) carry the features x of a particle to a normal number
:math:`z = f(x;\,c)`, where c stands for the particle; the loss is

.. math:: -\ln p(x\,|\,c) = \tfrac12 |z|^2 + \tfrac n2 \ln 2\pi - \ln\left|\det \partial z/\partial x\right| .
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from zuko.flows import MAF
from zuko.transforms import MonotonicRQSTransform

from jetrep.features import MEASURED_FEATURES
from jetrep.objectives.targets import Target

__all__ = ["ConditionalFlow"]


class ConditionalFlow(Target):
    """Negative log-likelihood of the features.

    A layer transforms one half of the features by monotonic rational-quadratic splines, whose knots depend on the
    context and on the other half, which itself depends on the context alone; halves alternate. Beyond the ``tail``
    a spline is the identity. The layers compute in float32 whatever the precision of the run.

    Some measured features take single values: a neutral particle has neither impact parameter nor error, a charge is a
    whole number. Their density has no bound, so normal noise is added to all measured features.

    Args:
        width: of the context.
        names: of the features.
        layers: of the flow.
        bins: of a spline.
        tail: a spline acts between ± this, in standardised units.
        noise: standard deviation of the noise on measured features, in standardised units.
        hidden: widths of the hidden layers that give the knots.
    """

    measured: Tensor

    def __init__(
        self,
        width: int,
        names: Sequence[str],
        *,
        layers: int = 6,
        bins: int = 8,
        tail: float = 4.0,
        noise: float = 0.05,
        hidden: Sequence[int] = (128, 128),
    ) -> None:
        super().__init__()
        measured = [i for i, name in enumerate(names) if name in MEASURED_FEATURES]
        self.n, self.n_noise, self.noise = len(names), len(measured), noise
        self.register_buffer("measured", torch.tensor(measured, dtype=torch.int64), persistent=False)
        flow = MAF(
            self.n,
            width,
            transforms=layers,
            passes=2,  # couplings: half by half
            univariate=partial(MonotonicRQSTransform, bound=tail),
            shapes=[(bins,), (bins,), (bins - 1,)],
            hidden_features=tuple(hidden),
        )
        self.transform = flow.transform

    def nll(self, x: Tensor, context: Tensor) -> Tensor:
        """(m,) of (m, features) given (m, width), in nats."""
        if not len(x):  # which the library cannot take, but whose gradient must be zero, not missing
            return self.nll(x.new_zeros(1, self.n), F.pad(context, (0, 0, 0, 1)))[:0]
        with torch.autocast(x.device.type, enabled=False):
            z, log_det = self.transform(context.float()).call_and_ladj(x.float())
            nll: Tensor = 0.5 * z.square().sum(-1) + 0.5 * self.n * math.log(2 * math.pi) - log_det
            return nll

    def forward(
        self, context: Tensor, x: Tensor, mask: Tensor, hidden: Tensor, noise: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Target.forward`."""
        truth = x[hidden].float()
        if self.n_noise:
            truth = truth.index_add(1, self.measured, self.noise * noise)
        return self.nll(truth, context), {}

    @torch.no_grad()
    def sample(self, context: Tensor, generator: torch.Generator) -> Tensor:
        """Features drawn from what the context tells: (m, width) → (m, features)."""
        z = torch.randn(len(context), self.n, generator=generator, device=generator.device).to(context.device)
        with torch.autocast(context.device.type, enabled=False):
            x: Tensor = self.transform(context.float()).inv(z)
            return x
