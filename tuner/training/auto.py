"""The engine that a cohort gets: batched where that works and pays, one lane at a time where not, and why.

Whatever stands in the way of a batch (an operation without a batched form, an optimizer that knows one lane only,
batches of many shapes, memory) costs speed, never the study: the lanes go on one at a time from the step where
they are, and `AutoEngine.choice` says so.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch

from tuner.errors import UnsupportedModelError
from tuner.training.batched import BatchedEngine
from tuner.training.capacity import Capacity, choose_trials, measure_rate
from tuner.training.cohort import AS_OTHERS, Cohort, EngineChosen, Path
from tuner.training.engine import Advance, Engine, EngineState, Evaluation, LaneId
from tuner.training.memory import has_headroom, is_out_of_memory, release_memory
from tuner.training.not_batchable import NotBatchableError
from tuner.training.rehearsals import Rehearsals
from tuner.training.solo import Clock, SoloEngine
from tuner.training.trace import LaneRecord
from tuner.workloads.base import AnyWorkload

T = TypeVar("T")

#: ``ask() -> the path that other parts of the cohort have taken``, None if this one is to measure; may wait.
AskPath = Callable[[], Path | None]


class AutoEngine:
    """An `tuner.training.engine.Engine` that chooses another one, and changes to solo when it must.

    Args:
        cohort: trials and seeds, and how many lanes may train together.
        workload: what to train.
        device: where to train.
        compiles: whether batched programs are compiled with torch.compile.
        clock: monotonic seconds.
        rehearsals: what earlier engines found out; pass the same object to spare the next engine the work.
        ask_path: asked before ``auto`` measures anything; None always measures.
        state: go on from what `state` of another engine of this cohort gave, without measuring anything; None
            starts at the first step.

    Raises:
        UnsupportedModelError: if no engine can train the workload's model.
    """

    def __init__(
        self,
        cohort: Cohort,
        workload: AnyWorkload,
        *,
        device: torch.device | str = "cpu",
        compiles: bool = False,
        clock: Clock = time.monotonic,
        rehearsals: Rehearsals | None = None,
        ask_path: AskPath | None = None,
        state: EngineState | None = None,
    ) -> None:
        self._cohort = cohort
        self._workload = workload
        self._device = torch.device(device)
        self._compiles = compiles
        self._clock = clock
        self._rehearsal = (rehearsals or Rehearsals()).of(cohort, workload, self._device, compiles=compiles)
        workload.require_sound()
        self._engine: Engine
        if state is not None:
            self.restore(state)
            return
        try:
            self._engine, self._choice = self._batched(ask_path)
        except NotBatchableError as error:
            self._engine, self._choice = self._solo(), _solo_choice(error.reason)

    @property
    def choice(self) -> EngineChosen:
        """Which path was taken, and why."""
        if isinstance(self._engine, BatchedEngine) and self._engine.remark is not None:
            return dataclasses.replace(
                self._choice,
                num_lanes=self._engine.num_lanes,
                reason=f"{self._choice.reason}; {self._engine.remark}",
            )
        return self._choice

    def _batched(self, ask_path: AskPath | None) -> tuple[Engine, EngineChosen]:
        """The batched engine at the best size, or solo if that is faster, or what the cohort's other parts take.

        Raises:
            NotBatchableError: if this workload can't be batched.
        """
        cohort = self._cohort
        if cohort.lanes in ("solo", 1):
            raise NotBatchableError("the study asks for one lane at a time")
        if not self._workload.optimizer().is_lane_wise:
            raise NotBatchableError(
                "its optimizer is a function that builds a PyTorch optimizer, which knows one lane only: use one of "
                "tuner.optimizers to train lanes together"
            )
        engine = self._prepared(None if cohort.lanes == "auto" else int(cohort.lanes))
        if cohort.lanes != "auto":
            return engine, _batched_choice(engine, "the study sets the number", None)
        path = None if ask_path is None else ask_path()
        if path == "solo":
            return self._solo(), _solo_choice(AS_OTHERS)
        capacity = self._capacity(engine, compares=path is None)
        if capacity.num_trials == 0:
            return self._solo(), dataclasses.replace(
                _solo_choice(capacity.reason),
                lanes_per_second=capacity.lanes_per_second,
                solo_per_second=capacity.solo_per_second,
            )
        if capacity.num_trials < len(engine.trained):
            engine = self._prepared(capacity.num_trials * len(cohort.seeds))
        return engine, _batched_choice(engine, capacity.reason, capacity)

    def _prepared(self, max_lanes: int | None) -> BatchedEngine:
        """A batched engine whose program was compared with the plain module; smaller batches if memory ends.

        Raises:
            NotBatchableError: if that failed.
            UnsupportedModelError: if no engine can train the model.
        """
        num_seeds = len(self._cohort.seeds)
        most = max_lanes or len(self._cohort.trials) * num_seeds
        while True:
            try:
                return self._agreed(most)
            except NotBatchableError as error:
                if not is_out_of_memory(error.__cause__) or most < 2 * num_seeds:
                    raise
            # Only here is nothing left that refers to what the failed attempt had built.
            release_memory(self._device)
            most //= 2

    def _agreed(self, max_lanes: int) -> BatchedEngine:
        """A batched engine of so many lanes at most, whose program was compared with the plain module.

        Raises:
            NotBatchableError: if that failed, whatever the reason.
            UnsupportedModelError: if no engine can train the model.
        """
        try:
            engine = self._made(max_lanes)
            if not self._rehearsal.has_agreed:
                engine.require_agreement()
                self._rehearsal.has_agreed = True
        except (NotBatchableError, UnsupportedModelError):
            raise
        except Exception as error:
            # The workload's own code may have raised; one lane at a time it will again, and name its trial.
            raise NotBatchableError(f"{type(error).__name__}: {error}") from error
        return engine

    def _made(self, max_lanes: int | None) -> BatchedEngine:
        """A batched engine at the first step."""
        engine = BatchedEngine(
            self._cohort,
            self._workload,
            device=self._device,
            max_lanes=max_lanes,
            compiles=self._compiles,
            programs=self._rehearsal.programs,
            clock=self._clock,
        )
        self._rehearsal.programs = engine.programs
        return engine

    def _capacity(self, engine: BatchedEngine, *, compares: bool) -> Capacity:
        """How many settings train together, compared with one lane at a time or not."""
        cohort, known = self._cohort, self._rehearsal
        num_seeds = len(cohort.seeds)

        def rate(num_trials: int) -> float | None:
            if num_trials not in known.rates:
                known.rates[num_trials] = self._rate(engine, num_trials)
            return known.rates[num_trials]

        if compares and known.solo_per_second is None:
            one = dataclasses.replace(cohort, trials=cohort.trials[:1], seeds=cohort.seeds[:1])
            solo = SoloEngine(one, self._workload, device=self._device)
            known.solo_per_second = measure_rate(solo.rehearsal(), num_lanes=1, device=self._device)
        return choose_trials(
            rate,
            most=len(engine.trained),
            solo_per_second=known.solo_per_second if compares else None,
            num_lane_steps=len(cohort.trials) * num_seeds * cohort.rung_steps[-1],
        )

    def _rate(self, engine: BatchedEngine, num_trials: int) -> float | None:
        """Lane-steps per second of a batch of so many settings; None if memory does not hold it with room to spare."""
        num_lanes = num_trials * len(self._cohort.seeds)
        try:
            found = measure_rate(engine.rehearsal(num_trials), num_lanes=num_lanes, device=self._device)
            fits = has_headroom(self._device)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            fits = False
        if fits:
            return found
        release_memory(self._device)
        return None

    def _solo(self) -> SoloEngine:
        return SoloEngine(self._cohort, self._workload, device=self._device, clock=self._clock)

    def _patiently(self, work: Callable[[], T]) -> T:
        """Do some work of the engine; if the batch can't, change to solo and do it there."""
        try:
            return work()
        except NotBatchableError as error:
            self._change_to_solo(error)
        return work()

    def _change_to_solo(self, error: NotBatchableError) -> None:
        assert isinstance(self._engine, BatchedEngine)
        solo = self._solo()
        kept = []
        for handed in self._engine.hand_over():
            solo.adopt(
                handed.lane,
                handed.batch,
                step=handed.step,
                data=handed.data,
                draws=handed.draws,
                seconds=handed.seconds,
            )
            kept.append(handed.lane)
        solo.keep(kept)
        self._choice = _solo_choice(f"from step {self._engine.step} on: {error.reason}")
        self._engine = solo
        release_memory(self._device)

    def advance(self, lanes: Sequence[LaneId], step: int) -> Iterator[Advance]:  # noqa: D102
        try:
            yield from self._engine.advance(lanes, step)
        except NotBatchableError as error:
            self._change_to_solo(error)
            yield from self._engine.advance(lanes, step)

    def evaluate(self, lanes: Sequence[LaneId]) -> Mapping[LaneId, Evaluation]:  # noqa: D102
        return self._patiently(lambda: self._engine.evaluate(lanes))

    def read(self, lanes: Sequence[LaneId]) -> Mapping[LaneId, LaneRecord]:  # noqa: D102
        return self._engine.read(lanes)

    def num_shared_steps(self, lane: LaneId) -> int:  # noqa: D102
        return self._engine.num_shared_steps(lane)

    def seconds(self, lane: LaneId) -> float:  # noqa: D102
        return self._engine.seconds(lane)

    def retire(self, lanes: Sequence[LaneId]) -> None:  # noqa: D102
        self._engine.retire(lanes)

    def state(self) -> EngineState | None:  # noqa: D102
        state = self._engine.state()
        if state is None:
            return None
        return EngineState(
            state.tensors, {"choice": dataclasses.asdict(self._choice), "engine": state.values}
        )

    def restore(self, state: EngineState) -> None:  # noqa: D102
        self._choice = EngineChosen(**state.values["choice"])
        self._engine = self._solo() if self._choice.path == "solo" else self._made(None)
        self._engine.restore(EngineState(state.tensors, state.values["engine"]))


def _solo_choice(reason: str) -> EngineChosen:
    return EngineChosen(path="solo", num_lanes=1, reason=reason)


def _batched_choice(engine: BatchedEngine, reason: str, capacity: Capacity | None) -> EngineChosen:
    return EngineChosen(
        path="lanes",
        num_lanes=engine.num_lanes,
        reason=reason,
        lanes_per_second=capacity.lanes_per_second if capacity else None,
        solo_per_second=capacity.solo_per_second if capacity else None,
    )
