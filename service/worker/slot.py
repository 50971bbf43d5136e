"""One device of a worker, as its pool keeps it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from service.launchers.process import TrainingProcess
from service.launchers.protocol import Ready


@dataclass
class Slot:
    """One device of a worker; what is said of its state is the pool's.

    Attributes:
        name: told to people, different from the worker's other slots.
        launch: starts a training process on it.
        expects: kind of device that a process must find there; None is any.
        threads: CPU threads of its processes.
        study_id: who holds it; None if nobody does.
        process: its training process, kept for the study in `process_of`; None in `process_of` is nobody's yet.
        reason: why it is set aside; None if it can be used.
    """

    name: str
    launch: Callable[[], TrainingProcess]
    expects: str | None = None
    threads: int = 0
    study_id: str | None = None
    process: TrainingProcess | None = None
    process_of: str | None = None
    reason: str | None = None
    num_failures: int = field(default=0, repr=False)
    again_at: float = field(default=0.0, repr=False)

    def objection(self, ready: Ready) -> str | None:
        """What is wrong with a process that is ready here; None if it trains on the device that it should have."""
        if self.expects is None or ready.device == self.expects:
            return None
        return f"PyTorch {ready.torch} finds no {self.expects} device there, only {ready.device}"

    def to_json(self) -> dict[str, Any]:
        """What ``GET /v1/workers`` says of it."""
        state = "busy" if self.study_id else "aside" if self.reason else "free"
        return {
            "name": self.name,
            "device": self.expects or "any",
            "threads": self.threads,
            "state": state,
            "study_id": self.study_id,
            "reason": self.reason,
        }
