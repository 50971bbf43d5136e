"""Access keys: their form, what is kept of them, and when they stop working."""

from __future__ import annotations

import logging
import re
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from sqlalchemy import select, text

from service import keys
from service.db.clock import database_now
from service.db.models import Base, KeyRow
from service.db.session import Database
from service.errors import ConflictError, UnauthorizedError
from service.identity import tenant_keys
from service.keys import KEY_FILE, Keyring, authenticate, create_key, ensure_first_key, revoke_key
from service.schemas import KeyRequest


def make(database: Database, **options: Any) -> str:
    with database.write() as session:
        return create_key(session, label="test", **options)


def refusal(keyring: Keyring, key: str) -> str:
    with pytest.raises(UnauthorizedError) as caught:
        keyring.look_up(key)
    assert key not in str(caught.value)
    return caught.value.code


def test_a_key_opens_its_tenant_with_its_scopes(sqlite_database: Database) -> None:
    key = make(sqlite_database, tenant_id="mine", scopes=["read"])
    assert re.fullmatch(r"cliptune_live_\w{8}_\w{43}_\w{6}", key)
    principal = Keyring(sqlite_database).look_up(key)
    assert (principal.tenant_id, principal.key_id) == ("mine", key.split("_")[2])
    assert principal.may("read") and not principal.may("write") and not principal.may("admin")


@pytest.mark.parametrize(
    ("scopes", "allowed"),
    [
        ([], []),
        (["read"], ["read"]),
        (["worker"], ["worker"]),
        (["write"], ["read", "worker", "write"]),
        (["admin"], ["read", "worker", "write", "admin"]),
        (["read", "write"], ["read", "worker", "write"]),
    ],
)
def test_scopes_imply_the_smaller_ones(scopes: list[str], allowed: list[str]) -> None:
    principal = keys.Principal("id", "tenant", frozenset(scopes), b"")
    assert [scope for scope in ("read", "worker", "write", "admin") if principal.may(scope)] == allowed


def test_two_keys_differ_and_one_does_not_open_the_other(sqlite_database: Database) -> None:
    first, second = make(sqlite_database), make(sqlite_database)
    assert first != second
    swapped = f"cliptune_live_{first.split('_')[2]}_{second.split('_')[3]}"
    assert refusal(Keyring(sqlite_database), f"{swapped}_{keys._checksum(swapped)}") == "key_unknown"


def test_every_single_typo_is_found_without_the_database(tmp_path: Path) -> None:
    unreachable = Database(f"sqlite:///{tmp_path}/missing/nothing.db")
    body = "cliptune_live_" + "A" * 8 + "_" + "b" * 43
    key = f"{body}_{keys._checksum(body)}"
    for position in range(len("cliptune_live_"), len(key)):
        typo = key[:position] + ("x" if key[position] != "x" else "y") + key[position + 1 :]
        with pytest.raises(UnauthorizedError, match=r"checksum|is no access key"):
            Keyring(unreachable).look_up(typo)


def test_a_key_stops_at_its_expiry(database: Database) -> None:
    key = make(database, expires_at=10_000)
    with database.read() as session:
        assert authenticate(session, key, now=9_999)[1] == 10_000
        with pytest.raises(UnauthorizedError) as caught:
            authenticate(session, key, now=10_000)
    assert caught.value.code == "key_expired"


def test_the_cache_never_outlives_a_key(sqlite_database: Database) -> None:
    with sqlite_database.read() as session:
        soon = database_now(session) + 20_000
    key = make(sqlite_database, expires_at=soon)
    keyring = Keyring(sqlite_database, cache_seconds=3600)
    keyring.look_up(key)
    _, (until, _) = next(iter(keyring._known.items()))
    assert until <= time.monotonic() + 20


def test_a_revoked_key_is_refused_once_the_cache_is_over(database: Database) -> None:
    key = make(database)
    keyring = Keyring(database, cache_seconds=30)
    keyring.look_up(key)
    with database.write() as session:
        assert revoke_key(session, key.split("_")[2])
        assert not revoke_key(session, key.split("_")[2])
    assert keyring.recall(key) is not None  # for at most half a minute
    assert refusal(keyring, key) == "key_revoked"
    assert Keyring(database, cache_seconds=0).recall(key) is None


def test_use_is_written_once_a_minute(database: Database) -> None:
    key = make(database)
    keyring = Keyring(database)
    keyring.look_up(key)

    def last_used() -> int | None:
        with database.read() as session:
            return session.execute(select(KeyRow.last_used_at)).scalar_one()

    assert last_used() is None
    keyring.record_use()
    first = last_used()
    assert first is not None
    assert keyring.recall(key) is not None
    keyring.record_use()
    assert last_used() == first
    with database.write() as session:
        session.execute(text("UPDATE cliptune_keys SET last_used_at = last_used_at - 61000"))
    keyring.recall(key)
    keyring.record_use()
    assert (last_used() or 0) >= first


