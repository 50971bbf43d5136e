"""Recommendations as rows: stored once by the worker that found them, read by anyone who asks.

A row's ``body`` is the whole answer as `service.schemas.RecommendationOut` gives it, so a query is one indexed
read of one row, whatever the number of trials or studies, and nothing is computed or validated again.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import Connection, Text, bindparam, cast, func, select
from sqlalchemy.orm import Session

from service.db.clock import database_now
from service.db.models import RecommendationRow
from service.recommendations.fingerprint import study_fingerprint
from service.schemas import NeighbourOut, RecommendationOut
from service.webhooks.outbox import await_turn, record_recommendation
from tuner.evidence import Recommendation, Reference
from tuner.methods import get_method
from tuner.spec import StudySpec


@dataclass(frozen=True)
class Found:
    """What a query gives; ``document`` is a `RecommendationOut` as JSON text, None without a match."""

    match: Literal["exact", "workload", "similar", "none"]
    document: str | None
    reason: str
    neighbours: tuple[NeighbourOut, ...] = ()


def store(
    session: Session,
    *,
    study_id: str,
    tenant_id: str,
    spec: StudySpec,
    reference: Reference | None,
    recommendation: Recommendation,
    snippets: Mapping[str, str],
    provenance: Mapping[str, Any],
    now: int | None = None,
) -> RecommendationOut:
    """Write a study's answer: its first, or the next version after an extension.

    Args:
        session: the worker's fenced transaction.
        study_id: the study.
        tenant_id: whose it is.
        spec: the study's question, parameters resolved.
        reference: what its probe measured, by which similar studies find the answer; None keeps it from them.
        recommendation: the answer.
        snippets: how to write the setting, by framework.
        provenance: versions and device; JSON values.
        now: replaces the database's clock in tests, in milliseconds.

    Returns:
        What was stored.
    """
    method = get_method(recommendation.setting.method)
    features = None if reference is None else reference.features
    fingerprint = study_fingerprint(spec, features)
    await_turn(session, tenant_id, fingerprint)
    created_at = database_now(session, now)
    answer = RecommendationOut(
        id=str(uuid.uuid4()),
        study_id=study_id,
        version=1 + _newest_version(session, study_id),
        workload=spec.workload,
        fingerprint=fingerprint,
        parameters=dict(spec.parameters),
        created_at=datetime.fromtimestamp(created_at / 1000, UTC),
        threshold_name=method.threshold_name,
        threshold_unit=method.threshold_unit,
        reference_norm=None if reference is None else reference.median_norm,
        snippets=dict(snippets),
        provenance=dict(provenance),
        **{name: getattr(recommendation, name) for name in recommendation.__dataclass_fields__},
    )
    row = RecommendationRow(
        id=answer.id,
        tenant_id=tenant_id,
        study_id=study_id,
        version=answer.version,
        workload=answer.workload,
        fingerprint=answer.fingerprint,
        verdict=str(answer.verdict),
        method=answer.setting.method,
        threshold=answer.setting.threshold,
        median_norm=None if reference is None else reference.median_norm,
        kappa=answer.kappa,
        body=answer.model_dump(mode="json"),
        created_at=created_at,
        **({} if features is None else {name: getattr(features, name) for name in _FEATURES}),
    )
    session.add(row)
    record_recommendation(session, row, now)
    return answer


#: Features that a row has a column for.
_FEATURES = ("optimizer", "num_parameters", "learning_rate", "batch_size", "precision", "model_signature")


def _newest_version(session: Session, study_id: str) -> int:
    newest = select(func.max(RecommendationRow.version)).where(RecommendationRow.study_id == study_id)
    return session.execute(newest).scalar_one() or 0


_ADVICE = "submit one with POST /v1/studies"
_NEWEST = (RecommendationRow.created_at.desc(), RecommendationRow.id.desc())
# As text: the answer is spliced around it, nobody parses it on the way.
_BODY = cast(RecommendationRow.body, Text)
_BY_WORKLOAD = (
    select(_BODY)
    .where(
        RecommendationRow.tenant_id == bindparam("tenant_id"),
        RecommendationRow.workload == bindparam("workload"),
    )
    .order_by(*_NEWEST)
    .limit(1)
)
_BY_FINGERPRINT = (
    select(_BODY)
    .where(
        RecommendationRow.tenant_id == bindparam("tenant_id"),
        RecommendationRow.fingerprint == bindparam("fingerprint"),
    )
    .order_by(*_NEWEST)
    .limit(1)
)
_BY_BOTH = _BY_FINGERPRINT.where(RecommendationRow.workload == bindparam("workload"))


def find(
    reader: Session | Connection,
    *,
    tenant_id: str,
    workload: str | None = None,
    fingerprint: str | None = None,
    is_described: bool = False,
) -> Found:
    """The newest recommendation for a fingerprint or a workload, and how well it fits.

    Args:
        reader: any transaction.
        tenant_id: whose recommendations.
        workload: the workload's name; None takes any.
        fingerprint: of what is trained; None takes the newest of the workload.
        is_described: whether the caller said more of the training than this: then an answer of the workload alone is
            not an exact one.

    Returns:
        An exact match, else the newest of the same workload with something else different, else nothing.
    """
    key = {"tenant_id": tenant_id, "workload": workload}
    if fingerprint is not None:
        statement = _BY_FINGERPRINT if workload is None else _BY_BOTH
        body = reader.execute(statement, key | {"fingerprint": fingerprint}).scalar_one_or_none()
        if body is not None:
            return Found(
                "exact", body, "the newest recommendation for this very training, by its fingerprint"
            )
    if workload is None:
        reason = f"no study with fingerprint {fingerprint} has ended with a recommendation: {_ADVICE}"
        return Found("none", None, reason)
    body = reader.execute(_BY_WORKLOAD, key).scalar_one_or_none()
    if body is None:
        reason = f"no study of workload {workload!r} has ended with a recommendation: {_ADVICE}"
        return Found("none", None, reason)
    if fingerprint is None and not is_described:
        return Found("exact", body, "the newest recommendation for this workload")
    missed = "" if fingerprint is None else f"nothing is stored for fingerprint {fingerprint}; "
    return Found(
        "workload",
        body,
        f"{missed}this is the newest of the same workload, perhaps with other parameters, so treat it as a starting "
        "point and submit a study",
    )


def better_of(found: Found | None, similar: Found) -> Found:
    """What to answer where the exact query found no exact match.

    Args:
        found: what it found; None if nothing named a workload or a fingerprint.
        similar: what studies of something similar gave.

    Returns:
        The similar ones if there are any, else what was measured on the workload itself, with why nothing similar
        was found, else the refusal.
    """
    if found is None or similar.match == "similar" or found.match == "none":
        return similar
    return replace(found, reason=f"{found.reason}; nothing similar was found: {similar.reason}")


def get(session: Session, *, tenant_id: str, recommendation_id: str) -> dict[str, Any] | None:
    """A recommendation by its id.

    Args:
        session: any transaction.
        tenant_id: whose recommendations.
        recommendation_id: as `store` gave it.

    Returns:
        A `RecommendationOut` as JSON values; None if the tenant has none of that id.
    """
    statement = select(RecommendationRow.body).where(
        RecommendationRow.id == recommendation_id, RecommendationRow.tenant_id == tenant_id
    )
    return session.execute(statement).scalar_one_or_none()


def find_of_study(
    session: Session, *, tenant_id: str, study_id: str, version: int | None = None
) -> dict[str, Any] | None:
    """The recommendation that a study ended with.

    Args:
        session: any transaction.
        tenant_id: whose study.
        study_id: the study.
        version: which one of an extended study; None takes the newest.

    Returns:
        A `RecommendationOut` as JSON values; None while the study has none, without such a version, and if the tenant
        has no such study.
    """
    statement = select(RecommendationRow.body).where(
        RecommendationRow.study_id == study_id, RecommendationRow.tenant_id == tenant_id
    )
    if version is not None:
        statement = statement.where(RecommendationRow.version == version)
    newest = statement.order_by(RecommendationRow.version.desc()).limit(1)
    return session.execute(newest).scalar_one_or_none()
