"""Evidence types: states, divergence as a value."""

from __future__ import annotations

from collections.abc import Callable

from tuner.evidence import Trial, TrialState


def test_waiting_and_running_trials_are_open() -> None:
    assert [state.value for state in TrialState if state.is_open] == ["waiting", "running"]


def test_diverged_lanes_are_counted(trial: Callable[..., Trial]) -> None:
    assert trial("value:1", 1.0, None, None).num_diverged == 2
    assert [lane.diverged for lane in trial("value:1", 1.0, None).lanes] == [False, True]
