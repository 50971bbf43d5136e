"""Look after studies whose trials people train elsewhere, many at a time: each only waits, so each has a thread.

The worker's own loop trains one study after the other; an external study may take days of other people's time and must
not hold that loop up.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import structlog
from sqlalchemy.exc import SQLAlchemyError

from service.jobs.lease import Lease
from service.jobs.queue import Queue

log = structlog.get_logger(__name__)

#: The kind of job.
KINDS = ("external",)


class ExternalStudies:
    """Acquires external studies and drives each in a thread of its own.

    Args:
        worker_id: owns the leases.
        queue: where the jobs are.
        drive: drives one study to its end, given its lease and the monotonic time from before it was asked for.
        stopping: set when the worker is to stop; ``drive`` heeds it too.
        limit: studies at the same time, at least 1.
        poll_seconds: how often a job is looked for.
    """

    def __init__(
        self,
        worker_id: str,
        queue: Queue,
        drive: Callable[[Lease, float], None],
        *,
        stopping: threading.Event,
        limit: int,
        poll_seconds: float,
    ) -> None:
        self._worker_id = worker_id
        self._queue = queue
        self._drive = drive
        self._stopping = stopping
        self._limit = limit
        self._poll_seconds = poll_seconds
        self._driving: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._poll, name="external", daemon=True)

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
            self._driving = [each for each in self._driving if each.is_alive()]
            if len(self._driving) >= self._limit or not self._begin_one():
                self._stopping.wait(self._poll_seconds * random.uniform(0.8, 1.2))

    def _begin_one(self) -> bool:
        """Take a study, if there is one. Whether there was."""
        sent_at = time.monotonic()
        try:
            lease = self._queue.acquire(self._worker_id, KINDS)
        except SQLAlchemyError as error:
            log.warning("database away", action="database_away", worker_id=self._worker_id, error=str(error))
            return False
        if lease is None:
            return False
        thread = threading.Thread(target=self._drive, args=(lease, sent_at), name=lease.study_id, daemon=True)
        thread.start()
        self._driving.append(thread)
        return True
