"""Student's interval of a mean, without a numerical library: the report runs where only the client is installed."""

from __future__ import annotations

import math

CONFIDENCE = 0.95


def mean_interval(mean: float, standard_error: float | None, num_values: int) -> tuple[float, float] | None:
    """The 95 % interval of a mean over seeds.

    Args:
        mean: of the values.
        standard_error: of the mean; None with fewer than two values.
        num_values: how many there were.

    Returns:
        Lower and upper end; None with fewer than two values.

    Example:
        >>> low, high = mean_interval(2.0, 0.577350, 3)  # of 1, 2, 3
        >>> round(low, 3), round(high, 3)
        (-0.484, 4.484)
    """
    if standard_error is None or num_values < 2:
        return None
    half = t_bound(num_values - 1) * standard_error
    return mean - half, mean + half


def t_bound(degrees: int, confidence: float = CONFIDENCE) -> float:
    """The number that Student's t stays within, in absolute value, with a given probability.

    Args:
        degrees: of freedom, >= 1.
        confidence: the probability, below 1.

    Returns:
        The bound, to about 12 digits.

    Example:
        >>> round(t_bound(2), 4), round(t_bound(7, 0.99), 4)
        (4.3027, 3.4995)
    """
    low, high = 0.0, 64.0
    while _within(high, degrees) < confidence:
        high *= 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < confidence else (low, middle)
    return high


def _within(bound: float, degrees: int) -> float:
    """P(|t| <= bound).

    Source:
        Abramowitz and Stegun (1972), Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    angle = math.atan(bound / math.sqrt(degrees))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    is_odd = degrees % 2
    term = math.cos(angle) if is_odd else 1.0
    total = 0.0
    for index in range(degrees // 2):
        total += term
        order = 2 * index + 1 + is_odd
        term *= square * order / (order + 1)
    return 2 / math.pi * (angle + sine * total) if is_odd else sine * total
