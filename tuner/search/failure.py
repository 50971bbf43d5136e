"""Which lanes failed: diverged, or ended far from where training gets: pure.

A run without clipping often does not become infinite: it blows up, is left with a dead network and ends at a finite,
useless loss. A mean over seeds with one such run says nothing, so it is counted as a failure beside the divergences.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from tuner.evidence import FailureRate, LaneResult, Trial, TrialState

#: A lane that made less than this share of the way from the start to the goal, on a logarithmic scale, has failed.
LEAST_PROGRESS = 0.5
#: The goal must be better than the start by this factor; else there is no way to have made half of.
LEAST_RATIO = 2.0
#: Quantile of the normal distribution for a two-sided 95 % interval.
_Z95 = 1.959964


def goal(trials: Iterable[Trial]) -> float | None:
    """What training reaches: the lowest mean objective of a trial that was trained to the end without divergence.

    Args:
        trials: of one study, whatever their state.

    Returns:
        The mean; None without such a trial.
    """
    sound = [
        trial
        for trial in trials
        if trial.state is TrialState.COMPLETE and trial.lanes and trial.num_diverged == 0
    ]
    means = [
        sum(lane.value for lane in trial.lanes if lane.value is not None) / len(trial.lanes)
        for trial in sound
    ]
    return min(means, default=None)


def has_failed(lane: LaneResult, goal: float | None) -> bool:
    """Whether a lane counts as a failure.

    Args:
        lane: a lane that ended.
        goal: from `goal`; None leaves divergence alone to decide.

    Returns:
        True if it diverged, or if it made less than half of the way from its start to the goal. The way is measured
        on a logarithmic scale, for positive objectives that the goal at least halves; otherwise only divergence counts.

    Example:
        From 100 to a goal of 1, ending at 30 is a quarter of the way.

        >>> from dataclasses import replace
        >>> lane = LaneResult(seed=0, value=30.0, initial=100.0, seconds=0.0, num_steps=9, divergence_step=None,
        ...     clip_fraction=0.0, mean_scale=1.0, norms=None, num_non_finite=0)
        >>> has_failed(lane, 1.0), has_failed(replace(lane, value=3.0), 1.0)
        (True, False)
    """
    if lane.value is None:
        return True
    if (
        goal is None
        or lane.initial is None
        or min(goal, lane.value) <= 0
        or lane.initial < LEAST_RATIO * goal
    ):
        return False
    return math.log(lane.initial / lane.value) < LEAST_PROGRESS * math.log(lane.initial / goal)


def failure_rate(num_failed: int, num_lanes: int) -> FailureRate:
    """A share of failed lanes with its 95 % interval.

    Args:
        num_failed: at most ``num_lanes``.
        num_lanes: at least 1.

    Returns:
        The rate.

    Source:
        Wilson (1927), https://doi.org/10.1080/01621459.1927.10502953: the score interval, which stays inside
        [0, 1] and says something even when no lane failed.

    Example:
        >>> rate = failure_rate(0, 9)
        >>> rate.low, round(rate.high, 3)
        (0.0, 0.299)
    """
    share, square = num_failed / num_lanes, _Z95**2
    centre = (share + square / (2 * num_lanes)) / (1 + square / num_lanes)
    half = (
        _Z95
        * math.sqrt(share * (1 - share) / num_lanes + square / (4 * num_lanes**2))
        / (1 + square / num_lanes)
    )
    return FailureRate(
        num_failed=num_failed,
        num_lanes=num_lanes,
        low=max(0.0, centre - half) if num_failed else 0.0,
        high=min(1.0, centre + half) if num_failed < num_lanes else 1.0,
    )
