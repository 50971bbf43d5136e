"""The client against the real application, over sockets where the wire matters."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx2
import pytest
from serving import serving
from sqlalchemy.exc import OperationalError

from service.api.app import end_streams
from service.client import Client
from service.db.session import Database
from service.errors import (
    ConflictError,
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    UnauthorizedError,
    UnavailableError,
)
from service.states import JobState
from tuner.evidence import TrialState, Verdict
from tuner.spec import ClipSetting, StudySpec

SPEC = StudySpec(workload="charlm-rnn", num_trials=4, num_seeds=2, num_steps=9)


@pytest.fixture
def database(sqlite_database: Database) -> Database:
    """SQLite alone: the client never sees which database answers."""
    return sqlite_database


@pytest.fixture
def client(api: Any) -> Iterator[Client]:
    with serving(api.app) as url, Client(url, api.key) as opened:
        yield opened


def test_a_study_goes_from_submission_to_recommendation(api: Any, client: Client) -> None:
    study = client.create_study(SPEC, name="mine")
    assert (study.state, study.name, study.spec["num_steps"]) == (JobState.QUEUED, "mine", 9)
    assert client.find_study(study.id[:8]).id == study.id
    recommendation_id = api.succeed(study.id)
    done = client.get_study(study.id, wait=5)
    assert done.done and done.result is not None and done.result.verdict is Verdict.CLIP
    found = client.get_recommendation(study.id)
    assert found.id == recommendation_id and found.setting == ClipSetting(
        method="global_norm", threshold=0.42
    )
    assert found.difference is not None and found.difference.high == -0.027
    answer = client.find_recommendation("charlm-rnn", study.fingerprint)
    assert answer.match == "exact" and answer.recommendation == found
    trials = client.list_trials(study.id)
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    assert trials[0].state is TrialState.COMPLETE and trials[0].lanes[1].diverged
    assert trials[1].rungs[9][1] == 2.1


def test_a_mapping_is_checked_by_the_service(client: Client) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        client.create_study({"workload": "charlm-rnn", "num_trials": 0})
    assert (caught.value.code, caught.value.status) == ("invalid_spec", 422)
    assert caught.value.errors == [
        {"detail": "must be a whole number between 2 and 1000, got 0", "pointer": "/num_trials"}
    ]


def test_the_same_idempotency_key_gives_the_same_study(client: Client) -> None:
    first = client.create_study(SPEC, idempotency_key="k")
    assert client.create_study(SPEC, idempotency_key="k").id == first.id
    assert [client.submit_study(SPEC, idempotency_key=key).is_new for key in ("k", "l")] == [False, True]
    assert client.create_study(SPEC).id != first.id
    with pytest.raises(InvalidRequestError) as caught:
        client.create_study(SPEC, name="other", idempotency_key="k")
    assert caught.value.code == "idempotency_key_reused"


def test_problems_are_raised_as_their_class(api: Any, client: Client) -> None:
    study = client.create_study(SPEC, name="mine")
    with pytest.raises(NotFoundError, match="there is no study") as absent:
        client.get_study("00000000-0000-0000-0000-000000000000")
    assert absent.value.code == "study_not_found"
    with pytest.raises(NotFoundError) as early:
        client.get_recommendation(study.id)
    assert early.value.code == "no_recommendation_yet"
    assert client.cancel_study(study.id).state is JobState.CANCELLED
    with pytest.raises(ConflictError) as finished:
        client.cancel_study(study.id)
    assert finished.value.code == "study_finished"
    with Client(client.url, "") as anonymous, pytest.raises(UnauthorizedError) as missing:
        anonymous.list_methods()
    assert (missing.value.code, missing.value.exit_code) == ("key_missing", 3)
    with Client(client.url, api.new_key(scopes=[])) as weak, pytest.raises(ForbiddenError):
        weak.list_methods()
    with pytest.raises(UnavailableError) as waiting:
        client.ready()
    assert waiting.value.code == "no_worker"


def test_an_extended_study_is_followed_to_its_new_end(api: Any, client: Client) -> None:
    study = client.create_study(SPEC)
    api.succeed(study.id)
    for _ in range(2):
        extended = client.extend_study(study.id, 2, idempotency_key="k")
        assert (extended.state, extended.extensions) == (JobState.QUEUED, (2,))
    threading.Timer(0.5, api.succeed, [study.id]).start()
    kinds = [(event.kind, event.is_terminal) for event in client.events(study.id)]
    assert kinds == [
        ("queued", False),
        ("acquired", False),
        ("succeeded", False),
        ("queued", False),
        ("acquired", False),
        ("succeeded", True),
    ]
    assert [client.get_recommendation(study.id, version).version for version in (None, 1)] == [2, 1]
    with pytest.raises(ConflictError) as settled:
        client.extend_study(study.id)
    assert settled.value.code == "already_settled"


def test_without_a_match_of_its_own_a_training_is_told_why(client: Client) -> None:
    answer = client.find_recommendation(optimizer="sgd", num_parameters=10, median_norm=0.5)
    assert (answer.match, answer.neighbours) == ("none", ()) and "recorded what it trained" in answer.reason
    with pytest.raises(InvalidRequestError) as caught:
        client.find_recommendation()
    assert caught.value.code == "query_incomplete"


def test_a_prefix_must_name_one_study(api: Any, client: Client) -> None:
    with pytest.raises(NotFoundError, match="cliptune studies"):
        client.find_study("00000000")
    ids = [client.create_study(SPEC).id for _ in range(17)]  # two of 17 share one of 16 first digits
    shared = next(digit for digit in "0123456789abcdef" if sum(one.startswith(digit) for one in ids) > 1)
    with pytest.raises(ConflictError) as caught:
        client.find_study(shared)
    assert caught.value.code == "ambiguous_prefix"


def test_every_page_is_read(api: Any, client: Client) -> None:
    ids = [client.create_study(SPEC).id for _ in range(3)]
    assert {study.id for study in client.iter_studies()} == set(ids)
    first = client.list_studies(limit=2)
    rest = client.list_studies(limit=2, cursor=first.next_cursor)
    assert [len(first.items), len(rest.items), rest.next_cursor] == [2, 1, None]
    trial_ids = api.write_trials(ids[0], 203)
    assert [trial.id for trial in client.list_trials(ids[0])] == trial_ids


def test_the_catalog_and_version_are_typed(api: Any, client: Client) -> None:
    api.add_worker()
    assert client.ready().workers == 1
    assert client.list_workloads()[0].name == "charlm-rnn"
    assert "global_norm" in {method.name for method in client.list_methods()}
    assert client.list_workers()[0].alive
    assert client.version().name == "cliptune"


def test_events_arrive_as_they_happen_and_end_with_the_study(api: Any, client: Client) -> None:
    study = client.create_study(SPEC)
    arrived: list[tuple[str, float]] = []

    def follow() -> None:
        arrived.extend((event.kind, time.monotonic()) for event in client.events(study.id))

    follower = threading.Thread(target=follow)
    follower.start()
    lease = api.acquire()
    for step in range(3):
        with api.queue.held(lease) as session:
            api.queue.append_event(session, lease, "progress", {"step": step})
        time.sleep(0.15)
    ended = time.monotonic()
    api.queue.finish(lease, JobState.SUCCEEDED)
    follower.join(timeout=20)
    assert [kind for kind, _ in arrived] == ["queued", "acquired", *["progress"] * 3, "succeeded"]
    assert arrived[2][1] < ended


def test_events_go_on_after_the_service_was_restarted(api: Any) -> None:
    with serving(api.app) as url:
        port = int(url.rpartition(":")[2])
        client = Client(url, api.key)
        study = client.create_study(SPEC)
        lease = api.acquire()
        events = client.events(study.id)
        seen = [next(events), next(events)]
    api.queue.finish(lease, JobState.SUCCEEDED)
    rest: list[Any] = []
    follower = threading.Thread(target=lambda: rest.extend(events))
    follower.start()
    time.sleep(0.3)  # at least one reconnection is refused
    with serving(api.app, port):
        follower.join(timeout=20)
    assert [event.kind for event in seen + rest] == ["queued", "acquired", "succeeded"]
    client.close()


def test_streams_and_waits_end_when_the_server_stops(api: Any, client: Client) -> None:
    study = client.create_study(SPEC)
    with httpx2.stream(
        "GET", f"{client.url}/v1/studies/{study.id}/events", headers={"X-API-Key": api.key}, timeout=10
    ) as stream:
        threading.Timer(0.2, end_streams, [api.app]).start()
        began = time.monotonic()
        assert "event: queued" in stream.read().decode()
        client.get_study(study.id, wait=20)
    assert time.monotonic() - began < 5


def test_events_go_on_after_the_database_failed_the_service(
    api: Any, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = client.create_study(SPEC)
    events = client.events(study.id)
    seen = [next(events)]
    read, down_until = Database.read, time.monotonic() + 1.0

    def broken(database: Database) -> Any:
        if time.monotonic() < down_until:
            raise OperationalError("SELECT 1", {}, Exception("gone"))
        return read(database)

    monkeypatch.setattr(Database, "read", broken)
    threading.Timer(1.2, lambda: api.queue.finish(api.acquire(), JobState.SUCCEEDED)).start()
    assert [event.kind for event in seen + list(events)] == ["queued", "acquired", "succeeded"]


def broken_off() -> Iterator[bytes]:
    """A stream that a proxy cuts after the first ping."""
    yield b": ping\n\n"
    raise httpx2.ReadError("cut")


@pytest.mark.parametrize(
    "cut", [lambda: b": ping\n\n", broken_off, lambda: b""], ids=["ended", "broken off", "empty"]
)
def test_a_quiet_study_behind_a_proxy_that_cuts_streams_is_followed_to_its_end(
    api: Any, monkeypatch: pytest.MonkeyPatch, cut: Any
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("service.client.connection.time.sleep", waits.append)
    study_id = api.study()["id"]
    streams = 0

    def proxy(request: httpx2.Request) -> httpx2.Response:
        nonlocal streams
        if not request.url.path.endswith("/events"):
            answer = api.http.request(request.method, request.url.path)
            return httpx2.Response(answer.status_code, content=answer.content)
        streams += 1
        event = '{"id": 7, "kind": "cancelled", "created_at": "2026-01-01T00:00:00Z", "payload": {}}'
        content = cut() if streams <= 30 else f"id: 7\ndata: {event}\n\n".encode()
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=content)

    with Client("http://x", api.key, transport=httpx2.MockTransport(proxy)) as client:
        assert [event.kind for event in client.events(study_id)] == ["cancelled"]
    assert streams == 31
    # The service is not given up, but it is not asked ten times a second either.
    expected = (0.1, 0.5, 1.0, 2.0, 4.0)
    assert all(0.75 * wait <= slept <= 1.25 * wait for wait, slept in zip(expected, waits, strict=False))
    assert waits[:5] != list(expected), "those that were cut off together do not come back together"
    assert sum(waits) > 20 * 0.75 * 30.0


@pytest.mark.parametrize("html", [False, True], ids=["refused", "another program"])
def test_events_of_a_service_that_stays_away_end_after_twelve_reconnections(
    monkeypatch: pytest.MonkeyPatch, html: bool
) -> None:
    monkeypatch.setattr("service.client.connection.time.sleep", lambda seconds: None)
    tries = 0

    def absent(request: httpx2.Request) -> httpx2.Response:
        nonlocal tries
        tries += 1
        if html:
            return httpx2.Response(200, headers={"content-type": "text/html"}, text="<html>")
        raise httpx2.ConnectError("refused", request=request)

    transport = httpx2.MockTransport(absent)
    with Client("http://x", "", transport=transport) as client, pytest.raises(UnavailableError) as caught:
        list(client.events("00000000-0000-0000-0000-000000000000"))
    assert (caught.value.code, tries) == ("service_unreachable", 13)


def test_events_of_a_study_read_to_its_end_are_none(api: Any, client: Client) -> None:
    study = client.create_study(SPEC)
    client.cancel_study(study.id)
    events = list(client.events(study.id))
    assert [event.kind for event in events] == ["queued", "cancelled"]
    assert list(client.events(study.id, after=events[0].id)) == events[1:]
    assert list(client.events(study.id, after=events[-1].id)) == []


def test_events_of_an_unknown_study_are_a_problem(client: Client) -> None:
    with pytest.raises(NotFoundError):
        next(client.events("00000000-0000-0000-0000-000000000000"))


def test_an_absent_service_is_named_with_the_remedy() -> None:
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with Client(url, "key") as client, pytest.raises(UnavailableError) as caught:
            client.list_methods()
    assert caught.value.code == "service_unreachable" and caught.value.exit_code == 3
    assert url in caught.value.detail and "cliptune serve" in caught.value.detail


@pytest.mark.parametrize("url", ["", "nonsense", "ftp://x", "http://", "http://[::1"])
def test_an_address_that_is_none_is_unreachable(url: str) -> None:
    with pytest.raises(UnavailableError) as caught, Client(url, "") as client:
        client.version()
    assert caught.value.code == "service_unreachable"


def test_another_programs_answer_is_not_taken_for_ours() -> None:
    for status in (200, 404, 500):
        transport = httpx2.MockTransport(
            lambda request, status=status: httpx2.Response(status, text="<html>")
        )
        with Client("http://x", "", transport=transport) as client, pytest.raises(UnavailableError) as caught:
            client.version()
        assert caught.value.code == "unexpected_response"


def test_a_short_outage_is_bridged_for_reads_and_submissions(api: Any) -> None:
    tries: list[str] = []

    def flaky(request: httpx2.Request) -> httpx2.Response:
        tries.append(request.headers.get("idempotency-key", ""))
        if len(tries) < 3:
            raise httpx2.ReadError("cut", request=request)
        answer = api.http.request(
            request.method, request.url.path, content=request.content, headers=dict(request.headers)
        )
        return httpx2.Response(answer.status_code, content=answer.content)

    with Client("http://127.0.0.1", api.key, transport=httpx2.MockTransport(flaky)) as client:
        assert client.create_study(SPEC).state is JobState.QUEUED
    assert len(tries) == 3 and len(set(tries)) == 1 and tries[0]


def test_the_access_key_is_not_in_errors(api: Any) -> None:
    with Client("http://127.0.0.1:1", api.key) as client, pytest.raises(UnavailableError) as caught:
        client.version()
    assert api.key not in str(caught.value) and api.key not in repr(client)


def test_a_number_that_is_none_reaches_the_service_and_is_named(client: Client) -> None:
    with pytest.raises(InvalidRequestError, match="effect") as caught:
        client.create_study({"workload": "charlm-rnn", "effect": float("nan")})
    assert caught.value.errors[0]["pointer"] == "/effect"


@pytest.mark.parametrize("study_id", ["../workers", "a/b", "?x", "", "é"])
def test_an_id_never_leaves_its_place_in_the_path(client: Client, study_id: str) -> None:
    with pytest.raises(NotFoundError):
        client.cancel_study(study_id)


@pytest.mark.parametrize("key", ["é", "a\nb"])
def test_a_key_that_cannot_be_sent_is_refused(key: str) -> None:
    with pytest.raises(UnauthorizedError, match="copy it whole"):
        Client("http://127.0.0.1", key)
