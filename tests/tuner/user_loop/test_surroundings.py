"""What one lane changes of the process is not what the next one finds; and a function trains as a class does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from regression import Regression

from tuner.errors import TrialPruned
from tuner.spec import OFF_SETTING, ClipSetting
from tuner.training.cohort import Cohort, CohortTrial, Event, TrialEnded
from tuner.training.initial import initial_model
from tuner.training.loop import train_cohort
from tuner.training.randomness import data_generator
from tuner.user_loop.cohort import train_function_cohort
from tuner.user_loop.surroundings import given_back
from tuner.workloads import create_workload
from tuner.workloads.function import FunctionWorkload

TRIALS = (
    CohortTrial(id="off", setting=OFF_SETTING),
    CohortTrial(id="clips", setting=ClipSetting.parse("global_norm:0.5")),
)


def cohort_of(num_steps: int) -> Cohort:
    return Cohort(
        workload="digits-mlp",
        parameters={},
        trials=TRIALS,
        seeds=(0, 1),
        rung_steps=(num_steps,),
        divergence_factor=3.0,
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda: os.chdir("/"),
        lambda: torch.set_default_dtype(torch.float64),
        lambda: torch.set_default_device("meta"),
        lambda: torch.set_grad_enabled(False),
    ],
    ids=["folder", "dtype", "device", "grad mode"],
)
def test_every_lane_begins_like_the_first(
    change: Callable[[], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = set()

    def look() -> tuple[object, ...]:
        return os.getcwd(), torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()

    def train(trial: Any) -> None:
        found.add(look())
        Regression()(trial)
        change()

    before = look()
    with given_back():
        train_function_cohort(cohort_of(3), FunctionWorkload.of(train), tell=lambda event: None)
        assert found == {before}
        assert look() == before


def test_device_that_the_caller_chose_stays_theirs() -> None:
    with torch.device("meta"), given_back():
        assert torch.get_default_device().type == "meta"
    assert torch.get_default_device().type == "cpu"


def test_removed_working_folder_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with given_back():
        os.chdir(tmp_path)
    assert Path.cwd() == tmp_path


def test_thread_that_a_lane_leaves_behind_reports_nothing_more() -> None:
    left, told = [], []

    def train(trial: Any) -> None:
        Regression()(trial)
        left.append(trial)

    train_function_cohort(cohort_of(3), FunctionWorkload.of(train), tell=told.append)
    count = len(told)
    for trial in left:
        with pytest.raises(TrialPruned, match="its function has returned"):
            trial.report(trial.num_steps + 1, 0.0)
    assert len(told) == count


def test_function_with_a_classs_draws_reaches_its_values() -> None:
    workload = create_workload("digits-mlp", {"hidden": 8})

    def train(trial: Any) -> float:
        model, generator = (
            initial_model(workload, trial.seed, torch.device("cpu")),
            data_generator(trial.seed),
        )
        steps = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for step in range(trial.num_steps):
            loss = workload.loss(model, workload.train_batch(step, generator))
            steps.zero_grad()
            loss.backward()
            trial.clip(model.parameters(), loss=loss)
            steps.step()
        model.eval()
        with torch.no_grad():
            values = [float(workload.metric(model, batch)) for batch in workload.validation_batches()]
        return sum(values) / len(values)

    def values_of(events: list[Event]) -> dict[str, list[float | None]]:
        ended = [event for event in events if isinstance(event, TrialEnded)]
        return {each.trial_id: [lane.value for lane in each.lanes] for each in ended}

    told: list[Event] = []
    train_function_cohort(cohort_of(30), FunctionWorkload.of(train), tell=told.append)
    by_function = values_of(told)
    by_class = values_of(list(train_cohort(cohort_of(30), workload, prune=lambda *_: (), device="cpu")))
    assert by_function.keys() == by_class.keys() == {"off", "clips"}
    for trial, values in by_class.items():
        assert by_function[trial] == pytest.approx(values, rel=1e-4)
    assert by_class["off"] != by_class["clips"]
