"""Checks of hyperparameters: each error names the setting, its bound and what was given."""

from __future__ import annotations

import math

from tuner.errors import SpecError


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


def require_decay(name: str, value: float) -> None:
    """Check the decay of a moving average or a momentum.

    Args:
        name: the caller's spelling.
        value: what was given.

    Raises:
        SpecError: if it is not in [0, 1).
    """
    require_at_least(name, value, 0)
    if value >= 1:
        raise SpecError(name, f"must be < 1, got {value}")


def require_count(name: str, value: int) -> None:
    """Check a number of things.

    Args:
        name: the caller's spelling.
        value: what was given.

    Raises:
        SpecError: if it is not a whole number >= 1.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SpecError(name, f"must be a whole number >= 1, got {value}")
