"""Stochastic gradient descent, with momentum and weight decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuner.errors import SpecError
from tuner.optimizers.base import OptimizerSetting, OptimizerState
from tuner.optimizers.bounds import require_at_least, require_decay
from tuner.optimizers.schedules import CONSTANT, Schedule

if TYPE_CHECKING:
    from torch import Tensor

    from tuner.lanes import Layout


@dataclass(frozen=True, kw_only=True)
class Sgd(OptimizerSetting):
    """``torch.optim.SGD`` without dampening, for all lanes at once.

    Attributes:
        momentum: factor on the velocity, in [0, 1).
        nesterov: whether to look ahead; needs momentum > 0.
        weight_decay: L2 penalty added to the gradient after clipping, >= 0.
    """

    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_decay("momentum", self.momentum)
        require_at_least("weight_decay", self.weight_decay, 0)
        if self.nesterov and self.momentum == 0:
            raise SpecError("nesterov", "needs momentum > 0, got 0")

    def initial_state(self, weights: Tensor, layout: Layout) -> OptimizerState:  # noqa: D102
        import torch

        del layout
        # From 0 the first velocity is the gradient, as PyTorch has it.
        return {"momentum": torch.zeros_like(weights)} if self.momentum else {}

    def update(  # noqa: D102
        self,
        weights: Tensor,
        grads: Tensor,
        state: OptimizerState,
        *,
        layout: Layout,
        lr: Tensor,
        applied: Tensor,
    ) -> None:
        from tuner.optimizers.coefficients import accumulate_, mask_of, rate_of, shrinkage

        del layout
        mask = mask_of(applied, weights)
        rate = rate_of(lr, mask)
        if not self.momentum:
            if self.weight_decay:
                # The same number as adding the penalty to the gradient.
                weights.mul_(shrinkage(rate, self.weight_decay))
            weights.addcmul_(grads, rate, value=-1)
            return
        if self.weight_decay:
            grads.addcmul_(weights, mask, value=self.weight_decay)
        velocity = accumulate_(state["momentum"], grads, mask, self.momentum)
        if self.nesterov:
            velocity = grads.add_(velocity, alpha=self.momentum)
        weights.addcmul_(velocity, rate, value=-1)


def sgd(
    lr: float,
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    schedule: Schedule = CONSTANT,
) -> Sgd:
    """Stochastic gradient descent.

    Args:
        lr: learning rate, > 0.
        momentum: factor on the velocity, in [0, 1).
        nesterov: whether to look ahead; needs momentum > 0.
        weight_decay: L2 penalty, >= 0.
        schedule: factor on the learning rate.

    Returns:
        The setting.

    Source:
        Sutskever, Martens, Dahl and Hinton (2013), section 2, https://proceedings.mlr.press/v28/sutskever13.html,
        in PyTorch's form: the velocity is a sum of gradients and the rate is applied to it.

    Example:
        >>> sgd(0.1, momentum=0.9)
        Sgd(lr=0.1, schedule=Constant(), momentum=0.9, nesterov=False, weight_decay=0.0)
    """
    return Sgd(lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, schedule=schedule)
