"""Custom operations whose tensors share a leading group axis, and how vmap folds into it.

Every tensor argument and result of such an operation starts with the axis G: as many independent problems as
there are lanes. One level of vmap is one more factor of G, so nested vmap is the same rule applied twice and
the operation itself never loops over lanes.

Shape letters: G = groups, V = size of the vmapped axis, N = rows of a matrix product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef


def register_group_axis(operation: CustomOpDef) -> None:
    """Give an operation its vmap rule: fold the vmapped axis into G, call, unfold.

    An argument that is not batched is expanded first; the copy that folding then costs is the price of one
    kernel for all lanes.

    Args:
        operation: takes tensors (G, ...), None and plain values; returns one tensor (G, ...) or a tuple.
    """

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        size = info.batch_size
        result = operation(*(_fold(arg, dim, size) for arg, dim in zip(args, in_dims, strict=True)))
        if isinstance(result, Tensor):
            return torch.unflatten(result, 0, (size, -1)), 0
        return tuple(torch.unflatten(each, 0, (size, -1)) for each in result), (0,) * len(result)

    operation.register_vmap(rule)


def _fold(value: Any, dim: int | None, size: int) -> Any:
    """(V, G, ...) with V anywhere, or (G, ...) without V, to (V * G, ...); other values pass."""
    if not isinstance(value, Tensor):
        return value
    leading = value.movedim(dim, 0) if dim is not None else value.expand(size, *value.shape)
    return leading.flatten(0, 1)


def project(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply one linear map per group to every step of a sequence, in one product.

    Args:
        inputs: (G, T, B, I).
        weight: (G, O, I).
        bias: (G, O).

    Returns:
        (G, T, B, O), contiguous.
    """
    rows = torch.baddbmm(bias.unsqueeze(1), inputs.flatten(1, 2), weight.mT)
    return torch.unflatten(rows, 1, inputs.shape[1:3])


def project_backward(grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient of `project` with respect to its inputs.

    Args:
        grad: (G, T, B, O).
        weight: (G, O, I).

    Returns:
        (G, T, B, I).
    """
    return torch.unflatten(torch.bmm(grad.flatten(1, 2), weight), 1, grad.shape[1:3])


def weight_gradient(grad: Tensor, inputs: Tensor) -> Tensor:
    """The gradient of `project` with respect to its weight, summed over all steps in one product.

    Args:
        grad: (G, T, B, O).
        inputs: (G, T, B, I).

    Returns:
        (G, O, I).
    """
    return torch.bmm(grad.flatten(1, 2).mT, inputs.flatten(1, 2))


def recurrent_weight_gradient(grad: Tensor, hidden: Tensor, initial: Tensor) -> Tensor:
    """The gradient with respect to a weight that multiplied the state *before* each step.

    Args:
        grad: (G, T, B, O), with respect to the products.
        hidden: (G, T, B, H), the state after each step.
        initial: (G, B, H), the state before the first.

    Returns:
        (G, O, H).
    """
    first = torch.bmm(grad[:, 0].mT, initial)
    # Two products instead of one over a shifted copy of all states.
    return first.baddbmm(grad[:, 1:].flatten(1, 2).mT, hidden[:, :-1].flatten(1, 2))
