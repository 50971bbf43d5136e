"""Every error as RFC 9457 ``application/problem+json``: one table of codes, `KINDS`, one way to answer.

An error is raised anywhere as a `ProblemError` (or a `TunerError`) and turned into its answer here. The framework's
own errors (validation, unknown route, body too large, database down, a bug) get the same form. No trace, no SQL
and no access key ever stands in an answer.
"""

from __future__ import annotations

import difflib
import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from service.api.kinds import KINDS as KINDS
from service.errors import InvalidRequestError, NotFoundError, ProblemError, UnavailableError
from service.logs import redact
from service.schemas import StudyRequest
from tuner.errors import SpecError, TunerError, UnknownMethodError, UnknownWorkloadError

MEDIA_TYPE = "application/problem+json"
#: Most field errors that one answer lists.
MAX_ERRORS = 20

_log = structlog.get_logger()


def install(app: FastAPI) -> None:
    """Answer every error of an application as a problem.

    Args:
        app: the application; `service.api.edge.Edge` answers what escapes it.
    """
    for kind in (ProblemError, TunerError, RequestValidationError, HTTPException, SQLAlchemyError):
        app.add_exception_handler(kind, _handle)


async def _handle(request: Request, error: Exception) -> Response:
    body = None
    if isinstance(error, UnknownMethodError):
        # Validation of the body raised it, so the JSON was read and is kept by the request.
        body = await request.json()
    problem = as_problem(error, body)
    if problem.code == "method_not_allowed":
        problem = _not_allowed(_methods(request))
    return respond(request.scope, problem)


def _methods(request: Request) -> list[str]:
    """Every method of an address; the router's own Allow header names those of its first route alone."""
    for template, operations in request.app.openapi()["paths"].items():
        if re.fullmatch(re.sub(r"{[^}]+}", "[^/]+", template), request.url.path):
            return [method.upper() for method in sorted(operations)]
    return ["GET"]


def _not_allowed(methods: Sequence[str]) -> ProblemError:
    allowed = ", ".join(methods)
    return ProblemError(
        f"this address does not take that method: use {allowed}",
        code="method_not_allowed",
        status=405,
        headers={"Allow": allowed},
    )


def as_problem(error: Exception, body: Any = None) -> ProblemError:
    """The problem that an exception is to the caller; anything unexpected becomes ``internal_error``.

    Args:
        error: what was raised.
        body: the request's JSON, to point at an unknown method.

    Returns:
        The problem.
    """
    match error:
        case ProblemError():
            return error
        case RequestValidationError():
            return _from_validation(error)
        case UnknownMethodError():
            field = {"detail": str(error), "pointer": _find_method(body, error.method)}
            return InvalidRequestError(str(error), code=error.code, errors=[field])
        case UnknownWorkloadError():
            field = {"detail": str(error), "pointer": "/workload"}
            return InvalidRequestError(str(error), code=error.code, errors=[field])
        case SpecError():
            field = {"detail": error.reason, "pointer": _pointer(["body", *error.field.split(".")])}
            return InvalidRequestError(str(error), code=error.code, errors=[field])
        case TunerError():
            return InvalidRequestError(str(error), code=error.code)
        case HTTPException():
            return _from_http(error)
        case OperationalError() | InterfaceError() | PoolTimeoutError():
            return _database_down(error)
        case DBAPIError() if error.connection_invalidated:
            return _database_down(error)
    _log.error("a request broke", action="request_failed", exc_info=error)
    return ProblemError(
        "the service broke while answering: report the request id; nothing was changed by halves"
    )


def respond(scope: Mapping[str, Any], problem: ProblemError) -> Response:
    """A problem as an HTTP answer.

    Args:
        scope: the request's ASGI scope, for its path and id.
        problem: the problem.

    Returns:
        The answer.
    """
    kind = KINDS.get(problem.code)
    document = {
        "type": f"/errors/{problem.code}",
        "title": problem.title if kind is None else kind.title,
        "status": problem.status,
        "detail": problem.detail,
        "instance": scope["path"],
        "code": problem.code,
        "request_id": scope.get("state", {}).get("request_id", ""),
        "errors": problem.errors[:MAX_ERRORS],
    }
    # ASCII with escapes, so that a text no encoding takes (a lone surrogate) can't break the answer itself.
    # Redacted, because a caller may have put a key where it does not belong, and its place is echoed.
    content = redact(None, "", {"content": json.dumps(document, allow_nan=False)})["content"]
    headers = {"Cache-Control": "no-store"} | problem.headers
    return Response(content, status_code=problem.status, headers=headers, media_type=MEDIA_TYPE)


