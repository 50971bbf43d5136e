"""Median pruning, as tables with their arithmetic."""

from __future__ import annotations

import math

import pytest

from tuner.search.pruning import median_prune

INF = math.inf


@pytest.mark.parametrize(
    ("values", "history", "protected", "expected"),
    [
        # Means 1, 2, 3, 4: median 2.5.
        ({"a": [1.0], "b": [2.0], "c": [3.0], "d": [4.0]}, [], [], ("c", "d")),
        # The same means from two seeds each.
        ({"a": [0, 2], "b": [1, 3], "c": [2, 4], "d": [3, 5]}, [], [], ("c", "d")),
        # Protected trials count for the median and stay.
        ({"off": [4.0], "b": [2.0], "c": [3.0], "d": [1.0]}, [], ["off"], ("c",)),
        # Three values are too few to judge.
        ({"a": [1.0], "b": [2.0], "c": [3.0]}, [], [], ()),
        # With one more from history: means 1, 2, 3 and 1.5, median 1.75.
        ({"a": [1.0], "b": [2.0], "c": [3.0]}, [1.5], [], ("b", "c")),
        # A trial at the median goes on: 1, 2, 2, 3 has median 2.
        ({"a": [2.0], "b": [2.0]}, [1.0, 3.0], [], ()),
        # One diverged seed makes the mean infinite: 1, 2, inf, 1 has median 1.5.
        ({"a": [1.0, 1.0], "b": [2.0, 2.0], "c": [0.5, INF]}, [1.0], [], ("b", "c")),
        # If the median itself is infinite, one diverged seed of two is not worse than it ...
        ({"a": [1.0, INF], "b": [INF, INF]}, [INF, INF], [], ("b",)),
        # ... and a trial that diverged in every seed ends even with too few values ...
        ({"a": [INF, INF], "b": [1.0, 1.0]}, [], [], ("a",)),
        # ... unless it is protected.
        ({"off": [INF, INF], "b": [1.0, 1.0]}, [], ["off"], ()),
        ({}, [1.0, 2.0, 3.0, 4.0], [], ()),
    ],
)
def test_table(values: dict, history: list, protected: list, expected: tuple) -> None:
    assert median_prune(values, history, protected) == expected
