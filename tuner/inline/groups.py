"""Norms of gradients where they lie: of all of them, of each tensor, of each output unit; and scaling by them.

Shape letters: G = groups of elements that are scaled together, U = output units of a tensor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import inf
from typing import final

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from tuner.clippers.base import ClipResult
from tuner.lanes import Layout


class Groups(ABC):
    """Which elements of the gradients a method scales together.

    A parameter without a gradient counts as one whose gradient is zero.
    """

    @abstractmethod
    def layout(self, parameters: Sequence[Tensor]) -> Layout:
        """Of a row with one number per group, for the clipper that is to see it."""

    @abstractmethod
    def norms(self, parameters: Sequence[Tensor]) -> Tensor:
        """The L2 norm of each group's gradient, shape (1, G)."""

    def weight_norms(self, parameters: Sequence[Tensor], row: Tensor) -> Tensor:
        """The same of the parameters, shape (1, G); the row of gradient norms where no method looks at them."""
        del parameters
        return row

    @abstractmethod
    def scale(self, parameters: Sequence[Tensor], row: Tensor, result: ClipResult) -> None:
        """Do to each group's gradient, in place, what was done to its norm.

        Args:
            parameters: whose gradients.
            row: from `norms`.
            result: of the clipper that saw the row.
        """


@final
class WholeGroup(Groups):
    """All gradients together."""

    def layout(self, parameters: Sequence[Tensor]) -> Layout:  # noqa: D102
        del parameters
        return Layout(("norm",), ((1,),))

    def norms(self, parameters: Sequence[Tensor]) -> Tensor:  # noqa: D102
        return total_norm(grads_of(parameters), parameters).reshape(1, 1)

    def scale(self, parameters: Sequence[Tensor], row: Tensor, result: ClipResult) -> None:  # noqa: D102
        del row
        if grads := grads_of(parameters):
            torch._foreach_mul_(grads, result.scale[0])


@final
class TensorGroups(Groups):
    """Each parameter tensor by itself."""

    def layout(self, parameters: Sequence[Tensor]) -> Layout:  # noqa: D102
        return Layout(_names(parameters), ((1,),) * len(parameters))

    def norms(self, parameters: Sequence[Tensor]) -> Tensor:  # noqa: D102
        grads, nothing = grads_of(parameters), total_norm([], parameters)
        norms = iter(torch._foreach_norm(grads) if grads else ())
        return torch.stack([nothing if each.grad is None else next(norms) for each in parameters])[None]

    def scale(self, parameters: Sequence[Tensor], row: Tensor, result: ClipResult) -> None:  # noqa: D102
        by_tensor = zip(parameters, _factors(row, result).unbind(), strict=True)
        factors = [factor for each, factor in by_tensor if each.grad is not None]
        if factors:
            torch._foreach_mul_(grads_of(parameters), factors)


@final
class UnitGroups(Groups):
    """Each output unit by itself: one index of a tensor's first axis, a whole tensor with at most one axis."""

    def layout(self, parameters: Sequence[Tensor]) -> Layout:  # noqa: D102
        return Layout(_names(parameters), tuple((_num_units(each), 1) for each in parameters))

    def norms(self, parameters: Sequence[Tensor]) -> Tensor:  # noqa: D102
        units = [
            each.new_zeros(_num_units(each)) if each.grad is None else _unit_norms(each.grad)
            for each in parameters
        ]
        return torch.cat(units)[None]

    def weight_norms(self, parameters: Sequence[Tensor], row: Tensor) -> Tensor:  # noqa: D102
        del row
        return torch.cat([_unit_norms(each) for each in parameters])[None]

    def scale(self, parameters: Sequence[Tensor], row: Tensor, result: ClipResult) -> None:  # noqa: D102
        by_tensor = torch.split(_factors(row, result), [_num_units(each) for each in parameters])
        for each, factors in zip(parameters, by_tensor, strict=True):
            if (grad := each.grad) is not None:
                shape = (len(factors), *[1] * (grad.ndim - 1)) if grad.ndim > 1 else ()
                grad.mul_(factors.to(grad.dtype).reshape(shape))


def _names(parameters: Sequence[Tensor]) -> tuple[str, ...]:
    return tuple(map(str, range(len(parameters))))


def _factors(row: Tensor, result: ClipResult) -> Tensor:
    """What each group was multiplied by, shape (G,); exactly 1 where it was left alone."""
    return torch.where((row > 0) & (row < inf), result.grads / row, 1.0)[0]


def _num_units(tensor: Tensor) -> int:
    return len(tensor) if tensor.ndim > 1 else 1


def _unit_norms(tensor: Tensor) -> Tensor:
    """Shape (U,)."""
    # Not reshape(units, -1), which can't tell the second axis of a tensor without units.
    units = tensor.flatten(1) if tensor.ndim > 1 else tensor.reshape(1, -1)
    norms: Tensor = torch.linalg.vector_norm(units, dim=1)
    return norms


def grads_of(parameters: Sequence[Tensor]) -> list[Tensor]:
    """The gradients that are there, as ``clip_grad_norm_`` takes them."""
    return [grad for each in parameters if (grad := each.grad) is not None]


def total_norm(grads: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """The L2 norm of all gradients together, 0-dim.

    Args:
        grads: from `grads_of`; may be empty.
        parameters: tell the device if there is no gradient.

    Returns:
        The norm by PyTorch's own function, on the first gradient's device; 0 without any.
    """
    if not grads:
        return torch.zeros((), device=parameters[0].device if parameters else None)
    norm: Tensor = get_total_norm(grads)
    return norm


def largest_element(grads: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """The largest absolute element of all gradients, 0-dim.

    Args:
        grads: from `grads_of`; may be empty.
        parameters: tell the device if there is no gradient.

    Returns:
        On the first gradient's device; NaN if an element is, 0 without any element.
    """
    filled = [each for each in grads if each.numel()]
    if not filled:
        return total_norm([], parameters)
    if not filled[0].is_cpu:
        return get_total_norm(filled, inf)
    # PyTorch's maximum norm takes twelve times as long on the CPU.
    ends = torch.stack([end for each in filled for end in torch.aminmax(each)])
    return ends.abs().max()
