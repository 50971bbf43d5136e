"""What `/metrics` tells of queue, slots, lane-steps and devices, on both databases."""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import delete, insert, select, update

from service.db.clock import database_now
from service.db.models import JobRow, StudyRow, WorkerRow
from service.states import JobState


def series(api: Any, key: str | None = None) -> dict[str, float]:
    """Every figure of the service's own by its name and labels."""
    text = api.with_key(key or api.key).get("/metrics").text
    lines = [line.rpartition(" ") for line in text.splitlines() if line.startswith("cliptune_")]
    return {name: float(value) for name, _, value in lines if "_http_" not in name}


def slot(name: str, state: str, study_id: str | None = None) -> dict[str, Any]:
    return {
        "name": name,
        "device": "cuda",
        "threads": 1,
        "state": state,
        "study_id": study_id,
        "reason": "it fell off the bus" if state == "aside" else None,
    }


def add_worker(
    api: Any, *, slots: list[dict[str, Any]], lane_steps: int = 0, age_seconds: int = 0, stopped: bool = False
) -> str:
    worker_id = str(uuid.uuid4())
    with api.database.write() as session:
        now = database_now(session)
        row = {
            "id": worker_id,
            "hostname": "here",
            "pid": 1,
            "version": "0.1.0",
            "device": "cuda",
            "slots": slots,
            "lane_steps": lane_steps,
            "started_at": now,
            "seen_at": now - 1000 * age_seconds,
            "stopped_at": now if stopped else None,
        }
        session.execute(insert(WorkerRow), [row])
    return worker_id


def spend(api: Any, study_id: str, milliseconds: int) -> None:
    with api.database.write() as session:
        session.execute(update(StudyRow).filter_by(id=study_id).values(device_milliseconds=milliseconds))


def test_an_empty_service_tells_zeros(api: Any) -> None:
    assert series(api) == {
        'cliptune_jobs{state="queued"}': 0,
        'cliptune_jobs{state="running"}': 0,
        "cliptune_queue_oldest_seconds": 0,
        'cliptune_slots{state="free"}': 0,
        'cliptune_slots{state="busy"}': 0,
        'cliptune_slots{state="aside"}': 0,
        "cliptune_cohorts_running": 0,
    }


def test_the_oldest_job_is_the_one_that_could_start_for_longest(api: Any) -> None:
    """A job that waits after an error could not start, and one that runs waits no more."""
    ids = [api.study()["id"] for _ in range(3)]
    with api.database.write() as session:
        now = database_now(session)
        for study_id, seconds in zip(ids, (500, 60, -3600), strict=True):
            run_after = now - 1000 * seconds
            session.execute(update(JobRow).filter_by(study_id=study_id).values(run_after=run_after))
    assert 500 <= series(api)["cliptune_queue_oldest_seconds"] < 560
    assert api.acquire().study_id == ids[0]
    found = series(api)
    assert 60 <= found["cliptune_queue_oldest_seconds"] < 120
    assert (found['cliptune_jobs{state="queued"}'], found['cliptune_jobs{state="running"}']) == (2, 1)


def test_slots_are_those_of_workers_that_live(api: Any) -> None:
    one, other = str(uuid.uuid4()), str(uuid.uuid4())
    add_worker(api, slots=[slot("cuda:0", "busy", one), slot("cuda:1", "busy", one), slot("cuda:2", "aside")])
    add_worker(api, slots=[slot("cuda:0", "busy", other), slot("cuda:1", "free")])
    add_worker(api, slots=[slot("cuda:0", "busy", str(uuid.uuid4()))], age_seconds=61)
    add_worker(api, slots=[slot("cuda:0", "busy", str(uuid.uuid4()))], stopped=True)
    add_worker(api, slots=[])
    found = series(api)
    assert [found[f'cliptune_slots{{state="{state}"}}'] for state in ("free", "busy", "aside")] == [1, 3, 1]
    assert found["cliptune_cohorts_running"] == 2


