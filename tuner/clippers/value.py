"""Clamp every element of the gradient, lane by lane; the direction changes.

Source: PyTorch's ``clip_grad_value_`` (``torch/nn/utils/clip_grad.py``). Differs from it for non-finite lanes:
PyTorch turns an infinite element into the threshold and hides it, we leave the lane as it is.

Shape letters: L = lanes, ... = one parameter's own shape.
"""

from __future__ import annotations

from typing import final

import torch

from tuner.clippers.base import (
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
class ValueClipper(Clipper):
    """Clamp each element to ``[-clip_value, clip_value]``, the lane's threshold.

    A lane is clipped if any of its elements is beyond the threshold; its scale is the ratio of the norms.

    Example:
        >>> clipper = ValueClipper(torch.tensor([3.0]))
        >>> clipper.clip({"weight": torch.tensor([[3.0, -4.0]])}, clipper.initial_state()).grads["weight"]
        tensor([[ 3., -3.]])
    """

    def clip(self, grads: Gradients, state: ClipState) -> ClipResult:  # noqa: D102
        require_lanes(grads, self.num_lanes)
        norm = l2_norm(grads)
        clip_value = self.thresholds.to(norm)
        finite = norm.isfinite()
        clipped = (max_abs(grads) > clip_value) & finite
        # An infinite bound leaves a non-finite lane as it is: clamping to it changes no bit.
        bound = torch.where(finite, clip_value, torch.inf)
        clamped = {
            name: grad.clamp(-per_lane(bound, grad).to(grad.dtype), per_lane(bound, grad).to(grad.dtype))
            for name, grad in grads.items()
        }
        scale = torch.where(clipped, l2_norm(clamped) / norm, 1.0)
        return ClipResult(grads=clamped, state=state, norm=norm, scale=scale, clipped=clipped, finite=finite)
