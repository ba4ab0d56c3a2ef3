import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetrep.errors import InputError
from jetrep.training.batches import ShuffledBatches
from prong_jets import prong_jets

JETS = prong_jets(50)


@given(seed=st.integers(0, 1000), batch_size=st.integers(1, 50))
def test_an_epoch_is_a_permutation_and_the_next_one_another(seed, batch_size):
    batches = ShuffledBatches(JETS, batch_size, seed)
    n = batches.steps_per_epoch
    epochs = [np.concatenate([batches.rows(step) for step in range(i * n, (i + 1) * n)]) for i in range(2)]
    for rows in epochs:
        assert len(np.unique(rows)) == len(rows) == n * batch_size
    if n * batch_size > 20:
        assert not np.array_equal(*epochs)
    if n > 1 and batch_size > 3:
        # Not only the order of the batches changes, but who is in them.
        first, second = ({frozenset(rows) for rows in epoch.reshape(n, -1)} for epoch in epochs)
        assert first != second


@given(step=st.integers(0, 40), world_size=st.sampled_from([1, 2, 5]))
def test_ranks_share_the_global_batch(step, world_size):
    together = ShuffledBatches(JETS, 10, 3).rows(step)
    apart = [ShuffledBatches(JETS, 10, 3, rank, world_size).rows(step) for rank in range(world_size)]
    assert sorted(np.concatenate(apart)) == sorted(together)
    assert {len(rows) for rows in apart} == {10 // world_size}


def test_stream_from_a_step_is_the_tail_of_the_stream():
    whole, tail = ShuffledBatches(JETS, 16, 1).from_step(0), ShuffledBatches(JETS, 16, 1).from_step(4)
    skipped = [next(whole) for _ in range(5)][-1]
    assert np.array_equal(skipped.p4.numpy(), next(tail).p4.numpy())


def test_refusals():
    with pytest.raises(InputError, match="fewer than one batch"):
        ShuffledBatches(JETS, 51)
    with pytest.raises(InputError, match="cannot be shared"):
        ShuffledBatches(JETS, 9, world_size=2)
