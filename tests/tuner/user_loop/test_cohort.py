"""A cohort of a training function tells the events of any cohort, and the lanes are those of a plain loop."""

from __future__ import annotations

import math
import os
import random
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import regression
import torch
from regression import Regression, spoiled, swallowing, train
from torch import nn

from tuner.errors import LaneError, TrialPruned
from tuner.spec import OFF_SETTING, ClipSetting
from tuner.training.cohort import (
    Cohort,
    CohortTrial,
    EngineChosen,
    Event,
    LaneStarted,
    Progressed,
    RungReached,
    TrialEnded,
)
from tuner.training.memory import is_out_of_memory
from tuner.user_loop.cohort import train_function_cohort
from tuner.user_loop.trial import MAX_REFUSED
from tuner.workloads.function import FunctionWorkload

Function = Callable[[Any], float | None]


def cohort_of(*settings: str, **fields: Any) -> Cohort:
    """A cohort whose trials are called after their settings; *off* is protected."""
    trials = tuple(
        CohortTrial(id=each, setting=ClipSetting.parse(each), protected=each == "none") for each in settings
    )
    values = {"seeds": (0, 1), "rung_steps": (5, 20), "divergence_factor": 3.0} | fields
    return Cohort(workload="regression", parameters={}, trials=trials, **values)


def events_of(function: Function, cohort: Cohort) -> list[Event]:
    told: list[Event] = []
    train_function_cohort(cohort, FunctionWorkload.of(function), tell=told.append)
    return told


def ended(events: Sequence[Event]) -> dict[str, TrialEnded]:
    return {event.trial_id: event for event in events if isinstance(event, TrialEnded)}


def test_events_are_those_of_a_cohort_off_first() -> None:
    events = events_of(train, cohort_of("global_norm:0.5", "none"))
    assert events[0] == EngineChosen(
        path="solo", num_lanes=1, reason="a training function trains one lane at a time"
    )
    told = [event for event in events[1:] if not isinstance(event, Progressed)]
    assert [type(event) for event in told] == [
        LaneStarted, LaneStarted, RungReached, RungReached, TrialEnded,
        LaneStarted, LaneStarted, RungReached, RungReached, TrialEnded,
    ]  # fmt: skip
    assert [(event.trial_id, event.seed) for event in told if isinstance(event, LaneStarted)] == [
        ("none", 0), ("none", 1), ("global_norm:0.5", 0), ("global_norm:0.5", 1),
    ]  # fmt: skip
    rungs = [event for event in told if isinstance(event, RungReached)]
    assert [(rung.index, rung.step, rung.pruned) for rung in rungs[:2]] == [(0, 5, ()), (1, 20, ())]
    assert [(lane.seed, lane.value) for lane in rungs[1].values] == [
        (lane.seed, lane.value) for lane in ended(events)["none"].lanes
    ]


def test_progress_is_told_at_each_report_and_ends_complete() -> None:
    progress = [event for event in events_of(train, cohort_of("none")) if isinstance(event, Progressed)]
    assert [event.step for event in progress] == [0, 5, 10, 15, 20] * 2
    assert [event.lane_steps for event in progress] == [0, 5, 10, 15, 20, 20, 25, 30, 35, 40]
    assert {event.total_lane_steps for event in progress} == {40}


def plain_run(seed: int, max_norm: float) -> tuple[list[float], float]:
    """The same regression with `clip_grad_norm_`: norms before clipping, and the last objective."""
    torch.manual_seed(seed)
    loop = Regression()
    loop.model = nn.Linear(regression.NUM_FEATURES, 1)
    loop.optimizer = torch.optim.SGD(loop.model.parameters(), lr=loop.learning_rate)
    norms = []
    loop.clip = lambda trial, loss: norms.append(  # type: ignore[method-assign]
        float(nn.utils.clip_grad_norm_(loop.model.parameters(), max_norm))
    )
    for step in range(1, 21):
        loop.step(None, step)
    return norms, loop.value()


@pytest.mark.parametrize(("setting", "max_norm"), [("none", math.inf), ("global_norm:0.5", 0.5)])
def test_lane_is_the_plain_loop_bit_for_bit(setting: str, max_norm: float) -> None:
    found = ended(events_of(train, cohort_of(setting)))[setting]
    assert found.state == "complete"
    for lane in found.lanes:
        norms, value = plain_run(lane.seed, max_norm)
        assert lane.value == value
        assert (lane.num_steps, lane.norms.max) == (20, max(norms))
        assert lane.clip_fraction == sum(norm > max_norm for norm in norms) / 20
        assert lane.initial is not None and lane.initial > value
        assert lane.loss is not None and lane.phases
        assert lane.divergence_step is None


