"""The lease queue: who may drive a job, proved by a fence, on SQLite and PostgreSQL alike.

At-least-once execution, exactly-once effect. A job is a row; a worker holds its lease from `acquire` until it
gives it back (`finish`, `release`, `fail`) or a `reap` ends it after ``lease_seconds`` without renewal.
Each acquisition raises the row's fence, and every write of a worker asks for its own fence and owner, so a
worker that lost its lease changes nothing, however late it wakes up: it gets `LeaseLostError`.

Each change appends its event in its own transaction, with the job's row locked, so the event ids of a job are
in commit order. A change that ends a job also ends the open trials of its study, and writes its webhooks' events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Executable, Result, Row
from sqlalchemy.orm import Session

from service.db.session import Database
from service.errors import LeaseLostError
from service.jobs.lease import JobRef, Lease, Reaped
from service.jobs.statements import statements_for
from service.states import CLOSING_ERRORS, JobState
from service.webhooks.outbox import record_study_end

#: Longest error text kept, in characters; the end is kept, where a traceback names the exception.
MAX_ERROR_CHARACTERS = 8_000


def _database_clock() -> int | None:
    """The real clock: nothing to put in its place."""
    return None


class Queue:
    """The queue of one database.

    A renewal that waits behind a long write of the same worker would come late: whoever renews in a thread
    gives that thread a queue on a `Database` of its own, with a shorter ``busy_seconds``.

    Args:
        database: where the jobs are.
        lease_seconds: validity of a lease after its acquisition or renewal, in seconds, > 0.
        max_lost: workers lost in a row, without progress in between, that fail a job; at least 1.
        backoff_seconds: delay after the second loss in a row and each later one, in seconds, >= 0; the first
            is requeued at once.
        now: replaces the database's clock in tests, in milliseconds; None is the real one.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(
        self,
        database: Database,
        *,
        lease_seconds: float,
        max_lost: int = 3,
        backoff_seconds: float = 5.0,
        now: Callable[[], int | None] = _database_clock,
    ) -> None:
        if not lease_seconds > 0:
            raise ValueError(f"lease_seconds must be > 0, got {lease_seconds}")
        if max_lost < 1:
            raise ValueError(f"max_lost must be >= 1, got {max_lost}")
        if not backoff_seconds >= 0:
            raise ValueError(f"backoff_seconds must be >= 0, got {backoff_seconds}")
        self._database = database
        self._sql = statements_for(database.dialect)
        self._lease_ms = _milliseconds(lease_seconds)
        self._max_lost = max_lost
        self._backoff_ms = _milliseconds(backoff_seconds)
        self._now = now

    def enqueue(
        self,
        session: Session,
        *,
        job_id: str,
        study_id: str,
        tenant_id: str,
        kind: str = "study",
        payload: dict[str, Any] | None = None,
        priority: int = 0,
        max_attempts: int = 3,
    ) -> None:
        """Insert a queued job in the caller's transaction; the event is ``queued``.

        A study has at most one live job: the commit, or this call, raises SQLAlchemy's `IntegrityError` for a
        second one.

        Args:
            session: a `Database.write` transaction.
            job_id: a new uuid4.
            study_id: the study it runs.
            tenant_id: whose it is.
            kind: what sort of job; only workers that acquire this kind take it.
            payload: anything JSON that the worker needs.
            priority: higher goes first.
            max_attempts: the attempt whose error fails the job, at least 1.

        Raises:
            ValueError: if ``max_attempts`` is below 1.
        """
        if max_attempts < 1:
            raise ValueError(f"max_attempts must be >= 1, got {max_attempts}")
        self._execute(
            session,
            self._sql.enqueue,
            id=job_id,
            tenant_id=tenant_id,
            study_id=study_id,
            kind=kind,
            payload=payload or {},
            priority=priority,
            max_attempts=max_attempts,
        )
        self._append(session, job_id, study_id, 0, JobState.QUEUED, {"priority": priority})

    def acquire(self, owner: str, kinds: Sequence[str]) -> Lease | None:
        """Lease the first ready job: highest priority, then longest ready, then id; event ``acquired``.

        Call `reap` first in every poll: there is no other rescuer that could itself be lost.

        Args:
            owner: the worker's id, a uuid4 drawn at its start; never a host, a pid or a configured name.
            kinds: what the worker can drive; jobs of other kinds stay queued.

        Returns:
            The lease; None if nothing is ready.
        """
        # On SQLite an idle poll must not take the one write lock. On PostgreSQL it would read past all queued jobs of
        # other kinds: measured with 10,000 of them, 6 ms of the database's time for every poll of every worker.
        if not any(self._finds(self._sql.find_ready, kind=kind) for kind in kinds):
            return None
        with self._database.write() as session:
            if self._sql.read_in_index_order is not None:
                self._execute(session, self._sql.read_in_index_order)
            row = self._execute(
                session, self._sql.acquire, owner=owner, kinds=list(kinds), ttl=self._lease_ms
            ).one_or_none()
            if row is None:
                return None
            lease = Lease(**row._asdict())
            self.append_event(session, lease, "acquired", {"owner": owner, "attempt": lease.attempt})
        return lease

    def renew(self, lease: Lease) -> bool:
        """Make a lease valid for ``lease_seconds`` from now.

        A lease that expired but was not reaped yet is renewed: nobody else has the job.

        Args:
            lease: the lease held.

        Returns:
            Whether a cancel was requested: stop the training, then `release`.

        Raises:
            LeaseLostError: if the lease is lost.
        """
        with self._database.write() as session:
            row = self._change(session, self._sql.renew, lease, ttl=self._lease_ms)
        return bool(row.cancel_requested)

    def finish(self, lease: Lease, outcome: JobState, error: str | None = None) -> None:
        """End a lease with a final state, in a transaction of its own; see `finish_in`."""
        with self._database.write() as session:
            self.finish_in(session, lease, outcome, error)

    def finish_in(self, session: Session, lease: Lease, outcome: JobState, error: str | None = None) -> None:
        """End a lease with a final state, together with what else the transaction writes.

        The event is named as the outcome. Open trials of the study become ``fail``.

        Args:
            session: of `held`, or another write transaction.
            lease: the lease held.
            outcome: succeeded, failed or cancelled.
            error: why it failed.

        Raises:
            LeaseLostError: if the lease is lost; let it roll the transaction back.
            ValueError: if the outcome is not a final state.
        """
        if not outcome.is_done:
            raise ValueError(f"a job can't finish as {outcome.value!r}: use succeeded, failed or cancelled")
        error = None if error is None else storable(error)
        self._change(session, self._sql.finish, lease, outcome=outcome.value, error=error)
        self._after_end(session, lease, outcome, error)

    def release(self, lease: Lease) -> JobState:
        """Give a job back without counting the execution: the worker stops, or a cancel was requested.

        Args:
            lease: the lease held.

        Returns:
            ``queued`` (event ``released``), to be acquired at once, or ``cancelled``.

        Raises:
            LeaseLostError: if the lease is lost.
        """
        with self._database.write() as session:
            state = JobState(self._change(session, self._sql.release, lease).state)
            if state.is_done:
                self._after_end(session, lease, state)
            else:
                self.append_event(session, lease, "released", {})
        return state

    def fail(self, lease: Lease, error: str, *, delay_seconds: float) -> JobState:
        """End a lease with an error of the worker's own code; the execution counts as an attempt.

        Args:
            lease: the lease held.
            error: what went wrong; kept as the job's ``last_error``.
            delay_seconds: earliest next acquisition, in seconds from now, >= 0; from `service.jobs.retry`.

        Returns:
            ``queued`` (event ``error``), ``failed`` at the last attempt, or ``cancelled`` on request.

        Raises:
            LeaseLostError: if the lease is lost.
            ValueError: if the delay is negative.
        """
        if not delay_seconds >= 0:
            raise ValueError(f"delay_seconds must be >= 0, got {delay_seconds}")
        error = storable(error)
        with self._database.write() as session:
            delay = _milliseconds(delay_seconds)
            state = JobState(self._change(session, self._sql.fail, lease, error=error, delay=delay).state)
            if state.is_done:
                self._after_end(session, lease, state, error)
            else:
                payload = {"error": error, "attempt": lease.attempt, "delay_seconds": delay_seconds}
                self.append_event(session, lease, "error", payload)
        return state

    def cancel(self, session: Session, job_id: str) -> JobState | None:
        """Cancel a queued job, or ask the holder of a running one to stop.

        Args:
            session: the caller's `Database.write` transaction.
            job_id: id of the job.

        Returns:
            ``cancelled`` if it was queued (event ``cancelled``), ``running`` if a worker has it (event
            ``cancel_requested``, once; the next renewal tells the worker), None if it is finished or unknown.
        """
        row = self._execute(session, self._sql.cancel, id=job_id).one_or_none()
        if row is None:
            state = self._execute(session, self._sql.find_live, id=job_id).scalar_one_or_none()
            return None if state is None else JobState(state)
        state = JobState(row.state)
        self._append(
            session, job_id, row.study_id, row.fence, state if state.is_done else "cancel_requested", {}
        )
        if state.is_done:
            self._end_study(session, row.study_id, state)
        return state

    def reap(self) -> list[Reaped]:
        """End every expired lease: first statement of every poll, and every 10 s in the API.

        A job goes back to the queue (event ``reaped``), first at once and then with a delay; the
        ``max_lost``-th loss in a row fails it, and a cancel that was requested ends it.

        Returns:
            What was ended, ordered by job id.
        """
        if not self._finds(self._sql.find_expired):
            return []
        error = f"the worker was lost {self._max_lost} times in a row without a new result or checkpoint"
        with self._database.write() as session:
            rows = self._execute(
                session, self._sql.reap, max_lost=self._max_lost, delay=self._backoff_ms, error=error
            ).all()
            reaped = [Reaped(**row._asdict() | {"state": JobState(row.state)}) for row in rows]
            reaped.sort(key=lambda one: one.job_id)
            for one in reaped:
                if one.state.is_done:
                    self._after_end(session, one, one.state, error if one.state is JobState.FAILED else None)
                else:
                    self.append_event(session, one, "reaped", {"lost_count": one.lost_count})
        return reaped

    @contextmanager
    def held(self, lease: Lease) -> Iterator[Session]:
        """A write transaction that only the lease's holder gets; every write of a worker goes through one.

        The job's row stays locked until the block ends, so a reap or a cancel comes before or after it, never
        between. Keep it short: renewals of the same lease wait for it.

        Args:
            lease: the lease held.

        Yields:
            A session; it commits at the end of the block and rolls back on an exception.

        Raises:
            LeaseLostError: if the lease is lost; nothing was written.
        """
        with self._database.write() as session:
            self._change(session, self._sql.hold, lease)
            yield session

    def forget_losses(self, session: Session, lease: Lease) -> None:
        """Forget earlier losses, because this lease brought a new result or checkpoint.

        Args:
            session: of `held`.
            lease: the lease held.

        Raises:
            LeaseLostError: if the lease is lost.
        """
        self._change(session, self._sql.forget_losses, lease)

    def append_event(self, session: Session, job: JobRef, kind: str, payload: dict[str, Any]) -> None:
        """Append to a job's history; the transaction must have locked or changed the job's row before.

        Args:
            session: of `held`, or another write transaction.
            job: the lease, or whatever names the job.
            kind: what happened, at most 32 characters.
            payload: anything JSON.
        """
        self._append(session, job.job_id, job.study_id, job.fence, kind, payload)

    def _append(
        self, session: Session, job_id: str, study_id: str, fence: int, kind: str, payload: dict[str, Any]
    ) -> None:
        self._execute(
            session,
            self._sql.append_event,
            id=job_id,
            study_id=study_id,
            fence=fence,
            kind=str(kind),
            payload=payload,
        )

    def _after_end(self, session: Session, job: JobRef, state: JobState, error: str | None = None) -> None:
        """What belongs to a final state: its event, no open trial, and whoever listens is told."""
        self.append_event(session, job, state, {} if error is None else {"error": error})
        self._end_study(session, job.study_id, state, error)

    def _end_study(self, session: Session, study_id: str, state: JobState, error: str | None = None) -> None:
        # The caller may have added trials that the session has not sent yet.
        session.flush()
        self._execute(session, self._sql.close_trials, study_id=study_id, error=CLOSING_ERRORS[state])
        record_study_end(session, study_id=study_id, state=state, error=error, now=self._now())

    def _change(self, session: Session, statement: Executable, lease: Lease, **parameters: Any) -> Row[Any]:
        """Execute a statement guarded by MINE, and read the row it returns.

        Raises:
            LeaseLostError: if no row is MINE.
        """
        row = self._execute(
            session, statement, id=lease.job_id, fence=lease.fence, owner=lease.owner, **parameters
        ).one_or_none()
        if row is None:
            raise LeaseLostError(lease.job_id, lease.fence)
        return row

    def _finds(self, statement: Executable, **parameters: Any) -> bool:
        given = {"now": self._now(), **parameters}
        return self._database.glance(
            lambda connection: connection.execute(statement, given).first() is not None
        )

    def _execute(self, session: Session, statement: Executable, **parameters: Any) -> Result[Any]:
        return session.execute(statement, {"now": self._now(), **parameters})


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def storable(error: str) -> str:
    """An error text without what a database refuses: NUL (PostgreSQL), lone surrogates (both).

    Args:
        error: any text.

    Returns:
        Its end, at most `MAX_ERROR_CHARACTERS` before escaping.
    """
    kept = error[-MAX_ERROR_CHARACTERS:].replace("\x00", "\\x00")
    return kept.encode("utf-8", "backslashreplace").decode("utf-8")
