"""Parts joined: the events of the whole, in the order of one slot, whoever dies on the way.

The parts are simulated (values by rung, checkpoints of which two are kept), because the cases are many; that training
keeps to this is in `test_joined_training`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Generator, Iterator
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joined import Driver, results

from tuner.evidence import LaneResult
from tuner.records import NormSketch
from tuner.search.halving import halving
from tuner.search.joining import JoinedCohort
from tuner.spec import OFF_SETTING, ClipSetting
from tuner.training.cohort import (
    CheckpointFailed,
    CheckpointSaved,
    Cohort,
    CohortTrial,
    EngineChosen,
    Event,
    LaneStarted,
    LaneValue,
    PartReached,
    Progressed,
    Resumed,
    RungReached,
    TrialEnded,
)
from tuner.training.parts import Grid, split

NORMS = NormSketch(median=1.0, q90=2.0, q99=3.0, max=4.0)
ENGINE = EngineChosen(path="lanes", num_lanes=2, reason="the study sets the number")
STEPS = (3, 9, 27, 81)
BYTES = 10


def cohort_of(num_trials: int, num_seeds: int, num_rungs: int, random: Random) -> Cohort:
    trials = [CohortTrial(id="off", setting=OFF_SETTING, protected=True)] + [
        CohortTrial(
            id=f"clip {number}",
            setting=ClipSetting.parse(f"value:{number}"),
            protected=random.random() < 0.1,
        )
        for number in range(1, num_trials)
    ]
    return Cohort(
        workload="w",
        parameters={},
        trials=tuple(trials),
        seeds=tuple(range(num_seeds)),
        rung_steps=STEPS[-num_rungs:],
        divergence_factor=3.0,
        history={step: tuple(map(float, random.choices(range(9), k=random.randint(0, 6)))) for step in STEPS},
    )


class World:
    """What every lane does, whoever trains it; ties and divergence are frequent."""

    def __init__(self, cohort: Cohort, salt: int) -> None:
        self.cohort = cohort
        self.salt = salt
        self.saved: dict[int, list[tuple[int, tuple[str, ...]]]] = {}

    def value(self, trial: str, seed: int, index: int) -> float | None:
        random = Random(f"{self.salt} {trial} {seed}")
        diverges_at = random.choice((0, 1, 2, *[len(STEPS)] * 9))
        values = [float(random.randint(0, 4)) for _ in STEPS]
        return None if index >= diverges_at else values[index]

    def values(self, trials: Collection[str], seeds: Collection[int], index: int) -> tuple[LaneValue, ...]:
        return tuple(
            LaneValue(trial_id=trial, seed=seed, value=self.value(trial, seed, index))
            for trial in trials
            for seed in seeds
        )

    def ended(self, trial: str, seeds: Collection[int], index: int) -> TrialEnded:
        step = self.cohort.rung_steps[index]
        is_last = index == len(self.cohort.rung_steps) - 1
        lanes = []
        for seed in seeds:
            value = self.value(trial, seed, index)
            lanes.append(
                LaneResult(
                    seed=seed,
                    num_steps=step,
                    value=value,
                    divergence_step=None if value is not None else step,
                    clip_fraction=0.5,
                    mean_scale=0.5,
                    norms=NORMS,
                    num_non_finite=0,
                    seconds=1.0,
                )
            )
        return TrialEnded(trial_id=trial, state="complete" if is_last else "pruned", lanes=tuple(lanes))

    def saved_at(self, index: int, num_lanes: int) -> CheckpointSaved:
        step = self.cohort.rung_steps[index]
        return CheckpointSaved(index=index, step=step, num_bytes=BYTES * num_lanes, seconds=0.5)

    def whole(self) -> list[Event]:
        """What one slot tells, as `tuner.training.loop` says; but that the checkpoint has what a part's has."""
        cohort, live = self.cohort, [trial.id for trial in self.cohort.trials]
        told: list[Event] = [ENGINE]
        for index, step in enumerate(cohort.rung_steps):
            values = self.values(live, cohort.seeds, index)
            is_last = index == len(cohort.rung_steps) - 1
            by_trial: dict[str, list[float]] = {}
            for each in values:
                by_trial.setdefault(each.trial_id, []).append(math.inf if each.value is None else each.value)
            protected = [trial.id for trial in cohort.trials if trial.protected]
            prune = halving(cohort.rung_steps, cohort.clips)
            pruned = () if is_last else prune(by_trial, cohort.history.get(step, ()), protected)
            told.append(RungReached(index=index, step=step, values=values, pruned=pruned))
            told += [self.ended(trial, cohort.seeds, index) for trial in (live if is_last else pruned)]
            if not is_last:
                told.append(self.saved_at(index, len(live) * len(cohort.seeds)))
            live = [trial for trial in live if trial not in pruned]
            if not live:
                break
        return told

    def part(
        self, number: int, part: Cohort, decide: Callable[[int], Collection[str]]
    ) -> Generator[Event, None, None]:
        """One part, from its newest checkpoint that has all its trials, as the loop with ``decide``."""
        told = [trial.id for trial in part.trials]
        saved = self.saved.setdefault(number, [])
        live, first = list(told), 0
        yield ENGINE
        for index, then in reversed(saved):
            if set(told) <= set(then):
                live = [trial for trial in then if trial in told or trial in part.ended]
                first = index
                if index >= 0:
                    yield Resumed(index=index, step=part.rung_steps[index], lane_steps=0, seconds=0.1)
                break
        else:
            saved.append((-1, tuple(live)))
        yield from self.from_rung(number, part, decide, live, first)

    def from_rung(
        self,
        number: int,
        part: Cohort,
        decide: Callable[[int], Collection[str]],
        live: list[str],
        first: int,
    ) -> Iterator[Event]:
        told, last = {trial.id for trial in part.trials}, len(part.rung_steps) - 1
        for index in range(max(first, 0), last + 1):
            if index < last and (index != first or first == 0):
                self.saved[number] = [*self.saved[number], (index, tuple(live))][-2:]
                yield self.saved_at(index, len([each for each in live if each in told]) * len(part.seeds))
            here = [trial for trial in live if trial in told]
            step = part.rung_steps[index]
            yield PartReached(index=index, step=step, values=self.values(here, part.seeds, index))
            ending = live if index == last else [trial for trial in live if trial in set(decide(index))]
            for trial in list(ending):
                if trial in told:
                    yield self.ended(trial, part.seeds, index)
            live = [trial for trial in live if trial not in ending]
            if not live:
                return


