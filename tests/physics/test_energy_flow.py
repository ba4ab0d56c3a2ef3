"""Energy-flow polynomials against loops over particles, and their safety."""

from itertools import product

import numpy as np
import pytest

from jetrep.physics.energy_flow import ENERGY_FLOW, energy_flow

EDGES = {
    "edge": [(0, 1)],
    "double edge": [(0, 1)] * 2,
    "wedge": [(0, 1), (0, 2)],
    "triple edge": [(0, 1)] * 3,
    "double edge and edge": [(0, 1), (0, 1), (0, 2)],
    "star": [(0, 1), (0, 2), (0, 3)],
    "path": [(0, 1), (1, 2), (2, 3)],
    "triangle": [(0, 1), (1, 2), (2, 0)],
}


def jets(n_jets=3, n=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.exponential(10, (n_jets, n)), rng.normal(0.5, 0.2, (n_jets, n)), rng.normal(3.1, 0.2, (n_jets, n))


@pytest.mark.parametrize("name", ENERGY_FLOW)
def test_equals_the_sum_over_all_tuples_of_particles(name):
    pt, eta, phi = jets()
    turned = (phi + np.pi) % (2 * np.pi) - np.pi  # some particles on the other side of the seam
    z = pt / pt.sum(1, keepdims=True)
    theta = np.hypot(eta[:, :, None] - eta[:, None], phi[:, :, None] - phi[:, None])
    vertices = 1 + max(max(edge) for edge in EDGES[name])
    slow = sum(
        np.prod(z[:, list(i)], 1) * np.prod([theta[:, i[a], i[b]] for a, b in EDGES[name]], 0)
        for i in product(range(4), repeat=vertices)
    )
    np.testing.assert_allclose(energy_flow(pt, eta, turned)[:, ENERGY_FLOW.index(name)], slow, rtol=1e-12)


def test_are_infrared_and_collinear_safe_and_blind_to_padding():
    pt, eta, phi = jets()
    expected = energy_flow(pt, eta, phi)
    soft = [
        np.concatenate([x, extra], 1)
        for x, extra in ((pt, np.full((3, 1), 1e-12)), (eta, pt[:, :1]), (phi, eta[:, :1]))
    ]
    np.testing.assert_allclose(energy_flow(*soft), expected, rtol=1e-6)
    halves = [np.concatenate([x[:, :1] * f, x[:, :1] * f, x[:, 1:]], 1) for x, f in ((pt, 0.5), (eta, 1), (phi, 1))]
    np.testing.assert_allclose(energy_flow(*halves), expected, rtol=1e-12)
    padding = np.full((3, 2), np.inf)
    padded = [np.concatenate([x, extra], 1) for x, extra in ((pt, 0 * np.ones((3, 2))), (eta, padding), (phi, padding))]
    np.testing.assert_allclose(energy_flow(*padded), expected, rtol=1e-12)
    assert not energy_flow(*(np.zeros((2, 3)),) * 3).any()
