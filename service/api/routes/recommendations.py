"""Recommendations: the query that training jobs and CI ask, made to be cheap."""

from __future__ import annotations

import json

from fastapi import APIRouter, Request
from starlette.responses import Response

from service import recommendations
from service.api.answers import answer, not_modified
from service.api.asked import Question, find
from service.api.deps import App, Reader, require_uuid
from service.errors import NotFoundError
from service.recommendations import Found
from service.schemas import RecommendationAnswer, RecommendationOut

router = APIRouter(tags=["recommendations"])

_SHORT = "private, max-age=5"


@router.get("/v1/recommendations", response_model=RecommendationAnswer)
async def find_recommendation(app: App, principal: Reader, request: Request, asked: Question) -> Response:
    """The newest recommendation of a fingerprint or a workload; with ``optimizer``, those of similar trainings.

    A fingerprint's own answer goes first, then similar trainings, then the workload's newest. With a workload alone its
    newest is the answer.

    Raises:
        InvalidRequestError: ``query_incomplete`` without ``workload``, ``fingerprint`` and ``optimizer``.
    """
    found = await find(app, principal.tenant_id, asked)
    response = answer(_document(found), headers={"Cache-Control": _SHORT}, with_etag=True)
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


def _document(found: Found) -> bytes:
    """The answer as JSON text; the stored recommendation goes in as it is, nobody parses it on the way."""
    neighbours = ",".join(each.model_dump_json() for each in found.neighbours)
    return (
        f'{{"match":"{found.match}","recommendation":{found.document or "null"},'
        f'"reason":{json.dumps(found.reason)},"neighbours":[{neighbours}]}}'
    ).encode()
