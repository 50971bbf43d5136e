"""The stretch that the opening leaves open, and the learning rates that a space spreads its settings over."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

import pytest

from tuner.evidence import Reference, Trial, TrialState
from tuner.search.space import RateRange, Space, ThresholdRange, is_same, refined, search_space
from tuner.spec import StudySpec

MakeTrial = Callable[..., Trial]
WHOLE = Space(ranges=(ThresholdRange(method="value", low=0.01, high=100.0),))


def ends(space: Space) -> list[tuple[float, float]]:
    return [(each.low, each.high) for each in space.ranges]


def ended(trial: MakeTrial, threshold: float, *values: float | None, steps: int = 100) -> Trial:
    made = trial(f"value:{threshold}", *values, number=round(threshold * 100))
    state = TrialState.COMPLETE if steps == 100 else TrialState.PRUNED
    lanes = tuple(dataclasses.replace(lane, num_steps=7 if lane.diverged else steps) for lane in made.lanes)
    return dataclasses.replace(made, state=state, lanes=lanes)


@pytest.mark.parametrize(
    ("trials", "expected"),
    [
        # Only 1 went to the end: from its lower neighbour to its upper one.
        ([(0.1, 30), (0.3, 30), (1, 100), (3, 30), (9, 30)], (0.3, 3.0)),
        # Two did, the stretch spans both and all between.
        ([(0.1, 30), (0.3, 100), (1, 30), (3, 100), (9, 30)], (0.1, 9.0)),
        # At the ends the range itself is the neighbour.
        ([(0.1, 100), (0.3, 30)], (0.01, 0.3)),
        ([(0.1, 30), (0.3, 100)], (0.1, 100.0)),
        ([(0.1, 100), (0.3, 100)], (0.01, 100.0)),
        # Where none went to the end, those that got furthest lead.
        ([(0.1, 10), (0.3, 30), (1, 10)], (0.1, 1.0)),
    ],
)
def test_stretch_goes_to_the_neighbours_of_those_that_got_furthest(
    trial: MakeTrial, trials: list[tuple[float, int]], expected: tuple[float, float]
) -> None:
    made = [ended(trial, threshold, 1.0, 1.0, steps=steps) for threshold, steps in trials]
    assert ends(refined(WHOLE, made)) == [expected]
    assert ends(refined(WHOLE, made[::-1])) == [expected]


def test_diverged_trial_bounds_the_stretch_but_does_not_lead(trial: MakeTrial) -> None:
    trials = [ended(trial, 0.1, 1.0, 1.0, steps=30), ended(trial, 1, 1.0, 1.0), ended(trial, 3, 0.5, None)]
    assert ends(refined(WHOLE, trials)) == [(0.1, 3.0)]
    assert ends(refined(WHOLE, [ended(trial, 3, 0.5, None)])) == [(0.01, 100.0)]


def test_trials_without_a_result_or_of_something_else_say_nothing(trial: MakeTrial) -> None:
    trials = [
        trial("value:0.5", state=TrialState.FAIL),
        trial("value:2", state=TrialState.WAITING),
        trial("none", 1.0, 1.0),
        trial("global_norm:1", 1.0, 1.0),
        trial("value:1000", 1.0, 1.0),  # today's value may lie outside the range
    ]
    assert refined(WHOLE, trials) == WHOLE
    assert ends(refined(WHOLE, [*trials, ended(trial, 1, 1.0, 1.0)])) == [(0.01, 100.0)]


def test_each_method_has_its_own_stretch(trial: MakeTrial) -> None:
    other = ThresholdRange(method="global_norm", low=0.1, high=10.0)
    space = Space(ranges=(*WHOLE.ranges, other))
    trials = [ended(trial, 0.1, 1.0, 1.0, steps=30), ended(trial, 1, 1.0, 1.0)]
    assert ends(refined(space, trials)) == [(0.1, 100.0), (0.1, 10.0)]


def test_with_a_tuned_rate_the_space_stays_whole(trial: MakeTrial) -> None:
    space = dataclasses.replace(WHOLE, rates=RateRange(low=0.1, high=10.0))
    assert refined(space, [ended(trial, 0.1, 1.0, 1.0), ended(trial, 1, 1.0, 1.0, steps=30)]) == space


def test_rates_are_the_middles_of_equal_parts() -> None:
    assert RateRange(low=0.1, high=10.0).spread(4) == (0.178, 0.562, 1.78, 5.62)
    assert RateRange(low=0.1, high=10.0).spread(0) == ()


def test_settings_fill_the_square_of_thresholds_and_rates_evenly() -> None:
    space = dataclasses.replace(WHOLE, rates=RateRange(low=0.1, high=10.0))
    settings = space.spread(space.ranges[0], 8)
    assert [each.threshold for each in settings] == list(space.ranges[0].spread(8))
    # 0.5, then 0.618 further each time, around the end: neighbours in threshold are far apart in rate.
    places = [math.log10(each.learning_rate_scale / 0.1) / 2 for each in settings]
    assert places == pytest.approx([0.5, 0.118, 0.736, 0.354, 0.972, 0.590, 0.208, 0.826], abs=2e-3)
    assert min(abs(one - other) for one, other in itertools.pairwise(places)) > 0.35
    assert not any(is_same(one, other) for one, other in itertools.combinations(settings, 2))


def test_without_rates_settings_keep_the_workloads_own() -> None:
    assert {each.learning_rate_scale for each in WHOLE.spread(WHOLE.ranges[0], 5)} == {1.0}
    assert WHOLE.spread(WHOLE.ranges[0], 0) == ()


def test_space_of_a_study_has_rates_only_if_they_are_tuned(
    reference: Reference, sgd_reference: Reference
) -> None:
    plain = StudySpec(workload="w")
    tuned = StudySpec(workload="w", learning_rate_low=0.5, learning_rate_high=2.0)
    assert search_space(plain, sgd_reference).rates is None
    assert search_space(tuned, reference).rates == RateRange(low=0.5, high=2.0)
    assert [search_space(tuned, each).has_step_cap for each in (reference, sgd_reference)] == [False, True]


def test_rounding_does_not_leave_a_narrow_range_of_rates() -> None:
    rates = RateRange(low=1.001, high=1.003)
    assert all(rates.low <= each <= rates.high for each in rates.spread(2))
