"""The outbox as senders see it: take one delivery, send it, write what came of it.

At least once: a sender takes a delivery under an owner of its own and until a moment; what it writes counts only while
it still owns it. One that dies between sending and writing leaves it to be sent again.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from sqlalchemy import Select, delete, select, update
from sqlalchemy.orm import Session

from service.db.clock import database_now
from service.db.models import DeliveryRow, WebhookRow
from service.db.session import Database
from service.schemas import DeliveryState
from service.webhooks.policy import MAX_ATTEMPTS, Attempted, DeliveryDecision, decide
from service.webhooks.registry import drop_old_secrets, valid_secrets

#: How long a taken delivery is left alone; an attempt takes a few seconds.
LEASE_MS = 60_000
#: How long deliveries are kept, in milliseconds.
KEEP_MS = 30 * 86_400_000


def _database_clock() -> int | None:
    """The real clock: nothing to put in its place."""
    return None


@dataclass(frozen=True, slots=True)
class Held:
    """A delivery that this sender alone may send now.

    Attributes:
        delivery_id: its id, the header ``webhook-id``.
        owner: proves the hold.
        webhook_id: where it goes.
        url: of the webhook.
        secrets: that sign, newest first.
        event: its type.
        body: the exact bytes.
        attempt: number of this attempt, from 1.
        taken_at: when it was taken, in milliseconds since 1970.
    """

    delivery_id: str
    owner: str
    webhook_id: str
    url: str
    secrets: tuple[str, ...] = field(repr=False)
    event: str
    body: bytes
    attempt: int
    taken_at: int


class Deliveries:
    """The deliveries of one database.

    Args:
        database: where they are.
        now: replaces the database's clock in tests, in milliseconds; None is the real one.
    """

    def __init__(self, database: Database, *, now: Callable[[], int | None] = _database_clock) -> None:
        self._database = database
        self._now = now

    def acquire(self, busy: Collection[str] = ()) -> Held | None:
        """Take the delivery that has been ready longest.

        Args:
            busy: webhooks to leave out, because this sender sends to them already.

        Returns:
            The delivery; None if nothing is ready.
        """
        # An idle poll takes no lock: on SQLite there is only one.
        with self._database.read() as session:
            if session.execute(_ready(database_now(session, self._now()), busy)).first() is None:
                return None
        with self._database.write() as session:
            now = database_now(session, self._now())
            locked = _ready(now, busy).with_for_update(of=DeliveryRow, skip_locked=True)
            found = session.execute(locked).first()
            if found is None:
                return None
            row, webhook = found
            row.owner = str(uuid.uuid4())
            row.attempt += 1
            row.run_after = now + LEASE_MS
            return Held(
                delivery_id=row.id,
                owner=row.owner,
                webhook_id=webhook.id,
                url=webhook.url,
                secrets=tuple(valid_secrets(webhook.secrets, now)),
                event=row.event,
                body=row.body.encode("ascii"),
                attempt=row.attempt,
                taken_at=now,
            )

    def settle(self, held: Held, attempted: Attempted, *, jitter: float) -> DeliveryDecision | None:
        """Write what came of an attempt.

        Args:
            held: the delivery.
            attempted: its outcome.
            jitter: drawn by the caller, uniform in [0, 1].

        Returns:
            What was decided; None if somebody else holds the delivery by now, or it was deleted: nothing was written.
        """
        with self._database.write() as session:
            now = database_now(session, self._now())
            # The webhook first, as its deletion does.
            webhook = session.get(WebhookRow, held.webhook_id, with_for_update=True)
            if webhook is None:
                return None
            decision = decide(attempted, failing_since=webhook.failing_since, now=now, jitter=jitter)
            is_delivered = decision.state is DeliveryState.DELIVERED
            statement = (
                update(DeliveryRow)
                .where(DeliveryRow.id == held.delivery_id, DeliveryRow.owner == held.owner)
                .values(
                    state=str(decision.state),
                    owner=None,
                    run_after=now + round(decision.delay_seconds * 1000),
                    last_status=attempted.status,
                    last_error=attempted.error or None,
                    delivered_at=now if is_delivered else None,
                )
                .returning(DeliveryRow.id)
            )
            if session.execute(statement).scalar_one_or_none() is None:
                return None
            webhook.failing_since = decision.failing_since
            if decision.disabled_reason is not None and webhook.disabled_at is None:
                webhook.disabled_at, webhook.disabled_reason = now, decision.disabled_reason
        return decision

    def sweep(self) -> int:
        """Delete old deliveries, give up those whose last attempt was never settled, drop secrets of old rotations.

        Returns:
            How many were deleted.
        """
        with self._database.write() as session:
            now = database_now(session, self._now())
            drop_old_secrets(session, now)
            _give_up_lost(session, now)
            old = delete(DeliveryRow).where(DeliveryRow.created_at < now - KEEP_MS).returning(DeliveryRow.id)
            return len(session.scalars(old).all())


def _ready(now: int, busy: Collection[str]) -> Select[DeliveryRow, WebhookRow]:
    return (
        select(DeliveryRow, WebhookRow)
        .join(WebhookRow, WebhookRow.id == DeliveryRow.webhook_id)
        .where(
            DeliveryRow.state == str(DeliveryState.PENDING),
            DeliveryRow.run_after <= now,
            DeliveryRow.attempt < MAX_ATTEMPTS,
            DeliveryRow.webhook_id.not_in(busy),
            WebhookRow.disabled_at.is_(None),
        )
        .order_by(DeliveryRow.run_after, DeliveryRow.id)
        .limit(1)
    )


def _give_up_lost(session: Session, now: int) -> None:
    lost = update(DeliveryRow).where(
        DeliveryRow.state == str(DeliveryState.PENDING),
        DeliveryRow.run_after <= now,
        DeliveryRow.attempt >= MAX_ATTEMPTS,
    )
    error = "the sender was lost during the last attempt"
    session.execute(lost.values(state=str(DeliveryState.FAILED), owner=None, last_error=error))
