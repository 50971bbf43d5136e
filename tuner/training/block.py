"""Some trials of a cohort under all its seeds, as one lane batch: row s * K + k is seed s of trial k.

Shape letters: L = lanes = S seeds x K trials.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tuner.spec import ClipSetting
from tuner.training.engine import LaneId
from tuner.training.lane_batch import LaneBatch, side_by_side
from tuner.training.sharing import Watch
from tuner.training.streams import SeedStreams

if TYPE_CHECKING:
    from tuner.training.capture import CapturedSteps


class HandedOver(NamedTuple):
    """One lane by itself.

    Attributes:
        lane: which.
        batch: its row as a lane batch of one, with the module's changing buffers.
        step: optimizer steps taken.
        data: state of its data generator.
        draws: state of the generator behind its dropout masks.
        seconds: wall time spent on it.
    """

    lane: LaneId
    batch: LaneBatch
    step: int
    data: Tensor
    draws: Tensor
    seconds: float


class Block:
    """A lane batch and whose rows they are.

    Args:
        trials: of its columns, in order.
        seeds: of its rows' other axis, in order.
        batch: S * K lanes.
        streams: the seeds' training streams, at this batch's step.

    Attributes:
        step: optimizer steps its live lanes have taken.
        captured: its steps as CUDA graphs, where the engine makes such.
        ended: trials among them that are not asked for again; their rows are dead weight until `compacted`.
        alive: lanes that were live when the host last looked; a row number each.
    """

    def __init__(
        self, trials: Sequence[str], seeds: Sequence[int], batch: LaneBatch, streams: SeedStreams
    ) -> None:
        self.trials = tuple(trials)
        self.seeds = tuple(seeds)
        self.batch = batch
        self.streams = streams
        self.step = 0
        self.captured: CapturedSteps | None = None
        self.ended: frozenset[str] = frozenset()
        self.alive: frozenset[int] = frozenset(range(len(batch)))
        self._training: list[LaneId] | None = None

    @property
    def wanted(self) -> tuple[str, ...]:
        """The trials that have not ended."""
        return tuple(trial for trial in self.trials if trial not in self.ended)

    def rows_of(self, trial: str) -> list[int]:
        """Rows of a trial, one per seed."""
        column = self.trials.index(trial)
        return [seed * len(self.trials) + column for seed in range(len(self.seeds))]

    def row_of(self, lane: LaneId) -> int:
        """The row of one lane."""
        return self.rows_of(lane.trial_id)[self.seeds.index(lane.seed)]

    def training_lanes(self) -> list[LaneId]:
        """Lanes that still take steps, as far as the host knows."""
        if self._training is None:
            self._training = [
                LaneId(trial, seed)
                for trial in self.wanted
                for seed, row in zip(self.seeds, self.rows_of(trial), strict=True)
                if row in self.alive
            ]
        return self._training

    def see_with(self, watch: Watch | None) -> None:
        """Let a watch look at the gradients from now on; what was captured looked with another one."""
        if watch is not self.batch.watch:
            self.batch.watch = watch
            self.captured = None

    def end(self, trial: str) -> None:
        """Note that a trial is not asked for again."""
        self.ended |= {trial}
        self._training = None

    def stop(self, lanes: Sequence[LaneId]) -> None:
        """Let some lanes take no more steps."""
        rows = [self.row_of(lane) for lane in lanes]
        if rows:
            self.batch.live[torch.tensor(rows, device=self.batch.live.device)] = False
            self.alive -= set(rows)
            self._training = None

    def look(self) -> None:
        """Learn which lanes are live; waits for the device."""
        self.alive = frozenset(torch.nonzero(self.batch.live.cpu()).flatten().tolist())
        self._training = None

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on."""
        return self.batch.tensors() | {"draws": self.streams.state()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `tensors` gave."""
        self.batch.restore(tensors)
        self.streams.restore(tensors["draws"])
        self.look()

    def part(self, trials: Sequence[str]) -> Block:
        """Some of the trials as a block of their own, copied; the streams go on from the same place."""
        rows = [row for by_seed in zip(*map(self.rows_of, trials), strict=True) for row in by_seed]
        return self._with(trials, self.batch.select(rows), self.streams)

    def departed(self, trial: str, settings: Mapping[str, ClipSetting]) -> Block:
        """Copies of one trial's lanes under other clip settings, as a block of their own.

        Args:
            trial: whose lanes.
            settings: of the copies, by their trial.
        """
        rows = [row for row in self.rows_of(trial) for _ in settings]
        by_row = list(settings.values()) * len(self.seeds)
        return self._with(tuple(settings), self.batch.select(rows, by_row), self.streams)

    def beside(self, other: Block) -> Block:
        """This block and another at the same step as one."""
        offset = len(self.batch)
        mine, theirs = map(self.rows_of, self.trials), map(other.rows_of, other.trials)
        columns = [*mine, *([offset + row for row in rows] for rows in theirs)]
        rows = [row for by_seed in zip(*columns, strict=True) for row in by_seed]
        together = self._with(
            (*self.trials, *other.trials), side_by_side([self.batch, other.batch], rows), self.streams
        )
        together.ended = self.ended | other.ended
        return together

    def handed_over(self, trial: str, data: Tensor, seconds: Mapping[LaneId, float]) -> Iterator[HandedOver]:
        """A trial's lanes, each by itself.

        Args:
            trial: one of this block's.
            data: the states of the seeds' data generators at this block's step.
            seconds: wall time by lane.

        Yields:
            One lane per seed.
        """
        for number, (seed, row) in enumerate(zip(self.seeds, self.rows_of(trial), strict=True)):
            lane = LaneId(trial, seed)
            yield HandedOver(
                lane=lane,
                batch=self.batch.select([row]),
                step=self.step,
                data=data[number],
                draws=self.streams.state()[number],
                seconds=seconds.get(lane, 0.0),
            )

    def _with(self, trials: Sequence[str], batch: LaneBatch, streams: SeedStreams) -> Block:
        block = Block(trials, self.seeds, batch, streams.copy())
        block.step = self.step
        block.look()
        return block
