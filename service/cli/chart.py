"""Threshold against objective as lines of text: where the good settings are, at a glance.

`*` is a setting trained to the end, `.` one that was stopped early (at the value it had then), `x` one with a
diverged seed, `o` is *off* (at the right, with no threshold). `[===]` on the axis is the interval of equally
good thresholds. Pure: points in, lines out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: Values further above the best than this share of the (best to median) distance are drawn on the top line.
_HEADROOM = 3.0


@dataclass(frozen=True)
class Point:
    """One setting of a chart.

    Attributes:
        threshold: in the method's unit, > 0; None is *off*.
        value: the objective; None if it is not known.
        diverged: whether a seed diverged.
        pruned: whether it was stopped early.
    """

    threshold: float | None
    value: float | None
    diverged: bool = False
    pruned: bool = False

    @property
    def mark(self) -> str:
        """The character that stands for it."""
        if self.diverged:
            return "x"
        if self.threshold is None:
            return "o"
        return "." if self.pruned else "*"


def draw_chart(
    points: Sequence[Point],
    *,
    title: str,
    interval: tuple[float, float] | None = None,
    coordinate: Callable[[float], float] = float,
    width: int = 64,
    height: int = 9,
) -> list[str]:
    """Draw thresholds (logarithmic) against the objective (linear, smaller is better).

    Args:
        points: settings of one method, and *off*.
        title: name of the objective, written above the axis.
        interval: equally good thresholds, marked on the axis.
        coordinate: what is drawn logarithmically: the threshold, or its method's `tuner.methods.Method.coordinate`.
        width: columns between the axes, at least 20.
        height: lines of the plot, at least 3.

    Returns:
        Lines of ASCII; empty if no setting with a threshold has a value.

    Example:
        >>> points = [Point(0.1, 2.0), Point(1.0, 1.0), Point(None, 3.0)]
        >>> for line in draw_chart(points, title="loss", width=20, height=3):
        ...     print(line.rstrip())
         loss
         3.000 |                       o
         2.000 |*
         1.000 |                   *
               +---------------------------> threshold (log)
                0.1                1  off
    """
    drawn = [point for point in points if point.value is not None and math.isfinite(point.value)]
    thresholds = [point.threshold for point in drawn if point.threshold is not None]
    if not thresholds:
        return []
    values = sorted(point.value for point in drawn if point.value is not None)
    best, middle = values[0], values[len(values) // 2]
    top = min(values[-1], best + _HEADROOM * max(middle - best, 0.02 * abs(best))) or 1.0
    low, high = math.log(coordinate(min(thresholds))), math.log(coordinate(max(thresholds)))
    off_column = width + 3

    def column(threshold: float | None) -> int:
        if threshold is None:
            return off_column
        return round((math.log(coordinate(threshold)) - low) / (high - low or 1.0) * (width - 1))

    def line(value: float) -> int:
        share = (min(value, top) - best) / (top - best or 1.0)
        return height - 1 - round(share * (height - 1))

    canvas = [[" "] * (width + 4) for _ in range(height)]
    # Where two fall on one spot, the setting that was trained to the end is seen.
    for point in sorted(drawn, key=lambda each: ".xo*".index(each.mark)):
        canvas[line(point.value or 0.0)][column(point.threshold)] = point.mark
    labels = [top - (top - best) * index / (height - 1) for index in range(height)]
    size = max(len(f"{label:.3f}") for label in labels) + 1
    lines = [f" {title}" + ("   (values above the top line are drawn on it)" if values[-1] > top else "")]
    lines += [f"{label:>{size}.3f} |{''.join(row)}" for label, row in zip(labels, canvas, strict=True)]
    axis = ["-"] * (width + 7)
    if interval is not None:
        start, end = column(interval[0]), column(interval[1])
        axis[start : end + 1] = ["="] * (end - start + 1)
        axis[start], axis[end] = "[", "]"
    lines.append(f"{'':>{size}} +{''.join(axis)}> threshold (log)")
    left, right = f"{min(thresholds):g}", f"{max(thresholds):g}"
    ticks = left + right.rjust(width - len(left)) + "off".rjust(off_column - width + 2)
    lines.append(f"{'':>{size}}  {ticks}")
    return lines
