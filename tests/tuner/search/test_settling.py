"""Trials that need no training because *off* never came near their thresholds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from tuner.evidence import Trial, TrialState
from tuner.search.recommendation import recommend
from tuner.search.settling import settled
from tuner.spec import StudySpec
from tuner.tuning import tune

MakeTrial = Callable[..., Trial]


@pytest.fixture
def off(trial: MakeTrial) -> Trial:
    """Off on two seeds; the largest norm of its steps is 4."""
    return trial("none", 1.0, 2.0, number=0)


def test_threshold_above_offs_largest_norm_is_settled_with_offs_results(off: Trial, trial: MakeTrial) -> None:
    (event,) = settled([off, trial("global_norm:4.1", number=1, state=TrialState.WAITING)])
    assert event.trial_id == "1-global_norm:4.1"
    assert event.state == "complete"
    assert [lane.value for lane in event.lanes] == [1.0, 2.0]
    assert all(lane.is_off_run and lane.seconds == 0 for lane in event.lanes)


@pytest.mark.parametrize(
    "setting",
    [
        "global_norm:3.9",
        "global_norm:4",  # torch clips from norm + 1e-6 > threshold on
        "global_norm_inf:100",  # compared with the largest element, which no result records
        "value:100",
        "zclip:5",
    ],
)
def test_what_may_act_is_not_settled(setting: str, off: Trial, trial: MakeTrial) -> None:
    assert settled([off, trial(setting, number=1, state=TrialState.WAITING)]) == ()


def test_nothing_is_settled_before_off_is_complete(off: Trial, trial: MakeTrial) -> None:
    waiting = trial("global_norm:100", number=1, state=TrialState.WAITING)
    assert settled([waiting]) == ()
    assert settled([dataclasses.replace(off, state=TrialState.RUNNING, lanes=()), waiting]) == ()


def test_ended_trials_are_left_alone(off: Trial, trial: MakeTrial) -> None:
    assert settled([off, trial("global_norm:100", 1.0, 1.0, number=1)]) == ()


def test_later_cohort_of_a_study_does_not_train_what_off_is(off: Trial) -> None:
    events = []
    answer = tune(
        "digits-mlp",
        num_trials=4,
        num_seeds=2,
        num_steps=6,
        num_rungs=1,
        cohort_size=2,
        threshold_low=50.0,
        threshold_high=5000.0,
        lanes=8,
        on_event=events.append,
    )
    trained = [event for event in events if event.kind == "rung"]
    assert len(trained) == 1, "the second cohort had nothing left to train"
    # Off under two seeds; everything else is off under another name.
    assert answer.lane_steps == 2 * 6
    assert answer.verdict == "no_difference"


def test_steps_shared_with_off_count_once(off: Trial, trial: MakeTrial, reference: object) -> None:
    clip = trial("global_norm:1", 1.0, 2.0, number=1)
    shared = tuple(dataclasses.replace(lane, num_shared_steps=40) for lane in clip.lanes)
    spec = StudySpec(workload="w", num_trials=2, num_seeds=2, num_steps=100)
    answer = recommend(spec, reference, [off, dataclasses.replace(clip, lanes=shared)])  # type: ignore[arg-type]
    assert answer.lane_steps == 200 + 2 * 60
