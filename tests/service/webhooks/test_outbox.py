"""Every place where a study ends, and every new answer, writes its event in its own transaction; else nothing."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import event, select, text

from service.db.models import DeliveryRow, WebhookRow
from service.db.session import Database
from service.errors import LeaseLostError
from service.jobs.queue import Queue
from service.states import JobState
from service.webhooks import registry
from service.webhooks.outbox import MAX_ERROR, record_recommendation
from tuner.evidence import Verdict
from tuner.spec import ClipSetting

both = pytest.mark.parametrize(
    "database",
    ["sqlite_database", pytest.param("postgres_database", marks=pytest.mark.postgres)],
    indirect=True,
)


@pytest.fixture
def database(request: pytest.FixtureRequest) -> Database:
    """SQLite; PostgreSQL too where a query is of the outbox's own."""
    opened: Database = request.getfixturevalue(getattr(request, "param", "sqlite_database"))
    return opened


def listen(api: Any, tenant_id: str = "default", **options: Any) -> str:
    with api.database.write() as session:
        made = registry.create(session, tenant_id=tenant_id, url="https://hooks.test/", **options)
    return made.id


def written(database: Database) -> list[dict[str, Any]]:
    """Every event, in the order of its time, its body read."""
    with database.read() as session:
        rows = session.scalars(select(DeliveryRow).order_by(DeliveryRow.created_at, DeliveryRow.event))
        return [json.loads(row.body) | {"webhook_id": row.webhook_id} for row in rows]


def only(database: Database) -> dict[str, Any]:
    (found,) = written(database)
    return found


@pytest.fixture
def hasty(api: Any) -> Queue:
    """A queue whose clock is far ahead, so that every lease has expired for it."""
    return Queue(api.database, lease_seconds=60, max_lost=1, now=lambda: 4_000_000_000_000)


# ---- each place where a study ends ----


@both
def test_success_tells_of_the_answer(api: Any) -> None:
    webhook_id = listen(api, events=["study.succeeded"])
    study = api.study(name="mine")
    recommendation_id = api.succeed(study["id"])
    told = only(api.database)
    moment = datetime.fromisoformat(told["timestamp"])
    assert moment.utcoffset() is not None and told["timestamp"].endswith("Z")
    assert told == {
        "type": "study.succeeded",
        "timestamp": told["timestamp"],
        "webhook_id": webhook_id,
        "data": {
            "study_id": study["id"],
            "name": "mine",
            "workload": "charlm-rnn",
            "state": "succeeded",
            "url": f"/v1/studies/{study['id']}",
            "recommendation_id": recommendation_id,
            "version": 1,
            "verdict": "clip",
            "setting": {"method": "global_norm", "threshold": 0.42, "learning_rate_scale": 1.0},
        },
    }


def test_an_extension_that_succeeds_tells_again(api: Any) -> None:
    listen(api, events=["study.succeeded"])
    study = api.study()
    api.succeed(study["id"])
    assert api.extend(study["id"], 2).status_code == 202
    api.succeed(study["id"])
    assert [each["data"]["version"] for each in written(api.database)] == [1, 2]


def fail_by_finish(api: Any, queue: Queue) -> None:
    queue.finish(api.acquire(), JobState.FAILED, error="all 4 trials failed")


def fail_by_error(api: Any, queue: Queue) -> None:
    for _ in range(3):
        queue.fail(api.acquire(), "all 4 trials failed", delay_seconds=0)


@pytest.mark.parametrize("end", [fail_by_finish, fail_by_error])
def test_failure_tells_why(api: Any, end: Callable[..., None]) -> None:
    listen(api)
    study = api.study()
    end(api, api.queue)
    told = only(api.database)
    assert told["type"] == "study.failed"
    assert told["data"]["study_id"] == study["id"] and told["data"]["state"] == "failed"
    assert told["data"]["error"] == "all 4 trials failed"
    assert "verdict" not in told["data"]


@both
def test_a_reap_that_fails_a_job_for_good_tells(api: Any, hasty: Queue) -> None:
    listen(api)
    api.study()
    api.acquire()
    assert [each.state for each in hasty.reap()] == [JobState.FAILED]
    told = only(api.database)
    assert told["type"] == "study.failed" and "the worker was lost" in told["data"]["error"]


def cancel(api: Any, study_id: str) -> None:
    assert api.http.post(f"/v1/studies/{study_id}/cancel").status_code == 202


def cancel_queued(api: Any, study_id: str, hasty: Queue) -> None:
    del hasty
    cancel(api, study_id)


def cancel_then_finish(api: Any, study_id: str, hasty: Queue) -> None:
    del hasty
    lease = api.acquire()
    cancel(api, study_id)
    assert written(api.database) == []
    api.queue.finish(lease, JobState.CANCELLED)


