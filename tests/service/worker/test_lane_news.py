"""Lanes that end in any order are told like a training in one program."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from lane_states import lane

from service.lanes import LaneState, LaneStatus
from service.worker.lane_news import Told, lane_result, news
from tuner.spec import OFF_SETTING, ClipSetting
from tuner.training.cohort import Cohort, CohortTrial, LaneValue, Progressed, RungReached, TrialEnded

HALF = ClipSetting(method="global_norm", threshold=0.5)
COHORT = Cohort(
    workload="w",
    parameters={},
    trials=(CohortTrial(id="off", setting=OFF_SETTING, protected=True), CohortTrial(id="half", setting=HALF)),
    seeds=(0, 1),
    rung_steps=(10, 30),
    divergence_factor=3.0,
)


LEASED, COMPLETE, WAITING = LaneStatus.LEASED, LaneStatus.COMPLETE, LaneStatus.WAITING
NOTHING = Told()
FULL: dict[int, float | None] = {0: 9.0, 10: 2.0, 20: 1.5, 30: 1.0}


def told_by(lanes: list[LaneState], told: Told = NOTHING) -> tuple[list[Any], Told]:
    events, after = news(COHORT, lanes, told)
    assert isinstance(events[0], Progressed)
    return events[1:], after


def test_rung_waits_for_the_last_lane() -> None:
    lanes = [
        lane("off", 0, COMPLETE, FULL),
        lane("off", 1, COMPLETE, FULL),
        lane("half", 0, LEASED, {10: 1.9}),
        lane("half", 1, LEASED, {5: 4.0}),
    ]
    assert told_by(lanes) == ([], Told())
    lanes[3] = lane("half", 1, LEASED, {5: 4.0, 12: 3.0, 14: 2.5})
    events, told = told_by(lanes)
    assert events == [
        RungReached(
            index=0,
            step=10,
            values=(
                LaneValue(trial_id="off", seed=0, value=2.0),
                LaneValue(trial_id="off", seed=1, value=2.0),
                LaneValue(trial_id="half", seed=0, value=1.9),
                LaneValue(trial_id="half", seed=1, value=3.0),
            ),
            pruned=(),
        )
    ]
    assert told == Told(num_rungs=1)
    assert told_by(lanes, told) == ([], told)


def test_last_rung_ends_what_is_left() -> None:
    lanes = [lane(trial, seed, COMPLETE, FULL) for trial in ("off", "half") for seed in (0, 1)]
    events, told = told_by(lanes, Told(num_rungs=1))
    assert [type(event) for event in events] == [RungReached, TrialEnded, TrialEnded]
    assert told == Told(num_rungs=2, trials=frozenset({"off", "half"}))
    assert [[each.value for each in event.lanes] for event in events[1:]] == [[1.0, 1.0], [1.0, 1.0]]
    assert {event.state for event in events[1:]} == {"complete"}
    assert events[1].lanes[0].initial == 9.0
    assert events[1].lanes[0].seconds == 2.5


def test_pruned_trial_ends_at_its_rung_with_the_seeds_that_it_trained() -> None:
    lanes = [
        lane("off", 0, COMPLETE, FULL),
        lane("off", 1, COMPLETE, FULL),
        lane("half", 0, LaneStatus.PRUNED, {10: 8.0}),
        lane("half", 1, LaneStatus.CLOSED, {}),
    ]
    events, told = told_by(lanes)
    assert [type(event) for event in events] == [RungReached, TrialEnded, RungReached, TrialEnded]
    assert events[0].pruned == ("half",)
    assert LaneValue(trial_id="half", seed=0, value=8.0) in events[0].values
    assert (events[1].trial_id, events[1].state) == ("half", "pruned")
    assert [(each.seed, each.value, each.num_steps) for each in events[1].lanes] == [(0, 8.0, 10)]
    assert {value.trial_id for value in events[2].values} == {"off"}
    assert told.trials == {"off", "half"}


def test_lane_pruned_before_it_measured_anything_has_not_diverged() -> None:
    """Its trial ended in its other seed; of seed 0 nothing is known, of seed 2 not what it had reached at the rung."""
    cohort = dataclasses.replace(COHORT, seeds=(0, 1, 2))
    lanes = [lane("off", seed, COMPLETE, FULL) for seed in cohort.seeds]
    lanes += [
        lane("half", 0, LaneStatus.PRUNED, {}),
        lane("half", 1, LaneStatus.PRUNED, {10: 8.0}),
        lane("half", 2, LaneStatus.PRUNED, {0: 9.0}),
    ]
    events, _ = news(cohort, lanes, NOTHING)
    rung, ended = events[1], events[2]
    assert isinstance(rung, RungReached) and isinstance(ended, TrialEnded)
    assert [(each.seed, each.value) for each in rung.values if each.trial_id == "half"] == [(1, 8.0)]
    assert [(each.seed, each.value, each.diverged) for each in ended.lanes] == [
        (1, 8.0, False),
        (2, 9.0, False),
    ]


def test_diverged_lane_is_a_result_without_a_value() -> None:
    lanes = [
        lane("off", 0, COMPLETE, FULL),
        lane("off", 1, LaneStatus.DIVERGED, {10: 2.0, 20: None}),
        lane("half", 0, COMPLETE, FULL),
        lane("half", 1, COMPLETE, FULL),
    ]
    events, _ = told_by(lanes)
    first, last, off = events[0], events[1], events[2]
    assert first.values[1].value == 2.0
    assert last.values[1].value is None
    assert (off.lanes[1].value, off.lanes[1].divergence_step, off.lanes[1].diverged) == (None, 20, True)


def test_lane_that_ended_early_counts_with_its_last_value() -> None:
    lanes = [lane(trial, seed, COMPLETE, {4: 7.0}) for trial in ("off", "half") for seed in (0, 1)]
    events, told = told_by(lanes)
    assert {value.value for event in events if isinstance(event, RungReached) for value in event.values} == {
        7.0
    }
    assert told.trials == {"off", "half"}


def test_progress_counts_what_no_longer_comes() -> None:
    lanes = [
        lane("off", 0, COMPLETE, FULL),
        lane("off", 1, LEASED, {10: 2.0}),
        lane("half", 0, LaneStatus.PRUNED, {10: 8.0}),
        lane("half", 1, LaneStatus.CLOSED, {}),
    ]
    events, _ = news(COHORT, lanes, Told())
    assert events[0] == Progressed(lane_steps=50, total_lane_steps=70, step=10)


@pytest.mark.parametrize(
    ("setting", "norms", "record", "expected"),
    [
        (OFF_SETTING, (), None, (0.0, 1.0)),
        (HALF, (), None, (None, None)),
        # Norms 0.25 and 1 at a threshold of 0.5: one of two is clipped, by half; the mean factor is (1 + 0.5) / 2.
        (HALF, (0.25, 1.0), None, (0.5, 0.75)),
        # None of the few norms that were told is above the threshold; of the others nobody knows.
        (HALF, (0.25, 0.3), None, (None, None)),
        (HALF, (0.25,) * 30, None, (0.0, 1.0)),
        (HALF, (0.25, 1.0), {"clip_fraction": 0.1, "mean_scale": 0.99}, (0.1, 0.99)),
        (ClipSetting(method="zclip", threshold=2.5), (0.25, 9.0), None, (None, None)),
    ],
)
def test_clipping_is_told_or_follows_from_norms(
    setting: ClipSetting,
    norms: tuple[float, ...],
    record: dict[str, float] | None,
    expected: tuple[float | None, float | None],
) -> None:
    found = lane_result(lane("t", 0, COMPLETE, FULL, norms=norms, record=record), setting, 30)
    assert (found.clip_fraction, found.mean_scale) == expected
    assert found.may_have_clipped is (expected[0] != 0)


def test_norms_are_kept() -> None:
    found = lane_result(lane("t", 0, COMPLETE, FULL, norms=(1.0, 3.0, 2.0)), HALF, 30)
    assert found.norms is not None
    assert (found.norms.first, found.norms.median, found.norms.max, found.spike_ratio) == (1.0, 2.0, 3.0, 1.5)