def test_parameters_seed_and_length_are_given_and_generators_are_seeded_and_given_back() -> None:
    seen = []

    def function(trial: Any) -> float:
        seen.append((dict(trial.parameters), trial.seed, trial.num_steps, *regression.draws(trial)))
        return train(trial)

    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    events_of(function, cohort_of("none", "global_norm:1"))
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    assert [each[:3] for each in seen] == [({}, 0, 20), ({}, 1, 20)] * 2
    assert seen[0] == seen[2] and seen[1] == seen[3] and seen[0] != seen[1]
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    assert seen[0][3:] == regression.draws(None)


#: Objectives by rung of trials whose thresholds are their names, as `scripted` reports them.
def scripted(values: dict[float | None, dict[int, float]]) -> Function:
    """A function whose reports are given by threshold and step."""

    def function(trial: Any) -> None:
        model = nn.Linear(2, 1)
        for step in range(1, trial.num_steps + 1):
            model(torch.ones(1, 2)).sum().backward()
            trial.clip(model)
            if step in values[trial.setting.threshold]:
                trial.report(step, values[trial.setting.threshold][step])

    return function


def test_hopeless_trial_ends_at_its_rung_and_its_other_seeds_are_not_trained() -> None:
    values = {
        None: {5: 1.0, 20: 0.9},
        1.0: {5: 1.1, 20: 0.8},
        2.0: {5: 1.2, 20: 0.7},
        3.0: {6: 9.0, 20: 0.1},
    }
    events = events_of(scripted(values), cohort_of("none", "global_norm:1", "global_norm:2", "global_norm:3"))
    worst = ended(events)["global_norm:3"]
    assert (worst.state, [(lane.seed, lane.value, lane.num_steps) for lane in worst.lanes]) == (
        "pruned",
        [(0, 9.0, 6)],
    )
    rungs = [event for event in events if isinstance(event, RungReached) and event.pruned]
    assert [(rung.step, rung.pruned, [lane.value for lane in rung.values]) for rung in rungs] == [
        (5, ("global_norm:3",), [9.0])
    ]
    others = [event for event in ended(events).values() if event is not worst]
    assert all(event.state == "complete" and len(event.lanes) == 2 for event in others)
    last = [event for event in events if isinstance(event, Progressed)][-1]
    assert last.total_lane_steps == 4 * 2 * 20  # this lane and the other seed's were still to come


def test_nothing_is_pruned_at_the_last_rung_nor_are_protected_trials() -> None:
    bad_at_the_end = {20: 9.0}
    values = {None: {20: 1.0}, 1.0: {20: 1.0}, 2.0: {20: 1.0}, 3.0: bad_at_the_end}
    events = events_of(scripted(values), cohort_of("none", "global_norm:1", "global_norm:2", "global_norm:3"))
    assert {event.state for event in ended(events).values()} == {"complete"}
    worst_off = {
        None: {5: 99.0, 20: 99.0},
        1.0: {5: 1.0, 20: 1.0},
        2.0: {5: 1.1, 20: 1.1},
        3.0: {5: 1.2, 20: 1.2},
    }
    events = events_of(
        scripted(worst_off), cohort_of("global_norm:1", "global_norm:2", "global_norm:3", "none")
    )
    assert ended(events)["none"].state == "complete"


def test_earlier_cohorts_count_once_all_seeds_are_known() -> None:
    values = {None: {5: 1.0, 20: 0.9}, 1.0: {5: 2.0, 20: 0.8}, 2.0: {5: 1.5, 20: 0.8}}
    cohort = cohort_of(
        "none", "global_norm:1", "global_norm:2", history={5: (1.0, 1.1, 1.2)}, rung_steps=(5, 20)
    )
    found = ended(events_of(scripted(values), cohort))["global_norm:2"]
    # Of six known means 1.5 is the fifth; the other seed was trained to the end before this was known.
    assert (found.state, [lane.num_steps for lane in found.lanes]) == ("complete", [20, 20])
    alone = ended(events_of(scripted(values), cohort_of("global_norm:2", history=cohort.history)))
    assert alone["global_norm:2"].state == "complete"  # the best trial that clips goes on
    pair = ended(
        events_of(scripted(values), cohort_of("global_norm:2", "global_norm:1", history=cohort.history))
    )
    assert (pair["global_norm:1"].state, [lane.num_steps for lane in pair["global_norm:1"].lanes]) == (
        "pruned",
        [20, 5],
    )


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_diverged_lane_is_data(value: float) -> None:
    values = {None: {5: value, 20: 1.0}}
    found = ended(events_of(scripted(values), cohort_of("none")))["none"]
    assert found.state == "complete"
    assert [(lane.value, lane.divergence_step, lane.num_steps) for lane in found.lanes] == [(None, 5, 5)] * 2