def cancel_then_release(api: Any, study_id: str, hasty: Queue) -> None:
    del hasty
    lease = api.acquire()
    cancel(api, study_id)
    assert api.queue.release(lease) is JobState.CANCELLED


def cancel_then_error(api: Any, study_id: str, hasty: Queue) -> None:
    del hasty
    lease = api.acquire()
    cancel(api, study_id)
    assert api.queue.fail(lease, "x", delay_seconds=0) is JobState.CANCELLED


def cancel_then_lose(api: Any, study_id: str, hasty: Queue) -> None:
    api.acquire()
    cancel(api, study_id)
    assert [each.state for each in hasty.reap()] == [JobState.CANCELLED]


@pytest.mark.parametrize(
    "end", [cancel_queued, cancel_then_finish, cancel_then_release, cancel_then_error, cancel_then_lose]
)
def test_every_way_to_cancel_tells(api: Any, hasty: Queue, end: Callable[..., None]) -> None:
    listen(api)
    study = api.study(name=None)
    end(api, study["id"], hasty)
    told = only(api.database)
    assert told["type"] == "study.cancelled"
    assert told["data"] == {
        "study_id": study["id"],
        "name": None,
        "workload": "charlm-rnn",
        "state": "cancelled",
        "url": f"/v1/studies/{study['id']}",
    }


def test_an_external_study_tells_too(api: Any) -> None:
    listen(api)
    api.study(workload="my model", external=True)
    lease = api.queue.acquire(str(uuid.uuid4()), ["external"])
    assert lease is not None
    api.queue.finish(lease, JobState.FAILED, error="no")
    assert only(api.database)["data"]["workload"] == "my model"


def test_what_does_not_end_a_study_tells_nothing(api: Any) -> None:
    listen(api)
    api.study()
    api.queue.release(api.acquire())
    api.queue.fail(api.acquire(), "again", delay_seconds=0)
    Queue(api.database, lease_seconds=60, now=lambda: 4_000_000_000_000).reap()
    assert written(api.database) == []


@both
def test_what_is_rolled_back_was_never_told(api: Any) -> None:
    listen(api)
    api.study()
    lease = api.acquire()
    with pytest.raises(RuntimeError), api.database.write() as session:
        api.queue.finish_in(session, lease, JobState.FAILED, error="x")
        raise RuntimeError
    assert written(api.database) == []
    api.queue.finish(lease, JobState.FAILED, error="x")
    with pytest.raises(LeaseLostError):
        api.queue.finish(lease, JobState.FAILED, error="x")
    assert len(written(api.database)) == 1


# ---- a recommendation that changed ----


def changes(api: Any) -> list[tuple[Any, Any]]:
    """Setting and previous setting of every event."""
    return [
        (
            str(ClipSetting(**each["data"]["setting"])),
            each["data"]["previous"] and str(ClipSetting(**each["data"]["previous"]["setting"])),
        )
        for each in written(api.database)
        if each["type"] == "recommendation.changed"
    ]


def clip(threshold: float) -> ClipSetting:
    return ClipSetting(method="global_norm", threshold=threshold)


@both
def test_the_first_answer_and_every_other_one_is_told(api: Any) -> None:
    listen(api, events=["recommendation.changed"])
    first = api.study()
    api.succeed(first["id"])
    told = only(api.database)["data"]
    assert told["previous"] is None and told["fingerprint"] == first["fingerprint"]
    assert told["url"] == f"/v1/recommendations/{told['recommendation_id']}"
    # The same training asked again: first with the same answer, then with others.
    for seed, answer in enumerate(
        ({}, {"setting": clip(0.5)}, {"setting": clip(0.5)}, {"verdict": Verdict.NO_DIFFERENCE}), 1
    ):
        again = api.study(seed=seed)
        assert again["fingerprint"] == first["fingerprint"]
        api.succeed(again["id"], **answer)
    assert changes(api) == [
        ("global_norm:0.42", None),
        ("global_norm:0.5", "global_norm:0.42"),
        ("global_norm:0.42", "global_norm:0.5"),
    ]


