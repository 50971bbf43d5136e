"""A tenant's webhooks: made, listed, their secrets rotated, switched on again, deleted; and what was sent to them.

Every function takes the tenant and sees nothing else; a webhook of another tenant is as absent as one that never was.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import and_, delete, func, or_, select, update
from sqlalchemy.orm import Session

from service.db.clock import database_now
from service.db.models import DeliveryRow, WebhookRow
from service.errors import ConflictError, NotFoundError
from service.schemas import SUBSCRIBABLE, DeliveryOut, DeliveryState, WebhookOut, WebhookSecretOut
from service.webhooks.signature import new_secret

#: Most webhooks of a tenant.
MAX_WEBHOOKS = 20
#: How long an old secret signs beside the new one, in milliseconds.
ROTATION_MS = 86_400_000
#: Most secrets at a time; one more rotation ends the oldest.
MAX_SECRETS = 5


def create(
    session: Session,
    *,
    tenant_id: str,
    url: str,
    events: Sequence[str] | None = None,
    description: str = "",
    now: int | None = None,
) -> WebhookSecretOut:
    """Make a webhook; this and a rotation are the only times its secret can be read.

    Args:
        session: a `Database.write` transaction.
        tenant_id: whose events.
        url: of a form that `service.webhooks.target.parse_target` took.
        events: which ones; None stands for all.
        description: for people.
        now: replaces the database's clock in tests, in milliseconds.

    Returns:
        The webhook with its secret.

    Raises:
        ConflictError: ``too_many_webhooks``.
    """
    if session.get_bind().dialect.name == "postgresql":
        # Two that count at once would both find room for one more.
        session.connection().exec_driver_sql(
            f"LOCK TABLE {WebhookRow.__tablename__} IN SHARE ROW EXCLUSIVE MODE"
        )
    count = select(func.count()).select_from(WebhookRow).where(WebhookRow.tenant_id == tenant_id)
    if session.execute(count).scalar_one() >= MAX_WEBHOOKS:
        raise ConflictError(
            f"this key's tenant has {MAX_WEBHOOKS} webhooks already, which is the most: delete one first",
            code="too_many_webhooks",
        )
    wanted = SUBSCRIBABLE if events is None else [each for each in SUBSCRIBABLE if each in events]
    row = WebhookRow(
        id=str(uuid.uuid4()),
        tenant_id=tenant_id,
        url=url,
        description=description,
        events=list(wanted),
        secrets=[{"secret": new_secret(), "until": None}],
        failing_since=None,
        disabled_at=None,
        disabled_reason=None,
        created_at=database_now(session, now),
    )
    session.add(row)
    return _with_secret(row, row.created_at)


def list_all(session: Session, *, tenant_id: str, now: int | None = None) -> list[WebhookOut]:
    """A tenant's webhooks, oldest first.

    Args:
        session: any transaction.
        tenant_id: whose.
        now: replaces the database's clock in tests, in milliseconds.

    Returns:
        All of them, at most `MAX_WEBHOOKS`.
    """
    rows = select(WebhookRow).where(WebhookRow.tenant_id == tenant_id)
    clock = database_now(session, now)
    ordered = rows.order_by(WebhookRow.created_at, WebhookRow.id)
    return [WebhookOut(**_shown(row, clock)) for row in session.scalars(ordered)]


def get(session: Session, *, tenant_id: str, webhook_id: str, now: int | None = None) -> WebhookOut:
    """A webhook.

    Args:
        session: any transaction.
        tenant_id: whose.
        webhook_id: its id.
        now: replaces the database's clock in tests, in milliseconds.

    Returns:
        The webhook, without its secret.

    Raises:
        NotFoundError: ``webhook_not_found``.
    """
    row = _row(session, tenant_id, webhook_id, is_changing=False)
    return WebhookOut(**_shown(row, database_now(session, now)))


def remove(session: Session, *, tenant_id: str, webhook_id: str) -> WebhookOut:
    """Delete a webhook and what was on its way to it.

    Args:
        session: a `Database.write` transaction.
        tenant_id: whose.
        webhook_id: its id.

    Returns:
        What it was.

    Raises:
        NotFoundError: ``webhook_not_found``.
    """
    row = _row(session, tenant_id, webhook_id)
    removed = WebhookOut(**_shown(row, database_now(session)))
    session.delete(row)
    session.flush()
    session.execute(delete(DeliveryRow).where(DeliveryRow.webhook_id == webhook_id))
    return removed


def rotate(session: Session, *, tenant_id: str, webhook_id: str, now: int | None = None) -> WebhookSecretOut:
    """Give a webhook a new secret; the ones before sign beside it for a day more.

    Args:
        session: a `Database.write` transaction.
        tenant_id: whose.
        webhook_id: its id.
        now: replaces the database's clock in tests, in milliseconds.

    Returns:
        The webhook with its new secret.

    Raises:
        NotFoundError: ``webhook_not_found``.
    """
    row = _row(session, tenant_id, webhook_id)
    clock = database_now(session, now)
    earlier = [
        {**each, "until": clock + ROTATION_MS if each["until"] is None else each["until"]}
        for each in row.secrets
        if _is_valid(each, clock)
    ]
    row.secrets = [{"secret": new_secret(), "until": None}, *earlier][:MAX_SECRETS]
    return _with_secret(row, clock)


def enable(session: Session, *, tenant_id: str, webhook_id: str, now: int | None = None) -> WebhookOut:
    """Switch a webhook on again; what is pending goes out at once. One that is on stays as it is.

    Args:
        session: a `Database.write` transaction.
        tenant_id: whose.
        webhook_id: its id.
        now: replaces the database's clock in tests, in milliseconds.

    Returns:
        The webhook.

    Raises:
        NotFoundError: ``webhook_not_found``.
    """
    row = _row(session, tenant_id, webhook_id)
    clock = database_now(session, now)
    if row.disabled_at is not None:
        row.disabled_at = row.disabled_reason = row.failing_since = None
        waiting = (
            DeliveryRow.webhook_id == webhook_id,
            DeliveryRow.state == str(DeliveryState.PENDING),
            DeliveryRow.owner.is_(None),
        )
        session.execute(update(DeliveryRow).where(*waiting).values(run_after=clock))
    return WebhookOut(**_shown(row, clock))


def list_deliveries(
    session: Session, *, webhook_id: str, limit: int, before: tuple[int, str] | None = None
) -> tuple[list[DeliveryOut], tuple[int, str] | None]:
    """What was sent to a webhook and what will be, newest first. The caller has checked that it may be seen.

    Args:
        session: any transaction.
        webhook_id: the webhook.
        limit: deliveries per page, at least 1.
        before: place of the last one seen; None for the first page.

    Returns:
        The deliveries, and the place after which the next page begins; None at the end.
    """
    newest_first = (DeliveryRow.created_at.desc(), DeliveryRow.id.desc())
    statement = select(DeliveryRow).where(DeliveryRow.webhook_id == webhook_id).order_by(*newest_first)
    if before is not None:
        moment, last_id = before
        same = and_(DeliveryRow.created_at == moment, DeliveryRow.id < last_id)
        statement = statement.where(or_(DeliveryRow.created_at < moment, same))
    rows = session.scalars(statement.limit(limit + 1)).all()
    following = (rows[limit - 1].created_at, rows[limit - 1].id) if len(rows) > limit else None
    return [_delivery(row) for row in rows[:limit]], following


def get_delivery(session: Session, delivery_id: str) -> DeliveryOut:
    """One delivery. The caller has checked that it may be seen.

    Args:
        session: any transaction.
        delivery_id: its id.

    Returns:
        The delivery.
    """
    return _delivery(session.get_one(DeliveryRow, delivery_id))


def valid_secrets(stored: Sequence[dict[str, Any]], now: int) -> list[str]:
    """The secrets that sign at a moment.

    Args:
        stored: of a `WebhookRow`.
        now: milliseconds since 1970.

    Returns:
        Newest first, at least the newest.
    """
    return [each["secret"] for each in stored if _is_valid(each, now)]


def drop_old_secrets(session: Session, now: int) -> None:
    """Forget secrets whose rotation is over, in every webhook.

    Args:
        session: a `Database.write` transaction.
        now: milliseconds since 1970.
    """
    # Looked at without a lock first: most have nothing to forget, and their deliveries shall not wait.
    rows = session.execute(select(WebhookRow.id, WebhookRow.secrets)).all()
    old = [row.id for row in rows if not all(_is_valid(each, now) for each in row.secrets)]
    # In one order, so that two senders do not wait for each other.
    locked = select(WebhookRow).where(WebhookRow.id.in_(old)).order_by(WebhookRow.id).with_for_update()
    for row in session.scalars(locked):
        row.secrets = [each for each in row.secrets if _is_valid(each, now)]


def _is_valid(secret: dict[str, Any], now: int) -> bool:
    return secret["until"] is None or secret["until"] > now


def _row(session: Session, tenant_id: str, webhook_id: str, *, is_changing: bool = True) -> WebhookRow:
    wanted = select(WebhookRow).where(WebhookRow.id == webhook_id, WebhookRow.tenant_id == tenant_id)
    row = session.scalars(wanted.with_for_update() if is_changing else wanted).one_or_none()
    if row is None:
        raise NotFoundError(
            f"there is no webhook {webhook_id}: GET /v1/webhooks lists the webhooks of this key's tenant",
            code="webhook_not_found",
        )
    return row


def _shown(row: WebhookRow, now: int) -> dict[str, Any]:
    return {
        "id": row.id,
        "url": row.url,
        "description": row.description,
        "events": row.events,
        "created_at": _time(row.created_at),
        "num_secrets": len(valid_secrets(row.secrets, now)),
        "failing_since": _time(row.failing_since),
        "disabled_at": _time(row.disabled_at),
        "disabled_reason": row.disabled_reason,
    }


def _with_secret(row: WebhookRow, now: int) -> WebhookSecretOut:
    return WebhookSecretOut(**_shown(row, now), secret=row.secrets[0]["secret"])


def _delivery(row: DeliveryRow) -> DeliveryOut:
    state = DeliveryState(row.state)
    return DeliveryOut(
        id=row.id,
        event=row.event,
        state=state,
        attempt=row.attempt,
        created_at=_time(row.created_at),
        next_attempt_at=_time(row.run_after if state is DeliveryState.PENDING else None),
        delivered_at=_time(row.delivered_at),
        last_status=row.last_status,
        last_error=row.last_error,
    )


def _time(milliseconds: int | None) -> Any:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)
