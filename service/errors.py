"""Errors of the service, drawn as a tree; each has a stable code and, where HTTP shows it, a status.

ServiceError
|-- ProblemError                          answered over HTTP as application/problem+json
|   |-- UnauthorizedError       401       missing, malformed, unknown, expired or revoked access key
|   |-- ForbiddenError          403       the key lacks the scope
|   |-- NotFoundError           404       no such study, trial, recommendation
|   |-- ConflictError           409       the state does not allow it, or a name is taken
|   |-- InvalidRequestError     400/415/422
|   `-- UnavailableError        503       the database does not answer
|-- LeaseLostError                        another worker may hold the job: stop quietly, write nothing
|-- SettingsError(ValueError)             a CLIPTUNE_ variable is wrong
|-- DatabaseError                         the database can't be opened, or its schema is another version's
`-- TrainingError                         a training process broke; `cause` says how

The client raises the same classes, rebuilt from the problem's ``code``.
"""

from __future__ import annotations

from typing import Any


class ServiceError(Exception):
    """Base of everything this package raises on purpose.

    Attributes:
        code: stable identifier of the kind of error.
        exit_code: what the command line exits with.
    """

    code = "service_error"
    exit_code = 2


class ProblemError(ServiceError):
    """An error with an HTTP form (RFC 9457).

    Attributes:
        status: HTTP status.
        code: stable identifier.
        title: the kind of error in a few words.
        detail: what was wrong, the value, the bound and what to do.
        errors: for invalid fields, ``{"detail", "pointer"}`` each.
        headers: extra response headers.
    """

    status = 500
    code = "internal_error"
    title = "Internal error"

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        title: str | None = None,
        status: int | None = None,
        errors: list[dict[str, Any]] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.detail = detail
        self.code = code or type(self).code
        self.title = title or type(self).title
        self.status = status or type(self).status
        self.errors = errors or []
        self.headers = headers or {}
        super().__init__(detail)


class UnauthorizedError(ProblemError):
    """The request carries no valid access key."""

    status = 401
    code = "unauthorized"
    title = "Access key missing or not valid"
    exit_code = 3


class ForbiddenError(ProblemError):
    """The access key does not allow this."""

    status = 403
    code = "forbidden"
    title = "Not allowed with this key"
    exit_code = 3


class NotFoundError(ProblemError):
    """The addressed object does not exist, or belongs to somebody else."""

    status = 404
    code = "not_found"
    title = "Not found"


class ConflictError(ProblemError):
    """The object's state does not allow the request."""

    status = 409
    code = "conflict"
    title = "Conflict"


class InvalidRequestError(ProblemError):
    """The request itself is wrong."""

    status = 422
    code = "invalid_request"
    title = "Request is not valid"


class UnavailableError(ProblemError):
    """The service can't answer now; the same request may succeed later."""

    status = 503
    code = "unavailable"
    title = "Temporarily unavailable"
    exit_code = 3


class LeaseLostError(ServiceError):
    """The lease of a job is gone: reaped, finished or taken by another worker. A normal outcome."""

    code = "lease_lost"

    def __init__(self, job_id: str, fence: int) -> None:
        self.job_id = job_id
        self.fence = fence
        super().__init__(f"lease {fence} of job {job_id} is lost: nothing more may be written under it")


class SettingsError(ServiceError, ValueError):
    """A setting is unknown or out of bounds."""

    code = "invalid_settings"


class DatabaseError(ServiceError):
    """The database can't be used.

    Attributes:
        code: ``database_unreachable``, ``database_refused``, ``database_not_writable``, ``invalid_database_url``
            or ``schema_mismatch``.
    """

    code = "database_error"

    def __init__(self, detail: str, *, code: str, exit_code: int = 2) -> None:
        self.code = code
        self.exit_code = exit_code
        super().__init__(detail)


class TrainingError(ServiceError):
    """A training process did not deliver.

    Attributes:
        cause: ``bug`` (exception, exit code or signal), ``stall``, ``bad_output``, ``oom`` or ``device_lost``
            (a SIGKILL that was not ours).
        trial_id: the trial it is about, when the process could tell.
        is_final: whether the trial fails at once: whoever trained it has tried as often as is allowed.
    """

    code = "training_failed"

    def __init__(
        self, detail: str, *, cause: str, trial_id: str | None = None, is_final: bool = False
    ) -> None:
        self.cause = cause
        self.trial_id = trial_id
        self.is_final = is_final
        super().__init__(detail)
