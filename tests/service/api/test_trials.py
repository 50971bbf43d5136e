"""Asking and telling over HTTP: answers, problems, keys, and bodies that must not break the service."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from datetime import datetime
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.api.app import create_app, end_streams
from service.api.problems import KINDS
from service.lanes import load_lanes
from service.schemas import DirectiveOut, LeaseOut, WaitingOut
from service.settings import Settings
from tuner.evidence import Stage
from tuner.spec import ClipSetting

NOBODY = "00000000-0000-0000-0000-000000000000"


def assert_problem(response: Any, status: int, code: str, *words: str, pointer: str | None = None) -> None:
    problem = response.json()
    assert (response.status_code, problem["code"]) == (status, code), problem
    assert response.headers["content-type"] == "application/problem+json" and code in KINDS
    for word in words:
        assert word in problem["detail"], problem["detail"]
    if pointer is not None:
        assert pointer in [error["pointer"] for error in problem["errors"]], problem


def test_a_lane_goes_from_asking_to_its_end(lanes: Any) -> None:
    response = lanes.ask()
    lease = LeaseOut.model_validate_json(response.content)
    assert (response.status_code, response.headers["cache-control"]) == (200, "no-store")
    assert (lease.trial_id, lease.study_id, lease.number, lease.seed) == (
        lanes.trial_id, lanes.study_id, 0, 0,
    )  # fmt: skip
    assert (lease.stage, lease.workload, lease.parameters) == (Stage.SEARCH, "my model", {"depth": 3})
    assert lease.setting == ClipSetting(method="global_norm", threshold=0.35)
    assert (lease.objective, lease.num_steps, lease.rung_steps) == ("val_loss", 90, (10, 30, 90))
    assert (lease.lease_seconds, lease.reference_norm) == (60.0, None)
    token = {"lease_token": lease.lease_token}
    told = lanes.post("report", token | {"step": 10, "value": 1.5, "norms": [0.5, 2]})
    directive = DirectiveOut.model_validate_json(told.content)
    assert (told.status_code, directive.go_on, directive.reason) == (200, True, "")
    assert directive.expires_at is not None and directive.expires_at >= lease.expires_at
    alive = lanes.post("heartbeat", token).json()
    assert alive["go_on"] and datetime.fromisoformat(alive["expires_at"]) >= directive.expires_at
    record = {"clip_fraction": 0.5, "mean_scale": 0.9, "num_steps": 90, "seconds": 3}
    ended = lanes.post("complete", token | {"outcome": "complete", "value": 1, "record": record})
    assert (ended.status_code, ended.json()) == (200, {"state": "complete"})
    assert lanes.post("complete", token | {"outcome": "complete"}).json() == {"state": "complete"}
    with lanes.api.database.read() as session:
        lane, _ = load_lanes(session, lanes.study_id, [lanes.trial_id])
    assert (lane.value, lane.record, lane.norms, lane.reports) == (1.0, record, (0.5, 2.0), {10: 1.5})


def test_the_objective_has_the_name_that_the_study_gives(make_lanes: Any) -> None:
    lanes = make_lanes(objective="perplexity", num_rungs=1)
    lease = lanes.ask().json()
    assert (lease["objective"], lease["rung_steps"]) == ("perplexity", [90])


def test_who_finds_no_lane_is_told_when_to_come_back(make_lanes: Any) -> None:
    lanes = make_lanes(num_lanes=1)
    lanes.token()
    response = lanes.ask("b")
    waiting = WaitingOut.model_validate_json(response.content)
    assert (response.status_code, response.headers["retry-after"], waiting.retry_after) == (202, "1", 1)
    assert response.json()["state"] == "waiting" and "ask again" in waiting.detail


def test_asking_waits_for_a_lane(make_lanes: Any) -> None:
    lanes = make_lanes(num_lanes=1)
    token = lanes.token()
    answers: list[Any] = []
    waiter = threading.Thread(target=lambda: answers.append(lanes.ask("b", wait=30)))
    waiter.start()
    time.sleep(0.3)
    body = {"lease_token": token, "outcome": "failed", "cause": "device_lost"}
    assert lanes.post("complete", body).json() == {"state": "waiting"}
    waiter.join(timeout=20)
    assert answers[0].status_code == 200 and answers[0].json()["lease_token"].startswith("0.2.")


def test_who_hangs_up_while_waiting_is_given_no_lane(make_lanes: Any) -> None:
    """A lane leased to nobody would be lost for the time of its lease, and lost too often it fails."""
    lanes = make_lanes(num_lanes=1)
    token = lanes.token()
    body = json.dumps({"client_id": "gone", "wait": 30}).encode()
    hangs_up = asyncio.Event()
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await hangs_up.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        del message

    async def hang_up() -> None:
        path = f"/v1/studies/{lanes.study_id}/trials:ask"
        fields = {"host": "127.0.0.1", "authorization": f"Bearer {lanes.api.key}"}
        fields |= {"content-type": "application/json", "content-length": str(len(body))}
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in fields.items()],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
        }  # fmt: skip
        app = create_app(lanes.api.settings, lanes.api.database)
        waiting = asyncio.create_task(app(scope, receive, send))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        hangs_up.set()
        await asyncio.wait_for(waiting, timeout=10)

    asyncio.run(hang_up())
    given_back = {"lease_token": token, "outcome": "failed", "cause": "device_lost"}
    assert lanes.post("complete", given_back).json() == {"state": "waiting"}
    assert lanes.states() == ["waiting"]


def test_waiting_ends_with_the_server(lanes: Any) -> None:
    lanes.token("a"), lanes.token("b")
    app = create_app(lanes.api.settings, lanes.api.database)
    headers = {"Authorization": f"Bearer {lanes.api.key}"}
    with TestClient(app, base_url="http://127.0.0.1", headers=headers) as http:
        end_streams(app)
        path = f"/v1/studies/{lanes.study_id}/trials:ask"
        assert http.post(path, json={"client_id": "c", "wait": 30}).status_code == 202


def test_a_diverged_training_is_told_to_stop(lanes: Any) -> None:
    for client, told in (("a", {"value": None}), ("b", {"value": 1.0, "diverged": True})):
        token = lanes.token(client)
        stopped = lanes.post("report", {"lease_token": token, "step": 5, **told}).json()
        assert stopped == {"go_on": False, "reason": "the training diverged at step 5", "expires_at": None}
    assert lanes.states() == ["diverged", "diverged"]


def test_norms_alone_are_no_objective(lanes: Any) -> None:
    token = lanes.token()
    assert lanes.post("report", {"lease_token": token, "step": 5, "norms": [1.0]}).json()["go_on"]
    assert_problem(
        lanes.post("complete", {"lease_token": token, "outcome": "complete"}), 422, "value_missing",
        "report it at the last step, 90", pointer="/value",
    )  # fmt: skip


def test_a_failed_training_is_counted_by_its_cause(lanes: Any) -> None:
    failed = {"outcome": "failed", "error": "ran out of \x00 memory", "record": None}
    one = lanes.post("complete", {"lease_token": lanes.token(), "cause": "oom", **failed})
    assert one.json() == {"state": "fail"}
    other = lanes.post("complete", {"lease_token": lanes.token(), "outcome": "failed"})
    assert other.json() == {"state": "waiting"}
    with lanes.api.database.read() as session:
        first, second = load_lanes(session, lanes.study_id, [lanes.trial_id])
    assert (first.last_cause, first.last_error) == ("oom", "ran out of \\x00 memory")
    assert (second.last_cause, second.attempt) == ("bug", 1)


def test_problems_have_their_codes(lanes: Any, api: Any) -> None:
    token = lanes.token()
    report = {"lease_token": token, "step": 10, "value": 1.5}
    assert lanes.post("report", report).status_code == 200
    assert_problem(lanes.post("report", report | {"value": 2}), 409, "report_differs", "1.5", "2.0")
    assert_problem(lanes.post("report", report | {"step": 9}), 409, "step_not_rising", "rising")
    assert_problem(
        lanes.post("report", report | {"step": 91}), 422, "step_out_of_range", "90", pointer="/step"
    )
    assert_problem(lanes.post("report", report, trial_id=NOBODY), 404, "trial_not_found", "trials:ask")
    assert_problem(lanes.post("report", report, trial_id="x"), 404, "trial_not_found", "UUID")
    for verb, rest in (("heartbeat", {}), ("complete", {"outcome": "complete"})):
        bad = lanes.post(verb, {"lease_token": "hunter2", **rest})
        assert_problem(bad, 422, "invalid_request", "trials:ask", pointer="/lease_token")
    lanes.token()  # the same client again
    for verb, rest in (("heartbeat", {}), ("report", report), ("complete", {"outcome": "complete"})):
        assert_problem(lanes.post(verb, {**rest, "lease_token": token}), 409, "lease_lost", "another lane")
    trained_here = api.study()["id"]
    response = api.http.post(f"/v1/studies/{trained_here}/trials:ask", json={"client_id": "a"})
    assert_problem(response, 409, "not_external", "external")
    api.http.post(f"/v1/studies/{lanes.study_id}/cancel")
    assert_problem(lanes.ask("b"), 409, "study_ended", "nothing left to train")


# --- keys ---


def test_a_worker_key_may_ask_and_tell_and_nothing_else(lanes: Any, api: Any) -> None:
    worker = api.new_key(scopes=["worker"])
    token = lanes.ask(key=worker).json()["lease_token"]
    assert lanes.post("heartbeat", {"lease_token": token}, key=worker).status_code == 200
    assert lanes.post("report", {"lease_token": token, "step": 1, "value": 1}, key=worker).status_code == 200
    done = lanes.post("complete", {"lease_token": token, "outcome": "complete"}, key=worker)
    assert done.json() == {"state": "complete"}
    http = api.with_key(worker)
    for path in ("/v1/studies", f"/v1/studies/{lanes.study_id}/trials", "/v1/workloads"):
        assert_problem(http.get(path), 403, "forbidden", "this needs read")
    assert_problem(http.post(f"/v1/studies/{lanes.study_id}/cancel"), 403, "forbidden", "needs write")


@pytest.mark.parametrize(
    ("scopes", "status"),
    [([], 403), (["read"], 403), (["worker"], 200), (["write"], 200), (["admin"], 200)],
)
def test_writing_includes_training(lanes: Any, api: Any, scopes: list[str], status: int) -> None:
    response = lanes.ask(key=api.new_key(scopes=scopes))
    assert response.status_code == status
    if status == 403:
        assert_problem(response, 403, "forbidden", "this needs worker")


def test_another_tenant_sees_nothing(lanes: Any, api: Any) -> None:
    token = lanes.token()
    other = api.new_key(tenant_id="other")
    assert_problem(lanes.ask(key=other), 404, "study_not_found")
    for verb, rest in (
        ("heartbeat", {}),
        ("report", {"step": 1, "value": 1.0}),
        ("complete", {"outcome": "complete", "value": 1.0}),
    ):
        response = lanes.post(verb, {"lease_token": token, **rest}, key=other)
        assert_problem(response, 404, "trial_not_found")
    assert lanes.states()[0] == "leased"


def test_the_lifespan_ends_expired_leases(lanes: Any, api: Any) -> None:
    quick = Settings(
        home=api.settings.home,
        reap_seconds=0.05,
        lease_seconds=0.2,
        renew_seconds=0.05,
        kill_grace_seconds=0.01,
    )
    headers = {"Authorization": f"Bearer {api.key}"}
    with TestClient(create_app(quick, api.database), base_url="http://127.0.0.1", headers=headers) as http:
        http.post(f"/v1/studies/{lanes.study_id}/trials:ask", json={"client_id": "a"})
        deadline = time.monotonic() + 10
        while lanes.states()[0] == "leased" and time.monotonic() < deadline:
            time.sleep(0.05)
    assert lanes.states() == ["waiting", "waiting"]
