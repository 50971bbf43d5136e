"""The tables of webhooks: where events are sent, and the outbox, one row per webhook and event.

No foreign key leads from a delivery to its webhook: a study's end, which writes deliveries, must neither wait for a
webhook that is being deleted nor fail with it. A delivery that is left without a webhook is deleted with the old ones.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import CheckConstraint, Index, Integer, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from service.db.base import PREFIX, Base


class WebhookRow(Base):
    """An address that a tenant wants told of events."""

    __tablename__ = f"{PREFIX}webhooks"
    __table_args__ = (Index("ix_cliptune_webhooks_tenant", "tenant_id", "created_at", "id"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    tenant_id: Mapped[str]
    url: Mapped[str] = mapped_column(Text)
    description: Mapped[str]
    events: Mapped[list[Any]]
    #: Newest first, each ``{"secret", "until"}``: the first has no end, the others end their rotation then. In clear,
    #: because the service signs with them.
    secrets: Mapped[list[Any]]
    #: When the first attempt failed since one succeeded.
    failing_since: Mapped[int | None]
    disabled_at: Mapped[int | None]
    disabled_reason: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[int]


class DeliveryRow(Base):
    """An event on its way to one webhook; ``id`` is its ``webhook-id``, ``body`` the exact text that is signed.

    ``owner`` is drawn for each attempt: who holds it may write the attempt's outcome. While an attempt is under way
    ``run_after`` is the end of its lease; a sender that died leaves the next attempt to whoever comes after that.
    """

    __tablename__ = f"{PREFIX}deliveries"
    __table_args__ = (
        CheckConstraint("state IN ('pending','delivered','failed')", name="state"),
        CheckConstraint("state = 'pending' OR owner IS NULL", name="owner"),
        Index("ix_cliptune_deliveries_webhook", "webhook_id", "created_at", "id"),
        Index("ix_cliptune_deliveries_created", "created_at"),
        Index(
            "ix_cliptune_deliveries_pending",
            "webhook_id",
            "run_after",
            "id",
            sqlite_where=text("state = 'pending'"),
            postgresql_where=text("state = 'pending'"),
        ),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    webhook_id: Mapped[str] = mapped_column(String(36))
    event: Mapped[str] = mapped_column(String(64))
    body: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(16), default="pending")
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    run_after: Mapped[int]
    owner: Mapped[str | None] = mapped_column(String(36))
    last_status: Mapped[int | None] = mapped_column(Integer)
    last_error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[int]
    delivered_at: Mapped[int | None]
