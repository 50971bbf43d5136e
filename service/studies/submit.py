"""Submitting a study: once per Idempotency-Key, once per name, with its job, in one transaction."""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from service.db.clock import database_now
from service.db.models import IdempotencyRow, StudyRow
from service.db.session import Database
from service.db.upsert import insert_into
from service.errors import ConflictError, InvalidRequestError
from service.jobs.queue import Queue
from tuner.spec import StudySpec

#: The route that an Idempotency-Key of a submission belongs to.
CREATE_ROUTE = "POST /v1/studies"
#: How long an Idempotency-Key is remembered, in milliseconds.
KEEP_IDEMPOTENCY_MS = 7 * 24 * 3_600_000


@dataclass(frozen=True)
class Submitted:
    """What a submission led to.

    Attributes:
        study_id: the study.
        outcome: ``created``; ``replayed`` for an Idempotency-Key seen before; ``existing`` for a name that
            already has this very question.
    """

    study_id: str
    outcome: Literal["created", "replayed", "existing"]


def create(
    session: Session,
    queue: Queue,
    *,
    tenant_id: str,
    spec: StudySpec,
    name: str | None,
    idempotency_key: str,
    body_sha256: str,
    max_attempts: int = 3,
    now: int | None = None,
) -> Submitted:
    """Store a study with its job, once per Idempotency-Key, all in the caller's transaction.

    Args:
        session: a `Database.write` transaction; an exception must roll it back.
        queue: where the job goes.
        tenant_id: whose study.
        spec: the question, parameters resolved.
        name: unique per tenant, or None.
        idempotency_key: what the caller calls this submission.
        body_sha256: of the request, to tell a repetition from a mistake.
        max_attempts: the attempt whose error fails the job.
        now: replaces the database's clock in tests, in milliseconds.

    Returns:
        The study and whether it is new.

    Raises:
        InvalidRequestError: ``idempotency_key_reused``: the key came with another body.
        ConflictError: ``name_taken``: the name has another question.
    """
    study_id, job_id, created_at = str(uuid.uuid4()), str(uuid.uuid4()), database_now(session, now)
    # By its digest, so that a secret someone used as the key by mistake is not kept.
    digest = hashlib.sha256(idempotency_key.encode()).hexdigest()
    claim = {"tenant_id": tenant_id, "route": CREATE_ROUTE, "key": digest}
    # A concurrent submission with the same key makes this wait for its commit, and then insert nothing.
    fresh = _insert_new(
        session,
        IdempotencyRow,
        claim | {"body_sha256": body_sha256, "study_id": study_id, "created_at": created_at},
    )
    if not fresh:
        stored = session.get_one(IdempotencyRow, (tenant_id, CREATE_ROUTE, digest))
        if stored.body_sha256 != body_sha256:
            raise InvalidRequestError(
                f"the Idempotency-Key {idempotency_key!r} was used for another body: send a new key for a new "
                "study, or the same body to get the first one again",
                code="idempotency_key_reused",
            )
        return Submitted(stored.study_id, "replayed")
    row = {
        "id": study_id,
        "tenant_id": tenant_id,
        "name": name,
        "workload": spec.workload,
        "spec": spec.to_json(),
        "spec_sha256": spec.digest,
        "fingerprint": spec.fingerprint,
        "job_id": job_id,
        "reference": None,
        "created_at": created_at,
    }
    if not _insert_new(session, StudyRow, row):
        existing = _same_name(session, tenant_id, name, spec)
        session.execute(update(IdempotencyRow).filter_by(**claim).values(study_id=existing))
        return Submitted(existing, "existing")
    queue.enqueue(session, job_id=job_id, study_id=study_id, tenant_id=tenant_id, max_attempts=max_attempts)
    return Submitted(study_id, "created")


def forget_idempotency_keys(database: Database) -> None:
    """Delete Idempotency-Keys older than a week; a submission repeated later than that is a new one."""
    with database.write() as session:
        oldest = database_now(session) - KEEP_IDEMPOTENCY_MS
        session.execute(delete(IdempotencyRow).where(IdempotencyRow.created_at < oldest))


def _same_name(session: Session, tenant_id: str, name: str | None, spec: StudySpec) -> str:
    taken = session.execute(select(StudyRow).filter_by(tenant_id=tenant_id, name=name)).scalar_one()
    if taken.spec_sha256 == spec.digest:
        return taken.id
    asked = json.loads(json.dumps(spec.to_json()))
    fields = sorted(
        field for field in asked.keys() | taken.spec.keys() if asked.get(field) != taken.spec.get(field)
    )
    raise ConflictError(
        f"the name {name!r} belongs to study {taken.id}, which differs in {', '.join(fields)}: choose another "
        "name, or send that study's question to get it again",
        code="name_taken",
        errors=[
            {
                "detail": f"is {json.dumps(taken.spec.get(field))} there and {json.dumps(asked.get(field))} here",
                "pointer": f"/{field}",
            }
            for field in fields
        ],
    )


def _insert_new(session: Session, table: type[IdempotencyRow | StudyRow], values: dict[str, Any]) -> bool:
    """Insert unless a unique constraint refuses; whether it was inserted."""
    # RETURNING and not the row count, which psycopg does not give for this statement.
    statement = (
        insert_into(session, table).values(**values).on_conflict_do_nothing().returning(table.created_at)
    )
    return session.execute(statement).scalar_one_or_none() is not None
