"""What a training function has reported of one lane, and what that means for rungs and divergence. Pure values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import SupportsFloat, SupportsIndex

from tuner.errors import SpecError


class Reports:
    """The objectives that one lane reported.

    Args:
        rung_steps: ascending; the last is a full run.
        divergence_factor: see `tuner.spec.StudySpec`.

    Attributes:
        initial: the objective before the first step; None if it was not reported, or not finite.
        last_step: the newest report's; None before the first.
        value: the newest report's; None before the first, and once diverged.
        divergence_step: the report at which the objective was not finite, or beyond the bound; None if it never was.
        rungs: the objective at each rung that was reached, inf = diverged: that of the first report at or after it.

    Example:
        >>> reports = Reports((10, 30), divergence_factor=3.0)
        >>> reports.add(0, 2.0), reports.add(12, 1.5), reports.add(30, 6.5)
        ((), (10,), (30,))
        >>> reports.rungs, reports.divergence_step
        ({10: 1.5, 30: inf}, 30)
    """

    def __init__(self, rung_steps: Sequence[int], divergence_factor: float) -> None:
        self.initial: float | None = None
        self.last_step: int | None = None
        self.value: float | None = None
        self.divergence_step: int | None = None
        self.rungs: dict[int, float] = {}
        self._rung_steps = tuple(rung_steps)
        self._factor = divergence_factor

    def add(self, step: int, value: float) -> tuple[int, ...]:
        """Take a report.

        Args:
            step: optimizer steps taken, > that of the report before.
            value: the objective, minimized; NaN or infinite = diverged.

        Returns:
            The rungs that it reaches. A diverged lane reaches all that are left.

        Raises:
            SpecError: if the step does not rise, or one of them is no number.
        """
        step, value = _whole(step), _number(value)
        if step < 0 or (self.last_step is not None and step <= self.last_step):
            bound = (
                "0"
                if self.last_step is None
                else f"{self.last_step + 1}, because {self.last_step} was reported"
            )
            raise SpecError("step", f"must be >= {bound}, got {step}: count optimizer steps")
        self.last_step = step
        if not math.isfinite(value) or value > self._bound:
            self.divergence_step, self.value = step, None
            return self._reach(self._rung_steps[-1], math.inf)
        self.value = value
        if step == 0:
            self.initial = value
        return self._reach(step, value)

    def close(self) -> tuple[int, ...]:
        """Say that nothing more will be reported: the last value stands for the rungs that are left.

        Returns:
            These rungs; none if nothing was reported.
        """
        return () if self.value is None else self._reach(self._rung_steps[-1], self.value)

    @property
    def _bound(self) -> float:
        return self.initial * self._factor if self.initial is not None and self.initial > 0 else math.inf

    def _reach(self, step: int, value: float) -> tuple[int, ...]:
        reached = tuple(each for each in self._rung_steps if each <= step and each not in self.rungs)
        self.rungs |= dict.fromkeys(reached, value)
        return reached


def _whole(step: SupportsIndex) -> int:
    try:
        return int(step.__index__())
    except (AttributeError, TypeError):
        raise SpecError("step", f"must be a whole number of optimizer steps, got {step!r}") from None


def _number(value: SupportsFloat) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        # RuntimeError: a tensor of more than one element.
        raise SpecError("value", f"must be one number, the objective, got {type(value).__name__}") from None
