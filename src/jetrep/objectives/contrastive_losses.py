r"""Losses and measures of contrastive learning, on plain tensors.

The losses are the same for one rank with the whole batch as for several ranks with a part each, once ranks are
averaged.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from jetrep.objectives.distributed import all_sum, gather, rank, world_size

__all__ = ["alignment", "nt_xent_loss", "supcon_loss", "uniformity"]


def nt_xent_loss(z: Tensor, temperature: float) -> Tensor:
    r"""Normalised temperature-scaled cross-entropy (arXiv 2002.05709) over the jets of all ranks.

    Mean over the 2B projections of
    :math:`\ell_i = -\ln\left[e^{s_{ii'}/\tau} / \sum_{k\ne i} e^{s_{ik}/\tau}\right]`, where s is the cosine and
    i′ is the other view of the jet. With more than two views, the mean over the others replaces i′.

    Args:
        z: (views, batch, d) projections of any length; the same shape on all ranks.
        temperature: τ.

    Returns:
        Scalar, float32.
    """
    everyone = torch.arange(world_size() * z.shape[1], device=z.device)
    return _contrast(z, everyone, temperature)


def supcon_loss(z: Tensor, labels: Tensor, temperature: float) -> Tensor:
    r"""Supervised contrastive loss, :math:`L_\mathrm{out}` of arXiv 2004.11362, over the jets of all ranks.

    Mean over anchors of :math:`-\frac{1}{|P(i)|}\sum_{p\in P(i)} \ln\left[e^{s_{ip}/\tau} /
    \sum_{a\ne i} e^{s_{ia}/\tau}\right]`, where P(i) are all other projections of the class of i, in any view. An
    anchor without such a one, a single view of the only jet of its class, is left out of the mean.

    Jets of one class alone have no negatives, and only drawing all of them together would lower the loss: it is then
    zero, without gradient.

    Args:
        z: (views, batch, d) projections of any length; the same shape on all ranks.
        labels: (batch,) classes.
        temperature: τ.

    Returns:
        Scalar, float32.
    """
    everyone = gather(labels)
    return _contrast(z, everyone, temperature) * (everyone != everyone[0]).any()


def _contrast(z: Tensor, everyone: Tensor, temperature: float) -> Tensor:
    """L_out of projections (views, batch, d) of this rank, ``everyone`` being the classes of the jets of all ranks."""
    # Cosines over 0.1 in eight bits would be wrong by several per cent.
    with torch.autocast(z.device.type, enabled=False):
        n_views, n, _ = z.shape
        u = F.normalize(z.float(), dim=-1)
        others = gather(u, 1).flatten(0, 1)
        own = torch.arange(n, device=z.device) + rank() * n
        of_anchor, of_other = own.repeat(n_views), torch.arange(len(everyone), device=z.device).repeat(n_views)
        view = torch.arange(n_views, device=z.device)
        itself = (of_anchor.unsqueeze(1) == of_other) & (
            view.repeat_interleave(n).unsqueeze(1) == view.repeat_interleave(len(everyone))
        )
        # Finite, so that an anchor that is alone has a gradient of zero.
        logits = (u.flatten(0, 1) @ others.T / temperature).masked_fill(itself, -1e30)
        log_p = logits - logits.logsumexp(1, keepdim=True)
        positive = (everyone[of_anchor].unsqueeze(1) == everyone[of_other]) & ~itself
        count = positive.sum(1)
        each = -log_p.masked_fill(~positive, 0.0).sum(1) / count.clamp(min=1)
        anchors = all_sum((count > 0).sum().float()) / world_size()
        return each.sum() / anchors.clamp(min=torch.finfo(torch.float32).tiny)


@torch.no_grad()
def alignment(u: Tensor) -> Tensor:
    """How near the two views of a jet are: mean squared distance (arXiv 2005.10242), 0 to 4, small if alike.

    Args:
        u: (2, batch, d) unit vectors.
    """
    return (u[0] - u[1]).square().sum(-1).mean()


@torch.no_grad()
def uniformity(u: Tensor) -> Tensor:
    r"""How evenly jets cover the sphere: :math:`\ln \langle e^{-2 |u_i - u_j|^2} \rangle_{i<j}` (arXiv 2005.10242).

    Zero if all are the same, about −4 for a uniform cover in many dimensions. The mean is within each view.

    Args:
        u: (views, batch, d) unit vectors.
    """
    n = u.shape[1]
    if n < 2:
        return u.new_zeros(())
    distance2 = (2 - 2 * u @ u.transpose(1, 2)).clamp(min=0)
    pairs = torch.ones(n, n, dtype=torch.bool, device=u.device).triu(1)
    return torch.exp(-2 * distance2[:, pairs]).mean().log()
