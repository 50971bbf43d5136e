"""What a study's runner needs of whoever trains: the slots of this worker, or people's own processes somewhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from service.errors import TrainingError
from service.launchers.protocol import Message, Ready
from tuner.training.cohort import Cohort, Path


class Counted(NamedTuple):
    """A broken training that was written down.

    Attributes:
        delay_seconds: how long to wait before the next try.
        num_failed: trials that have used up their tries.
    """

    delay_seconds: float
    num_failed: int


#: Writes down what broke, and on which trials it counts.
Count = Callable[[TrainingError, Sequence[str]], Counted]


@dataclass(frozen=True, kw_only=True)
class CohortTask:
    """A cohort to train, and what is known of it already.

    Attributes:
        cohort: its open trials.
        number: of the cohort in its study, from 0.
        whole: ids of all its trials, by number, whatever has become of them.
        known: objectives of open trials that are recorded, by rung step, trial id and seed; inf is diverged.
        ended_at: of its pruned trials, the index of the rung at which they ended.
        path: how its lanes train, if that was measured before; None if nobody has, or people train it.
        is_whole: whether it must train in one piece, because it compares its trials by itself.
    """

    cohort: Cohort
    number: int
    whole: tuple[str, ...]
    known: Mapping[int, Mapping[str, Mapping[int, float]]] = field(default_factory=dict)
    ended_at: Mapping[str, int] = field(default_factory=dict)
    path: Path | None = None
    is_whole: bool = False


class TrainingSide(Protocol):
    """Probes and trains, and tells the events of it.

    Attributes:
        ready: what the newest training process said of itself; None before, and where there is none.
    """

    ready: Ready | None

    @property
    def device_seconds(self) -> float:
        """How long devices were held so far, over all devices; 0 where the devices are not this worker's."""
        ...

    def measure(self, request: Mapping[str, Any]) -> Iterator[Sequence[Message]]:
        """Probe a workload.

        Args:
            request: a ``probe``, see `service.launchers.trainer`.

        Yields:
            At least one event.

        Raises:
            TrainingError: if the training broke.
        """
        ...

    def train(self, task: CohortTask, count: Count) -> Iterator[Sequence[Message]]:
        """Train a cohort. What is yielded must be written before the next is asked for: decisions rest on it.

        Args:
            task: the cohort.
            count: called for what breaks and is tried again here.

        Yields:
            At least one event of the whole cohort.

        Raises:
            TrainingError: if the training broke, and it is not tried again here.
        """
        ...

    def stop(self) -> None:
        """End what runs here; safe from any thread, twice too."""
        ...

    def drop(self) -> None:
        """End what runs here; the next request begins afresh."""
        ...
