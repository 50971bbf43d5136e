"""The queue against a model (T13): random histories of submissions, workers, zombies, cancels and clocks.

The model is the specification once more, in plain Python and without SQL; after every step each row, each
history of events and each trial must be what the model says. ``CLIPTUNE_TEST_MACHINE_EXAMPLES`` and
``CLIPTUNE_TEST_MACHINE_STEPS`` raise the counts for a release; ``--hypothesis-seed`` repeats a run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select, text

from service.db.models import JobEventRow, JobRow, TrialRow
from service.errors import LeaseLostError
from service.jobs.lease import Lease
from service.states import JobState

#: Histories per database, and steps in each. A release run takes 20,000 of 60.
EXAMPLES = int(os.environ.get("CLIPTUNE_TEST_MACHINE_EXAMPLES", "40"))
STEPS = int(os.environ.get("CLIPTUNE_TEST_MACHINE_STEPS", "40"))

TTL_MS = 60_000
BACKOFF_MS = 5_000
MAX_LOST = 3
START_MS = 1_000_000_000_000
KINDS = ("study", "export")


@dataclass
class ModelJob:
    """What one row must hold."""

    id: str
    kind: str
    priority: int
    max_attempts: int
    run_after: int
    state: str = "queued"
    fence: int = 0
    attempt: int = 0
    lost_count: int = 0
    owner: str | None = None
    lease_until: int = 0
    cancel_requested: bool = False
    finished_at: int | None = None
    events: list[tuple[str, int]] = field(default_factory=lambda: [("queued", 0)])

    def is_mine(self, lease: Lease) -> bool:
        return self.state == "running" and (self.fence, self.owner) == (lease.fence, lease.owner)

    def end(self, state: str, now: int, requeued_as: str) -> None:
        """The lease ends: cancelled if that was asked, else `state`."""
        self.state = "cancelled" if self.cancel_requested and requeued_as else state
        self.owner, self.lease_until = None, 0
        self.finished_at = None if self.state == "queued" else now
        self.events.append((requeued_as if self.state == "queued" else self.state, self.fence))


class Model:
    """The queue without a database."""

    def __init__(self) -> None:
        self.jobs: dict[str, ModelJob] = {}

    def acquire(self, owner: str, kinds: list[str], now: int) -> ModelJob | None:
        ready = [
            j for j in self.jobs.values() if j.state == "queued" and j.run_after <= now and j.kind in kinds
        ]
        if not ready:
            return None
        job = min(ready, key=lambda j: (-j.priority, j.run_after, j.id))
        job.state, job.owner, job.lease_until = "running", owner, now + TTL_MS
        job.fence, job.attempt = job.fence + 1, job.attempt + 1
        job.events.append(("acquired", job.fence))
        return job

    def reap(self, now: int) -> list[str]:
        expired = [j for j in self.jobs.values() if j.state == "running" and j.lease_until < now]
        for job in expired:
            job.run_after = now + (0 if job.lost_count == 0 else BACKOFF_MS)
            job.lost_count, job.attempt = job.lost_count + 1, job.attempt - 1
            job.end("failed" if job.lost_count >= MAX_LOST else "queued", now, "reaped")
        return sorted(job.id for job in expired)

    def cancel(self, job_id: str, now: int) -> str | None:
        job = self.jobs[job_id]
        if job.state not in ("queued", "running"):
            return None
        if not job.cancel_requested:
            job.cancel_requested = True
            job.events.append(("cancelled" if job.state == "queued" else "cancel_requested", job.fence))
            if job.state == "queued":
                job.state, job.finished_at = "cancelled", now
        return job.state


class QueueMachine(RuleBasedStateMachine):
    """Does the same to the queue and to the model."""

    leases = Bundle("leases")

    def __init__(self, bench: Any, empty: Callable[[], None]) -> None:
        super().__init__()
        empty()
        self.bench, self.queue = bench, bench.queue
        self.clock = bench.clock
        self.clock.milliseconds = START_MS
        self.model = Model()

    @initialize(target=leases)
    def begin_with_a_held_and_a_queued_job(self) -> Any:
        """Without this, many histories would never get to a lease."""
        self.submit("study", 0, 3, False)
        self.submit("study", 0, 2, False)
        return self.acquire("A", ["study"])

    @rule(
        kind=st.sampled_from(KINDS),
        priority=st.integers(-1, 1),
        max_attempts=st.integers(1, 3),
        is_cancelled=st.booleans(),
    )
    def submit(self, kind: str, priority: int, max_attempts: int, is_cancelled: bool) -> None:
        job_id = f"job-{len(self.model.jobs)}"
        options = {"kind": kind, "priority": priority, "max_attempts": max_attempts}
        self.bench.submit(job_id, trials=["running", "complete"], **options)
        self.model.jobs[job_id] = ModelJob(job_id, run_after=self.clock(), **options)
        if is_cancelled:
            self._cancel(job_id)

    @rule(target=leases, owner=st.sampled_from("AB"), kinds=st.sampled_from([["study"], list(KINDS)]))
    def acquire(self, owner: str, kinds: list[str]) -> Any:
        lease, expected = self.queue.acquire(owner, kinds), self.model.acquire(owner, kinds, self.clock())
        if expected is None:
            assert lease is None
            return multiple()
        assert (lease.job_id, lease.fence, lease.owner) == (expected.id, expected.fence, owner)
        assert (lease.attempt, lease.lost_count) == (expected.attempt, expected.lost_count)
        return lease

    @rule()
    def reap(self) -> None:
        assert [one.job_id for one in self.queue.reap()] == self.model.reap(self.clock())

    @rule(target=leases, owner=st.sampled_from("AB"))
    def poll_after_expiry(self, owner: str) -> Any:
        """What a free worker does after another one died."""
        self.clock.advance(61)
        self.reap()
        return self.acquire(owner, list(KINDS))

    # These take any lease ever given, so most histories hold zombies.

    @rule(lease=leases)
    def renew(self, lease: Lease) -> None:
        job = self._expect(lease, lambda: self.queue.renew(lease))
        if job is not None:
            assert self.answer is job.cancel_requested
            job.lease_until = self.clock() + TTL_MS

    @rule(lease=leases, is_progress=st.booleans())
    def report(self, lease: Lease, is_progress: bool) -> None:
        def write() -> None:
            with self.queue.held(lease) as session:
                self.queue.append_event(session, lease, "report", {})
                if is_progress:
                    self.queue.forget_losses(session, lease)

        job = self._expect(lease, write)
        if job is not None:
            job.events.append(("report", job.fence))
            job.lost_count = 0 if is_progress else job.lost_count

    @rule(lease=leases, outcome=st.sampled_from(["succeeded", "failed", "cancelled"]))
    def finish(self, lease: Lease, outcome: str) -> None:
        job = self._expect(lease, lambda: self.queue.finish(lease, JobState(outcome)))
        if job is not None:
            job.end(outcome, self.clock(), "")

    @rule(lease=leases)
    def release(self, lease: Lease) -> None:
        job = self._expect(lease, lambda: self.queue.release(lease))
        if job is not None:
            job.attempt -= 1
            job.end("queued", self.clock(), "released")
            assert self.answer.value == job.state

    @rule(lease=leases, delay_seconds=st.sampled_from([0, 5, 90]))
    def fail(self, lease: Lease, delay_seconds: int) -> None:
        job = self._expect(lease, lambda: self.queue.fail(lease, "boom", delay_seconds=delay_seconds))
        if job is not None:
            job.run_after = self.clock() + delay_seconds * 1000
            job.end("failed" if job.attempt >= job.max_attempts else "queued", self.clock(), "error")
            assert self.answer.value == job.state

    @rule(lease=leases)
    def cancel(self, lease: Lease) -> None:
        self._cancel(lease.job_id)

    @rule(seconds=st.sampled_from([0.001, 5, 59.999, 60.001, 61, 3600, -1, -3600]))
    def advance(self, seconds: float) -> None:
        """Time passes, or the database's clock is set back; then leases only get longer."""
        self.clock.advance(seconds)

    @invariant()
    def rows_events_and_trials_are_as_the_model_says(self) -> None:
        columns = [name for name in ModelJob.__dataclass_fields__ if name != "events"]
        with self.bench.database.read() as session:
            rows = session.execute(select(JobRow.__table__)).mappings().all()
            events = session.execute(select(JobEventRow.__table__).order_by(text("id"))).mappings().all()
            trials = session.execute(select(TrialRow.study_id, TrialRow.state)).all()
        found = {row["id"]: {name: row[name] for name in columns} for row in rows}
        jobs = self.model.jobs.values()
        assert found == {job.id: {name: getattr(job, name) for name in columns} for job in jobs}
        for job in jobs:
            assert [(one["kind"], one["fence"]) for one in events if one["job_id"] == job.id] == job.events
            open_state = "running" if job.state in ("queued", "running") else "fail"
            mine = sorted(trial.state for trial in trials if trial.study_id == f"study-{job.id}")
            assert mine == sorted(["complete", open_state])

    def _cancel(self, job_id: str) -> None:
        with self.bench.database.write() as session:
            assert self.queue.cancel(session, job_id) == self.model.cancel(job_id, self.clock())

    def _expect(self, lease: Lease, operation: Callable[[], Any]) -> ModelJob | None:
        """Do it; it must be refused exactly if the lease is not the job's. The answer is in `answer`."""
        job = self.model.jobs[lease.job_id]
        try:
            self.answer = operation()
        except LeaseLostError:
            assert not job.is_mine(lease)
            return None
        assert job.is_mine(lease)
        return job


def test_every_history_is_as_the_model_says(bench: Any, empty_database: Callable[[], None]) -> None:
    run_state_machine_as_test(
        lambda: QueueMachine(bench, empty_database),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
