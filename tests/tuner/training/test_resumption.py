"""A cohort that is interrupted and goes on from a checkpoint ends bit for bit as an undisturbed one."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from tuner.evidence import LaneResult
from tuner.optimizers import OptimizerSetting, adam, sgd
from tuner.search.halving import halving
from tuner.spec import Lanes
from tuner.training import stores
from tuner.training.checkpoint import TENSORS, Checkpoints
from tuner.training.cohort import (
    CheckpointFailed,
    CheckpointSaved,
    Cohort,
    EngineChosen,
    Event,
    Resumed,
    RungReached,
    TrialEnded,
)
from tuner.training.loop import train_cohort
from tuner.training.resumption import CohortState
from tuner.training.solo import SoloEngine
from tuner.workloads import AnyWorkload, Workload, parameter

MakeToy = Callable[..., AnyWorkload]
MakeCohort = Callable[..., Cohort]
Batch = tuple[Tensor, Tensor]
T = TypeVar("T")
Results = dict[str, tuple[LaneResult, ...]]

RUNGS = (2, 5, 12)
PATHS = pytest.mark.parametrize("lanes", ["solo", 100])


class Stateful(Workload[Batch]):
    """Everything that a step may depend on: dropout, batch statistics, optimizer state, data order."""

    @dataclass(frozen=True)
    class Parameters:
        """Settings of the test."""

        optimizer: str = parameter("momentum", "Optimizer.", choices=("momentum", "adam"))
        learning_rate: float = parameter(0.05, "Learning rate.", low=1e-6, high=1e6)
        nan_share: float = parameter(0.0, "Share of steps whose batch holds a NaN.", low=0.0, high=1.0)

    name = "stateful"
    parameters: Parameters

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 1)
        )

    def train_batch(self, step: int, generator: torch.Generator) -> Batch:
        inputs = torch.randn(8, 4, generator=generator)
        if torch.rand((), generator=generator) < self.parameters.nan_share:
            inputs = inputs * torch.nan
        return inputs, inputs.sum(dim=1)

    def validation_batches(self) -> Iterable[Batch]:
        inputs = torch.randn(24, 4, generator=torch.Generator().manual_seed(1))
        return [(inputs, inputs.sum(dim=1))]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        inputs, targets = batch
        return nn.functional.mse_loss(model(inputs).squeeze(1), targets)

    def optimizer(self) -> OptimizerSetting:
        if self.parameters.optimizer == "adam":
            return adam(self.parameters.learning_rate)
        return sgd(self.parameters.learning_rate, momentum=0.9)


@dataclass
class Study:
    """What a worker does with a cohort: keeps what it is told, and plans what is left."""

    whole: Cohort
    workload: Callable[[], AnyWorkload]
    folder: Path

    def __post_init__(self) -> None:
        self.recorded: list[Event] = []
        self.told: list[Event] = []

    @property
    def results(self) -> Results:
        """Of ended trials, without the wall time."""
        return {
            event.trial_id: tuple(dataclasses.replace(lane, seconds=0.0) for lane in event.lanes)
            for event in self.recorded
            if isinstance(event, TrialEnded)
        }

    def left(self) -> Cohort:
        """The cohort as `tuner.search.planning.plan_cohort` makes it."""
        ended = tuple(self.results)
        history = {step: list(self.whole.history.get(step, ())) for step in self.whole.rung_steps}
        for trial in ended:
            for event in {e.step: e for e in self.recorded if isinstance(e, RungReached)}.values():
                values = [
                    math.inf if v.value is None else v.value for v in event.values if v.trial_id == trial
                ]
                if values:
                    history[event.step].append(statistics.fmean(values))
        return dataclasses.replace(
            self.whole,
            trials=tuple(trial for trial in self.whole.trials if trial.id not in ended),
            history={step: tuple(values) for step, values in history.items()},
            ended=ended,
        )

    def train(self, stop_after: int | None = None, lost: int = 0) -> list[Event]:
        """Train what is left; stop behind so many events, of which the last ones never arrived."""
        events = []
        training = train_cohort(
            self.left(),
            self.workload(),
            prune=halving(self.whole.rung_steps),
            checkpoints=Checkpoints(self.folder),
            clock=ticking(0.2),
        )
        for event in training:
            events.append(event)
            if len(events) == stop_after:
                break
        training.close()  # type: ignore[attr-defined]
        self.recorded += events[: len(events) - lost]
        self.told += events
        return events

    @property
    def is_done(self) -> bool:
        return len(self.results) == len(self.whole.trials)


def ticking(step: float) -> Callable[[], float]:
    """A clock that moves on at every look, so that progress is told at every chance."""
    times = iter(range(10**9))
    return lambda: next(times) * step


def of_kind(events: Iterable[Event], kind: type[T]) -> list[T]:
    return [event for event in events if isinstance(event, kind)]


@pytest.fixture
def study(cohort: MakeCohort, tmp_path: Path) -> Callable[..., Study]:
    numbers = iter(range(1000))

    def make(*settings: str, lanes: Lanes, largest_norm: float | None = None, **parameters: object) -> Study:
        asked = cohort(*settings, rung_steps=RUNGS)
        asked = dataclasses.replace(asked, lanes=lanes, reference_norm=1.0, largest_norm=largest_norm)
        return Study(
            asked,
            lambda: Stateful(Stateful.Parameters(**parameters)),  # type: ignore[arg-type]
            tmp_path / str(next(numbers)),
        )

    return make


MIXTURES = {
    "momentum": ({}, ("none", "global_norm:0.3", "value:0.01", "value:0.001", "global_norm:0.001")),
    "adam": ({"optimizer": "adam"}, ("none", "global_norm:0.3", "per_tensor_norm:0.1", "agc:0.01")),
    "clippers with a state": ({}, ("none", "autoclip:30", "zclip:1.5", "adagc:1.05", "quantile:0.5")),
    "diverged lanes": ({"nan_share": 0.1}, ("none", "global_norm:0.3", "value:0.01", "zclip:2")),
    "learning rates": ({}, ("none", "none@0.3", "global_norm:0.3@2", "value:0.01@0.1", "zclip:1.5@3")),
    "explosion": ({"learning_rate": 3.0}, ("none", "global_norm:0.01", "value:0.001", "value:1")),
}


#: One lane at a time is slow: what is special to it is in two of them.
CASES = [(mixture, 100) for mixture in MIXTURES] + [("adam", "solo"), ("diverged lanes", "solo")]


@pytest.mark.parametrize(("mixture", "lanes"), CASES)
def test_interrupted_anywhere_it_ends_as_an_undisturbed_one(
    study: Callable[..., Study], mixture: str, lanes: Lanes
) -> None:
    parameters, settings = MIXTURES[mixture]
    undisturbed = study(*settings, lanes=lanes, **parameters)
    events = undisturbed.train()
    assert len(of_kind(events, CheckpointSaved)) == len(RUNGS) - 1
    for stop in interesting(events):
        disturbed = study(*settings, lanes=lanes, **parameters)
        assert [each.kind for each in disturbed.train(stop)] == [each.kind for each in events[:stop]]
        resumed = of_kind(disturbed.train(), Resumed)
        saved = of_kind(events[:stop], CheckpointSaved)
        assert [each.step for each in resumed] == [each.step for each in saved[-1:]]
        assert not of_kind(disturbed.told, CheckpointFailed)
        assert disturbed.results == undisturbed.results, f"stopped after event {stop}"


def interesting(events: list[Event]) -> Iterator[int]:
    """Where to stop: on the way to each rung, and behind the last event of each other kind in a row."""
    for stop, event in enumerate(events[:-1], 1):
        if event.kind != events[stop].kind and event.kind != "engine":
            yield stop


@PATHS
def test_interrupted_again_and_again(study: Callable[..., Study], lanes: Lanes) -> None:
    parameters, settings = MIXTURES["momentum"]
    undisturbed = study(*settings, lanes=lanes, **parameters)
    num_events = len(undisturbed.train())
    disturbed = study(*settings, lanes=lanes, **parameters)
    stops = 2
    while not disturbed.is_done:
        disturbed.train(stops)
        stops += 2
    assert disturbed.results == undisturbed.results
    assert len(of_kind(disturbed.told, Resumed)) >= 2
    assert stops <= num_events


def test_events_that_never_arrived_are_told_again(study: Callable[..., Study]) -> None:
    """The training process was ahead of its worker when both died."""
    parameters, settings = MIXTURES["momentum"]
    undisturbed = study(*settings, lanes=100, **parameters)
    events = undisturbed.train()
    assert of_kind(events, RungReached)[0].pruned
    for stop, lost in zip(interesting(events), itertools.cycle((1, 3)), strict=False):
        if stop <= lost:
            continue
        disturbed = study(*settings, lanes=100, **parameters)
        disturbed.train(stop, lost)
        disturbed.train()
        assert disturbed.results == undisturbed.results, f"stopped after event {stop}"


def test_checkpoint_that_is_ahead_of_the_results_is_passed_over(study: Callable[..., Study]) -> None:
    parameters, settings = MIXTURES["momentum"]
    ahead = study(*settings, lanes=100, **parameters)
    events = ahead.train()
    first_saved = next(number for number, each in enumerate(events, 1) if each.kind == "checkpoint")
    pruned = of_kind(events, RungReached)[0].pruned
    disturbed = study(*settings, lanes=100, **parameters)
    disturbed.train(first_saved, lost=1 + len(pruned))
    again = disturbed.train()
    (failed,) = of_kind(again, CheckpointFailed)
    assert f"has no live trial {pruned[0]}" in failed.error
    assert not of_kind(again, Resumed)
    assert disturbed.results == ahead.results


def test_followers_of_off_go_on_following(study: Callable[..., Study]) -> None:
    settings = ("none", "global_norm:5000", "value:4000", "global_norm:0.3", "global_norm:12")
    undisturbed = study(*settings, lanes=100, largest_norm=0.5, learning_rate=0.2)
    events = undisturbed.train()
    shared = {trial: ended[0].num_shared_steps for trial, ended in undisturbed.results.items()}
    assert shared["global_norm:5000"] == RUNGS[-1]
    assert 0 < shared["global_norm:12"] < RUNGS[-1]
    for stop in [number for number, each in enumerate(events, 1) if each.kind == "checkpoint"]:
        disturbed = study(*settings, lanes=100, largest_norm=0.5, learning_rate=0.2)
        disturbed.train(stop)
        disturbed.train()
        assert disturbed.results == undisturbed.results, f"stopped after event {stop}"


def test_resumed_cohort_says_from_where_and_how_it_trains(study: Callable[..., Study]) -> None:
    disturbed = study("none", "value:0.1", lanes=100)
    events = disturbed.train()
    again = study("none", "value:0.1", lanes=100)
    again.train([each.kind for each in events].index("checkpoint") + 1)
    engine, resumed, *_ = again.train()
    assert engine == of_kind(events, EngineChosen)[0]
    assert isinstance(resumed, Resumed)
    assert (resumed.index, resumed.step, resumed.lane_steps) == (0, RUNGS[0], RUNGS[0] * 4)
    assert resumed.seconds > 0


def test_harmed_checkpoint_is_told_and_the_one_before_is_used(study: Callable[..., Study]) -> None:
    undisturbed = study("none", "value:0.1", lanes=100)
    events = undisturbed.train()
    second = [number for number, each in enumerate(events, 1) if each.kind == "checkpoint"][1]
    for num_harmed, expected in ((1, [RUNGS[0]]), (2, [])):
        disturbed = study("none", "value:0.1", lanes=100)
        disturbed.train(second)
        for path in Checkpoints(disturbed.folder).newest_first()[:num_harmed]:
            (Path(path) / TENSORS).write_bytes(b"torn")
        again = disturbed.train()
        assert len(of_kind(again, CheckpointFailed)) == num_harmed
        assert [each.step for each in of_kind(again, Resumed)] == expected
        assert disturbed.results == undisturbed.results


@pytest.mark.parametrize(
    "change",
    [
        {"divergence_factor": 4.0},
        {"seeds": (0, 1, 2)},
        {"rung_steps": (2, 5, 13)},
        {"parameters": {"hidden": 8}},
        {"reference_norm": 2.0},
    ],
)
def test_checkpoint_of_another_training_is_passed_over(
    study: Callable[..., Study], change: dict[str, object]
) -> None:
    first = study("none", "value:0.1", lanes="solo")
    first.train()
    other = Study(dataclasses.replace(first.whole, **change), first.workload, first.folder)  # type: ignore[arg-type]
    events = other.train()
    assert all("is of another training" in each.error for each in of_kind(events, CheckpointFailed)[:2])
    assert not of_kind(events, Resumed)
    assert other.is_done


def test_checkpoint_of_another_setting_or_precision_is_passed_over(
    study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = study("none", "value:0.1", lanes="solo")
    first.train()
    renamed = tuple(
        dataclasses.replace(trial, setting=other.setting)
        for trial, other in zip(first.whole.trials, first.whole.trials[::-1], strict=True)
    )
    other = Study(dataclasses.replace(first.whole, trials=renamed), first.workload, first.folder)
    assert "has no live trial none with value:0.1" in of_kind(other.train(), CheckpointFailed)[0].error
    monkeypatch.setattr(Stateful, "precision", "bf16")
    again = Study(first.whole, first.workload, first.folder)
    assert "is of another training" in of_kind(again.train(), CheckpointFailed)[0].error


def test_checkpoint_of_another_learning_rate_is_passed_over(study: Callable[..., Study]) -> None:
    first = study("none", "value:0.1", lanes="solo")
    first.train()
    trials = first.whole.trials
    changed = dataclasses.replace(trials[1].setting, learning_rate_scale=0.5)
    slower = (trials[0], dataclasses.replace(trials[1], setting=changed))
    other = Study(dataclasses.replace(first.whole, trials=slower), first.workload, first.folder)
    failed = of_kind(other.train(), CheckpointFailed)
    assert "has no live trial value:0.1 with value:0.1@0.5" in failed[0].error
    assert other.results["value:0.1"] != first.results["value:0.1"]


@PATHS
def test_start_of_a_lane_survives_a_checkpoint(study: Callable[..., Study], lanes: Lanes) -> None:
    undisturbed = study("none", "value:0.1", lanes=lanes)
    events = undisturbed.train()
    disturbed = study("none", "value:0.1", lanes=lanes)
    disturbed.train([each.kind for each in events].index("checkpoint") + 1)
    assert of_kind(disturbed.train(), Resumed)
    for trial, ended in disturbed.results.items():
        starts = [lane.initial for lane in ended]
        assert None not in starts
        assert starts == [lane.initial for lane in undisturbed.results[trial]]


def test_state_of_an_earlier_version_has_no_starts() -> None:
    state = CohortState(["none"], bounds={0: 3.0, 1: math.inf}, initial={0: 1.0, 1: -2.0}, next_rung=1)
    document = state.to_json()
    assert CohortState.from_json(document) == state
    del document["initial"]
    assert CohortState.from_json(document) == dataclasses.replace(state, initial={})


def test_checkpoint_of_an_earlier_version_is_used_and_its_lanes_have_no_start(
    study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    def written_before(self: CohortState) -> dict[str, object]:
        return {name: each for name, each in to_json(self).items() if name != "initial"}

    undisturbed = study("none", "value:0.1", lanes=100)
    events = undisturbed.train()
    disturbed = study("none", "value:0.1", lanes=100)
    to_json = CohortState.to_json
    with monkeypatch.context() as patch:
        patch.setattr(CohortState, "to_json", written_before)
        disturbed.train([each.kind for each in events].index("checkpoint") + 1)
    assert of_kind(disturbed.train(), Resumed)
    for trial, ended in disturbed.results.items():
        assert ended == tuple(dataclasses.replace(lane, initial=None) for lane in undisturbed.results[trial])


def test_trial_that_failed_is_left_out_and_the_others_go_on(study: Callable[..., Study]) -> None:
    undisturbed = study("none", "value:0.1", "value:0.2", lanes="solo")
    events = undisturbed.train()
    disturbed = study("none", "value:0.1", "value:0.2", lanes="solo")
    disturbed.train([each.kind for each in events].index("checkpoint") + 1)
    disturbed.whole = dataclasses.replace(disturbed.whole, trials=disturbed.whole.trials[:2])
    assert of_kind(disturbed.train(), Resumed)
    assert disturbed.results == {trial: undisturbed.results[trial] for trial in ("none", "value:0.1")}


def test_without_off_that_failed_training_starts_again(study: Callable[..., Study]) -> None:
    disturbed = study("none", "value:0.1", lanes=100)
    disturbed.train(len(disturbed.train()) - 3)
    disturbed.recorded.clear()
    disturbed.whole = dataclasses.replace(disturbed.whole, trials=disturbed.whole.trials[1:])
    failed = of_kind(disturbed.train(), CheckpointFailed)
    assert "needs the trial without clipping, which failed" in failed[0].error


def test_off_at_a_rate_that_nothing_follows_may_fail(study: Callable[..., Study]) -> None:
    undisturbed = study("none", "none@0.5", "value:0.1", lanes=100)
    events = undisturbed.train()
    disturbed = study("none", "none@0.5", "value:0.1", lanes=100)
    disturbed.train([each.kind for each in events].index("checkpoint") + 1)
    left = [trial for trial in disturbed.whole.trials if trial.id != "none@0.5"]
    disturbed.whole = dataclasses.replace(disturbed.whole, trials=tuple(left))
    assert of_kind(disturbed.train(), Resumed)
    assert disturbed.results == {trial.id: undisturbed.results[trial.id] for trial in left}


@pytest.mark.parametrize("lanes", ["solo", 100])
def test_full_disk_is_told_and_training_goes_on(
    study: Callable[..., Study], lanes: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    undisturbed = study("none", "value:0.1", lanes=lanes)
    undisturbed.train()
    monkeypatch.setattr(stores, "save_file", refuse)
    full = study("none", "value:0.1", lanes=lanes)
    told = of_kind(full.train(), CheckpointFailed)
    assert len(told) == len(RUNGS)
    assert all("No space left on device" in each.error and "make room" in each.error for each in told)
    assert full.results == undisturbed.results


def test_state_that_does_not_fit_the_engine_is_told(
    study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workload's code was changed meanwhile, which nothing in a study tells."""
    first = study("none", "value:0.1", lanes="solo")
    events = first.train()
    disturbed = study("none", "value:0.1", lanes="solo")
    disturbed.train([each.kind for each in events].index("checkpoint") + 1)
    monkeypatch.setattr(Stateful, "model", lambda _: nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1)))
    (failed,) = of_kind(disturbed.train(), CheckpointFailed)
    assert "can't be restored (" in failed.error
    assert disturbed.is_done


