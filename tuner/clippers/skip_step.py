"""Skip a step whose loss or gradient norm is an outlier among the last ones: nothing moves, momentum included.

A step is skipped if its loss or its norm is above ``mean + sigmas * deviation`` of the last ``window`` values, the
current one left out, with the unbiased deviation. Nothing is skipped before there are ``window / 2`` values with the
current one. A skipped step's values enter the window like any other's.

Source: OLMo-core ``optim/skip_step_optimizer.py`` (window 128, 6 sigmas). Differs: a loss or a norm that is not finite
never enters the window; there a single NaN makes every comparison false until it has left.

Shape letters: L = lanes, W = window.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from tuner.clippers.base import Clipper, ClipResult, ClipState, advanced, require_inside, require_lanes
from tuner.clippers.history import pushed
from tuner.lanes import Layout
from tuner.norms import l2_norm


@final
class SkipStepClipper(Clipper):
    """Skip a lane's step if its loss or its L2 norm is more than its ``num_sigmas`` deviations above the mean.

    A skipped lane keeps its gradient as it was; ``ClipResult.skipped`` tells the training loop to leave the weights
    and the optimizer's state alone. It counts as clipped, with scale 0.

    Args:
        window: past values compared with, >= 4.

    Example:
        >>> clipper = SkipStepClipper(torch.tensor([3.0]), Layout(("weight",), ((1,),)), window=4)
        >>> state = clipper.initial_state(torch.zeros(1, 1))
        >>> for norm in (1.0, 1.1, 0.9, 5.0):
        ...     grads = torch.tensor([[norm]])
        ...     result = clipper.clip(grads, state, weights=grads, loss=torch.zeros(1))
        ...     state = result.state
        >>> result.skipped, result.grads
        (tensor([True]), tensor([[5.]]))
    """

    def __init__(
        self, thresholds: Tensor, layout: Layout, *, reference_norm: float | None = None, window: int = 128
    ) -> None:
        super().__init__(thresholds, layout, reference_norm=reference_norm)
        require_inside("window", window, low=4, low_included=True)
        self._window = window
        self._num_sigmas = thresholds.double()

    def initial_state(self, weights: Tensor) -> ClipState:
        """Nothing seen.

        Args:
            weights: gives the device.

        Returns:
            ``losses`` and ``norms``, both (L, W), zero where empty; ``count`` of steps, (L,).
        """
        empty = weights.new_zeros((self.num_lanes, self._window), dtype=torch.float64)
        count = weights.new_zeros(self.num_lanes, dtype=torch.int64)
        return {"losses": empty, "norms": empty.clone(), "count": count}

    def clip(self, grads: Tensor, state: ClipState, *, weights: Tensor, loss: Tensor) -> ClipResult:  # noqa: D102
        del weights
        require_lanes(grads, self)
        norm = l2_norm(grads)
        finite = norm.isfinite()
        count = state["count"]
        is_outlier = self._is_outlier(norm, state["norms"], count) | self._is_outlier(
            loss, state["losses"], count
        )
        skipped = is_outlier & (count + 1 >= self._window // 2) & finite
        after = {
            "losses": pushed(state["losses"], count, loss),
            "norms": pushed(state["norms"], count, norm),
            "count": count + 1,
        }
        return ClipResult(
            grads=grads,
            state=advanced(state, after, finite & loss.isfinite()),
            norm=norm,
            scale=torch.where(skipped, 0.0, 1.0).to(norm.dtype),
            clipped=skipped,
            finite=finite,
            skipped=skipped,
        )

    def _is_outlier(self, value: Tensor, past: Tensor, count: Tensor) -> Tensor:
        """Whether a value, shape (L,), is too far above the filled part of its lane's row."""
        is_filled = torch.arange(self._window, device=past.device) < count.unsqueeze(1)
        num = count.clamp(max=self._window)
        mean = past.sum(dim=1) / num
        squares = torch.where(is_filled, (past - mean.unsqueeze(1)).square(), 0.0).sum(dim=1)
        # Infinitely many deviations are infinite, or NaN: no value is above either.
        return value.double() > mean + self._num_sigmas * (squares / (num - 1)).sqrt()
