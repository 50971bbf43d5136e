"""The states of a job, which are also the states of the study it runs. A closed list, with a sentence each."""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    """Where a job stands in the queue."""

    QUEUED = "queued"
    """Waiting for a worker; also after a release, a lost worker or an error that is retried."""
    RUNNING = "running"
    """A worker holds its lease."""
    SUCCEEDED = "succeeded"
    """Finished; the study has its recommendation."""
    FAILED = "failed"
    """Gave up; the job's ``last_error`` says why."""
    CANCELLED = "cancelled"
    """Ended on request."""

    @property
    def is_done(self) -> bool:
        """Whether the state is final."""
        return self not in (JobState.QUEUED, JobState.RUNNING)


#: What the open trials of a study have failed by when it ends in a state, whatever they had trained.
CLOSING_ERRORS = {
    JobState.SUCCEEDED: "the study finished without this trial",
    JobState.FAILED: "the study failed",
    JobState.CANCELLED: "the study was cancelled",
}
