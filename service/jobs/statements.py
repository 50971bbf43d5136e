"""The queue's SQL, all of it, for both dialects.

Every statement is one guarded change: what must be true is in its WHERE, and no row touched means that it was
not. Nothing here reads first and writes later. All times are the database's (`service.db.clock`).

MINE is the guard of a lease holder: id, fence, owner and state. It does not look at ``lease_until``: until a
reap ends the lease nobody else has the job, so a late write under the current fence is harmless; after it
``owner`` is NULL and the write is refused even if nobody has acquired the job yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ARRAY, JSON, BigInteger, Boolean, Executable, Integer, String, Text, bindparam

from service.db import statement

_MINE = "id = :id AND fence = :fence AND owner = :owner AND state = 'running'"
_ENDED = "owner = NULL, lease_until = 0"

_ENQUEUE = """
INSERT INTO cliptune_jobs (id, tenant_id, study_id, kind, payload, state, priority, run_after, fence, attempt,
  max_attempts, lost_count, lease_until, cancel_requested, created_at)
VALUES (:id, :tenant_id, :study_id, :kind, :payload, 'queued', :priority, {now}, 0, 0,
  :max_attempts, 0, 0, FALSE, {now})
"""

# One kind, in the order of the index of kinds. Without the order PostgreSQL's plan for all parameters alike, which it
# takes after a few executions, reads any index until it meets the kind: past the whole queue if there is none.
_FIND_READY = """
SELECT 1 FROM cliptune_jobs WHERE state = 'queued' AND kind = :kind AND run_after <= (SELECT {now})
ORDER BY run_after LIMIT 1
"""

_FIND_EXPIRED = "SELECT 1 FROM cliptune_jobs WHERE state = 'running' AND lease_until < (SELECT {now}) LIMIT 1"

_ACQUIRE_SET = """state = 'running', fence = fence + 1, attempt = attempt + 1, owner = :owner,
  lease_until = {now} + :ttl, started_at = coalesce(started_at, {now})"""
# The fields of a `Lease`, and below of a `Reaped`.
_ACQUIRE_RETURNING = (
    "id AS job_id, study_id, tenant_id, kind, payload, fence, owner, attempt, max_attempts, lost_count, "
    "priority"
)
_ACQUIRE = {
    # BEGIN IMMEDIATE already makes this transaction the only writer. The plus keeps SQLite from the index of kinds, for
    # which it would have to sort all jobs of the kind.
    "sqlite": f"""
UPDATE cliptune_jobs SET {_ACQUIRE_SET}
WHERE id = (SELECT id FROM cliptune_jobs WHERE state = 'queued' AND run_after <= {{now}} AND +{{kind_matches}}
  ORDER BY priority DESC, run_after, id LIMIT 1)
RETURNING {_ACQUIRE_RETURNING}
""",
    # MATERIALIZED: inlined, the planner might run the locking SELECT again for each row it looks at.
    # The clock is volatile, hence no index bound unless it is a scalar subquery, evaluated once.
    "postgresql": f"""
WITH candidate AS MATERIALIZED (SELECT id AS candidate_id FROM cliptune_jobs
  WHERE state = 'queued' AND run_after <= (SELECT {{now}}) AND {{kind_matches}}
  ORDER BY priority DESC, run_after, id LIMIT 1 FOR UPDATE SKIP LOCKED)
UPDATE cliptune_jobs SET {_ACQUIRE_SET} FROM candidate WHERE id = candidate_id
RETURNING {_ACQUIRE_RETURNING}
""",
}

# A queue's statistics are always stale: taken while it was empty, they promise that sorting all queued jobs is
# cheap. Measured with 10,000 queued and no ANALYZE: 6 ms per acquisition instead of 0.1.
_READ_IN_INDEX_ORDER = {"sqlite": None, "postgresql": "SET LOCAL enable_sort = off"}

_HOLD = f"SELECT id FROM cliptune_jobs WHERE {_MINE} {{for_update}}"

_RENEW = f"UPDATE cliptune_jobs SET lease_until = {{now}} + :ttl WHERE {_MINE} RETURNING cancel_requested"

_FORGET_LOSSES = f"UPDATE cliptune_jobs SET lost_count = 0 WHERE {_MINE} RETURNING id"

_FINISH = f"""
UPDATE cliptune_jobs SET state = :outcome, {_ENDED}, finished_at = {{now}},
  last_error = coalesce(:error, last_error)
WHERE {_MINE} RETURNING state
"""

_RELEASE = f"""
UPDATE cliptune_jobs SET state = CASE WHEN cancel_requested THEN 'cancelled' ELSE 'queued' END,
  attempt = attempt - 1, {_ENDED}, finished_at = CASE WHEN cancel_requested THEN {{now}} END
WHERE {_MINE} RETURNING state
"""

_FAIL = f"""
UPDATE cliptune_jobs SET state = CASE WHEN cancel_requested THEN 'cancelled'
    WHEN attempt >= max_attempts THEN 'failed' ELSE 'queued' END,
  finished_at = CASE WHEN cancel_requested OR attempt >= max_attempts THEN {{now}} END,
  {_ENDED}, run_after = {{now}} + :delay, last_error = :error
WHERE {_MINE} RETURNING state
"""

# The first loss is requeued at once: a dead worker's job runs again within TTL + 10 s.
_REAP_SET = f"""lost_count = lost_count + 1, attempt = attempt - 1, {_ENDED},
  state = CASE WHEN cancel_requested THEN 'cancelled' WHEN lost_count + 1 >= :max_lost THEN 'failed'
    ELSE 'queued' END,
  last_error = CASE WHEN NOT cancel_requested AND lost_count + 1 >= :max_lost THEN :error ELSE last_error END,
  finished_at = CASE WHEN cancel_requested OR lost_count + 1 >= :max_lost THEN {{now}} END,
  run_after = {{now}} + CASE WHEN lost_count = 0 THEN 0 ELSE :delay END"""
_REAP = {
    "sqlite": f"""
