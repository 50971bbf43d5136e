"""The heartbeat: renews while it can, gives up in time when it can't, and never comes back."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from service.db.migrate import upgrade
from service.db.models import JobRow
from service.db.session import Database
from service.jobs.lease import Lease
from service.jobs.queue import Queue
from service.states import JobState
from service.worker.heartbeat import Heartbeat

PATIENCE = 30.0


@pytest.fixture
def lease(database: Database, queue: Queue) -> Lease:
    return acquire(database, queue)


def acquire(database: Database, queue: Queue) -> Lease:
    with database.write() as session:
        queue.enqueue(session, job_id=str(uuid.uuid4()), study_id=str(uuid.uuid4()), tenant_id="t")
    found = queue.acquire(str(uuid.uuid4()), ["study"])
    assert found is not None
    return found


class Beat:
    """A heartbeat with its calls counted."""

    def __init__(
        self, queue: Queue, lease: Lease, *, deadline_seconds: float = PATIENCE, **options: object
    ) -> None:
        self.lost: list[int] = []
        self.renewed = threading.Semaphore(0)
        self.heartbeat = Heartbeat(
            queue,
            lease,
            sent_at=time.monotonic(),
            renew_seconds=0.02,
            deadline_seconds=deadline_seconds,
            on_lost=lambda: self.lost.append(1),
            on_renewed=self.renewed.release,
        )


def test_heartbeat_extends_the_lease(database: Database, queue: Queue, lease: Lease) -> None:
    def lease_until() -> int:
        with database.read() as session:
            return session.get_one(JobRow, lease.job_id).lease_until

    before = lease_until()
    beat = Beat(queue, lease)
    with beat.heartbeat:
        for _ in range(3):
            assert beat.renewed.acquire(timeout=PATIENCE)
    assert lease_until() > before
    assert beat.lost == [] and not beat.heartbeat.lost.is_set()


def test_cancel_is_told_by_the_next_renewal(database: Database, queue: Queue, lease: Lease) -> None:
    beat = Beat(queue, lease)
    with beat.heartbeat:
        assert beat.renewed.acquire(timeout=PATIENCE)
        assert not beat.heartbeat.cancel_requested.is_set()
        with database.write() as session:
            queue.cancel(session, lease.job_id)
        assert beat.heartbeat.cancel_requested.wait(PATIENCE)
    assert beat.lost == []


def test_lost_lease_is_told_once(queue: Queue, lease: Lease) -> None:
    beat = Beat(queue, lease)
    with beat.heartbeat:
        assert beat.renewed.acquire(timeout=PATIENCE)
        queue.finish(lease, JobState.FAILED, error="taken away")
        assert beat.heartbeat.lost.wait(PATIENCE)
    assert beat.lost == [1]


@contextmanager
def held_lock(database: Database) -> Iterator[None]:
    with database.write():
        yield


def test_deadline_passes_when_the_database_can_not_be_written(sqlite_url: str) -> None:
    """Self-fencing: the lease is given up although nobody said that it is lost, and is never renewed again."""
    database = Database(sqlite_url)
    upgrade(database)
    lease = acquire(database, Queue(database, lease_seconds=600))
    impatient = Database(sqlite_url, busy_seconds=0.01)
    beat = Beat(Queue(impatient, lease_seconds=600), lease, deadline_seconds=0.5)
    with database.read() as session:
        until = session.get_one(JobRow, lease.job_id).lease_until
    with held_lock(database):
        with beat.heartbeat:
            assert beat.heartbeat.lost.wait(PATIENCE)
        # The renewal that was on its way may still try for a while.
        for thread in threading.enumerate():
            if thread.name == "renewer":
                thread.join(PATIENCE)
                assert not thread.is_alive()
    assert beat.lost == [1]
    with database.read() as session:
        assert session.get_one(JobRow, lease.job_id).lease_until == until
    database.close()
    impatient.close()


def test_deadline_counts_from_before_the_renewal_was_sent(queue: Queue, lease: Lease) -> None:
    """A clock that jumps past the deadline (a frozen process) loses the lease without asking the database."""
    now = [0.0]
    lost = threading.Event()
    heartbeat = Heartbeat(
        queue,
        lease,
        sent_at=0.0,
        renew_seconds=0.02,
        deadline_seconds=45.0,
        on_lost=lost.set,
        on_renewed=lambda: now.__setitem__(0, 46.0),
        clock=lambda: now[0],
    )
    with heartbeat:
        assert lost.wait(PATIENCE)
    assert queue.renew(lease) is False, "the database still knew the lease: it was the worker that let go"


class HangingQueue(Queue):
    """A database that takes the renewal and never answers, as behind a network that swallows packets."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, lease_seconds=600)
        self.asked = threading.Event()
        self.answers = threading.Event()

    def renew(self, lease: Lease) -> bool:
        self.asked.set()
        assert self.answers.wait(PATIENCE)
        return super().renew(lease)


def test_renewal_that_hangs_does_not_hold_up_the_deadline(
    database: Database, queue: Queue, lease: Lease
) -> None:
    hanging = HangingQueue(database)
    beat = Beat(hanging, lease, deadline_seconds=0.5)
    with beat.heartbeat:
        assert hanging.asked.wait(PATIENCE)
        assert beat.heartbeat.lost.wait(PATIENCE), "the deadline passed while the renewal hung"
    assert beat.lost == [1]
    hanging.answers.set()


class BrokenQueue(Queue):
    def renew(self, lease: Lease) -> bool:
        raise RuntimeError("a bug of ours")


def test_bug_in_the_renewal_gives_the_lease_up(database: Database, lease: Lease) -> None:
    beat = Beat(BrokenQueue(database, lease_seconds=600), lease)
    with beat.heartbeat:
        assert beat.heartbeat.lost.wait(PATIENCE)
    assert beat.lost == [1]


def test_lease_that_ended_in_order_is_not_called_lost(queue: Queue, lease: Lease) -> None:
    beat = Beat(queue, lease)
    with beat.heartbeat:
        assert beat.renewed.acquire(timeout=PATIENCE)
    queue.finish(lease, JobState.SUCCEEDED)
    time.sleep(0.1)
    assert beat.lost == []
