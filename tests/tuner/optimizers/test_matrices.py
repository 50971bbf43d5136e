"""Iterations on stacks of matrices against decompositions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tuner.optimizers.matrices import inverse_fourth_root, orthogonalize

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def with_eigenvalues(values: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=values.dtype))
    return basis @ torch.diag(values) @ basis.T


@pytest.mark.parametrize(("smallest", "ridge"), [(1.0, 1e-6), (1e-4, 1e-6), (0.0, 1e-6), (1e-9, 1e-12)])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_root_equals_the_eigendecomposition(smallest: float, ridge: float, scale: float) -> None:
    values = scale * torch.linspace(smallest, 1.0, 12, dtype=torch.float64)
    matrix = with_eigenvalues(values)
    damped = matrix + ridge * torch.linalg.vector_norm(values) * torch.eye(12, dtype=torch.float64)
    levels, vectors = torch.linalg.eigh(damped)
    expected = vectors @ torch.diag(levels**-0.25) @ vectors.T
    torch.testing.assert_close(
        inverse_fourth_root(matrix[None], ridge)[0],
        expected,
        rtol=1e-4,
        atol=1e-4 * expected.abs().max().item(),
    )


def test_root_in_float32_is_good_to_three_digits_for_a_singular_matrix() -> None:
    values = torch.cat([torch.zeros(6, dtype=torch.float64), torch.logspace(-3, 0, 6, dtype=torch.float64)])
    matrix = with_eigenvalues(values)
    exact = inverse_fourth_root(matrix[None], 1e-6)
    single = inverse_fourth_root(matrix[None].float(), 1e-6).double()
    error = torch.linalg.vector_norm(single - exact) / torch.linalg.vector_norm(exact)
    assert error < 2e-2


def test_matrix_that_is_not_finite_leaves_the_others_alone() -> None:
    good = with_eigenvalues(torch.linspace(0.1, 1, 4))
    bad = torch.full((4, 4), torch.nan)
    both = inverse_fourth_root(torch.stack([good, bad]), 1e-6)
    assert torch.equal(both[0], inverse_fourth_root(torch.stack([good, good]), 1e-6)[0])
    assert both[1].isnan().all()


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (4, 4), (1, 5), (5, 1)])
def test_orthogonalised_matrix_keeps_its_singular_vectors(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(*shape, generator=generator, dtype=torch.float64)
    result = orthogonalize(matrix[None], num_iterations=5, coefficients=COEFFICIENTS, eps=1e-7)[0]
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    core = left.T @ result @ right.T
    torch.testing.assert_close(core, torch.diag(core.diagonal()), rtol=0, atol=1e-9)
    assert ((core.diagonal() > 0.6) & (core.diagonal() < 1.3)).all()


def test_matrix_of_zeros_stays_one() -> None:
    zeros = torch.zeros(2, 3, 4)
    assert torch.equal(orthogonalize(zeros, num_iterations=5, coefficients=COEFFICIENTS, eps=1e-7), zeros)
