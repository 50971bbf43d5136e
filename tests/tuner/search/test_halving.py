"""Successive halving, as tables with their arithmetic."""

from __future__ import annotations

import math
import random

import pytest

from tuner.search.halving import halve, halving

INF = math.inf


@pytest.mark.parametrize(
    ("values", "history", "protected", "expected"),
    [
        # Means 1, 2, 3, 4: the best 4 / 2 = 2 go on.
        ({"a": [1.0], "b": [2.0], "c": [3.0], "d": [4.0]}, [], [], ("c", "d")),
        # The same means from two seeds each.
        ({"a": [0, 2], "b": [1, 3], "c": [2, 4], "d": [3, 5]}, [], [], ("c", "d")),
        # Of 5 the best 2.5, rounded up to 3.
        ({"a": [1.0], "b": [2.0], "c": [3.0], "d": [4.0], "e": [5.0]}, [], [], ("d", "e")),
        # Protected trials count among those known and stay.
        ({"off": [4.0], "b": [2.0], "c": [3.0], "d": [1.0]}, [], ["off"], ("c",)),
        # Three values are too few to judge.
        ({"a": [1.0], "b": [2.0], "c": [3.0]}, [], [], ()),
        # With one more from history: 1, 1.5, 2, 3, of which the best 2 go on.
        ({"a": [1.0], "b": [2.0], "c": [3.0]}, [1.5], [], ("b", "c")),
        # A cohort worse than its history ends whole.
        ({"a": [5.0], "b": [6.0]}, [1.0, 2.0], [], ("a", "b")),
        # Equal means are kept together, beyond the half ...
        ({"a": [1.0], "b": [1.0], "c": [1.0], "d": [3.0]}, [0.5, 2.0], [], ("d",)),
        # ... and ended together: 1, 1.5, 3, 4.
        ({"a": [3.0], "b": [3.0]}, [1.0, 1.5, 4.0], [], ("a", "b")),
        # Three distinct values are too few, however often they occur.
        ({"a": [1.0], "b": [1.0], "c": [1.0], "d": [2.0]}, [1.5], [], ()),
        # One diverged seed makes the mean infinite: 1, 1.5, 2, inf.
        ({"a": [1.0, 1.0], "b": [2.0, 2.0], "c": [0.5, INF]}, [1.5], [], ("b", "c")),
        # Equal means count once: off and three that were never exceeded, 2, leave room for 3, the best half of 4.
        (
            {"off": [2.0], "i": [2.0], "j": [2.0], "k": [2.0], "b": [3.0], "c": [4.0], "d": [5.0]},
            [],
            [],
            ("c", "d"),
        ),
        # Diverged ones count each: 1, 2, inf, inf.
        ({"a": [1.0], "b": [2.0], "c": [INF], "d": [INF]}, [], [], ("c", "d")),
        # If the bound itself is infinite, one diverged seed of two is not worse than it ...
        ({"a": [1.0, INF], "b": [INF, INF]}, [INF, INF], [], ("b",)),
        # ... and a trial that diverged in every seed ends even with too few values ...
        ({"a": [INF, INF], "b": [1.0, 1.0]}, [], [], ("a",)),
        # ... unless it is protected.
        ({"off": [INF, INF], "b": [1.0, 1.0]}, [], ["off"], ()),
        ({}, [1.0, 2.0, 3.0, 4.0], [], ()),
    ],
)
def test_half_goes_on(values: dict, history: list, protected: list, expected: tuple) -> None:
    assert halve(values, history, protected, reduction_factor=2) == expected


@pytest.mark.parametrize(
    ("clips", "expected"),
    [
        # Off and four of its rates fill the best half; without a word about clipping all clip settings end.
        ((), ("i", "x", "y", "z")),
        # The best that clips goes on; i trains like off, z diverged.
        (("i", "x", "y", "z"), ("i", "y", "z")),
        (("i", "z"), ("i", "x", "y", "z")),
    ],
)
def test_best_that_clips_goes_on(clips: tuple[str, ...], expected: tuple[str, ...]) -> None:
    values = {"off": [4.0, 4.0], "a": [1.0, 1.0], "b": [2.0, 2.0], "c": [2.5, 2.5], "d": [3.0, 3.0]}
    values |= {"i": [4.0, 4.0], "x": [5.0, 5.0], "y": [6.0, 6.0], "z": [INF, 1.0]}
    assert halve(values, [], ["off"], clips=clips, reduction_factor=2) == expected


@pytest.mark.parametrize(
    ("num_trials", "factor", "num_kept"),
    [
        (9, 3, 3),
        (8, 3, 3),  # 8 / 3 = 2.67
        (10, 3, 4),  # 10 / 3 = 3.33
        (27, 3, 9),
        (4, 10, 1),  # one is always kept
        (5, 1, 5),
        (400, 400 / 133, 133),  # the ratio of rungs that are not whole multiples
    ],
)
def test_one_in_as_many_as_the_factor_goes_on(num_trials: int, factor: float, num_kept: int) -> None:
    values = {str(number): [float(number)] for number in range(num_trials)}
    ended = halve(values, [], [], reduction_factor=factor)
    assert ended == tuple(str(number) for number in range(num_kept, num_trials))


@pytest.mark.parametrize(
    ("rung_steps", "num_kept"),
    [
        ((30, 90), 3),
        ((10, 30, 90), 3),
        ((5, 10), 5),  # 9 / 2 = 4.5
        ((90,), 9),  # a single rung is the end of everything
        ((1, 2, 3), 6),  # by the last two rungs: 9 / 1.5
    ],
)
def test_factor_is_the_ratio_of_the_last_two_rungs(rung_steps: tuple[int, ...], num_kept: int) -> None:
    values = {str(number): [float(number)] for number in range(9)}
    assert len(halving(rung_steps)(values, [], [])) == 9 - num_kept


def test_order_of_the_trials_does_not_matter() -> None:
    draw = random.Random(1)
    values = {str(number): [draw.random(), draw.random()] for number in range(20)}
    history = [draw.random() for _ in range(7)]
    ended = halve(values, history, ["3"], reduction_factor=3)
    shuffled = dict(draw.sample(list(values.items()), len(values)))
    assert set(halve(shuffled, history[::-1], ["3"], reduction_factor=3)) == set(ended)
    assert list(ended) == [name for name in values if name in ended]