def test_lane_steps_are_counted_by_worker_until_it_is_gone_for_ten_minutes(api: Any) -> None:
    """A deleted worker's series ends; no other counter falls because of it."""
    busy = add_worker(api, slots=[], lane_steps=70_000)
    stopped = add_worker(api, slots=[], lane_steps=900, age_seconds=590, stopped=True)
    gone = add_worker(api, slots=[], lane_steps=5, age_seconds=610, stopped=True)
    found = series(api)
    assert found[f'cliptune_lane_steps_total{{worker="{busy}"}}'] == 70_000
    assert found[f'cliptune_lane_steps_total{{worker="{stopped}"}}'] == 900
    assert f'cliptune_lane_steps_total{{worker="{gone}"}}' not in found
    with api.database.write() as session:
        session.execute(delete(WorkerRow).where(WorkerRow.id == stopped))
    after = series(api)
    assert after == {name: value for name, value in found.items() if stopped not in name}


def test_device_seconds_are_told_by_key_and_by_running_study(api: Any) -> None:
    first, second, third = (api.study()["id"] for _ in range(3))
    with api.database.write() as session:
        session.execute(update(StudyRow).filter_by(id=second).values(key_id="oidc:0123456789ab"))
        session.execute(update(StudyRow).filter_by(id=third).values(key_id=None))
    for study_id, milliseconds in ((first, 1_500), (second, 20_000), (third, 300_250)):
        spend(api, study_id, milliseconds)
    lease = api.acquire()
    found = series(api)
    own = api.key.split("_")[2]
    assert found[f'cliptune_device_seconds_total{{key="{own}"}}'] == 1.5
    assert found['cliptune_device_seconds_total{key="pipelines"}'] == 20
    assert found['cliptune_device_seconds_total{key="unknown"}'] == 300.25
    running = {name: value for name, value in found.items() if "study_device" in name}
    spent = {first: 1.5, second: 20, third: 300.25}[lease.study_id]
    assert running == {f'cliptune_study_device_seconds{{study="{lease.study_id}"}}': spent}

    api.queue.finish(lease, JobState.SUCCEEDED)
    after = series(api)
    assert not [name for name in after if "study_device" in name]
    by_key = [name for name in found if "device_seconds_total" in name]
    assert len(by_key) == 3 and [after[name] for name in by_key] == [found[name] for name in by_key]


def test_another_tenants_studies_and_keys_have_no_series(api: Any) -> None:
    spend(api, api.study()["id"], 1_500)
    api.acquire()
    found = series(api, api.new_key(tenant_id="another"))
    assert not [name for name in found if "device_seconds" in name]
    assert found['cliptune_jobs{state="running"}'] == 1


def test_methods_that_anybody_made_up_are_one_series(api: Any) -> None:
    for method in ("BREW", "WHEN", "get"):
        api.http.request(method, "/healthz")
    counted = [
        line for line in api.http.get("/metrics").text.splitlines() if "cliptune_http_requests_total{" in line
    ]
    assert not [line for line in counted if 'method="BREW"' in line or 'method="WHEN"' in line]
    assert [line for line in counted if 'method="other"' in line and 'status="405"' in line]


def test_a_study_tells_its_device_seconds_and_keeps_who_asked(api: Any) -> None:
    study_id = api.study()["id"]
    assert api.http.get(f"/v1/studies/{study_id}").json()["device_seconds"] == 0
    api.succeed(study_id)
    spend(api, study_id, 12_345)
    assert api.http.get(f"/v1/studies/{study_id}").json()["device_seconds"] == 12.345
    other = api.with_key(api.new_key())
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    extended = other.post(f"/v1/studies/{study_id}/extend", json={"num_seeds": 2}, headers=headers)
    assert extended.status_code == 202, extended.text
    with api.database.read() as session:
        assert session.scalars(select(StudyRow.key_id).filter_by(id=study_id)).one() == api.key.split("_")[2]
