"""The typed client of the HTTP interface, on the server's own types; a light install (no database, no torch).

A problem that the service answers is raised as the `service.errors` class of its status, with the same ``code``.
A service that can't be reached, or that breaks, is an `UnavailableError`. Requests that may be repeated without
harm (reads, and a submission, which carries an Idempotency-Key) are tried three times.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

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
from service.schemas import (
    EventOut,
    MethodOut,
    Page,
    Problem,
    Ready,
    RecommendationAnswer,
    RecommendationOut,
    StudyOut,
    TrialOut,
    Version,
    WorkerOut,
    WorkloadOut,
)
from tuner.spec import StudySpec

Answer = TypeVar("Answer")

_ERRORS = {401: UnauthorizedError, 403: ForbiddenError, 404: NotFoundError, 409: ConflictError}
#: Waits before the second and the third try of a request, in seconds.
_RETRY_WAITS = (0.1, 0.4)
#: Waits before reconnecting to an event stream, in seconds; the last one repeats.
_RECONNECT_WAITS = (0.1, 0.5, 1.0, 2.0, 5.0)
#: Reconnections in a row that found no service, before `Client.events` gives up.
_MAX_RECONNECTS = 12
#: The server pings an idle stream every 15 s; three missed pings mean that it is gone.
_STREAM_SILENCE_SECONDS = 45.0


class Client:
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

    def create_study(
        self,
        spec: StudySpec | Mapping[str, Any],
        *,
        name: str | None = None,
        idempotency_key: str | None = None,
    ) -> StudyOut:
        """Submit a study.

        Args:
            spec: the question; a mapping is sent as it is, so the service checks it.
            name: unique among your studies; None leaves it unnamed (or as the mapping has it).
            idempotency_key: the same key with the same question gives the same study; None draws one.

        Returns:
            The study, queued or already there.

        Raises:
            ProblemError: what the service answered, for example `InvalidRequestError` or `ConflictError`.
        """
        body = dict(spec.to_json() if isinstance(spec, StudySpec) else spec)
        if name is not None:
            body["name"] = name
        # NaN goes over the wire: the service answers with the field that holds it.
        content = json.dumps(body)
        headers = {
            "Content-Type": "application/json",
            "Idempotency-Key": idempotency_key or str(uuid.uuid4()),
        }
        return self._call(StudyOut, "POST", "/v1/studies", content=content, headers=headers)

    def get_study(self, study_id: str, wait: float | None = None) -> StudyOut:
        """A study's present state.

        Args:
            study_id: its id.
            wait: answer only when it is done, or after this many seconds, 0 to 30.

        Returns:
            The study.

        Raises:
            NotFoundError: if there is no such study.
        """
        params = {} if wait is None else {"wait": wait}
        return self._call(StudyOut, "GET", _path(study_id), params=params, patience=wait or 0.0)

    def find_study(self, prefix: str) -> StudyOut:
        """The one study whose id begins with these characters.

        Args:
            prefix: an id or its beginning.

        Returns:
            The study.

        Raises:
            NotFoundError: if no id begins so.
            ConflictError: if several do (``ambiguous_prefix``).
        """
        found = self._call(Page[StudyOut], "GET", "/v1/studies", params={"prefix": prefix, "limit": 5}).items
        if not found:
            raise NotFoundError(
                f"no study's id begins with {prefix!r}: `cliptune studies` shows the studies of this key",
                code="study_not_found",
            )
        if len(found) > 1:
            ids = ", ".join(study.id for study in found)
            raise ConflictError(
                f"{prefix!r} begins several ids ({ids}): give more of it", code="ambiguous_prefix"
            )
        return found[0]

    def list_studies(self, *, limit: int = 20, cursor: str | None = None) -> Page[StudyOut]:
        """One page of studies, newest first.

        Args:
            limit: studies per page, 1 to 100.
            cursor: ``next_cursor`` of the page before; None gives the first.
        """
        params = {"limit": limit} | ({"cursor": cursor} if cursor else {})
        return self._call(Page[StudyOut], "GET", "/v1/studies", params=params)

    def iter_studies(self) -> Iterator[StudyOut]:
        """Every study, newest first, a page at a time."""
        return self._items(StudyOut, "/v1/studies")

    def list_trials(self, study_id: str) -> list[TrialOut]:
        """All trials of a study, in the order of asking."""
        return list(self._items(TrialOut, _path(study_id, "/trials")))

    def cancel_study(self, study_id: str) -> StudyOut:
        """Ask for a study to stop; training ends within seconds.

        Args:
            study_id: its id.

        Returns:
            The study; still running until its worker has stopped.

        Raises:
            ConflictError: if it has already ended (``study_finished``).
        """
        return self._call(StudyOut, "POST", _path(study_id, "/cancel"), repeatable=False)

    def get_recommendation(self, study_id: str) -> RecommendationOut:
        """The answer of a study.

        Args:
            study_id: its id.

        Returns:
            The recommendation.

        Raises:
            NotFoundError: ``no_recommendation_yet`` while there is none.
        """
        return self._call(RecommendationOut, "GET", _path(study_id, "/recommendation"))

    def find_recommendation(self, workload: str, fingerprint: str | None = None) -> RecommendationAnswer:
        """The newest answer for a workload, and how well it fits.

        Args:
            workload: its name.
            fingerprint: of the workload with its parameters; None takes the newest of the workload.

        Returns:
            The answer; ``match`` is ``none`` if nothing is stored.
        """
        params = {"workload": workload} | ({"fingerprint": fingerprint} if fingerprint else {})
        return self._call(RecommendationAnswer, "GET", "/v1/recommendations", params=params)

    def list_workloads(self) -> list[WorkloadOut]:
        """The workloads that workers have registered."""
        return list(self._items(WorkloadOut, "/v1/workloads"))

    def list_methods(self) -> list[MethodOut]:
        """The clipping methods."""
        return list(self._items(MethodOut, "/v1/methods"))

    def list_workers(self) -> list[WorkerOut]:
        """The workers, those alive first."""
        return list(self._items(WorkerOut, "/v1/workers"))

    def ready(self) -> Ready:
        """Whether studies can run now.

        Returns:
            The readiness.

        Raises:
            UnavailableError: if not, with the reason (``no_worker``, ``database_unavailable``).
        """
        return self._call(Ready, "GET", "/readyz", repeatable=False)

    def version(self) -> Version:
        """What is running there."""
        return self._call(Version, "GET", "/version")

    def events(self, study_id: str, after: int | None = None) -> Iterator[EventOut]:
        """What happened to a study and what happens next, until it has ended.

        A cut connection is made again, with the last id seen, so that no event is lost or repeated. As long as the
        service answers it goes on, however long nothing happens and however often a proxy cuts the stream.

        Args:
            study_id: its id.
            after: skip events up to this id; None starts at the first.

        Yields:
            The events in order; the last one is terminal.

        Raises:
            ProblemError: what the service answered instead of a stream.
            UnavailableError: ``service_unreachable`` if it stays away through all reconnections.
        """
        # `failures` says when to give up, `cuts` how long to wait: a service that answers is asked on, but slowly.
        last, was_done, failures, cuts = after, False, 0, 0
        while True:
            try:
                for event in self._stream(study_id, last):
                    failures = 0
                    if event is None:
                        continue
                    cuts, last = 0, event.id
                    yield event
                    if event.is_terminal:
                        return
                # The stream ended by itself: the server is going down, or everything was read before.
                if was_done:
                    return
                was_done = self.get_study(study_id).done
                failures = 0
            except UnavailableError as error:
                if error.code == "unexpected_response" or failures >= _MAX_RECONNECTS:
                    raise
                failures += 1
            except httpx2.TransportError as error:
                if failures >= _MAX_RECONNECTS:
                    raise self._unreachable(error) from error
                failures += 1
            if failures or not was_done:
                time.sleep(_RECONNECT_WAITS[min(cuts, len(_RECONNECT_WAITS) - 1)])
            cuts += 1

    def _stream(self, study_id: str, after: int | None) -> Iterator[EventOut | None]:
        """One connection's events; a None before them says that the service has opened the stream."""
        headers = {} if after is None else {"Last-Event-ID": str(after)}
        timeout = httpx2.Timeout(self._timeout, read=_STREAM_SILENCE_SECONDS)
        with self._http.sse(_path(study_id, "/events"), headers=headers, timeout=timeout) as source:
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
        kind = _ERRORS.get(problem.status, InvalidRequestError)
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


def _path(study_id: str, rest: str = "") -> str:
    return f"/v1/studies/{quote(study_id, safe='')}{rest}"
