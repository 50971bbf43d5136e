"""Norm-growth limiter: a gradient norm may rise by at most a factor per step, and fall freely.

With the norm S that the step before let through, ``d = max(n / (S + 1e-8), ratio) / ratio`` and ``g /= d``. The first
step is free. After a tiny gradient the norm recovers by the factor per step only: a hundredfold rise takes 463 steps at
1.01.

Source: Chen et al. (2024), Fira, algorithm 1, https://arxiv.org/abs/2410.01623; Zhu et al. (2024), APOLLO,
https://arxiv.org/abs/2412.05270, ``apollo.py``. Differs: both limit the *scaled update* of each low-rank tensor, after
their preconditioner; this limits the norm of the whole raw gradient, before any optimizer.

Shape letter: L = lanes.
"""

from __future__ import annotations

from math import inf
from typing import final

import torch
from torch import Tensor

from tuner.clippers.base import Clipper, ClipResult, ClipState, advanced, require_lanes
from tuner.clippers.scaling import scaled
from tuner.norms import l2_norm

#: Times `Clipper.epsilon`, 1e-8 as in both sources: lets a gradient grow again after an exact zero.
_SMALLEST_NORM = 1e-2


@final
class NormGrowthClipper(Clipper):
    """Scale a lane whose L2 norm is more than its ``growth_ratio`` times the norm that its last step let through.

    Example:
        >>> from tuner.lanes import Layout
        >>> clipper = NormGrowthClipper(torch.tensor([1.5]), Layout(("weight",), ((1,),)))
        >>> state = clipper.initial_state(torch.zeros(1, 1))
        >>> for norm in (2.0, 8.0, 8.0):
        ...     grads = torch.tensor([[norm]])
        ...     result = clipper.clip(grads, state, weights=grads, loss=torch.zeros(1))
        ...     state = result.state
        ...     print(result.grads)
        tensor([[2.]])
        tensor([[3.]])
        tensor([[4.5000]])
    """

    def initial_state(self, weights: Tensor) -> ClipState:
        """No step before.

        Args:
            weights: gives the device.

        Returns:
            ``norm`` that the last step let through, (L,); ``inf`` before the first.
        """
        return {"norm": weights.new_full((self.num_lanes,), inf, dtype=torch.float64)}

    def clip(self, grads: Tensor, state: ClipState, *, weights: Tensor, loss: Tensor) -> ClipResult:  # noqa: D102
        del weights, loss
        require_lanes(grads, self)
        norm = l2_norm(grads)
        precise = norm.double()
        limit = self.thresholds.double() * (state["norm"] + _SMALLEST_NORM * self.epsilon)
        acts = precise > limit
        return scaled(
            grads,
            advanced(state, {"norm": torch.minimum(precise, limit)}, norm.isfinite()),
            norm=norm,
            coefficient=(limit / precise).to(norm.dtype),
            acts=acts,
        )
