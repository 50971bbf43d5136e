"""When a search may end before its last trial, because more settings can't change the answer: pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from tuner.evidence import Stage, Trial, TrialState
from tuner.methods import get_method
from tuner.search.confirmation import baseline, candidates
from tuner.search.statistics import mean_value, paired_values, t_quantile
from tuner.spec import StudySpec

#: Neighbours of the leader that are closer than this factor on the axis bracket it: finer thresholds are within noise.
BRACKET = 1.3
#: Trials trained to the end, besides *off*, before it is said that nothing beats it.
MIN_COMPLETE = 3


def reason_to_stop(spec: StudySpec, trials: Iterable[Trial]) -> str | None:
    """Why no further setting need be tried.

    Args:
        spec: the question; its ``effect`` says what matters.
        trials: all trials of a study whose opening has been tried, none of the search's open.

    Returns:
        A sentence; None to go on.
    """
    search = tuple(trial for trial in trials if trial.stage is Stage.SEARCH)
    if spec.tunes_learning_rate:
        return None
    bracketed = _bracketed(search) if len(spec.methods) == 1 else None
    return _never_exceeded(search) or _nothing_beats_off(spec, search) or bracketed


def _never_exceeded(trials: Sequence[Trial]) -> str | None:
    """Every clip setting trained like *off*."""
    clip = [trial for trial in trials if not trial.setting.is_off and trial.lanes]
    if not clip or any(lane.may_have_clipped or lane.diverged for trial in clip for lane in trial.lanes):
        return None
    return f"none of {len(clip)} thresholds was ever exceeded, so that each trained like off"


def _nothing_beats_off(spec: StudySpec, trials: Sequence[Trial]) -> str | None:
    """No setting is better than *off* by what matters, even at the favourable end of its interval.

    The spread of the paired differences is pooled over all settings, because three seeds say little about it. They
    share the runs of *off*, so they are not independent and the interval is a little short: this ends a search, it is
    no verdict.
    """
    off, found = baseline(trials), candidates(trials)
    if off is None or off.num_diverged or len(found) < MIN_COMPLETE:
        return None
    theirs = {lane.seed: lane.value for lane in off.lanes}
    differences = [paired_values({lane.seed: lane.value for lane in trial.lanes}, theirs) for trial in found]
    freedom = sum(len(each) - 1 for each in differences)
    if freedom < 1:
        return None
    variance = sum((len(each) - 1) * statistics.variance(each) for each in differences) / freedom
    half = t_quantile(0.975, freedom) * math.sqrt(variance / len(theirs))
    best = min(map(statistics.fmean, differences))
    margin = spec.effect * abs(mean_value(theirs.values()))
    if best - half < -margin:
        return None
    return (
        f"none of {len(found)} settings trained to the end can be better than off by the {spec.effect:.3g} that "
        f"matters (the best by {-best:.3g}, at most {half - best:.3g})"
    )


def _bracketed(trials: Sequence[Trial]) -> str | None:
    """The leader has a neighbour close by on either side."""
    found = candidates(trials)
    if not found:
        return None
    leader = found[0].setting
    axis = get_method(leader.method)
    place = axis.coordinate(leader.threshold or 0.0)
    others = [
        axis.coordinate(trial.setting.threshold)
        for trial in trials
        if trial.setting.method == leader.method
        and trial.setting.threshold is not None
        and trial.state is not TrialState.FAIL
    ]
    below = max((each for each in others if each < place), default=0.0)
    above = min((each for each in others if each > place), default=math.inf)
    if place > below * BRACKET or above > place * BRACKET:
        return None
    low, high = axis.at_coordinate(below), axis.at_coordinate(above)
    return f"thresholds within 30 % on both sides of {leader} were tried ({low:.3g} and {high:.3g})"
