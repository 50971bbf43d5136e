"""No clipping: the baseline of every study. It measures the norm and changes nothing."""

from __future__ import annotations

from typing import final

import torch

from tuner.clippers.base import Clipper, ClipResult, ClipState, Gradients, l2_norm, require_lanes


@final
class NoClipper(Clipper):
    """Leave every gradient as it is; ``thresholds`` is only the number of lanes.

    Example:
        >>> clipper = NoClipper(torch.full((1,), float("inf")))
        >>> clipper.clip({"weight": torch.tensor([[3.0, 4.0]])}, clipper.initial_state()).norm
        tensor([5.])
    """

    def clip(self, grads: Gradients, state: ClipState) -> ClipResult:  # noqa: D102
        require_lanes(grads, self.num_lanes)
        norm = l2_norm(grads)
        return ClipResult(
            grads=dict(grads),
            state=state,
            norm=norm,
            scale=torch.ones_like(norm),
            clipped=torch.zeros_like(norm, dtype=torch.bool),
            finite=norm.isfinite(),
        )