def test_optimizer_that_is_a_function_keeps_no_checkpoint(cohort: MakeCohort, tmp_path: Path) -> None:
    workload = Workload.of(
        model=lambda: nn.Linear(4, 1),
        train=lambda step, generator: torch.randn(8, 4, generator=generator),
        validation=[torch.ones(2, 4)],
        loss=lambda model, batch: model(batch).square().mean(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )
    events = list(train_cohort(cohort("none"), workload, checkpoints=Checkpoints(tmp_path / "none")))
    assert [each.kind for each in events] == ["engine", "rung", "rung", "trial"]
    assert not (tmp_path / "none").exists()


def test_checkpoints_want_the_default_engine(toy: MakeToy, cohort: MakeCohort, tmp_path: Path) -> None:
    asked = cohort("none")
    with pytest.raises(ValueError, match="leave out engine"):
        train_cohort(asked, toy(), engine=SoloEngine(asked, toy()), checkpoints=Checkpoints(tmp_path))


def test_cohort_survives_json(study: Callable[..., Study]) -> None:
    asked = dataclasses.replace(study("none", lanes=7).whole, ended=("a", "b"), history={2: (math.inf, 1.0)})
    assert Cohort.from_json(asked.to_json()) == asked


def test_state_says_whether_its_rung_is_undecided_and_older_ones_were_decided() -> None:
    waiting = CohortState(["a"], next_rung=1, is_undecided=True)
    assert CohortState.from_json(waiting.to_json()) == waiting
    older = {name: value for name, value in waiting.to_json().items() if name != "is_undecided"}
    assert CohortState.from_json(older) == dataclasses.replace(waiting, is_undecided=False)
