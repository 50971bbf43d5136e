"""Studies over HTTP, on both databases."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import func, select

from service.db.models import IdempotencyRow, JobRow, StudyRow
from service.jobs.lease import Lease
from service.states import JobState


def test_a_submission_is_answered_with_its_place_and_is_queued(api: Any) -> None:
    response = api.submit(name="first", parameters={"learning_rate": 4})
    study = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"/v1/studies/{study['id']}"
    assert response.headers["retry-after"] == "5"
    assert (study["state"], study["done"], study["name"]) == ("queued", False, "first")
    assert study["spec"]["parameters"] == {"hidden": 64, "learning_rate": 4.0, "optimizer": "sgd"}
    assert study["created_at"].endswith("Z")
    assert study["result"] is None and study["error"] is None
    assert api.acquire().study_id == study["id"]


def test_a_repeated_submission_gives_the_same_study(api: Any) -> None:
    first, again = api.submit(key="k"), api.submit(key="k")
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.headers["idempotency-replayed"] == "true"
    assert first.json() == again.json()


def test_an_idempotency_key_with_another_body_is_refused(api: Any) -> None:
    api.submit(key="k")
    response = api.submit(key="k", num_trials=5)
    assert (response.status_code, response.json()["code"]) == (422, "idempotency_key_reused")
    assert "send a new key" in response.json()["detail"]


def test_concurrent_submissions_with_one_key_make_one_study(api: Any) -> None:
    start = threading.Barrier(8)

    def submit(_: int) -> str:
        start.wait()
        return str(api.submit(key="same", name="same").json()["id"])

    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(submit, range(8)))
    assert len(ids) == 1
    with api.database.read() as session:
        for table in (StudyRow, JobRow, IdempotencyRow):
            assert session.execute(select(func.count()).select_from(table)).scalar_one() == 1


def test_concurrent_submissions_of_one_name_make_one_study(api: Any) -> None:
    start = threading.Barrier(6)

    def submit(number: int) -> str:
        start.wait()
        return str(api.submit(key=f"k{number}", name="same").json()["id"])

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(submit, range(6)))) == 1


def test_a_name_with_the_same_question_gives_its_study(api: Any) -> None:
    study = api.study(name="mine")
    response = api.submit(name="mine")
    assert (response.status_code, response.json()["id"]) == (200, study["id"])


def test_a_name_with_another_question_is_refused_with_the_difference(api: Any) -> None:
    api.study(name="mine")
    response = api.submit(name="mine", num_trials=7, effect=0.5)
    problem = response.json()
    assert (response.status_code, problem["code"]) == (409, "name_taken")
    assert [error["pointer"] for error in problem["errors"]] == ["/effect", "/num_trials"]
    assert "choose another name" in problem["detail"]


def test_pages_go_through_all_studies_newest_first(api: Any) -> None:
    ids = [api.study()["id"] for _ in range(5)]
    seen, cursor = [], None
    for _ in range(3):
        params = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        response = api.http.get("/v1/studies", params=params)
        page = response.json()
        link = response.headers.get("link", "")
        assert link == (
            f'</v1/studies?limit=2&cursor={page["next_cursor"]}>; rel="next"' if page["next_cursor"] else ""
        )
        seen += [study["id"] for study in page["items"]]
        cursor = page["next_cursor"]
    assert cursor is None
    assert set(seen) == set(ids) and len(seen) == 5
    times = {study["id"]: study["created_at"] for study in api.http.get("/v1/studies").json()["items"]}
    assert [times[one] for one in seen] == sorted(times.values(), reverse=True)


@pytest.mark.parametrize("cursor", ["x", "%00", "c3R1ZGllczoxOjI", "é"])
def test_a_made_up_cursor_is_refused(api: Any, cursor: str) -> None:
    response = api.http.get("/v1/studies", params={"cursor": cursor})
    assert (response.status_code, response.json()["code"]) == (422, "invalid_cursor")


def test_a_cursor_of_one_list_is_refused_by_another(api: Any) -> None:
    study = api.study()
    api.study()
    cursor = api.http.get("/v1/studies", params={"limit": 1}).json()["next_cursor"]
    response = api.http.get(f"/v1/studies/{study['id']}/trials", params={"cursor": cursor})
    assert response.json()["code"] == "invalid_cursor"


def test_studies_are_found_by_the_beginning_of_their_id(api: Any) -> None:
    study = api.study()
    api.study()
    found = api.http.get("/v1/studies", params={"prefix": study["id"][:13]}).json()["items"]
    assert [one["id"] for one in found] == [study["id"]]


def test_another_tenant_sees_nothing(api: Any) -> None:
    study = api.study(name="mine")
    recommendation = api.succeed(study["id"])
    other = api.with_key(api.new_key(tenant_id="other"))
    assert other.get("/v1/studies").json()["items"] == []
    for path in ("", "/trials", "/events", "/recommendation"):
        response = other.get(f"/v1/studies/{study['id']}{path}")
        assert (response.status_code, response.json()["code"]) == (404, "study_not_found")
    assert other.post(f"/v1/studies/{study['id']}/cancel").status_code == 404
    assert other.get(f"/v1/recommendations/{recommendation}").json()["code"] == "recommendation_not_found"
    assert other.get("/v1/recommendations", params={"workload": "charlm-rnn"}).json()["match"] == "none"
    fresh = other.post("/v1/studies", json=api.body(name="mine"), headers={"Idempotency-Key": "k"})
    assert fresh.status_code == 202


def test_a_finished_study_has_its_result(api: Any) -> None:
    study = api.study()
    recommendation_id = api.succeed(study["id"])
    after = api.http.get(f"/v1/studies/{study['id']}").json()
    assert (after["state"], after["done"], after["num_trials_ended"]) == ("succeeded", True, 4)
    assert after["result"]["id"] == recommendation_id
    assert after["result"]["setting"] == {
        "method": "global_norm",
        "threshold": 0.42,
        "learning_rate_scale": 1.0,
    }
    assert after["result"]["threshold_name"] == "max_norm"
    assert after["error"] is None and after["finished_at"] is not None
    assert api.http.get(f"/v1/studies/{study['id']}/recommendation").json() == after["result"]
    assert api.http.get(f"/v1/recommendations/{recommendation_id}").json() == after["result"]


def test_a_failed_study_says_why(api: Any) -> None:
    study = api.study()
    api.queue.finish(api.acquire(), JobState.FAILED, "six trials failed")
    after = api.http.get(f"/v1/studies/{study['id']}").json()
    assert after["result"] is None
    assert after["error"] == {"code": "study_failed", "detail": "six trials failed"}


def test_no_recommendation_yet_names_the_state(api: Any) -> None:
    study = api.study()
    response = api.http.get(f"/v1/studies/{study['id']}/recommendation")
    assert (response.status_code, response.json()["code"]) == (404, "no_recommendation_yet")
    assert "queued" in response.json()["detail"] and "wait" in response.json()["detail"]


def test_a_reader_is_told_when_nothing_changed(api: Any) -> None:
    study = api.study()
    path = f"/v1/studies/{study['id']}"
    first = api.http.get(path)
    again = api.http.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert first.headers["cache-control"] == "no-store"
    api.acquire()
    changed = api.http.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert (changed.status_code, changed.json()["state"]) == (200, "running")


def test_waiting_ends_when_the_study_does(api: Any) -> None:
    study = api.study()
    ending = threading.Timer(0.3, lambda: api.http.post(f"/v1/studies/{study['id']}/cancel"))
    ending.start()
    began = time.monotonic()
    after = api.http.get(f"/v1/studies/{study['id']}", params={"wait": 20}).json()
    ending.join()
    assert after["state"] == "cancelled"
    assert time.monotonic() - began < 10


def test_waiting_ends_when_the_time_is_over(api: Any) -> None:
    study = api.study()
    assert api.http.get(f"/v1/studies/{study['id']}", params={"wait": 0.2}).json()["state"] == "queued"


def test_a_queued_study_is_cancelled_at_once_and_only_once(api: Any) -> None:
    study = api.study()
    response = api.http.post(f"/v1/studies/{study['id']}/cancel")
    assert (response.status_code, response.json()["state"]) == (202, "cancelled")
    assert response.json()["error"]["code"] == "study_cancelled"
    again = api.http.post(f"/v1/studies/{study['id']}/cancel")
    assert (again.status_code, again.json()["code"]) == (409, "study_finished")
    assert "nothing left to do" in again.json()["detail"]


def test_a_running_study_is_asked_to_stop(api: Any) -> None:
    study = api.study()
    lease: Lease = api.acquire()
    for _ in range(2):
        response = api.http.post(f"/v1/studies/{study['id']}/cancel")
        assert (response.status_code, response.json()["state"]) == (202, "running")
    assert api.queue.renew(lease) is True


def test_a_succeeded_study_cannot_be_cancelled(api: Any) -> None:
    study = api.study()
    api.succeed(study["id"])
    response = api.http.post(f"/v1/studies/{study['id']}/cancel")
    assert (response.status_code, response.json()["code"]) == (409, "study_finished")
    assert "already succeeded" in response.json()["detail"]


def test_trials_come_in_pages_with_rungs_and_lanes(api: Any) -> None:
    study = api.study()
    api.write_trials(study["id"], 5)
    path = f"/v1/studies/{study['id']}/trials"
    first = api.http.get(path, params={"limit": 3}).json()
    rest = api.http.get(path, params={"limit": 3, "cursor": first["next_cursor"]}).json()
    trials = first["items"] + rest["items"]
    assert [trial["number"] for trial in trials] == [0, 1, 2, 3, 4] and rest["next_cursor"] is None
    off, clipped = trials[0], trials[1]
    assert off["setting"] == {"method": "none", "threshold": None, "learning_rate_scale": 1.0}
    assert (off["stage"], off["seeds"]) == ("search", [0, 1])
    assert (off["num_diverged"], off["mean"], off["standard_error"]) == (1, 1.8, None)
    assert off["rungs"]["9"] == {"0": 1.1, "1": None}
    assert clipped["mean"] == pytest.approx(1.85) and clipped["standard_error"] == pytest.approx(0.05)
    assert clipped["clip_fraction"] == 0.25 and len(clipped["lanes"]) == 2
    assert clipped["lanes"][0]["norms"]["q99"] == 0.47


def test_events_are_streamed_from_the_last_one_seen_to_the_end(api: Any) -> None:
    study = api.study()
    lease = api.acquire()
    with api.queue.held(lease) as session:
        api.queue.append_event(session, lease, "progress", {"step": 7})
    api.recommend(study["id"])
    api.queue.finish(lease, JobState.SUCCEEDED)
    events = read_events(api, study["id"])
    assert [event["kind"] for event in events] == ["queued", "acquired", "progress", "succeeded"]
    assert events[2]["payload"] == {"step": 7}
    cut = events[1]["id"]
    for rest in (
        read_events(api, study["id"], headers={"Last-Event-ID": str(cut)}),
        read_events(api, study["id"], params={"after": cut}),
        read_events(api, study["id"], params={"after": 0}, headers={"Last-Event-ID": str(cut)}),
    ):
        assert rest == events[2:]
    assert read_events(api, study["id"], params={"after": events[-1]["id"]}) == []


def test_stream_ends_when_its_key_is_revoked(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.api.routes.events._KEY_SECONDS", 0.0)
    study = api.study()
    reader = api.with_key(api.new_key(scopes=["read"]))
    (key,) = [each for each in api.http.get("/v1/keys").json()["items"] if each["scopes"] == ["read"]]
    threading.Timer(0.3, api.http.delete, [f"/v1/keys/{key['id']}"]).start()
    response = reader.get(f"/v1/studies/{study['id']}/events")
    assert response.status_code == 200 and "event: queued" in response.text
    assert not any(f"event: {kind}" in response.text for kind in ("succeeded", "failed", "cancelled"))
    again = reader.get(f"/v1/studies/{study['id']}/events")
    assert (again.status_code, again.json()["code"]) == (401, "key_revoked")


def test_stream_that_resumes_past_the_newest_event_ends_with_its_study(
    api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader's id may be of a database that was restored from a copy: nothing it has not seen ever comes."""
    monkeypatch.setattr("service.api.routes.events._KEY_SECONDS", 0.0)
    study_id = api.study()["id"]
    threading.Timer(0.3, api.http.post, [f"/v1/studies/{study_id}/cancel"]).start()
    assert read_events(api, study_id, params={"after": 2**62}) == []


