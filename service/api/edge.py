"""The outermost layer of every request: request id, Host and cross-site checks, security headers, metrics.

A pure ASGI layer, because it stands in the way of every request. It also answers what no handler below caught,
so that even a bug or an oversized body is a problem document.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
import time
import uuid

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.metrics import Metrics
from service.api.problems import as_problem, respond, too_large
from service.errors import ForbiddenError, InvalidRequestError, ProblemError
from service.settings import Settings

_REQUEST_ID = re.compile(rb"[0-9A-Za-z._-]{1,64}")
_SECURITY_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'self'; object-src 'none'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
_OWN_SITE = (b"same-origin", b"none")
#: What other sites' pages may show as an image. It is opened by a token of its own, never by what a browser adds.
_SHOWN_ELSEWHERE = "/v1/recommendations/badge.svg"


class Edge:
    """Wraps an application; see the module.

    Args:
        app: what is inside.
        settings: for the allowed hosts and the body limit.
        metrics: where requests are counted.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._max_body_bytes = settings.max_body_bytes
        self._hosts = allowed_hosts(settings)
        self._process_id = uuid.uuid4().hex[:16].encode()
        self._counter = itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given if _REQUEST_ID.fullmatch(given) else self._next_id()
        scope.setdefault("state", {})["request_id"] = request_id.decode()
        answer = _Answer(send, request_id)
        began = time.perf_counter()
        try:
            refusal = self._refusal(scope, headers)
            if refusal is not None:
                await respond(scope, refusal)(scope, receive, answer.send)
            else:
                await self._app(scope, receive, answer.send)
            if answer.is_too_large:
                await respond(scope, too_large(self._max_body_bytes))(scope, receive, answer.send)
        except Exception as error:
            if answer.status:
                structlog.get_logger().error("an answer broke off", action="answer_broke", exc_info=error)
                raise
            with structlog.contextvars.bound_contextvars(request_id=request_id.decode()):
                problem = as_problem(error)
            await respond(scope, problem)(scope, receive, answer.send)
        finally:
            self._metrics.observe(scope, answer.status, time.perf_counter() - began)

    def _next_id(self) -> bytes:
        """A request id: drawn once per process and then counted, because drawing costs a system call."""
        return b"%s-%x" % (self._process_id, next(self._counter))

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> ProblemError | None:
        # Of two, the application would read the first and the line below the last.
        if len(headers) < len(scope["headers"]) and [name for name, _ in scope["headers"]].count(b"host") > 1:
            return InvalidRequestError(
                "the request has several Host headers: send one", code="host_not_allowed", status=400
            )
        host = _host_name(headers.get(b"host", b"").decode("latin-1"))
        if self._hosts is not None and host not in self._hosts:
            return InvalidRequestError(
                f"this service does not answer to the host {host!r}: use {', '.join(sorted(self._hosts))}, or have the "
                "operator add it to CLIPTUNE_ALLOWED_HOSTS",
                code="host_not_allowed",
                status=400,
            )
        site = headers.get(b"sec-fetch-site")
        is_image = scope["path"] == _SHOWN_ELSEWHERE and headers.get(b"sec-fetch-dest") == b"image"
        if site is not None and site not in _OWN_SITE and not is_image:
            return ForbiddenError(
                "a page of another site may not call this API: open it directly, or call it from a program",
                code="cross_site_request",
            )
        return None


class _Answer:
    """Passes an answer on with the headers that every answer has; holds back the framework's plain 413."""

    def __init__(self, send: Send, request_id: bytes) -> None:
        self._send = send
        self._request_id = request_id
        self.status = 0
        self.is_too_large = False

    async def send(self, message: Message) -> None:
        """ASGI's send."""
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", []))
            names = {name.lower() for name, _ in headers}
            if message["status"] == 413 and (b"content-type", b"text/plain; charset=utf-8") in headers:
                self.is_too_large = True
                return
            self.is_too_large = False
            self.status = message["status"]
            headers += [pair for pair in _SECURITY_HEADERS if pair[0] not in names]
            if b"cache-control" not in names:
                headers.append((b"cache-control", b"no-store"))
            headers.append((b"x-request-id", self._request_id))
            message = {**message, "headers": headers}
        elif self.is_too_large:
            return
        await self._send(message)


def allowed_hosts(settings: Settings) -> frozenset[str] | None:
    """The names that a Host header may carry, as `bracketed` writes them; None if any may."""
    extra = {name.strip() for name in settings.allowed_hosts.split(",") if name.strip()}
    if "*" in extra:
        return None
    return frozenset(bracketed(name) for name in {*extra, settings.host, "localhost", "127.0.0.1", "::1"})


def bracketed(host: str) -> str:
    """A host as it stands in a URL and in a Host header, the same for every spelling: lower case, IPv6 in brackets.

    Args:
        host: a name or an address, without a port; an IPv6 address may have its brackets already.

    Returns:
        The host; what is no IPv6 address is only put in lower case.

    Example:
        >>> bracketed("Example.org"), bracketed("0:0:0:0:0:0:0:1"), bracketed("[2001:DB8::1]")
        ('example.org', '[::1]', '[2001:db8::1]')
    """
    name = host.lower()
    try:
        address = ipaddress.IPv6Address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return name
    return f"[{address.compressed}]"


def _host_name(header: str) -> str:
    """A Host header without its port.

    Example:
        >>> _host_name("Example.org:80"), _host_name("[::1]:80")
        ('example.org', '[::1]')
    """
    host = header.strip().lower()
    if host.startswith("["):
        return bracketed(host.partition("]")[0] + "]")
    return host.partition(":")[0]
