"""Stochastic gradient descent, with momentum and weight decay."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuner.errors import SpecError
from tuner.optimizers.base import OptimizerSetting, require_at_least

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Sgd(OptimizerSetting):
    """``torch.optim.SGD`` as frozen numbers.

    Attributes:
        lr: learning rate, > 0.
        momentum: factor on the velocity, in [0, 1).
        nesterov: whether to look ahead; needs momentum > 0.
        weight_decay: L2 penalty added to the gradient after clipping, >= 0.
    """

    lr: float
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        require_at_least("lr", self.lr, 0, is_open=True)
        require_at_least("momentum", self.momentum, 0)
        require_at_least("weight_decay", self.weight_decay, 0)
        if self.momentum >= 1:
            raise SpecError("momentum", f"must be < 1, got {self.momentum}")
        if self.nesterov and self.momentum == 0:
            raise SpecError("nesterov", "needs momentum > 0, got 0")

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:  # noqa: D102
        import torch

        return torch.optim.SGD(
            parameters,
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
        )


def sgd(lr: float, *, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0) -> Sgd:
    """Stochastic gradient descent.

    Args:
        lr: learning rate, > 0.
        momentum: factor on the velocity, in [0, 1).
        nesterov: whether to look ahead; needs momentum > 0.
        weight_decay: L2 penalty, >= 0.

    Returns:
        The setting.

    Example:
        >>> sgd(0.1, momentum=0.9)
        Sgd(lr=0.1, momentum=0.9, nesterov=False, weight_decay=0.0)
    """
    return Sgd(lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
