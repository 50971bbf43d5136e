"""Studies: submitted once, followed over cut connections, extended and cancelled."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from service.client.connection import Connection
from service.client.follow import follow
from service.errors import ConflictError, NotFoundError
from service.schemas import EventOut, Page, StudyOut, TrialOut
from tuner.spec import StudySpec

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


class StudyCalls(Connection):
    """The addresses of studies and their trials as methods of `service.client.Client`."""

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
        return self._submit(study_path(study_id, "/extend"), content, idempotency_key).study

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
        return self._call(StudyOut, "GET", study_path(study_id), params=params, patience=wait or 0.0)

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
        return list(self._items(TrialOut, study_path(study_id, "/trials")))

    def cancel_study(self, study_id: str) -> StudyOut:
        """Ask for a study to stop; training ends within seconds.

        Args:
            study_id: its id.

        Returns:
            The study; still running until its worker has stopped.

        Raises:
            ConflictError: if it has already ended (``study_finished``).
        """
        return self._call(StudyOut, "POST", study_path(study_id, "/cancel"), repeatable=False)

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


def study_path(study_id: str, rest: str = "") -> str:
    """Where a study is.

    Args:
        study_id: its id; whatever it is made of, it stays one part of the path.
        rest: what follows.

    Returns:
        The path.

    Example:
        >>> study_path("../keys", "/cancel")
        '/v1/studies/..%2Fkeys/cancel'
    """
    return f"/v1/studies/{quote(study_id, safe='')}{rest}"
