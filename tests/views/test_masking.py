import math

import pytest
import torch

from jetrep.views.masking import random_particles


@pytest.mark.parametrize("fraction", [0.25, 0.1, 0.3, 0.9, 1.0])
def test_number_of_hidden_particles(fraction):
    counts = torch.arange(0, 60)
    mask = torch.arange(60) < counts.unsqueeze(1)
    hidden = random_particles(mask, fraction, torch.Generator().manual_seed(0))
    assert not (hidden & ~mask).any()
    for n, k in zip(counts.tolist(), hidden.sum(1).tolist(), strict=True):
        wanted = 0 if n <= 1 else min(max(math.floor(round(fraction * n, 6)), 1), n - 1)
        assert k == wanted, n


def test_every_particle_is_hidden_equally_often_and_draws_repeat():
    mask = (torch.arange(12) < 8).expand(4000, -1)
    hidden = random_particles(mask, 0.25, torch.Generator().manual_seed(1))
    # 2 of 8: expectation 1000 of 4000 each, standard deviation 27.
    assert (hidden[:, :8].sum(0) - 1000).abs().max() < 150
    assert torch.equal(hidden, random_particles(mask, 0.25, torch.Generator().manual_seed(1)))
    assert not torch.equal(hidden, random_particles(mask, 0.25, torch.Generator().manual_seed(2)))


def test_particles_need_not_stand_in_front():
    mask = torch.tensor([[False, True, False, True, True, False, True]])
    hidden = random_particles(mask, 0.5, torch.Generator().manual_seed(0))
    assert hidden.sum() == 2
    assert not (hidden & ~mask).any()
