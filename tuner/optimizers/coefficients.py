"""Numbers per lane that scale whole rows: how a step is masked without another pass over the matrix.

A row that takes no step is multiplied by exactly 1 and added a zero. Adding a zero keeps every number but
``-0.0 + 0.0``, which is ``0.0``. Hence the sums below keep two habits: an accumulator starts at ``0.0`` (a sum
that started there never becomes ``-0.0``), and a step is subtracted from the weights, because ``-0.0`` in a
weight means that its steps so far were positive zeros, and subtracting one of those keeps the sign.

Shape letters: L = lanes, P = trainable parameters of one lane.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Dividing by a smaller rate could overflow float32; such a rate moves nothing.
SMALLEST_RATE = 1e-30


def mask_of(applied: Tensor, like: Tensor) -> Tensor:
    """1 for lanes that take the step, 0 for the others.

    Args:
        applied: shape (L,), bool.
        like: gives the type.

    Returns:
        Shape (L, 1).
    """
    return applied.to(like.dtype).unsqueeze(1)


def rate_of(lr: Tensor, mask: Tensor) -> Tensor:
    """The learning rate of lanes that take the step, 0 for the others.

    Args:
        lr: shape (L,), finite.
        mask: from `mask_of`.

    Returns:
        Shape (L, 1), the type of ``mask``.
    """
    return lr.to(mask.dtype).unsqueeze(1) * mask


def shrinkage(mask: Tensor, amount: float) -> Tensor:
    """What a row is multiplied by to lose a share of itself.

    Args:
        mask: shape (L, 1): of `mask_of` to lose ``amount``, of `rate_of` to lose ``amount`` times the rate.
        amount: the share, for example 0.1 to keep nine tenths.

    Returns:
        ``1 - amount * mask``, shape (L, 1): exactly 1 for lanes that take no step.

    Example:
        >>> shrinkage(torch.tensor([[1.0], [0.0]]), 0.25)
        tensor([[0.7500],
                [1.0000]])
    """
    return torch.rsub(mask, 1, alpha=amount)


def accumulate_(buffer: Tensor, grads: Tensor, mask: Tensor, momentum: float) -> Tensor:
    """Heavy-ball momentum in one pass: ``buffer = momentum * buffer + grads``.

    Args:
        buffer: shape (L, ...), changed in place.
        grads: the shape of ``buffer``, zeros for lanes that take no step.
        mask: from `mask_of`, with as many dimensions as ``buffer``.
        momentum: in [0, 1).

    Returns:
        ``buffer``.
    """
    return torch.addcmul(grads, buffer, shrinkage(mask, 1 - momentum), out=buffer)


def average_(average: Tensor, grads: Tensor, mask: Tensor, decay: float) -> Tensor:
    """Moving average of gradients in one pass: ``average = decay * average + (1 - decay) * grads``.

    Args:
        average: shape (L, ...), changed in place.
        grads: the shape of ``average``, zeros for lanes that take no step.
        mask: from `mask_of`, with as many dimensions as ``average``.
        decay: in [0, 1).

    Returns:
        ``average``.
    """
    if decay == 0:
        # `lerp_` by 1 would copy a -0.0.
        return accumulate_(average, grads, mask, 0.0)
    return average.lerp_(grads, mask * (1 - decay))


def square_average_(average: Tensor, grads: Tensor, mask: Tensor, decay: float) -> Tensor:
    """Moving average of squared gradients, in two passes.

    Args:
        average: shape (L, P), >= 0, changed in place.
        grads: shape (L, P), zeros for lanes that take no step.
        mask: from `mask_of`.
        decay: in [0, 1).

    Returns:
        ``average``.
    """
    return average.mul_(shrinkage(mask, 1 - decay)).addcmul_(grads, grads, value=1 - decay)


def divide_by_rate_(root: Tensor, rate: Tensor, eps: float, scale: Tensor | None = None) -> Tensor:
    """The denominator ``(scale * root + eps) / rate`` in one pass, so that a step is one more: ``addcdiv_``.

    A lane whose rate is 0 gets an infinite denominator, whatever its root.

    Args:
        root: shape (L, P), >= 0, changed in place.
        rate: shape (L,), float64, 0 (or NaN) for lanes that take no step.
        eps: added to the root, >= 0.
        scale: shape (L,), float64; 1 by default.

    Returns:
        ``root``.

    Example:
        >>> divide_by_rate_(torch.tensor([[3.0], [0.0]]), torch.tensor([0.5, 0.0]), eps=1.0)
        tensor([[8.],
                [inf]])
    """
    # Not `rate <= SMALLEST_RATE`, which is false for NaN.
    is_still = (rate > SMALLEST_RATE).logical_not_()
    inverse = rate.reciprocal().to(root.dtype)
    offset = (inverse * eps).masked_fill_(is_still, torch.inf)
    slope = (inverse if scale is None else inverse.mul_(scale)).masked_fill_(is_still, 1.0)
    return torch.addcmul(offset.unsqueeze(1), root, slope.unsqueeze(1), out=root)
