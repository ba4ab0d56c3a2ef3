r"""Losses of self-distillation, on plain tensors: DINO (arXiv 2104.14294), iBOT (2111.07832), KoLeo (1806.03198).

Targets come from `sinkhorn` (arXiv 2006.09882) or `Centering`. All are the same for one rank with the whole batch
as for several ranks with a part each, once ranks are averaged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jetrep.objectives.distributed import all_max, all_sum, gather, rank, world_size

__all__ = ["Centering", "cross_entropies", "dino_loss", "ibot_loss", "koleo_loss", "sinkhorn"]


@torch.no_grad()
def sinkhorn(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    r"""Soft assignment of the samples of all ranks to prototypes, each prototype receiving the same total weight.

    From :math:`Q = e^{z/\tau}`, alternately the prototypes are scaled to a total of 1/K and the samples to 1/M. The
    scale factors are kept apart from Q, in which the largest entry of each sample and of each prototype is one: nothing
    over- or underflows, whatever the temperature.

    Args:
        logits: z, (m, K) of this rank; m may differ between ranks, and may be 0.
        temperature: τ.
        iterations: number of pairs of scalings; at least one.

    Returns:
        (m, K) float32; each sample sums to one.
    """
    with torch.autocast(logits.device.type, enabled=False):  # which would take the products to half precision
        scaled = logits.float() / temperature
        samples, k = scaled.shape
        of_sample, largest = scaled.new_zeros(0), scaled.new_full((k + 1,), -torch.inf)
        if samples:
            of_sample = scaled.amax(1)
            scaled = scaled - of_sample.unsqueeze(1)
            largest = torch.cat([scaled.amax(0), of_sample.amax().unsqueeze(0)])
        largest = all_max(largest)
        total = all_sum(torch.tensor(float(samples), device=scaled.device))
        q = torch.exp(scaled - largest[:-1])
        of_sample = torch.exp(of_sample - largest[-1]).clamp(min=1e-30)
        of_prototype = q.new_ones(k)
        for _ in range(iterations):
            of_prototype = 1 / (k * all_sum(of_sample @ q))
            of_sample = 1 / (total * (q @ of_prototype))
        return q * of_prototype * (of_sample * total).unsqueeze(1)


class Centering(nn.Module):
    """Targets by softmax after subtracting a running mean of the logits of all ranks.

    Args:
        n_prototypes: K.
        momentum: weight of the past in the running mean.
    """

    center: Tensor

    def __init__(self, n_prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(n_prototypes))

    @torch.no_grad()
    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """(m, K) logits → (m, K) targets; in training the running mean then takes these logits in."""
        logits = logits.float()
        targets = torch.softmax((logits - self.center) / temperature, -1)
        if self.training:
            sums = all_sum(torch.cat([logits.sum(0), logits.new_tensor([len(logits)])]))
            mean = sums[:-1] / sums[-1].clamp(min=1)
            # A step without any sample leaves the centre alone.
            weight = (1 - self.momentum) * (sums[-1] > 0)
            self.center.copy_(self.center + weight * (mean - self.center))
        return targets


def cross_entropies(student: Tensor, targets: Tensor, temperature: float) -> Tensor:
    r"""All :math:`-\sum_k q_{tk} \ln \mathrm{softmax}_k(z_s/\tau)`.

    Args:
        student: z, (..., S, K) logits.
        targets: q, (..., T, K), each summing to one.
        temperature: τ.

    Returns:
        (..., T, S).
    """
    with torch.autocast(student.device.type, enabled=False):
        scaled = student.float() / temperature
        return torch.logsumexp(scaled, -1).unsqueeze(-2) - targets @ scaled.transpose(-1, -2)


def dino_loss(student: Tensor, targets: Tensor, temperature: float, weights: Tensor) -> Tensor:
    """Weighted mean over jets and pairs (teacher view, student view) of the cross-entropy.

    Args:
        student: (S, batch, K) logits of the student's views.
        targets: (T, batch, K) targets from the teacher's views.
        temperature: of the student.
        weights: (batch, T, S), such as 0 for pairs of one view with itself and 1 elsewhere.

    Returns:
        Scalar; zero if all weights are zero.
    """
    pairs = cross_entropies(student.transpose(0, 1), targets.transpose(0, 1), temperature)
    norm = all_sum(weights.sum().to(pairs.dtype)) / world_size()
    return (pairs * weights).sum() / norm.clamp(min=torch.finfo(pairs.dtype).tiny)


def ibot_loss(student: Tensor, targets: Tensor, temperature: float, weights: Tensor) -> Tensor:
    """Weighted sum of the cross-entropies of single tokens.

    Args:
        student: (m, K) logits of the student's masked tokens.
        targets: (m, K) targets from the same tokens, seen by the teacher.
        temperature: of the student.
        weights: (m,), 1 / (masked tokens in that jet · batch).
    """
    scaled = student.float() / temperature
    each = torch.logsumexp(scaled, -1) - (targets * scaled).sum(-1)
    return (each * weights).sum()


def koleo_loss(x: Tensor) -> Tensor:
    r"""Spreads the representations of a view over the sphere.

    :math:`-\frac{1}{VB}\sum_{v,i} \ln\left(\lVert u_{vi} - u_{v\,NN(i)} \rVert + 10^{-8}\right)`, where
    :math:`u` are unit vectors and the nearest neighbour is sought within the same view among the jets of all ranks.

    Args:
        x: (V, batch, d) representations; the same shape on all ranks.

    Returns:
        Scalar; zero if there is but one jet.
    """
    with torch.autocast(x.device.type, enabled=False):
        u = F.normalize(x.float(), dim=-1)
        everyone = gather(u, 1)
        n = u.shape[1]
        if everyone.shape[1] < 2:
            return u.sum() * 0
        with torch.no_grad():
            cosine = u @ everyone.transpose(1, 2)
            cosine.diagonal(rank() * n, 1, 2).fill_(-torch.inf)
            nearest = cosine.argmax(-1)
        neighbour = everyone.gather(1, nearest.unsqueeze(-1).expand_as(u))
        return -torch.log(torch.linalg.vector_norm(u - neighbour, dim=-1) + 1e-8).mean()
