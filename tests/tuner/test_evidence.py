"""Evidence types: states, divergence as a value, lanes that were another one's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from tuner.evidence import LaneRecord, LaneResult, Stage, Trial, TrialState


def test_waiting_and_running_trials_are_open() -> None:
    assert [state.value for state in TrialState if state.is_open] == ["waiting", "running"]


def test_diverged_lanes_are_counted(trial: Callable[..., Trial]) -> None:
    assert trial("value:1", 1.0, None, None).num_diverged == 2
    assert [lane.diverged for lane in trial("value:1", 1.0, None).lanes] == [False, True]


def test_lane_result_is_its_record_and_what_the_loop_knows() -> None:
    record = LaneRecord(
        num_steps=9,
        divergence_step=None,
        clip_fraction=0.5,
        mean_scale=0.75,
        norms=None,
        num_non_finite=0,
        num_skipped=2,
        tail_index=3.5,
    )
    lane = LaneResult.of(record, seed=1, value=None, divergence_step=9, seconds=0.5, initial=2.5)
    assert lane.initial == 2.5
    assert (lane.seed, lane.value, lane.divergence_step, lane.seconds, lane.num_shared_steps) == (
        1,
        None,
        9,
        0.5,
        0,
    )
    names = [field.name for field in dataclasses.fields(LaneRecord) if field.name != "divergence_step"]
    assert [getattr(lane, name) for name in names] == [getattr(record, name) for name in names]


def test_trial_searches_with_the_studys_seeds_unless_it_says_otherwise(trial: Callable[..., Trial]) -> None:
    plain = trial("value:1", 1.0, 2.0)
    assert (plain.stage, plain.seeds) == (Stage.SEARCH, ())
    assert Stage("confirm") is Stage.CONFIRM
    confirming = dataclasses.replace(plain, stage=Stage.CONFIRM, seeds=(3, 4))
    assert confirming != plain
    assert confirming.num_diverged == plain.num_diverged


def test_lane_of_an_earlier_version_has_no_initial_value(trial: Callable[..., Trial]) -> None:
    (lane,) = trial("value:1", 1.0).lanes
    assert (lane.initial, lane.num_shared_steps) == (None, 0)


@pytest.mark.parametrize(
    ("num_steps", "num_shared_steps", "wanted"), [(9, 9, True), (9, 8, False), (9, 0, False), (0, 0, False)]
)
def test_off_run_shared_every_step(num_steps: int, num_shared_steps: int, wanted: bool) -> None:
    record = LaneRecord(
        num_steps=num_steps,
        divergence_step=None,
        clip_fraction=0.0,
        mean_scale=1.0,
        norms=None,
        num_non_finite=0,
    )
    lane = LaneResult.of(
        record, seed=0, value=1.0, divergence_step=None, seconds=0.0, num_shared_steps=num_shared_steps
    )
    assert lane.is_off_run is wanted
