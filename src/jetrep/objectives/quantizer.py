"""Clusters and codes: k-means, nearest codes that follow the vectors that fall on them, and how many are in use."""

from __future__ import annotations

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn import functional as F

from jetrep.errors import InputError
from jetrep.objectives.distributed import all_sum, rank, world_size

__all__ = ["VectorQuantizer", "kmeans", "perplexity"]

_BATCH = 4096  # points of a step of k-means


def kmeans(x: Tensor, k: int, seed: int) -> Tensor:
    """Centres of ``k`` clusters (scikit-learn's MiniBatchKMeans, on one thread: the same for the same seed).

    Args:
        x: (m, d).
        k: number of clusters.
        seed: of the random start.

    Returns:
        (k, d) float32 on the device of ``x``.

    Raises:
        InputError: if there are fewer points than clusters.
    """
    if len(x) < k:
        raise InputError(
            f"{k} codes are to be fitted to {len(x)} particles",
            field="objective.n_codes",
            remedy=f"ask for at most {len(x)}, or give more jets",
        )
    from sklearn.cluster import MiniBatchKMeans  # takes two seconds, and few objectives have clusters

    points = x.detach().double().cpu().numpy()
    with threadpool_limits(1):
        model = MiniBatchKMeans(k, n_init=1, random_state=seed, batch_size=_BATCH, init_size=3 * max(k, _BATCH))
        centres = model.fit(points).cluster_centers_
    return torch.from_numpy(np.asarray(centres, np.float32)).to(x.device)


def perplexity(codes: Tensor, k: int) -> Tensor:
    """Effective number of codes in use, from 1 (or 0 without a particle) to K: e to the entropy of their frequencies.

    Args:
        codes: (m,) int64.
        k: number of codes.
    """
    if not len(codes):
        return torch.zeros((), device=codes.device)
    p = torch.bincount(codes, minlength=k).float() / len(codes)
    return torch.exp(torch.special.entr(p).sum())


class VectorQuantizer(nn.Module):
    r"""Nearest codes, each the running mean of the vectors that fall on it.

    In training, with f_k the fraction of the vectors of all ranks that fall on code k and s_k their sum over the number
    of all vectors, :math:`F \leftarrow \delta F + (1-\delta) f`, :math:`S \leftarrow \delta S + (1-\delta) s`, and the
    code is :math:`S_k / F_k`. A code of which F falls below ``dead / K`` becomes one of the present vectors, drawn at
    random. The outcome is that of one rank with the vectors of all ranks, laid end to end.

    Args:
        n_codes: K.
        width: features of a code.
        decay: δ.
        dead: see above.
        cosine: codes and vectors are normalised to length one before they are compared.
    """

    codes: Tensor
    share: Tensor
    moment: Tensor

    def __init__(
        self, n_codes: int, width: int, *, decay: float = 0.99, dead: float = 0.1, cosine: bool = False
    ) -> None:
        super().__init__()
        self.n_codes, self.decay, self.dead, self.cosine = n_codes, decay, dead, cosine
        self.register_buffer("codes", self._on_sphere(torch.randn(n_codes, width)))
        self.register_buffer("share", torch.full((n_codes,), 1 / n_codes))
        self.register_buffer("moment", self.codes / n_codes)

    def _on_sphere(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) if self.cosine else x

    @torch.no_grad()
    def initialize(self, z: Tensor, seed: int) -> None:
        """Codes at the centres of clusters of ``z`` (m, width).

        Raises:
            InputError: if there are fewer vectors than codes.
        """
        z = self._on_sphere(z.float())
        self.codes.copy_(self._on_sphere(kmeans(z, self.n_codes, seed)))
        count = torch.bincount(self.nearest(z), minlength=self.n_codes)
        self.share.copy_((count / len(z)).clamp(min=1 / len(z)))
        self.moment.copy_(self.codes * self.share.unsqueeze(1))

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """(m, width) → (m,) int64, the number of the code at the least distance."""
        z = self._on_sphere(z.float())
        pieces = [(self.codes.square().sum(1) - 2 * piece @ self.codes.T).argmin(1) for piece in torch.split(z, 4096)]
        return torch.cat(pieces)

    def forward(self, z: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
        r"""Codes in place of vectors. In training, the codes then follow the vectors.

        Args:
            z: (m, width).
            generator: where replacements of dead codes are drawn from, equal on all ranks; torch's own by default.

        Returns:
            (m, width) the codes, through which gradients pass as if they were ``z``; (m,) their numbers;
            (m,) mean over the features of :math:`(z - \mathrm{code})^2`, with a gradient towards z alone.
        """
        with torch.autocast(z.device.type, enabled=False):
            z = self._on_sphere(z.float())
            numbers = self.nearest(z)
            code = self.codes[numbers]
            commitment = (z - code).square().mean(1)
            if self.training:
                self._follow(z.detach(), numbers, generator)
            return z + (code - z).detach(), numbers, commitment

    @torch.no_grad()
    def _follow(self, z: Tensor, numbers: Tensor, generator: torch.Generator | None) -> None:
        count = torch.bincount(numbers, minlength=self.n_codes).to(z.dtype)
        sums = torch.zeros_like(self.moment).index_add_(0, numbers, z)
        count, sums = all_sum(count), all_sum(sums)
        total = count.sum()
        if not total:
            return
        self.share.lerp_(count / total, 1 - self.decay)
        self.moment.lerp_(sums / total, 1 - self.decay)
        dead = self.share < self.dead / self.n_codes
        if dead.any():
            drawn = self._drawn(z, int(dead.sum()), generator)
            self.share[dead] = 1 / self.n_codes
            self.moment[dead] = drawn / self.n_codes
        self.codes.copy_(self._on_sphere(self.moment / self.share.unsqueeze(1)))

    def _drawn(self, z: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
        """(n, width) vectors out of those of all ranks."""
        counts = torch.zeros(world_size(), dtype=torch.long, device=z.device)
        counts[rank()] = len(z)
        counts = all_sum(counts)
        device = z.device if generator is None else generator.device
        draws = torch.rand(n, generator=generator, device=device, dtype=torch.double).to(z.device)
        place = (draws * counts.sum()).long() - counts[: rank()].sum()
        own = (place >= 0) & (place < len(z))
        drawn = z.new_zeros(n, z.shape[1])
        drawn[own] = z[place[own]]
        return all_sum(drawn)
