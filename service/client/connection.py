"""A connection to a service: requests, retries, event streams, and problems raised as errors.

A problem that the service answers is raised as the `service.errors` class of its status, with the same ``code``.
A service that can't be reached, or that breaks, is an `UnavailableError`. Requests that may be repeated without
harm (reads, and those that carry an Idempotency-Key) are tried three times.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx2
from pydantic import TypeAdapter, ValidationError

from service.errors import (
    ConflictError,
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    ProblemError,
    UnauthorizedError,
    UnavailableError,
)
from service.schemas import EventOut, Page, Problem

Answer = TypeVar("Answer")

ERRORS = {401: UnauthorizedError, 403: ForbiddenError, 404: NotFoundError, 409: ConflictError}
#: Waits before the second and the third try of a request, in seconds.
_RETRY_WAITS = (0.1, 0.4)
#: The server pings an idle stream every 15 s; three missed pings mean that it is gone.
STREAM_SILENCE_SECONDS = 45.0
#: Longest event of a stream, in characters.
_MAX_EVENT = 4_000_000


class Connection:
    """A connection to one service; use it as a context manager, or call `close`.

    Args:
        url: the service's address, for example ``http://127.0.0.1:8765``.
        api_key: an access key; empty sends none.
        timeout: how long a single request may take, in seconds, > 0.
        transport: replaces the network, for tests.
        identity: gives an identity token for each request, instead of a key.

    Raises:
        UnavailableError: ``service_unreachable`` if the address is none or holds a password, or if the environment's
            proxies or certificates can't be used.
        UnauthorizedError: ``key_malformed`` if the key can't be sent.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        timeout: float = 30.0,
        transport: httpx2.BaseTransport | None = None,
        identity: Callable[[], str] | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._timeout = timeout
        headers = {"Accept": "application/json"}
        if not is_sendable(api_key):
            raise UnauthorizedError(
                "the access key has characters that no key has: copy it whole, without quotes and spaces",
                code="key_malformed",
            )
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        try:
            address = httpx2.URL(self.url)
        except httpx2.InvalidURL as error:
            raise self._unreachable(error) from error
        if address.userinfo:
            # They would be sent in the key's place.
            raise UnavailableError(
                "the service's address holds a user or a password, which lets nobody in here: take them out, and set "
                "CLIPTUNE_API_KEY",
                code="service_unreachable",
            )
        try:
            self._http = httpx2.Client(
                base_url=address,
                headers=headers,
                timeout=timeout,
                transport=transport,
                auth=None if identity is None else _bearer(identity),
            )
        except (httpx2.InvalidURL, ImportError, OSError, ValueError) as error:
            # SOCKS without its package, a proxy that is none, a file of certificates that is not there.
            raise UnavailableError(
                f"nothing can be sent from here ({error}): correct ALL_PROXY, HTTP_PROXY, HTTPS_PROXY and "
                "SSL_CERT_FILE in the environment, or take them out",
                code="service_unreachable",
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _stream(
        self, path: str, after: int | None, silence: float = STREAM_SILENCE_SECONDS
    ) -> Iterator[EventOut | None]:
        """One connection's events; a None says that the service has opened the stream, or still is there.

        Raises:
            SSEError: if something else answers.
        """
        headers = {} if after is None else {"Last-Event-ID": str(after)}
        timeout = httpx2.Timeout(min(self._timeout, silence), read=silence)
        with self._http.sse(path, headers=headers, timeout=timeout) as source:
            if source.response.status_code != 200:
                source.response.read()
                raise self._problem(source.response)
            if not source.response.headers.get("content-type", "").startswith("text/event-stream"):
                raise httpx2.SSEError("it answers with no stream of events")
            yield None
            # Not by iterating the source, which passes over pings: who waits wants to know the time.
            yield from _decoded(source.response.iter_text())

    def _items(self, kind: type[Answer], path: str) -> Iterator[Answer]:
        cursor: str | None = None
        while True:
            params = {"limit": 100} | ({"cursor": cursor} if cursor else {})
            page = self._call(Page[kind], "GET", path, params=params)  # type: ignore[valid-type]
            yield from page.items
            cursor = page.next_cursor
            if cursor is None:
                return

    def _call(
        self,
        kind: type[Answer],
        method: str,
        path: str,
        *,
        repeatable: bool = True,
        patience: float = 0.0,
        timeout: float | None = None,
        **request: Any,
    ) -> Answer:
        response = self._request(
            method, path, repeatable=repeatable, patience=patience, timeout=timeout, **request
        )
        return self._read(kind, response)

    def _request(
        self,
        method: str,
        path: str,
        *,
        repeatable: bool = True,
        patience: float = 0.0,
        timeout: float | None = None,
        **request: Any,
    ) -> httpx2.Response:
        """An answer that is no problem; ``timeout`` replaces the connection's, ``patience`` is added for reading."""  # noqa: DOC501
        limit = timeout or self._timeout
        limits = httpx2.Timeout(limit, read=limit + patience)
        waits = _RETRY_WAITS if repeatable else ()
        for wait in (*waits, None):
            try:
                response = self._http.request(method, path, timeout=limits, **request)
            except httpx2.TransportError as error:
                if wait is None or isinstance(error, httpx2.UnsupportedProtocol):
                    raise self._unreachable(error) from error
            except (httpx2.InvalidURL, httpx2.DecodingError, UnicodeError) as error:
                raise self._unreachable(error) from error
            else:
                if response.status_code < 400:
                    return response
                if response.status_code not in (502, 503, 504) or wait is None:
                    raise self._problem(response)
            time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _read(self, kind: type[Answer], response: httpx2.Response) -> Answer:
        try:
            return TypeAdapter(kind).validate_json(response.content)
        except ValidationError:
            raise self._unexpected(response) from None

    def _problem(self, response: httpx2.Response) -> ProblemError:
        try:
            problem = Problem.model_validate_json(response.content)
        except ValidationError:
            return self._unexpected(response)
        kind = ERRORS.get(problem.status, InvalidRequestError)
        if problem.status >= 500 or problem.status == 429:
            kind = UnavailableError
        return kind(
            problem.detail,
            code=problem.code,
            title=problem.title,
            status=problem.status,
            errors=[each.model_dump() for each in problem.errors],
            headers={name: value for name, value in response.headers.items() if name == "retry-after"},
        )

    def _unexpected(self, response: httpx2.Response) -> UnavailableError:
        return UnavailableError(
            f"{self.url} answered {response.status_code} with something that is not cliptune's: check the address, "
            "and that no proxy stands in between",
            code="unexpected_response",
            status=response.status_code,
        )

    def _unreachable(self, cause: Exception | None) -> UnavailableError:
        reason = f" ({cause})" if cause is not None and str(cause) else ""
        return UnavailableError(
            f"no service answers at {self.url}{reason}: start one with `cliptune serve`, or set CLIPTUNE_URL",
            code="service_unreachable",
        )


def is_sendable(secret: str) -> bool:
    r"""Whether a header can carry a secret. What can't be carried is told in errors, secret and all, by who refuses it.

    Example:
        >>> is_sendable("cliptune_live_0a1B2c3D"), is_sendable("cliptune_live_0a1B2c3D "), is_sendable("a\nb")
        (True, False, False)
    """
    return secret.isascii() and secret.isprintable() and secret == secret.strip()


def _decoded(chunks: Iterable[str]) -> Iterator[EventOut | None]:
    """Events of a stream's text, and a None for each of its other blocks: pings and the like.

    Raises:
        UnavailableError: ``unexpected_response`` if something comes that is no event of ours.
    """
    rest, data = "", ""
    for chunk in chunks:
        # At line feeds alone: a text within the JSON may have other line ends, which `splitlines` would take for some.
        *lines, rest = (rest + chunk).split("\n")
        if len(rest) > _MAX_EVENT:
            text = _no_event(f"has more than {_MAX_EVENT} characters")
            raise UnavailableError(text, code="unexpected_response", status=200)
        for line in lines:
            if line.startswith("data:"):
                data = line[len("data:") :]
            elif not line.rstrip("\r"):
                yield _event(data) if data else None
                data = ""


def _event(data: str) -> EventOut:
    """An event of a stream.

    Raises:
        UnavailableError: as `_decoded`.
    """
    try:
        return EventOut.model_validate_json(data)
    except ValidationError:
        text = _no_event("is none of cliptune's")
        raise UnavailableError(text, code="unexpected_response", status=200) from None


def _no_event(reason: str) -> str:
    return f"an event of the stream {reason}: check the address, and that no proxy stands in between"


def _bearer(identity: Callable[[], str]) -> Callable[[httpx2.Request], httpx2.Request]:
    """Puts a token that is good now on each request, also on those of a stream that is opened again hours later."""

    def sign(request: httpx2.Request) -> httpx2.Request:
        request.headers["Authorization"] = f"Bearer {identity()}"
        return request

    return sign
