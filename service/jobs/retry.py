"""What an interruption counts on, and whether and when the work is tried again: one table, one pure function.

Causes are counted apart, because they mean different things: a machine that was taken away says nothing
about the work, an exception in a training says something about one trial, one in our own code about the job.
What concerns the job is also in SQL (`service.jobs.statements`: release, reap, fail); a test compares them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Cause(StrEnum):
    """Why an execution stopped before its end. A closed list, with how it is seen."""

    PREEMPTED = "preempted"
    """SIGTERM to the worker, which released the lease."""
    WORKER_LOST = "worker_lost"
    """The lease expired and was reaped."""
    DEVICE_LOST = "device_lost"
    """Death of the training process by a SIGKILL that was not ours."""
    OOM = "oom"
    """The device or the process ran out of memory."""
    DIVERGED = "diverged"
    """The loss or a norm became non-finite, or passed the bound: a result."""
    BUG = "bug"
    """The training process raised, or ended with an exit code or by another signal."""
    STALL = "stall"
    """No step was reported for the stall timeout."""
    BAD_OUTPUT = "bad_output"
    """The training process sent what is not a valid event."""
    WORKER_ERROR = "worker_error"
    """An exception in the worker's own code while it drove the study."""


class Counter(StrEnum):
    """Where a cause is counted."""

    NOTHING = "nothing"
    """On nothing."""
    JOB_ATTEMPT = "job_attempt"
    """The job's ``attempt``, against its ``max_attempts``."""
    JOB_LOST = "job_lost_count"
    """The job's ``lost_count``, against ``max_lost``; progress sets it to 0."""
    TRIAL_ATTEMPT = "trial_attempt"
    """The trial's ``attempt``, against ``max_attempts``."""
    TRIAL_LOST = "trial_lost_count"
    """The trial's ``lost_count``, against ``max_lost``; nothing sets it back."""


class Action(StrEnum):
    """What happens to what the cause is counted on."""

    RETRY = "retry"
    """Try again after the delay: a job with the trials that have no result yet, a trial from its first step."""
    FAIL = "fail"
    """Give up: the job, or the one trial; then the study goes on up to its ``max_failed``."""
    ACCEPT = "accept"
    """Keep it as the trial's result."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays that double, up to a bound.

    Attributes:
        base_seconds: delay after the first failure, before jitter, in seconds, >= 0.
        max_seconds: the longest delay, in seconds, >= ``base_seconds``.
    """

    base_seconds: float = 5.0
    max_seconds: float = 300.0

    def __post_init__(self) -> None:
        """Check the bounds.

        Raises:
            ValueError: if one is violated.
        """
        if not 0 <= self.base_seconds <= self.max_seconds:
            raise ValueError(
                f"base_seconds must be in [0, max_seconds], got {self.base_seconds} and {self.max_seconds}"
            )

    def compute_delay(self, failures: int, jitter: float) -> float:
        """Delay before the next try: half of the doubled base is certain, the other half is scaled by chance.

        Args:
            failures: how often it failed so far, this time included, at least 1.
            jitter: drawn by the caller, uniform in [0, 1]; it keeps jobs that failed together apart.

        Returns:
            Seconds in [0, ``max_seconds``].

        Raises:
            ValueError: if an argument is out of its range.

        Source:
            M. Brooker (2015), "Exponential backoff and jitter", variant "equal jitter",
            https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/

        Example:
            The third failure: 5 s doubled twice is 20 s, of which at least 10 s.

            >>> Backoff(base_seconds=5.0).compute_delay(3, jitter=0.0)
            10.0
            >>> Backoff(base_seconds=5.0).compute_delay(3, jitter=1.0)
            20.0
        """
        if failures < 1:
            raise ValueError(f"failures must be >= 1, got {failures}")
        if not 0 <= jitter <= 1:
            raise ValueError(f"jitter must be in [0, 1], got {jitter}")
        # 2 ** 1024 is no float any more; by 64 doublings every bound is reached.
        full = min(self.max_seconds, self.base_seconds * 2.0 ** min(failures - 1, 64))
        return full / 2 * (1 + jitter)


@dataclass(frozen=True, slots=True)
class RetryDecision:
    """What to do after an interruption.

    Attributes:
        cause: what interrupted.
        counted_on: the counter it raised.
        action: try again, give up, or accept as a result.
        delay_seconds: how long to wait before the next try, in seconds; 0 unless ``action`` is ``retry``.
    """

    cause: Cause
    counted_on: Counter
    action: Action
    delay_seconds: float = 0.0

    @property
    def retry(self) -> bool:
        """Whether to try again."""
        return self.action is Action.RETRY


#: What each cause is counted on. OOM is the trial's, but the same size again would only repeat it.
COUNTED_ON = {
    Cause.PREEMPTED: Counter.NOTHING,
    Cause.WORKER_LOST: Counter.JOB_LOST,
    Cause.DEVICE_LOST: Counter.TRIAL_LOST,
    Cause.OOM: Counter.TRIAL_ATTEMPT,
    Cause.DIVERGED: Counter.NOTHING,
    Cause.BUG: Counter.TRIAL_ATTEMPT,
    Cause.STALL: Counter.TRIAL_ATTEMPT,
    Cause.BAD_OUTPUT: Counter.TRIAL_ATTEMPT,
    Cause.WORKER_ERROR: Counter.JOB_ATTEMPT,
}


def decide(
    cause: Cause,
    *,
    attempt: int = 1,
    max_attempts: int = 3,
    lost_count: int = 1,
    max_lost: int = 3,
    backoff: Backoff = Backoff(),
    jitter: float = 0.0,
) -> RetryDecision:
    """Decide what follows an interruption.

    The first loss in a row is retried at once, because waiting would not bring the machine back; each later
    one waits ``backoff.base_seconds``, as the reap's one statement does for all its rows.

    Args:
        cause: what interrupted.
        attempt: executions that ended in an error, this one included, at least 1; a `Lease`'s ``attempt``.
        max_attempts: the attempt whose error is the last.
        lost_count: losses in a row, this one included, at least 1.
        max_lost: the loss in a row that is the last.
        backoff: delays between attempts.
        jitter: drawn by the caller, uniform in [0, 1].

    Returns:
        The decision.

    Raises:
        ValueError: if a count is below 1, or the jitter of a delay out of range.

    Example:
        The second error of the worker's own code waits between 5 and 10 seconds.

        >>> decide(Cause.WORKER_ERROR, attempt=2, jitter=0.5).delay_seconds
        7.5
        >>> decide(Cause.DIVERGED).action
        <Action.ACCEPT: 'accept'>
    """
    if attempt < 1 or lost_count < 1:
        raise ValueError(
            f"attempt and lost_count count this one: must be >= 1, got {attempt} and {lost_count}"
        )
    counter = COUNTED_ON[cause]
    if cause is Cause.DIVERGED:
        return RetryDecision(cause, counter, Action.ACCEPT)
    if cause is Cause.PREEMPTED:
        return RetryDecision(cause, counter, Action.RETRY)
    if cause is Cause.OOM:
        return RetryDecision(cause, counter, Action.FAIL)
    if counter in (Counter.JOB_LOST, Counter.TRIAL_LOST):
        is_last, delay = lost_count >= max_lost, 0.0 if lost_count == 1 else backoff.base_seconds
    else:
        is_last, delay = attempt >= max_attempts, backoff.compute_delay(attempt, jitter)
    if is_last:
        return RetryDecision(cause, counter, Action.FAIL)
    return RetryDecision(cause, counter, Action.RETRY, delay)
