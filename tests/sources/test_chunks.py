"""Padding is removed wherever it stands, and what was measured stays with its particle."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jetrep.sources.chunks import four_vectors, without_padding


@given(st.lists(st.lists(st.booleans(), max_size=6), max_size=8))
def test_particles_keep_their_jet_and_their_measurements(slots):
    counts = np.array([len(jet) for jet in slots], np.int64)
    real = np.array([slot for jet in slots for slot in jet], bool)
    values = np.where(real[:, None], np.arange(1, 1 + 4 * len(real)).reshape(-1, 4), 0.0)
    columns = {"charge": np.arange(len(real), dtype=np.int8), "d0": values[:, 0] / 2}
    p4, offsets, measured = without_padding(values, counts, columns)
    assert offsets.tolist() == np.cumsum([0, *(sum(jet) for jet in slots)]).tolist()
    np.testing.assert_array_equal(p4, values[real])
    assert p4.dtype == np.float32
    assert measured["charge"].tolist() == np.flatnonzero(real).tolist()
    assert measured["charge"].dtype == np.int8
    np.testing.assert_array_equal(measured["d0"], p4[:, 0] / 2)
    for a, b in zip(four_vectors(values, counts), (p4, offsets), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_vector_with_one_component_is_a_particle_and_nan_is_no_padding():
    values = np.array([[0, 0, 0, 0], [0, 0, 0, 1e-30], [np.nan, 0, 0, 0]])
    p4, offsets, measured = without_padding(values, np.array([2, 1]), {"charge": np.array([5, 6, 7])})
    assert len(p4) == 2
    assert offsets.tolist() == [0, 1, 2]
    assert measured["charge"].tolist() == [6, 7]
