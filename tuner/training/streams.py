"""Random streams of a lane batch: one generator per training seed, shared by all trials of that seed.

A model's own draws (dropout) run on `SeedStreams`: every draw is made once per seed, with the numbers that a
plain run of that seed draws, and serves all its trials. Which seeds or trials train beside it changes nothing.

Shape letters: S = seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tuner.errors import LaneError
from tuner.training.engine import LaneId
from tuner.training.randomness import data_generator, stream_seed
from tuner.training.stacking import Stacked, stack
from tuner.workloads.base import AnyWorkload


class SeedStreams:
    """One generator per seed.

    Args:
        seeds: the training seeds.
        purpose: which of a seed's streams, for example ``"training"``.
        device: where the numbers are drawn.
    """

    def __init__(self, seeds: Sequence[int], purpose: str, device: torch.device) -> None:
        self._device = device
        self.generators = [torch.Generator(device).manual_seed(stream_seed(seed, purpose)) for seed in seeds]

    def copy(self) -> SeedStreams:
        """Streams of their own that go on from the same place."""
        copied = SeedStreams((), "", self._device)
        copied.generators = [each.clone_state() for each in self.generators]
        return copied

    def draw(self, fill: Callable[[Tensor, torch.Generator], object], like: Tensor) -> Tensor:
        """A tensor whose row s was drawn from the stream of seed s.

        Args:
            fill: fills a tensor in place from a generator.
            like: gives shape (S, ...), type and device.

        Returns:
            A new tensor.

        Raises:
            ValueError: if the first dimension is not the number of seeds.
        """
        if len(like) != len(self.generators):
            raise ValueError(
                f"a draw of shape {tuple(like.shape)} has no row for each of {len(self.generators)} seeds"
            )
        drawn = torch.empty_like(like, memory_format=torch.contiguous_format)
        for row, generator in zip(drawn.unbind(0), self.generators, strict=True):
            fill(row, generator)
        return drawn

    def state(self) -> Tensor:
        """All generators' states, shape (S, bytes), uint8, on the CPU."""
        return torch.stack([each.get_state() for each in self.generators])

    def restore(self, state: Tensor) -> None:
        """Continue from what `state` gave."""
        for generator, row in zip(self.generators, state, strict=True):
            generator.set_state(row.clone())  # torch reads a view from its storage's start


class DataStreams:
    """The training batches of every seed, each in its own order.

    Args:
        workload: gives the batches.
        seeds: the training seeds.
    """

    def __init__(self, workload: AnyWorkload, seeds: Sequence[int]) -> None:
        self._workload = workload
        self._generators = [data_generator(seed) for seed in seeds]

    def step(self, step: int, *, blamed: LaneId | None = None) -> list[Stacked]:
        """The batches of one optimizer step, all seeds side by side.

        Args:
            step: 0, 1, 2, ... without gaps.
            blamed: the lane to name if the workload's code raises; None passes its exception on.

        Returns:
            As many as the workload accumulates.

        Raises:
            LaneError: if the workload's code raised.
            NotBatchableError: if the seeds' batches are not alike.
        """
        num_parts = self._workload.accumulation_steps
        parts = []
        for index in range(step * num_parts, (step + 1) * num_parts):
            try:
                batches = [self._workload.train_batch(index, each) for each in self._generators]
            except Exception as error:
                if blamed is None:
                    raise
                raise LaneError(blamed.trial_id, blamed.seed, step, error) from error
            parts.append(stack(batches))
        return parts

    def state(self) -> Tensor:
        """All generators' states, shape (S, bytes), uint8."""
        return torch.stack([each.get_state() for each in self._generators])

    def restore(self, state: Tensor) -> None:
        """Continue from what `state` gave."""
        for generator, row in zip(self._generators, state, strict=True):
            generator.set_state(row.clone())  # torch reads a view from its storage's start
