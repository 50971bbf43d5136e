"""One part of a cohort measures how lanes train; the others wait for its word, also when it is lost."""

from __future__ import annotations

import pytest

from service.worker.shared_path import MOST_ASKED, SharedPath
from tuner.training.cohort import EngineChosen

LANES = EngineChosen(path="lanes", num_lanes=8, reason="3.0 times as fast as one lane at a time")
SOLO = EngineChosen(path="solo", num_lanes=1, reason="one lane at a time is 2.0 times as fast")


def test_first_measures_and_the_others_take_its_word() -> None:
    shared = SharedPath()
    for part in (2, 0, 1):
        shared.want(part)
    assert list(shared.answers()) == [(2, None)]
    assert list(shared.answers()) == []
    assert [shared.is_waiting(part) for part in range(3)] == [True, True, False]
    shared.told(2, LANES)
    assert list(shared.answers()) == [(0, "lanes"), (1, "lanes")]
    shared.want(2)
    assert list(shared.answers()) == [(2, "lanes")], "launched again"


def test_another_measures_if_the_first_is_lost() -> None:
    shared = SharedPath()
    shared.want(0)
    shared.want(1)
    assert list(shared.answers()) == [(0, None)]
    shared.lost(0)
    assert list(shared.answers()) == [(1, None)]
    shared.want(0)
    assert list(shared.answers()) == []
    shared.told(1, SOLO)
    assert list(shared.answers()) == [(0, "solo")]


def test_one_that_is_lost_while_it_waits_is_not_answered() -> None:
    shared = SharedPath()
    shared.want(0)
    shared.want(1)
    list(shared.answers())
    shared.lost(1)
    shared.told(0, SOLO)
    assert list(shared.answers()) == []


def test_one_that_asks_again_measures_once() -> None:
    """A checkpoint that can't be read makes a part ask twice."""
    shared = SharedPath()
    shared.want(0)
    assert list(shared.answers()) == [(0, None)]
    shared.want(0)
    shared.want(1)
    assert list(shared.answers()) == [(0, None)]
    assert shared.is_waiting(1)


def test_word_of_a_part_that_never_asked_counts() -> None:
    """It goes on from a checkpoint, or its workload can't be batched."""
    shared = SharedPath()
    shared.told(1, SOLO)
    shared.told(2, LANES)
    shared.want(0)
    assert list(shared.answers()) == [(0, "solo")]


def test_what_was_measured_before_stands() -> None:
    shared = SharedPath("lanes")
    shared.told(1, SOLO)
    shared.want(0)
    assert list(shared.answers()) == [(0, "lanes")]
    assert shared.known == "lanes"


def test_part_owes_its_word_from_when_it_measures_until_it_is_told() -> None:
    shared = SharedPath()
    shared.want(0)
    assert not shared.is_owing(0)
    list(shared.answers())
    assert shared.is_owing(0) and not shared.is_owing(1)
    shared.told(0, SOLO)
    assert not shared.is_owing(0)


def test_launch_that_asks_without_end_is_refused() -> None:
    shared = SharedPath("lanes")
    for _ in range(2):
        for _ in range(MOST_ASKED):
            shared.want(0)
            assert list(shared.answers()) == [(0, "lanes")]
        with pytest.raises(ValueError, match="part 0 asked more than 10 times how its lanes train"):
            shared.want(0)
        # Another launch may ask as often.
        shared.lost(0)
