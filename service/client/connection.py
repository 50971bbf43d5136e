"""A connection to a service: requests, retries, event streams, and problems raised as errors.

A problem that the service answers is raised as the `service.errors` class of its status, with the same ``code``.
A service that can't be reached, or that breaks, is an `UnavailableError`. Requests that may be repeated without
harm (reads, and those that carry an Idempotency-Key) are tried three times.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
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
_STREAM_SILENCE_SECONDS = 45.0


class Connection:
    """A connection to one service; use it as a context manager, or call `close`.

    Args:
        url: the service's address, for example ``http://127.0.0.1:8765``.
        api_key: an access key; empty sends none.
        timeout: how long a single request may take, in seconds, > 0.
        transport: replaces the network, for tests.

    Raises:
        UnavailableError: ``service_unreachable`` if the address is none.
        UnauthorizedError: ``key_malformed`` if the key can't be sent.
    """

    def __init__(
        self, url: str, api_key: str, *, timeout: float = 30.0, transport: httpx2.BaseTransport | None = None
    ) -> None:
        self.url = url.rstrip("/")
        self._timeout = timeout
        headers = {"Accept": "application/json"}
        if not (api_key.isascii() and api_key.isprintable()):
            raise UnauthorizedError(
                "the access key has characters that no key has: copy it whole and without quotes",
                code="key_malformed",
            )
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        try:
            self._http = httpx2.Client(
                base_url=self.url, headers=headers, timeout=timeout, transport=transport
            )
        except httpx2.InvalidURL as error:
            raise self._unreachable(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _stream(self, path: str, after: int | None) -> Iterator[EventOut | None]:
        """One connection's events; a None before them says that the service has opened the stream."""
        headers = {} if after is None else {"Last-Event-ID": str(after)}
        timeout = httpx2.Timeout(self._timeout, read=_STREAM_SILENCE_SECONDS)
        with self._http.sse(path, headers=headers, timeout=timeout) as source:
            if source.response.status_code != 200:
                source.response.read()
                raise self._problem(source.response)
            if source.response.headers.get("content-type", "").startswith("text/event-stream"):
                yield None
            for event in source:
                if event.data:
                    yield EventOut.model_validate_json(event.data)

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
        **request: Any,
    ) -> Answer:
        timeout = httpx2.Timeout(self._timeout, read=self._timeout + patience)
        waits = _RETRY_WAITS if repeatable else ()
        for wait in (*waits, None):
            try:
                response = self._http.request(method, path, timeout=timeout, **request)
            except httpx2.TransportError as error:
                if wait is None or isinstance(error, httpx2.UnsupportedProtocol):
                    raise self._unreachable(error) from error
            except httpx2.InvalidURL as error:
                raise self._unreachable(error) from error
            else:
                if response.status_code < 400:
                    return self._read(kind, response)
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
        )

    def _unexpected(self, response: httpx2.Response) -> UnavailableError:
        return UnavailableError(
            f"{self.url} answered {response.status_code} with something that is not cliptune's: check the address, "
            "and that no proxy stands in between",
            code="unexpected_response",
        )

    def _unreachable(self, cause: Exception | None) -> UnavailableError:
        reason = f" ({cause})" if cause is not None and str(cause) else ""
        return UnavailableError(
            f"no service answers at {self.url}{reason}: start one with `cliptune serve`, or set CLIPTUNE_URL",
            code="service_unreachable",
        )
