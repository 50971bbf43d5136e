"""Whether a trial whose lane has just reached a rung goes on: pure, from what the others did there.

Read after the report was committed: of two lanes that reach a rung at once, the later one sees both. If the process
dies before the decision, the repeated report decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row

from service.lanes.lane import LaneStatus, trial_setting
from tuner.search.racing import is_hopeless
from tuner.spec import StudySpec


def ends_trial(rivals: Sequence[Row[Any]], *, trial_id: str, rungs: Sequence[int], spec: StudySpec) -> bool:
    """Whether a trial is among the worst of its study at one of the rungs that it has reached.

    Args:
        rivals: lanes of the search that were ever leased, with their trials: rows of the statement ``rivals``.
        trial_id: the trial.
        rungs: which rungs, at least one of several.
        spec: the study's question.

    Returns:
        True if nothing more of it is worth training. False for *off*, today's value and what is confirmed.
    """
    trials = {row.trial_id: row for row in rivals}
    own = trials.get(trial_id)
    if own is None:
        return False
    # The best one that clips is spared, so that one is left in the end: it must be one that still trains.
    clips = {each for each, row in trials.items() if row.threshold is not None and not row.is_over}
    protected = {
        each for each, row in trials.items() if row.threshold is None or trial_setting(row) == spec.current
    }
    if trial_id in protected:
        return False
    factor = spec.rung_steps[-1] / spec.rung_steps[-2]
    for rung in rungs:
        values = _values_at(rivals, rung)
        if trial_id in values and is_hopeless(
            trial_id, values, clips=clips, protected=protected, reduction_factor=factor
        ):
            return True
    return False


def _values_at(rivals: Sequence[Row[Any]], rung: int) -> dict[str, dict[int, float]]:
    """Per trial its objective by seed at a rung; a lane that diverged before it got past counts as infinite."""
    values: dict[str, dict[int, float]] = {}
    for lane in rivals:
        _, value = lane.rungs.get(str(rung), (None, None))
        if value is None and lane.state == LaneStatus.DIVERGED:
            value = math.inf
        if value is not None:
            values.setdefault(lane.trial_id, {})[lane.seed] = value
    return values
