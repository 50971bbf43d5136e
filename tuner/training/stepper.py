"""One optimizer step of a block: its programs, then the update; as a CUDA graph where the device has them."""

from __future__ import annotations

from collections.abc import Sequence

from tuner.training.block import Block
from tuner.training.capture import CapturedSteps
from tuner.training.lane_batch import mean_of_parts
from tuner.training.lane_program import LanePrograms
from tuner.training.memory import is_out_of_memory
from tuner.training.stacking import Stacked


class Stepper:
    """Takes steps of blocks.

    Args:
        programs: of the workload.
        captures: whether steps become CUDA graphs.

    Attributes:
        not_captured: why they could not; None if they could, or were not meant to.
    """

    def __init__(self, programs: LanePrograms, *, captures: bool) -> None:
        self.not_captured: str | None = None
        self._programs = programs
        self._captures = captures

    def step(self, block: Block, parts: Sequence[Stacked]) -> None:
        """Take one step.

        Args:
            block: whose lanes.
            parts: the batches of the step, on the device.
        """
        if self._captures:
            self._captured(block, parts)
        else:
            self._plain(block, parts)
        block.batch.count()
        if block.batch.is_full:
            block.batch.flush()
        block.step += 1

    def _captured(self, block: Block, parts: Sequence[Stacked]) -> None:
        """A step as a CUDA graph; if it can't be captured, a plain one, and no other attempt.

        Raises:
            RuntimeError: if memory ended.
        """
        if block.captured is None:
            block.captured = CapturedSteps(self._programs, block)
        if not block.captured.is_warm(parts):
            self._plain(block, parts)
            return
        try:
            block.captured.step(parts)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            # Capturing runs nothing, so the step has not been taken.
            self._captures = False
            self.not_captured = str(error).partition("\n")[0]
            self._plain(block, parts)

    def _plain(self, block: Block, parts: Sequence[Stacked]) -> None:
        """A step operation by operation; nothing is changed if a program fails, for example for want of memory."""
        batch = block.batch
        streams = block.streams.copy()
        buffers = {name: each.clone() for name, each in batch.buffers.items()}
        found = [
            self._programs.losses_and_gradients(batch.weights, buffers, part, streams, batch.loss_scale)
            for part in parts
        ]
        batch.apply(*mean_of_parts(found))
        block.streams = streams
        for name, each in buffers.items():
            batch.buffers[name].copy_(each)
