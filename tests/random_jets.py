"""Jets of given multiplicities, clustered, around an axis with η < 0 and φ near π, where signs and wraps go wrong."""

from collections.abc import Sequence

import numpy as np

from jetrep.jets import Jets


def random_jets(counts: Sequence[int], seed: int = 0) -> Jets:
    rng = np.random.default_rng(seed)
    n = sum(counts)
    pt, eta, phi = rng.exponential(20, n) + 0.5, rng.normal(-0.8, 0.3, n), rng.normal(3.0, 0.3, n)
    p4 = np.stack([pt * np.cosh(eta), pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta)], -1)
    return Jets(p4.astype(np.float32), np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)).clustered()
