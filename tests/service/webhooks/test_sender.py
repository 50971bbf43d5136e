"""From a study that ends to a receiver that verifies: over real TLS, in threads, and as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

from service.cli.server import serve_api
from service.db.session import Database
from service.errors import DatabaseError, SettingsError
from service.settings import Settings
from service.webhooks import registry
from service.webhooks.deliveries import Deliveries
from service.webhooks.outbox import record_test
from service.webhooks.post import Poster
from service.webhooks.sender import Sender
from service.webhooks.sender_process import SenderThread, run_sender
from service.webhooks.signature import verify
from service.webhooks.target import Allowance

HOST = "hooks.test"


@pytest.fixture
def database(sqlite_database: Database) -> Database:
    """SQLite alone: what differs between the databases is in test_deliveries.py."""
    return sqlite_database


def listen(database: Database, url: str, **options: Any) -> Any:
    with database.write() as session:
        return registry.create(session, tenant_id="default", url=url, **options)


def sender_for(database: Database, receiver: Any, poster: Poster, **options: Any) -> Sender:
    allowance = Allowance(hosts=frozenset({HOST}), ports=frozenset({receiver.port}))
    return Sender(Deliveries(database), poster, allowance, **({"poll_seconds": 0.02} | options))


@contextmanager
def delivering(sender: Sender) -> Iterator[Sender]:
    thread = Thread(target=sender.deliver)
    thread.start()
    try:
        yield sender
    finally:
        sender.stop()
        thread.join(60)
        assert not thread.is_alive()


def deliveries(database: Database, webhook_id: str) -> list[Any]:
    with database.read() as session:
        return registry.list_deliveries(session, webhook_id=webhook_id, limit=100)[0]


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.01)
    return found


def test_a_study_that_ends_reaches_a_receiver_that_verifies(
    api: Any, receiver: Any, make_poster: Callable[..., Poster]
) -> None:
    """The whole way: HTTP, queue, outbox, sender, TLS, signature."""
    app_allowance = Allowance(hosts=frozenset({HOST}), ports=frozenset({receiver.port}))
    api.app.state.webhook_allowance = app_allowance
    made = api.http.post("/v1/webhooks", json={"url": receiver.url}).json()
    study = api.study(name="mine")
    api.succeed(study["id"])
    with delivering(sender_for(api.database, receiver, make_poster(receiver))):
        receiver.wait()
        receiver.wait()
        wait_for(
            lambda: all(each.state == "delivered" for each in deliveries(api.database, made["id"])), "both"
        )
    told = {}
    for request in receiver.requests:
        delivery_id = verify(request.headers, request.body, [made["secret"]])
        told[json.loads(request.body)["type"]] = delivery_id, json.loads(request.body)["data"]
    assert set(told) == {"study.succeeded", "recommendation.changed"}
    assert told["study.succeeded"][1]["study_id"] == study["id"]
    listed = api.http.get(f"/v1/webhooks/{made['id']}/deliveries").json()["items"]
    assert {(each["id"], each["state"], each["last_status"]) for each in listed} == {
        (delivery_id, "delivered", 204) for delivery_id, _ in told.values()
    }


def test_every_attempt_has_the_same_id_and_body_and_a_signature_of_its_time(
    database: Database, receiver: Any, make_poster: Callable[..., Poster]
) -> None:
    made = listen(database, receiver.url)
    now = [1_700_000_000_000]
    outbox = Deliveries(database, now=lambda: now[0])
    allowance = Allowance(hosts=frozenset({HOST}), ports=frozenset({receiver.port}))
    sender = Sender(outbox, make_poster(receiver), allowance)
    with database.write() as session:
        record_test(session, made.id, now[0])
    receiver.answers = [500, 503]
    for _ in range(3):
        assert sender.deliver_one()
        now[0] += 600_000
    assert not sender.deliver_one()
    assert [request.body for request in receiver.requests] == [receiver.requests[0].body] * 3
    for turn, request in enumerate(receiver.requests):
        # Against the clock of that attempt.
        verify(request.headers, request.body, [made.secret], now=1_700_000_000 + 600 * turn)
    assert len({request.headers["webhook-id"] for request in receiver.requests}) == 1
    assert len({request.headers["webhook-signature"] for request in receiver.requests}) == 3
    (found,) = deliveries(database, made.id)
    assert (found.state, found.attempt) == ("delivered", 3)


def test_gone_switches_it_off(database: Database, receiver: Any, make_poster: Callable[..., Poster]) -> None:
    made = listen(database, receiver.url)
    with database.write() as session:
        record_test(session, made.id)
    receiver.answers = [410]
    sender = sender_for(database, receiver, make_poster(receiver))
    with capture_logs() as logs:
        assert sender.deliver_one()
    with database.read() as session:
        found = registry.get(session, tenant_id="default", webhook_id=made.id)
    assert found.disabled_reason == "the receiver answered 410 Gone"
    assert [each["action"] for each in logs] == ["delivery_pending", "webhook_disabled"]
    # No line has the address or a secret.
    assert not any(word in str(logs) for word in ("/hook", "whsec_", HOST))


def test_a_receiver_that_is_busy_is_left_alone_as_long_as_it_asks(
    database: Database, receiver: Any, make_poster: Callable[..., Poster]
) -> None:
    made = listen(database, receiver.url)
    with database.write() as session:
        record_test(session, made.id)
    receiver.answers = [lambda connection: connection.sendall(b"HTTP/1.1 429 x\r\nRetry-After: 3600\r\n\r\n")]
    assert sender_for(database, receiver, make_poster(receiver)).deliver_one()
    (found,) = deliveries(database, made.id)
    assert 3590 <= (found.next_attempt_at - found.created_at).total_seconds() <= 3700
    assert (found.last_status, found.last_error) == (429, "the receiver answered 429")


def test_one_that_hangs_holds_up_nobody_else(
    database: Database, receiver: Any, make_poster: Callable[..., Poster]
) -> None:
    """Two threads, a webhook with three events whose receiver hangs, and one that answers."""
    hanging, good = listen(database, f"https://{HOST}:{receiver.port}/hang"), listen(database, receiver.url)
    with database.write() as session:
        for _ in range(3):
            record_test(session, hanging.id)

    def wait(connection: Any) -> None:
        del connection
        receiver.over.wait(60)

    receiver.answers = [wait]
    with delivering(sender_for(database, receiver, make_poster(receiver, total_seconds=60), num_threads=2)):
        receiver.wait()
        with database.write() as session:
            record_test(session, good.id)
        assert receiver.wait().line == "POST /hook?a=b HTTP/1.1"
        wait_for(lambda: deliveries(database, good.id)[0].state == "delivered", "the good one")
        assert [each.attempt for each in deliveries(database, hanging.id)].count(0) == 2
        receiver.over.set()


def test_an_address_that_is_not_allowed_any_more_is_not_sent_to(
    database: Database, receiver: Any, make_poster: Callable[..., Poster]
) -> None:
    """The operator took it back after the webhook was made."""
    made = listen(database, receiver.url)
    with database.write() as session:
        record_test(session, made.id)
    poster = make_poster(receiver)
    assert Sender(Deliveries(database), poster, Allowance()).deliver_one()
    (found,) = deliveries(database, made.id)
    assert found.state == "pending" and found.last_error.startswith("refused: the url has the port")
    assert receiver.connections == 0


def test_a_bug_costs_an_attempt_and_not_the_sender(
    database: Database, receiver: Any, make_poster: Callable[..., Poster]
) -> None:
    broken, good = listen(database, receiver.url), listen(database, receiver.url)
    with database.write() as session:
        record_test(session, broken.id)
        record_test(session, good.id)
    posted: list[Any] = []

    real = make_poster(receiver)

    class Breaking:
        def post(self, target: Any, headers: Any, body: bytes) -> Any:
            if broken.id.encode() in body:
                posted.append(target)
                raise ZeroDivisionError
            return real.post(target, headers, body)

    breaking: Any = Breaking()
    with capture_logs() as logs, delivering(sender_for(database, receiver, breaking)):
        receiver.wait()
        wait_for(lambda: deliveries(database, good.id)[0].state == "delivered" and posted, "the good one")
    assert any(each["action"] == "delivery_broke" for each in logs)
    (left,) = deliveries(database, broken.id)
    assert (left.state, left.attempt) == ("pending", 1)


@pytest.mark.parametrize(
    ("outage", "action"),
    [
        (OperationalError("x", None, Exception("gone")), "outbox_unavailable"),
        # While SQLite opens the file.
        (sqlite3.OperationalError("unable to open database file"), "outbox_broke"),
    ],
)
def test_an_outage_of_the_database_is_waited_out(
    database: Database, receiver: Any, make_poster: Callable[..., Poster], outage: Exception, action: str
) -> None:
    made = listen(database, receiver.url)
    outages = [outage] * 3

    class Away(Deliveries):
        def acquire(self, busy: Any = ()) -> Any:
            if outages:
                raise outages.pop()
            return super().acquire(busy)

    allowance = Allowance(hosts=frozenset({HOST}), ports=frozenset({receiver.port}))
    sender = Sender(Away(database), make_poster(receiver), allowance, poll_seconds=0.02)
    with database.write() as session:
        record_test(session, made.id)
    with capture_logs() as logs, delivering(sender):
        receiver.wait()
    assert [each["action"] for each in logs].count(action) == 3


def test_a_sweep_that_fails_does_not_hold_up_what_is_to_be_sent(
    database: Database, receiver: Any, make_poster: Callable[..., Poster]
) -> None:
    made = listen(database, receiver.url)

    class Unswept(Deliveries):
        def sweep(self) -> int:
            raise OperationalError("x", None, Exception("canceling statement due to statement timeout"))

    allowance = Allowance(hosts=frozenset({HOST}), ports=frozenset({receiver.port}))
    sender = Sender(Unswept(database), make_poster(receiver), allowance, poll_seconds=0.02)
    with capture_logs() as logs, delivering(sender):
        wait_for(lambda: logs, "the sweep")
        with database.write() as session:
            record_test(session, made.id)
        receiver.wait()
    assert [each["action"] for each in logs].count("outbox_unavailable") == 1


def test_serve_has_a_sender_in_a_thread(database: Database, plain_receiver: Any, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, webhook_allow="127.0.0.0/8", webhook_ports=str(plain_receiver.port))
    made = listen(database, f"http://127.0.0.1:{plain_receiver.port}/")
    with database.write() as session:
        record_test(session, made.id)
    with SenderThread(settings):
        request = plain_receiver.wait()
    verify(request.headers, request.body, [made.secret])
    assert deliveries(database, made.id)[0].state == "delivered"


def test_deliver_is_a_process_that_ends_in_order(
    database: Database, receiver: Any, authority: Any, tmp_path: Path
) -> None:
    """The settings as an operator gives them; SIGTERM while an answer is awaited: it is written down first."""
    made = listen(database, f"https://127.0.0.1:{receiver.port}/")
    with database.write() as session:
        record_test(session, made.id)

    def answer_late(connection: Any) -> None:
        process.send_signal(signal.SIGTERM)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    receiver.answers = [answer_late]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CLIPTUNE_")}
    environment |= {
        "CLIPTUNE_HOME": str(tmp_path),
        "CLIPTUNE_WEBHOOK_ALLOW": "127.0.0.1",
        "CLIPTUNE_WEBHOOK_PORTS": str(receiver.port),
        "CLIPTUNE_WEBHOOK_CA_FILE": authority.ca_file,
        "CLIPTUNE_LOG_FORMAT": "json",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "service.cli.main", "deliver"], env=environment, stderr=subprocess.PIPE
    )
    try:
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    lines = [json.loads(line) for line in errors.splitlines()]
    assert process.returncode == 0, errors
    assert [each["action"] for each in lines] == ["sender_ready", "delivery_delivered", "sender_stopped"]
    assert deliveries(database, made.id)[0].state == "delivered"
    verify(receiver.requests[0].headers, receiver.requests[0].body, [made.secret])


def test_a_signal_ends_it_at_once_while_it_waits_for_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    during: list[Any] = []

    def wait(database: Database, seconds: float) -> None:
        del database, seconds
        during.append(signal.getsignal(signal.SIGTERM))
        raise DatabaseError("does not answer", code="database_unreachable")

    monkeypatch.setattr(Database, "wait_until_reachable", wait)
    with pytest.raises(DatabaseError):
        run_sender(Settings(home=tmp_path))
    assert during == [before]


@pytest.mark.parametrize(
    ("name", "value"), [("ALLOW", "https://x"), ("PORTS", "x"), ("CA_FILE", "nowhere.pem")]
)
def test_a_setting_that_means_nothing_stops_the_process(
    database: Database, tmp_path: Path, name: str, value: str
) -> None:
    home = tmp_path / "home"
    settings = Settings(home=home, **{f"webhook_{name.lower()}": value})
    for start in (SenderThread, serve_api):
        with pytest.raises(SettingsError, match=f"CLIPTUNE_WEBHOOK_{name}"):
            start(settings)
    # At once: nothing was made before.
    assert not home.exists()
