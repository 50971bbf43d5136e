"""No clipping: the baseline of every study. It measures the norm and changes nothing."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from tuner.clippers.base import Clipper, ClipResult, ClipState, require_lanes
from tuner.norms import l2_norm


@final
class NoClipper(Clipper):
    """Leave every gradient as it is; ``thresholds`` is only the number of lanes.

    Example:
        >>> from tuner.lanes import Layout
        >>> clipper = NoClipper(torch.tensor([torch.inf]), Layout(("weight",), ((2,),)))
        >>> grads = torch.tensor([[3.0, 4.0]])
        >>> clipper.clip(grads, {}, weights=grads, loss=torch.tensor([1.0])).norm
        tensor([5.])
    """

    def clip(self, grads: Tensor, state: ClipState, *, weights: Tensor, loss: Tensor) -> ClipResult:  # noqa: D102
        del weights, loss
        require_lanes(grads, self)
        norm = l2_norm(grads)
        nothing = torch.zeros_like(norm, dtype=torch.bool)
        return ClipResult(
            grads=grads,
            state=state,
            norm=norm,
            scale=torch.ones_like(norm),
            clipped=nothing,
            finite=norm.isfinite(),
            skipped=nothing,
        )