@pytest.mark.postgres
@pytest.mark.parametrize("database", ["postgres_database"], indirect=True)
def test_of_two_that_end_at_once_each_change_is_told(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one goes back to the answer before, while the second one has another."""
    listen(api, events=["recommendation.changed"])
    api.succeed(api.study()["id"])
    ids = [api.study(seed=seed)["id"] for seed in (1, 2)]
    for each in ids:
        api.write_trials(each)
    finished = threading.Event()

    def second() -> None:
        api.recommend(ids[1], setting=clip(0.5))
        finished.set()

    thread = threading.Thread(target=second)

    def is_waiting() -> bool:
        here = "(SELECT oid FROM pg_database WHERE datname = current_database())"
        locks = text(f"SELECT count(*) FROM pg_locks WHERE database = {here} AND NOT granted")
        with api.database.read() as session:
            return finished.is_set() or session.execute(locks).scalar_one() > 0

    def start_second(session: Any, row: Any, now: int | None = None) -> None:
        record_recommendation(session, row, now)
        if row.study_id == ids[0]:
            thread.start()
            while not is_waiting():
                time.sleep(0.01)

    monkeypatch.setattr("service.recommendations.answers.record_recommendation", start_second)
    api.recommend(ids[0], setting=clip(0.3))
    thread.join(60)
    assert changes(api) == [
        ("global_norm:0.42", None),
        ("global_norm:0.3", "global_norm:0.42"),
        ("global_norm:0.5", "global_norm:0.3"),
    ]


def test_a_verdict_alone_is_a_change(api: Any) -> None:
    listen(api, events=["recommendation.changed"])
    api.succeed(api.study()["id"])
    api.succeed(api.study(seed=1)["id"], verdict=Verdict.NO_DIFFERENCE)
    assert len(changes(api)) == 2
    previous = written(api.database)[-1]["data"]["previous"]
    assert previous["verdict"] == "clip" and set(previous) == {
        "study_id",
        "recommendation_id",
        "version",
        "verdict",
        "setting",
    }


def test_the_next_version_of_a_study_is_compared_with_the_one_before(api: Any) -> None:
    listen(api, events=["recommendation.changed"])
    study = api.study()
    api.succeed(study["id"])
    api.extend(study["id"], 2)
    api.succeed(study["id"], setting=clip(0.6))
    assert changes(api)[-1] == ("global_norm:0.6", "global_norm:0.42")


def test_another_training_is_another_line(api: Any) -> None:
    listen(api, events=["recommendation.changed"])
    api.succeed(api.study()["id"])
    api.succeed(api.study(parameters={"hidden": 32})["id"])
    assert [previous for _, previous in changes(api)] == [None, None]


# ---- who is told ----


@both
def test_each_webhook_gets_its_own_event_of_what_it_asked_for(api: Any) -> None:
    both = listen(api)
    failures = listen(api, events=["study.failed"])
    listen(api, tenant_id="other")
    off = listen(api)
    with api.database.write() as session:
        session.get_one(WebhookRow, off).disabled_at = 1
    api.study()
    api.queue.finish(api.acquire(), JobState.FAILED, error="x")
    api.succeed(api.study(seed=1)["id"])
    told = [(each["type"], each["webhook_id"]) for each in written(api.database)]
    assert sorted(told) == sorted(
        [
            ("study.failed", both),
            ("study.failed", failures),
            ("study.succeeded", both),
            ("recommendation.changed", both),
        ]
    )
    with api.database.read() as session:
        assert len(set(session.scalars(select(DeliveryRow.id)))) == 4


@contextmanager
def counted(database: Database) -> Iterator[list[str]]:
    """The statements that are executed meanwhile."""
    found: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        del connection, cursor, rest
        found.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    yield found
    event.remove(database.engine, "before_cursor_execute", note)


def test_without_a_webhook_an_end_costs_one_query(api: Any) -> None:
    listen(api, tenant_id="other")
    api.study()
    lease = api.acquire()
    with counted(api.database) as statements:
        api.queue.finish(lease, JobState.FAILED, error="x")
    about = [each for each in statements if "cliptune_webhooks" in each or "cliptune_deliveries" in each]
    assert len(about) == 1 and about[0].startswith("SELECT")
    with api.database.engine.connect() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {about[0]}", ("s",)).fetchall()
    assert not [step for step in plan if "SCAN" in str(step)], plan
    assert written(api.database) == []


def test_an_error_is_short_and_without_secrets(api: Any) -> None:
    listen(api)
    api.study()
    secrets = f"{api.key} whsec_{'A' * 43}= postgresql://me:hunter2@host/db"
    api.queue.finish(
        api.acquire(), JobState.FAILED, error="x" * 9000 + secrets + " ValueError: no \x00\ud800"
    )
    error = only(api.database)["data"]["error"]
    assert len(error) == MAX_ERROR and error.endswith("ValueError: no \\x00\\ud800")
    assert not any(each in error for each in (api.key, "hunter2", "AAAA"))


def test_a_name_in_any_script_is_sent_as_ascii(api: Any) -> None:
    listen(api)
    api.study(name="\u00dcber \U0001f600")
    api.queue.finish(api.acquire(), JobState.CANCELLED)
    with api.database.read() as session:
        body = session.scalars(select(DeliveryRow.body)).one()
    assert body.isascii() and json.loads(body)["data"]["name"] == "\u00dcber \U0001f600"
