"""What each cause counts on and when work is tried again, as tables with their arithmetic."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from service.db.session import Database
from service.jobs.queue import Queue
from service.jobs.retry import COUNTED_ON, Action, Backoff, Cause, Counter, decide
from service.states import JobState

BACKOFF = Backoff(base_seconds=5, max_seconds=60)


def test_every_cause_is_counted_somewhere() -> None:
    assert set(COUNTED_ON) == set(Cause)


@pytest.mark.parametrize(
    ("cause", "counted_on"),
    [
        ("preempted", "nothing"),
        ("worker_lost", "job_lost_count"),
        ("device_lost", "trial_lost_count"),
        ("oom", "trial_attempt"),
        ("diverged", "nothing"),
        ("bug", "trial_attempt"),
        ("stall", "trial_attempt"),
        ("bad_output", "trial_attempt"),
        ("worker_error", "job_attempt"),
    ],
)
def test_causes_are_counted_apart(cause: str, counted_on: str) -> None:
    assert decide(Cause(cause)).counted_on == Counter(counted_on)


@pytest.mark.parametrize(
    ("failures", "jitter", "seconds"),
    [
        (1, 1.0, 5.0),  # 5 * 2**0
        (1, 0.0, 2.5),  # half of 5
        (1, 0.5, 3.75),  # 5 / 2 * 1.5
        (2, 1.0, 10.0),  # 5 * 2**1
        (3, 0.0, 10.0),  # 5 * 2**2 / 2
        (4, 1.0, 40.0),  # 5 * 2**3
        (5, 1.0, 60.0),  # 5 * 2**4 = 80, bounded
        (5, 0.0, 30.0),  # the bound is halved, not the 80
        (10_000, 1.0, 60.0),  # 2**9999 would be no float
    ],
)
def test_backoff_doubles_up_to_its_bound(failures: int, jitter: float, seconds: float) -> None:
    assert BACKOFF.compute_delay(failures, jitter) == seconds


def test_backoff_without_base_never_waits() -> None:
    assert Backoff(base_seconds=0).compute_delay(7, 1.0) == 0


@pytest.mark.parametrize(
    ("cause", "counts", "action", "seconds"),
    [
        # says nothing about the work: at once, as often as it takes
        ("preempted", {"attempt": 99, "lost_count": 99}, "retry", 0.0),
        # first loss at once, second after the base, third is the last
        ("worker_lost", {"lost_count": 1}, "retry", 0.0),
        ("worker_lost", {"lost_count": 2}, "retry", 5.0),
        ("worker_lost", {"lost_count": 3}, "fail", 0.0),
        ("worker_lost", {"lost_count": 1, "attempt": 99}, "retry", 0.0),
        ("device_lost", {"lost_count": 1}, "retry", 0.0),
        ("device_lost", {"lost_count": 2}, "retry", 5.0),
        ("device_lost", {"lost_count": 3}, "fail", 0.0),
        # the same size would run out of memory again
        ("oom", {"attempt": 1}, "fail", 0.0),
        # a result is accepted, whatever was counted before
        ("diverged", {"attempt": 99, "lost_count": 99}, "accept", 0.0),
        # jitter 1: 5, then 10; the third attempt is the last
        ("bug", {"attempt": 1}, "retry", 5.0),
        ("bug", {"attempt": 2}, "retry", 10.0),
        ("bug", {"attempt": 3}, "fail", 0.0),
        ("bug", {"attempt": 1, "lost_count": 99}, "retry", 5.0),
        ("stall", {"attempt": 2}, "retry", 10.0),
        ("stall", {"attempt": 3}, "fail", 0.0),
        ("bad_output", {"attempt": 1, "max_attempts": 1}, "fail", 0.0),
        ("bad_output", {"attempt": 3, "max_attempts": 5}, "retry", 20.0),
        ("worker_error", {"attempt": 2}, "retry", 10.0),
        ("worker_error", {"attempt": 3}, "fail", 0.0),
    ],
)
def test_decision_table(cause: str, counts: dict[str, int], action: str, seconds: float) -> None:
    decision = decide(Cause(cause), **counts, max_lost=3, backoff=BACKOFF, jitter=1.0)
    assert (decision.action, decision.delay_seconds) == (Action(action), seconds)
    assert decision.retry is (action == "retry")


@pytest.mark.parametrize("arguments", [{"attempt": 0}, {"lost_count": 0}, {"jitter": 1.1}, {"jitter": -0.1}])
def test_counts_and_jitter_out_of_range_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        decide(Cause.BUG, **arguments)


@pytest.mark.parametrize(("base", "bound"), [(-1, 5), (6, 5), (float("nan"), 5)])
def test_backoff_out_of_range_is_refused(base: float, bound: float) -> None:
    with pytest.raises(ValueError, match="base_seconds"):
        Backoff(base_seconds=base, max_seconds=bound)


def test_queue_does_what_the_policy_decides_for_lost_workers_and_worker_errors(database: Database) -> None:
    """The policy's rows about the job are also in the queue's SQL."""
    clock = itertools.count(
        10**12, 10**6
    )  # each question finds the clock 1,000 s later, so that all is ready
    frozen = next(clock)
    queue = Queue(database, lease_seconds=60, backoff_seconds=BACKOFF.base_seconds, now=lambda: frozen)
    with database.write() as session:
        for job_id in ("lost", "error"):
            queue.enqueue(session, job_id=job_id, study_id=job_id, tenant_id="t", kind=job_id)
    for count in (1, 2, 3):
        frozen = next(clock)
        lost, error = queue.acquire("w", ["lost"]), queue.acquire("w", ["error"])
        assert lost is not None and error is not None
        decision = decide(
            Cause.WORKER_ERROR, attempt=error.attempt, max_attempts=error.max_attempts, backoff=BACKOFF
        )
        state = queue.fail(error, "boom", delay_seconds=decision.delay_seconds)
        assert (state is JobState.QUEUED) is decision.retry
        frozen = next(clock)
        (reaped,) = queue.reap()
        decision = decide(Cause.WORKER_LOST, lost_count=reaped.lost_count, backoff=BACKOFF)
        assert (reaped.lost_count, reaped.state is JobState.QUEUED) == (count, decision.retry)
        if decision.retry:
            # ready exactly after the decided delay, and not a millisecond earlier
            frozen += round(decision.delay_seconds * 1000) - 1
            assert queue.acquire("w", ["lost"]) is None
            frozen += 1
            again = queue.acquire("w", ["lost"])
            assert again is not None
            queue.release(again)
