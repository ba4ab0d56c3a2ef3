"""The table of products of Lorentz tensors is correct and complete.

Completeness is shown by counting: the space of all bilinear maps A ⊗ B → C that commute with the six generators of the
Lorentz algebra is found as the null space of a linear system, built from the generators of the vector representation
alone. The products of the table must lie in that space and span it. Its dimension in turn is the one that the
Clebsch–Gordan series of SU(2) × SU(2) predicts.
"""

from itertools import product as pairs

import pytest
import torch

from jetrep.encoders.lorentz_products import PRODUCTS, Irrep, dual, product
from jetrep.encoders.lorentz_tensors import tensor_norm2
from jetrep.physics.lorentz import METRIC, random_lorentz, transform

ETA = torch.diag(torch.tensor(METRIC, dtype=torch.float64))
IRREPS: tuple[Irrep, ...] = ("S", "V", "F", "T")
# Spins (j, j') of the complex irreducible parts.
SPINS = {"S": [(0, 0)], "V": [(0.5, 0.5)], "F": [(1, 0), (0, 1)], "T": [(1, 1)]}


def generators() -> list[torch.Tensor]:
    """Three boosts and three rotations as matrices on upper vectors."""
    result = []
    for mu, nu in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)):
        antisymmetric = torch.zeros(4, 4, dtype=torch.float64)
        antisymmetric[mu, nu], antisymmetric[nu, mu] = 1, -1
        result.append(antisymmetric @ ETA)
    return result


def basis(irrep: Irrep) -> torch.Tensor:
    """(dim, components) an orthonormal basis of the tensors, written as flat arrays."""
    if irrep in ("S", "V"):
        return torch.eye(1 if irrep == "S" else 4, dtype=torch.float64)
    units = torch.eye(16, dtype=torch.float64).view(16, 4, 4)
    part = units - units.mT if irrep == "F" else units + units.mT
    if irrep == "T":
        part = part - torch.einsum("nij,ij->n", part, ETA)[:, None, None] * ETA / 4
    _, singular, rows = torch.linalg.svd(part.flatten(1))
    return rows[: int((singular > 1e-9).sum())]


def acting(irrep: Irrep, x: torch.Tensor) -> torch.Tensor:
    """(dim, dim) what a generator does to the coordinates in the basis."""
    if irrep == "S":
        return torch.zeros(1, 1, dtype=torch.float64)
    if irrep == "V":
        return x
    rows = basis(irrep)
    tensors = rows.view(-1, 4, 4)
    return rows @ (x @ tensors + tensors @ x.mT).flatten(1).T


def invariant_maps(a: Irrep, b: Irrep, c: Irrep) -> torch.Tensor:
    """(number, dim c · dim a · dim b) all bilinear maps that commute with the algebra."""
    equations = []
    for x in generators():
        on_a, on_b, on_c = (acting(irrep, x) for irrep in (a, b, c))
        ones = [torch.eye(len(m), dtype=torch.float64) for m in (on_a, on_b, on_c)]
        equations.append(
            torch.kron(on_c, torch.kron(ones[0], ones[1]))
            - torch.kron(ones[2], torch.kron(on_a.T.contiguous(), ones[1]))
            - torch.kron(ones[2], torch.kron(ones[0], on_b.T.contiguous()))
        )
    stacked = torch.cat(equations)
    values, vectors = torch.linalg.eigh(stacked.T @ stacked)
    return vectors.T[values < 1e-9]


def tensor_of(irrep: Irrep, flat: torch.Tensor) -> torch.Tensor:
    """(channels, components) flat arrays → channels last."""
    shape = {"S": (), "V": (4,)}.get(irrep, (4, 4))
    return flat.view(-1, *shape).movedim(0, -1)