def page(code: str) -> str | None:
    """The page behind a problem's ``type``, as HTML; None for a code that does not exist."""
    kind = KINDS.get(code)
    if kind is None:
        return None
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(kind.title)}</title>'
        f"<h1>{html.escape(kind.title)}</h1><p>Code <code>{code}</code>, HTTP status {kind.status}.</p>"
        f"<p>What to do: {html.escape(kind.advice)}</p></html>"
    )


def _from_http(error: HTTPException) -> ProblemError:
    headers = dict(error.headers or {})
    match error.status_code:
        case 404:
            return NotFoundError(
                "there is nothing at this address: GET /docs lists the addresses", code="route_not_found"
            )
        case 405:
            return _not_allowed(["GET"])
        case 413:
            return too_large()
        case 400:
            return InvalidRequestError(
                "the body could not be read as JSON in UTF-8: check its encoding, its nesting and its numbers",
                code="malformed_json",
                status=400,
            )
    return ProblemError(str(error.detail), code="http_error", status=error.status_code, headers=headers)


def too_large(limit: int | None = None) -> ProblemError:
    """The problem of a body above the limit."""
    bound = "" if limit is None else f" of {limit} bytes"
    return ProblemError(
        f"the body is larger than this server's limit{bound}: send a smaller one, or ask the operator to raise "
        "CLIPTUNE_MAX_BODY_BYTES",
        code="body_too_large",
        status=413,
    )


def _database_down(error: Exception) -> UnavailableError:
    _log.warning(
        "the database did not answer", action="database_unavailable", error=str(getattr(error, "orig", error))
    )
    return UnavailableError(
        "the database does not answer: nothing was changed, send the same request again in a few seconds",
        code="database_unavailable",
        headers={"Retry-After": "5"},
    )


def _from_validation(error: RequestValidationError) -> ProblemError:
    found = list(error.errors())
    broken = next((each for each in found if each["type"] == "json_invalid"), None)
    if broken is not None:
        position = broken["loc"][-1]
        return InvalidRequestError(
            f"the body is not JSON: {broken['ctx']['error']} at character {position}",
            code="malformed_json",
            status=400,
            errors=[{"detail": broken["ctx"]["error"], "pointer": ""}],
        )
    sentences: dict[str, str] = {}
    code = "invalid_request"
    for each in found:
        cause = each.get("ctx", {}).get("error")
        location, sentence = list(each["loc"]), _sentence(each)
        if isinstance(cause, SpecError):
            code, sentence = cause.code, cause.reason
            location += cause.field.split(".")
        if location[:2] == ["body", "parameters"]:
            # A value that fits no member of the union is reported once per member.
            location = location[:3]
        sentences.setdefault(_pointer(location), sentence)
    errors = [{"detail": sentence, "pointer": pointer} for pointer, sentence in sentences.items()]
    first = errors[0]
    name = (
        first["pointer"].removeprefix("query/").removeprefix("header/").strip("/").replace("/", ".")
        or "the body"
    )
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return InvalidRequestError(f"{name} {first['detail']}{more}", code=code, errors=errors)


def _sentence(error: Mapping[str, Any]) -> str:
    name = str(error["loc"][-1])
    match error["type"]:
        case "missing":
            return "is missing: give it"
        case "unexpected_keyword_argument" | "extra_forbidden":
            near = difflib.get_close_matches(name, [field.name for field in fields(StudyRequest)], n=1)
            return "is no field here: " + (f"did you mean {near[0]}?" if near else "take it out")
        case "dataclass_type":
            return "must be a JSON object"
    return "is not valid: " + str(error["msg"]).removeprefix("Value error, ").removeprefix("Input ")


def _pointer(location: Sequence[str | int]) -> str:
    source, *rest = location
    if source != "body":
        return f"{source}/{rest[0]}" if rest else str(source)
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in rest)


def _find_method(body: Any, method: str) -> str:
    """Where an unknown method stands in a study's body."""
    if isinstance(body, dict):
        current = body.get("current")
        if isinstance(current, dict) and current.get("method") == method:
            return "/current/method"
        methods = body.get("methods")
        if isinstance(methods, list) and method in methods:
            return f"/methods/{methods.index(method)}"
    return "/methods"
