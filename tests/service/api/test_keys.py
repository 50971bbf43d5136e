"""Access keys over HTTP: who may see, make and revoke them, and that no answer but one holds a secret."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from sqlalchemy import select
from starlette.testclient import TestClient

from service.api.app import create_app
from service.db.clock import database_now
from service.db.models import Base, IdempotencyRow, KeyRow
from service.db.session import Database
from service.keys import create_key, revoke_key
from service.logs import configure_logs
from service.settings import Settings

ROUTES = [("GET", "/v1/keys"), ("POST", "/v1/keys"), ("GET", "/v1/keys/{id}"), ("DELETE", "/v1/keys/{id}")]
BODY = {"label": "ci", "scopes": ["read"], "expires_in_days": 30}


@pytest.fixture
def database(sqlite_database: Database) -> Database:
    """SQLite alone: what depends on the database is in tests/service/test_keys.py, on both."""
    return sqlite_database


@pytest.fixture(scope="module")
def admin(tmp_path_factory: pytest.TempPathFactory, migrated_file: Path) -> Iterator[TestClient]:
    """An admin of one service, for requests that change nothing."""
    file = shutil.copyfile(migrated_file, tmp_path_factory.mktemp("keys") / "cliptune.db")
    database = Database(f"sqlite:///{file}")
    with database.write() as session:
        key = create_key(session, label="first")
    headers = {"Authorization": f"Bearer {key}"}
    yield TestClient(create_app(Settings(), database), base_url="http://127.0.0.1", headers=headers)
    database.close()


def make(api: Any, **changes: Any) -> dict[str, Any]:
    response = api.http.post("/v1/keys", json=BODY | changes)
    assert response.status_code == 201, response.text
    return dict(response.json())


def id_of(key: str) -> str:
    return key.split("_")[2]


def call(http: Any, method: str, path: str, key_id: str) -> Any:
    options = {"json": BODY} if method == "POST" else {}
    return http.request(method, path.replace("{id}", key_id), **options)


def test_key_is_made_shown_once_and_opens_what_it_may(api: Any) -> None:
    response = api.http.post("/v1/keys", json=BODY)
    made = response.json()
    assert response.status_code == 201
    assert response.headers["location"] == f"/v1/keys/{made['id']}"
    assert response.headers["cache-control"] == "no-store"
    assert id_of(made["key"]) == made["id"] and made["state"] == "live"
    created, expires = (datetime.fromisoformat(made[name]) for name in ("created_at", "expires_at"))
    assert expires - created == timedelta(days=30)
    theirs = api.with_key(made["key"])
    assert theirs.get("/v1/studies").status_code == 200
    assert theirs.post("/v1/studies", json=api.body(), headers={"Idempotency-Key": "k"}).status_code == 403
    shown = api.http.get(response.headers["location"]).json()
    assert "key" not in shown and shown == {name: made[name] for name in shown}


@pytest.mark.parametrize(("days", "lives"), [({}, 90), ({"expires_in_days": None}, None)])
def test_key_lives_for_90_days_unless_it_is_told_to_live_for_ever(
    api: Any, days: dict[str, Any], lives: int | None
) -> None:
    body = {"label": "ci", "scopes": ["read"]} | days
    made = api.http.post("/v1/keys", json=body).json()
    if lives is None:
        assert made["expires_at"] is None
    else:
        span = datetime.fromisoformat(made["expires_at"]) - datetime.fromisoformat(made["created_at"])
        assert span == timedelta(days=lives)


@pytest.mark.parametrize(
    ("changes", "pointer", "words"),
    [
        ({"label": ""}, "/label", "at least 1 character"),
        ({"label": "a" * 101}, "/label", "at most 100 characters"),
        ({"label": "a\x00b"}, "/label", "take out control characters"),
        ({"label": "a\ud800"}, "/label", ""),
        ({"label": 5}, "/label", "valid string"),
        ({"scopes": []}, "/scopes", "at least 1 item"),
        ({"scopes": ["read", "read"]}, "/scopes", "each scope once, got read twice"),
        ({"scopes": ["root"]}, "/scopes/0", "'read', 'write', 'worker' or 'admin'"),
        ({"scopes": "read"}, "/scopes", "valid list"),
        ({"expires_in_days": 0}, "/expires_in_days", "greater than or equal to 1"),
        ({"expires_in_days": 3651}, "/expires_in_days", "less than or equal to 3650"),
        ({"expires_in_days": 1.5}, "/expires_in_days", "valid integer"),
        ({"expires_in_days": True}, "/expires_in_days", "valid integer"),
        ({"expires_in_days": "90"}, "/expires_in_days", "valid integer"),
        ({"tenant_id": "other"}, "/tenant_id", "is no field here"),
    ],
)
def test_wrong_field_is_named_and_makes_no_key(
    admin: TestClient, changes: dict[str, Any], pointer: str, words: str
) -> None:
    content = json.dumps(BODY | changes)
    response = admin.post("/v1/keys", content=content, headers={"Content-Type": "application/json"})
    problem = response.json()
    assert (response.status_code, problem["code"]) == (422, "invalid_request")
    assert [each["pointer"] for each in problem["errors"]] == [pointer]
    assert words in problem["detail"]
    assert [each["label"] for each in admin.get("/v1/keys").json()["items"]] == ["first"]


def test_idempotency_key_is_no_way_to_read_a_key_again(api: Any) -> None:
    headers = {"Idempotency-Key": "same"}
    first, second = (api.http.post("/v1/keys", json=BODY, headers=headers).json() for _ in range(2))
    assert first["key"] != second["key"]
    with api.database.read() as session:
        assert session.execute(select(IdempotencyRow)).all() == []


def test_list_has_pages_and_says_where_each_key_stands(api: Any) -> None:
    with api.database.read() as session:
        past = database_now(session) - 1
    expired, revoked = api.new_key(expires_at=past), make(api, label="gone")
    api.http.delete(f"/v1/keys/{revoked['id']}")
    first = api.http.get("/v1/keys", params={"limit": 2})
    rest = api.http.get(first.headers["link"].split(">")[0].removeprefix("<"))
    assert first.json()["next_cursor"] and rest.json()["next_cursor"] is None
    states = {each["id"]: each["state"] for each in [*first.json()["items"], *rest.json()["items"]]}
    assert states == {id_of(api.key): "live", id_of(expired): "expired", revoked["id"]: "revoked"}
    stolen = api.with_key(api.new_key()).get("/v1/keys", params={"cursor": first.json()["next_cursor"]})
    assert stolen.json()["code"] == "invalid_cursor"


def test_revoked_key_is_refused_at_once_and_stays_as_it_is(api: Any) -> None:
    made = make(api)
    theirs = api.with_key(made["key"])
    assert theirs.get("/v1/studies").status_code == 200
    first = api.http.delete(f"/v1/keys/{made['id']}")
    assert (first.status_code, first.json()["state"]) == (200, "revoked")
    assert theirs.get("/v1/studies").json()["code"] == "key_revoked"
    again = api.http.delete(f"/v1/keys/{made['id']}")
    assert (again.status_code, again.json()) == (200, first.json())


def test_key_may_revoke_itself_but_not_the_last_admin(api: Any) -> None:
    other = make(api, scopes=["admin"])
    theirs = api.with_key(other["key"])
    assert theirs.delete(f"/v1/keys/{other['id']}").status_code == 200
    refused = api.http.delete(f"/v1/keys/{id_of(api.key)}")
    assert (refused.status_code, refused.json()["code"]) == (409, "last_admin_key")
    assert "cliptune keys create --label NAME --scope admin" in refused.json()["detail"]
    assert api.http.get(f"/v1/keys/{id_of(api.key)}").json()["state"] == "live"


def test_neither_an_expired_nor_a_foreign_admin_counts_as_another_one(api: Any) -> None:
    with api.database.read() as session:
        past = database_now(session) - 1
    api.new_key(scopes=["admin"], expires_at=past)
    api.new_key(scopes=["admin"], tenant_id="other")
    assert api.http.delete(f"/v1/keys/{id_of(api.key)}").status_code == 409


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_foreign_and_unknown_keys_are_absent_alike(api: Any, method: str) -> None:
    foreign = id_of(api.new_key(tenant_id="other"))
    answers = [
        api.http.request(method, f"/v1/keys/{key_id}").json() for key_id in (foreign, "00000000", "x", "%00")
    ]
    for each in answers:
        assert (each["status"], each["code"]) == (404, "key_not_found")
    assert len({each["detail"] for each in answers}) == 1
    with api.database.read() as session:
        assert list(session.execute(select(KeyRow.revoked_at)).scalars()) == [None, None]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_routes_are_for_admins_of_the_tenant(api: Any, method: str, path: str) -> None:
    """The authorization matrix: every kind of caller at every address."""
    with api.database.read() as session:
        past = database_now(session) - 1
    target = id_of(api.new_key())
    revoked = api.new_key(scopes=["admin"])
    with api.database.write() as session:
        revoke_key(session, id_of(revoked))
    refused = {
        "nobody": (None, 401, "key_missing"),
        "no key": ("hunter2", 401, "key_malformed"),
        "a typo": (api.key[:-1] + ("0" if api.key[-1] != "0" else "1"), 401, "key_malformed"),
        "revoked": (revoked, 401, "key_revoked"),
        "expired": (api.new_key(scopes=["admin"], expires_at=past), 401, "key_expired"),
        "a token": ("eyJhbGciOiJSUzI1NiJ9.e30.c2ln", 401, "token_malformed"),
    } | {
        scope or "nothing": (api.new_key(scopes=[scope] if scope else []), 403, "forbidden")
        for scope in ("read", "write", "worker", "")
    }
    for caller, (key, status, code) in refused.items():
        answer = call(api.with_key(key), method, path, target)
        assert (answer.status_code, answer.json()["code"]) == (status, code), caller
    stranger = call(api.with_key(api.new_key(scopes=["admin"], tenant_id="other")), method, path, target)
    assert target not in stranger.text.replace(f"/v1/keys/{target}", "")
    assert stranger.status_code == {"/v1/keys": 201 if method == "POST" else 200}.get(path, 404)
    assert call(api.http, method, path, target).status_code == (201 if method == "POST" else 200)


def test_new_key_is_nowhere_but_in_its_answer(
    api: Any, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The canary: neither tables, nor logs, nor other answers hold a key made over HTTP."""
    caplog.set_level(logging.DEBUG)
    structlog.reset_defaults()
    made = make(api, scopes=["admin"])
    secret = made["key"].split("_")[3]
    theirs = api.with_key(made["key"])
    answers = [
        theirs.get("/v1/keys"),
        theirs.get(f"/v1/keys/{made['id']}"),
        theirs.get(f"/v1/keys/{made['key']}"),
        theirs.delete(f"/v1/keys/{made['key']}"),
        theirs.post("/v1/keys", json=BODY | {"scopes": [made["key"]]}),
        theirs.post("/v1/keys", json=BODY | {made["key"]: 1}),
        theirs.get("/v1/keys", params={"cursor": made["key"]}),
        theirs.delete(f"/v1/keys/{made['id']}"),
        theirs.get("/v1/keys"),
    ]
    seen = [answer.text for answer in answers]
    with api.database.read() as session:
        for table in Base.metadata.sorted_tables:
            seen += [repr(row) for row in session.execute(select(table))]
    seen += capfd.readouterr()
    # The test's own client logs the addresses it calls.
    seen += [record.getMessage() for record in caplog.records if record.name != "httpx2"]
    assert not [text_seen for text_seen in seen if secret in text_seen]


@pytest.fixture
def restored_logging() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.mark.usefixtures("restored_logging")
def test_traceback_of_a_bug_holds_no_key(
    api: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[str] = []

    def broken(session: Any, **options: Any) -> str:
        made.append(create_key(session, **options))
        raise RuntimeError(f"broke after {made[0]}")

    monkeypatch.setattr("service.identity.tenant_keys.create_key", broken)
    configure_logs(Settings(log_format="json"))
    # One of its own: a logger keeps the stream of its first line, which here is the test's.
    monkeypatch.setattr("service.api.problems._log", structlog.get_logger())
    response = api.http.post("/v1/keys", json=BODY)
    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    captured = capsys.readouterr()
    assert "RuntimeError: broke after [redacted]" in captured.err, "the bug is logged"
    assert made[0].split("_")[3] not in response.text + captured.err + captured.out


def test_body_must_say_that_it_is_json(admin: TestClient) -> None:
    response = admin.post("/v1/keys", content='{"label": "a"}')
    assert response.json()["code"] == "unsupported_media_type"
