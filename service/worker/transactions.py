"""The transactions of whoever drives a study: under the fence, and patient while the database is away."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import structlog
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.orm import Session

from service.db.session import Database
from service.jobs.lease import Lease
from service.jobs.queue import Queue
from service.worker.training import Signals

log = structlog.get_logger(__name__)
T = TypeVar("T")

#: Pause before a transaction that the database refused is tried again, in seconds.
_DATABASE_PAUSE_SECONDS = 0.5


class Transactions:
    """Reads and fenced writes of one lease.

    Args:
        database: for reading.
        queue: every write goes through its `held`.
        lease: of the study's job.
        patience_seconds: how long the database may be away, in seconds; the lease may end it sooner.
        signals: looked at between two tries.
    """

    def __init__(
        self, database: Database, queue: Queue, lease: Lease, *, patience_seconds: float, signals: Signals
    ) -> None:
        self._database = database
        self._queue = queue
        self._lease = lease
        self._patience_seconds = patience_seconds
        self._signals = signals

    def read(self, work: Callable[[Session], T]) -> T:
        """Run a reading transaction.

        Args:
            work: may run again.

        Returns:
            What it gives.

        Raises:
            OperationalError: if the database is away for longer than is waited.
            InterfaceError: likewise.
        """

        def once() -> T:
            with self._database.read() as session:
                return work(session)

        return self._patiently(once)

    def hold(self, write: Callable[[Session], T]) -> T:
        """Run a write under the fence.

        Args:
            write: may run again, so it must tolerate its own effect.

        Returns:
            What it gives.

        Raises:
            LeaseLostError: another worker may have the study; nothing was written.
            OperationalError: if the database is away for longer than is waited.
            InterfaceError: likewise.
        """

        def once() -> T:
            with self._queue.held(self._lease) as session:
                return write(session)

        return self._patiently(once)

    def _patiently(self, work: Callable[[], T]) -> T:
        deadline = time.monotonic() + self._patience_seconds
        while True:
            try:
                return work()
            except (OperationalError, InterfaceError) as error:
                log.warning(
                    "database away", action="database_away", job_id=self._lease.job_id, error=str(error)
                )
                self._signals.check()
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_DATABASE_PAUSE_SECONDS)
