"""Real training in parts equals one slot bit for bit on a CPU, also if parts and their driver die on the way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Generator
from functools import cache
from pathlib import Path
from random import Random

import pytest
from joined import Driver, results

from tuner.search.halving import halving
from tuner.spec import ClipSetting
from tuner.training.checkpoint import Checkpoints
from tuner.training.cohort import (
    CheckpointFailed,
    CheckpointSaved,
    Cohort,
    CohortTrial,
    Event,
    PartReached,
    Resumed,
    RungReached,
    TrialEnded,
)
from tuner.training.loop import train_cohort
from tuner.training.parts import Grid
from tuner.workloads.base import AnyWorkload
from tuner.workloads.registrations import BUILT_IN
from tuner.workloads.registry import Registry

SETTINGS = ("none", "global_norm:0.05", "global_norm:0.2", "value:0.01", "global_norm:1", "autoclip:30")
#: Whoever trains, the same way: `auto` may find another one faster for fewer lanes, which is equal up to rounding.
COHORT = Cohort(
    workload="digits-mlp",
    parameters={},
    trials=tuple(
        CohortTrial(id=text, setting=ClipSetting.parse(text), protected=text == "none") for text in SETTINGS
    ),
    seeds=(0, 1),
    rung_steps=(2, 5, 12),
    divergence_factor=3.0,
    reference_norm=0.3,
    largest_norm=0.6,
    lanes=100,
)


@cache
def workload() -> AnyWorkload:
    return Registry(BUILT_IN).create("digits-mlp", {})


@cache
def one_slot() -> list[Event]:
    prune = halving(COHORT.rung_steps, COHORT.clips)
    return list(train_cohort(COHORT, workload(), prune=prune))


def parts_in(folder: Path | str) -> Callable[..., Generator[Event, None, None]]:
    def start(
        part: int, cohort: Cohort, decide: Callable[[int], Collection[str]]
    ) -> Generator[Event, None, None]:
        kept = Checkpoints(f"{folder}/{part}")
        return train_cohort(cohort, workload(), decide=decide, checkpoints=kept)  # type: ignore[return-value]

    return start


def test_some_trials_end_at_a_rung_and_some_at_the_last() -> None:
    """Or the tests below would show little."""
    pruned = [event.pruned for event in one_slot() if isinstance(event, RungReached)]
    assert pruned[0]
    assert [event.state for event in one_slot() if isinstance(event, TrialEnded)].count("complete") >= 2


@pytest.mark.parametrize("grid", [Grid(1, 1), Grid(2, 1), Grid(1, 2), Grid(2, 2)], ids=str)
def test_any_grid_gives_what_one_slot_gives(grid: Grid, tmp_path: Path) -> None:
    told = Driver(COHORT, grid, parts_in(tmp_path)).run(Random(0))
    assert results(told) == results(one_slot())
    assert [event.index for event in told if isinstance(event, CheckpointSaved)] == [0, 1]


@pytest.mark.parametrize("place", ["{folder}", "memory://of-{name}"], ids=["disk", "memory"])
def test_parts_and_drivers_that_die_change_nothing(place: str, tmp_path: Path) -> None:
    folder = place.format(folder=tmp_path, name=tmp_path.name)
    driver = Driver(COHORT, Grid(2, 2), parts_in(folder))
    told = driver.run(Random(3), kills=0.2, restarts=0.04)
    assert results(told) == results(one_slot())
    assert driver.num_kills >= 3
    assert driver.num_restarts >= 1
    assert [event for event in told if isinstance(event, Resumed)]


def test_part_waits_with_its_checkpoint_written_and_tells_again_when_it_goes_on(tmp_path: Path) -> None:
    asked: list[int] = []

    def decide(index: int) -> Collection[str]:
        asked.append(index)
        return {SETTINGS[1], "no trial of this part"}

    def part() -> Generator[Event, None, None]:
        return train_cohort(COHORT, workload(), decide=decide, checkpoints=Checkpoints(tmp_path))  # type: ignore[return-value]

    first = []
    training = part()
    for event in training:
        first.append(event)
        if isinstance(event, PartReached):
            break
    training.close()
    assert [event.kind for event in first] == ["engine", "checkpoint", "part"]
    assert not asked, "only the caller's next step asks"
    again = list(part())
    kinds = [event.kind for event in again]
    assert kinds[:4] == ["engine", "resumed", "part", "trial"]
    assert kinds.count("checkpoint") == 1, "that of the next rung; this one's is there"
    assert again[2] == first[2]
    assert asked == [0, 1]
    assert again[3].trial_id == SETTINGS[1]  # type: ignore[union-attr]
    assert not [event for event in again if isinstance(event, RungReached)]


def test_part_whose_lanes_have_all_diverged_tells_so_and_waits(tmp_path: Path) -> None:
    hot = Registry(BUILT_IN).create("digits-mlp", {"learning_rate": 100.0})
    asked = dataclasses.replace(COHORT, trials=COHORT.trials[:1], parameters={"learning_rate": 100.0})
    waits: list[int] = []
    told = list(train_cohort(asked, hot, decide=lambda index: waits.append(index) or ()))  # type: ignore[func-returns-value]
    rungs = [event for event in told if isinstance(event, PartReached)]
    assert [{value.value for value in event.values} for event in rungs[1:]] == [{None}, {None}]
    assert waits == [0, 1]
    (ended,) = [event for event in told if isinstance(event, TrialEnded)]
    assert ended.state == "complete"
    assert all(lane.diverged for lane in ended.lanes)


def test_decide_and_prune_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="leave out prune"):
        train_cohort(COHORT, workload(), prune=halving((2, 5)), decide=lambda _: ())


def test_checkpoints_that_cannot_be_listed_or_written_are_told_and_training_goes_on() -> None:
    start = parts_in("nosuchstore://bucket")
    told = Driver(COHORT, Grid(1, 1), start).run(Random(0))
    assert results(told) == results(one_slot())
    failed = [event.error for event in told if isinstance(event, CheckpointFailed)]
    assert "nosuchstore://bucket/0 can't be listed" in failed[0]
    assert "Protocol not known: nosuchstore" in failed[0]
    assert [("no checkpoint could be written to nosuchstore://bucket/0" in each) for each in failed[1:]] == [
        True,
        True,
        True,
    ]
