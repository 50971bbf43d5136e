"""What the queue's contract suites share: databases, a clock the test moves, and a bench to submit and look.

Here ``database`` is SQLite in both journal modes and PostgreSQL. Each is migrated once and emptied before
each test, because hundreds of tests would spend their time in migrations.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import create_engine, delete, insert, select, text, update
from sqlalchemy.engine import RowMapping, make_url

from service.db.migrate import upgrade
from service.db.models import Base, JobEventRow, JobRow, StudyRow, TrialRow
from service.db.session import Database
from service.jobs.lease import Lease
from service.jobs.queue import Queue

LEASE_SECONDS = 60.0
BACKOFF_SECONDS = 5.0
START_MS = 1_000_000_000_000


@dataclass
class Clock:
    """The database's clock, in milliseconds, moved by the test."""

    milliseconds: int = START_MS

    def __call__(self) -> int:
        return self.milliseconds

    def advance(self, seconds: float) -> None:
        self.milliseconds += round(seconds * 1000)


@dataclass
class QueueBench:
    """A queue on a real database, with what a test needs to look behind it."""

    database: Database
    clock: Clock
    queue: Queue

    def another_queue(self, database: Database | None = None, **options: Any) -> Queue:
        settings: dict[str, Any] = {"lease_seconds": LEASE_SECONDS, "backoff_seconds": BACKOFF_SECONDS}
        return Queue(database or self.database, now=self.clock, **(settings | options))

    def open_database(self, kind: type[Database] = Database, **options: Any) -> Database:
        """Another connection pool on the same database, with the same journal mode."""
        if self.database.dialect == "sqlite":
            with self.database.read() as session:
                options["journal_mode"] = session.execute(text("PRAGMA journal_mode")).scalar_one()
        return kind(self.database.url, **options)

    def submit(
        self,
        job_id: str | None = None,
        *,
        study_id: str | None = None,
        trials: Sequence[str] = (),
        **job: Any,
    ) -> str:
        """Enqueue a job, and its study with a trial in each of the given states."""
        job_id = job_id or str(uuid.uuid4())
        study_id = study_id or f"study-{job_id}"[:36]
        with self.database.write() as session:
            if trials:
                session.execute(insert(StudyRow), [_study(study_id, job_id)])
                session.execute(
                    insert(TrialRow), [_trial(study_id, number, state) for number, state in enumerate(trials)]
                )
            self.queue.enqueue(session, job_id=job_id, study_id=study_id, tenant_id="tenant", **job)
        return job_id

    def acquire(self, owner: str = "worker-1", kinds: Sequence[str] = ("study",)) -> Lease:
        lease = self.queue.acquire(owner, kinds)
        assert lease is not None
        return lease

    def lose(self) -> None:
        """Let every lease expire, and reap it."""
        self.clock.advance(LEASE_SECONDS + 0.001)
        assert self.queue.reap()

    def row(self, job_id: str) -> RowMapping:
        with self.database.read() as session:
            return session.execute(select(JobRow.__table__).where(JobRow.id == job_id)).mappings().one()

    def put(self, job_id: str, **values: Any) -> None:
        """Set columns directly, to start from a state that takes many steps to reach."""
        with self.database.write() as session:
            session.execute(update(JobRow).where(JobRow.id == job_id).values(**values))

    def events(self, job_id: str) -> list[RowMapping]:
        with self.database.read() as session:
            chosen = (
                select(JobEventRow.__table__).where(JobEventRow.job_id == job_id).order_by(JobEventRow.id)
            )
            return list(session.execute(chosen).mappings())

    def kinds_of_events(self, job_id: str) -> list[str]:
        return [event["kind"] for event in self.events(job_id)]

    def trials(self, job_id: str) -> list[tuple[str, str | None]]:
        study_id = self.row(job_id)["study_id"]
        with self.database.read() as session:
            chosen = select(TrialRow.state, TrialRow.last_error).where(TrialRow.study_id == study_id)
            return [(row.state, row.last_error) for row in session.execute(chosen.order_by(TrialRow.number))]


def _study(study_id: str, job_id: str) -> dict[str, Any]:
    texts = dict.fromkeys(("workload", "spec_sha256", "fingerprint"), "x")
    return texts | {
        "id": study_id,
        "tenant_id": "tenant",
        "job_id": job_id,
        "spec": {},
        "created_at": START_MS,
    }


def _trial(study_id: str, number: int, state: str) -> dict[str, Any]:
    return {
        "id": str(uuid.uuid4()),
        "study_id": study_id,
        "number": number,
        "cohort": 0,
        "method": "none",
        "state": state,
        "created_at": START_MS,
    }


@pytest.fixture(
    scope="session",
    params=["sqlite-truncate", "sqlite-wal", pytest.param("postgresql", marks=pytest.mark.postgres)],
)
def migrated_database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    engine, _, journal_mode = request.param.partition("-")
    if engine == "sqlite":
        file = tmp_path_factory.mktemp("contracts") / "cliptune.db"
        database = Database(f"sqlite:///{file}", journal_mode=journal_mode)
    else:
        database = Database(_create_postgres_database(request.getfixturevalue("postgres_server")))
    upgrade(database)
    yield database
    database.close()


def _create_postgres_database(server: str) -> str:
    name = f"contracts_{uuid.uuid4().hex}"
    admin = create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    admin.dispose()
    return make_url(server).set(database=name).render_as_string(hide_password=False)


@pytest.fixture
def database(migrated_database: Database) -> Database:
    """An empty migrated database."""
    empty(migrated_database)
    return migrated_database


def empty(database: Database) -> None:
    with database.write() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(delete(table))


@pytest.fixture
def empty_database(migrated_database: Database) -> Callable[[], None]:
    """Empties the test's database once more, for suites that run many histories in one test."""
    return lambda: empty(migrated_database)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def bench(database: Database, clock: Clock) -> QueueBench:
    """A queue on either engine, its clock at `START_MS`."""
    queue = Queue(database, lease_seconds=LEASE_SECONDS, backoff_seconds=BACKOFF_SECONDS, now=clock)
    return QueueBench(database=database, clock=clock, queue=queue)