UPDATE cliptune_jobs SET {_REAP_SET}
WHERE state = 'running' AND lease_until < {{now}} RETURNING id AS job_id, study_id, state, fence, lost_count
""",
    # SKIP LOCKED: a locked row's holder is alive at this moment, or another reap has it. The locking SELECT
    # rechecks lease_until on the newest version of a row, so a renewal that committed meanwhile wins.
    "postgresql": f"""
UPDATE cliptune_jobs SET {_REAP_SET}
WHERE state = 'running' AND id IN (SELECT id FROM cliptune_jobs WHERE state = 'running'
  AND lease_until < (SELECT {{now}}) ORDER BY id FOR UPDATE SKIP LOCKED)
RETURNING id AS job_id, study_id, state, fence, lost_count
""",
}

# NOT cancel_requested: a second request changes nothing, so that it leaves no second event.
_CANCEL = """
UPDATE cliptune_jobs SET cancel_requested = TRUE,
  state = CASE state WHEN 'queued' THEN 'cancelled' ELSE state END,
  finished_at = CASE state WHEN 'queued' THEN {now} END
WHERE id = :id AND state IN ('queued', 'running') AND NOT cancel_requested RETURNING study_id, state, fence
"""

_FIND_LIVE = "SELECT state FROM cliptune_jobs WHERE id = :id AND state IN ('queued', 'running')"

_CLOSE_TRIALS = """
UPDATE cliptune_trials SET state = 'fail', last_error = :error, finished_at = {now}
WHERE study_id = :study_id AND state IN ('waiting', 'running')
"""

_APPEND_EVENT = """
INSERT INTO cliptune_job_events (job_id, study_id, kind, fence, payload, created_at)
VALUES (:id, :study_id, :kind, :fence, :payload, {now})
"""


@dataclass(frozen=True, slots=True)
class Statements:
    """The statements of one dialect, ready to execute; the parameters are named as the columns.

    All take ``now``: NULL, or the milliseconds that replace the database's clock in tests.
    """

    enqueue: Executable
    """Insert a queued job; the partial unique index refuses a second live job of a study."""
    find_ready: Executable
    """A row if a job of a kind could be acquired now."""
    find_expired: Executable
    """A row if a lease could be reaped now."""
    read_in_index_order: Executable | None
    """Executed before `acquire` in its transaction; None where the planner needs no advice."""
    acquire: Executable
    """Lease the first ready job of the given kinds; returns it."""
    hold: Executable
    """Lock the row of a lease for the rest of the transaction; returns a row if it is MINE."""
    renew: Executable
    """Move the expiry of a lease; returns whether a cancel was requested."""
    forget_losses: Executable
    """The job got on under this lease, so earlier losses no longer count."""
    finish: Executable
    """End a lease with a final state."""
    release: Executable
    """Give a job back; the execution counts on nothing."""
    fail: Executable
    """End a lease with an error: requeued with a delay, or failed at ``max_attempts``."""
    reap: Executable
    """End every expired lease; returns the jobs."""
    cancel: Executable
    """Cancel a queued job, or ask the holder of a running one to stop; returns it the first time only."""
    find_live: Executable
    """The state of a job that is queued or running."""
    close_trials: Executable
    """A finished study leaves no open trial."""
    append_event: Executable
    """One line of a job's history."""


_INTEGERS = ("now", "fence", "ttl", "delay", "priority", "max_attempts", "max_lost")
_TYPES: dict[str, Any] = dict.fromkeys(_INTEGERS, BigInteger()) | {"payload": JSON(), "error": Text()}
_COLUMNS: dict[str, Any] = {
    "fence": BigInteger(),
    "attempt": Integer(),
    "max_attempts": Integer(),
    "lost_count": Integer(),
    "payload": JSON(),
    "cancel_requested": Boolean(),
}


def statements_for(dialect: str) -> Statements:
    """Build the queue's statements.

    Args:
        dialect: ``sqlite`` or ``postgresql``.

    Returns:
        The statements of that dialect.
    """
    is_postgres = dialect == "postgresql"
    kinds = bindparam("kinds", type_=ARRAY(String())) if is_postgres else bindparam("kinds", expanding=True)

    def prepare(source: str) -> Executable:
        return statement.prepare(
            source,
            dialect,
            parameters=_TYPES,
            columns=_COLUMNS,
            kind_matches="kind = ANY(:kinds)" if is_postgres else "kind IN :kinds",
            kinds=kinds,
        )

    advice = _READ_IN_INDEX_ORDER[dialect]
    return Statements(
        enqueue=prepare(_ENQUEUE),
        find_ready=prepare(_FIND_READY),
        find_expired=prepare(_FIND_EXPIRED),
        read_in_index_order=None if advice is None else prepare(advice),
        acquire=prepare(_ACQUIRE[dialect]),
        hold=prepare(_HOLD),
        renew=prepare(_RENEW),
        forget_losses=prepare(_FORGET_LOSSES),
        finish=prepare(_FINISH),
        release=prepare(_RELEASE),
        fail=prepare(_FAIL),
        reap=prepare(_REAP[dialect]),
        cancel=prepare(_CANCEL),
        find_live=prepare(_FIND_LIVE),
        close_trials=prepare(_CLOSE_TRIALS),
        append_event=prepare(_APPEND_EVENT),
    )
