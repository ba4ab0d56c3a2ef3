"""How well a training order mixes: does a jet tell anything about those that come soon after it?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["autocorrelation", "batch_spread"]


def autocorrelation(categories: ArrayLike, lags: Sequence[int]) -> tuple[NDArray[np.float64], float]:
    r"""How much more often than by chance two jets, that far apart in the order, are of the same kind.

    .. math:: \rho(k) = \frac{P(c_i = c_{i+k}) - q}{1 - q},\qquad q = \sum_c p_c^2

    1 if they always are, 0 if the order says nothing; for two classes this is the usual autocorrelation.

    Args:
        categories: (n,) label, or number of the file, of each jet in the order in which they are shown.
        lags: distances k, from 1 to below n.

    Returns:
        (n_lags,) ρ; and its standard deviation in a random order, about the same for all lags.
    """
    values = np.asarray(categories)
    _, counts = np.unique(values, return_counts=True)
    chance = float(np.sum((counts / len(values)) ** 2))
    if chance == 1:
        return np.zeros(len(lags)), 0.0
    same = np.array([np.mean(values[:-lag] == values[lag:]) for lag in lags])
    return (same - chance) / (1 - chance), float(np.sqrt(chance / (1 - chance) / len(values)))


def batch_spread(categories: ArrayLike, batch_size: int) -> float:
    """Standard deviation, over batches, of the share of the most common kind, relative to that of random batches.

    Args:
        categories: (n,) as for `autocorrelation`.
        batch_size: jets of a batch; an incomplete one at the end is left out.
    """
    values = np.asarray(categories)
    kinds, counts = np.unique(values, return_counts=True)
    n = len(values) // batch_size * batch_size
    shares = (values[:n] == kinds[np.argmax(counts)]).reshape(-1, batch_size).mean(1)
    p = counts.max() / len(values)
    # Batches are drawn without replacement from all jets.
    expected = np.sqrt(p * (1 - p) / batch_size * (len(values) - batch_size) / max(len(values) - 1, 1))
    return float(shares.std() / expected) if expected else 0.0
