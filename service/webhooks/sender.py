"""Sends what is in the outbox: a loop that takes deliveries, a few threads that post them.

One delivery per webhook at a time, and the webhooks in turn, so that receivers that hang hold up the others for seconds
at most. Several senders on one database share the work.
"""

from __future__ import annotations

import random
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import structlog
from sqlalchemy.exc import SQLAlchemyError

from service.db.session import Database
from service.settings import Settings
from service.webhooks.deliveries import Deliveries, Held
from service.webhooks.policy import Attempted
from service.webhooks.post import Poster, PostError, trusting
from service.webhooks.signature import signed_headers
from service.webhooks.target import Allowance, WebhookRefusedError, parse_target

log = structlog.get_logger(__name__)

NUM_THREADS = 8
#: How often an idle sender looks into the outbox, in seconds.
POLL_SECONDS = 1.0
#: How often old deliveries are deleted, in seconds.
_SWEEP_SECONDS = 3600.0


class Sender:
    """Delivers until it is stopped.

    Args:
        deliveries: the outbox.
        poster: how one is sent.
        allowance: the operator's.
        num_threads: deliveries under way at a time, at least 1.
        poll_seconds: how often to look when idle, in seconds, > 0.
    """

    def __init__(
        self,
        deliveries: Deliveries,
        poster: Poster,
        allowance: Allowance,
        *,
        num_threads: int = NUM_THREADS,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._deliveries = deliveries
        self._poster = poster
        self._allowance = allowance
        self._num_threads = num_threads
        self._poll_seconds = poll_seconds
        self._stopping = threading.Event()
        #: Set when there may be something to do: a thread is free again, or the end has come.
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._busy: set[str] = set()

    def stop(self) -> None:
        """Take nothing more; `deliver` returns once what is under way is written down."""
        self._stopping.set()
        self._wake.set()

    def deliver(self) -> None:
        """Deliver until `stop`; outages of the database are waited out."""
        swept = -_SWEEP_SECONDS
        with ThreadPoolExecutor(self._num_threads, thread_name_prefix="deliver") as threads:
            while not self._stopping.is_set():
                self._wake.clear()
                try:
                    while self._start_one(threads):
                        pass
                    if time.monotonic() - swept >= _SWEEP_SECONDS:
                        # Noted first: what can't be swept now may wait, what is to be sent may not.
                        swept = time.monotonic()
                        self._deliveries.sweep()
                except SQLAlchemyError as error:
                    log.warning("outbox not read", action="outbox_unavailable", error=_cause(error))
                except Exception:
                    # Such as an error of SQLite while it opens the file, which comes bare.
                    log.exception("reading the outbox broke", action="outbox_broke")
                self._wake.wait(self._poll_seconds)

    def deliver_one(self) -> bool:
        """Deliver one event in this thread.

        Returns:
            Whether there was something.
        """
        held = self._deliveries.acquire()
        if held is not None:
            self._send(held)
        return held is not None

    def _start_one(self, threads: ThreadPoolExecutor) -> bool:
        with self._lock:
            busy = set(self._busy)
        if len(busy) >= self._num_threads or self._stopping.is_set():
            return False
        held = self._deliveries.acquire(busy)
        if held is None:
            return False
        with self._lock:
            self._busy.add(held.webhook_id)
        threads.submit(self._send_apart, held)
        return True

    def _send_apart(self, held: Held) -> None:
        try:
            self._send(held)
        except SQLAlchemyError as error:
            # Its lease runs out, and it is sent again.
            log.warning("delivery left", action="delivery_left", id=held.delivery_id, error=_cause(error))
        except Exception:
            # A bug of ours costs an attempt, not the sender.
            log.exception("delivering broke", action="delivery_broke", id=held.delivery_id)
        finally:
            with self._lock:
                self._busy.discard(held.webhook_id)
            self._wake.set()

    def _send(self, held: Held) -> None:
        attempted = self._attempt(held)
        decision = self._deliveries.settle(held, attempted, jitter=random.random())
        # Without the URL: its path may be a secret.
        facts = {
            "id": held.delivery_id,
            "webhook_id": held.webhook_id,
            "event_type": held.event,
            "attempt": held.attempt,
            "status": attempted.status,
            "error": attempted.error or None,
        }
        if decision is None:
            log.warning("delivery lost", action="delivery_lost", **facts)
            return
        log.info("delivery attempted", action=f"delivery_{decision.state}", **facts)
        if decision.disabled_reason is not None:
            log.warning(
                "webhook switched off",
                action="webhook_disabled",
                webhook_id=held.webhook_id,
                reason=decision.disabled_reason,
            )

    def _attempt(self, held: Held) -> Attempted:
        headers = signed_headers(held.secrets, held.delivery_id, held.taken_at // 1000, held.body)
        try:
            # Again, because the operator may have taken back what was allowed when the webhook was made.
            target = parse_target(held.url, self._allowance)
            answer = self._poster.post(target, headers, held.body)
        except WebhookRefusedError as error:
            return Attempted(held.attempt, None, error=f"refused: the url {error.reason}")
        except PostError as error:
            return Attempted(held.attempt, None, error=str(error))
        error_text = "" if 200 <= answer.status < 300 else f"the receiver answered {answer.status}"
        return Attempted(held.attempt, answer.status, error=error_text, retry_after=answer.retry_after)


def sender_of(settings: Settings, database: Database) -> Sender:
    """A sender as the operator set it.

    Args:
        settings: of this process.
        database: migrated and reachable before the sender is started.

    Returns:
        The sender, not started.

    Raises:
        SettingsError: if a CLIPTUNE_WEBHOOK_ setting can't be used.
    """
    allowance, context = read_settings(settings)
    return Sender(Deliveries(database), Poster(allowance, context), allowance)


def read_settings(settings: Settings) -> tuple[Allowance, ssl.SSLContext]:
    """What the CLIPTUNE_WEBHOOK_ settings mean.

    Args:
        settings: of this process.

    Returns:
        Where webhooks may go, and whom they trust.

    Raises:
        SettingsError: if one can't be used.
    """
    allowance = Allowance.parse(settings.webhook_allow, settings.webhook_ports)
    return allowance, trusting(settings.webhook_ca_file)


def _cause(error: SQLAlchemyError) -> str:
    """What the database said, without the statement."""
    return str(getattr(error, "orig", error))
