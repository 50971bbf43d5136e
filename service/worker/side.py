"""What a study's runner needs of whoever trains: a process of this worker, or people's own somewhere else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from service.launchers.protocol import Message, Ready


class TrainingSide(Protocol):
    """Answers requests with the events of their training.

    Attributes:
        ready: what the training process said of itself; None before, and where there is none.
    """

    ready: Ready | None

    def answers(self, request: Mapping[str, Any]) -> Iterator[Sequence[Message]]:
        """Answer a request; see `service.launchers.trainer` for what it may be.

        Args:
            request: plain JSON values.

        Yields:
            At least one event.

        Raises:
            TrainingError: if the training broke.
        """
        ...

    def stop(self) -> None:
        """End what runs here; safe from any thread, twice too."""
        ...

    def drop(self) -> None:
        """End what runs here; the next request begins afresh."""
        ...
