"""Submitting a study: once per Idempotency-Key, once per name, with its job, in one transaction."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from service.db.clock import database_now
from service.db.models import IdempotencyRow, StudyRow
from service.db.upsert import insert_into
from service.errors import ConflictError
from service.jobs.queue import Queue
from service.studies.idempotency import Claim, claim
from service.studies.stored import job_kind, stored_spec
from tuner.spec import StudySpec

#: The route that an Idempotency-Key of a submission belongs to.
CREATE_ROUTE = "POST /v1/studies"


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
    key_id: str | None = None,
    priority: int = 0,
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
        key_id: who asks: the id of an access key, or of a pipeline's identity; None for nobody in particular.
        priority: of its job; higher goes first.
        max_attempts: the attempt whose error fails the job.
        now: replaces the database's clock in tests, in milliseconds.

    Returns:
        The study and whether it is new.

    Raises:
        InvalidRequestError: ``idempotency_key_reused``: the key came with another body.
        ConflictError: ``name_taken``: the name has another question.
    """
    study_id, job_id, created_at = str(uuid.uuid4()), str(uuid.uuid4()), database_now(session, now)
    wanted = Claim(tenant_id=tenant_id, route=CREATE_ROUTE, key=idempotency_key, body_sha256=body_sha256)
    if (replayed := claim(session, wanted, study_id=study_id, now=created_at)) is not None:
        return Submitted(replayed, "replayed")
    row: dict[str, Any] = {
        "id": study_id,
        "tenant_id": tenant_id,
        "name": name,
        "workload": spec.workload,
        "spec": spec.to_json(),
        "spec_sha256": spec.digest,
        "fingerprint": spec.fingerprint,
        "job_id": job_id,
        "reference": None,
        "extensions": [],
        "key_id": key_id,
        "created_at": created_at,
    }
    statement = insert_into(session, StudyRow).values(**row).on_conflict_do_nothing()
    if session.execute(statement.returning(StudyRow.created_at)).scalar_one_or_none() is None:
        existing = _same_name(session, tenant_id, name, spec)
        kept = {"tenant_id": tenant_id, "route": CREATE_ROUTE, "key": wanted.digest}
        session.execute(update(IdempotencyRow).filter_by(**kept).values(study_id=existing))
        return Submitted(existing, "existing")
    queue.enqueue(
        session,
        job_id=job_id,
        study_id=study_id,
        tenant_id=tenant_id,
        kind=job_kind(spec),
        priority=priority,
        max_attempts=max_attempts,
    )
    return Submitted(study_id, "created")


def _same_name(session: Session, tenant_id: str, name: str | None, spec: StudySpec) -> str:
    taken = session.execute(select(StudyRow).filter_by(tenant_id=tenant_id, name=name)).scalar_one()
    known = stored_spec(taken.spec)
    if known.digest == spec.digest:
        return taken.id
    asked, there = (json.loads(json.dumps(each.to_json())) for each in (spec, known))
    fields = sorted(field for field in asked if asked[field] != there[field])
    raise ConflictError(
        f"the name {name!r} belongs to study {taken.id}, which differs in {', '.join(fields)}: choose another "
        "name, or send that study's question to get it again",
        code="name_taken",
        errors=[
            {
                "detail": f"is {json.dumps(there[field])} there and {json.dumps(asked[field])} here",
                "pointer": f"/{field}",
            }
            for field in fields
        ],
    )
