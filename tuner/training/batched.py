"""Train all lanes of a cohort as one batched program.

Lanes go in lock-step. The host looks at the device once per `MAX_UNFLUSHED` steps: to find lanes that diverged,
and trials that stop being *off* under another name (`tuner.training.sharing`). Columns of ended trials are
compacted away once at most half of a block is wanted, because every new shape is a program to be recorded. When
memory ends, a block is cut in two halves that take turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from tuner.lanes import row_of, trainable
from tuner.training.agreement import require_agreement
from tuner.training.block import Block, HandedOver
from tuner.training.blocks import Blocks
from tuner.training.cohort import Cohort, EngineChosen
from tuner.training.effects import lane_buffers
from tuner.training.engine import Advance, EngineState, Evaluation, LaneId
from tuner.training.held_out import HeldOut
from tuner.training.initial import initial_model
from tuner.training.lane_batch import MAX_UNFLUSHED, LaneBatch
from tuner.training.lane_program import LanePrograms
from tuner.training.memory import is_out_of_memory, release_memory
from tuner.training.not_batchable import NotBatchableError
from tuner.training.sharing import Watch, followers, leader
from tuner.training.solo import READ_SECONDS, Clock
from tuner.training.stacking import Stacked
from tuner.training.stepper import Stepper
from tuner.training.streams import DataStreams, SeedStreams
from tuner.training.trace import LaneRecord
from tuner.workloads.base import AnyWorkload


class BatchedEngine:
    """An `tuner.training.engine.Engine` that trains its lanes side by side.

    Args:
        cohort: trials and seeds.
        workload: what to train; its optimizer must be lane-wise.
        device: where to train.
        max_lanes: lanes in one block at most; at least one trial under all seeds is in a block.
        compiles: whether programs are compiled with torch.compile.
        programs: recorded for this workload and these seeds; None records afresh.
        captures: whether steps become CUDA graphs where the device has them.
        clock: monotonic seconds; only for telling progress and measuring time, never for results.

    Attributes:
        step: optimizer steps that all live lanes have taken.
        programs: the recorded programs.
        trained: the trials that do not start as followers of *off*.
    """

    def __init__(
        self,
        cohort: Cohort,
        workload: AnyWorkload,
        *,
        device: torch.device | str = "cpu",
        max_lanes: int | None = None,
        compiles: bool = False,
        programs: LanePrograms | None = None,
        captures: bool = True,
        clock: Clock = time.monotonic,
    ) -> None:
        self.step = 0
        self._cohort = cohort
        self._workload = workload
        self._device = torch.device(device)
        self._clock = clock
        workload.device = self._device
        models = [initial_model(workload, seed, self._device) for seed in cohort.seeds]
        self._initial = torch.stack([row_of(trainable(model)) for model in models])
        self._buffers = lane_buffers(workload, models)
        self.programs = programs or LanePrograms(
            workload, models, precision=workload.precision, compiles=compiles
        )
        self._stepper = Stepper(self.programs, captures=captures and self._device.type == "cuda")
        self._held_out = HeldOut(workload, self.programs, self._device)
        self._data = DataStreams(workload, cohort.seeds)
        self._leader = leader(cohort)
        self._followers = followers(cohort)
        self._departures: dict[str, int] = {}
        self.trained = tuple(trial.id for trial in cohort.trials if trial.id not in self._followers)
        most = max(1, (max_lanes or len(cohort.trials) * len(cohort.seeds)) // len(cohort.seeds))
        self._blocks = Blocks(
            (
                self._initial_block(self.trained[first : first + most])
                for first in range(0, len(self.trained), most)
            ),
            max_trials=most,
        )
        self._before: Block | None = None
        self._data_before = self._data_before_chunk = self._data.state()
        self._taken = -1
        self._missed: list[list[Stacked]] = []
        self._stopped: set[LaneId] = set()
        self._ended: set[str] = set()
        self._seconds: dict[LaneId, float] = {}
        self._records: dict[LaneId, LaneRecord] = {}
        self._watch: Watch | None = None
        self._watch_leader()

    @property
    def choice(self) -> EngineChosen:
        """How lanes train: together."""
        return EngineChosen(path="lanes", num_lanes=self.num_lanes, reason=self.remark or "asked for")

    @property
    def remark(self) -> str | None:
        """What people should know of how it went; None while all is as planned."""
        remarks = []
        if self._blocks.num_halvings:
            remarks.append(f"memory ended, so that batches hold {self.num_lanes} lanes")
        if self._stepper.not_captured is not None:
            remarks.append(f"steps could not become CUDA graphs: {self._stepper.not_captured}")
        return "; ".join(remarks) or None

    @property
    def num_lanes(self) -> int:
        """Lanes of the largest block."""
        return self._blocks.num_lanes

    def _initial_block(self, trials: Sequence[str]) -> Block:
        """A block of trials at step 0."""
        settings = {trial.id: trial.setting for trial in self._cohort.trials}
        seeds, num_trials = self._cohort.seeds, len(trials)
        batch = LaneBatch(
            [settings[trial] for trial in trials] * len(seeds),
            self.programs.layout,
            self._initial.repeat_interleave(num_trials, dim=0),
            optimizer=self._workload.optimizer(),
            num_steps=self._cohort.rung_steps[-1],
            precision=self._workload.precision,
            reference_norm=self._cohort.reference_norm,
            buffers={name: each.repeat_interleave(num_trials, 0) for name, each in self._buffers.items()},
        )
        return Block(trials, seeds, batch, SeedStreams(seeds, "training", self._device))

    def require_agreement(self) -> None:
        """Compare the batched program with the plain module on the first batch.

        Raises:
            NotBatchableError: if they differ, or the workload can't be batched.
        """
        batch, seeds = next(iter(self._blocks)).batch, self._cohort.seeds
        data = DataStreams(self._workload, seeds)
        first, second = (data.step(step)[0].to(self._device) for step in range(2))
        require_agreement(
            self.programs, self._workload, batch.weights.clone(), batch.buffers, first, second, seeds
        )

    def rehearsal(self, num_trials: int) -> Callable[[], None]:
        """A function that takes the first step of a block of so many trials, to be timed; nothing here changes."""
        block, data = (
            self._initial_block(self.trained[:num_trials]),
            DataStreams(self._workload, self._cohort.seeds),
        )
        parts = [each.to(self._device) for each in data.step(0)]
        return lambda: self._stepper.step(block, parts)

    def advance(self, lanes: Sequence[LaneId], step: int) -> Iterator[Advance]:  # noqa: D102
        self._blocks.compact()
        self._watch_leader()
        self._stop_others(lanes)
        told, told_step = self._clock(), self.step
        while self.step < step and self._blocks.training():
            self._remember()
            started, end = self._clock(), self._chunk_end(step)
            training = self._blocks.training_lanes()
            while self.step < end:
                try:
                    self._train_all(self._next_parts())
                except NotBatchableError:
                    yield Advance((self.step - told_step) * self._num_training(), self.step)
                    raise
                if self._clock() - told >= READ_SECONDS:
                    yield Advance((self.step - told_step) * self._num_training(), self.step)
                    told, told_step = self._clock(), self.step
            self._look()
            self._share_out(self._clock() - started, training)
        if self.step > told_step:
            yield Advance((self.step - told_step) * self._num_training(), self.step)

    def _stop_others(self, lanes: Sequence[LaneId]) -> None:
        """Let lanes that are no longer asked for take no more steps: their rung said that they diverged."""
        wanted = {self._home(lane) for lane in lanes}
        for block in self._blocks:
            stopped = [lane for lane in block.training_lanes() if lane not in wanted]
            self._stopped.update(stopped)
            block.stop(stopped)

    def _num_training(self) -> int:
        """Lanes that get a step whenever a step is taken, followers included."""
        return len(self._blocks.training_lanes()) + len(self._followers) * len(self._cohort.seeds)

    def _chunk_end(self, step: int) -> int:
        """Where the host looks next: soon at first, because thresholds are exceeded early if at all."""
        early = self._followers and self.step < MAX_UNFLUSHED
        length = max(1, self.step) if early else MAX_UNFLUSHED - self.step % MAX_UNFLUSHED
        return min(step, self.step + length)

    def _next_parts(self) -> list[Stacked]:
        """The batches of the next step, on the device."""
        first = self._blocks.training_lanes()[0]
        self._data_before, self._taken = self._data.state(), self.step
        return [each.to(self._device) for each in self._data.step(self.step, blamed=first)]

    def _train_all(self, parts: list[Stacked]) -> None:
        for block in self._blocks.training():
            self._train(block, parts)
        if self._followers:
            self._missed.append(parts)
        self.step += 1

    def _train(self, block: Block, parts: list[Stacked]) -> None:
        """One step of a block; in two halves if memory does not hold it.

        Raises:
            NotBatchableError: if memory does not hold a single trial.
        """
        try:
            self._stepper.step(block, parts)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            halves = self._blocks.halve(block)
            self._watch_leader()
        else:
            return
        release_memory(self._device)
        for half in halves:
            self._train(half, parts)

    def _remember(self) -> None:
        """Keep the leader as it is, for followers that will turn out to have left it in the steps to come."""
        if self._followers and self._leader is not None:
            self._before = self._blocks.of(self._leader).part([self._leader])
            self._data_before_chunk = self._data.state()
            self._missed = []

    def _share_out(self, seconds: float, lanes: Sequence[LaneId]) -> None:
        """Charge the lanes that were training with the time."""
        for lane in lanes:
            self._seconds[lane] = self._seconds.get(lane, 0.0) + seconds / len(lanes)

    def _look(self) -> None:
        """Learn what happened since the last look: who is live, who leaves the leader."""
        self._blocks.look()
        if self._watch is not None and self._before is not None and self._leader is not None:
            exceeded, near = self._watch.look()
            self._depart(self._before, exceeded, self._missed)
            self._depart(self._blocks.of(self._leader), near, [])
        self._before = None
        self._records.clear()

    def _depart(self, origin: Block, trials: Sequence[str], missed: list[list[Stacked]]) -> None:
        """Let followers train by themselves from where ``origin`` is, and catch up on the steps they missed.

        Raises:
            NotBatchableError: if they can't; they follow on then.
        """
        if not trials or self._leader is None:
            return
        try:
            block = origin.departed(self._leader, {trial: self._followers[trial] for trial in trials})
            for parts in missed:
                self._stepper.step(block, parts)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if len(trials) == 1:
                raise NotBatchableError("another setting does not fit in memory as a batch") from error
            release_memory(self._device)
            self._depart(origin, trials[: len(trials) // 2], missed)
            self._depart(origin, trials[len(trials) // 2 :], missed)
            return
        for trial in trials:
            del self._followers[trial]
            self._departures[trial] = self.step - len(missed)
        block.batch.flush()
        block.look()
        self._blocks.add(block)
        self._watch_leader()

    def _watch_leader(self) -> None:
        """Have the leader's gradients compared with the thresholds of those that follow it."""
        before, self._watch = self._watch, None
        for block in self._blocks:
            if not self._followers or self._leader not in block.trials:
                block.see_with(None)
            elif before is not None and block.batch.watch is before and before.watches(self._followers):
                self._watch = before
            else:
                rows = torch.tensor(block.rows_of(self._leader), device=self._device)
                self._watch = Watch(rows, self._followers, before)
                block.see_with(self._watch)

    def _home(self, lane: LaneId) -> LaneId:
        """The lane that trains for this one."""
        if lane.trial_id in self._followers and self._leader is not None:
            return LaneId(self._leader, lane.seed)
        return lane

    def evaluate(self, lanes: Sequence[LaneId]) -> Mapping[LaneId, Evaluation]:  # noqa: D102
        homes = {lane: self._home(lane) for lane in lanes}
        wanted = {home.trial_id for home in homes.values()}
        found: dict[LaneId, Evaluation] = {}
        for block in self._blocks:
            if wanted & set(block.trials):
                found |= self._held_out.evaluate(block)
        return {lane: found[home] for lane, home in homes.items()}

    def read(self, lanes: Sequence[LaneId]) -> Mapping[LaneId, LaneRecord]:  # noqa: D102
        if not self._records:
            self._records = self._blocks.records()
        return {lane: self._record(self._home(lane)) for lane in lanes}

    def _record(self, lane: LaneId) -> LaneRecord:
        record = self._records[lane]
        if lane not in self._stopped or record.divergence_step is None:
            return record
        # The trace took being stopped for a step that was not finite.
        return replace(record, divergence_step=None, num_non_finite=record.num_non_finite - 1)

    def num_shared_steps(self, lane: LaneId) -> int:  # noqa: D102
        num_steps = self.read([lane])[lane].num_steps
        if lane.trial_id in self._followers:
            return num_steps
        return min(num_steps, self._departures.get(lane.trial_id, 0))

    def seconds(self, lane: LaneId) -> float:  # noqa: D102
        return self._seconds.get(lane, 0.0)

    def retire(self, lanes: Sequence[LaneId]) -> None:  # noqa: D102
        trials = {lane.trial_id for lane in lanes}
        ended = {trial for trial in trials if self._followers.pop(trial, None) is None}
        self._ended |= ended
        # The leader trains on for those that follow it.
        if self._leader is not None and self._leader in self._ended:
            ended = ended - {self._leader} if self._followers else ended | {self._leader}
        for trial in ended:
            self._blocks.end(trial)

    def hand_over(self) -> Iterator[HandedOver]:
        """Every wanted lane by itself, at the last step it has finished: what another engine needs to go on.

        Yields:
            One lane after the other; a follower is where its leader was when the host last looked.
        """
        for block in self._blocks:
            data = self._data_before if block.step == self._taken else self._data.state()
            for trial in block.wanted:
                yield from block.handed_over(trial, data, self._seconds)
        if self._leader is not None:
            origin = self._before or self._blocks.of(self._leader)
            data = self._data.state() if self._before is None else self._data_before_chunk
            for trial, setting in self._followers.items():
                copies = origin.departed(self._leader, {trial: setting})
                yield from copies.handed_over(trial, data, self._seconds)

    def state(self) -> EngineState:  # noqa: D102
        values = {
            "step": self.step,
            "max_trials": self._blocks.max_trials,
            "blocks": [{"trials": list(block.trials), "step": block.step} for block in self._blocks],
            "ended": sorted(self._ended),
            "followers": sorted(self._followers),
            "departures": self._departures,
            "stopped": sorted(self._stopped),
            "seconds": [[*lane, seconds] for lane, seconds in sorted(self._seconds.items())],
        }
        return EngineState(self._blocks.tensors() | {"data": self._data.state()}, values)

    def restore(self, state: EngineState) -> None:  # noqa: D102
        values = state.values
        self.step = values["step"]
        self._followers = {trial: self._followers[trial] for trial in values["followers"]}
        self._departures = dict(values["departures"])
        self._stopped = {LaneId(*lane) for lane in values["stopped"]}
        self._seconds = {LaneId(trial, seed): seconds for trial, seed, seconds in values["seconds"]}
        self._data.restore(state.tensors["data"])
        blocks = []
        for number, stored in enumerate(values["blocks"]):
            block = self._initial_block(stored["trials"])
            prefix = f"block{number}."
            block.restore(
                {n.removeprefix(prefix): each for n, each in state.tensors.items() if n.startswith(prefix)}
            )
            block.step = stored["step"]
            blocks.append(block)
        self._blocks = Blocks(blocks, values["max_trials"])
        self.retire([LaneId(trial, self._cohort.seeds[0]) for trial in values["ended"]])
        self._records.clear()
        self._watch_leader()
