"""The chart: every setting is where its threshold and objective put it."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from service.cli.chart import Point, draw_chart

THRESHOLDS = st.floats(1e-4, 1e4)
VALUES = st.floats(-10, 10)


def plot(lines: list[str]) -> list[str]:
    return [line.partition("|")[2] for line in lines if "|" in line]


def test_smaller_objective_is_lower_and_larger_threshold_further_right() -> None:
    rows = plot(draw_chart([Point(0.1, 3.0), Point(1.0, 1.0), Point(10.0, 2.0)], title="loss"))
    found = {row.index("*"): height for height, row in enumerate(rows) if "*" in row}
    assert len(found) == 3
    columns = sorted(found)
    assert [found[column] for column in columns] == [0, len(rows) - 1, (len(rows) - 1) // 2]


def test_thresholds_are_spaced_by_their_logarithm() -> None:
    rows = plot(draw_chart([Point(0.01, 1.0), Point(0.1, 1.0), Point(1.0, 1.0)], title="loss", width=41))
    line = next(row for row in rows if "*" in row)
    assert [index for index, mark in enumerate(line) if mark == "*"] == [0, 20, 40]


def test_marks_tell_what_happened() -> None:
    points = [
        Point(0.1, 1.0),
        Point(1.0, 2.0, pruned=True),
        Point(10.0, 3.0, diverged=True),
        Point(None, 4.0),
    ]
    text = "".join(plot(draw_chart(points, title="loss")))
    assert sorted(text.replace(" ", "")) == sorted("*.xo")


def test_interval_stands_on_the_axis_under_its_settings() -> None:
    lines = draw_chart(
        [Point(0.1, 2.0), Point(1.0, 1.0), Point(10.0, 1.0), Point(100.0, 3.0)],
        title="loss",
        interval=(1.0, 10.0),
    )
    row = next(line for line in reversed(lines) if "*" in line)
    axis = next(line for line in lines if "+" in line)
    columns = [index for index, mark in enumerate(row) if mark == "*"]
    assert [axis[column] for column in columns] == ["[", "]"]


def test_outlier_does_not_flatten_the_rest() -> None:
    points = [Point(0.1 * 2**index, 1.0 + index / 10) for index in range(6)] + [Point(1000.0, 1e9)]
    lines = draw_chart(points, title="loss")
    assert "above the top line" in lines[0]
    assert sum("*" in row for row in plot(lines)) >= 4


def test_nothing_to_draw() -> None:
    assert draw_chart([Point(None, 1.0), Point(0.1, None)], title="loss") == []


@given(st.lists(st.builds(Point, THRESHOLDS | st.none(), VALUES | st.none(), st.booleans(), st.booleans())))
def test_any_points_fit_the_canvas(points: list[Point]) -> None:
    lines = draw_chart(points, title="loss", width=30, height=5)
    has_threshold = any(point.threshold is not None and point.value is not None for point in points)
    assert bool(lines) == has_threshold
    rows = plot(lines)
    assert all(len(row) == 34 for row in rows)
    assert sum(len(row.replace(" ", "")) for row in rows) <= len(points)
    assert all(math.isfinite(float(line.partition("|")[0])) for line in lines if "|" in line)
