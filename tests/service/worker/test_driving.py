"""Studies are driven side by side, up to a limit, and let go when the worker stops."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable

from service.db.session import Database
from service.jobs.lease import Lease
from service.jobs.queue import Queue
from service.worker.driving import Driving


def enqueue(database: Database, queue: Queue, kind: str) -> str:
    study_id = str(uuid.uuid4())
    with database.write() as session:
        queue.enqueue(session, job_id=str(uuid.uuid4()), study_id=study_id, tenant_id="t", kind=kind)
    return study_id


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_no_more_than_the_limit_at_once(database: Database, queue: Queue) -> None:
    studies = {enqueue(database, queue, "external") for _ in range(3)}
    trained = enqueue(database, queue, "study")
    driven: list[Lease] = []
    ends, stopping = {study: threading.Event() for study in studies}, threading.Event()

    def drive(lease: Lease, sent_at: float) -> None:
        assert sent_at <= time.monotonic()
        driven.append(lease)
        ends[lease.study_id].wait()
        queue.release(lease)

    external = Driving("worker", queue, ["external"], drive, stopping=stopping, limit=2, poll_seconds=0.02)
    external.start()
    until(lambda: len(driven) == 2)
    with database.read() as session:
        assert (
            session.connection()
            .exec_driver_sql(
                "SELECT count(*) FROM cliptune_jobs WHERE state = 'queued' AND kind = 'external'"
            )
            .scalar()
            == 1
        )
    ends[driven[0].study_id].set()
    until(lambda: len(driven) >= 3)
    stopping.set()
    for end in ends.values():
        end.set()
    external.join()
    assert trained not in {lease.study_id for lease in driven}
    assert {lease.owner for lease in driven} == {"worker"}
    assert {lease.kind for lease in driven} == {"external"}


def test_database_that_is_away_is_waited_for(database: Database, queue: Queue) -> None:
    with database.write() as session:
        session.connection().exec_driver_sql("ALTER TABLE cliptune_jobs RENAME TO elsewhere")
    driven: list[Lease] = []
    stopping = threading.Event()
    external = Driving(
        "worker",
        queue,
        ["external"],
        lambda lease, sent_at: driven.append(lease),
        stopping=stopping,
        limit=1,
        poll_seconds=0.02,
    )
    external.start()
    time.sleep(0.2)
    with database.write() as session:
        session.connection().exec_driver_sql("ALTER TABLE elsewhere RENAME TO cliptune_jobs")
    study = enqueue(database, queue, "external")
    until(lambda: bool(driven))
    stopping.set()
    external.join()
    assert [lease.study_id for lease in driven] == [study]
