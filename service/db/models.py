"""The tables. Prefix ``cliptune_``, because Optuna owns ``studies``, ``trials`` and ``alembic_version``.

Times are integer milliseconds since 1970 (UTC), taken from the database's clock (`service.db.clock`). Ids are
uuid4 texts. A study has no state of its own: its job's state is its state. The database holds the invariants
(CHECKs, partial unique indexes); `service/jobs/statements.py` has the queue's SQL.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from service.db.base import PREFIX as PREFIX
from service.db.base import Base as Base
from service.db.webhook_models import DeliveryRow as DeliveryRow
from service.db.webhook_models import WebhookRow as WebhookRow

#: SQLite gives only INTEGER PRIMARY KEY columns a counter.
_Counter = BigInteger().with_variant(Integer, "sqlite")


class KeyRow(Base):
    """An access key: the secret only as its SHA-256."""

    __tablename__ = f"{PREFIX}keys"

    id: Mapped[str] = mapped_column(String(8), primary_key=True)
    tenant_id: Mapped[str]
    label: Mapped[str]
    secret_sha256: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[list[Any]]
    created_at: Mapped[int]
    expires_at: Mapped[int | None]
    last_used_at: Mapped[int | None]
    revoked_at: Mapped[int | None]


class IdempotencyRow(Base):
    """The stored answer to a creating request, written in the transaction of its effect."""

    __tablename__ = f"{PREFIX}idempotency_keys"

    tenant_id: Mapped[str] = mapped_column(primary_key=True)
    route: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    body_sha256: Mapped[str] = mapped_column(String(64))
    study_id: Mapped[str] = mapped_column(String(36))
    created_at: Mapped[int] = mapped_column(index=True)


class WorkloadRow(Base):
    """A workload some worker has registered: what the API lists and validates against."""

    __tablename__ = f"{PREFIX}workloads"

    name: Mapped[str] = mapped_column(primary_key=True)
    description: Mapped[str] = mapped_column(Text)
    objective: Mapped[str]
    parameters: Mapped[list[Any]]
    updated_at: Mapped[int]


class WorkerRow(Base):
    """A worker process; ``id`` is drawn at its start and owns leases."""

    __tablename__ = f"{PREFIX}workers"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    hostname: Mapped[str]
    pid: Mapped[int]
    version: Mapped[str]
    device: Mapped[str]
    #: One document per device it trains on, see `service.worker.pool`.
    slots: Mapped[list[Any]] = mapped_column(default=list, server_default="[]")
    #: Optimizer steps that its trainings took, over all lanes, since it started.
    lane_steps: Mapped[int] = mapped_column(default=0, server_default="0")
    started_at: Mapped[int]
    seen_at: Mapped[int] = mapped_column(index=True)
    stopped_at: Mapped[int | None]


class StudyRow(Base):
    """A question. Its state is the state of ``job_id``."""

    __tablename__ = f"{PREFIX}studies"
    __table_args__ = (
        Index("ix_cliptune_studies_page", "tenant_id", "created_at", "id"),
        # Holds all that a scrape of the metrics sums: without it each one would read every study whole.
        Index("ix_cliptune_studies_devices", "tenant_id", "key_id", "device_milliseconds"),
        Index(
            "uq_cliptune_studies_tenant_name",
            "tenant_id",
            "name",
            unique=True,
            sqlite_where=text("name IS NOT NULL"),
            postgresql_where=text("name IS NOT NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    tenant_id: Mapped[str]
    name: Mapped[str | None]
    workload: Mapped[str]
    spec: Mapped[dict[str, Any]]
    spec_sha256: Mapped[str] = mapped_column(String(64))
    fingerprint: Mapped[str] = mapped_column(String(16))
    job_id: Mapped[str] = mapped_column(String(36), index=True)
    reference: Mapped[dict[str, Any] | None]
    #: Numbers of further fresh seeds, in the order in which they were asked for.
    extensions: Mapped[list[Any]] = mapped_column(default=list, server_default="[]")
    #: Settings taken over from similar studies; null until the probe, and where it was switched off.
    warm_start: Mapped[list[Any] | None]
    #: Who asked: the id of an access key, or of a pipeline's identity; null before there was such a column.
    key_id: Mapped[str | None]
    #: How long devices were held for it, over all devices.
    device_milliseconds: Mapped[int] = mapped_column(default=0, server_default="0")
    created_at: Mapped[int]


class JobRow(Base):
    """One unit in the queue. See `service.jobs.queue` for what may change it."""

    __tablename__ = f"{PREFIX}jobs"
    __table_args__ = (
        CheckConstraint("state IN ('queued','running','succeeded','failed','cancelled')", name="state"),
        CheckConstraint("(state = 'running') = (owner IS NOT NULL)", name="owner"),
        Index(
            "ix_cliptune_jobs_queued",
            text("priority DESC"),
            "run_after",
            "id",
            sqlite_where=text("state = 'queued'"),
            postgresql_where=text("state = 'queued'"),
        ),
        # For the question whether anything of a kind is ready: the index above would be read through all other kinds.
        Index(
            "ix_cliptune_jobs_ready",
            "kind",
            "run_after",
            sqlite_where=text("state = 'queued'"),
            postgresql_where=text("state = 'queued'"),
        ),
        Index(
            "ix_cliptune_jobs_running",
            "lease_until",
            sqlite_where=text("state = 'running'"),
            postgresql_where=text("state = 'running'"),
        ),
        Index(
            "uq_cliptune_jobs_live_study",
            "study_id",
            unique=True,
            sqlite_where=text("state IN ('queued','running')"),
            postgresql_where=text("state IN ('queued','running')"),
        ),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    tenant_id: Mapped[str]
    study_id: Mapped[str] = mapped_column(String(36))
    kind: Mapped[str]
    payload: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(16), default="queued")
    priority: Mapped[int] = mapped_column(Integer, default=0)
    run_after: Mapped[int]
    fence: Mapped[int] = mapped_column(default=0, server_default="0")
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    max_attempts: Mapped[int] = mapped_column(Integer)
    lost_count: Mapped[int] = mapped_column(Integer, default=0)
    owner: Mapped[str | None] = mapped_column(String(36))
    lease_until: Mapped[int] = mapped_column(default=0, server_default="0")
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    last_error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[int]
    started_at: Mapped[int | None]
    finished_at: Mapped[int | None]


class JobEventRow(Base):
    """What happened to a job, appended in the transaction of the change.

    Every writer holds the job's row lock when it draws the id, so within one job the ids are in commit order
    and a reader that has seen id N never misses a smaller one.
    """

    __tablename__ = f"{PREFIX}job_events"
    __table_args__ = (Index("ix_cliptune_job_events_study", "study_id", "id"),)

    id: Mapped[int] = mapped_column(_Counter, primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(String(36))
    study_id: Mapped[str] = mapped_column(String(36))
    kind: Mapped[str] = mapped_column(String(32))
    fence: Mapped[int]
    payload: Mapped[dict[str, Any]]
    created_at: Mapped[int]


class TrialRow(Base):
    """One clip setting of a study."""

    __tablename__ = f"{PREFIX}trials"
    __table_args__ = (
        UniqueConstraint("study_id", "number"),
        CheckConstraint("state IN ('waiting','running','complete','pruned','fail')", name="state"),
        CheckConstraint("stage IN ('search','confirm')", name="stage"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    study_id: Mapped[str] = mapped_column(ForeignKey(f"{PREFIX}studies.id"))
    number: Mapped[int] = mapped_column(Integer)
    cohort: Mapped[int] = mapped_column(Integer)
    method: Mapped[str]
    threshold: Mapped[float | None]
    learning_rate_scale: Mapped[float] = mapped_column(default=1.0, server_default="1")
    stage: Mapped[str] = mapped_column(String(16), default="search", server_default="search")
    #: Training seeds; null stands for the study's own.
    seeds: Mapped[list[Any] | None]
    state: Mapped[str] = mapped_column(String(16), default="waiting")
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    lost_count: Mapped[int] = mapped_column(Integer, default=0)
    last_error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[int]
    finished_at: Mapped[int | None]


class TrialReportRow(Base):
    """Objective of one lane at one rung. The fence is in the key because a resumed training repeats steps."""

    __tablename__ = f"{PREFIX}trial_reports"

    trial_id: Mapped[str] = mapped_column(ForeignKey(f"{PREFIX}trials.id"), primary_key=True)
    seed: Mapped[int] = mapped_column(Integer, primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    fence: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[float | None]
    created_at: Mapped[int]


class TrialResultRow(Base):
    """The one accepted result of a trial: the primary key makes it one."""

    __tablename__ = f"{PREFIX}trial_results"

    trial_id: Mapped[str] = mapped_column(ForeignKey(f"{PREFIX}trials.id"), primary_key=True)
    fence: Mapped[int]
    lanes: Mapped[list[Any]]
    created_at: Mapped[int]


class LaneRow(Base):
    """One trial under one seed, leased by external training processes. See `service.lanes` for what may change it.

    A lane that measures norms (``is_probe``) belongs to no trial of the table: its id is the worker's own.
    """

    __tablename__ = f"{PREFIX}lanes"
    __table_args__ = (
        CheckConstraint(
            "state IN ('waiting','leased','complete','pruned','diverged','fail','closed')", name="state"
        ),
        CheckConstraint(
            "state <> 'leased' OR (client_id IS NOT NULL AND token_sha256 IS NOT NULL)", name="holder"
        ),
        Index("ix_cliptune_lanes_ask", "study_id", "state", "position"),
        Index(
            "ix_cliptune_lanes_leased",
            "lease_until",
            sqlite_where=text("state = 'leased'"),
            postgresql_where=text("state = 'leased'"),
        ),
        Index(
            "uq_cliptune_lanes_client",
            "study_id",
            "client_id",
            unique=True,
            sqlite_where=text("state = 'leased'"),
            postgresql_where=text("state = 'leased'"),
        ),
    )

    trial_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    seed: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    study_id: Mapped[str] = mapped_column(ForeignKey(f"{PREFIX}studies.id"))
    tenant_id: Mapped[str]
    #: Order of asking.
    position: Mapped[int]
    is_probe: Mapped[bool] = mapped_column(default=False)
    #: Optimizer steps of a full run; null stands for the study's own.
    num_steps: Mapped[int | None]
    state: Mapped[str] = mapped_column(String(16), default="waiting")
    run_after: Mapped[int] = mapped_column(default=0, server_default="0")
    fence: Mapped[int] = mapped_column(default=0, server_default="0")
    #: Of the random part of the newest lease's token; null once that lease was reaped.
    token_sha256: Mapped[str | None] = mapped_column(String(64))
    client_id: Mapped[str | None]
    lease_until: Mapped[int] = mapped_column(default=0, server_default="0")
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    lost_count: Mapped[int] = mapped_column(Integer, default=0)
    last_error: Mapped[str | None] = mapped_column(Text)
    last_cause: Mapped[str | None] = mapped_column(String(16))
    #: Of the last report under the newest lease that has an objective.
    step: Mapped[int | None]
    value: Mapped[float | None]
    #: The objective at step 0, likewise.
    initial: Mapped[float | None]
    #: By rung: step and objective of the first report at or past it, under the newest lease that got there.
    rungs: Mapped[dict[str, Any]] = mapped_column(default=dict, server_default="{}")
    num_reports: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    record: Mapped[dict[str, Any] | None]
    created_at: Mapped[int]
    leased_at: Mapped[int | None]
    finished_at: Mapped[int | None]


class LaneReportRow(Base):
    """What an external training process told at a step; the fence tells which lease it came under."""

    __tablename__ = f"{PREFIX}lane_reports"
    __table_args__ = (
        ForeignKeyConstraint(["trial_id", "seed"], [f"{PREFIX}lanes.trial_id", f"{PREFIX}lanes.seed"]),
    )

    trial_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    seed: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    fence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    #: False for a report that only brought norms.
    has_value: Mapped[bool]
    #: The objective; null if it was not finite.
    value: Mapped[float | None]
    #: Gradient norms before clipping since the report before.
    norms: Mapped[list[Any]]
    created_at: Mapped[int]


class RecommendationRow(Base):
    """An answer of a study; never changed once written. Extending the study adds a version.

    What was trained stands beside the answer, so that studies of something similar are found: null where a version of
    before did not record it.
    """

    __tablename__ = f"{PREFIX}recommendations"
    __table_args__ = (
        UniqueConstraint("study_id", "version"),
        Index("ix_cliptune_recommendations_similar", "tenant_id", "optimizer", "num_parameters"),
        Index("ix_cliptune_recommendations_workload", "tenant_id", "workload", "created_at", "id"),
        Index("ix_cliptune_recommendations_fingerprint", "tenant_id", "fingerprint", "created_at", "id"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    tenant_id: Mapped[str]
    study_id: Mapped[str] = mapped_column(String(36))
    version: Mapped[int] = mapped_column(Integer, default=1, server_default="1")
    workload: Mapped[str]
    fingerprint: Mapped[str] = mapped_column(String(16))
    verdict: Mapped[str] = mapped_column(String(16))
    method: Mapped[str]
    threshold: Mapped[float | None]
    optimizer: Mapped[str | None]
    num_parameters: Mapped[int | None]
    learning_rate: Mapped[float | None]
    batch_size: Mapped[int | None]
    precision: Mapped[str | None] = mapped_column(String(16))
    model_signature: Mapped[str | None] = mapped_column(String(16))
    median_norm: Mapped[float | None]
    kappa: Mapped[float | None]
    body: Mapped[dict[str, Any]]
    created_at: Mapped[int]
