"""Idempotency-Keys: a request that is sent twice has one effect, and the second answer is the first one's study."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from sqlalchemy import delete
from sqlalchemy.orm import Session

from service.db.clock import database_now
from service.db.models import IdempotencyRow
from service.db.session import Database
from service.db.upsert import insert_into
from service.errors import InvalidRequestError

#: How long an Idempotency-Key is remembered, in milliseconds.
KEEP_IDEMPOTENCY_MS = 7 * 24 * 3_600_000


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A request's key, and what it was sent with.

    Attributes:
        tenant_id: whose request.
        route: what the key belongs to; the same key on another route is another request.
        key: what the caller calls this request.
        body_sha256: of the request, to tell a repetition from a mistake.
    """

    tenant_id: str
    route: str
    key: str
    body_sha256: str

    @property
    def digest(self) -> str:
        """The key's SHA-256, which is kept: a secret that someone used as the key by mistake is not."""
        return hashlib.sha256(self.key.encode()).hexdigest()


def claim(session: Session, wanted: Claim, *, study_id: str, now: int) -> str | None:
    """Take a key for a request, in the transaction of its effect.

    Args:
        session: a `Database.write` transaction; an exception must roll it back.
        wanted: the key.
        study_id: what the request will be answered with.
        now: the database's time, in milliseconds.

    Returns:
        None if the key is new; else the study that the first request was answered with.

    Raises:
        InvalidRequestError: ``idempotency_key_reused``: the key came with another body.
    """
    # A concurrent request with the same key makes this wait for its commit, and then insert nothing.
    row = {
        "tenant_id": wanted.tenant_id,
        "route": wanted.route,
        "key": wanted.digest,
        "body_sha256": wanted.body_sha256,
        "study_id": study_id,
        "created_at": now,
    }
    # RETURNING and not the row count, which psycopg does not give for this statement.
    statement = insert_into(session, IdempotencyRow).values(**row).on_conflict_do_nothing()
    if session.execute(statement.returning(IdempotencyRow.created_at)).scalar_one_or_none() is not None:
        return None
    stored = session.get_one(IdempotencyRow, (wanted.tenant_id, wanted.route, wanted.digest))
    if stored.body_sha256 != wanted.body_sha256:
        raise InvalidRequestError(
            f"the Idempotency-Key {wanted.key!r} was used for another body: send a new key for a new request, or the "
            "same body to get the first answer again",
            code="idempotency_key_reused",
        )
    return stored.study_id


def forget_idempotency_keys(database: Database) -> None:
    """Delete Idempotency-Keys older than a week; a request repeated later than that is a new one."""
    with database.write() as session:
        oldest = database_now(session) - KEEP_IDEMPOTENCY_MS
        session.execute(delete(IdempotencyRow).where(IdempotencyRow.created_at < oldest))
