"""Iterations on stacks of matrices: products only, a fixed number of them, so nothing is read to the host.

Shape letters: B = matrices in the stack, m, n = rows and columns.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def orthogonalize(
    matrices: Tensor, *, num_iterations: int, coefficients: tuple[float, float, float], eps: float
) -> Tensor:
    """Pull every singular value of every matrix towards 1, by Newton-Schulz with a quintic polynomial.

    With Muon's coefficients the singular values end between about 0.7 and 1.2, not at 1.

    Args:
        matrices: shape (B, m, n).
        num_iterations: how often the polynomial is applied.
        coefficients: of the singular value, its third and its fifth power.
        eps: smallest Frobenius norm that a matrix is divided by; a matrix of zeros stays one.

    Returns:
        Shape (B, m, n), the type of ``matrices``.

    Source:
        Jordan et al. (2024), https://kellerjordan.github.io/posts/muon/. Differs from ``torch.optim.Muon``,
        which iterates in bfloat16 whatever the type of the weights, with two to three significant digits.
    """
    first, third, fifth = coefficients
    # The Gram matrix on the smaller side.
    is_tall = matrices.shape[1] > matrices.shape[2]
    current = matrices.mT if is_tall else matrices
    current = current / torch.linalg.vector_norm(current, dim=(1, 2), keepdim=True).clamp_(min=eps)
    for _ in range(num_iterations):
        gram = torch.bmm(current, current.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=third, alpha=fifth)
        current = torch.baddbmm(current, polynomial, current, beta=first)
    return current.mT if is_tall else current


def inverse_fourth_root(matrices: Tensor, ridge: float) -> Tensor:
    """``(A + ridge * |A| * I) ** (-1/4)`` of every matrix, by a coupled Newton iteration.

    The number of iterations follows from the ridge, which bounds the ratio of the eigenvalues: 21 for 1e-6.
    Each costs four products of matrices. An eigendecomposition would be exact, but
    ``torch.linalg.eigh`` reads its error code on the host and raises for the whole stack if one matrix is not
    finite; here such a matrix gives NaN and the others are untouched.

    Args:
        matrices: symmetric, positive semidefinite and not zero, shape (B, m, m).
        ridge: share of the Frobenius norm ``|A|`` added to every eigenvalue, > 0.

    Returns:
        Shape (B, m, m).

    Source:
        Anil et al. (2020), appendix, https://arxiv.org/abs/2002.09018, after Guo and Higham (2006). Differs: a
        fixed number of iterations, and the Frobenius norm in place of a power iteration.

    Example:
        >>> inverse_fourth_root(torch.eye(2, dtype=torch.float64).mul(16)[None], 1e-12).round(decimals=6)
        tensor([[[0.5000, 0.0000],
                 [0.0000, 0.5000]]], dtype=torch.float64)
    """
    norm = torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True)
    # Eigenvalues of the error are then in (0, 2.5]: the iteration converges below 5.
    scale = 2.5 / (norm * (1 + ridge))
    error = matrices * scale
    error.diagonal(dim1=1, dim2=2).add_((ridge * norm * scale)[..., 0])
    root = torch.zeros_like(matrices)
    root.diagonal(dim1=1, dim2=2).add_(scale.sqrt_().sqrt_()[..., 0])
    for _ in range(num_newton_iterations(ridge)):
        factor = error * -0.25
        factor.diagonal(dim1=1, dim2=2).add_(1.25)
        root = torch.bmm(root, factor)
        squared = torch.bmm(factor, factor)
        error = torch.bmm(torch.bmm(squared, squared), error)
    return root


def num_newton_iterations(ridge: float) -> int:
    """Iterations of `inverse_fourth_root` until the smallest possible eigenvalue has converged.

    Args:
        ridge: in (0, 1).

    Returns:
        A small eigenvalue grows by 1.25 ** 4 per iteration until it is near 1; six more finish it.

    Example:
        >>> num_newton_iterations(1e-6)
        21
    """
    smallest = 2.5 * ridge / (1 + ridge)
    return max(0, math.ceil(-math.log(smallest) / math.log(1.25**4))) + 6
