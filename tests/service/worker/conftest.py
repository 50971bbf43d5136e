"""What the worker's tests share: a queue, and the making of a study whose job is leased."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest

from service.db.models import StudyRow
from service.db.session import Database
from service.jobs.lease import Lease
from service.jobs.queue import Queue
from service.launchers.process import TrainingProcess
from service.worker.pool import SlotPool
from service.worker.slot import Slot
from tuner.spec import StudySpec

MakeLease = Callable[[StudySpec], Lease]


MakePool = Callable[..., SlotPool]


@pytest.fixture
def queue(database: Database) -> Queue:
    return Queue(database, lease_seconds=600)


@pytest.fixture
def lease_of(database: Database, queue: Queue) -> MakeLease:
    """Store a study with its job, and acquire it."""

    def make(spec: StudySpec) -> Lease:
        job_id, study_id = str(uuid.uuid4()), str(uuid.uuid4())
        with database.write() as session:
            session.add(
                StudyRow(
                    id=study_id,
                    tenant_id="t",
                    name=None,
                    workload=spec.workload,
                    spec=spec.to_json(),
                    spec_sha256=spec.digest,
                    fingerprint=spec.fingerprint,
                    job_id=job_id,
                    reference=None,
                    created_at=0,
                )
            )
            queue.enqueue(session, job_id=job_id, study_id=study_id, tenant_id="t")
        found = queue.acquire(str(uuid.uuid4()), ["study"])
        assert found is not None
        return found

    return make


@pytest.fixture
def pool_for() -> Iterator[MakePool]:
    """Make the slots of a worker, one per way to start a process, that a leased study has entered."""
    pools: list[SlotPool] = []

    def make(lease: Lease, *launches: Callable[[], TrainingProcess]) -> SlotPool:
        pool = SlotPool([Slot(name=f"cpu:{number}", launch=each) for number, each in enumerate(launches)])
        pool.enter(lease.study_id, tenant_id=lease.tenant_id)
        pools.append(pool)
        return pool

    yield make
    for each in pools:
        each.close()