def test_diverged_trial_that_is_not_protected_ends() -> None:
    values = {1.0: {5: math.nan}}
    events = events_of(scripted(values), cohort_of("global_norm:1"))
    found = ended(events)["global_norm:1"]
    assert (found.state, [(lane.value, lane.divergence_step) for lane in found.lanes]) == (
        "pruned",
        [(None, 5)],
    )
    assert [event.step for event in events if isinstance(event, RungReached)] == [5]


def test_objective_beyond_the_factor_of_the_first_one_is_diverged() -> None:
    found = ended(events_of(scripted({None: {20: 1.0}}), cohort_of("none")))["none"]
    assert found.lanes[0].divergence_step is None

    def function(trial: Any) -> None:
        trial.report(0, 1.0)
        scripted({None: {7: 3.5}})(trial)

    found = ended(events_of(function, cohort_of("none")))["none"]
    assert [(lane.value, lane.divergence_step) for lane in found.lanes] == [(None, 7)] * 2


def test_returned_number_is_the_report_at_the_end_unless_there_was_one() -> None:
    def returning(trial: Any) -> float:
        scripted({None: {5: 2.0}})(trial)
        return 0.25

    def repeating(trial: Any) -> float:
        scripted({None: {20: 2.0}})(trial)
        return 0.25

    def diverging(trial: Any) -> float:
        scripted({None: {}})(trial)
        return math.nan

    values = [
        [
            (lane.value, lane.divergence_step)
            for lane in ended(events_of(each, cohort_of("none")))["none"].lanes
        ]
        for each in (returning, repeating, diverging)
    ]
    assert values == [[(0.25, None)] * 2, [(2.0, None)] * 2, [(None, 20)] * 2]


def test_function_that_ends_early_is_judged_by_its_last_report() -> None:
    def function(trial: Any) -> None:
        short = type(
            "Short",
            (),
            {"setting": trial.setting, "num_steps": 7, "clip": trial.clip, "report": trial.report},
        )
        scripted({None: {6: 2.0}})(short)

    events = events_of(function, cohort_of("none"))
    assert [lane.value for lane in ended(events)["none"].lanes] == [2.0, 2.0]
    assert [event.step for event in events if isinstance(event, RungReached)] == [5, 20]


# ---- what a function may do wrong ----


def refused(function: Function, cohort: Cohort | None = None) -> LaneError:
    with pytest.raises(LaneError) as caught:
        events_of(function, cohort or cohort_of("none", "global_norm:0.5"))
    return caught.value


def raising(trial: Any) -> None:
    if trial.setting.threshold is not None and trial.seed == 1:
        raise KeyError("lr")
    train(trial)


def test_exception_names_the_trial_and_what_ended_before_was_told() -> None:
    told: list[Event] = []
    with pytest.raises(
        LaneError, match=r"global_norm:0.5 with seed 1 failed at step 0: KeyError: 'lr'"
    ) as caught:
        train_function_cohort(
            cohort_of("none", "global_norm:0.5"), FunctionWorkload.of(raising), tell=told.append
        )
    assert caught.value.trial_id == "global_norm:0.5"
    assert list(ended(told)) == ["none"]


def exiting(trial: Any) -> None:
    del trial
    sys.exit(3)


def hungry(trial: Any) -> None:
    del trial
    torch.empty(2**55, dtype=torch.uint8)


def silent(trial: Any) -> None:
    spoiled(report=lambda self, trial, step: None)(trial)


