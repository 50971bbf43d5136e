"""Proposals lie on the method's axis, differ from what was tried, and fill the widest gap."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

import pytest

from tuner.evidence import Trial
from tuner.methods import METHODS, get_method
from tuner.search import sampler
from tuner.search.sampler import propose
from tuner.search.space import RateRange, Space, ThresholdRange, is_same
from tuner.spec import ClipSetting

RANGES = {
    "global_norm": ThresholdRange(method="global_norm", low=0.01, high=10.0),
    **{
        name: ThresholdRange(method=name, low=each.threshold_low, high=each.threshold_high)
        for name, each in METHODS.items()
        if each.threshold_low is not None and each.threshold_high is not None
    },
}


def ended(trial: Callable[..., Trial], method: str) -> list[Trial]:
    """Five trials whose values are best at an even place of the axis."""
    space = RANGES[method]
    low, high = (math.log(end) for end in space.coordinates)
    trials = []
    for number, threshold in enumerate(space.spread(5)):
        place = (math.log(space.axis.coordinate(threshold)) - low) / (high - low)
        values = [(place - 0.3) ** 2 + 0.001 * seed for seed in range(2)]
        trials.append(trial(f"{method}:{threshold:.12g}", *values, number=number))
    return trials


@pytest.mark.parametrize("method", RANGES)
def test_proposals_are_in_the_range_rounded_and_new(trial: Callable[..., Trial], method: str) -> None:
    space, trials = RANGES[method], ended(trial, method)
    found = propose(Space(ranges=(space,)), trials, [], count=6, seed=0)
    assert all(space.contains(each) for each in found)
    assert all(each.threshold == space.rounded(each.threshold or 0.0) for each in found)
    settings = [*found, *(each.setting for each in trials)]
    assert not any(is_same(one, other) for one, other in combinations(settings, 2))
    assert found == propose(Space(ranges=(space,)), trials, [], count=6, seed=0)


@pytest.mark.parametrize("method", RANGES)
def test_proposals_crowd_around_the_best(trial: Callable[..., Trial], method: str) -> None:
    space = RANGES[method]
    low, high = (math.log(end) for end in space.coordinates)
    found = propose(Space(ranges=(space,)), ended(trial, method), [], count=12, seed=1)
    places = [(math.log(space.axis.coordinate(each.threshold or 0.0)) - low) / (high - low) for each in found]
    assert sum(place < 0.6 for place in places) > 6


def test_same_trials_give_equal_places_on_every_logarithmic_axis(trial: Callable[..., Trial]) -> None:
    """The sampler sees coordinates: a ratio of 1 + x is searched exactly as a norm of x."""
    norm = ThresholdRange(method="global_norm", low=0.0625, high=1.0)
    ratio = ThresholdRange(method="adagc", low=1.0625, high=2.0)
    by_norm = [trial(f"global_norm:{x}", x, x, number=number) for number, x in enumerate((0.125, 0.25, 0.5))]
    by_ratio = [trial(f"adagc:{1 + x}", x, x, number=number) for number, x in enumerate((0.125, 0.25, 0.5))]
    one = propose(Space(ranges=(norm,)), by_norm, [], count=4, seed=3)
    other = propose(Space(ranges=(ratio,)), by_ratio, [], count=4, seed=3)
    for first, second in zip(one, other, strict=True):
        assert get_method("adagc").coordinate(second.threshold or 0.0) == pytest.approx(first.threshold)


@pytest.mark.parametrize(
    ("method", "tried", "middle"),
    [
        ("global_norm", ["0.01", "0.1", "10"], 1.0),
        ("norm_growth", ["1.01", "1.1", "2"], 1.00316),
        ("autoclip", ["1", "50", "90"], 9.13),
    ],
)
def test_widest_gap_is_widest_on_the_axis(method: str, tried: list[str], middle: float) -> None:
    taken = [ClipSetting.parse(f"{method}:{each}") for each in tried]
    assert sampler._widest_gap(Space(ranges=(RANGES[method],)), taken).threshold == middle


def test_methods_on_different_axes_are_searched_together(trial: Callable[..., Trial]) -> None:
    ranges = (RANGES["global_norm"], RANGES["autoclip"], RANGES["norm_growth"])
    trials = [
        trial("global_norm:0.1", 1.0, 1.1, number=0),
        trial("autoclip:10", 2.0, 2.1, number=1),
        trial("norm_growth:1.01", 3.0, 3.1, number=2),
        trial("none", 3.0, 3.1, number=3),
    ]
    found = propose(Space(ranges=ranges), trials, [], count=8, seed=0)
    assert all(any(space.contains(each) for space in ranges) for each in found)
    assert len({each.method for each in found}) > 1


def test_tuned_rate_is_proposed_for_off_too(trial: Callable[..., Trial]) -> None:
    space = Space(ranges=(RANGES["global_norm"],), rates=RateRange(low=0.1, high=10.0), has_step_cap=True)
    trials = [
        trial("none", 3.0, 3.1, number=0),
        trial("none@0.3", 1.0, 1.1, number=1),
        trial("none@0.2", 1.0, 1.2, number=2),
        trial("global_norm:1", 2.0, 2.1, number=3),
        trial("global_norm:1@3", 4.0, None, number=4),
    ]
    found = propose(space, trials, [], count=12, seed=0)
    assert {each.method for each in found} == {"none", "global_norm"}
    assert all(0.1 <= each.learning_rate_scale <= 10 for each in found)
    assert len({each.learning_rate_scale for each in found}) > 6
    settings = [*found, *(each.setting for each in trials)]
    assert not any(is_same(one, other) for one, other in combinations(settings, 2))


def test_widest_gap_is_filled_at_a_rate_of_the_range() -> None:
    space = Space(ranges=(RANGES["global_norm"],), rates=RateRange(low=0.1, high=0.5))
    assert 0.1 <= sampler._widest_gap(space, []).learning_rate_scale <= 0.5