def read_events(api: Any, study_id: str, **request: Any) -> list[dict[str, Any]]:
    response = api.http.get(f"/v1/studies/{study_id}/events", **request)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    events = []
    for block in response.text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "data" in fields:
            event = json.loads(fields["data"])
            assert (fields["id"], fields["event"]) == (str(event["id"]), event["kind"])
            events.append(event)
    return events


def test_priority_orders_the_queue_and_stays_with_an_extension(api: Any) -> None:
    later = api.study(priority=-3)
    first = api.study(seed=5)
    urgent = api.study(seed=6, priority=10)
    assert [each["priority"] for each in (later, first, urgent)] == [-3, 0, 10]
    taken = [api.queue.acquire("worker", ["study"]) for _ in range(3)]
    assert [lease.study_id for lease in taken] == [urgent["id"], first["id"], later["id"]]
    assert [lease.priority for lease in taken] == [10, 0, -3]


def test_going_before_everybody_takes_an_admin(api: Any) -> None:
    http = api.with_key(api.new_key(scopes=("read", "write")))
    refused = http.post("/v1/studies", json=api.body(priority=1), headers={"Idempotency-Key": "p"})
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert "leave it at 0 or below" in refused.json()["detail"]
    low = http.post("/v1/studies", json=api.body(priority=-1), headers={"Idempotency-Key": "q"})
    assert (low.status_code, low.json()["priority"]) == (202, -1)


@pytest.mark.parametrize("priority", [11, -11, True, "high", 0.5])
def test_priority_has_bounds(api: Any, priority: object) -> None:
    response = api.submit(priority=priority)
    assert response.status_code == 422
    assert any("/priority" in each["pointer"] for each in response.json()["errors"])
