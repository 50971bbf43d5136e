"""Events, written in the transaction of what happened: rolled back nobody is told, committed everybody is.

One indexed query finds who listens; without a webhook that is all. The text of an event is made here, once, so that
each attempt sends and signs the same bytes.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import bindparam, func, insert, select
from sqlalchemy.orm import Session

from service.db.clock import database_now
from service.db.models import DeliveryRow, RecommendationRow, StudyRow, WebhookRow
from service.logs import without_secrets
from service.schemas import WebhookEvent
from service.states import JobState

#: Longest error in an event, in characters; its end is kept, where a traceback names the exception.
MAX_ERROR = 500

_EVENTS_OF_STATES = {
    JobState.SUCCEEDED: WebhookEvent.STUDY_SUCCEEDED,
    JobState.FAILED: WebhookEvent.STUDY_FAILED,
    JobState.CANCELLED: WebhookEvent.STUDY_CANCELLED,
}
_LISTENING = (
    select(WebhookRow.id, WebhookRow.events, StudyRow.name, StudyRow.workload)
    .join(StudyRow, StudyRow.tenant_id == WebhookRow.tenant_id)
    .where(StudyRow.id == bindparam("study_id"), WebhookRow.disabled_at.is_(None))
)


def record_study_end(
    session: Session, *, study_id: str, state: JobState, error: str | None = None, now: int | None = None
) -> None:
    """Tell that a study has ended; an extension that ends tells it again.

    Args:
        session: the transaction in which its job ends, with the recommendation written.
        study_id: the study.
        state: its final state.
        error: why it failed.
        now: replaces the database's clock in tests, in milliseconds.
    """
    event = _EVENTS_OF_STATES[state]
    listening = _listening(session, study_id, event)
    if not listening:
        return
    content = {
        "study_id": study_id,
        "name": listening[0].name,
        "workload": listening[0].workload,
        "state": str(state),
        "url": f"/v1/studies/{study_id}",
    }
    if state is JobState.SUCCEEDED:
        newest = (
            select(RecommendationRow)
            .where(RecommendationRow.study_id == study_id)
            .order_by(RecommendationRow.version.desc())
            .limit(1)
        )
        content |= _shown(session.scalars(newest).one_or_none())
    elif state is JobState.FAILED and error is not None:
        content["error"] = without_secrets(error)[-MAX_ERROR:]
    _write(session, [each.id for each in listening], event, content, now)


def await_turn(session: Session, tenant_id: str, fingerprint: str) -> None:
    """Have the recommendations for one training stored one after the other.

    Two at once would both be compared with the one before both, and the change from one to the other be lost. SQLite
    has a single writer anyway.

    Args:
        session: the transaction that will store one; its end is the end of its turn.
        tenant_id: whose.
        fingerprint: of what is trained.
    """
    if session.get_bind().dialect.name == "postgresql":
        turn = func.hashtextextended(f"recommendation {tenant_id} {fingerprint}", 0)
        session.execute(select(func.pg_advisory_xact_lock(turn)))


def record_recommendation(session: Session, row: RecommendationRow, now: int | None = None) -> None:
    """Tell of a recommendation whose verdict or setting is not that of the newest one before for the same training.

    Args:
        session: the transaction that stores it, in its turn since before the row got its time.
        row: the recommendation, stored or about to be.
        now: replaces the database's clock in tests, in milliseconds.
    """
    event = WebhookEvent.RECOMMENDATION_CHANGED
    listening = _listening(session, row.study_id, event)
    if not listening:
        return
    earlier = (
        select(RecommendationRow)
        .where(
            RecommendationRow.tenant_id == row.tenant_id,
            RecommendationRow.fingerprint == row.fingerprint,
            RecommendationRow.id != row.id,
        )
        .order_by(RecommendationRow.created_at.desc(), RecommendationRow.id.desc())
        .limit(1)
    )
    previous = session.scalars(earlier).one_or_none()
    if previous is not None and _answer(previous) == _answer(row):
        return
    content = {
        "study_id": row.study_id,
        "name": listening[0].name,
        "workload": row.workload,
        "fingerprint": row.fingerprint,
        "url": f"/v1/recommendations/{row.id}",
        **_shown(row),
        "previous": None if previous is None else {"study_id": previous.study_id, **_shown(previous)},
    }
    _write(session, [each.id for each in listening], event, content, now)


def record_test(session: Session, webhook_id: str, now: int | None = None) -> str:
    """Queue an event for one webhook that says nothing but that it arrives.

    Args:
        session: a write transaction.
        webhook_id: the webhook.
        now: replaces the database's clock in tests, in milliseconds.

    Returns:
        The event's id.
    """
    return _write(session, [webhook_id], WebhookEvent.TEST, {"webhook_id": webhook_id}, now)[0]


def _listening(session: Session, study_id: str, event: WebhookEvent) -> list[Any]:
    """Webhooks of the study's tenant that want the event, each with the study's name and workload."""
    return [each for each in session.execute(_LISTENING, {"study_id": study_id}) if event in each.events]


def _answer(row: RecommendationRow) -> tuple[str, Any]:
    return row.verdict, row.body["setting"]


def _shown(row: RecommendationRow | None) -> dict[str, Any]:
    if row is None:
        return {}
    return {
        "recommendation_id": row.id,
        "version": row.version,
        "verdict": row.verdict,
        "setting": row.body["setting"],
    }


def _write(
    session: Session,
    webhook_ids: Sequence[str],
    event: WebhookEvent,
    content: Mapping[str, Any],
    now: int | None,
) -> list[str]:
    moment = database_now(session, now)
    told = datetime.fromtimestamp(moment / 1000, UTC).isoformat(timespec="milliseconds")
    document = {"type": str(event), "timestamp": told.replace("+00:00", "Z"), "data": content}
    # ASCII with escapes: the bytes that are signed are the same in every encoding.
    body = json.dumps(document, separators=(",", ":"), allow_nan=False)
    rows = [
        {
            "id": str(uuid.uuid4()),
            "webhook_id": each,
            "event": str(event),
            "body": body,
            "state": "pending",
            "attempt": 0,
            "run_after": moment,
            "created_at": moment,
        }
        for each in webhook_ids
    ]
    session.execute(insert(DeliveryRow), rows)
    return [str(row["id"]) for row in rows]
