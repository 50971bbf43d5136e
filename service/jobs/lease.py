"""What a worker holds while it drives a job, and what a reap ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from service.states import JobState


class JobRef(Protocol):
    """What names one job under one fence: a `Lease`, a `Reaped`, or a row of the jobs table."""

    @property
    def job_id(self) -> str:
        """Id of the job."""
        ...

    @property
    def study_id(self) -> str:
        """Id of the study the job runs."""
        ...

    @property
    def fence(self) -> int:
        """Number of the job's newest lease; 0 before the first."""
        ...


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to drive one job; valid while the row carries its ``fence`` and ``owner``.

    Nothing here tells the time: a worker counts its own deadline, on its monotonic clock, from before it sent
    the acquisition or the last successful renewal.

    Attributes:
        job_id: id of the job.
        study_id: id of the study it runs.
        tenant_id: whose it is.
        kind: what sort of job, for example ``study``.
        payload: what the submitter attached; do not change it.
        fence: number of this lease, larger than that of every earlier lease of the job.
        owner: the worker's id, drawn at its start.
        attempt: executions that ended in an error so far, plus this one; at least 1.
        max_attempts: the attempt whose error fails the job.
        lost_count: workers lost in a row before this lease, without progress in between.
        priority: of the job; higher goes first.
    """

    job_id: str
    study_id: str
    tenant_id: str
    kind: str
    payload: dict[str, Any]
    fence: int
    owner: str
    attempt: int
    max_attempts: int
    lost_count: int
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Reaped:
    """A lease that expired and was ended.

    Attributes:
        job_id: id of the job.
        study_id: id of the study it runs.
        state: where the job went: ``queued``, ``failed`` (lost too often) or ``cancelled``.
        fence: number of the lease that was ended.
        lost_count: workers lost in a row, this one included.
    """

    job_id: str
    study_id: str
    state: JobState
    fence: int
    lost_count: int
