"""`tune` with a training function: the same question, answered by a loop of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from regression import Regression, spoiled, train

from tuner import tune
from tuner.errors import LaneError, ProbeError, SpecError
from tuner.training.cohort import Event, LaneStarted, ProbeMeasured, TrialEnded
from tuner.workloads import parameter, training_function

FIELDS = {"num_trials": 4, "num_seeds": 2, "num_confirm_seeds": 2, "num_steps": 20}


def test_plain_function_is_answered() -> None:
    events: list[Event] = []
    answer = tune(train, on_event=events.append, progress=False, **FIELDS)
    assert answer.objective == "val_loss"
    assert answer.lane_steps > 4 * 20
    assert isinstance(events[0], ProbeMeasured)
    started = [event for event in events if isinstance(event, LaneStarted)]
    ended = [event for event in events if isinstance(event, TrialEnded)]
    assert answer.lane_steps == sum(
        lane.num_steps - lane.num_shared_steps for event in ended for lane in event.lanes
    )
    assert {event.seed for event in started} == {0, 1, 2, 3}
    again = tune(train, progress=False, **FIELDS)
    assert (again.verdict, again.value, again.off) == (answer.verdict, answer.value, answer.off)


@dataclass(frozen=True)
class Parameters:
    learning_rate: float = parameter(0.05, "Step size.", low=1e-6, high=1.0)


@training_function(objective="val_error", parameters=Parameters)
def described(trial: Any) -> float | None:
    class Loop(Regression):
        learning_rate = trial.parameters["learning_rate"]

    RATES.add(Loop.learning_rate)
    return Loop()(trial)


RATES: set[float] = set()


def test_described_function_has_its_objective_and_its_parameters() -> None:
    RATES.clear()
    answer = tune(described, parameters={"learning_rate": 0.01}, progress=False, **FIELDS)
    assert answer.objective == "val_error"
    assert list(RATES) == [0.01]
    with pytest.raises(SpecError, match=r"parameters.learning_rate must be <= 1, got 2"):
        tune(described, parameters={"learning_rate": 2.0}, **FIELDS)


def test_learning_rate_is_tuned_only_if_the_function_uses_it() -> None:
    fields = FIELDS | {"learning_rate_low": 0.5, "learning_rate_high": 2.0, "num_trials": 8}
    assert tune(train, progress=False, **fields).num_trials == 8
    deaf = spoiled(rate=lambda self, trial: 0.05)
    with pytest.raises(LaneError, match=r"never read trial.learning_rate_scale"):
        tune(deaf, progress=False, **fields)


def test_function_that_does_not_clip_is_told_by_the_probe() -> None:
    with pytest.raises(ProbeError, match=r"without a call of trial\.clip"):
        tune(spoiled(clip=lambda self, trial, loss: None), progress=False, **FIELDS)


def test_what_is_no_workload_is_refused() -> None:
    with pytest.raises(SpecError, match=r"must be a workload, the name of one, or a function train\(trial\)"):
        tune(3, **FIELDS)  # type: ignore[arg-type]
