"""Adagrad: gradients divided by the root of the sum of their squares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuner.optimizers.base import OptimizerSetting, OptimizerState
from tuner.optimizers.bounds import require_at_least
from tuner.optimizers.schedules import CONSTANT, Schedule

if TYPE_CHECKING:
    from torch import Tensor

    from tuner.lanes import Layout


@dataclass(frozen=True, kw_only=True)
class Adagrad(OptimizerSetting):
    """``torch.optim.Adagrad``, for all lanes at once; each lane counts its own steps.

    Attributes:
        lr_decay: the rate is divided by ``1 + lr_decay * steps taken``, >= 0.
        eps: added to the denominator, >= 0.
        initial_accumulator_value: what every sum of squares starts with, >= 0.
        weight_decay: L2 penalty added to the gradient after clipping, >= 0.
    """

    lr_decay: float = 0.0
    eps: float = 1e-10
    initial_accumulator_value: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lr_decay", "eps", "initial_accumulator_value", "weight_decay"):
            require_at_least(name, getattr(self, name), 0)

    def initial_state(self, weights: Tensor, layout: Layout) -> OptimizerState:  # noqa: D102
        import torch

        del layout
        return {
            "sum": torch.full_like(weights, self.initial_accumulator_value),
            "step": weights.new_zeros(len(weights), dtype=torch.float64),
        }

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
        from tuner.optimizers.coefficients import divide_by_rate_, mask_of

        del layout
        rate = lr.double() * applied
        if self.lr_decay:
            rate.div_((state["step"] * self.lr_decay).add_(1))
        state["step"].add_(applied)
        if self.weight_decay:
            grads.addcmul_(weights, mask_of(applied, weights), value=self.weight_decay)
        root = state["sum"].addcmul_(grads, grads).sqrt()
        weights.addcdiv_(grads, divide_by_rate_(root, rate, self.eps), value=-1)


def adagrad(
    lr: float,
    *,
    lr_decay: float = 0.0,
    eps: float = 1e-10,
    initial_accumulator_value: float = 0.0,
    weight_decay: float = 0.0,
    schedule: Schedule = CONSTANT,
) -> Adagrad:
    """Adagrad, the diagonal form.

    Args:
        lr: learning rate, > 0.
        lr_decay: the rate is divided by ``1 + lr_decay * steps taken``, >= 0.
        eps: added to the denominator, outside the root, >= 0.
        initial_accumulator_value: what every sum of squares starts with, >= 0.
        weight_decay: L2 penalty, >= 0.
        schedule: factor on the learning rate.

    Returns:
        The setting.

    Source:
        Duchi, Hazan and Singer (2011), figure 1, https://jmlr.org/papers/v12/duchi11a.html.

    Example:
        >>> adagrad(1e-2).eps
        1e-10
    """
    return Adagrad(
        lr=lr,
        lr_decay=lr_decay,
        eps=eps,
        initial_accumulator_value=initial_accumulator_value,
        weight_decay=weight_decay,
        schedule=schedule,
    )
