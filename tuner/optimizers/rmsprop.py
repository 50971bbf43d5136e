"""RMSprop: gradients divided by the root of their moving average square."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuner.optimizers.base import OptimizerSetting, OptimizerState
from tuner.optimizers.bounds import require_at_least, require_decay
from tuner.optimizers.schedules import CONSTANT, Schedule

if TYPE_CHECKING:
    from torch import Tensor

    from tuner.lanes import Layout


@dataclass(frozen=True, kw_only=True)
class RmsProp(OptimizerSetting):
    """``torch.optim.RMSprop``, for all lanes at once.

    Attributes:
        alpha: decay of the average square, in [0, 1).
        eps: added to the denominator, >= 0.
        momentum: factor on the sum of scaled gradients, in [0, 1).
        centered: whether to subtract the squared average gradient, which leaves the variance.
        weight_decay: L2 penalty added to the gradient after clipping, >= 0.
    """

    alpha: float = 0.99
    eps: float = 1e-8
    momentum: float = 0.0
    centered: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_decay("alpha", self.alpha)
        require_at_least("eps", self.eps, 0)
        require_decay("momentum", self.momentum)
        require_at_least("weight_decay", self.weight_decay, 0)

    def initial_state(self, weights: Tensor, layout: Layout) -> OptimizerState:  # noqa: D102
        import torch

        del layout
        names = ["square", *["average"] * self.centered, *["momentum"] * bool(self.momentum)]
        return {name: torch.zeros_like(weights) for name in names}

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
        import torch

        from tuner.optimizers.coefficients import (
            average_,
            divide_by_rate_,
            mask_of,
            rate_of,
            shrinkage,
            square_average_,
        )

        del layout
        mask = mask_of(applied, weights)
        if self.weight_decay:
            grads.addcmul_(weights, mask, value=self.weight_decay)
        variance = square_average_(state["square"], grads, mask, self.alpha)
        if self.centered:
            average = average_(state["average"], grads, mask, self.alpha)
            # Rounding may leave less than nothing of a constant gradient; the root of that would be NaN.
            root = torch.addcmul(variance, average, average, value=-1).clamp_(min=0).sqrt_()
        else:
            root = variance.sqrt()
        if not self.momentum:
            weights.addcdiv_(grads, divide_by_rate_(root, lr.double() * applied, self.eps), value=-1)
            return
        # Infinite for lanes that take no step: their 0 / 0 would be NaN if eps is 0.
        root.add_(torch.full_like(mask, self.eps).masked_fill_(mask == 0, torch.inf))
        sum_of_steps = state["momentum"].mul_(shrinkage(mask, 1 - self.momentum)).addcdiv_(grads, root)
        weights.addcmul_(sum_of_steps, rate_of(lr, mask), value=-1)


def rmsprop(
    lr: float,
    *,
    alpha: float = 0.99,
    eps: float = 1e-8,
    momentum: float = 0.0,
    centered: bool = False,
    weight_decay: float = 0.0,
    schedule: Schedule = CONSTANT,
) -> RmsProp:
    """RMSprop.

    Args:
        lr: learning rate, > 0.
        alpha: decay of the average square, in [0, 1).
        eps: added to the denominator, outside the root, >= 0.
        momentum: factor on the sum of scaled gradients, in [0, 1).
        centered: whether to divide by the standard deviation instead of the root mean square.
        weight_decay: L2 penalty, >= 0.
        schedule: factor on the learning rate.

    Returns:
        The setting.

    Source:
        Tieleman and Hinton (2012), lecture 6.5 of Neural Networks for Machine Learning; the centered form is
        Graves (2013), https://arxiv.org/abs/1308.0850. Differs from ``torch.optim.RMSprop``: a
        centered variance that rounds below 0 counts as 0 and not as NaN.

    Example:
        >>> rmsprop(1e-3).alpha
        0.99
    """
    return RmsProp(
        lr=lr,
        alpha=alpha,
        eps=eps,
        momentum=momentum,
        centered=centered,
        weight_decay=weight_decay,
        schedule=schedule,
    )
