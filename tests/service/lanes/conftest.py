"""Lanes on either database, migrated once and emptied before each test; and a clock that the test moves."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import create_engine, delete, insert, select, text, update
from sqlalchemy.engine import RowMapping, make_url

from service.db.migrate import upgrade
from service.db.models import Base, JobRow, LaneReportRow, LaneRow, StudyRow, TrialRow
from service.db.session import Database
from service.lanes import (
    Completion,
    Directive,
    LaneQueue,
    LaneStatus,
    Leased,
    LeaseToken,
    Report,
    Waiting,
    insert_lanes,
    load_lanes,
)
from service.lanes.lane import LaneState
from tuner.spec import ClipSetting, StudySpec

LEASE_SECONDS = 60.0
START_MS = 1_000_000_000_000
TENANT = "tenant"
#: Rungs 44, 133 and 400.
SPEC = StudySpec(workload="mine", external=True, num_steps=400, num_seeds=2)


@dataclass
class Clock:
    milliseconds: int = START_MS

    def __call__(self) -> int:
        return self.milliseconds

    def advance(self, seconds: float) -> None:
        self.milliseconds += round(seconds * 1000)


@dataclass
class Bench:
    """Studies with lanes, and what a process does with them; the last lease of a client is at hand by its name."""

    database: Database
    clock: Clock
    queue: LaneQueue
    leases: dict[str, Leased] = field(default_factory=dict)

    def another_queue(self, database: Database, **options: Any) -> LaneQueue:
        return LaneQueue(database, lease_seconds=LEASE_SECONDS, now=self.clock, **options)

    def open_database(self, kind: type[Database] = Database) -> Database:
        """Another connection pool on the same database."""
        return kind(self.database.url)

    def study(self, spec: StudySpec = SPEC, *, job: str = "running", **values: Any) -> str:
        study_id, job_id = str(uuid.uuid4()), str(uuid.uuid4())
        with self.database.write() as session:
            row = {
                "id": study_id,
                "tenant_id": TENANT,
                "workload": spec.workload,
                "spec": spec.to_json(),
                "spec_sha256": spec.digest,
                "fingerprint": spec.fingerprint,
                "job_id": job_id,
                "created_at": START_MS,
            }
            session.execute(insert(StudyRow), [row | values])
            job_row = {
                "id": job_id,
                "tenant_id": TENANT,
                "study_id": study_id,
                "kind": "study",
                "payload": {},
                "state": job,
                "owner": "worker" if job == "running" else None,
                "run_after": 0,
                "max_attempts": 3,
                "created_at": START_MS,
            }
            session.execute(insert(JobRow), [job_row])
        return study_id

    def trials(
        self, study_id: str, settings: Sequence[ClipSetting | str], *, cohort: int = 0, stage: str = "search"
    ) -> list[str]:
        with self.database.write() as session:
            before = len(session.scalars(select(TrialRow.id).filter_by(study_id=study_id)).all())
            ids = [str(uuid.uuid4()) for _ in settings]
            for number, (trial_id, setting) in enumerate(zip(ids, settings, strict=True), start=before):
                parsed = ClipSetting.parse(setting) if isinstance(setting, str) else setting
                session.add(
                    TrialRow(
                        id=trial_id,
                        study_id=study_id,
                        number=number,
                        cohort=cohort,
                        method=parsed.method,
                        threshold=parsed.threshold,
                        learning_rate_scale=parsed.learning_rate_scale,
                        stage=stage,
                        state="running",
                        created_at=START_MS,
                    )
                )
        return ids

    def put_up(
        self, study_id: str, trial_ids: Sequence[str], seeds: Sequence[int] = (0, 1), **options: Any
    ) -> None:
        with self.database.write() as session:
            insert_lanes(
                session,
                study_id=study_id,
                tenant_id=TENANT,
                trial_ids=trial_ids,
                seeds=seeds,
                now=self.clock(),
                **options,
            )

    def ready(
        self,
        settings: Sequence[str] = ("none", "global_norm:1"),
        seeds: Sequence[int] = (0, 1),
        spec: StudySpec = SPEC,
    ) -> tuple[str, list[str]]:
        """A running study with one cohort whose lanes wait."""
        study_id = self.study(spec)
        ids = self.trials(study_id, settings)
        self.put_up(study_id, ids, seeds)
        return study_id, ids

    def ask(self, study_id: str, client_id: str = "a") -> Leased:
        found = self.queue.ask(tenant_id=TENANT, study_id=study_id, client_id=client_id)
        assert isinstance(found, Leased), found
        self.leases[client_id] = found
        return found

    def find(self, study_id: str, client_id: str = "a") -> Leased | Waiting:
        return self.queue.ask(tenant_id=TENANT, study_id=study_id, client_id=client_id)

    def heartbeat(self, lease: Leased, queue: LaneQueue | None = None) -> Directive:
        return (queue or self.queue).heartbeat(**named(lease))

    def report(
        self, lease: Leased, step: int, value: float | None, *norms: float, queue: LaneQueue | None = None
    ) -> Directive:
        report = Report(step=step, has_value=True, value=value, norms=norms)
        return (queue or self.queue).report(**named(lease), report=report)

    def tell_norms(self, lease: Leased, step: int, *norms: float) -> Directive:
        report = Report(step=step, has_value=False, value=None, norms=norms)
        return self.queue.report(**named(lease), report=report)

    def complete(self, lease: Leased, *, queue: LaneQueue | None = None, **completion: Any) -> LaneStatus:
        return (queue or self.queue).complete(**named(lease), completion=Completion(**completion))

    def lose(self) -> None:
        """Let every lease expire, and reap it."""
        self.clock.advance(LEASE_SECONDS + 0.001)
        assert self.queue.reap()

    def end(self, study_id: str, state: str = "cancelled") -> None:
        with self.database.write() as session:
            values = {"state": state, "owner": None}
            session.execute(update(JobRow).where(JobRow.study_id == study_id).values(**values))

    def lanes(self, study_id: str, *trial_ids: str) -> tuple[LaneState, ...]:
        with self.database.read() as session:
            ids = trial_ids or session.scalars(
                select(LaneRow.trial_id).where(LaneRow.study_id == study_id).distinct()
            )
            return load_lanes(session, study_id, list(ids))

    def lane(self, lease: Leased) -> LaneState:
        return next(lane for lane in self.lanes(lease.study_id, lease.trial_id) if lane.seed == lease.seed)

    def states(self, study_id: str, *trial_ids: str) -> list[str]:
        return [str(lane.state) for lane in self.lanes(study_id, *trial_ids)]

    def reports(self, lease: Leased) -> list[RowMapping]:
        with self.database.read() as session:
            chosen = select(LaneReportRow.__table__).where(
                LaneReportRow.trial_id == lease.trial_id, LaneReportRow.seed == lease.seed
            )
            return list(session.execute(chosen.order_by(LaneReportRow.fence, LaneReportRow.step)).mappings())


def named(lease: Leased) -> dict[str, Any]:
    """What every call after asking needs."""
    return {"tenant_id": TENANT, "trial_id": lease.trial_id, "token": LeaseToken.parse(lease.token)}


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def migrated_database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('lanes') / 'cliptune.db'}"
    else:
        server = request.getfixturevalue("postgres_server")
        name = f"lanes_{uuid.uuid4().hex}"
        admin = create_engine(server, isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        admin.dispose()
        url = make_url(server).set(database=name).render_as_string(hide_password=False)
    database = Database(url)
    upgrade(database)
    yield database
    database.close()


@pytest.fixture
def database(migrated_database: Database) -> Database:
    with migrated_database.write() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(delete(table))
    return migrated_database


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def bench(database: Database, clock: Clock) -> Bench:
    return Bench(
        database=database, clock=clock, queue=LaneQueue(database, lease_seconds=LEASE_SECONDS, now=clock)
    )
