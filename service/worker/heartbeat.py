"""Keep one lease alive from a thread of its own, and give it up in time when that fails.

Two threads with two duties. One renews, on database connections that nobody else uses, so neither a long search
step nor a slow write delays it. The other watches the deadline: ``lease - margin`` counted on the monotonic
clock from before the last successful renewal was *sent*. Past it the training is killed even while a renewal
hangs in a database that does not answer, the lease is forgotten and never renewed again. The suspicion may be
wrong; the fence makes that harmless.
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
        on_lost: called once, from a thread of this class, when the lease is gone.
        on_renewed: called after each renewal, from the renewing thread.
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
        self._gone = threading.Lock()
        self._renewer = threading.Thread(target=self._renew_until_stopped, name="renewer", daemon=True)
        self._watchdog = threading.Thread(target=self._watch_deadline, name="watchdog", daemon=True)
        self.lost = threading.Event()
        self.cancel_requested = threading.Event()

    def __enter__(self) -> Heartbeat:
        self._renewer.start()
        self._watchdog.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End both threads; a renewal that hangs in the database is left to itself, it can do no harm."""
        self._stopping.set()
        self._watchdog.join()
        self._renewer.join(timeout=1.0)

    def _watch_deadline(self) -> None:
        while (left := self._deadline - self._clock()) > 0:
            # Short waits, because the clock that counts may have jumped while this thread slept.
            if self._stopping.wait(min(left, self._renew_seconds)) or self.lost.is_set():
                return
        self._lose("lease deadline passed")

    def _renew_until_stopped(self) -> None:
        wait = self._renew_seconds
        while not self._stopping.wait(wait) and not self.lost.is_set():
            wait = self._renew_seconds
            sent_at = self._clock()
            if sent_at >= self._deadline:
                return
            try:
                if self._queue.renew(self._lease):
                    self.cancel_requested.set()
                self._deadline = sent_at + self._deadline_seconds
                self._on_renewed()
            except LeaseLostError:
                self._lose("lease lost")
            except SQLAlchemyError as error:
                # The database may come back before the deadline: try again soon.
                log.warning(
                    "renewal failed", action="renewal_failed", job_id=self._lease.job_id, error=str(error)
                )
                wait = self._renew_seconds / 10
            except Exception:
                log.exception("renewing broke", action="renewal_failed", job_id=self._lease.job_id)
                self._lose("renewing broke")

    def _lose(self, event: str) -> None:
        with self._gone:
            # After `stop` the job is concluded, and that its row is no longer ours is as it should be.
            if self.lost.is_set() or self._stopping.is_set():
                return
            self.lost.set()
        log.warning(event, action="lease_lost", job_id=self._lease.job_id, fence=self._lease.fence)
        self._on_lost()
