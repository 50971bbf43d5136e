"""AdaGC: limit every parameter tensor's gradient norm to a little above its own moving average.

In warm-up (steps before ``warmup``) the whole gradient is limited to the norm ``lambda_abs``, and gamma of each tensor
is the smallest norm that came out. From then on a tensor's norm is limited to ``lambda_rel * gamma``, and gamma follows
what came out: ``gamma = beta * gamma + (1 - beta) * limited norm``.

Source: Wang et al. (2025), algorithm 1, https://arxiv.org/abs/2502.11034; kozistr/pytorch_optimizer ``adagc.py``.
Differs: a step in which a tensor's gradient is exactly zero leaves its gamma alone, and a tensor that was zero
throughout warm-up starts with its first norm; in the source gamma becomes 0 and the tensor never moves again. The
paper's ``lambda_abs`` of 1.0 is the usual global-norm threshold of its language models; with a reference norm it is
that norm: the median is the safe default where a fixed threshold is needed for a while.

Shape letters: L = lanes, P = parameters of one lane, T = parameter tensors.
"""

from __future__ import annotations

from math import inf
from typing import final

import torch
from torch import Tensor

from tuner.clippers.base import Clipper, ClipResult, ClipState, advanced, require_inside, require_lanes
from tuner.clippers.scaling import scaled_by_group
from tuner.lanes import Layout
from tuner.norms import l2_norm, tensor_norms

_PAPER_LAMBDA_ABS = 1.0


@final
class AdaGCClipper(Clipper):
    """Scale each tensor whose L2 norm is above the lane's ``lambda_rel`` times the tensor's average.

    Args:
        lambda_abs: limit of the whole gradient in warm-up, > 0, in the unit of the gradient norm; the reference norm
            by default.
        beta: memory of the averages, in (0, 1].
        warmup: first step (counted from 1) with a limit per tensor, >= 2.

    Example:
        The first gradient has norm 2; a second one may have norm 2 * 1.5.

        >>> layout = Layout(("weight",), ((1,),))
        >>> clipper = AdaGCClipper(torch.tensor([1.5]), layout, lambda_abs=10.0, warmup=2)
        >>> first, second = torch.tensor([[2.0]]), torch.tensor([[8.0]])
        >>> result = clipper.clip(first, clipper.initial_state(first), weights=first, loss=torch.zeros(1))
        >>> clipper.clip(second, result.state, weights=first, loss=torch.zeros(1)).grads
        tensor([[3.]])
    """

    def __init__(
        self,
        thresholds: Tensor,
        layout: Layout,
        *,
        reference_norm: float | None = None,
        lambda_abs: float | None = None,
        beta: float = 0.98,
        warmup: int = 100,
    ) -> None:
        super().__init__(thresholds, layout, reference_norm=reference_norm)
        if lambda_abs is None:
            lambda_abs = _PAPER_LAMBDA_ABS if reference_norm is None else reference_norm
        require_inside("lambda_abs", lambda_abs, low=0.0)
        require_inside("beta", beta, low=0.0, high=1.0)
        require_inside("warmup", warmup, low=2, low_included=True)
        self._lambda_abs, self._beta, self._warmup = lambda_abs, beta, warmup
        self._lambda_rel = thresholds.double().unsqueeze(1)

    def initial_state(self, weights: Tensor) -> ClipState:
        """Nothing seen.

        Args:
            weights: gives the device.

        Returns:
            ``gamma``, (L, T), ``inf`` until a tensor had a gradient; ``count`` of steps, (L,).
        """
        shape = (self.num_lanes, self.layout.num_tensors)
        return {
            "gamma": weights.new_full(shape, inf, dtype=torch.float64),
            "count": weights.new_zeros(self.num_lanes, dtype=torch.int64),
        }

    def clip(self, grads: Tensor, state: ClipState, *, weights: Tensor, loss: Tensor) -> ClipResult:  # noqa: D102
        del weights, loss
        require_lanes(grads, self)
        norms = tensor_norms(grads, self.layout)
        precise = norms.double()
        norm = l2_norm(precise).unsqueeze(1)
        count = state["count"] + 1
        is_warmup = (count < self._warmup).unsqueeze(1)
        # In warm-up every tensor is held against the whole gradient's norm, afterwards against its own average.
        limit = torch.where(is_warmup, self._lambda_abs, self._lambda_rel * state["gamma"])
        compared = torch.where(is_warmup, norm, precise)
        acts = (compared > limit) & self.is_on.unsqueeze(1)
        coefficients = torch.where(acts, limit / compared, 1.0)
        after = {"gamma": self._followed(state["gamma"], coefficients * precise, is_warmup), "count": count}
        # In the gradients' type, like `ClipResult.finite`: both must mean the same lanes.
        finite = l2_norm(norms).isfinite()
        return scaled_by_group(
            grads,
            advanced(state, after, finite),
            norms=norms,
            coefficients=coefficients,
            acts=acts,
            expand=self.layout.expand,
        )

    def _followed(self, gamma: Tensor, limited: Tensor, is_warmup: Tensor) -> Tensor:
        """Gamma after a step, from the norms that came out; all (L, T) but ``is_warmup``, (L, 1)."""
        average = self._beta * gamma + (1 - self._beta) * limited
        after = torch.where(is_warmup | gamma.isinf(), torch.minimum(gamma, limited), average)
        return torch.where(limited > 0, after, gamma)