def test_the_first_key_is_kept_privately_and_made_once(database: Database, tmp_path: Path) -> None:
    home = tmp_path / "home"
    key = ensure_first_key(database, home)
    assert key is not None
    file = home / KEY_FILE
    assert file.read_text() == key + "\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert Keyring(database).look_up(key).may("admin")
    assert ensure_first_key(database, home) is None
    assert file.read_text() == key + "\n"


def test_a_key_is_nowhere_but_with_its_owner(
    api: Any, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The canary: neither tables, nor logs, nor answers hold the key or its secret, whatever is done with it."""
    caplog.set_level(logging.DEBUG)
    structlog.reset_defaults()
    secret = api.key.split("_")[3]
    answers = [
        api.http.get("/v1/studies"),
        api.submit(key=api.key),
        api.submit(key=api.key, num_trials=5),
        api.submit(workload=api.key),
        api.http.get(f"/v1/studies/{api.key}"),
        api.http.get("/v1/studies", params={"cursor": api.key}),
        api.http.get("/v1/recommendations", params={"workload": "w", "fingerprint": api.key}),
        api.with_key(api.key + "x").get("/v1/studies"),
        api.with_key(api.key[:-1]).get("/v1/studies"),
        api.http.get("/metrics"),
    ]
    seen = [answer.text for answer in answers]
    with api.database.read() as session:
        for table in Base.metadata.sorted_tables:
            seen += [repr(row) for row in session.execute(select(table))]
    seen += capfd.readouterr()
    # The test's own client logs the addresses it calls.
    seen += [record.getMessage() for record in caplog.records if record.name != "httpx2"]
    assert not [text_seen for text_seen in seen if secret in text_seen]


def admins(database: Database, count: int) -> list[str]:
    return [make(database, scopes=["admin"]).split("_")[2] for _ in range(count)]


def test_of_two_admins_that_revoke_each_other_one_stays(database: Database) -> None:
    """At the same moment, again and again: the second to come sees what the first did."""
    for _ in range(5):
        first, second = admins(database, 2)
        both_ready = threading.Barrier(2)

        def revoke(key_id: str, ready: threading.Barrier) -> str:
            ready.wait()
            try:
                with database.write() as session:
                    return tenant_keys.revoke(session, tenant_id="default", key_id=key_id).state
            except ConflictError as error:
                return error.code

        with ThreadPoolExecutor(2) as pool:
            outcomes = list(pool.map(revoke, (first, second), (both_ready, both_ready)))
        assert sorted(outcomes) == ["last_admin_key", "revoked"]
        # The one that stayed must not count for the next round.
        with database.write() as session:
            for key_id in (first, second):
                revoke_key(session, key_id)


def test_keys_are_made_listed_and_revoked_by_the_database_clock(database: Database) -> None:
    request = KeyRequest(label="ci", scopes=["read", "write"], expires_in_days=1)
    with database.write() as session:
        before = database_now(session)
        made = tenant_keys.make(session, tenant_id="mine", request=request)
        after = database_now(session)
    assert made.expires_at is not None
    assert before <= made.created_at.timestamp() * 1000 <= after
    assert made.expires_at - made.created_at == timedelta(days=1)
    assert Keyring(database).look_up(made.key).scopes == {"read", "write"}
    assert made.key not in repr(made)
    with database.read() as session:
        page = tenant_keys.list_page(session, tenant_id="mine", signing_key=b"", limit=5)
        assert [each.id for each in page.items] == [made.id]
        assert tenant_keys.list_page(session, tenant_id="other", signing_key=b"", limit=5).items == []
    with database.write() as session:
        revoked = tenant_keys.revoke(session, tenant_id="mine", key_id=made.id)
    assert revoked.state == "revoked" and revoked.revoked_at is not None


def test_id_that_no_key_has_is_not_found(database: Database) -> None:
    for key_id in ("\x00", "a\x00b", "\U0001f600", "x" * 100):
        with database.read() as session, pytest.raises(tenant_keys.KeyNotFoundError):
            tenant_keys.get(session, tenant_id="default", key_id=key_id)
        with database.write() as session, pytest.raises(tenant_keys.KeyNotFoundError):
            tenant_keys.revoke(session, tenant_id="default", key_id=key_id)


def test_forgotten_key_is_looked_up_again(sqlite_database: Database) -> None:
    key, other = make(sqlite_database), make(sqlite_database)
    keyring = Keyring(sqlite_database)
    for each in (key, other):
        keyring.look_up(each)
    keyring.forget(key.split("_")[2])
    assert keyring.recall(key) is None
    assert keyring.recall(other) is not None
