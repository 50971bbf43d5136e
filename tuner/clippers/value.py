"""Clamp every element of the gradient, lane by lane; the direction changes.

Source: PyTorch's ``clip_grad_value_`` (``torch/nn/utils/clip_grad.py``). Differs from it for non-finite lanes:
PyTorch turns an infinite element into the threshold and hides it, we leave the lane as it is.

Shape letters: L = lanes, P = parameters of one lane.
"""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor

from tuner.clippers.base import Clipper, ClipResult, ClipState, require_lanes
from tuner.norms import l2_norm, max_abs


@final
class ValueClipper(Clipper):
    """Clamp each element to ``[-clip_value, clip_value]``, the lane's threshold.

    A lane is clipped if any of its elements is beyond the threshold; its scale is the ratio of the norms.

    Example:
        >>> from tuner.lanes import Layout
        >>> clipper = ValueClipper(torch.tensor([3.0]), Layout(("weight",), ((2,),)))
        >>> grads = torch.tensor([[3.0, -4.0]])
        >>> clipper.clip(grads, {}, weights=grads, loss=torch.zeros(1)).grads
        tensor([[ 3., -3.]])
    """

    is_off_until_exceeded: ClassVar[bool] = True

    def clip(self, grads: Tensor, state: ClipState, *, weights: Tensor, loss: Tensor) -> ClipResult:  # noqa: D102
        del weights, loss
        require_lanes(grads, self)
        norm = l2_norm(grads)
        clip_value = self.thresholds.to(norm)
        finite = norm.isfinite()
        clipped = (max_abs(grads) > clip_value) & finite
        # An infinite bound leaves a non-finite lane as it is: clamping to it changes no bit.
        bound = torch.where(finite, clip_value, torch.inf).to(grads.dtype).unsqueeze(1)
        clamped = grads.clamp(-bound, bound)
        return ClipResult(
            grads=clamped,
            state=state,
            norm=norm,
            scale=torch.where(clipped, l2_norm(clamped) / norm, 1.0),
            clipped=clipped,
            finite=finite,
            skipped=torch.zeros_like(clipped),
        )

    @classmethod
    def is_exceeded(cls, grads: Tensor, norm: Tensor, thresholds: Tensor) -> Tensor:  # noqa: D102
        above = max_abs(grads).unsqueeze(1) > thresholds.to(norm)
        return above & norm.isfinite().unsqueeze(1)
