"""Jets made by hand, and a way to look into a store's files as a stranger would."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from jetrep.jets import Jets
from jetrep.physics.fourvector import from_ptetaphim

MakeJets = Callable[..., Jets]


@pytest.fixture(scope="session")
def make_jets() -> MakeJets:
    def make(counts: Sequence[int], *, seed: int = 0, classes: tuple[str, ...] = ()) -> Jets:
        """Jets with ``counts`` constituents, falling pT, within a cone of 0.8, labels drawn at random."""
        rng = np.random.default_rng(seed)
        n = int(np.sum(counts))
        pt, eta, phi = rng.exponential(20, n) + 0.5, rng.uniform(-0.5, 0.5, n), rng.uniform(-0.5, 0.5, n)
        p4 = from_ptetaphim(pt, eta, phi, np.zeros(n)).astype(np.float32)
        offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        labels = rng.integers(0, len(classes), len(counts)) if classes else None
        return Jets(p4, offsets, labels, classes).sorted_by_pt()

    return make
