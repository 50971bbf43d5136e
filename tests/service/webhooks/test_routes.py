"""Webhooks over HTTP, in the client and on the command line: made, shown without secret, refused with the reason."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from sqlalchemy import update

from service.cli.main import main
from service.client import Client
from service.db.clock import database_now
from service.db.models import DeliveryRow, WebhookRow
from service.db.session import Database
from service.errors import InvalidRequestError, NotFoundError
from service.schemas import SUBSCRIBABLE
from service.webhooks.registry import MAX_WEBHOOKS
from service.webhooks.signature import sign

URL = "https://example.org/hook"
NOBODY = str(uuid.UUID(int=0))


@pytest.fixture
def database(sqlite_database: Database) -> Database:
    """SQLite alone: what differs between the databases is in test_deliveries.py."""
    return sqlite_database


def make(api: Any, **changes: Any) -> dict[str, Any]:
    response = api.http.post("/v1/webhooks", json={"url": URL} | changes)
    assert response.status_code == 201, response.text
    return dict(response.json())


def assert_problem(response: Any, status: int, code: str, *words: str, pointer: str = "") -> None:
    problem = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert (response.status_code, problem["code"]) == (status, code), problem
    assert all(word in problem["detail"] for word in words), problem["detail"]
    assert not pointer or pointer in [each["pointer"] for each in problem["errors"]]


def test_a_webhook_is_made_and_its_secret_shown_once(api: Any) -> None:
    response = api.http.post("/v1/webhooks", json={"url": URL, "description": "CI"})
    made = response.json()
    assert response.status_code == 201
    assert response.headers["location"] == f"/v1/webhooks/{made['id']}"
    assert response.headers["cache-control"] == "no-store"
    secret = made.pop("secret")
    assert sign(secret, "i", 1, b"").startswith("v1,") and len(secret) == len("whsec_") + 44
    assert made["events"] == list(SUBSCRIBABLE) and made["description"] == "CI"
    assert (made["num_secrets"], made["disabled_at"], made["failing_since"]) == (1, None, None)
    shown = api.http.get(f"/v1/webhooks/{made['id']}")
    assert shown.json() == made
    listed = api.http.get("/v1/webhooks")
    assert listed.json() == {"items": [made], "next_cursor": None}
    assert "whsec_" not in shown.text + listed.text


def test_a_rotation_shows_another_secret(api: Any) -> None:
    made = make(api)
    response = api.http.post(f"/v1/webhooks/{made['id']}:rotate")
    rotated = response.json()
    assert response.status_code == 200 and response.headers["cache-control"] == "no-store"
    assert rotated["num_secrets"] == 2
    assert rotated["secret"].startswith("whsec_") and rotated["secret"] != made["secret"]


def test_a_test_event_is_queued_and_listed(api: Any) -> None:
    made = make(api, events=["study.failed"])
    response = api.http.post(f"/v1/webhooks/{made['id']}:test")
    assert response.status_code == 202
    queued = response.json()
    assert (queued["event"], queued["state"], queued["attempt"]) == ("webhook.test", "pending", 0)
    assert api.http.get(f"/v1/webhooks/{made['id']}/deliveries").json()["items"] == [queued]


def test_deliveries_come_in_pages_newest_first(api: Any) -> None:
    made = make(api)
    path = f"/v1/webhooks/{made['id']}"
    ids = [api.http.post(f"{path}:test").json()["id"] for _ in range(3)]
    first = api.http.get(f"{path}/deliveries?limit=2")
    assert 'rel="next"' in first.headers["link"]
    cursor = first.json()["next_cursor"]
    second = api.http.get(f"{path}/deliveries?limit=2&cursor={cursor}").json()
    assert second["next_cursor"] is None
    assert {each["id"] for each in first.json()["items"] + second["items"]} == set(ids)
    other = make(api)
    for wrong in (f"/v1/webhooks/{other['id']}/deliveries?cursor={cursor}", f"{path}/deliveries?cursor=x"):
        assert_problem(api.http.get(wrong), 422, "invalid_cursor")


def test_one_that_was_switched_off_is_switched_on(api: Any) -> None:
    made = make(api)
    with api.database.write() as session:
        off = {"disabled_at": database_now(session), "disabled_reason": "x"}
        session.execute(update(WebhookRow).values(**off))
    assert api.http.get(f"/v1/webhooks/{made['id']}").json()["disabled_reason"] == "x"
    enabled = api.http.post(f"/v1/webhooks/{made['id']}:enable")
    assert (enabled.status_code, enabled.json()["disabled_at"]) == (200, None)


def test_one_that_is_deleted_is_gone(api: Any) -> None:
    made = make(api)
    api.http.post(f"/v1/webhooks/{made['id']}:test")
    path = f"/v1/webhooks/{made['id']}"
    removed = api.http.delete(path)
    assert (removed.status_code, removed.json()["id"]) == (200, made["id"])
    assert_problem(api.http.get(path), 404, "webhook_not_found", made["id"], "GET /v1/webhooks")
    assert_problem(api.http.delete(path), 404, "webhook_not_found")
    assert api.http.get("/v1/webhooks").json()["items"] == []


CALLS = [
    ("GET", ""),
    ("DELETE", ""),
    ("POST", ":rotate"),
    ("POST", ":test"),
    ("POST", ":enable"),
    ("GET", "/deliveries"),
]


@pytest.mark.parametrize(("method", "rest"), CALLS)
def test_another_tenants_webhook_is_as_absent_as_none(api: Any, method: str, rest: str) -> None:
    made = make(api)
    stranger = api.with_key(api.new_key(tenant_id="other"))
    foreign = stranger.request(method, f"/v1/webhooks/{made['id']}{rest}")
    missing = stranger.request(method, f"/v1/webhooks/{NOBODY}{rest}")
    assert_problem(foreign, 404, "webhook_not_found")
    assert foreign.json()["detail"] == missing.json()["detail"].replace(NOBODY, made["id"])
    assert_problem(api.http.request(method, f"/v1/webhooks/x{rest}"), 404, "webhook_not_found", "UUID")
    assert stranger.get("/v1/webhooks").json()["items"] == []
    assert api.http.get(f"/v1/webhooks/{made['id']}").json()["num_secrets"] == 1


@pytest.mark.parametrize("scope", ["read", "write", "worker"])
def test_only_admin_may(api: Any, scope: str) -> None:
    made = make(api)
    other = api.with_key(api.new_key(scopes=[scope]))
    paths = [(method, f"/v1/webhooks/{made['id']}{rest}") for method, rest in CALLS]
    for method, path in [*paths, ("GET", "/v1/webhooks")]:
        assert_problem(other.request(method, path), 403, "forbidden", "needs admin")
    assert_problem(other.post("/v1/webhooks", json={"url": URL}), 403, "forbidden", "needs admin")


def test_twenty_are_enough(api: Any) -> None:
    for _ in range(MAX_WEBHOOKS):
        make(api)
    response = api.http.post("/v1/webhooks", json={"url": URL})
    assert_problem(response, 409, "too_many_webhooks", "20 webhooks already", "delete one first")
    other = api.with_key(api.new_key(tenant_id="other"))
    assert other.post("/v1/webhooks", json={"url": URL}).status_code == 201


@pytest.mark.parametrize(
    ("body", "code", "pointer", "words"),
    [
        (
            {"url": "http://example.org/"},
            "webhook_url_refused",
            "/url",
            ["not https", "CLIPTUNE_WEBHOOK_ALLOW"],
        ),
        ({"url": "https://127.0.0.1/"}, "webhook_url_refused", "/url", ["not public"]),
        ({"url": "https://example.org:22/"}, "webhook_url_refused", "/url", ["port 22", "443, 8443"]),
        ({"url": "spam"}, "webhook_url_refused", "/url", ["write https://HOST/PATH"]),
        ({"url": "https://u:p@example.org/"}, "webhook_url_refused", "/url", ["user name"]),
        ({}, "invalid_request", "/url", ["is missing"]),
        ({"url": ""}, "invalid_request", "/url", []),
        ({"url": 3}, "invalid_request", "/url", ["valid string"]),
        ({"url": "https://example.org/" + "a" * 2000}, "invalid_request", "/url", ["2000"]),
        ({"url": URL, "events": ["study.ended"]}, "invalid_request", "/events/0", ["study.failed"]),
        ({"url": URL, "events": ["webhook.test"]}, "invalid_request", "/events/0", []),
        ({"url": URL, "events": []}, "invalid_request", "/events", ["at least 1"]),
        ({"url": URL, "events": "study.failed"}, "invalid_request", "/events", ["valid list"]),
        ({"url": URL, "description": "a\nb"}, "invalid_request", "/description", ["control characters"]),
        ({"url": URL, "description": "a" * 101}, "invalid_request", "/description", ["100"]),
        ({"url": URL, "secret": "whsec_AAAA"}, "invalid_request", "/secret", ["is no field here"]),
    ],
)
def test_a_wrong_body_is_told_where(
    api: Any, body: dict[str, Any], code: str, pointer: str, words: list[str]
) -> None:
    response = api.http.post("/v1/webhooks", json=body)
    assert_problem(response, 422, code, *words, pointer=pointer)
    assert api.http.get("/v1/webhooks").json()["items"] == []


def test_the_operator_allows_more(api: Any) -> None:
    """As ``settings`` of these tests has it: one host, by http too."""
    assert make(api, url="http://hooks.test/")["url"] == "http://hooks.test/"


# ---- the client and the command line, over a socket ----


@pytest.fixture
def served(api: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(api.app, log_level="critical", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            monkeypatch.setenv("CLIPTUNE_HOME", str(tmp_path))
            monkeypatch.setenv("CLIPTUNE_URL", url)
            monkeypatch.setenv("CLIPTUNE_API_KEY", api.key)
            yield url
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def cliptune(
    served: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The command, run in this process: exit code, standard output, standard error."""
    del served

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cliptune", "webhooks", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


