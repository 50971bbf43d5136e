"""Online quantile tracker: a global-norm threshold that moves until the wanted share of steps is left unclipped.

The threshold C starts at ``c_start``; after every step ``C *= exp(-eta * (b - share))`` with b = 1 if the step was left
alone, else 0. At rest the share of unclipped steps is ``share``: 0.5 tracks the median norm.

Source: Andrew, Thakkar, McMahan and Ramaswamy (2021), section 2, https://arxiv.org/abs/1905.03871; opacus
``AdaClipDPOptimizer``. Differs: there b is a noisy share over a batch of users, here one step's yes or no, so that
log C jitters by about 0.18 at eta = 0.2 and 0.04 at 0.01. C never exceeds ``c_max``, because it follows a diverging
run by ``exp(eta * share)`` per step. With a reference norm C starts there, otherwise at the source's 0.1.

Shape letter: L = lanes.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from tuner.clippers.base import Clipper, ClipResult, ClipState, advanced, require_inside, require_lanes
from tuner.clippers.scaling import scaled
from tuner.lanes import Layout
from tuner.norms import l2_norm

_PAPER_C_START = 0.1
#: Upper bound of C in units of where it starts: the upper end of where thresholds are searched.
_KAPPA_MAX = 10.0


@final
class QuantileClipper(Clipper):
    """Scale a lane so that its L2 norm is at most a threshold that leaves its ``unclipped_share`` of steps alone.

    Args:
        eta: step of the logarithm of C, > 0.
        c_start: C before the first step, > 0, in the unit of the gradient norm; the reference norm by default.
        c_max: largest C, >= ``c_start``; 10 x ``c_start`` by default.

    Example:
        A clipped step raises C from 1 by exp(0.2 * 0.5).

        >>> layout = Layout(("weight",), ((1,),))
        >>> clipper = QuantileClipper(torch.tensor([0.5]), layout, reference_norm=1.0)
        >>> grads = torch.tensor([[4.0]])
        >>> result = clipper.clip(grads, clipper.initial_state(grads), weights=grads, loss=torch.zeros(1))
        >>> result.grads, result.state["limit"]
        (tensor([[1.0000]]), tensor([1.1052], dtype=torch.float64))
    """

    def __init__(
        self,
        thresholds: Tensor,
        layout: Layout,
        *,
        reference_norm: float | None = None,
        eta: float = 0.2,
        c_start: float | None = None,
        c_max: float | None = None,
    ) -> None:
        super().__init__(thresholds, layout, reference_norm=reference_norm)
        if c_start is None:
            c_start = _PAPER_C_START if reference_norm is None else reference_norm
        if c_max is None:
            c_max = _KAPPA_MAX * c_start
        require_inside("eta", eta, low=0.0)
        require_inside("c_start", c_start, low=0.0)
        require_inside("c_max", c_max, low=c_start, low_included=True)
        self._eta, self._c_start, self._c_max = eta, c_start, c_max
        self._share = thresholds.double()

    def initial_state(self, weights: Tensor) -> ClipState:
        """The threshold at its start.

        Args:
            weights: gives the device.

        Returns:
            ``limit``, the threshold C, (L,).
        """
        return {"limit": weights.new_full((self.num_lanes,), self._c_start, dtype=torch.float64)}

    def clip(self, grads: Tensor, state: ClipState, *, weights: Tensor, loss: Tensor) -> ClipResult:  # noqa: D102
        del weights, loss
        require_lanes(grads, self)
        norm = l2_norm(grads)
        padded = norm.double() + self.epsilon
        limit = state["limit"]
        acts = (padded > limit) & self.is_on
        moved = limit * torch.exp(self._eta * (self._share - (~acts).double()))
        return scaled(
            grads,
            advanced(state, {"limit": moved.clamp(max=self._c_max)}, norm.isfinite()),
            norm=norm,
            coefficient=(limit / padded).to(norm.dtype),
            acts=acts,
        )
