"""Recommendations: the query that training jobs and CI ask, made to be cheap."""

from __future__ import annotations

import json
from typing import Annotated

import anyio.to_thread
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service import recommendations
from service.api.answers import answer, not_modified
from service.api.deps import App, Reader, Services, require_uuid
from service.errors import NotFoundError
from service.keys import Principal
from service.recommendations import Found
from service.schemas import RecommendationAnswer, RecommendationOut

router = APIRouter(tags=["recommendations"])

_SHORT = "private, max-age=5"
_PRINTABLE = r"^[^\x00-\x1f\x7f]+$"


@router.get("/v1/recommendations", response_model=RecommendationAnswer)
async def find_recommendation(
    app: App,
    principal: Reader,
    request: Request,
    workload: Annotated[str, Query(max_length=255, pattern=_PRINTABLE, description="Name of the workload.")],
    fingerprint: Annotated[
        str | None, Query(pattern="^[0-9a-f]{16}$", description="Workload with its parameters, from a study.")
    ] = None,
) -> Response:
    """The newest recommendation for a workload, and how well it matches the question."""
    found = await anyio.to_thread.run_sync(
        _find, app, principal, workload, fingerprint, limiter=app.fast_reads
    )
    content = (
        f'{{"match":"{found.match}","recommendation":{found.document or "null"},'
        f'"reason":{json.dumps(found.reason)}}}'
    )
    response = answer(content.encode(), headers={"Cache-Control": _SHORT}, with_etag=True)
    return not_modified(request, response) or response


@router.get("/v1/recommendations/{recommendation_id}", response_model=RecommendationOut)
def get_recommendation(app: App, principal: Reader, request: Request, recommendation_id: str) -> Response:
    """One recommendation; it never changes.

    Raises:
        NotFoundError: ``recommendation_not_found``.
    """
    require_uuid(recommendation_id, "recommendation_not_found", "recommendation")
    with app.database.read() as session:
        document = recommendations.get(
            session, tenant_id=principal.tenant_id, recommendation_id=recommendation_id
        )
    if document is None:
        raise NotFoundError(
            f"there is no recommendation {recommendation_id}: GET /v1/recommendations?workload=NAME finds the newest",
            code="recommendation_not_found",
        )
    response = answer(document, headers={"Cache-Control": _SHORT}, with_etag=True)
    return not_modified(request, response) or response


def _find(app: Services, principal: Principal, workload: str, fingerprint: str | None) -> Found:
    return app.database.glance(
        lambda connection: recommendations.find(
            connection, tenant_id=principal.tenant_id, workload=workload, fingerprint=fingerprint
        )
    )
