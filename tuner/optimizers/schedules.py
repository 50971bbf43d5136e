"""Learning rate schedules: the factor on an optimizer's rate, as a function of the steps already taken.

A schedule is frozen numbers; describing one does not load torch. Its factor is computed with tensor operations
alone, so that lanes with different step counts share one call and nothing is read back to the host.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuner.errors import SpecError
from tuner.optimizers.bounds import require_count

if TYPE_CHECKING:
    from torch import Tensor


class Schedule(ABC):
    """How the learning rate changes while a lane trains."""

    @abstractmethod
    def factor(self, step: Tensor) -> Tensor:
        """What the base learning rate is multiplied by.

        Args:
            step: optimizer steps already taken, so the first step asks for 0; any shape, int64 or float64.

        Returns:
            float64, the shape of ``step``.
        """


@dataclass(frozen=True)
class Constant(Schedule):
    """The base learning rate at every step."""

    def factor(self, step: Tensor) -> Tensor:  # noqa: D102
        return step.double().mul(0.0).add_(1.0)


CONSTANT = Constant()


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Half a cosine from 1 down to ``final``, which it keeps afterwards.

    Attributes:
        num_steps: the step at which ``final`` is reached, >= 1.
        final: last factor, in [0, 1].
    """

    num_steps: int
    final: float = 0.0

    def __post_init__(self) -> None:
        require_count("num_steps", self.num_steps)
        if not 0 <= self.final <= 1:
            raise SpecError("final", f"must be in [0, 1], got {self.final}")

    def factor(self, step: Tensor) -> Tensor:  # noqa: D102
        wave = step.double().clamp(max=self.num_steps).mul_(math.pi / self.num_steps).cos_()
        half = (1 - self.final) / 2
        return wave.mul_(half).add_(half + self.final)


@dataclass(frozen=True, kw_only=True)
class Warmup(Schedule):
    """A straight line up to 1, then another schedule that counts its own steps from 0.

    Attributes:
        num_steps: length of the line, >= 1; step 0 has factor 1 / num_steps, step num_steps - 1 has factor 1.
        then: what follows from step ``num_steps`` on.
    """

    num_steps: int
    then: Schedule = CONSTANT

    def __post_init__(self) -> None:
        require_count("num_steps", self.num_steps)
        require_schedule("then", self.then)

    def factor(self, step: Tensor) -> Tensor:  # noqa: D102
        taken = step.double()
        # Clamped, so that the branch that `where` drops is a valid schedule step too.
        after = self.then.factor((taken - self.num_steps).clamp_(min=0))
        return after.where(taken >= self.num_steps, (taken + 1).div_(self.num_steps))


@dataclass(frozen=True, kw_only=True)
class StepDecay(Schedule):
    """Multiplied by the same number after every so many steps.

    Attributes:
        every: steps between two changes, >= 1.
        decay: the number, in (0, 1].
    """

    every: int
    decay: float

    def __post_init__(self) -> None:
        require_count("every", self.every)
        if not 0 < self.decay <= 1:
            raise SpecError("factor", f"must be in (0, 1], got {self.decay}")

    def factor(self, step: Tensor) -> Tensor:  # noqa: D102
        exponent = step.double().div(self.every).floor_()
        return exponent.mul_(math.log(self.decay)).exp_()


def constant() -> Constant:
    """The base learning rate at every step.

    Returns:
        The schedule.
    """
    return CONSTANT


def cosine(num_steps: int, final: float = 0.0) -> Cosine:
    """Half a cosine down to a last factor, kept afterwards.

    Args:
        num_steps: the step at which ``final`` is reached, >= 1.
        final: last factor, in [0, 1].

    Returns:
        The schedule.

    Source:
        Loshchilov and Hutter (2017), equation 5 without restarts, https://arxiv.org/abs/1608.03983. Equals
        ``CosineAnnealingLR(T_max=num_steps)`` until ``num_steps``; that one rises again afterwards.

    Example:
        >>> import torch
        >>> cosine(2, final=0.5).factor(torch.tensor([0, 1, 2, 3])).tolist()
        [1.0, 0.75, 0.5, 0.5]
    """
    return Cosine(num_steps=num_steps, final=final)


def warmup(num_steps: int, then: Schedule = CONSTANT) -> Warmup:
    """A straight line from 1 / num_steps to 1, then another schedule from its own step 0.

    Equals ``LinearLR(start_factor=1 / num_steps, total_iters=num_steps - 1)`` followed by ``then``, with
    ``SequentialLR(milestones=[num_steps])``. The first step moves already, unlike with a line from 0.

    Args:
        num_steps: length of the line, >= 1.
        then: what follows from step ``num_steps`` on.

    Returns:
        The schedule.

    Example:
        >>> import torch
        >>> warmup(4).factor(torch.tensor([0, 1, 3, 4])).tolist()
        [0.25, 0.5, 1.0, 1.0]
    """
    return Warmup(num_steps=num_steps, then=then)


def step_decay(every: int, factor: float) -> StepDecay:
    """Multiply the rate by a factor after every so many steps; equals ``StepLR(every, gamma=factor)``.

    Args:
        every: steps between two changes, >= 1.
        factor: in (0, 1].

    Returns:
        The schedule.

    Example:
        >>> import torch
        >>> step_decay(2, 0.5).factor(torch.tensor([0, 1, 2, 4])).round(decimals=9).tolist()
        [1.0, 1.0, 0.5, 0.25]
    """
    return StepDecay(every=every, decay=factor)


def require_schedule(name: str, value: object) -> None:
    """Check that a setting's schedule is one.

    Args:
        name: the caller's spelling.
        value: what was given.

    Raises:
        SpecError: if it is anything but a `Schedule`.
    """
    if not isinstance(value, Schedule):
        raise SpecError(name, f"must be a schedule, for example cosine(1000), got {value!r}")
