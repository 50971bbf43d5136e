"""What a program or the command line asks a service for, on the server's own types."""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from service.client.follow import follow
from service.client.keys import KeyCalls
from service.client.trial import LeasedTrial
from service.client.webhooks import WebhookCalls
from service.errors import ConflictError, NotFoundError, UnavailableError
from service.schemas import (
    BadgeOut,
    EventOut,
    LeaseOut,
    MethodOut,
    Page,
    Ready,
    RecommendationAnswer,
    RecommendationOut,
    StudyOut,
    TrialOut,
    Version,
    WaitingOut,
    WorkerOut,
    WorkloadOut,
)
from tuner.spec import StudySpec

#: How long one request for a lane waits, how long `Client.ask` waits for a service that is away, and how long between
#: two tries, in seconds.
_ASK_WAIT_SECONDS = 25.0
_OUTAGE_SECONDS = 120.0
_RETRY_SECONDS = 1.0
#: HTTP status of a submission that made something.
_ACCEPTED = 202


@dataclass(frozen=True)
class Submission:
    """What a submission led to.

    Attributes:
        study: the study.
        is_new: whether this request made it; False for one that its key or its name already had.
    """

    study: StudyOut
    is_new: bool


class Client(KeyCalls, WebhookCalls):
    """The service's addresses as methods; see `service.client.connection.Connection` for how it is made."""

    #: Whether the service ever answered `ask`: then an outage is waited for.
    _has_asked = False

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
        return self.submit_study(spec, name=name, idempotency_key=idempotency_key).study

    def submit_study(
        self,
        spec: StudySpec | Mapping[str, Any],
        *,
        name: str | None = None,
        idempotency_key: str | None = None,
    ) -> Submission:
        """`create_study`, and whether the study was there already.

        Args:
            spec: as there.
            name: likewise.
            idempotency_key: likewise.

        Returns:
            The study, and whether this request made it.
        """
        body = dict(spec.to_json() if isinstance(spec, StudySpec) else spec)
        if name is not None:
            body["name"] = name
        # NaN goes over the wire: the service answers with the field that holds it.
        return self._submit("/v1/studies", json.dumps(body), idempotency_key)

    def extend_study(
        self, study_id: str, num_seeds: int | None = None, *, idempotency_key: str | None = None
    ) -> StudyOut:
        """Have a study that has ended compare on further fresh seeds.

        Args:
            study_id: its id.
            num_seeds: how many, at least 1; None takes as many as its recommendation says would about settle it, or
                goes on with an extension that was cancelled or failed.
            idempotency_key: the same key asks for the same extension once; None draws one.

        Returns:
            The study, queued again; its recommendation stays until the next version is there.

        Raises:
            ConflictError: ``study_not_done``, ``nothing_to_extend``, ``already_settled`` or ``not_settleable``.
            InvalidRequestError: ``too_few_seeds``, ``too_many_seeds`` or ``budget_exceeded``.
        """
        content = json.dumps({"num_seeds": num_seeds})
        return self._submit(_path(study_id, "/extend"), content, idempotency_key).study

    def _submit(self, path: str, content: str, idempotency_key: str | None) -> Submission:
        headers = {
            "Content-Type": "application/json",
            "Idempotency-Key": idempotency_key or str(uuid.uuid4()),
        }
        response = self._request("POST", path, content=content, headers=headers)
        return Submission(self._read(StudyOut, response), is_new=response.status_code == _ACCEPTED)

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

    def ask(
        self, study_id: str, *, client_id: str | None = None, wait: float | None = None
    ) -> LeasedTrial | None:
        """Lease a lane of an external study, to train it here.

        A service that was there before and is away is waited for, for two minutes.

        Args:
            study_id: the study.
            client_id: what this process calls itself, 1 to 100 printable characters; asking again under the same name
                gives the lane that it holds already, and ends the lease of before. None draws a name.
            wait: how long to wait for a lane, in seconds, >= 0; None waits until there is one or the study has ended.

        Returns:
            The lane, under a lease that a thread keeps alive; None if the study has ended.

        Raises:
            ConflictError: ``not_external`` if workers train the study.
            NotFoundError: if there is no such study.
            UnavailableError: ``no_lane_ready`` if none was free in time, or ``service_unreachable``.
        """
        name = client_id or str(uuid.uuid4())
        deadline = math.inf if wait is None else time.monotonic() + wait
        away_since: float | None = None
        while True:
            left = deadline - time.monotonic()
            patience = max(0.0, min(left, _ASK_WAIT_SECONDS))
            try:
                found = self._ask_once(study_id, name, patience)
            except UnavailableError:
                away_since = away_since or time.monotonic()
                gives_up = time.monotonic() - away_since > _OUTAGE_SECONDS or time.monotonic() >= deadline
                if gives_up or not self._has_asked:
                    raise
                time.sleep(_RETRY_SECONDS)
                continue
            except ConflictError as error:
                if error.code != "study_ended":
                    raise
                return None
            self._has_asked, away_since = True, None
            if isinstance(found, LeaseOut):
                return LeasedTrial(self._call, found)
            if time.monotonic() >= deadline:
                raise UnavailableError(
                    f"no lane of study {study_id} was free within {wait:g} s: {found.detail}",
                    code="no_lane_ready",
                )
            time.sleep(max(0.0, min(found.retry_after, deadline - time.monotonic())))

    def _ask_once(self, study_id: str, client_id: str, wait: float) -> LeaseOut | WaitingOut:
        body = {"client_id": client_id, "wait": wait}
        path = _path(study_id, "/trials:ask")
        answer: LeaseOut | WaitingOut = self._call(
            LeaseOut | WaitingOut,  # type: ignore[arg-type]
            "POST",
            path,
            json=body,
            patience=wait,
        )
        return answer

    def get_recommendation(self, study_id: str, version: int | None = None) -> RecommendationOut:
        """The answer of a study.

        Args:
            study_id: its id.
            version: which one of an extended study; None gives the newest.

        Returns:
            The recommendation.

        Raises:
            NotFoundError: ``no_recommendation_yet`` while there is none, ``recommendation_not_found`` without such a
                version.
        """
        params = {} if version is None else {"version": version}
        return self._call(RecommendationOut, "GET", _path(study_id, "/recommendation"), params=params)

    def find_recommendation(
        self, workload: str | None = None, fingerprint: str | None = None, **features: Any
    ) -> RecommendationAnswer:
        """The newest answer for a workload or a fingerprint, and how well it fits; with features, similar ones.

        Args:
            workload: its name; None asks by the rest alone.
            fingerprint: of what is trained, enough by itself; None takes the newest of the workload.
            **features: ``optimizer`` and what else is known of the training: ``num_parameters``, ``learning_rate``,
                ``batch_size``, ``precision``, ``model_signature``, and ``median_norm``, without which no threshold can
                be carried over.

        Returns:
            The answer; ``match`` is ``none`` if nothing is stored.

        Raises:
            InvalidRequestError: ``query_incomplete`` without a workload, a fingerprint and an optimizer.
        """
        asked = {"workload": workload, "fingerprint": fingerprint, **features}
        params = {name: value for name, value in asked.items() if value is not None}
        return self._call(RecommendationAnswer, "GET", "/v1/recommendations", params=params)

    def get_badge(
        self, workload: str | None = None, fingerprint: str | None = None, *, label: str | None = None
    ) -> BadgeOut:
        """Where the badge of a recommendation is, with a token that opens it to everyone who has the address.

        Args:
            workload: its name; None asks by the fingerprint alone.
            fingerprint: of what is trained, enough by itself; None takes the newest of the workload.
            label: the badge's left side; None is the usual one.

        Returns:
            The addresses, and the Markdown for a README.

        Raises:
            InvalidRequestError: ``query_incomplete`` without a workload and a fingerprint.
            ForbiddenError: ``badge_needs_key`` without an access key of its own.
        """
        asked = {"workload": workload, "fingerprint": fingerprint, "label": label}
        params = {name: value for name, value in asked.items() if value is not None}
        return self._call(BadgeOut, "GET", "/v1/recommendations/badge", params=params)

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
        service answers it goes on, however long nothing happens and however often a proxy cuts the stream; behind a
        proxy that holds streams back no event arrives, and it ends with the study.

        Args:
            study_id: its id.
            after: skip events up to this id; None starts at the first.

        Yields:
            The events in order; the last one is terminal.

        Raises:
            ProblemError: what the service answered instead of a stream.
            UnavailableError: ``service_unreachable`` if it stays away through all reconnections, about three minutes.
        """
        for seen in follow(self, study_id, after):
            if isinstance(seen, EventOut):
                yield seen


def _path(study_id: str, rest: str = "") -> str:
    return f"/v1/studies/{quote(study_id, safe='')}{rest}"