def table_maps(a: Irrep, b: Irrep, c: Irrep) -> torch.Tensor:
    """(number, dim c · dim a · dim b) the products of the table, in the bases."""
    base_a, base_b = basis(a), basis(b)
    left = base_a.repeat_interleave(len(base_b), 0)
    right = base_b.repeat(len(base_a), 1)
    results = product(a, tensor_of(a, left), b, tensor_of(b, right), c)
    coordinates = [basis(c) @ r.movedim(-1, 0).reshape(len(left), -1).T for r in results]
    return torch.stack([m.flatten() for m in coordinates])


def expected_number(a: Irrep, b: Irrep, c: Irrep) -> int:
    """From the Clebsch–Gordan series: ways in which a part of a times a part of b holds a part of c."""

    def holds(x: float, y: float, z: float) -> bool:
        return abs(x - y) <= z <= x + y and (x + y + z) % 1 == 0

    return sum(
        holds(x, y, z) and holds(xx, yy, zz) for (x, xx), (y, yy), (z, zz) in pairs(SPINS[a], SPINS[b], SPINS[c])
    )


@pytest.mark.parametrize(("a", "b", "c"), PRODUCTS)
def test_products_span_all_invariant_bilinear_maps(a, b, c):
    space, table = invariant_maps(a, b, c), table_maps(a, b, c)
    assert len(space) == len(table) == PRODUCTS[a, b, c] == expected_number(a, b, c)
    outside = table - table @ space.T @ space
    assert outside.norm() < 1e-10 * table.norm()
    assert torch.linalg.matrix_rank(table, rtol=1e-9) == len(space)


def test_every_pair_of_irreps_without_an_entry_has_no_product():
    for a, b, c in pairs("VFT", "VFT", IRREPS):
        if (a, b, c) not in PRODUCTS and (b, a, c) not in PRODUCTS:
            assert expected_number(a, b, c) == 0 == len(invariant_maps(a, b, c))
            with pytest.raises(ValueError, match="no product"):
                product(a, torch.zeros(4, 4), b, torch.zeros(4, 4), c)


@pytest.mark.parametrize(("a", "b", "c"), PRODUCTS)
def test_products_commute_with_finite_transformations(a, b, c):
    generator = torch.Generator().manual_seed(1)
    matrix = random_lorentz(torch.tensor([3.0]), generator)[0]

    def moved(irrep: Irrep, x: torch.Tensor) -> torch.Tensor:
        for axis in range(x.dim() - 1):
            x = torch.tensordot(matrix, x, dims=([1], [axis])).movedim(0, axis)
        return x

    x, y = (
        tensor_of(irrep, torch.randn(5, len(basis(irrep)), dtype=torch.float64, generator=generator) @ basis(irrep))
        for irrep in (a, b)
    )
    for once, then in zip(product(a, moved(a, x), b, moved(b, y), c), product(a, x, b, y, c), strict=True):
        torch.testing.assert_close(once, moved(c, then), rtol=1e-9, atol=1e-9 * float(once.abs().max()))


def test_dual_squares_to_minus_one_and_swaps_electric_and_magnetic_fields():
    f = tensor_of("F", basis("F"))
    torch.testing.assert_close(dual(dual(f)), -f)
    field = torch.zeros(4, 4, 1, dtype=torch.float64)
    field[0, 1], field[1, 0] = 1.0, -1.0
    assert dual(field)[2, 3, 0] == -1.0  # ½ ε^{23ρσ} F_ρσ = F_01 = −F^{01}


def test_norm_of_tensors_is_invariant_and_positive():
    generator = torch.Generator().manual_seed(2)
    matrix = random_lorentz(torch.tensor([4.0]), generator)[0]
    x = torch.randn(7, 4, 4, 3, dtype=torch.float64, generator=generator)
    u = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    moved = torch.einsum("ij,njlc,kl->nikc", matrix, x, matrix)
    at_rest = tensor_norm2(x, u.view(1, 4, 1))
    torch.testing.assert_close(at_rest, x.square().sum((-3, -2)))
    torch.testing.assert_close(tensor_norm2(moved, transform(matrix, u).view(1, 4, 1)), at_rest)
