"""Actions with the moments at which they are due, worked off by threads that many slots share.

What an action took counts from the moment at which it was due: waiting for a thread, or for the transaction before,
is a part of it.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from service.errors import LeaseLostError


@dataclass(order=True)
class _Due:
    at: float
    number: int
    name: str = field(compare=False)
    action: Callable[[], None] = field(compare=False)


class Agenda:
    """Actions with the moments at which they are due, worked off by threads; keeps how long each took from then."""

    def __init__(self) -> None:
        self._heap: list[_Due] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._is_ended = False
        self.taken: list[tuple[str, float, float]] = []
        self.errors: list[str] = []

    def add(self, at: float, name: str, action: Callable[[], None]) -> None:
        """Have something done at a moment."""
        with self._changed:
            heapq.heappush(self._heap, _Due(at, next(self._numbers), name, action))
            self._changed.notify()

    def end(self) -> None:
        """Begin nothing more."""
        with self._changed:
            self._is_ended = True
            self._changed.notify_all()

    def work(self) -> None:
        """What each thread does until the end."""
        while (due := self._next()) is not None:
            try:
                due.action()
            except LeaseLostError:
                continue
            except Exception as error:  # whatever a worker would meet counts
                self.errors.append(f"{due.name}: {type(error).__name__}: {str(error).splitlines()[0]}")
            self.taken.append((due.name, due.at, time.monotonic() - due.at))

    def num_overdue(self) -> int:
        """Actions that are due and that no thread has begun."""
        now = time.monotonic()
        with self._changed:
            return sum(due.at < now for due in self._heap)

    def _next(self) -> _Due | None:
        with self._changed:
            while not self._is_ended:
                wait = self._heap[0].at - time.monotonic() if self._heap else 60.0
                if wait <= 0:
                    return heapq.heappop(self._heap)
                self._changed.wait(wait)
        return None
