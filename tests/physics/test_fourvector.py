"""Four-vector functions against the `vector` package, at the edges of phase space, and NumPy against torch."""

import numpy as np
import pytest
import torch
import vector
from hypothesis import given
from hypothesis import strategies as st

from jetrep.physics import fourvector as fv

FUNCTIONS = (fv.pt, fv.phi, fv.eta, fv.rapidity, fv.mass, fv.mass2)
NAMES = {
    fv.pt: "pt",
    fv.phi: "phi",
    fv.eta: "eta",
    fv.rapidity: "rapidity",
    fv.mass: "mass",
    fv.mass2: "mass2",
}

# (E, px, py, pz): at rest, massless, soft, along either beam, E < |p|, zero, huge, subnormal.
EDGES = np.array(
    [
        [1.0, 0.0, 0.0, 0.0],
        [5.0, 3.0, 4.0, 0.0],
        [1e-20, 1e-20, 0.0, 0.0],
        [1000.0, 0.0, 0.0, 1000.0],
        [1000.0, 0.0, -0.0, -1000.0],
        [6500.0, 1e-8, 0.0, 6500.0],
        [4.99999, 3.0, 4.0, 0.0],
        [0.0, 1.0, 1.0, 1.0],
        [0.0, 0.0, 0.0, 0.0],
        [3e17, 1e17, 1e17, -2e17],
        [1e-40, 0.0, 1e-40, 0.0],
    ]
)


@st.composite
def particles(draw: st.DrawFn) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    pt = draw(st.floats(1e-3, 1e4))
    eta = draw(st.floats(-6, 6))
    phi = draw(st.floats(-3.1415, 3.1415))
    mass = draw(st.just(0.0) | st.floats(1e-3, 500))
    p4 = fv.from_ptetaphim(np.array(pt), np.array(eta), np.array(phi), np.array(mass))
    return p4, (pt, eta, phi, mass)


@given(particles())
def test_cylindrical_coordinates_come_back(particle: tuple[np.ndarray, tuple[float, float, float, float]]) -> None:
    p4, (pt, eta, phi, mass) = particle
    assert fv.pt(p4) == pytest.approx(pt, rel=1e-12)
    assert fv.eta(p4) == pytest.approx(eta, abs=1e-11)
    assert fv.phi(p4) == pytest.approx(phi, abs=1e-12)
    assert fv.mass2(p4) == pytest.approx(mass**2, abs=1e-14 * float(p4[fv.E]) ** 2 + 1e-12)


@pytest.mark.parametrize("function", FUNCTIONS)
@given(particle=particles())
def test_agrees_with_vector(function, particle) -> None:
    p4, _ = particle
    reference = vector.obj(E=p4[fv.E], px=p4[fv.PX], py=p4[fv.PY], pz=p4[fv.PZ])
    # vector forms E² − p² and E − pz, which cancel: that is the error allowed here, not ours.
    energy = float(p4[fv.E])
    if function is fv.mass2:
        tolerance = 1e-14 * energy**2
    elif function is fv.mass:
        mass = max(float(fv.mass(p4)), 1e-7 * energy)
        tolerance = 1e-14 * energy**2 / mass + 1e-12
    elif function is fv.rapidity:
        tolerance = 1e-14 * float(np.exp(2 * abs(fv.eta(p4)))) + 1e-12
    else:
        tolerance = 1e-10
    assert float(function(p4)) == pytest.approx(getattr(reference, NAMES[function]), rel=1e-12, abs=tolerance)


@given(particles(), st.floats(-4, 4))
def test_boost_along_the_beam_shifts_rapidity_only(particle, shift: float) -> None:
    p4, _ = particle
    boosted = np.stack(
        [
            p4[fv.E] * np.cosh(shift) + p4[fv.PZ] * np.sinh(shift),
            p4[fv.PX],
            p4[fv.PY],
            p4[fv.PZ] * np.cosh(shift) + p4[fv.E] * np.sinh(shift),
        ]
    )
    assert fv.rapidity(boosted) - fv.rapidity(p4) == pytest.approx(shift, abs=1e-6)
    assert fv.pt(boosted) == fv.pt(p4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_edges_are_finite_and_silent(function, dtype) -> None:
    with np.errstate(all="raise", under="ignore"):
        values = function(EDGES.astype(dtype))
    assert values.dtype == dtype
    assert values.shape == (len(EDGES),)
    assert np.all(np.isfinite(values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_numpy_equals_torch(function, dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    p4 = torch.randn(200, 4, generator=generator, dtype=dtype) * 100
    p4[:, fv.E] = p4[:, 1:].norm(dim=-1) * (1 + torch.rand(200, generator=generator, dtype=dtype))
    p4 = torch.cat([p4, torch.from_numpy(EDGES).to(dtype)])
    ours = function(p4)
    assert isinstance(ours, torch.Tensor)
    assert ours.dtype == dtype
    precision = 2e-6 if dtype == torch.float32 else 1e-13
    expected = function(p4.numpy())
    np.testing.assert_allclose(ours.numpy(), expected, rtol=precision, atol=precision)


def test_space_like_vectors_count_as_massless() -> None:
    p4 = np.array([4.99999, 3.0, 4.0, 2.0])
    massless = np.array([np.sqrt(29.0), 3.0, 4.0, 2.0])
    assert fv.mass2(p4) < 0
    assert fv.mass(p4) == 0
    assert fv.rapidity(p4) == pytest.approx(fv.rapidity(massless), rel=1e-15)


def test_mass_of_an_energetic_light_particle_is_exact() -> None:
    # E² − p² computed as such has no correct digit here; (E − p)(E + p) has those that E − p has.
    p4 = np.array([np.sqrt(1e6**2 + 1.0), 1e6, 0.0, 0.0])
    assert fv.mass2(p4) == pytest.approx((p4[0] - 1e6) * (p4[0] + 1e6), rel=1e-15)


def test_rapidity_changes_sign_with_pz() -> None:
    p4 = EDGES.copy()
    p4[:, fv.PZ] *= -1
    np.testing.assert_array_equal(fv.rapidity(p4), -fv.rapidity(EDGES))
    np.testing.assert_array_equal(fv.eta(p4), -fv.eta(EDGES))


@given(st.floats(-3.14, 3.14), st.floats(-3.14, 3.14), st.integers(-3, 3))
def test_delta_phi_forgets_whole_turns(a: float, b: float, turns: int) -> None:
    direct = fv.delta_phi(np.array(a), np.array(b))
    assert abs(direct) <= np.pi
    # The shortest way: what the angle of the ratio of the two directions says.
    expected = np.angle(np.exp(1j * (a - b)))
    assert np.cos(direct - expected) == pytest.approx(1.0, abs=1e-14)
    wrapped = fv.delta_phi(np.array(a + 2 * np.pi * turns), np.array(b))
    assert np.cos(wrapped - direct) == pytest.approx(1.0, abs=1e-12)


def test_small_delta_phi_keeps_its_digits_in_single_precision() -> None:
    a, b = np.float32(1e-4), np.float32(3e-5)
    assert float(fv.delta_phi(np.array([a]), np.array([b]))[0]) == pytest.approx(float(a) - float(b), rel=1e-6)
    torch_value = fv.delta_phi(torch.tensor([float(a)]), torch.tensor([float(b)]))
    assert torch_value.item() == pytest.approx(float(a) - float(b), rel=1e-6)
