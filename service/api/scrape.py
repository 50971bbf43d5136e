"""What a scrape of ``/metrics`` reads from the database: the queue, the workers' slots, and what devices worked.

Queue, slots and lane-steps are of the whole service. What names a study or a key is of the caller's tenant, because a
tenant may not learn of another's. Nothing is kept between two scrapes, so every API process answers the same and
Prometheus may ask any one of them.

How many series there are is bounded: one per running study, per access key, and per worker of the last ten minutes;
all pipelines together are one key. Studies are never deleted, so the seconds of a key only grow. A worker's series
ends ten minutes after the worker; ``rate()`` and ``increase()`` of each worker before the sum are right through that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy import ColumnElement, func, literal_column, select
from sqlalchemy.orm import Session

from service.db.clock import database_now
from service.db.models import JobRow, StudyRow, WorkerRow
from service.db.session import Database
from service.identity.identities import IDENTITY
from service.states import JobState

#: A worker not seen for this long has no slots any more, in milliseconds; as in ``GET /v1/workers``.
_ALIVE_MS = 60_000
#: How long the last count of a worker that is gone is still told, in milliseconds: some scrapes must see it.
_COUNTED_MS = 600_000
#: States of a slot that are told even where no slot is in them.
_SLOT_STATES = ("free", "busy", "aside")
#: The label of all studies that pipelines submitted, and of those from before keys were recorded.
_PIPELINES, _UNKNOWN = "pipelines", "unknown"
#: Written into the SQL: SQLite uses a partial index only where it sees the value that the index is for.
_QUEUED: ColumnElement[str] = literal_column(f"'{JobState.QUEUED}'")
_RUNNING: ColumnElement[str] = literal_column(f"'{JobState.RUNNING}'")


class Scrape(Collector):
    """The figures of one scrape.

    Args:
        database: where they are.
        tenant_id: whose studies and keys are told.
    """

    def __init__(self, database: Database, tenant_id: str) -> None:
        self._database = database
        self._tenant_id = tenant_id

    def describe(self) -> Iterator[Metric]:
        """Nothing is read when the collector is registered."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """All figures, as of one moment of the database."""
        with self._database.read() as session:
            now = database_now(session)
            yield from _queue(session, now)
            yield from _workers(session, now)
            yield from _devices(session, self._tenant_id)


def _queue(session: Session, now: int) -> Iterator[Metric]:
    jobs = GaugeMetricFamily("cliptune_jobs", "Jobs that have not ended, by state.", labels=["state"])
    for state, written in ((JobState.QUEUED, _QUEUED), (JobState.RUNNING, _RUNNING)):
        counted = select(func.count()).select_from(JobRow).where(JobRow.state == written)
        jobs.add_metric([state], session.scalar(counted) or 0)
    yield jobs
    ready = select(func.min(JobRow.run_after)).where(JobRow.state == _QUEUED, JobRow.run_after <= now)
    since = session.scalar(ready)
    yield GaugeMetricFamily(
        "cliptune_queue_oldest_seconds",
        "How long the oldest job that could start is waiting, in seconds; 0 without any.",
        value=0 if since is None else (now - since) / 1000,
    )


def _workers(session: Session, now: int) -> Iterator[Metric]:
    seen = select(
        WorkerRow.id, WorkerRow.slots, WorkerRow.lane_steps, WorkerRow.seen_at, WorkerRow.stopped_at
    )
    rows = session.execute(seen.where(WorkerRow.seen_at >= now - _COUNTED_MS).order_by(WorkerRow.id)).all()
    is_alive = [row.stopped_at is None and row.seen_at >= now - _ALIVE_MS for row in rows]
    slots = [slot for row, alive in zip(rows, is_alive, strict=True) if alive for slot in row.slots]
    by_state = Counter(dict.fromkeys(_SLOT_STATES, 0))
    by_state.update(slot["state"] for slot in slots)
    states = GaugeMetricFamily(
        "cliptune_slots", "Slots of the workers that live, by state.", labels=["state"]
    )
    for state, count in by_state.items():
        states.add_metric([state], count)
    yield states
    yield GaugeMetricFamily(
        "cliptune_cohorts_running",
        "Studies that hold at least one busy slot.",
        value=len({slot["study_id"] for slot in slots if slot["state"] == "busy"}),
    )
    steps = CounterMetricFamily(
        "cliptune_lane_steps", "Optimizer steps over all lanes since the worker started.", labels=["worker"]
    )
    for row in rows:
        steps.add_metric([row.id], row.lane_steps)
    yield steps


def _devices(session: Session, tenant_id: str) -> Iterator[Metric]:
    spent = (
        select(StudyRow.key_id, func.sum(StudyRow.device_milliseconds))
        .where(StudyRow.tenant_id == tenant_id)
        .group_by(StudyRow.key_id)
    )
    by_key: Counter[str] = Counter()
    for key_id, milliseconds in session.execute(spent):
        by_key[_label(key_id)] += int(milliseconds)
    keys = CounterMetricFamily(
        "cliptune_device_seconds", "Seconds that devices were held, by the key that asked.", labels=["key"]
    )
    for name, milliseconds in sorted(by_key.items()):
        keys.add_metric([name], milliseconds / 1000)
    yield keys
    # Not a join: without statistics SQLite would begin it with every study there is.
    live = select(JobRow.study_id).where(JobRow.state == _RUNNING, JobRow.tenant_id == tenant_id)
    running = select(StudyRow.id, StudyRow.device_milliseconds).where(StudyRow.id.in_(live))
    studies = GaugeMetricFamily(
        "cliptune_study_device_seconds",
        "Seconds that devices were held for a study that runs.",
        labels=["study"],
    )
    for row in sorted(session.execute(running), key=lambda row: row.id):
        studies.add_metric([row.id], row.device_milliseconds / 1000)
    yield studies


def _label(key_id: str | None) -> str:
    if key_id is None:
        return _UNKNOWN
    return _PIPELINES if key_id.startswith(IDENTITY) else key_id
