"""Take studies and drive each in a thread of its own, as many at a time as the worker may.

Studies whose trials people train elsewhere only wait, for days maybe; those that this worker trains share its slots.
Each kind has its own `Driving`, so that neither holds the other up.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence

import structlog
from sqlalchemy.exc import SQLAlchemyError

from service.jobs.lease import Lease
from service.jobs.queue import Queue

log = structlog.get_logger(__name__)

#: A worker that has something to do looks for more this many times more seldom: an idle one goes first.
_BUSY_FACTOR = 4.0


class Driving:
    """Acquires jobs of some kinds and drives each to its end.

    Args:
        worker_id: owns the leases.
        queue: where the jobs are.
        kinds: of jobs; others stay queued for a worker that knows them.
        drive: drives one study, given its lease and the monotonic time from before it was asked for.
        stopping: set when the worker is to stop; ``drive`` heeds it too.
        limit: studies at the same time, at least 1.
        poll_seconds: how often a job is looked for.
        may_take: whether one more could be driven now.
    """

    def __init__(
        self,
        worker_id: str,
        queue: Queue,
        kinds: Sequence[str],
        drive: Callable[[Lease, float], None],
        *,
        stopping: threading.Event,
        limit: int,
        poll_seconds: float,
        may_take: Callable[[], bool] = lambda: True,
    ) -> None:
        self._worker_id = worker_id
        self._queue = queue
        self._kinds = tuple(kinds)
        self._drive = drive
        self._stopping = stopping
        self._limit = limit
        self._poll_seconds = poll_seconds
        self._may_take = may_take
        self._driving: list[threading.Thread] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._poll, name=f"driving {kinds[0]}", daemon=True)

    def start(self) -> None:
        """Begin to look for studies."""
        self._thread.start()

    def join(self) -> None:
        """Wait until every study has been let go; call it once the worker is stopping."""
        self._thread.join()
        for each in self._driving:
            each.join()

    def _poll(self) -> None:
        while not self._stopping.is_set():
            self._ended.clear()
            self._driving = [each for each in self._driving if each.is_alive()]
            if len(self._driving) < self._limit and self._may_take() and self._begin_one():
                continue
            seconds = self._poll_seconds * random.uniform(0.8, 1.2)
            self._wait(seconds * (_BUSY_FACTOR if self._driving else 1.0))

    def _wait(self, seconds: float) -> None:
        """Pause, but not beyond the end of a study or of the worker."""
        deadline = time.monotonic() + seconds
        while not self._stopping.is_set() and (left := deadline - time.monotonic()) > 0:
            if self._ended.wait(min(left, self._poll_seconds)):
                return

    def _begin_one(self) -> bool:
        """Take a study, if there is one. Whether there was."""
        sent_at = time.monotonic()
        try:
            lease = self._queue.acquire(self._worker_id, self._kinds)
        except SQLAlchemyError as error:
            log.warning("database away", action="database_away", worker_id=self._worker_id, error=str(error))
            return False
        if lease is None:
            return False
        thread = threading.Thread(target=self._run, args=(lease, sent_at), name=lease.study_id, daemon=True)
        thread.start()
        self._driving.append(thread)
        return True

    def _run(self, lease: Lease, sent_at: float) -> None:
        try:
            self._drive(lease, sent_at)
        finally:
            self._ended.set()
