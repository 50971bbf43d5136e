"""Badges of recommendations, for READMEs: as an SVG, as JSON for shields.io, and where both are.

An address with a ``token`` of `service.api.badge_token` needs no key. One whose token opens nothing answers 200 with a
grey badge, always the same: the image proxies of code hosts show a broken picture for any other status, and nobody
learns from it whether key, signature or recommendation was wrong. Without a token a key is required as everywhere.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from service.api import badge_token
from service.api.answers import answer, not_modified, tagged
from service.api.asked import PRINTABLE, Asked, Question, find
from service.api.deps import App, Reader, Services, authenticate_reader
from service.keys import Principal
from service.recommendations.badge import CACHE_SECONDS, LABEL, Badge, badge, no_access
from service.schemas import BadgeOut
from tuner.evidence import Verdict
from tuner.spec import ClipSetting

router = APIRouter(tags=["recommendations"])

#: An SVG that is opened as a page of its own runs and loads nothing.
_SVG_POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox"
#: How long a badge without access is kept, in seconds: a new token should be seen soon.
_REFUSED_SECONDS = 60

Label = Annotated[
    str, Query(min_length=1, max_length=60, pattern=PRINTABLE, description="The badge's left side.")
]


async def _token(
    token: Annotated[
        str | None, Query(description="From /v1/recommendations/badge; opens this badge without a key.")
    ] = None,
) -> str | None:
    return token


Token = Annotated[str | None, Depends(_token)]


@dataclass(frozen=True)
class _Shown:
    """A badge, and how long and by whom its answer may be kept."""

    badge: Badge
    cache_control: str
    is_error: bool = False


@router.get("/v1/recommendations/badge.json", response_model=None)
async def get_badge_json(
    app: App, request: Request, asked: Question, token: Token, label: Label = LABEL
) -> Response:
    """The badge in the form of a shields.io endpoint; ``isError`` if the token opens nothing.

    A match that is not exact shows as unknown.

    Raises:
        UnauthorizedError: without a token and without a good key.
    """
    shown = await _show(app, request, asked, token, label)
    document = shown.badge.endpoint() | ({"isError": True} if shown.is_error else {})
    response = answer(document, headers={"Cache-Control": shown.cache_control}, with_etag=True)
    return not_modified(request, response) or response


@router.get(
    "/v1/recommendations/badge.svg",
    response_class=Response,
    responses={200: {"content": {"image/svg+xml": {"schema": {"type": "string"}}}}},
)
async def get_badge_svg(
    app: App, request: Request, asked: Question, token: Token, label: Label = LABEL
) -> Response:
    """The badge as an image; grey, with "no access", if the token opens nothing.

    A match that is not exact shows as unknown.

    Raises:
        UnauthorizedError: without a token and without a good key.
    """
    shown = await _show(app, request, asked, token, label)
    headers = {
        "Cache-Control": shown.cache_control,
        "Content-Security-Policy": _SVG_POLICY,
        # Pages that isolate themselves from other sites may still show it.
        "Cross-Origin-Resource-Policy": "cross-origin",
    }
    response = tagged(Response(shown.badge.svg(), headers=headers, media_type="image/svg+xml"))
    return not_modified(request, response) or response


@router.get("/v1/recommendations/badge", response_model=BadgeOut)
async def get_badge(
    app: App, principal: Reader, request: Request, asked: Question, label: Label = LABEL
) -> Response:
    """Where the badge is, with the token that opens it, and the Markdown for a README.

    The recommendation need not be there yet. Whoever has an address sees the badge, until the key with which it was
    made is revoked or expires; caches keep it for five minutes more.

    Raises:
        ForbiddenError: ``badge_needs_key`` for a caller without an access key of its own.
        InvalidRequestError: ``query_incomplete`` without ``workload``, ``fingerprint`` and ``optimizer``.
    """
    await find(app, principal.tenant_id, asked)
    token = badge_token.sign(principal, _question(asked, label))
    query = urlencode({**asked.given(), **({} if label == LABEL else {"label": label}), "token": token})
    base = (app.settings.url or str(request.base_url)).rstrip("/") + "/v1/recommendations/badge"
    svg_url = f"{base}.svg?{query}"
    return answer(
        BadgeOut(
            json_url=f"{base}.json?{query}",
            svg_url=svg_url,
            markdown=f"![{_plain(label)}]({svg_url})",
            token=token,
        )
    )


async def _show(app: Services, request: Request, asked: Asked, token: str | None, label: str) -> _Shown:
    if token is None:
        principal = await authenticate_reader(request)
        return _Shown(await _badge(app, principal, asked, label), f"private, max-age={CACHE_SECONDS}")
    owner = await run_in_threadpool(_owner, app, token, _question(asked, label))
    if owner is None:
        return _Shown(no_access(label=label), f"public, max-age={_REFUSED_SECONDS}", is_error=True)
    return _Shown(await _badge(app, owner, asked, label), f"public, max-age={CACHE_SECONDS}")


async def _badge(app: Services, principal: Principal, asked: Asked, label: str) -> Badge:
    found = await find(app, principal.tenant_id, asked)
    if found.match != "exact" or found.document is None:
        return badge(None, label=label)
    stored = json.loads(found.document)
    return badge(Verdict(stored["verdict"]), ClipSetting(**stored["setting"]), label=label)


def _owner(app: Services, token: str, question: dict[str, Any]) -> Principal | None:
    with app.database.read() as session:
        return badge_token.owner(session, token, question)


def _question(asked: Asked, label: str) -> dict[str, Any]:
    return {**asked.given(), "label": label}


def _plain(label: str) -> str:
    """A label in Markdown, none of it markup."""
    return re.sub(r"([\\`*_{}\[\]<>#!|&~])", r"\\\1", label)