def own_pruned(trial: Any) -> None:
    del trial
    raise TrialPruned("I thought so")


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (exiting, r"the function ended the program with sys.exit\(3\)"),
        (silent, r"reported nothing: call trial.report\(step, value\)"),
        (spoiled(clip=lambda self, trial, loss: None), r"never clipped: call trial.clip"),
        (own_pruned, "raised TrialPruned itself: report NaN"),
        (lambda trial: "good", "it returned str: return nothing, or the objective"),
        (
            spoiled(report=lambda self, trial, step: trial.report(1, 1.0)),
            "step must be >= 2, because 1 was reported",
        ),
    ],
)
def test_broken_contract_says_what_to_change(function: Function, says: str) -> None:
    with pytest.raises(LaneError, match=says):
        events_of(function, cohort_of("none", "global_norm:0.5"))


def test_function_that_can_not_be_stopped_is_ended() -> None:
    def function(trial: Any) -> None:
        with pytest.raises(TrialPruned, match="diverged at step 1"):
            trial.report(1, math.nan)
        swallowing(trial)

    error = refused(function, cohort_of("none"))
    assert f"after it was stopped (diverged at step 1), for {MAX_REFUSED} more calls: let TrialPruned" in str(
        error
    )


def test_out_of_memory_is_told_apart_by_its_cause() -> None:
    assert is_out_of_memory(refused(hungry).__cause__)


def test_swallowed_stop_is_repeated_at_the_next_call() -> None:
    calls = []

    def function(trial: Any) -> None:
        trial.clip(torch.ones(1, requires_grad=True))
        for step in range(1, 4):
            try:
                trial.report(step, math.nan)
            except TrialPruned as stop:
                calls.append(str(stop))

    found = ended(events_of(function, cohort_of("none")))["none"]
    assert [lane.divergence_step for lane in found.lanes] == [1, 1]
    assert calls == ["stop training this trial: diverged at step 1"] * 6


def test_what_a_stopped_function_raises_while_it_cleans_up_is_no_failure() -> None:
    class Exploding(Regression):
        def value(self) -> float:
            return math.nan

    def function(trial: Any) -> None:
        try:
            Exploding()(trial)
        except TrialPruned as stop:
            raise RuntimeError("the files are gone already") from stop

    found = ended(events_of(function, cohort_of("none")))["none"]
    assert [lane.divergence_step for lane in found.lanes] == [0, 0]


def deaf(trial: Any) -> None:
    Loop = type("Deaf", (Regression,), {"rate": lambda self, trial: self.learning_rate})
    Loop()(trial)


def test_tuned_learning_rate_must_be_used() -> None:
    assert ended(events_of(train, cohort_of("none@0.5")))["none@0.5"].state == "complete"
    assert "never read trial.learning_rate_scale" in str(refused(deaf, cohort_of("none@0.5")))
    assert ended(events_of(deaf, cohort_of("none")))["none"].state == "complete"


def test_forked_child_tells_nothing_and_never_comes_back() -> None:
    """The child would otherwise train and tell what its parent does, and run the rest of this test."""
    read, write = os.pipe()

    def forking(trial: Any) -> float | None:
        pid = os.fork()
        if pid == 0:
            try:
                trial.report(0, 1.0)
            except RuntimeError as error:
                os.write(write, str(error).encode())
            return 1.0
        os.waitpid(pid, 0)
        return train(trial)

    parent = os.getpid()
    events = events_of(forking, cohort_of("none", seeds=(0, 1)))
    assert os.getpid() == parent
    os.close(write)
    with os.fdopen(read) as told:
        assert told.read().count("trial.report was called in a forked process") == 2
    assert len(ended(events)) == 1


def test_setting_is_what_the_trial_clips_with() -> None:
    seen = set()

    def function(trial: Any) -> float | None:
        seen.add((trial.setting, trial.clipper.setting))
        return train(trial)

    events_of(function, cohort_of("none", "value:0.1"))
    value = ClipSetting.parse("value:0.1")
    assert seen == {(OFF_SETTING, OFF_SETTING), (value, value)}


def test_what_a_lane_leaves_in_cycles_is_freed_before_the_next_begins() -> None:
    alive: list[weakref.ref[nn.Module]] = []

    def function(trial: Any) -> float | None:
        assert not [one for one in alive if one() is not None]
        model = nn.Linear(2, 2)
        model.itself = [model]  # type: ignore[assignment]
        alive.append(weakref.ref(model))
        return train(trial)

    events_of(function, cohort_of("none"))
    assert len(alive) == 2
