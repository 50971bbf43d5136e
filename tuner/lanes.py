"""The lane matrix: every lane's trainable parameters as one row of a tensor.

A `Layout` says which columns belong to which parameter. Norms, clippers and optimizers work on rows and never
see a module; a module sees views of the matrix in its own shapes. A lane's parameters are contiguous, so that
one lane is an ordinary vector, and compaction, forking and checkpoints are a selection of rows.

Shape letters: L = lanes, P = trainable parameters of one lane, T = parameter tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from math import prod

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Layout:
    """Where each parameter tensor lies in a row.

    Attributes:
        names: parameter names, in the module's order.
        shapes: their shapes, without the lane axis.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, parameters: Iterable[tuple[str, Tensor]]) -> Layout:
        """The layout of some named tensors.

        Args:
            parameters: names and tensors, for example those of `trainable`.

        Returns:
            One segment per tensor, in the given order.

        Example:
            >>> Layout.of(torch.nn.Linear(3, 2).named_parameters()).num_parameters
            8
        """
        named = tuple(parameters)
        return cls(tuple(name for name, _ in named), tuple(tuple(each.shape) for _, each in named))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Elements of each tensor, length T."""
        return tuple(prod(shape) for shape in self.shapes)

    @cached_property
    def segments(self) -> tuple[tuple[int, int], ...]:
        """First column and one past the last of each tensor."""
        return tuple(pairwise(accumulate(self.sizes, initial=0)))

    @property
    def num_tensors(self) -> int:
        """T."""
        return len(self.names)

    @property
    def num_parameters(self) -> int:
        """P, the width of the matrix."""
        return sum(self.sizes)

    def views(self, matrix: Tensor, lanes: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Each parameter of every lane, without copying.

        Args:
            matrix: shape (L, P).
            lanes: the shape that the lane axis is split into, for example (seeds, trials); (L,) by default.

        Returns:
            By name, views of shape (L, ...) or (*lanes, ...).
        """
        lead = tuple(lanes) if lanes is not None else (len(matrix),)
        return {
            name: matrix[:, start:end].view(*lead, *shape)
            for name, shape, (start, end) in zip(self.names, self.shapes, self.segments, strict=True)
        }

    def matrix(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Undo `views`: one row per lane, copied.

        Args:
            tensors: one per name, each of shape (L, ...).

        Returns:
            Shape (L, P).

        Raises:
            ValueError: if a name is missing, or a shape is not (L, ...) of the layout.

        Example:
            >>> layout = Layout(("weight", "bias"), ((2, 1), (2,)))
            >>> layout.matrix({"weight": torch.ones(3, 2, 1), "bias": torch.zeros(3, 2)}).shape
            torch.Size([3, 4])
        """
        columns = []
        for name, shape in zip(self.names, self.shapes, strict=True):
            if name not in tensors:
                raise ValueError(f"there is no tensor for {name!r}; the layout has {', '.join(self.names)}")
            tensor = tensors[name]
            if tensor.shape[1:] != shape:
                raise ValueError(f"{name!r} has shape {tuple(tensor.shape)}, but a lane of it is {shape}")
            columns.append(tensor.reshape(len(tensor), -1))
        return torch.cat(columns, dim=1)

    def expand(self, per_tensor: Tensor) -> Tensor:
        """Repeat one number per tensor over that tensor's columns.

        Args:
            per_tensor: shape (L, T).

        Returns:
            Shape (L, P).

        Example:
            >>> Layout(("a", "b"), ((2,), (1,))).expand(torch.tensor([[5.0, 7.0]]))
            tensor([[5., 5., 7.]])
        """
        parts = [
            column.unsqueeze(1).expand(-1, size)
            for column, size in zip(per_tensor.unbind(dim=1), self.sizes, strict=True)
        ]
        return torch.cat(parts, dim=1)


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that become a lane's row: those that require a gradient; a tied one appears once.

    Args:
        module: any module.

    Returns:
        By name, in the module's order.
    """
    return {name: each for name, each in module.named_parameters() if each.requires_grad}


def row_of(parameters: Mapping[str, Tensor]) -> Tensor:
    """One lane's row, copied.

    Args:
        parameters: tensors in their own shapes, all of one type.

    Returns:
        Shape (P,), detached.
    """
    return torch.cat([each.detach().reshape(-1) for each in parameters.values()])


def per_lane(values: Tensor, like: Tensor) -> Tensor:
    """Reshape (L,) to (L, 1, ..., 1), so that it broadcasts against a tensor with the lane axis in front.

    Args:
        values: shape (L,).
        like: shape (L, ...).

    Returns:
        A view of ``values`` with as many dimensions as ``like``.
    """
    return values.reshape(-1, *[1] * (like.ndim - 1))
