"""The access keys of one tenant: list them, make one, revoke one. No answer but that of making holds a key."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from service.db.clock import database_now
from service.db.models import KeyRow
from service.errors import ConflictError, NotFoundError
from service.keys import create_key, revoke_key
from service.schemas import KeyMade, KeyOut, KeyRequest, Page
from service.studies.cursor import read_cursor, write_cursor

#: Milliseconds of a day.
_DAY_MS = 86_400_000
_LIST = "keys"


class KeyNotFoundError(NotFoundError):
    """This tenant has no key with this id; another tenant's key is as absent as one that never was."""

    code = "key_not_found"

    def __init__(self) -> None:
        # The id is not repeated: somebody may have sent a whole key.
        super().__init__(
            "there is no access key with this id: `cliptune keys list` shows the keys, an id has 8 characters"
        )


def list_page(
    session: Session, *, tenant_id: str, signing_key: bytes, limit: int, cursor: str | None = None
) -> Page[KeyOut]:
    """Part of a tenant's keys, newest first, those that ended among them.

    Args:
        session: any transaction.
        tenant_id: whose keys.
        signing_key: signs the cursor.
        limit: keys per page, at least 1.
        cursor: ``next_cursor`` of the page before; None for the first.

    Returns:
        The page.

    Raises:
        InvalidCursorError: if the cursor is none of this list's.
    """
    statement = (
        select(KeyRow)
        .where(KeyRow.tenant_id == tenant_id)
        .order_by(KeyRow.created_at.desc(), KeyRow.id.desc())
        .limit(limit + 1)
    )
    if cursor is not None:
        created_at, last_id = read_cursor(signing_key, _LIST, cursor)
        earlier = and_(KeyRow.created_at == created_at, KeyRow.id < last_id)
        statement = statement.where(or_(KeyRow.created_at < created_at, earlier))
    rows = list(session.execute(statement).scalars())
    following = None
    if len(rows) > limit:
        rows = rows[:limit]
        following = write_cursor(signing_key, _LIST, rows[-1].created_at, rows[-1].id)
    now = database_now(session)
    return Page[KeyOut](items=[_key_out(row, now) for row in rows], next_cursor=following)


def get(session: Session, *, tenant_id: str, key_id: str) -> KeyOut:
    """A key of a tenant.

    Args:
        session: any transaction.
        tenant_id: whose keys.
        key_id: its id, or any text.

    Returns:
        The key as it is now.

    Raises:
        KeyNotFoundError: if this tenant has none with this id.
    """
    return _key_out(_find(session, tenant_id, key_id), database_now(session))


def make(session: Session, *, tenant_id: str, request: KeyRequest) -> KeyMade:
    """Make a key for a tenant.

    Args:
        session: a `Database.write` transaction.
        tenant_id: whose objects it opens.
        request: its label, scopes and life.

    Returns:
        The key, readable this once.
    """
    now, days = database_now(session), request.expires_in_days
    key = create_key(
        session,
        label=request.label,
        tenant_id=tenant_id,
        scopes=request.scopes,
        expires_at=None if days is None else now + days * _DAY_MS,
        now=now,
    )
    session.flush()
    made = _find(session, tenant_id, key.split("_")[2])
    return KeyMade(key=key, **_key_out(made, now).model_dump())


def revoke(session: Session, *, tenant_id: str, key_id: str) -> KeyOut:
    """End a key; every replica refuses it within a minute. A key that was revoked before stays as it is.

    Args:
        session: a `Database.write` transaction.
        tenant_id: whose keys.
        key_id: its id, or any text.

    Returns:
        The key as it is now.

    Raises:
        KeyNotFoundError: if this tenant has none with this id.
        ConflictError: ``last_admin_key`` if nobody could make keys for the tenant afterwards.
    """
    now = database_now(session)
    # Locked before anything is decided, in one order: of two admins who revoke each other's key, the second to come
    # sees what the first did.
    statement = select(KeyRow).where(KeyRow.tenant_id == tenant_id).order_by(KeyRow.id).with_for_update()
    rows = list(session.execute(statement).scalars())
    row = next((each for each in rows if each.id == key_id), None)
    if row is None:
        raise KeyNotFoundError()
    admins = {each.id for each in rows if "admin" in each.scopes and _state(each, now) == "live"}
    if admins == {row.id}:
        raise ConflictError(
            f"the key {row.id} is the last live key with the scope admin, and without one nobody could make keys: make "
            "another one first (`cliptune keys create --label NAME --scope admin --never-expires`), then revoke this "
            "one with it",
            code="last_admin_key",
        )
    revoke_key(session, row.id, now)
    session.refresh(row)
    return _key_out(row, now)


def _find(session: Session, tenant_id: str, key_id: str) -> KeyRow:
    """A row of the tenant.

    Raises:
        KeyNotFoundError: if there is none.
    """
    if not key_id.isprintable():
        raise KeyNotFoundError()  # PostgreSQL refuses to look for a NUL
    statement = select(KeyRow).where(KeyRow.tenant_id == tenant_id, KeyRow.id == key_id)
    row = session.execute(statement).scalar_one_or_none()
    if row is None:
        raise KeyNotFoundError()
    return row


def _key_out(row: KeyRow, now: int) -> KeyOut:
    return KeyOut.model_validate(
        {
            "id": row.id,
            "label": row.label,
            "scopes": row.scopes,
            "created_at": _time(row.created_at),
            "expires_at": _time(row.expires_at),
            "last_used_at": _time(row.last_used_at),
            "revoked_at": _time(row.revoked_at),
            "state": _state(row, now),
        }
    )


def _state(row: KeyRow, now: int) -> str:
    if row.revoked_at is not None:
        return "revoked"
    return "expired" if row.expires_at is not None and row.expires_at <= now else "live"


def _time(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)
