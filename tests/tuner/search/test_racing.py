"""Lanes that come by one after the other: what is compared with what, and who is spared."""

from __future__ import annotations

from math import inf

import pytest

from tuner.search.racing import is_hopeless

OTHERS = {"off": {0: 1.0, 1: 1.0}, "a": {0: 1.1, 1: 1.3}, "b": {0: 1.2}, "c": {0: 1.4, 1: 5.0}}


def judge(trial: str, values: dict[int, float], *, protected: str = "off", factor: float = 3.0) -> bool:
    rung = OTHERS | {trial: values}
    return is_hopeless(trial, rung, clips=set(rung) - {"off"}, protected=[protected], reduction_factor=factor)


def test_worst_of_five_ends() -> None:
    assert judge("new", {0: 2.0})


def test_best_goes_on() -> None:
    assert not judge("new", {0: 0.9})


def test_only_trials_with_the_same_seeds_count() -> None:
    """Three others have seed 0 and 1; with this one they are four, and it is the worst but one of them."""
    assert judge("new", {0: 1.0, 1: 2.0}, factor=2.0)


def test_seed_that_nobody_else_has_yet_leaves_the_decision_to_the_others() -> None:
    assert not judge("new", {0: 1.0, 1: 1.0, 2: 9.0})
    assert judge("new", {0: 9.0, 5: 0.1})
    rung = {"a": {0: 1.0}, "b": {0: 1.1}, "c": {0: 1.2}, "new": {0: 9.0, 1: 1.0}}
    assert is_hopeless("new", rung, clips=[], protected=[], reduction_factor=3.0)


def test_protected_trial_goes_on() -> None:
    assert not judge("off", {0: 9.0})


def test_best_that_clips_goes_on_though_many_do_better_without() -> None:
    rung = {f"off{number}": {0: 1.0 + number / 10} for number in range(5)} | {"clip": {0: 2.0}}
    assert not is_hopeless("clip", rung, clips=["clip"], protected=[], reduction_factor=3.0)


@pytest.mark.parametrize("protected", ["off", "new"])
def test_diverged_trial_ends_unless_it_is_protected(protected: str) -> None:
    assert judge("new", {0: inf}, protected=protected) is (protected == "off")


def test_trial_without_a_value_is_an_error() -> None:
    with pytest.raises(KeyError):
        is_hopeless("new", OTHERS, clips=[], protected=[], reduction_factor=3.0)
