"""Trials that need no training because *off* never came near their thresholds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from tuner.evidence import Stage, Trial, TrialState
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


@pytest.mark.parametrize(
    ("setting", "stage", "seeds"),
    [
        ("global_norm:100", Stage.CONFIRM, (2, 3)),
        ("global_norm:100", Stage.CONFIRM, (0, 1)),
        ("global_norm:100", Stage.SEARCH, (0, 2)),
        ("global_norm:100@0.5", Stage.SEARCH, (0, 1)),
    ],
)
def test_off_of_other_seeds_or_another_rate_says_nothing(
    trial: MakeTrial, setting: str, stage: Stage, seeds: tuple[int, ...]
) -> None:
    off = trial("none", 1.0, 2.0, seeds=(0, 1))
    waiting = trial(setting, number=1, state=TrialState.WAITING, stage=stage, seeds=seeds)
    assert settled([off, waiting]) == ()


def test_each_stage_and_each_rate_is_settled_by_its_own_off(trial: MakeTrial) -> None:
    offs = [
        trial("none", 1.0, 2.0, number=0, seeds=(0, 1)),
        trial("none@0.5", 3.0, 4.0, number=1, seeds=(0, 1)),
        trial("none", 5.0, 6.0, number=2, stage=Stage.CONFIRM, seeds=(2, 3)),
    ]
    waiting = [
        trial("global_norm:9@0.5", number=3, state=TrialState.WAITING, seeds=(0, 1)),
        trial("global_norm:9", number=4, state=TrialState.WAITING, seeds=(0, 1)),
        trial("global_norm:9", number=5, state=TrialState.RUNNING, stage=Stage.CONFIRM, seeds=(2, 3)),
    ]
    found = settled([*offs, *waiting])
    assert [event.trial_id for event in found] == [each.id for each in waiting]
    assert [[lane.value for lane in event.lanes] for event in found] == [[3.0, 4.0], [1.0, 2.0], [5.0, 6.0]]
    assert [lane.seed for lane in found[2].lanes] == [2, 3]


def test_later_cohort_of_a_study_does_not_train_what_off_is(off: Trial) -> None:
    events = []
    answer = tune(
        "digits-mlp",
        num_trials=4,
        num_seeds=2,
        num_confirm_seeds=0,
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
