"""Another engine drops in behind the loop: here one that only keeps a diary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from tuner.training.cohort import Cohort, EngineChosen, TrialEnded
from tuner.training.engine import Advance, EngineState, Evaluation, LaneId
from tuner.training.loop import train_cohort
from tuner.training.trace import LaneRecord
from tuner.workloads import AnyWorkload

A0, A1, B0, B1 = LaneId("none", 0), LaneId("none", 1), LaneId("value:1", 0), LaneId("value:1", 1)


class DiaryEngine:
    """Advances every lane at once, as a batched engine does; one lane diverges at step 3."""

    choice = EngineChosen(path="lanes", num_lanes=4, reason="a diary")

    def __init__(self) -> None:
        self.diary: list[tuple[str, tuple[LaneId, ...]]] = []
        self.step = 0

    def advance(self, lanes: Sequence[LaneId], step: int) -> Iterator[Advance]:
        self.diary.append(("advance", tuple(lanes)))
        taken, self.step = step - self.step, step
        yield Advance(taken * len(lanes), step)

    def evaluate(self, lanes: Sequence[LaneId]) -> Mapping[LaneId, Evaluation]:
        self.diary.append(("evaluate", tuple(lanes)))
        return {lane: Evaluation(loss=1.0, objective=2.0 + lane.seed) for lane in lanes}

    def read(self, lanes: Sequence[LaneId]) -> Mapping[LaneId, LaneRecord]:
        return {lane: self.record(lane) for lane in lanes}

    def record(self, lane: LaneId) -> LaneRecord:
        diverged = lane == B1 and self.step > 3
        return LaneRecord(
            num_steps=3 if diverged else self.step,
            divergence_step=3 if diverged else None,
            clip_fraction=0.5,
            mean_scale=0.9,
            norms=None,
            num_non_finite=int(diverged),
        )

    def num_shared_steps(self, lane: LaneId) -> int:
        return 0

    def seconds(self, lane: LaneId) -> float:
        return 1.5

    def retire(self, lanes: Sequence[LaneId]) -> None:
        self.diary.append(("retire", tuple(lanes)))

    def state(self) -> EngineState | None:
        return None

    def restore(self, state: EngineState) -> None:
        raise AssertionError("nothing was written down")


def test_loop_asks_an_engine_only_for_live_lanes(
    toy: Callable[..., AnyWorkload], cohort: Callable[..., Cohort]
) -> None:
    engine = DiaryEngine()
    asked = cohort("none", "value:1", rung_steps=(2, 4, 6, 8))
    rungs = iter(range(3))

    def prune(values: object, history: object, protected: object) -> list[str]:
        return ["value:1"] if next(rungs) == 2 else []

    events = list(train_cohort(asked, toy(), prune=prune, engine=engine))
    assert engine.diary == [
        ("evaluate", (A0, A1)),  # before the first step, once per seed
        ("advance", (A0, A1, B0, B1)),
        ("evaluate", (A0, A1, B0, B1)),
        ("advance", (A0, A1, B0, B1)),
        ("evaluate", (A0, A1, B0)),  # B1 diverged on the way
        ("advance", (A0, A1, B0)),
        ("evaluate", (A0, A1, B0)),
        ("retire", (B0, B1)),  # pruned
        ("advance", (A0, A1)),
        ("evaluate", (A0, A1)),
        ("retire", (A0, A1)),
    ]
    pruned, complete = (event for event in events if isinstance(event, TrialEnded))
    assert [(lane.value, lane.num_steps, lane.divergence_step) for lane in pruned.lanes] == [
        (2.0, 6, None),
        (None, 3, 3),
    ]
    assert [(lane.value, lane.num_steps, lane.seconds) for lane in complete.lanes] == [
        (2.0, 8, 1.5),
        (3.0, 8, 1.5),
    ]
