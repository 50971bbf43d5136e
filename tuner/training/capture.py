"""A lane step as a CUDA graph: one launch instead of hundreds. Only on CUDA; the tensors must not move.

A step is captured after it ran once, so that whatever is set up at a first call is set up, and capturing runs
nothing. Batches are copied into the captured ones before every replay. A new shape, and every new lane batch
(compaction, departure), is another capture. What can't be captured goes on step by step, with the reason told.

Source: PyTorch's notes on CUDA graphs, "Whole-network capture"; random numbers as in its notes on generators that
are registered with a graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tuner.training.block import Block
from tuner.training.lane_batch import mean_of_parts
from tuner.training.lane_program import LanePrograms
from tuner.training.stacking import Nesting, Stacked


class CapturedSteps:
    """The captured steps of one block, by the nesting of their batches.

    Args:
        programs: of the workload.
        block: whose step it is; its lane batch must stay the same object.
    """

    def __init__(self, programs: LanePrograms, block: Block) -> None:
        self._programs = programs
        self._block = block
        self._seen: set[tuple[Nesting, ...]] = set()
        self._graphs: dict[tuple[Nesting, ...], tuple[torch.cuda.CUDAGraph, list[list[Tensor]]]] = {}

    def is_warm(self, parts: Sequence[Stacked]) -> bool:
        """Whether such a step was asked about before, and so has run as it is; if not, the caller runs it."""
        key = tuple(part.nesting for part in parts)
        is_warm = key in self._seen
        self._seen.add(key)
        return is_warm

    def step(self, parts: Sequence[Stacked]) -> None:
        """Take one step of the block as a captured one.

        Args:
            parts: the batches of the step, on the device; `is_warm` for them.
        """
        key = tuple(part.nesting for part in parts)
        if key not in self._graphs:
            self._graphs[key] = self._capture(parts)
        graph, inputs = self._graphs[key]
        for part, static in zip(parts, inputs, strict=True):
            for source, target in zip(part.tensors, static, strict=True):
                target.copy_(source, non_blocking=True)
        graph.replay()

    def _capture(self, parts: Sequence[Stacked]) -> tuple[torch.cuda.CUDAGraph, list[list[Tensor]]]:
        graph = torch.cuda.CUDAGraph()
        for generator in self._block.streams.generators:
            graph.register_generator_state(generator)
        static = [part.copy() for part in parts]
        # A capture elsewhere in the process must not fail because of this one, nor the other way round.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            _run(self._programs, self._block, static)
        return graph, [part.tensors for part in static]


def _run(programs: LanePrograms, block: Block, parts: Sequence[Stacked]) -> None:
    """The tensor operations of a step; nothing on the host."""
    batch = block.batch
    found = [
        programs.losses_and_gradients(batch.weights, batch.buffers, part, block.streams, batch.loss_scale)
        for part in parts
    ]
    batch.apply(*mean_of_parts(found))
