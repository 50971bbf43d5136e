"""The outbox as senders see it: take one delivery, send it, write what came of it.

At least once: a sender takes a delivery under an owner of its own and until a moment; what it writes counts only while
it still owns it. One that dies between sending and writing leaves it to be sent again. Webhooks take turns, whatever
waits for each: a backlog is nobody's trouble but its receiver's.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from sqlalchemy import Select, delete, literal, select, update
from sqlalchemy.orm import Session, aliased

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
#: Most deliveries that one transaction deletes, so that none lasts long.
SWEEP_BATCH = 1_000
#: Written into the statement, so that every planner sees that the index of what is pending fits.
_PENDING = literal(str(DeliveryState.PENDING), literal_execute=True)


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
        #: When each webhook had its last turn with this object, as a number that rises.
        self._turns: dict[str, int] = {}
        self._turn = itertools.count(1)

    def acquire(self, busy: Collection[str] = ()) -> Held | None:
        """Take a delivery of the webhook whose last turn is longest ago, among equals the one that is ready longest.

        Args:
            busy: webhooks to leave out, because this sender sends to them already.

        Returns:
            The delivery; None if nothing is ready.
        """
        # An idle poll takes no lock: on SQLite there is only one.
        with self._database.read() as session:
            found = session.execute(_waiting(database_now(session, self._now()), busy)).all()
        ready = sorted(found, key=lambda row: (self._turns.get(row.webhook_id, 0), row.run_after, row.id))
        for row in ready:
            held = self._take(row.webhook_id)
            if held is not None:
                self._turns[held.webhook_id] = next(self._turn)
                return held
        return None

    def _take(self, webhook_id: str) -> Held | None:
        """The first delivery of a webhook that is ready and that no other sender takes at this moment."""
        with self._database.write() as session:
            now = database_now(session, self._now())
            locked = _ready(now, webhook_id).with_for_update(of=DeliveryRow, skip_locked=True)
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
        total = 0
        while True:
            with self._database.write() as session:
                count = _delete_old(session, now - KEEP_MS)
            total += count
            if count < SWEEP_BATCH:
                return total


def _ready(now: int, webhook_id: str) -> Select[DeliveryRow, WebhookRow]:
    """The delivery of a webhook that has been ready longest."""
    return (
        select(DeliveryRow, WebhookRow)
        .join(WebhookRow, WebhookRow.id == DeliveryRow.webhook_id)
        .where(
            DeliveryRow.webhook_id == webhook_id,
            DeliveryRow.state == _PENDING,
            DeliveryRow.run_after <= now,
            DeliveryRow.attempt < MAX_ATTEMPTS,
            WebhookRow.disabled_at.is_(None),
        )
        .order_by(DeliveryRow.run_after, DeliveryRow.id)
        .limit(1)
    )


def _waiting(now: int, busy: Collection[str]) -> Select[str, int, str]:
    """Of each webhook that is not busy the delivery that has been ready longest; one look into the index for each."""
    first = (
        select(DeliveryRow.id)
        .where(
            DeliveryRow.webhook_id == WebhookRow.id,
            DeliveryRow.state == _PENDING,
            DeliveryRow.run_after <= now,
            DeliveryRow.attempt < MAX_ATTEMPTS,
        )
        .order_by(DeliveryRow.run_after, DeliveryRow.id)
        .limit(1)
        .correlate(WebhookRow)
        .scalar_subquery()
    )
    row = aliased(DeliveryRow)
    return (
        select(row.webhook_id, row.run_after, row.id)
        .join(WebhookRow, row.id == first)
        .where(WebhookRow.disabled_at.is_(None), WebhookRow.id.not_in(busy))
    )


def _delete_old(session: Session, until: int) -> int:
    """Delete some of the deliveries that were made before a moment.

    Returns:
        How many; less than a batch if none is left.
    """
    old = select(DeliveryRow.id).where(DeliveryRow.created_at < until).limit(SWEEP_BATCH)
    # What another sender deletes just now is left to it.
    locked = old.with_for_update(skip_locked=True)
    deleted = delete(DeliveryRow).where(DeliveryRow.id.in_(locked)).returning(DeliveryRow.id)
    return len(session.scalars(deleted).all())


def _give_up_lost(session: Session, now: int) -> None:
    lost = update(DeliveryRow).where(
        DeliveryRow.state == _PENDING,
        DeliveryRow.run_after <= now,
        DeliveryRow.attempt >= MAX_ATTEMPTS,
    )
    error = "the sender was lost during the last attempt"
    session.execute(lost.values(state=str(DeliveryState.FAILED), owner=None, last_error=error))
