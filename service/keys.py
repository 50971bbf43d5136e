"""Access keys: who is calling, and what they may do.

A key reads ``cliptune_live_ID_SECRET_CHECKSUM``: 8 characters to look it up, 32 random bytes in base 62, and a
CRC-32 so that a typo is found without asking and scanners recognise a leak. The database keeps only the SHA-256
of the secret; the key itself is shown once. A `Keyring` remembers a good key for half a minute, so a revocation
holds everywhere within 60 s.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import threading
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from service.db.clock import database_now
from service.db.models import KeyRow
from service.db.session import Database
from service.errors import UnauthorizedError
from service.scopes import ALL_SCOPES as ALL_SCOPES
from service.scopes import DEFAULT_TENANT as DEFAULT_TENANT
from service.scopes import Scope as Scope
from service.settings import KEY_FILE

#: Header that a 401 carries.
CHALLENGE = {"WWW-Authenticate": 'Bearer realm="cliptune"'}
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SECRET_LENGTH = 43  # 62**43 > 2**256
_FORM = re.compile(r"(cliptune_live_([0-9A-Za-z]{8})_([0-9A-Za-z]{43}))_([0-9A-Za-z]{6})")
#: Compared with when no row has the id, so that an unknown id costs what a wrong secret costs.
_NOBODY = "0" * 64
_USE_RESOLUTION_MS = 60_000
_MAX_CACHED = 10_000


@dataclass(frozen=True)
class Principal:
    """Who is calling.

    Attributes:
        key_id: id of the key, which may be logged.
        tenant_id: whose objects they see.
        scopes: what they may do; ``worker`` may ask for lanes of external studies and tell of them, and nothing
            else; ``admin`` may do everything.
        signing_key: signs this key's page cursors; the same on every replica.
    """

    key_id: str
    tenant_id: str
    scopes: frozenset[str]
    signing_key: bytes = field(repr=False)

    def may(self, scope: Scope) -> bool:
        """Whether this is allowed; writing includes reading, and training what was submitted (``worker``)."""
        implied = {"read": {"read", "write"}, "worker": {"worker", "write"}}.get(scope, {scope})
        return bool(self.scopes & (implied | {"admin"}))


def create_key(
    session: Session,
    *,
    label: str,
    tenant_id: str = DEFAULT_TENANT,
    scopes: Sequence[Scope] = ALL_SCOPES,
    expires_at: int | None = None,
    now: int | None = None,
) -> str:
    """Make a key; this is the only time it can be read.

    Args:
        session: a `Database.write` transaction.
        label: what it is for.
        tenant_id: whose objects it opens.
        scopes: what it may do.
        expires_at: milliseconds since 1970, or None for never.
        now: replaces the database's clock in tests, in milliseconds.

    Returns:
        The key.
    """
    key_id = "".join(secrets.choice(_ALPHABET) for _ in range(8))
    secret = _base62(int.from_bytes(secrets.token_bytes(32), "big"), _SECRET_LENGTH)
    session.add(
        KeyRow(
            id=key_id,
            tenant_id=tenant_id,
            label=label,
            secret_sha256=_digest(secret),
            scopes=list(scopes),
            created_at=database_now(session, now),
            expires_at=expires_at,
            last_used_at=None,
            revoked_at=None,
        )
    )
    body = f"cliptune_live_{key_id}_{secret}"
    return f"{body}_{_checksum(body)}"


def revoke_key(session: Session, key_id: str, now: int | None = None) -> bool:
    """End a key; every replica refuses it within a minute.

    Args:
        session: a `Database.write` transaction.
        key_id: the key's 8-character id.
        now: replaces the database's clock in tests, in milliseconds.

    Returns:
        Whether there was such a key, still live.
    """
    statement = (
        update(KeyRow)
        .where(KeyRow.id == key_id, KeyRow.revoked_at.is_(None))
        .values(revoked_at=database_now(session, now))
        .returning(KeyRow.id)
    )
    return session.execute(statement).scalar_one_or_none() is not None


def ensure_first_key(database: Database, home: Path) -> str | None:
    """On the very first start make a key with all scopes and keep it in ``home/key``, readable by its owner only.

    The file is written before the row is committed: a crash in between leaves a file that opens nothing and is
    replaced at the next start, never a key that nobody knows.

    Args:
        database: a migrated database.
        home: folder of the file; made if missing.

    Returns:
        The key if one was made; None if the database had keys already.
    """
    with database.write() as session:
        if database.dialect == "postgresql":
            session.connection().exec_driver_sql(
                f"LOCK TABLE {KeyRow.__tablename__} IN SHARE ROW EXCLUSIVE MODE"
            )
        if session.execute(select(KeyRow.id).limit(1)).first() is not None:
            return None
        key = create_key(session, label="made on first start")
        session.flush()
        _write_private(home, key)
    return key


def authenticate(session: Session, text: str, now: int | None = None) -> tuple[Principal, int | None]:
    """Tell who a key belongs to.

    Args:
        session: any transaction.
        text: what the caller sent.
        now: replaces the database's clock in tests, in milliseconds.

    Returns:
        The principal, and when the key expires (milliseconds since 1970, None for never).

    Raises:
        UnauthorizedError: ``key_malformed``, ``key_unknown``, ``key_revoked`` or ``key_expired``.
    """
    key_id, secret = _parse(text)
    given = _digest(secret)
    clock = database_now(session, now)
    row = session.execute(select(KeyRow).where(KeyRow.id == key_id)).scalar_one_or_none()
    matches = hmac.compare_digest(given, _NOBODY if row is None else row.secret_sha256)
    if row is None or not matches:
        raise UnauthorizedError(
            "this access key is not known here: check that it belongs to this service",
            code="key_unknown",
            headers=CHALLENGE,
        )
    if row.revoked_at is not None:
        raise UnauthorizedError(
            f"the access key {key_id} was revoked: ask for a new one", code="key_revoked", headers=CHALLENGE
        )
    if row.expires_at is not None and row.expires_at <= clock:
        raise UnauthorizedError(
            f"the access key {key_id} has expired: ask for a new one", code="key_expired", headers=CHALLENGE
        )
    return _principal(row), row.expires_at


def find_principal(session: Session, key_id: str, now: int | None = None) -> Principal | None:
    """Who a key belongs to, by its id alone: to check what the key signed, never to let anybody in.

    Args:
        session: any transaction.
        key_id: the key's 8-character id.
        now: replaces the database's clock in tests, in milliseconds.

    Returns:
        The principal; None if there is no such key, or if it was revoked or has expired.
    """
    clock = database_now(session, now)
    row = session.execute(select(KeyRow).where(KeyRow.id == key_id)).scalar_one_or_none()
    if row is None or row.revoked_at is not None:
        return None
    return None if row.expires_at is not None and row.expires_at <= clock else _principal(row)


def _principal(row: KeyRow) -> Principal:
    signing_key = hashlib.sha256(b"cursor:" + row.secret_sha256.encode()).digest()
    return Principal(row.id, row.tenant_id, frozenset(row.scopes), signing_key)


class Keyring:
    """Authenticates, remembering good keys for a short time, and notes when keys were used.

    Args:
        database: where the keys are.
        cache_seconds: how long a good key is not looked up again, in seconds, < 60; 0 looks up each time.
    """

    def __init__(self, database: Database, cache_seconds: float = 30.0) -> None:
        self._database = database
        self._cache_seconds = cache_seconds
        self._lock = threading.Lock()
        self._known: dict[bytes, tuple[float, Principal]] = {}
        self._used: set[str] = set()

    def recall(self, text: str) -> Principal | None:
        """The owner of a key seen a moment ago; takes microseconds and no database.

        Args:
            text: what the caller sent.

        Returns:
            The principal, or None: then `look_up`.
        """
        found = self._known.get(hashlib.sha256(text.encode("utf-8", "replace")).digest())
        if found is None or found[0] < time.monotonic():
            return None
        self._used.add(found[1].key_id)
        return found[1]

    def look_up(self, text: str) -> Principal:
        """Authenticate against the database, and remember a good key.

        Args:
            text: what the caller sent.

        Returns:
            The principal.

        Raises:
            UnauthorizedError: if the key is not good.
        """
        with self._database.read() as session:
            principal, expires_at = authenticate(session, text)
            remaining = None if expires_at is None else (expires_at - database_now(session)) / 1000
        lifetime = self._cache_seconds if remaining is None else min(self._cache_seconds, remaining)
        with self._lock:
            if len(self._known) >= _MAX_CACHED:
                self._known.clear()
            self._known[hashlib.sha256(text.encode()).digest()] = (time.monotonic() + lifetime, principal)
        self._used.add(principal.key_id)
        return principal

    def forget(self, key_id: str) -> None:
        """Look a key up again at its next use, because it was revoked; other processes remember it for a while.

        Args:
            key_id: the key's 8-character id.
        """
        with self._lock:
            for digest, (_, principal) in list(self._known.items()):
                if principal.key_id == key_id:
                    del self._known[digest]

    def record_use(self) -> None:
        """Write ``last_used_at`` of the keys used since the last call, at most once a minute each."""
        used, self._used = self._used, set()
        if not used:
            return
        with self._database.write() as session:
            now = database_now(session)
            stale = or_(KeyRow.last_used_at.is_(None), KeyRow.last_used_at <= now - _USE_RESOLUTION_MS)
            session.execute(update(KeyRow).where(KeyRow.id.in_(sorted(used)), stale).values(last_used_at=now))


def _parse(text: str) -> tuple[str, str]:
    match = _FORM.fullmatch(text)
    if match is None:
        raise UnauthorizedError(
            "this is no access key: it reads cliptune_live_ID_SECRET_CHECKSUM, copy it whole and without quotes",
            code="key_malformed",
            headers=CHALLENGE,
        )
    body, key_id, secret, checksum = match.groups()
    if not hmac.compare_digest(_checksum(body), checksum):
        raise UnauthorizedError(
            "the access key's checksum is wrong: a character is missing or mistyped",
            code="key_malformed",
            headers=CHALLENGE,
        )
    return key_id, secret


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), 6)


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, rest = divmod(number, 62)
        digits.append(_ALPHABET[rest])
    return "".join(reversed(digits))


def _write_private(home: Path, key: str) -> None:
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = home / f".{KEY_FILE}.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    # Mode 0600 from the first moment: a chmod afterwards would leave the key readable for an instant.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(key + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(home / KEY_FILE)