@st.composite
def cases(draw: st.DrawFn) -> tuple[World, Grid, Random]:
    random = Random(draw(st.integers(0, 2**32)))
    num_trials, num_seeds = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    cohort = cohort_of(num_trials, num_seeds, draw(st.integers(1, 4)), random)
    grid = Grid(draw(st.integers(1, num_seeds)), draw(st.integers(1, num_trials)))
    return World(cohort, random.randint(0, 10**6)), grid, random


@given(cases())
def test_parts_tell_together_what_the_whole_tells(case: tuple[World, Grid, Random]) -> None:
    world, grid, random = case
    assert Driver(world.cohort, grid, world.part).run(random) == world.whole()


@given(cases())
def test_parts_that_are_launched_again_change_nothing(case: tuple[World, Grid, Random]) -> None:
    world, grid, random = case
    driver = Driver(world.cohort, grid, world.part)
    assert results(driver.run(random, kills=0.3)) == results(world.whole())


@given(cases())
def test_driver_that_dies_goes_on_from_its_records(case: tuple[World, Grid, Random]) -> None:
    world, grid, random = case
    driver = Driver(world.cohort, grid, world.part)
    assert results(driver.run(random, kills=0.1, restarts=0.1)) == results(world.whole())


@pytest.fixture
def joined() -> JoinedCohort:
    """Five trials under two seeds on two slots; two rungs."""
    return joined_of(Grid(2, 1))


