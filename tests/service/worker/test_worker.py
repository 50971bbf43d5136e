"""How a worker ends a job: each way a runner can end has its own, on a real queue."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterator

import pytest
from sqlalchemy.exc import IntegrityError, OperationalError

from service.db.models import JobRow
from service.db.session import Database
from service.errors import LeaseLostError
from service.jobs.lease import Lease
from service.jobs.queue import Queue
from service.settings import Settings
from service.states import JobState
from service.worker.endings import CancelRequestedError, ShutdownRequestedError, StudyFailedError
from service.worker.runner import StudyRunner
from service.worker.worker import Worker


class Ending(StudyRunner):
    """A runner that ends at once, in the given way; it never had a training process."""

    def __init__(self, ending: Exception) -> None:
        self._ending = ending

    def run(self) -> JobState:
        raise self._ending

    def stop_training(self) -> None:
        """Nothing was started."""


@pytest.fixture
def worker(database: Database) -> Iterator[Worker]:
    heartbeat_database = Database(database.url)
    yield Worker(Settings(), database, heartbeat_database)
    heartbeat_database.close()


def acquired(database: Database, queue: Queue, worker: Worker) -> Lease:
    with database.write() as session:
        queue.enqueue(session, job_id=str(uuid.uuid4()), study_id=str(uuid.uuid4()), tenant_id="t")
    lease = queue.acquire(worker.id, ["study"])
    assert lease is not None
    return lease


def job_of(database: Database, lease: Lease) -> JobRow:
    with database.read() as session:
        return session.get_one(JobRow, lease.job_id)


@pytest.mark.parametrize(
    ("ending", "state", "attempt", "says"),
    [
        (ShutdownRequestedError(), JobState.QUEUED, 0, None),
        (CancelRequestedError(), JobState.CANCELLED, 1, None),
        (StudyFailedError("6 trials failed"), JobState.FAILED, 1, "6 trials failed"),
        (ValueError("a bug of ours"), JobState.QUEUED, 1, "ValueError: a bug of ours"),
        # Only a database that is away leaves the job to the reap; a statement it refuses is a bug of ours.
        (IntegrityError("INSERT", {}, Exception("twice")), JobState.QUEUED, 1, "IntegrityError"),
    ],
)
def test_ending_of_a_runner(
    ending: Exception,
    state: JobState,
    attempt: int,
    says: str | None,
    database: Database,
    queue: Queue,
    worker: Worker,
) -> None:
    lease = acquired(database, queue, worker)
    worker._conclude(lease, Ending(ending))
    job = job_of(database, lease)
    assert (job.state, job.attempt, job.owner) == (state, attempt, None)
    assert says is None or says in (job.last_error or "")


@pytest.mark.parametrize(
    "ending", [LeaseLostError("job", 1), OperationalError("SELECT", {}, Exception("server closed"))]
)
def test_job_that_can_not_be_written_is_left_to_the_reap(
    ending: Exception, database: Database, queue: Queue, worker: Worker
) -> None:
    lease = acquired(database, queue, worker)
    with pytest.raises(type(ending)):
        worker._conclude(lease, Ending(ending))
    assert job_of(database, lease).state == JobState.RUNNING


def test_bug_of_ours_fails_the_job_at_the_last_attempt(
    database: Database, queue: Queue, worker: Worker
) -> None:
    lease = acquired(database, queue, worker)
    for attempt in (1, 2, 3):
        assert lease.attempt == attempt
        worker._conclude(lease, Ending(ValueError("always")))
        if attempt == 3:
            break
        # The clock of another queue is an hour ahead, past the pause before the next try.
        ahead = Queue(database, lease_seconds=60, now=lambda: 10**13)
        found = ahead.acquire(worker.id, ["study"])
        assert found is not None
        lease = found
    assert job_of(database, lease).state == JobState.FAILED


def test_many_attempts_do_not_wait_for_ever(database: Database, queue: Queue, worker: Worker) -> None:
    lease = dataclasses.replace(acquired(database, queue, worker), attempt=60, max_attempts=100)
    worker._conclude(lease, Ending(ValueError("again")))
    job = job_of(database, lease)
    assert job.state == JobState.QUEUED
    # Five minutes at most, in milliseconds; the job was created less than a minute ago.
    assert job.run_after - job.created_at < 6 * 60 * 1000
