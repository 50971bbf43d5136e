"""The two ways in which a method acts: whole lanes times a coefficient, or groups of columns times one each.

Lanes that are left alone are selected, never multiplied by a computed 1, and neither are lanes that are not finite:
with a norm that is NaN or infinite the coefficient is NaN or 0 and would erase the gradient before the training loop
can see it.

Shape letters: L = lanes, P = trainable parameters of one lane, G = groups of columns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tuner.clippers.base import ClipResult, ClipState
from tuner.norms import l2_norm


def scaled(grads: Tensor, state: ClipState, *, norm: Tensor, coefficient: Tensor, acts: Tensor) -> ClipResult:
    """The result of multiplying whole lanes by one coefficient each.

    Args:
        grads: shape (L, P).
        state: the state after the step.
        norm: L2 norm, shape (L,).
        coefficient: factor in (0, 1], shape (L,); used where ``acts`` holds.
        acts: lanes to scale, shape (L,), bool; a lane whose norm is not finite is left alone all the same.

    Returns:
        The result; nothing is skipped.
    """
    finite = norm.isfinite()
    clipped = acts & finite
    scale = torch.where(clipped, coefficient, 1.0)
    return ClipResult(
        grads=grads * scale.to(grads.dtype).unsqueeze(1),
        state=state,
        norm=norm,
        scale=scale,
        clipped=clipped,
        finite=finite,
        skipped=torch.zeros_like(clipped),
    )


def scaled_by_group(
    grads: Tensor,
    state: ClipState,
    *,
    norms: Tensor,
    coefficients: Tensor,
    acts: Tensor,
    expand: Callable[[Tensor], Tensor],
) -> ClipResult:
    """The result of multiplying groups of columns, for example whole parameter tensors, by one coefficient each.

    Args:
        grads: shape (L, P).
        state: the state after the step.
        norms: L2 norm of each group, shape (L, G); together the groups hold every column once.
        coefficients: factor in [0, 1] of each group, shape (L, G); used where ``acts`` holds.
        acts: groups to scale, shape (L, G), bool; a lane whose norm is not finite is left alone all the same.
        expand: repeats one number per group over the group's columns, from (L, G) to (L, P).

    Returns:
        The result; a lane is clipped if one of its groups is, and nothing is skipped.
    """
    # Not from the groups' norms: every method reports the same number for the same gradient, to the bit.
    norm = l2_norm(grads)
    finite = norm.isfinite()
    acts = acts & finite.unsqueeze(1)
    factors = torch.where(acts, coefficients, 1.0).to(grads.dtype)
    clipped = acts.any(dim=1)
    after = l2_norm(norms * factors)
    return ClipResult(
        grads=grads * expand(factors),
        state=state,
        norm=norm,
        # Rounding may put the quotient of two nearly equal norms above 1.
        scale=torch.where(clipped, (after / norm).clamp(max=1.0), 1.0),
        clipped=clipped,
        finite=finite,
        skipped=torch.zeros_like(clipped),
    )
