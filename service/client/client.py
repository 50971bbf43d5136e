"""What a program or the command line asks a service for, on the server's own types."""

from __future__ import annotations

import math
import time
import uuid
from typing import Any

from service.client.keys import KeyCalls
from service.client.studies import StudyCalls, study_path
from service.client.trial import LeasedTrial
from service.client.webhooks import WebhookCalls
from service.errors import ConflictError, UnavailableError
from service.schemas import (
    BadgeOut,
    LeaseOut,
    MethodOut,
    Ready,
    RecommendationAnswer,
    RecommendationOut,
    Version,
    WaitingOut,
    WorkerOut,
    WorkloadOut,
)

#: How long one request for a lane waits, how long `Client.ask` waits for a service that is away, and how long between
#: two tries, in seconds.
_ASK_WAIT_SECONDS = 25.0
_OUTAGE_SECONDS = 120.0
_RETRY_SECONDS = 1.0


class Client(StudyCalls, KeyCalls, WebhookCalls):
    """The service's addresses as methods; see `service.client.connection.Connection` for how it is made."""

    #: Whether the service ever answered `ask`: then an outage is waited for.
    _has_asked = False

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
        path = study_path(study_id, "/trials:ask")
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
        return self._call(RecommendationOut, "GET", study_path(study_id, "/recommendation"), params=params)

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
