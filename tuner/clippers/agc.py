"""Adaptive gradient clipping: a unit's gradient may be at most a fraction of the unit's weights.

For each output unit i with weights w and gradient g: if ``norm(g_i) > M_i`` with ``M_i = ratio * max(norm(w_i), eps)``,
then ``g_i *= M_i / max(norm(g_i), 1e-6)``. A unit is an index of a tensor's first axis, a tensor of at most one
dimension is one unit (`tuner.norms.unit_norms`).

Source: Brock, De, Smith and Simonyan (2021), equation 3, https://arxiv.org/abs/2102.06171; deepmind-research
``nfnets/optim.py``, timm ``utils/agc.py``. The paper leaves the last linear layer alone. Which one that is can't be
told from a row of parameters, so by default nothing is left alone here; name it in ``excluded``.

Shape letters: L = lanes, P = parameters of one lane, U = output units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from tuner.clippers.base import Clipper, ClipResult, ClipState, require_inside, require_lanes
from tuner.clippers.scaling import scaled_by_group
from tuner.lanes import Layout
from tuner.norms import unit_norms, unit_of_column, units_of

#: Smallest gradient norm that is divided by.
_SMALLEST_NORM = 1e-6


@final
class AgcClipper(Clipper):
    """Scale each output unit whose gradient is larger than the lane's ``ratio`` times the unit's weights.

    The threshold is a ratio of a gradient to weights: it has no unit, yet it scales with the loss.

    Args:
        eps: smallest weight norm reckoned with, > 0: lets units that start at zero move at all.
        excluded: names of parameters that are never scaled, for example those of the last linear layer.

    Example:
        The first unit's weights have norm 5, so that its gradient may have norm 0.5; the second's is small enough.

        >>> clipper = AgcClipper(torch.tensor([0.1]), Layout(("weight",), ((2, 2),)))
        >>> weights, grads = torch.tensor([[3.0, 4.0, 0.0, 1.0]]), torch.tensor([[0.0, 1.0, 0.05, 0.0]])
        >>> clipper.clip(grads, {}, weights=weights, loss=torch.zeros(1)).grads
        tensor([[0.0000, 0.5000, 0.0500, 0.0000]])
    """

    def __init__(
        self,
        thresholds: Tensor,
        layout: Layout,
        *,
        reference_norm: float | None = None,
        eps: float = 1e-3,
        excluded: Sequence[str] = (),
    ) -> None:
        super().__init__(thresholds, layout, reference_norm=reference_norm)
        require_inside("eps", eps, low=0.0)
        if unknown := sorted(set(excluded) - set(layout.names)):
            raise ValueError(f"excluded names no parameter: {unknown}; there are {', '.join(layout.names)}")
        self._eps = eps
        free = [
            name in excluded
            for name, count in zip(layout.names, units_of(layout), strict=True)
            for _ in range(count)
        ]
        self._is_limited = ~torch.tensor(free, device=thresholds.device)
        self._unit_of_column = unit_of_column(layout).to(thresholds.device)

    def clip(self, grads: Tensor, state: ClipState, *, weights: Tensor, loss: Tensor) -> ClipResult:  # noqa: D102
        del loss
        require_lanes(grads, self)
        norms = unit_norms(grads, self.layout)
        limits = unit_norms(weights, self.layout).clamp(min=self._eps) * self.thresholds.to(norms).unsqueeze(
            1
        )
        return scaled_by_group(
            grads,
            state,
            norms=norms,
            coefficients=limits / norms.clamp(min=_SMALLEST_NORM),
            acts=(norms > limits) & self._is_limited,
            expand=self._over_columns,
        )

    def _over_columns(self, per_unit: Tensor) -> Tensor:
        return per_unit.index_select(1, self._unit_of_column)
