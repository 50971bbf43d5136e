"""The queue of lanes: who may train one lane, proved by a token, on SQLite and PostgreSQL alike.

At-least-once training, exactly one accepted course of reports: a process holds a lane from `ask` until it ends it
(`complete`) or a reap does, ``lease_seconds`` after the last sign of life. Each lease raises the row's fence, and every
word under an earlier one is refused with ``lease_lost``, however late it comes. What is repeated is answered alike.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Executable, Result, Row
from sqlalchemy.exc import IntegrityError

from service.db.session import Database
from service.errors import ConflictError, NotFoundError
from service.jobs.queue import storable
from service.lanes.decisions import (
    ReportDiffersError,
    decide_failure,
    ended,
    final_value,
    has_diverged,
    require_rising,
    require_room,
    require_step,
    rungs_reached,
    stop_reason,
    told,
    waited_for,
)
from service.lanes.lane import Completion, Directive, Held, LaneLostError, LaneStatus, Leased, Report
from service.lanes.rows import ReapedLane, reap_lanes
from service.lanes.rungs import ends_trial
from service.lanes.statements import statements_for
from service.lanes.token import LeaseToken, digest_of, draw_secret
from service.states import JobState
from tuner.spec import StudySpec, study_spec


def _database_clock() -> int | None:
    """The real clock: nothing to put in its place."""
    return None


@dataclass(frozen=True)
class Waiting:
    """No lane is ready.

    Attributes:
        detail: what is waited for.
    """

    detail: str


class LaneQueue:
    """The lanes of one database.

    Args:
        database: where they are.
        lease_seconds: validity of a lease after each sign of life, in seconds, > 0.
        max_attempts: errors of its training that fail a lane, at least 1.
        max_lost: lost processes that fail a lane, at least 1.
        now: replaces the database's clock in tests, in milliseconds; None is the real one.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(
        self,
        database: Database,
        *,
        lease_seconds: float,
        max_attempts: int = 3,
        max_lost: int = 3,
        now: Callable[[], int | None] = _database_clock,
    ) -> None:
        if not lease_seconds > 0:
            raise ValueError(f"lease_seconds must be > 0, got {lease_seconds}")
        if max_attempts < 1 or max_lost < 1:
            raise ValueError(f"max_attempts and max_lost must be >= 1, got {max_attempts} and {max_lost}")
        self.lease_seconds = lease_seconds
        self._database = database
        self._sql = statements_for(database.dialect)
        self._lease_ms = round(lease_seconds * 1000)
        self._max_attempts = max_attempts
        self._max_lost = max_lost
        self._now = now

    def ask(self, *, tenant_id: str, study_id: str, client_id: str) -> Leased | Waiting:
        """Lease a lane: the one that the client holds already, or the first that waits.

        A client that asks again gets its lane under a new token; the old one is dead. Expired leases are ended first.

        Args:
            tenant_id: whose study.
            study_id: the study.
            client_id: what the asking process calls itself; it holds at most one lane of a study.

        Returns:
            The lane, or why there is none now.

        Raises:
            NotFoundError: ``study_not_found``.
            ConflictError: ``not_external`` or ``study_ended``.
        """
        names = {"tenant_id": tenant_id, "study_id": study_id, "client_id": client_id}
        seen = self._database.glance(
            lambda connection: connection.execute(self._sql.look, {"now": self._now(), **names}).one_or_none()
        )
        if seen is None:
            raise NotFoundError(
                f"there is no study {study_id}: GET /v1/studies lists the studies of this key",
                code="study_not_found",
            )
        spec = study_spec(seen.spec)
        self._require_open(study_id, spec, seen)
        if seen.is_held or seen.has_expired or seen.has_waiting:
            try:
                leased = self._lease(names, spec, seen, is_held=seen.is_held)
            except IntegrityError:
                # The same client asked twice at once, and the other call has leased a lane meanwhile.
                leased = self._lease(names, spec, seen, is_held=True)
            if leased is not None:
                return leased
        return Waiting(waited_for(JobState(seen.job_state)))

    def _require_open(self, study_id: str, spec: StudySpec, seen: Row[Any]) -> None:
        if not spec.external:
            raise ConflictError(
                f"the trials of study {study_id} are trained by workers: submit a study with external set to train "
                "them yourself",
                code="not_external",
            )
        state = JobState(seen.job_state)
        if state.is_done or seen.cancel_requested:
            ended = "has been cancelled" if seen.cancel_requested else f"has {state}"
            raise ConflictError(
                f"study {study_id} {ended}: there is nothing left to train, GET /v1/studies/{study_id} has its result",
                code="study_ended",
            )

    def _lease(
        self, names: Mapping[str, str], spec: StudySpec, seen: Row[Any], *, is_held: bool
    ) -> Leased | None:
        secret = draw_secret()
        claim = dict(names) | {"token_sha256": digest_of(secret), "ttl": self._lease_ms}
        with self._write() as connection:
            row = self._execute(connection, self._sql.reenter, **claim).one_or_none() if is_held else None
            if row is None:
                if seen.has_expired:
                    reap_lanes(
                        connection, max_lost=self._max_lost, study_id=names["study_id"], now=self._now()
                    )
                row = self._execute(connection, self._sql.lease, **claim).one_or_none()
            if row is None:
                return None
            trial = None
            if not row.is_probe:
                trial = self._execute(connection, self._sql.find_trial, trial_id=row.trial_id).one()
            norms = (seen.reference or {}).get("l2_norm") or {}
            return Leased.of(
                row,
                trial,
                study_id=names["study_id"],
                spec=spec,
                reference_norm=norms.get("median"),
                secret=secret,
            )

    def heartbeat(self, *, tenant_id: str, trial_id: str, token: LeaseToken) -> Directive:
        """Tell that the training lives.

        Args:
            tenant_id: whose trial.
            trial_id: the trial.
            token: of the lease.

        Returns:
            Whether to go on.

        Raises:
            NotFoundError: ``trial_not_found``.
            ConflictError: ``lease_lost``.
        """
        with self._write() as connection:
            held = self._hold(connection, tenant_id, trial_id, token)
            if (stop := self._stop(connection, held)) is not None:
                return stop
            row = self._change(connection, self._sql.renew, held, ttl=self._lease_ms)
            return Directive(go_on=True, expires_at=row.lease_until)

    def report(self, *, tenant_id: str, trial_id: str, token: LeaseToken, report: Report) -> Directive:
        """Take a report, and decide whether its trial goes on.

        Args:
            tenant_id: whose trial.
            trial_id: the trial.
            token: of the lease.
            report: what is told. The same report again is answered alike.

        Returns:
            Whether to go on.

        Raises:
            NotFoundError: ``trial_not_found``.
            ConflictError: ``lease_lost``, ``report_differs`` or ``step_not_rising``.
            InvalidRequestError: ``step_out_of_range`` or ``too_many_reports``.
        """
        with self._write() as connection:
            held = self._hold(connection, tenant_id, trial_id, token)
            if (stop := self._stop(connection, held)) is not None:
                return stop
            require_step(held, report)
            is_new = self._store(connection, held, report)
            kept = told(held, report) | {"num_new": int(is_new)}
            if report.has_value and has_diverged(held, report.value):
                self._end(connection, held, LaneStatus.DIVERGED, **kept)
                return ended(replace(held, state=LaneStatus.DIVERGED, step=kept["step"]))
            reached = rungs_reached(held, report, is_repeated=not is_new)
            rungs = {**held.rungs, **{str(rung): [report.step, report.value] for rung in reached}}
            row = self._change(connection, self._sql.tell, held, rungs=rungs, ttl=self._lease_ms, **kept)
        if reached and self._prunes(held, reached):
            return ended(replace(held, state=LaneStatus.PRUNED, step=kept["step"]))
        return Directive(go_on=True, expires_at=row.lease_until)

    def complete(
        self, *, tenant_id: str, trial_id: str, token: LeaseToken, completion: Completion
    ) -> LaneStatus:
        """End a lease: trained to its end, or failed. Twice is as good as once.

        The figures of a run that was ended from here are kept too.

        Args:
            tenant_id: whose trial.
            trial_id: the trial.
            token: of the lease.
            completion: how it ended.

        Returns:
            Where the lane went: ``waiting`` if it failed and is tried again.

        Raises:
            NotFoundError: ``trial_not_found``.
            ConflictError: ``lease_lost``.
            InvalidRequestError: ``value_missing``.
        """
        with self._write() as connection:
            held = self._hold(connection, tenant_id, trial_id, token)
            if held.state is LaneStatus.LEASED and held.ended_study is None:
                return self._finish(connection, held, completion)
            if held.state is LaneStatus.LEASED:
                return self._end(connection, held, LaneStatus.CLOSED, record=completion.record)
            if completion.record is not None and not held.state.is_open:
                lane = {"trial_id": held.trial_id, "seed": held.seed, "fence": held.fence}
                self._execute(connection, self._sql.keep_record, record=completion.record, **lane)
            return held.state

    def reap(self) -> list[ReapedLane]:
        """End every expired lease of every study; the API does it every so often, and each ask for its study.

        Returns:
            What was ended.
        """
        with self._database.read() as session:
            connection = session.connection()
            if self._execute(connection, self._sql.find_expired).first() is None:
                return []
        with self._write() as connection:
            return reap_lanes(connection, max_lost=self._max_lost, now=self._now())

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        """A transaction that may change rows; its bare connection, because a session's own way costs a third more."""
        with self._database.write() as session:
            yield session.connection()

    def _hold(self, connection: Connection, tenant_id: str, trial_id: str, token: LeaseToken) -> Held:
        """Lock a lane for its newest lease's holder.

        Raises:
            NotFoundError: if the tenant has no such lane.
            LaneLostError: if the lease is lost.
        """
        row = self._execute(
            connection, self._sql.hold, tenant_id=tenant_id, trial_id=trial_id, seed=token.seed
        ).one_or_none()
        if row is None:
            raise NotFoundError(
                f"there is no trial {trial_id} with a lane of seed {token.seed}: ask for a lane with "
                "POST /v1/studies/{study_id}/trials:ask, and use its trial_id with its lease_token",
                code="trial_not_found",
            )
        if not token.proves(row.fence, row.token_sha256):
            raise LaneLostError(trial_id, token.seed)
        return Held.of(row)

    def _stop(self, connection: Connection, held: Held) -> Directive | None:
        """What to tell a holder whose lane is not to be trained any more; None to go on.

        Raises:
            LaneLostError: if the holder gave the lane back itself.
        """
        if held.state in (LaneStatus.WAITING, LaneStatus.FAIL):
            raise LaneLostError(held.trial_id, held.seed)
        if stop_reason(held) is None:
            return None
        if held.state is LaneStatus.LEASED:
            self._end(connection, held, LaneStatus.CLOSED)
        return ended(held)

    def _store(self, connection: Connection, held: Held, report: Report) -> bool:
        """Keep a report; whether it is new.

        Raises:
            ReportDiffersError: if the step has another value.
            ConflictError: ``step_not_rising``.
            InvalidRequestError: ``too_many_reports``.
        """
        place = {"trial_id": held.trial_id, "seed": held.seed, "step": report.step, "fence": held.fence}
        told = {"has_value": report.has_value, "value": report.value, "norms": list(report.norms)}
        if self._execute(connection, self._sql.add_report, **place, **told).one_or_none() is not None:
            require_rising(held, report)
            require_room(held)
            return True
        stored = self._execute(connection, self._sql.find_report, **place).one()
        if not report.has_value or (stored.has_value and stored.value == report.value):
            return False
        if stored.has_value:
            raise ReportDiffersError(report.step, report.value, stored.value)
        norms = [*stored.norms, *report.norms]
        self._execute(connection, self._sql.complete_report, **place, value=report.value, norms=norms)
        return True

    def _prunes(self, held: Held, rungs: tuple[int, ...]) -> bool:
        """Decide about the trial at the rungs that a report reached, and end its lanes if it is hopeless."""
        names = {"now": None, "study_id": held.study_id, "trial_id": held.trial_id}
        rivals = self._database.glance(lambda connection: connection.execute(self._sql.rivals, names).all())
        if not ends_trial(rivals, trial_id=held.trial_id, rungs=rungs, spec=held.spec):
            return False
        with self._write() as connection:
            self._execute(connection, self._sql.prune, trial_id=held.trial_id)
        return True

    def _finish(self, connection: Connection, held: Held, completion: Completion) -> LaneStatus:
        if completion.cause is not None:
            return self._give_up(connection, held, completion)
        value = final_value(held, completion)
        is_diverged = value is not None and has_diverged(held, value)
        state = LaneStatus.DIVERGED if is_diverged else LaneStatus.COMPLETE
        step = held.step if completion.value is None else held.num_steps
        return self._end(connection, held, state, step=step, value=value, record=completion.record)

    def _give_up(self, connection: Connection, held: Held, completion: Completion) -> LaneStatus:
        failure = decide_failure(
            held,
            completion,
            max_attempts=self._max_attempts,
            max_lost=self._max_lost,
            jitter=random.random(),
        )
        self._change(
            connection,
            self._sql.give_up,
            held,
            state=str(failure.state),
            attempt=failure.attempt,
            lost_count=failure.lost_count,
            cause=completion.cause,
            error=storable(completion.error),
            delay=round(1000 * failure.delay_seconds),
        )
        return failure.state

    def _end(self, connection: Connection, held: Held, state: LaneStatus, **changes: Any) -> LaneStatus:
        kept = {"step": held.step, "value": held.value, "initial": held.initial, "num_new": 0, "record": None}
        self._change(connection, self._sql.end, held, state=str(state), **kept | changes)
        return state

    def _change(
        self, connection: Connection, statement: Executable, held: Held, **parameters: Any
    ) -> Row[Any]:
        """Execute a statement guarded by MINE, and read the row it returns; the row is locked, so it is there."""
        lane = {"trial_id": held.trial_id, "seed": held.seed, "fence": held.fence}
        return self._execute(connection, statement, **lane, **parameters).one()

    def _execute(self, connection: Connection, statement: Executable, **parameters: Any) -> Result[Any]:
        return connection.execute(statement, {"now": self._now(), **parameters})
