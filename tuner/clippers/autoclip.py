"""AutoClip: limit the gradient norm to a percentile of the norms seen so far, the current one included.

Source: Seetharaman, Wichern, Pardo and Le Roux (2020), section 2, https://arxiv.org/abs/2007.14469; pseeth/autoclip.
Differs: the history is the last ``window`` norms, not all of them. The default of 4096 is the whole history of any run
up to 4096 steps, and a window beyond. A norm that equals the percentile is left alone (the source multiplies it by
``norm / (norm + 1e-6)``), so that the first step is not counted as clipped. Norms that are not finite never enter.
With a reference norm the percentile is capped at ``kappa_max`` times it, because a diverging run raises its own
percentiles without bound.

Shape letters: L = lanes, W = window.
"""

from __future__ import annotations

from math import inf
from typing import final

import torch
from torch import Tensor

from tuner.clippers.base import Clipper, ClipResult, ClipState, advanced, require_inside, require_lanes
from tuner.clippers.history import overwritten, percentile, pushed, replaced
from tuner.clippers.scaling import scaled
from tuner.lanes import Layout
from tuner.norms import l2_norm


@final
class AutoClipper(Clipper):
    """Scale a lane so that its L2 norm is at most the lane's ``percentile`` (in percent) of its own past norms.

    Args:
        window: norms remembered, >= 1.
        kappa_max: upper limit of the percentile in units of the reference norm, > 0; without one there is no limit.

    Example:
        The median of 1 and 3 is 2.

        >>> clipper = AutoClipper(torch.tensor([50.0]), Layout(("weight",), ((1,),)))
        >>> first, second = torch.tensor([[1.0]]), torch.tensor([[3.0]])
        >>> result = clipper.clip(first, clipper.initial_state(first), weights=first, loss=torch.zeros(1))
        >>> clipper.clip(second, result.state, weights=first, loss=torch.zeros(1)).grads
        tensor([[2.0000]])
    """

    def __init__(
        self,
        thresholds: Tensor,
        layout: Layout,
        *,
        reference_norm: float | None = None,
        window: int = 4096,
        kappa_max: float = 10.0,
    ) -> None:
        super().__init__(thresholds, layout, reference_norm=reference_norm)
        require_inside("window", window, low=1, low_included=True)
        require_inside("kappa_max", kappa_max, low=0.0)
        self._window = window
        self._cap = inf if reference_norm is None else kappa_max * reference_norm
        # An infinite threshold is off by `is_on`; here it must only give an index inside the row.
        self._share = (thresholds.double() / 100).clamp(max=1.0)

    def initial_state(self, weights: Tensor) -> ClipState:
        """Nothing seen.

        Args:
            weights: gives the device.

        Returns:
            ``norms`` in the order of time and ``ordered`` by size, both (L, W), ``inf`` where empty; ``count``, (L,).
        """
        empty = weights.new_full((self.num_lanes, self._window), inf, dtype=torch.float64)
        count = weights.new_zeros(self.num_lanes, dtype=torch.int64)
        return {"norms": empty, "ordered": empty.clone(), "count": count}

    def clip(self, grads: Tensor, state: ClipState, *, weights: Tensor, loss: Tensor) -> ClipResult:  # noqa: D102
        del weights, loss
        require_lanes(grads, self)
        norm = l2_norm(grads)
        precise = norm.double()
        ordered = replaced(state["ordered"], overwritten(state["norms"], state["count"]), precise)
        count = state["count"] + 1
        after = {
            "norms": pushed(state["norms"], state["count"], precise),
            "ordered": ordered,
            "count": count,
        }
        limit = percentile(ordered, count.clamp(max=self._window), self._share).clamp(max=self._cap)
        coefficient = limit / (precise + self.epsilon)
        # Twice the distance that the 1e-6 alone makes: a norm that equals the percentile is not above it.
        acts = (coefficient < 1 - 2 * self.epsilon / precise) & self.is_on
        return scaled(
            grads,
            advanced(state, after, norm.isfinite()),
            norm=norm,
            coefficient=coefficient.to(norm.dtype),
            acts=acts,
        )
