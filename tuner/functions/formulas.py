"""Functions that torch computes in one kernel without a batching rule, written as formulas.

Under vmap torch would run such a kernel lane by lane. The values agree with torch's up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tuner.functions.rebinding import rebind

_REDUCTIONS: dict[int, Callable[[Tensor], Tensor]] = {0: torch.clone, 1: torch.mean, 2: torch.sum}


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """`torch._weight_norm` for lanes: a weight from its direction and its magnitudes.

    Args:
        v: direction, any shape.
        g: magnitudes, broadcasts to `v`.
        dim: the axis that has magnitudes of its own; -1 for one magnitude in all, as in torch.

    Returns:
        Weight with the shape of `v`.

    Source:
        Salimans and Kingma, Weight Normalization, 2016, https://arxiv.org/abs/1602.07868
    """
    others = [axis for axis in range(v.ndim) if dim == -1 or axis != dim]
    return v * g.div(torch.linalg.vector_norm(v, dim=others, keepdim=dim != -1))


def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.bilinear` for lanes.

    Args:
        input1: (..., I).
        input2: (..., J).
        weight: (O, I, J).
        bias: (O,).

    Returns:
        (..., O).
    """
    product = torch.einsum("...i,oij,...j->...o", input1, weight, input2)
    return product if bias is None else product + bias


def kl_div(input: Tensor, target: Tensor, reduction: int = 1, *, log_target: bool = False) -> Tensor:
    """`torch.kl_div` for lanes.

    Args:
        input: log probabilities.
        target: probabilities, or their logarithms with `log_target`.
        reduction: torch's number: 0 none, 1 mean, 2 sum.
        log_target: what `target` holds.

    Returns:
        Divergence, per element or reduced.
    """
    losses = target.exp() * (target - input) if log_target else torch.xlogy(target, target) - target * input
    return _REDUCTIONS[reduction](losses)


def mse_loss(input: Tensor, target: Tensor, reduction: int = 1) -> Tensor:
    """The kernel behind `torch.nn.functional.mse_loss` for lanes.

    torch has a batching rule for it, and for the two below; under a second vmap it gets a target that only the outer
    one batches into the wrong shape.

    Args:
        input: any shape.
        target: broadcasts to ``input``.
        reduction: torch's number: 0 none, 1 mean, 2 sum.

    Returns:
        Squared errors, per element or reduced.
    """
    return _REDUCTIONS[reduction]((input - target).square())


def huber_loss(input: Tensor, target: Tensor, reduction: int = 1, delta: float = 1.0) -> Tensor:
    """The kernel behind `torch.nn.functional.huber_loss` for lanes.

    Args:
        input: any shape.
        target: broadcasts to ``input``.
        reduction: torch's number: 0 none, 1 mean, 2 sum.
        delta: error at which the parabola becomes a line, > 0.

    Returns:
        Losses, per element or reduced.
    """
    error = (input - target).abs()
    losses = torch.where(error <= delta, 0.5 * error.square(), delta * (error - 0.5 * delta))
    return _REDUCTIONS[reduction](losses)


def smooth_l1_loss(input: Tensor, target: Tensor, reduction: int = 1, beta: float = 1.0) -> Tensor:
    """The kernel behind `torch.nn.functional.smooth_l1_loss` for lanes.

    Args:
        input: any shape.
        target: broadcasts to ``input``.
        reduction: torch's number: 0 none, 1 mean, 2 sum.
        beta: error at which the parabola becomes a line, > 0.

    Returns:
        Losses, per element or reduced.
    """
    error = (input - target).abs()
    losses = torch.where(error < beta, 0.5 * error.square() / beta, error - 0.5 * beta)
    return _REDUCTIONS[reduction](losses)


def _with_kernels(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A loss function of torch that calls the kernels above in place of torch's."""
    kernels = SimpleNamespace(
        mse_loss=mse_loss,
        huber_loss=huber_loss,
        smooth_l1_loss=smooth_l1_loss,
        l1_loss=torch._C._nn.l1_loss,
    )
    names = ("broadcast_tensors", "pow", "sum")
    others = {name: getattr(torch, name) for name in names}
    return rebind(function, torch=SimpleNamespace(_C=SimpleNamespace(_nn=kernels), **others))


REPLACEMENTS: dict[Any, Any] = {
    functional.mse_loss: _with_kernels(functional.mse_loss),
    functional.huber_loss: _with_kernels(functional.huber_loss),
    functional.smooth_l1_loss: _with_kernels(functional.smooth_l1_loss),
    torch._weight_norm: weight_norm,
    torch.bilinear: bilinear,
    torch.kl_div: kl_div,
    functional.kl_div: rebind(functional.kl_div, torch=SimpleNamespace(kl_div=kl_div)),
    # Torch looks at the values first; lanes cannot, and a negative variance gives NaN in its own lane.
    functional.gaussian_nll_loss: rebind(
        functional.gaussian_nll_loss,
        torch=SimpleNamespace(
            any=lambda _: False,
            unsqueeze=torch.unsqueeze,
            no_grad=torch.no_grad,
            log=torch.log,
            ones_like=torch.ones_like,
        ),
    ),
}
"""What replaces what; see `tuner.functions.substitution`."""
