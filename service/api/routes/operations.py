"""For operators: health, readiness, version, metrics, and the pages that explain the interface.

Health, readiness, version, the description and the error pages need no key: they tell nothing of anybody's
studies, and load balancers and browsers have none.
"""

from __future__ import annotations

import html
import importlib.metadata

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import HTMLResponse, Response

from service.api import problems
from service.api.answers import answer
from service.api.deps import App, Reader
from service.api.routes.catalog import count_alive
from service.errors import NotFoundError, UnavailableError
from service.schemas import Health, Ready, Version

router = APIRouter(tags=["operations"])


@router.get("/healthz", response_model=Health)
async def get_health() -> Response:
    """The process is alive; nothing else is looked at."""
    return answer(Health())


@router.get("/readyz", response_model=Ready)
def get_readiness(app: App) -> Response:
    """The database answers and a worker was seen within a minute.

    Raises:
        UnavailableError: ``no_worker``.
    """
    with app.database.read() as session:
        alive = count_alive(session)
    if not alive:
        raise UnavailableError(
            "no worker was seen within a minute, so studies would wait: start one with `cliptune worker`",
            code="no_worker",
            headers={"Retry-After": "5"},
        )
    return answer(Ready(ready=True, workers=alive))


@router.get("/version", response_model=Version)
async def get_version() -> Response:
    """What is running."""
    return answer(Version(version=installed_version()))


@router.get("/metrics", response_class=Response)
def get_metrics(app: App, principal: Reader) -> Response:
    """Figures in Prometheus's text format; those of studies and keys are of this key's tenant."""
    return Response(app.metrics.render(principal.tenant_id), media_type=CONTENT_TYPE_LATEST)


@router.get("/errors/{code}", include_in_schema=False)
async def get_error_page(code: str) -> Response:
    """The page that a problem's ``type`` leads to.

    Raises:
        NotFoundError: if there is no such code.
    """
    page = problems.page(code)
    if page is None:
        raise NotFoundError(f"there is no error code {code}: GET /docs lists them", code="route_not_found")
    return HTMLResponse(page, headers={"Cache-Control": "public, max-age=3600"})


@router.get("/docs", include_in_schema=False)
async def get_docs(request: Request) -> Response:
    """The interface on one page, made of its description; no script, nothing loaded from elsewhere."""
    rows = []
    for path, operations in request.app.openapi()["paths"].items():
        for method, operation in operations.items():
            about = html.escape(operation.get("description", ""))
            rows.append(f"<dt><code>{method.upper()} {html.escape(path)}</code></dt><dd>{about}</dd>")
    codes = [
        f'<li><a href="/errors/{code}">{code}</a> {kind.status}: {html.escape(kind.title)}</li>'
        for code, kind in problems.KINDS.items()
    ]
    return HTMLResponse(
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>cliptune: HTTP interface</title>'
        '<h1>cliptune: HTTP interface</h1><p>The full description is <a href="/openapi.json">openapi.json</a>. '
        "Send your access key as <code>Authorization: Bearer KEY</code>.</p>"
        f"<dl>{''.join(rows)}</dl><h2>Errors</h2><ul>{''.join(codes)}</ul></html>"
    )


def installed_version() -> str:
    """The distribution's version; ``unknown`` when it runs from a folder without being installed."""
    try:
        return importlib.metadata.version("cliptune")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
