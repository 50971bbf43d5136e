"""Following a study over wires that are cut, proxies that hold streams back, and services that come and go."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from service.client import Client
from service.client.follow import follow
from service.errors import UnavailableError
from service.schemas import EventOut, StudyOut

STUDY_ID = "0f5a1b2c-0000-4000-8000-000000000000"
STUDY = {
    "id": STUDY_ID,
    "name": None,
    "state": "running",
    "done": False,
    "workload": "charlm-rnn",
    "spec": {},
    "fingerprint": "0" * 16,
    "created_at": "2026-01-01T00:00:00Z",
    "started_at": None,
    "finished_at": None,
    "attempt": 1,
    "num_trials_ended": 3,
    "result": None,
    "error": None,
}
DONE = STUDY | {"state": "cancelled", "done": True}


def stream(*blocks: str) -> httpx2.Response:
    return httpx2.Response(
        200, headers={"content-type": "text/event-stream"}, content="".join(blocks).encode()
    )


def block(number: int, kind: str, **payload: Any) -> str:
    event = {"id": number, "kind": kind, "created_at": "2026-01-01T00:00:00Z", "payload": payload}
    return f"event: {kind}\nid: {number}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What would have been slept, without the jitter."""
    slept: list[float] = []
    monkeypatch.setattr("service.client.follow.time.sleep", slept.append)
    monkeypatch.setattr("service.client.follow.random.uniform", lambda low, high: 1.0)
    return slept


def seen(answers: Callable[[httpx2.Request], httpx2.Response]) -> list[EventOut | StudyOut | None]:
    with Client("http://x", "", transport=httpx2.MockTransport(answers)) as client:
        return list(follow(client, STUDY_ID))


def kinds(found: list[EventOut | StudyOut | None]) -> list[str]:
    return [each.kind for each in found if isinstance(each, EventOut)]


def test_pings_are_signs_of_life(waits: list[float]) -> None:
    found = seen(
        lambda request: stream(": ping\n\n", ": ping\n\n", block(1, "queued"), block(2, "cancelled"))
    )
    assert kinds(found) == ["queued", "cancelled"]
    assert found[:3] == [None, None, None], "the opening and both pings"
    assert not waits


def test_text_with_other_line_ends_stays_one_event(waits: list[float]) -> None:
    text = "a\u2028b\u0085c\x0bd"
    found = seen(lambda request: stream(block(1, "failed", error=text)))
    assert [each.payload for each in found if isinstance(each, EventOut)] == [{"error": text}]
    assert not waits


def test_carriage_returns_of_a_proxy_do_no_harm(waits: list[float]) -> None:
    found = seen(lambda request: stream(block(1, "cancelled").replace("\n", "\r\n")))
    assert kinds(found) == ["cancelled"] and not waits


def test_proxy_that_holds_streams_back_leaves_looks_at_the_study(waits: list[float]) -> None:
    looks = 0

    def answers(request: httpx2.Request) -> httpx2.Response:
        nonlocal looks
        if request.url.path.endswith("/events"):
            raise httpx2.ReadTimeout("silent", request=request)
        looks += 1
        return httpx2.Response(200, json=DONE if looks == 4 else STUDY)

    found = seen(answers)
    states = [str(each.state) for each in found if isinstance(each, StudyOut)]
    assert states == ["running"] * 3 + ["cancelled"]
    assert waits == [0.1, 0.5, 1.0]


@pytest.mark.parametrize(
    ("answer", "longest"),
    [
        (httpx2.Response(502, text="<html>bad gateway"), 2.0),
        (httpx2.Response(429, headers={"Retry-After": "7"}, json={}), 7.0),
        (httpx2.Response(503, headers={"Retry-After": "9999"}, json={}), 60.0),
        (httpx2.Response(503, headers={"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, json={}), 2.0),
    ],
    ids=["a proxy's page", "too many requests", "an hour", "a date"],
)
def test_service_that_is_away_is_asked_again_when_it_says(
    waits: list[float], answer: httpx2.Response, longest: float
) -> None:
    problem = {
        "type": "/errors/x", "title": "t", "status": answer.status_code, "detail": "d", "instance": "/",
        "code": "unavailable", "request_id": "r",
    }  # fmt: skip
    is_ours = answer.headers["content-type"] == "application/json"
    tries = 0

    def answers(request: httpx2.Request) -> httpx2.Response:
        nonlocal tries
        tries += 1
        if tries > 4:
            return stream(block(1, "cancelled"))
        content = json.dumps(problem).encode() if is_ours else answer.content
        return httpx2.Response(answer.status_code, headers=answer.headers, content=content)

    assert kinds(seen(answers)) == ["cancelled"]
    # Long waits are slept in parts, between signs of life.
    assert max(waits) <= 10.0
    assert sum(waits) == pytest.approx(4 * longest if longest > 2 else 0.1 + 0.5 + 1.0 + 2.0)


def test_another_program_at_the_address_is_no_outage(waits: list[float]) -> None:
    with pytest.raises(UnavailableError) as caught:
        seen(lambda request: httpx2.Response(404, text="<html>"))
    assert caught.value.code == "unexpected_response" and not waits


def test_event_of_another_program_is_no_traceback(waits: list[float]) -> None:
    for text in ("{}", "no json", '{"id": "x"}'):
        with pytest.raises(UnavailableError, match="is none of cliptune's") as caught:
            seen(lambda request, text=text: stream(f"data: {text}\n\n"))  # type: ignore[misc]
        assert caught.value.code == "unexpected_response"
    assert not waits


def test_event_without_an_end_is_not_read_for_ever(
    waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.client.connection._MAX_EVENT", 1000)

    def flood() -> Iterator[bytes]:
        yield b"data: "
        while True:
            yield b"x" * 600

    def answers(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=flood())

    with pytest.raises(UnavailableError, match="more than 1000 characters"):
        seen(answers)
    assert not waits
