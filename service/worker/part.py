"""One part of a cohort on its way: which slot it has, what it may do next, and how long it held devices."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from service.errors import TrainingError
from service.launchers.protocol import Message
from service.worker.slot import Slot
from service.worker.training import Training

#: A training that waits so long for a device of a cluster asks for one of its study's own, in seconds: longer than one
#: that nobody needs is kept, and a node's process takes to start.
_PATIENCE_SECONDS = 8.0


class Part:
    """A part that trains on one slot after the other.

    Attributes:
        index: of the part in its cohort.
        slot: what it holds; None while it waits for one, and when it is done.
        not_before: monotonic time of its next try.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.slot: Slot | None = None
        self.not_before = 0.0
        self._training: Training | None = None
        self._is_broken = False
        self._begun_at = 0.0
        self._held_seconds = 0.0
        self._looked_at = 0.0

    @property
    def held_seconds(self) -> float:
        """How long it has held devices, in seconds; a slot that waits for a node of a cluster holds none."""
        holds = self.slot is not None and not (self._training is not None and self._training.is_pending)
        return self._held_seconds + (time.monotonic() - self._looked_at if holds else 0.0)

    @property
    def is_pending(self) -> bool:
        """Whether it has waited for a device of a cluster for longer than it takes to start."""
        return (
            self._training is not None
            and self._training.is_pending
            and time.monotonic() - self._begun_at >= _PATIENCE_SECONDS
        )

    @property
    def has_ended(self) -> bool:
        """Whether its process has answered the request to its end, and did not break."""
        return self._training is not None and not self._training.is_busy and not self._is_broken

    def begin(self, slot: Slot, training: Training, request: Mapping[str, Any]) -> None:
        """Train on a slot from now on.

        Args:
            slot: its own.
            training: on that slot.
            request: the part, from its newest checkpoint.

        Raises:
            StartError: if no process can be started; it holds the slot all the same.
        """
        self.slot, self._training, self._is_broken = slot, training, False
        self._begun_at = self._looked_at = time.monotonic()
        training.begin(request)

    def poll(self, timeout: float) -> tuple[list[Message], TrainingError | None]:
        """What its process told; see `Training.poll`."""
        if self._training is None or not self._training.is_busy:
            return [], None
        told, error = self._training.poll(timeout)
        self._held_seconds, self._looked_at = self.held_seconds, time.monotonic()
        self._is_broken = error is not None
        return told, error

    def rest(self) -> None:
        """It waits for a word of the worker: its silence is no stall."""
        if self._training is not None:
            self._training.rest()

    def tell(self, line: Mapping[str, Any]) -> None:
        """Say something to its process."""
        if self._training is not None:
            self._training.tell(line)

    def let_go(self) -> Slot | None:
        """Leave its slot.

        Returns:
            The slot, for whoever asked; None if it has none.
        """
        slot, seconds = self.slot, self.held_seconds
        self._held_seconds, self.slot, self._training = seconds, None, None
        return slot
