"""What routes ask for: the application's parts, and who is calling with which scope.

A dependency that does not wait is an ``async def`` all the same: FastAPI would send a plain ``def`` through a
thread, which costs more than the dependency.
"""

from __future__ import annotations

import email.message
import re
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import Depends, Path, Request
from starlette.concurrency import run_in_threadpool

from service.api.metrics import Metrics
from service.api.news import News
from service.db.session import Database
from service.errors import ForbiddenError, NotFoundError, ProblemError, UnauthorizedError
from service.identity.identities import IDENTITY, Identities
from service.identity.token import has_token_form
from service.jobs.queue import Queue
from service.keys import CHALLENGE, Keyring, Principal, Scope
from service.settings import Settings

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Services:
    """What an application works with; made once by `service.api.app.create_app`.

    Attributes:
        news: wakes event streams.
        fast_reads: threads that cheap queries share. Few, because threads that wake each other for a fraction
            of a millisecond spend more time waiting for Python's lock than reading.
        token_checks: threads that verify identity tokens. Few, because each may wait for its issuer, and anybody can
            send a token.
        stopping: set when the process is about to end, so that streams and waits end by themselves.
    """

    settings: Settings
    database: Database
    queue: Queue
    keyring: Keyring
    identities: Identities
    metrics: Metrics
    news: News
    fast_reads: CapacityLimiter
    token_checks: CapacityLimiter
    stopping: threading.Event = field(default_factory=threading.Event)


async def _services(request: Request) -> Services:
    return services_of(request)


def services_of(request: Request) -> Services:
    """The parts of the application that a request came to."""
    services: Services = request.app.state.services
    return services


async def _authenticate(request: Request) -> Principal:
    """Who is calling, from ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``; the key may be an identity token.

    Raises:
        UnauthorizedError: without a good key.
    """
    services = services_of(request)
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    key = key.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
    if not key:
        raise UnauthorizedError(
            "no access key came with the request: send the header 'Authorization: Bearer KEY'; `cliptune serve` keeps "
            "the first key in ~/.cliptune/key",
            code="key_missing",
            headers=CHALLENGE,
        )
    if has_token_form(key):
        known = services.identities.recall(key)
        if known is None:
            look_up = services.identities.look_up
            known = await anyio.to_thread.run_sync(look_up, key, limiter=services.token_checks)
        return known
    known = services.keyring.recall(key)
    return await run_in_threadpool(services.keyring.look_up, key) if known is None else known


def _require(scope: Scope) -> Callable[[Request], Awaitable[Principal]]:
    async def check(request: Request) -> Principal:
        principal = await _authenticate(request)
        if not principal.may(scope):
            caller = "identity token" if principal.key_id.startswith(IDENTITY) else "access key"
            raise ForbiddenError(
                f"the {caller} {principal.key_id} has the scopes {', '.join(sorted(principal.scopes)) or 'none'}: "
                f"this needs {scope}"
            )
        return principal

    return check


async def authenticate_reader(request: Request) -> Principal:
    """Who is calling, with the scope ``read``; for routes that a key is only one of the ways into.

    Args:
        request: carries the key.

    Returns:
        The caller.

    Raises:
        UnauthorizedError: without a good key.
        ForbiddenError: without the scope.
    """
    return await _require("read")(request)


async def _require_json(request: Request) -> None:
    """Refuse a body that is not declared as JSON, which would otherwise give a puzzling 422.

    Raises:
        ProblemError: ``unsupported_media_type``.
    """
    declared = request.headers.get("content-type", "")
    message = email.message.Message()
    message["content-type"] = declared or "none/none"
    kind = message.get_content_subtype()
    if message.get_content_maintype() != "application" or not (kind == "json" or kind.endswith("+json")):
        raise ProblemError(
            f"the body came as {declared or 'nothing'}: send Content-Type: application/json, as "
            "`curl --json '{...}'` does",
            code="unsupported_media_type",
            status=415,
            headers={"Accept-Post": "application/json"},
        )


def require_uuid(text: str, code: str, what: str) -> str:
    """An id, if it can be one.

    Args:
        text: what stood in the path.
        code: of the problem otherwise.
        what: the kind of object.

    Returns:
        The id.

    Raises:
        NotFoundError: if no object can have this id.
    """
    if not _UUID.fullmatch(text):
        raise NotFoundError(f"there is no {what} with this id: an id is a UUID in lower case", code=code)
    return text


async def _study_id(study_id: Annotated[str, Path(max_length=100)]) -> str:
    return require_uuid(study_id, "study_not_found", "study")


App = Annotated[Services, Depends(_services)]
Reader = Annotated[Principal, Depends(_require("read"))]
Writer = Annotated[Principal, Depends(_require("write"))]
Admin = Annotated[Principal, Depends(_require("admin"))]
Asker = Annotated[Principal, Depends(_require("worker"))]
StudyId = Annotated[str, Depends(_study_id)]
JsonBody = Depends(_require_json)
