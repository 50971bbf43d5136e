"""Lanes of a block on held-out data: loss and objective, in evaluation mode.

Shape letters: L = lanes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tuner.training.block import Block
from tuner.training.engine import Evaluation, LaneId
from tuner.training.lane_program import LanePrograms, LossFunction
from tuner.training.memory import is_out_of_memory, release_memory
from tuner.training.stacking import single
from tuner.training.streams import SeedStreams
from tuner.workloads.base import AnyWorkload
from tuner.workloads.batches import batch_size, to_device


class HeldOut:
    """A workload's held-out batches, on the device.

    Args:
        workload: gives the batches, the loss and the metric.
        programs: of the workload.
        device: where lanes train.
    """

    def __init__(self, workload: AnyWorkload, programs: LanePrograms, device: torch.device) -> None:
        self._workload = workload
        self._programs = programs
        self._device = device
        self._batches = [single(to_device(batch, device)) for batch in workload.validation_batches()]
        self._sizes = torch.tensor([batch_size(each.tensors) for each in self._batches], dtype=torch.float64)

    def evaluate(self, block: Block) -> dict[LaneId, Evaluation]:
        """Loss and objective of every lane of a block, means over the examples; waits for the device.

        Args:
            block: any; nothing of it changes. One that does not fit in memory is evaluated in halves.

        Returns:
            One evaluation per lane.

        Raises:
            Exception: whatever the workload's code raised, or memory that ended with a single trial.
        """
        try:
            return self._evaluate(block)
        except Exception as error:
            if not is_out_of_memory(error) or len(block.trials) < 2:
                raise
        release_memory(self._device)
        middle = len(block.trials) // 2
        halves = [block.part(block.trials[:middle]), block.part(block.trials[middle:])]
        return {lane: value for half in halves for lane, value in self.evaluate(half).items()}

    def _evaluate(self, block: Block) -> dict[LaneId, Evaluation]:
        streams = SeedStreams(block.seeds, "validation", self._device)  # fresh: the same draws at every rung
        losses = self._means("loss", self._workload.loss, block, streams)
        objectives = losses
        if self._workload.has_metric:
            objectives = self._means("metric", self._workload.metric, block, streams)
        return {
            LaneId(trial, seed): Evaluation(losses[row], objectives[row])
            for trial in block.trials
            for seed, row in zip(block.seeds, block.rows_of(trial), strict=True)
        }

    def _means(self, name: str, function: LossFunction, block: Block, streams: SeedStreams) -> list[float]:
        """A function's mean over the examples, for each lane."""
        batch = block.batch
        values: list[Tensor] = [
            self._programs.values(name, function, batch.weights, batch.buffers, each, streams)
            for each in self._batches
        ]
        means: list[float] = ((self._sizes @ torch.stack(values).cpu()) / self._sizes.sum()).tolist()
        return means
