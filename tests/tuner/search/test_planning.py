"""Open trials become a cohort; ended ones its history."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from tuner.evidence import Reference, Stage, Trial, TrialState
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


FRESH = (2, 3, 4)


def confirming(
    make: Callable[..., Trial], setting: str, number: int, *values: float, **fields: object
) -> Trial:
    state = TrialState.COMPLETE if values else TrialState.WAITING
    given = {"state": state, "stage": Stage.CONFIRM, "seeds": FRESH, "cohort": 1, **fields}
    return make(setting, *values, number=number, **given)


def test_confirmation_is_planned_on_its_seeds_with_everything_protected_and_no_history(
    trial: Callable[..., Trial], reference: Reference
) -> None:
    trials = [
        trial("none", 3.0, 5.0, number=0, rungs={30: {0: 4.0, 1: 6.0}, 90: {0: 3.0, 1: 5.0}}),
        trial("value:2", 1.0, 1.0, number=1, rungs={30: {0: 2.0, 1: 2.0}, 90: {0: 1.0, 1: 1.0}}),
        confirming(trial, "none", 2),
        confirming(trial, "value:2", 3),
    ]
    cohort = plan_cohort(SPEC, reference, {}, trials)
    assert cohort is not None
    assert [(each.id, each.protected) for each in cohort.trials] == [("2-none", True), ("3-value:2", True)]
    assert (cohort.seeds, cohort.history, cohort.ended) == (FRESH, {}, ())
    assert cohort.rung_steps == (30, 90)


def test_search_is_finished_before_a_confirmation_and_rounds_one_by_one(
    trial: Callable[..., Trial], reference: Reference
) -> None:
    trials = [
        trial("none", 3.0, 5.0, number=0, seeds=(0, 1)),
        trial("value:2", number=1, state=TrialState.RUNNING, seeds=(0, 1)),
        confirming(trial, "none", 2),
        confirming(trial, "none", 3, seeds=(5, 6), cohort=2),
    ]
    for number, seeds in ((1, (0, 1)), (2, FRESH), (3, (5, 6))):
        cohort = plan_cohort(SPEC, reference, {}, trials)
        assert cohort is not None
        assert [each.id for each in cohort.trials] == [trials[number].id]
        assert cohort.seeds == seeds
        trials[number] = dataclasses.replace(trials[number], state=TrialState.COMPLETE)
    assert plan_cohort(SPEC, reference, {}, trials) is None


def test_crash_in_the_middle_of_a_confirmation_names_what_ended_in_it(
    trial: Callable[..., Trial], reference: Reference
) -> None:
    rungs = {30: dict.fromkeys(FRESH, 2.0), 90: dict.fromkeys(FRESH, 1.0)}
    trials = [
        trial("none", 3.0, 5.0, number=0, rungs={30: {0: 4.0, 1: 6.0}}, seeds=(0, 1)),
        confirming(trial, "none", 1, 1.0, 1.0, 1.0, rungs=rungs),
        confirming(trial, "value:2", 2, state=TrialState.FAIL),
        confirming(trial, "value:1", 3, state=TrialState.RUNNING),
        confirming(trial, "value:3", 4, 1.0, 1.0, 1.0, cohort=0),
    ]
    cohort = plan_cohort(SPEC, reference, {}, trials)
    assert cohort is not None
    assert [each.id for each in cohort.trials] == ["3-value:1"]
    assert cohort.history == {}
    # Of its own cohort, and of nothing else.
    assert cohort.ended == ("1-none",)


def test_off_at_another_rate_is_a_candidate_like_others(
    trial: Callable[..., Trial], reference: Reference
) -> None:
    waiting = [
        trial(each, number=number, state=TrialState.WAITING)
        for number, each in enumerate(("none", "none@0.5", "value:1@0.5"))
    ]
    cohort = plan_cohort(SPEC, reference, {}, waiting)
    assert cohort is not None
    assert [each.protected for each in cohort.trials] == [True, False, False]
