"""What counts as a failure, and how sure a rate is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import scipy.stats

from tuner.evidence import Trial, TrialState
from tuner.search.failure import failure_rate, goal, has_failed

MakeTrial = Callable[..., Trial]


@pytest.mark.parametrize(
    ("initial", "value", "aim", "expected"),
    [
        # From 100 to 1 half of the way, on a logarithmic scale, is 10.
        (100.0, 10.1, 1.0, True),
        (100.0, 9.9, 1.0, False),
        (100.0, 100.0, 1.0, True),
        (100.0, 250.0, 1.0, True),  # worse than at the start
        (100.0, 0.5, 1.0, False),  # better than the goal: a mean over seeds
        # From 2.3 to 1.0: half of the way is the root of 2.3, 1.517.
        (2.3, 1.52, 1.0, True),
        (2.3, 1.51, 1.0, False),
        # The goal does not halve the start: there is no way to have made half of.
        (1.99, 1.99, 1.0, False),
        (2.0, 1.99, 1.0, True),
        # A logarithm needs positive objectives; only divergence counts then.
        (100.0, 90.0, -1.0, False),
        (100.0, 90.0, 0.0, False),
        (100.0, -1.0, 1.0, False),
        (-5.0, 90.0, 1.0, False),
        # Nothing to measure the way by.
        (None, 90.0, 1.0, False),
        (100.0, 90.0, None, False),
        # Divergence always counts.
        (None, None, None, True),
        (100.0, None, -1.0, True),
    ],
)
def test_half_of_the_way(
    trial: MakeTrial, initial: float | None, value: float | None, aim: float | None, expected: bool
) -> None:
    (lane,) = trial("none", value, initial=initial).lanes
    assert has_failed(lane, aim) is expected


def test_goal_is_the_lowest_mean_of_a_trial_that_ended_soundly(trial: MakeTrial) -> None:
    trials = [
        trial("none", 3.0, 5.0),
        trial("value:1", 2.0, 3.0),
        trial("value:2", 0.5, None),
        trial("value:3", 0.5, 0.5, state=TrialState.PRUNED),
        trial("value:4", state=TrialState.RUNNING),
        trial("value:5", state=TrialState.FAIL),
    ]
    assert goal(trials) == 2.5
    assert goal(trials[:1]) == 4.0
    assert goal(trials[2:]) is None
    assert goal([]) is None


@pytest.mark.parametrize("num_lanes", [1, 2, 3, 9, 12, 100])
def test_interval_of_a_rate_is_scipys_wilson_interval(num_lanes: int) -> None:
    for num_failed in range(num_lanes + 1):
        found = failure_rate(num_failed, num_lanes)
        expected = scipy.stats.binomtest(num_failed, num_lanes).proportion_ci(method="wilson")
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-6, abs=1e-12)
        assert (found.num_failed, found.num_lanes) == (num_failed, num_lanes)
        assert 0 <= found.low <= num_failed / num_lanes <= found.high <= 1
