"""The blocks of a cohort: which there are, how they are cut, joined and compacted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

from tuner.training.block import Block
from tuner.training.engine import LaneId
from tuner.training.not_batchable import NotBatchableError
from tuner.training.trace import LaneRecord


class Blocks:
    """Blocks that train in turns.

    Args:
        blocks: at the same step.
        max_trials: settings in one block at most, >= 1.

    Attributes:
        max_trials: see above; smaller after memory ended.
        num_halvings: how often it did.
    """

    def __init__(self, blocks: Iterable[Block], max_trials: int) -> None:
        self.max_trials = max_trials
        self.num_halvings = 0
        self._blocks = list(blocks)

    def __iter__(self) -> Iterator[Block]:
        return iter(self._blocks)

    @property
    def num_lanes(self) -> int:
        """Lanes of the largest block."""
        return max((len(block.batch) for block in self._blocks), default=0)

    def training(self) -> list[Block]:
        """Those in which a lane still takes steps."""
        return [block for block in self._blocks if block.training_lanes()]

    def training_lanes(self) -> list[LaneId]:
        """All lanes that still take steps, as far as the host knows."""
        return [lane for block in self._blocks for lane in block.training_lanes()]

    def of(self, trial: str) -> Block:
        """The block that holds a trial."""
        return next(block for block in self._blocks if trial in block.trials)

    def look(self) -> None:
        """Learn which lanes are live; waits for the device."""
        for block in self._blocks:
            block.batch.flush()
            block.look()

    def halve(self, block: Block) -> list[Block]:
        """Replace a block by two halves of it.

        Args:
            block: one of these.

        Returns:
            The halves.

        Raises:
            NotBatchableError: if it holds a single trial.
        """
        wanted = block.wanted
        if len(wanted) < 2:
            raise NotBatchableError(
                f"one setting under {len(block.seeds)} seeds does not fit in memory as a batch"
            )
        middle = (len(wanted) + 1) // 2
        halves = [block.part(wanted[:middle]), block.part(wanted[middle:])]
        self.max_trials = middle
        self.num_halvings += 1
        position = self._blocks.index(block)
        self._blocks[position : position + 1] = halves
        return halves

    def add(self, block: Block) -> None:
        """Put a block beside the last one if they fit together, else behind it."""
        last = self._blocks[-1]
        if last.step == block.step and len(last.trials) + len(block.trials) <= self.max_trials:
            self._blocks[-1] = last.beside(block)
        else:
            self._blocks.append(block)

    def end(self, trial: str) -> None:
        """Note that a trial is not asked for again."""
        for block in self._blocks:
            if trial in block.trials:
                block.end(trial)

    def compact(self) -> None:
        """Free the rows of ended trials, where they are at least half of a block."""
        self._blocks = [
            block if 2 * len(block.wanted) > len(block.trials) else block.part(block.wanted)
            for block in self._blocks
            if block.wanted
        ]

    def records(self) -> dict[LaneId, LaneRecord]:
        """What every lane recorded; waits for the device."""
        found = {}
        for block in self._blocks:
            records = block.batch.trace.read()
            for trial in block.trials:
                for seed, row in zip(block.seeds, block.rows_of(trial), strict=True):
                    found[LaneId(trial, seed)] = records[row]
        return found

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by block number and name."""
        return {
            f"block{number}.{name}": tensor
            for number, block in enumerate(self._blocks)
            for name, tensor in block.tensors().items()
        }
