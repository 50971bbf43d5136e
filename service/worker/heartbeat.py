"""Keep one lease alive from a thread of its own, and give it up in time when that fails.

The thread has its own database connections, so neither a long search step nor a slow write delays a renewal.
Self-defence: the deadline is ``lease - margin`` counted on the monotonic clock from before the last successful
renewal was *sent*. Past it the training is killed even if the database can't be reached, the lease is forgotten
and never renewed again. The suspicion may be wrong; the fence makes that harmless.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog
from sqlalchemy.exc import SQLAlchemyError

from service.errors import LeaseLostError
from service.jobs.lease import Lease
from service.jobs.queue import Queue

log = structlog.get_logger(__name__)


class Heartbeat:
    """Renews a lease until `stop`; a context manager.

    Args:
        queue: on connections that nobody else uses.
        lease: what to renew.
        sent_at: monotonic time from before the lease was asked for.
        renew_seconds: between two renewals.
        deadline_seconds: how long after a successful renewal was sent the lease may still be believed in.
        on_lost: called once, from this thread, when the lease is gone.
        on_renewed: called after each renewal, from this thread.
        clock: monotonic seconds.

    Attributes:
        lost: set when the lease is gone.
        cancel_requested: set when somebody cancelled the job.
    """

    def __init__(
        self,
        queue: Queue,
        lease: Lease,
        *,
        sent_at: float,
        renew_seconds: float,
        deadline_seconds: float,
        on_lost: Callable[[], None],
        on_renewed: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue = queue
        self._lease = lease
        self._deadline = sent_at + deadline_seconds
        self._renew_seconds = renew_seconds
        self._deadline_seconds = deadline_seconds
        self._on_lost = on_lost
        self._on_renewed = on_renewed
        self._clock = clock
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_stopped, name="heartbeat", daemon=True)
        self.lost = threading.Event()
        self.cancel_requested = threading.Event()

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the thread; returns when it has ended."""
        self._stopping.set()
        self._thread.join()

    def _renew_until_stopped(self) -> None:
        wait = self._renew_seconds
        while not self._stopping.wait(min(wait, max(0.0, self._deadline - self._clock()))):
            wait = self._renew_seconds
            if self._clock() >= self._deadline:
                log.warning("lease deadline passed", action="lease_lost", job_id=self._lease.job_id)
                return self._lose()
            sent_at = self._clock()
            try:
                if self._queue.renew(self._lease):
                    self.cancel_requested.set()
                self._on_renewed()
            except LeaseLostError:
                log.warning("lease lost", action="lease_lost", job_id=self._lease.job_id)
                return self._lose()
            except SQLAlchemyError as error:
                # The database may come back before the deadline: try again soon.
                log.warning(
                    "renewal failed", action="renewal_failed", job_id=self._lease.job_id, error=str(error)
                )
                wait = self._renew_seconds / 10
            else:
                self._deadline = sent_at + self._deadline_seconds
        return None

    def _lose(self) -> None:
        self.lost.set()
        self._on_lost()
