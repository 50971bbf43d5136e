"""Successful answers: JSON with an ETag where a reader polls, nothing validated twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from pydantic import BaseModel
from starlette.responses import Response

from service.schemas import Page


def answer(
    document: BaseModel | Mapping[str, Any] | bytes,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    with_etag: bool = False,
) -> Response:
    """A JSON answer.

    Args:
        document: a schema's object, JSON values that were stored as one, or JSON text.
        status: of the answer.
        headers: besides the usual ones.
        with_etag: whether a reader may ask for changes only.

    Returns:
        The answer.
    """
    if isinstance(document, BaseModel):
        content = document.model_dump_json().encode()
    elif isinstance(document, bytes):
        content = document
    else:
        content = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    response = Response(content, status_code=status, headers=headers, media_type="application/json")
    return tagged(response) if with_etag else response


def tagged(response: Response) -> Response:
    """The same answer with an ``ETag``, so that a reader may ask for changes only.

    Args:
        response: with a body that is known whole.

    Returns:
        The answer.
    """
    response.headers["ETag"] = f'"{hashlib.sha256(response.body).hexdigest()[:32]}"'
    return response


def page_answer(request: Request, page: Page[Any]) -> Response:
    """A page of a list, with the way to the next one as a ``Link`` header too.

    Args:
        request: its path and query are repeated with the next cursor.
        page: the page.

    Returns:
        The answer.
    """
    if page.next_cursor is None:
        return answer(page)
    following = request.url.include_query_params(cursor=page.next_cursor)
    # Without the host, which the caller could have made up.
    return answer(page, headers={"Link": f'<{following.path}?{following.query}>; rel="next"'})


def not_modified(request: Request, response: Response) -> Response | None:
    """A 304 if the reader already has this answer.

    Args:
        request: may carry ``If-None-Match``.
        response: has an ETag.

    Returns:
        The short answer, or None to send the full one.
    """
    known = request.headers.get("if-none-match")
    if known is None:
        return None
    etag = response.headers["etag"]
    if known.strip() != "*" and etag not in (tag.strip().removeprefix("W/") for tag in known.split(",")):
        return None
    kept = {name: response.headers[name] for name in ("etag", "cache-control") if name in response.headers}
    return Response(status_code=304, headers=kept)
