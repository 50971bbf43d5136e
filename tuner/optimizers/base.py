"""What an optimizer is: frozen numbers, the state it starts with, and one step for all lanes at once.

Shape letters: L = lanes, P = trainable parameters of one lane.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from tuner.optimizers.bounds import require_at_least
from tuner.optimizers.schedules import CONSTANT, Schedule, require_schedule

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tuner.lanes import Layout

OptimizerState: TypeAlias = "dict[str, Tensor]"
"""What an optimizer remembers; every tensor's first dimension is L, so that lanes are a selection of rows."""


@dataclass(frozen=True, kw_only=True)
class OptimizerSetting(ABC):
    """An optimizer with its hyperparameters, not yet attached to lanes.

    An implementation guarantees:

    1. Rows never mix: a lane gets what it gets alone, whatever stands in the other rows.
    2. A row with ``applied`` False keeps its weights and its state bit for bit, its own step count included.
       This holds as long as the row is finite, and for states that came from `initial_state` and `update`:
       the mask is a coefficient of 0 or 1, and 0 times infinity is NaN. A lane that is not finite is lost
       anyway, and stays the only one.
    3. Nothing is read back to the host, no shape depends on a value, no counter lives in Python and every
       tensor is changed in place: a step can be captured in a CUDA graph.

    Attributes:
        lr: base learning rate, > 0; a lane's own rate is an argument of `update`.
        schedule: factor on the rate as a function of the lane's step; the caller multiplies.
        is_lane_wise: False if lanes must train one at a time.
    """

    is_lane_wise: ClassVar[bool] = True

    lr: float
    schedule: Schedule = CONSTANT

    def __post_init__(self) -> None:
        require_at_least("lr", self.lr, 0, is_open=True)
        require_schedule("schedule", self.schedule)

    @abstractmethod
    def initial_state(self, weights: Tensor, layout: Layout) -> OptimizerState:
        """The state before the first step.

        Args:
            weights: shape (L, P); only its shape, type and device matter.
            layout: where the tensors lie in a row.

        Returns:
            Fresh tensors, each with L as its first dimension; empty if there is nothing to remember.
        """

    @abstractmethod
    def update(
        self,
        weights: Tensor,
        grads: Tensor,
        state: OptimizerState,
        *,
        layout: Layout,
        lr: Tensor,
        applied: Tensor,
    ) -> None:
        """One step, in place on ``weights`` and on the tensors of ``state``.

        Nothing here needs a gradient: call it under ``torch.no_grad()`` if the weights require one.

        Args:
            weights: shape (L, P), contiguous.
            grads: shape (L, P), contiguous, the type of ``weights``; overwritten. Rows with ``applied`` False
                are zeros.
            state: what `initial_state` gave and earlier updates changed.
            layout: where the tensors lie in a row.
            lr: rate of each lane, schedule included, shape (L,), float64 or the type of ``weights``, >= 0.
            applied: lanes that take this step, shape (L,), bool.
        """


@dataclass(frozen=True)
class CustomOptimizer(OptimizerSetting):
    """Any PyTorch optimizer, by a function that builds it; it trains one lane at a time.

    Attributes:
        factory: called with a list of parameters, once per lane.
        lr: not used: the rate is whatever the factory chose.
        schedule: not used, for the same reason.
    """

    is_lane_wise: ClassVar[bool] = False

    factory: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
    lr: float = field(default=1.0, init=False, repr=False)
    schedule: Schedule = field(default=CONSTANT, init=False, repr=False)

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer of one lane.

        Args:
            parameters: the lane's trainable parameters.

        Returns:
            A fresh optimizer that owns nothing but its own state.
        """
        return self.factory(list(parameters))

    def initial_state(self, weights: Tensor, layout: Layout) -> OptimizerState:
        """Refused.

        Args:
            weights: not used.
            layout: not used.

        Raises:
            TypeError: always.
        """
        del weights, layout
        raise TypeError("a custom optimizer keeps its own state, one lane at a time: build() it per lane")

    def update(
        self,
        weights: Tensor,
        grads: Tensor,
        state: OptimizerState,
        *,
        layout: Layout,
        lr: Tensor,
        applied: Tensor,
    ) -> None:
        """Refused.

        Args:
            weights: not used.
            grads: not used.
            state: not used.
            layout: not used.
            lr: not used.
            applied: not used.

        Raises:
            TypeError: always.
        """
        del weights, grads, state, layout, lr, applied
        raise TypeError(
            "a custom optimizer cannot step many lanes at once: build() it per lane and step that"
        )
