"""Health, readiness, metrics, pages, headers; the committed description; what the process must not load."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.api.app import create_app
from service.api.openapi import render
from service.api.problems import KINDS
from service.db.session import Database
from service.keys import Keyring
from service.settings import Settings

ROOT = Path(__file__).parents[3]


def test_ready_needs_a_worker_of_the_last_minute(api: Any) -> None:
    assert api.with_key(None).get("/healthz").json() == {"status": "ok"}
    api.add_worker(age_seconds=61)
    refused = api.with_key(None).get("/readyz")
    assert (refused.status_code, refused.json()["code"]) == (503, "no_worker")
    assert "cliptune worker" in refused.json()["detail"]
    api.add_worker()
    assert api.with_key(None).get("/readyz").json() == {"ready": True, "workers": 1}
    workers = api.http.get("/v1/workers").json()["items"]
    assert [worker["alive"] for worker in workers] == [True, False]


def test_the_catalog_lists_methods_and_workloads(api: Any) -> None:
    methods = {method["name"]: method for method in api.http.get("/v1/methods").json()["items"]}
    assert methods["value"]["threshold_name"] == "clip_value" and methods["none"]["threshold_name"] is None
    assert methods["value"]["kappa_low"] == 0.001 and methods["value"]["threshold_low"] is None
    assert methods["autoclip"]["kappa_low"] is None and methods["autoclip"]["threshold_high"] == 99.0
    (workload,) = api.http.get("/v1/workloads").json()["items"]
    assert workload["parameters"]["properties"]["learning_rate"]["maximum"] == 100.0


def test_metrics_count_requests_by_route_and_jobs_by_state(api: Any) -> None:
    api.study()
    api.http.get("/v1/studies/x")
    api.http.get("/nowhere/at/all")
    text = api.http.get("/metrics").text
    assert 'cliptune_http_requests_total{method="POST",route="/v1/studies",status="202"} 1.0' in text
    assert 'route="/v1/studies/{study_id}",status="404"' in text
    assert 'route="unmatched",status="404"' in text and "nowhere" not in text
    assert 'cliptune_jobs{state="queued"} 1.0' in text
    assert 'cliptune_jobs{state="running"} 0.0' in text


def test_two_applications_do_not_share_metrics(api: Any) -> None:
    api.http.get("/v1/methods")
    other = TestClient(create_app(api.settings, api.database), base_url="http://127.0.0.1")
    assert "/v1/methods" not in other.get("/metrics", headers={"X-API-Key": api.key}).text


@pytest.mark.parametrize("code", sorted(KINDS))
def test_every_code_has_its_page(code: str) -> None:
    from service.api.problems import page

    text = page(code)
    assert text is not None and KINDS[code].title.replace("'", "&#x27;") in text and "What to do" in text


def test_pages_are_served_without_a_key(api: Any) -> None:
    bare = api.with_key(None)
    assert "No such study" in bare.get("/errors/study_not_found").text
    assert bare.get("/errors/<script>").json()["code"] == "route_not_found"
    docs = bare.get("/docs")
    assert "POST /v1/studies" in docs.text and "<script" not in docs.text
    assert bare.get("/openapi.json").json()["info"]["title"] == "cliptune"


def test_every_answer_has_the_security_headers(api: Any) -> None:
    for path in ("/v1/methods", "/nowhere", "/docs", "/v1/studies/x"):
        headers = api.http.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
        assert len(headers.get_list("x-request-id")) == 1


@pytest.mark.parametrize("given", ["", "a b", "a" * 65, "é"])
def test_a_request_id_of_another_form_is_replaced(api: Any, given: str) -> None:
    response = api.http.get("/healthz", headers={"X-Request-ID": given.encode("latin-1")})
    assert response.headers["x-request-id"] not in ("", given)


def test_the_lifespan_ends_expired_leases_and_notes_use(database: Database, tmp_path: Path, api: Any) -> None:
    study = api.study()
    settings = Settings(
        home=tmp_path, reap_seconds=0.05, lease_seconds=0.2, renew_seconds=0.05, kill_grace_seconds=0.01
    )
    from service.jobs.queue import Queue

    Queue(database, lease_seconds=0.05).acquire("w", ["study"])
    with TestClient(create_app(settings, database), base_url="http://127.0.0.1") as http:
        deadline = time.monotonic() + 10
        state = "running"
        while state == "running" and time.monotonic() < deadline:
            time.sleep(0.05)
            state = http.get(f"/v1/studies/{study['id']}", headers={"X-API-Key": api.key}).json()["state"]
    assert state == "queued"


def test_the_committed_description_is_this_versions() -> None:
    committed = ROOT / "docs" / "reference" / "openapi.json"
    assert committed.read_text() == render(), "run `python -m service.api.openapi` and review the difference"


def test_operation_ids_are_stable_and_unique(api: Any) -> None:
    operations = [each for path in api.app.openapi()["paths"].values() for each in path.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(ids) == len(set(ids)) and {"create_study", "stream_events", "find_recommendation"} <= set(ids)
    for operation in operations:
        assert "application/problem+json" in operation["responses"]["default"]["content"]


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("service.api.app", ["torch", "optuna", "sklearn", "numpy"]),
        ("service.client", ["torch", "optuna", "sqlalchemy", "fastapi", "starlette", "numpy"]),
        ("service.schemas", ["torch", "optuna", "sqlalchemy", "fastapi", "httpx2"]),
    ],
)
def test_importing_loads_nothing_heavy(module: str, absent: list[str]) -> None:
    program = f"import sys, {module}; print([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_a_keyring_is_not_shared_between_applications(api: Any) -> None:
    api.http.get("/v1/methods")
    assert Keyring(api.database).recall(api.key) is None


def test_workers_show_their_slots_and_no_study_of_another_tenant(api: Any) -> None:
    mine = api.study()["id"]

    def slot(name: str, state: str, study_id: str | None, reason: str | None = None) -> dict[str, Any]:
        return {
            "name": name,
            "device": "cuda",
            "threads": 1,
            "state": state,
            "study_id": study_id,
            "reason": reason,
        }

    theirs = "00000000-0000-0000-0000-000000000001"
    slots = [
        slot("cuda:0", "busy", mine),
        slot("cuda:1", "busy", theirs),
        slot("cuda:2", "aside", None, "burnt"),
    ]
    api.add_worker(slots=slots)
    (worker,) = api.http.get("/v1/workers").json()["items"]
    assert worker["slots"] == [slots[0], slots[1] | {"study_id": None}, slots[2]]
    other = api.with_key(api.new_key(tenant_id="other"))
    assert [each["study_id"] for each in other.get("/v1/workers").json()["items"][0]["slots"]] == [None] * 3
