"""ZClip: cut back a gradient norm that is an outlier among the norms so far.

With mean m and standard deviation s of the norms, a norm n has ``z = (n - m) / (s + 1e-6)``. If ``z > z_threshold``,
the norm is limited to ``factor * (m + s * z_threshold**2 / z)``, the lower the further out it is. The first ``warmup``
steps only measure. At all times the norm is limited to ``c_max``.

Source: Kumar, Owen, Chowdhury and Guera (2025), algorithm 1, https://arxiv.org/abs/2504.02507; bluorion-com/ZClip,
mode "zscore", "adaptive scaling". As there, the mean and the variance receive the limited norm of an outlier and the
whole norm of every other step, also when ``c_max`` limits it. Differs: mean and variance of the warm-up are updated in
place instead of stored values; a norm that is not finite never enters. The paper's ``c_max`` of 1.0 is the usual
global-norm threshold of its language models; with a reference norm it is 10 times that, the upper end of where
thresholds are searched, so that it stops a runaway and leaves the ordinary steps to the rule.

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

_KAPPA_MAX = 10.0
_PAPER_C_MAX = 1.0


@final
class ZClipper(Clipper):
    """Scale a lane whose L2 norm is more than its ``z_threshold`` standard deviations above its mean norm.

    Args:
        alpha: memory of the mean and the variance, in (0, 1].
        warmup: steps that only measure, >= 1.
        factor: multiplies the whole limit of an outlier, in (0, 1].
        c_max: absolute limit, > 0, in the unit of the gradient norm; 10 x reference norm by default.

    Example:
        Norms 1 and 3 have mean 2 and deviation 1; 12 is 10 deviations out and is cut to 2 + 1 * 2**2 / 10.

        >>> clipper = ZClipper(torch.tensor([2.0]), Layout(("weight",), ((1,),)), warmup=2, c_max=100.0)
        >>> state = clipper.initial_state(torch.zeros(1, 1))
        >>> for norm in (1.0, 3.0, 12.0):
        ...     grads = torch.tensor([[norm]])
        ...     result = clipper.clip(grads, state, weights=grads, loss=torch.zeros(1))
        ...     state = result.state
        >>> result.grads
        tensor([[2.4000]])
    """

    def __init__(
        self,
        thresholds: Tensor,
        layout: Layout,
        *,
        reference_norm: float | None = None,
        alpha: float = 0.97,
        warmup: int = 25,
        factor: float = 1.0,
        c_max: float | None = None,
    ) -> None:
        super().__init__(thresholds, layout, reference_norm=reference_norm)
        if c_max is None:
            c_max = _PAPER_C_MAX if reference_norm is None else _KAPPA_MAX * reference_norm
        require_inside("alpha", alpha, low=0.0, high=1.0)
        require_inside("warmup", warmup, low=1, low_included=True)
        require_inside("factor", factor, low=0.0, high=1.0)
        require_inside("c_max", c_max, low=0.0)
        self._alpha, self._warmup, self._factor, self._c_max = alpha, warmup, factor, c_max
        self._z_threshold = thresholds.double()

    def initial_state(self, weights: Tensor) -> ClipState:
        """Nothing seen.

        Args:
            weights: gives the device.

        Returns:
            ``mean`` and ``variance`` of the norms, and ``count`` of steps, each (L,).
        """
        zeros = weights.new_zeros(self.num_lanes, dtype=torch.float64)
        return {"mean": zeros, "variance": zeros.clone(), "count": zeros.to(torch.int64)}

    def clip(self, grads: Tensor, state: ClipState, *, weights: Tensor, loss: Tensor) -> ClipResult:  # noqa: D102
        del weights, loss
        require_lanes(grads, self)
        norm = l2_norm(grads)
        precise = norm.double()
        deviation = state["variance"].sqrt()
        z = (precise - state["mean"]) / (deviation + self.epsilon)
        is_outlier = (z > self._z_threshold) & (state["count"] >= self._warmup)
        limit = self._factor * (state["mean"] + deviation * self._z_threshold.square() / z)
        counted = torch.where(is_outlier, limit, precise)
        limit = torch.where(is_outlier, limit, self._c_max).clamp(max=self._c_max)
        padded = precise + self.epsilon
        return scaled(
            grads,
            advanced(state, self._measured(state, counted), norm.isfinite()),
            norm=norm,
            coefficient=(limit / padded).to(norm.dtype),
            acts=(padded > limit) & self.is_on,
        )

    def _measured(self, state: ClipState, counted: Tensor) -> ClipState:
        """The statistics with one more norm: all norms alike in warm-up, fading afterwards."""
        count = state["count"] + 1
        weight = torch.where(count > self._warmup, 1 - self._alpha, 1 / count.double())
        distance = counted - state["mean"]
        mean = state["mean"] + weight * distance
        # Welford's form in warm-up is exact; afterwards the source measures the distance to the new mean only.
        squared = torch.where(count > self._warmup, counted - mean, distance) * (counted - mean)
        variance = state["variance"] + weight * (squared - state["variance"])
        return {"mean": mean, "variance": variance, "count": count}
