"""Open trials become a cohort; ended ones its history."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from tuner.evidence import Reference, Trial, TrialState
from tuner.search.planning import plan_cohort
from tuner.spec import ClipSetting, StudySpec

SPEC = StudySpec(workload="w", current=ClipSetting.parse("value:1"), num_seeds=2, num_steps=90, num_rungs=2)


def test_open_trials_are_planned_by_number_with_off_and_today_protected(
    trial: Callable[..., Trial], reference: Reference
) -> None:
    trials = [
        trial("value:1", number=2, state=TrialState.RUNNING),
        trial("none", number=1, state=TrialState.WAITING),
        trial("value:2", number=3, state=TrialState.WAITING),
        trial("value:3", 1.0, 1.0, number=0),
    ]
    cohort = plan_cohort(SPEC, reference, {"hidden": 4}, trials)
    assert cohort is not None
    assert [(str(each.setting), each.protected) for each in cohort.trials] == [
        ("none", True),
        ("value:1", True),
        ("value:2", False),
    ]
    assert cohort.seeds == (0, 1)
    assert cohort.rung_steps == (30, 90)
    assert cohort.parameters == {"hidden": 4}
    assert cohort.divergence_factor == SPEC.divergence_factor
    assert (cohort.reference_norm, cohort.largest_norm) == (1.0, 4.0)
    assert cohort.lanes == "auto"


def test_history_holds_every_ended_trial_at_the_rungs_it_reached(
    trial: Callable[..., Trial], reference: Reference
) -> None:
    trials = [
        trial("none", 3.0, 5.0, number=0, rungs={30: {0: 4.0, 1: 6.0}, 90: {0: 3.0, 1: 5.0}}),
        trial("value:2", 1.0, None, number=1, rungs={30: {0: 1.0, 1: None}}, state=TrialState.PRUNED),
        trial("value:3", number=2, rungs={30: {0: 9.0, 1: 9.0}}, state=TrialState.FAIL),
        trial("value:4", number=3, rungs={30: {0: 9.0, 1: 9.0}}, state=TrialState.RUNNING),
    ]
    cohort = plan_cohort(SPEC, reference, {}, trials)
    assert cohort is not None
    assert cohort.history == {30: (5.0, math.inf), 90: (4.0,)}


def test_nothing_open_is_nothing_to_plan(trial: Callable[..., Trial], reference: Reference) -> None:
    assert plan_cohort(SPEC, reference, {}, [trial("none", 1.0, 1.0)]) is None
    assert plan_cohort(dataclasses.replace(SPEC), reference, {}, []) is None
