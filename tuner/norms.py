"""Gradient norms per lane: of the whole row, of each tensor, of each output unit. All before clipping.

Nothing here reads a value back to the host. An element that is NaN or infinite makes the norms that contain it
NaN or infinite, those of its own lane only.

Shape letters: L = lanes, P = parameters of one lane, T = parameter tensors, U = output units.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from tuner.lanes import Layout


def l2_norm(matrix: Tensor) -> Tensor:
    """L2 norm of each row.

    Args:
        matrix: shape (L, P).

    Returns:
        Shape (L,); infinite if the sum of squares overflows.

    Example:
        >>> l2_norm(torch.tensor([[3.0, 4.0], [0.6, 0.8]]))
        tensor([5., 1.])
    """
    norm: Tensor = torch.linalg.vector_norm(matrix, dim=1)
    return norm


def max_abs(matrix: Tensor) -> Tensor:
    """Largest absolute element of each row.

    Args:
        matrix: shape (L, P).

    Returns:
        Shape (L,); NaN if an element is NaN.

    Example:
        >>> max_abs(torch.tensor([[3.0, -4.0], [0.6, 0.8]]))
        tensor([4.0000, 0.8000])
    """
    norm: Tensor = torch.linalg.vector_norm(matrix, ord=float("inf"), dim=1)
    return norm


def tensor_norms(matrix: Tensor, layout: Layout) -> Tensor:
    """L2 norm of each parameter tensor of each lane.

    Args:
        matrix: shape (L, P).
        layout: where the tensors lie.

    Returns:
        Shape (L, T).

    Example:
        >>> tensor_norms(torch.tensor([[3.0, 4.0, -2.0]]), Layout(("weight", "bias"), ((2,), (1,))))
        tensor([[5., 2.]])
    """
    return torch.stack([l2_norm(matrix[:, start:end]) for start, end in layout.segments], dim=1)


def unit_norms(matrix: Tensor, layout: Layout) -> Tensor:
    """L2 norm of each output unit of each lane.

    A unit is one index of a tensor's first axis, PyTorch's output axis (a row of a linear layer, a filter of a
    convolution). A tensor with at most one dimension (a bias, a gain) is a single unit.

    Args:
        matrix: shape (L, P).
        layout: where the tensors lie.

    Returns:
        Shape (L, U), the tensors' units one after the other.

    Example:
        >>> layout = Layout(("weight", "bias"), ((2, 2), (2,)))
        >>> unit_norms(torch.tensor([[3.0, 4.0, 0.0, 1.0, 5.0, 12.0]]), layout)
        tensor([[ 5.,  1., 13.]])
    """
    norms = []
    for shape, (start, end) in zip(layout.shapes, layout.segments, strict=True):
        num_units, size = _units(shape)
        units = matrix[:, start:end].reshape(len(matrix), num_units, size)
        norms.append(torch.linalg.vector_norm(units, dim=2))
    return torch.cat(norms, dim=1)


def unit_of_column(layout: Layout) -> Tensor:
    """Which unit each column belongs to, in the order of `unit_norms`.

    Args:
        layout: where the tensors lie.

    Returns:
        Shape (P,), int64, ascending, on the CPU: ``per_unit[:, unit_of_column(layout)]`` repeats one number per unit
        over its columns.

    Example:
        >>> unit_of_column(Layout(("weight", "bias"), ((2, 2), (2,)))).tolist()
        [0, 0, 1, 1, 2, 2]
    """
    sizes = [size for shape in layout.shapes for size in [_units(shape)[1]] * _units(shape)[0]]
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes, dtype=torch.int64))


def units_of(layout: Layout) -> tuple[int, ...]:
    """How many units each tensor has, length T."""
    return tuple(_units(shape)[0] for shape in layout.shapes)


def _units(shape: tuple[int, ...]) -> tuple[int, int]:
    """Number of units, and columns of one unit."""
    return (shape[0], prod(shape[1:])) if len(shape) > 1 else (1, prod(shape))