def test_the_client_does_all_of_it(api: Any, served: str) -> None:
    with Client(served, api.key) as client:
        made = client.create_webhook(URL, ["study.failed"], description="mine")
        assert made.events == ("study.failed",) and "whsec_" not in repr(made)
        assert client.get_webhook(made.id).description == "mine"
        assert [each.id for each in client.list_webhooks()] == [made.id]
        rotated = client.rotate_webhook(made.id)
        assert rotated.num_secrets == 2 and rotated.secret != made.secret
        ids = [client.test_webhook(made.id).id for _ in range(2)]
        assert {each.id for each in client.iter_deliveries(made.id)} == set(ids)
        assert client.enable_webhook(made.id).disabled_at is None
        assert client.delete_webhook(made.id).id == made.id
        with pytest.raises(NotFoundError) as missing:
            client.get_webhook(made.id)
        assert missing.value.code == "webhook_not_found"
        with pytest.raises(InvalidRequestError) as refused:
            client.create_webhook("https://10.0.0.1/")
        assert refused.value.code == "webhook_url_refused"


def test_the_command_line_does_all_of_it(api: Any, cliptune: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = cliptune("create", URL, "--event", "study.failed", "--description", "mine")
    assert code == 0 and out.startswith("whsec_") and out.count("\n") == 1
    assert "only time the secret is shown" in err
    listed = cliptune("list")[1].splitlines()
    assert listed[0].split() == ["id", "state", "events", "url"]
    webhook_id = listed[1].split()[0]
    assert listed[1].split()[1:] == ["on", "study.failed", URL]
    code, out, err = cliptune("rotate", webhook_id)
    assert code == 0 and out.startswith("whsec_") and "2 secrets for 24 hours" in err
    assert webhook_id in cliptune("test", webhook_id)[1]
    header, row = cliptune("deliveries", webhook_id)[1].splitlines()
    assert header.split() == ["id", "event", "state", "attempt", "created", "next", "answer"]
    assert row.split()[1:4] == ["webhook.test", "pending", "0"]
    with api.database.write() as session:
        session.execute(
            update(WebhookRow).values(disabled_at=1, disabled_reason="the receiver answered 410 Gone")
        )
        session.execute(update(DeliveryRow).values(last_error="no answer within 5 s", state="failed"))
    off = cliptune("list")[1].splitlines()
    assert off[1].split()[1] == "off"
    assert (
        off[2].strip() == f"the receiver answered 410 Gone; on again: cliptune webhooks enable {webhook_id}"
    )
    assert cliptune("deliveries", webhook_id)[1].splitlines()[1].endswith(" -     no answer within 5 s")
    assert cliptune("enable", webhook_id)[1] == f"webhook {webhook_id} is on\n"
    assert cliptune("delete", webhook_id)[1] == f"webhook {webhook_id} to {URL} is deleted\n"
    assert cliptune("list")[1].splitlines() == ["id  state  events  url"]


def test_the_command_line_prints_json(cliptune: Callable[..., tuple[int, str, str]]) -> None:
    made = json.loads(cliptune("create", URL, "--json")[1])
    webhook_id = made["id"]
    assert made["secret"].startswith("whsec_")
    for command, field in (("rotate", "secret"), ("test", "event"), ("enable", "url")):
        assert field in json.loads(cliptune(command, webhook_id, "--json")[1])
    for arguments in (["list"], ["deliveries", webhook_id]):
        (only,) = json.loads(cliptune(*arguments, "--json")[1])
        assert "secret" not in only
    assert json.loads(cliptune("delete", webhook_id, "--json")[1])["id"] == webhook_id


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["create", "http://example.org/"], 2, "[webhook_url_refused]"),
        (["create", URL, "--event", "spam"], 2, "[invalid_request]"),
        (["test", NOBODY], 2, "[webhook_not_found]"),
        (["enable", "x/y"], 2, "[route_not_found]"),
    ],
)
def test_the_command_line_tells_what_is_wrong(
    cliptune: Callable[..., tuple[int, str, str]], arguments: list[str], code: int, words: str
) -> None:
    ended, out, err = cliptune(*arguments)
    assert (ended, out) == (code, "") and words in err
