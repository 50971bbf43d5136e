"""Clip the whole gradient by its norm, lane by lane; the direction is kept.

Both clippers do what ``torch.nn.utils.clip_grad_norm_`` does to a plain module, with the same 1e-6 in the
denominator: ``grad *= min(1, max_norm / (norm + 1e-6))``. A lane is clipped exactly if ``norm + 1e-6 > max_norm``.

Source: Pascanu, Mikolov and Bengio (2013), algorithm 1, https://arxiv.org/abs/1211.5063; PyTorch's
``torch/nn/utils/clip_grad.py``. Differs from it for non-finite norms: PyTorch multiplies by 0 or NaN, we select
the unscaled gradient, because scaling would erase it before the training loop can see it.

Shape letters: L = lanes, ... = one parameter's own shape.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from tuner.clippers.base import (
    EPSILON,
    Clipper,
    ClipResult,
    ClipState,
    Gradients,
    l2_norm,
    max_abs,
    per_lane,
    require_lanes,
)


@final
class GlobalNormClipper(Clipper):
    """Scale a lane so that its L2 norm is at most its threshold ``max_norm``.

    Example:
        Lane 0 has norm 5 and is halved; lane 1 has norm 1 and is left alone.

        >>> clipper = GlobalNormClipper(torch.tensor([2.5, 2.5]))
        >>> grads = {"weight": torch.tensor([[3.0, 4.0], [0.6, 0.8]])}
        >>> result = clipper.clip(grads, clipper.initial_state())
        >>> result.grads["weight"]
        tensor([[1.5000, 2.0000],
                [0.6000, 0.8000]])
        >>> result.clipped
        tensor([ True, False])
    """

    def clip(self, grads: Gradients, state: ClipState) -> ClipResult:  # noqa: D102
        require_lanes(grads, self.num_lanes)
        norm = l2_norm(grads)
        return _scaled(grads, state, norm=norm, compared=norm, max_norm=self.thresholds)


@final
class GlobalNormInfClipper(Clipper):
    """Scale a lane so that its largest element is at most its threshold ``max_norm``.

    This is ``clip_grad_norm_`` with ``norm_type=inf``. It is not value clipping: the whole gradient is scaled.

    Example:
        >>> clipper = GlobalNormInfClipper(torch.tensor([2.0]))
        >>> clipper.clip({"weight": torch.tensor([[3.0, 4.0]])}, {}).grads["weight"]
        tensor([[1.5000, 2.0000]])
    """

    def clip(self, grads: Gradients, state: ClipState) -> ClipResult:  # noqa: D102
        require_lanes(grads, self.num_lanes)
        return _scaled(grads, state, norm=l2_norm(grads), compared=max_abs(grads), max_norm=self.thresholds)


def _scaled(
    grads: Gradients, state: ClipState, *, norm: Tensor, compared: Tensor, max_norm: Tensor
) -> ClipResult:
    """Multiply each lane by ``min(1, max_norm / (compared + 1e-6))`` if its norm is finite."""
    max_norm = max_norm.to(compared)
    finite = norm.isfinite()
    clipped = (compared + EPSILON > max_norm) & finite
    # Select, do not clamp: with a NaN or infinite norm the ratio is NaN or 0.
    scale = torch.where(clipped, max_norm / (compared + EPSILON), 1.0)
    return ClipResult(
        grads={name: grad * per_lane(scale, grad).to(grad.dtype) for name, grad in grads.items()},
        state=state,
        norm=norm,
        scale=scale,
        clipped=clipped,
        finite=finite,
    )
