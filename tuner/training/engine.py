"""What the loop asks of an engine: the border behind which lanes are trained one by one or all at once.

`tuner.training.solo` trains one lane at a time with plain PyTorch, `tuner.training.batched` all lanes as one
program. The loop, the pruning and the events are the same for both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from tuner.training.cohort import EngineChosen
from tuner.training.trace import LaneRecord


class LaneId(NamedTuple):
    """One trial under one seed."""

    trial_id: str
    seed: int


class Advance(NamedTuple):
    """How far training got since the engine last told.

    Attributes:
        lane_steps: optimizer steps taken since then, over all lanes.
        step: the step of the lane (or lane batch) that is training now.
    """

    lane_steps: int
    step: int


class Evaluation(NamedTuple):
    """A lane on held-out data; either number may be non-finite.

    Attributes:
        loss: validation loss, mean over the held-out examples.
        objective: what is minimized; the loss if the workload has no metric.
    """

    loss: float
    objective: float


class EngineState(NamedTuple):
    """Everything an engine needs to go on, as plain parts that a file can hold.

    Attributes:
        tensors: by name, on whatever device they are.
        values: JSON values.
    """

    tensors: dict[str, Tensor]
    values: dict[str, Any]


class Engine(Protocol):
    """Holds every lane of a cohort (weights, optimizer, generators, trace) between rungs.

    What an implementation guarantees:

    - all trials of a seed start from the same weights and see the same data and dropout masks, whichever lanes
      train beside them, and whatever the rungs are;
    - nothing is read back to the host inside a step; a lane whose loss or gradient is non-finite keeps its weights
      from that step on, is never an exception, and stops using time at the engine's next read;
    - an exception of the workload's code is raised as `tuner.errors.LaneError`;
    - the caller's random generators are untouched whenever control is with the caller.
    """

    @property
    def choice(self) -> EngineChosen:
        """How lanes train, and why; may change while they do."""
        ...

    def advance(self, lanes: Sequence[LaneId], step: int) -> Iterator[Advance]:
        """Train these lanes until each has taken `step` steps or diverged; tell about once a second."""
        ...

    def evaluate(self, lanes: Sequence[LaneId]) -> Mapping[LaneId, Evaluation]:
        """Held-out loss and objective of these lanes; changes nothing."""
        ...

    def read(self, lanes: Sequence[LaneId]) -> Mapping[LaneId, LaneRecord]:
        """What these lanes recorded so far; waits for the device."""
        ...

    def num_shared_steps(self, lane: LaneId) -> int:
        """First steps that this lane did not train itself, because it was bit for bit the *off* lane of its seed."""
        ...

    def seconds(self, lane: LaneId) -> float:
        """Wall time spent on this lane's steps; a batched engine divides by the lanes that shared it."""
        ...

    def retire(self, lanes: Sequence[LaneId]) -> None:
        """Free what these lanes hold; they are not asked for again."""
        ...

    def state(self) -> EngineState | None:
        """What `restore` needs to go on from here, bit for bit on a CPU; None if that can't be written down."""
        ...

    def restore(self, state: EngineState) -> None:
        """Continue from what `state` of an engine of the same cohort gave, in whatever process that was."""
        ...
