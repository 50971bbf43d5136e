"""A lane batch of one row that is updated by any PyTorch optimizer: for optimizers without a lane-wise rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tuner.errors import UnsupportedModelError
from tuner.optimizers import CustomOptimizer
from tuner.training.lane_batch import LaneBatch


class CustomLaneBatch(LaneBatch):
    """One lane whose weights a `torch.optim.Optimizer` updates in place, at its own rates times the setting's scale.

    The optimizer's own state is not part of `tensors`: a study with such an optimizer is not checkpointed. A step
    that must not be taken puts the weights back; what the optimizer remembers of it (a zero gradient) it keeps.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert isinstance(self.optimizer, CustomOptimizer)
        self._parameters = [nn.Parameter(view[0]) for view in self.layout.views(self.weights).values()]
        self._torch_optimizer = self.optimizer.build(self._parameters)
        _scale_rates(self._torch_optimizer, self.settings[0].learning_rate_scale)

    def _optimize(self, grads: Tensor, applied: Tensor) -> None:
        before = self.weights.clone()
        for parameter, grad in zip(self._parameters, self.layout.views(grads).values(), strict=True):
            parameter.grad = grad[0]
        self._torch_optimizer.step()
        self.weights.copy_(torch.where(applied.unsqueeze(1), self.weights, before))


def _scale_rates(optimizer: torch.optim.Optimizer, scale: float) -> None:
    """Multiply the learning rate of every parameter group; a scale of 1 touches nothing.

    Raises:
        UnsupportedModelError: if a group has no learning rate to multiply.
    """
    if scale == 1:
        return
    for group in optimizer.param_groups:
        if "lr" not in group:
            raise UnsupportedModelError(
                f"the optimizer {type(optimizer).__name__}",
                "has a parameter group without 'lr', so its learning rate can't be tuned: leave out "
                "learning_rate_low and learning_rate_high",
            )
        group["lr"] = group["lr"] * scale