def joined_of(grid: Grid, **given: object) -> JoinedCohort:
    cohort = dataclasses.replace(cohort_of(5, 2, 2, Random(0)), history={})
    parts = split(cohort, [trial.id for trial in cohort.trials], grid)
    return JoinedCohort(cohort, parts, **({"known": {}, "ended_at": {}} | given))  # type: ignore[arg-type]


TRIALS = ("off", "clip 1", "clip 2", "clip 3", "clip 4")


def reached(
    seed: int, *values: float | None, index: int = 0, trials: Collection[str] = TRIALS
) -> PartReached:
    told = zip(trials, values, strict=True)
    lanes = tuple(LaneValue(trial_id=trial, seed=seed, value=value) for trial, value in told)
    return PartReached(index=index, step=(27, 81)[index], values=lanes)


def test_decision_is_known_once_the_rung_is_told(joined: JoinedCohort) -> None:
    assert joined.take(0, reached(0, 5, 1, 2, 3, 4)) == []
    assert (joined.waits_at(0), joined.waits_at(1), joined.decision(0, 0)) == (0, None, None)
    (rung,) = joined.take(1, reached(1, 5, 1, 2, 3, None))
    assert isinstance(rung, RungReached)
    assert rung.pruned == ("clip 3", "clip 4"), "of five a third go on, which is two; off is protected"
    assert joined.decision(0, 0) == joined.decision(0, 1) == rung.pruned
    joined.sent(0)
    joined.lost(1)
    assert (joined.waits_at(0), joined.waits_at(1)) == (None, None)


def test_last_rung_waits_for_no_decision(joined: JoinedCohort) -> None:
    for seed in (0, 1):
        joined.take(seed, reached(seed, 5, 1, 2, 3, 4))
    trials = ("off", "clip 1", "clip 2")
    joined.take(0, reached(0, 5, 1, 2, index=1, trials=trials))
    assert joined.waits_at(0) is None
    assert joined.decision(1, 0) is None


def test_known_rung_is_decided_without_waiting_and_not_told_again() -> None:
    known = {
        27: {trial: {0: value, 1: value} for trial, value in zip(TRIALS, (5.0, 1, 2, 3, 4), strict=True)}
    }
    joined = joined_of(Grid(1, 2), known=known)
    assert joined.decision(0, 0) == ("clip 4",)
    assert joined.decision(0, 1) == ("clip 3",)
    halves = [
        PartReached(
            index=0,
            step=27,
            values=tuple(
                LaneValue(trial_id=t, seed=s, value=known[27][t][s]) for t in trials for s in (0, 1)
            ),
        )
        for trials in (TRIALS[0::2], TRIALS[1::2])
    ]
    assert [joined.take(part, half) for part, half in enumerate(halves)] == [[], []]


def test_rung_that_is_known_in_part_is_waited_for() -> None:
    joined = joined_of(Grid(2, 1), known={27: {trial: {0: 1.0} for trial in TRIALS}})
    assert joined.decision(0, 0) is None


def test_ended_trial_that_is_trained_again_ends_where_it_did() -> None:
    whole = dataclasses.replace(cohort_of(5, 2, 2, Random(0)), history={27: (9.0,)})
    left = dataclasses.replace(whole, trials=whole.trials[:4], ended=("clip 4",))
    parts = split(left, TRIALS, Grid(1, 2))
    known = {27: {trial: {0: value, 1: value} for trial, value in zip(TRIALS, (5.0, 1, 2, 3), strict=False)}}
    joined = JoinedCohort(left, parts, known=known, ended_at={"clip 4": 0})
    assert joined.decision(0, 0) == ("clip 4",), "beside off and clip 2"
    assert joined.decision(0, 1) == ("clip 3",)


def test_what_a_part_told_the_end_of_is_left_out_of_its_next_launch(joined: JoinedCohort) -> None:
    for seed in (0, 1):
        joined.take(seed, reached(seed, 5, 1, 2, 3, 4))
    world = World(dataclasses.replace(cohort_of(5, 2, 2, Random(0))), 0)
    assert joined.take(0, world.ended("clip 4", (0,), 0)) == []
    again = joined.left(0)
    assert [trial.id for trial in again.trials] == ["off", "clip 1", "clip 2", "clip 3"]
    assert again.ended == ("clip 4",)
    assert len(joined.left(1).trials) == 5


