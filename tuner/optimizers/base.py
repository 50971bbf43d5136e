"""What an optimizer setting is: frozen numbers, and a builder for one plain lane."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuner.errors import SpecError

if TYPE_CHECKING:
    import torch


class OptimizerSetting(ABC):
    """An optimizer with its hyperparameters, not yet attached to parameters."""

    @abstractmethod
    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer of one lane.

        Args:
            parameters: the lane's trainable parameters.

        Returns:
            A fresh optimizer that owns nothing but its own state.
        """


@dataclass(frozen=True)
class CustomOptimizer(OptimizerSetting):
    """Any PyTorch optimizer, by a function that builds it; it trains one lane at a time.

    Attributes:
        factory: called with a list of parameters, once per lane.
    """

    factory: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:  # noqa: D102
        return self.factory(list(parameters))


def require_at_least(name: str, value: float, low: float, *, is_open: bool = False) -> None:
    """Check one hyperparameter.

    Args:
        name: the caller's spelling.
        value: what was given.
        low: smallest allowed value.
        is_open: whether ``low`` itself is excluded.

    Raises:
        SpecError: if the value is not finite or below the bound.
    """
    if not math.isfinite(value) or value < low or (is_open and value == low):
        raise SpecError(name, f"must be finite and {'>' if is_open else '>='} {low:g}, got {value}")