def test_progress_is_the_sum_of_the_newest_and_full_runs_of_the_silent(joined: JoinedCohort) -> None:
    first = joined.take(0, Progressed(lane_steps=10, total_lane_steps=300, step=2))
    assert first == [Progressed(lane_steps=10, total_lane_steps=300 + 5 * 81, step=2)]
    joined.take(1, Progressed(lane_steps=7, total_lane_steps=200, step=1))
    assert joined.take(0, Progressed(lane_steps=20, total_lane_steps=300, step=4)) == [
        Progressed(lane_steps=27, total_lane_steps=500, step=4)
    ]


def test_way_of_training_is_told_once(joined: JoinedCohort) -> None:
    other = dataclasses.replace(ENGINE, path="solo", num_lanes=1)
    told = [joined.take(part, each) for part, each in ((0, ENGINE), (1, ENGINE), (1, other), (0, other))]
    assert told == [[ENGINE], [], [other], []]


def test_checkpoint_that_one_part_lacks_is_not_told(joined: JoinedCohort) -> None:
    failed = CheckpointFailed(error="the disk is full")
    joined.take(0, CheckpointSaved(index=0, step=27, num_bytes=4, seconds=1.0))
    assert joined.take(1, failed) == [failed]
    told = [*joined.take(0, reached(0, 5, 1, 2, 3, 4)), *joined.take(1, reached(1, 5, 1, 2, 3, 4))]
    assert [event.kind for event in told] == ["rung"]


COMPLETE = TrialEnded(trial_id="off", state="complete", lanes=())


@pytest.mark.parametrize(
    "message",
    [
        reached(1, 5, 1, 2, 3, 4),
        reached(0, 5, 1, 2, 3, trials=TRIALS[:4]),
        reached(0, 5, 1, 2, 3, 4, trials=("off", "clip 1", "clip 2", "clip 3", "clip 9")),
        reached(0, 5, 1, 2, 3, 4, index=1),
        dataclasses.replace(reached(0, 5, 1, 2, 3, 4), step=9),
        dataclasses.replace(reached(0, 5, 1, 2, 3, 4), index=2),
        World(cohort_of(5, 2, 2, Random(0)), 0).ended("off", (0,), 1),
        World(cohort_of(5, 2, 2, Random(0)), 0).ended("clip 1", (0,), 0),
        COMPLETE,
        CheckpointSaved(index=2, step=243, num_bytes=1, seconds=0.1),
        RungReached(index=0, step=27, values=(), pruned=()),
        LaneStarted(trial_id="off", seed=0),
    ],
    ids=[
        "another part's seed",
        "a trial lacks",
        "an unknown trial",
        "a rung ahead",
        "another step",
        "no such rung",
        "complete before the last rung",
        "pruned before the decision",
        "without lanes",
        "a checkpoint of no rung",
        "a rung of the whole",
        "a training function's lane",
    ],
)
def test_what_no_part_can_tell_is_refused(joined: JoinedCohort, message: Event) -> None:
    with pytest.raises(ValueError, match=f"^part 0 told a {message.kind} event that can't follow"):
        joined.take(0, message)
    assert joined.take(0, reached(0, 5, 1, 2, 3, 4)) == [], "nothing of it was kept"


def test_rung_whose_decision_was_sent_is_told_again_only_after_another_launch(joined: JoinedCohort) -> None:
    for seed in (0, 1):
        joined.take(seed, reached(seed, 5, 1, 2, 3, 4))
    joined.sent(0)
    with pytest.raises(ValueError, match=r"^part 0 told a part event that can't follow"):
        joined.take(0, reached(0, 5, 1, 2, 3, 4))
    joined.lost(0)
    joined.take(0, reached(0, 5, 1, 2, 3, 4))
    assert joined.waits_at(0) == 0
