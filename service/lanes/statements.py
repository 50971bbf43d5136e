"""The SQL of lanes, all of it, for both dialects; in the manner of `service.jobs.statements`.

Every change is one guarded UPDATE: what must be true is in its WHERE. All times are the database's. MINE is the guard
of a lease holder: the lane, the fence and the state; the token was compared before, on the locked row. It does not look
at ``lease_until``: until a reap ends the lease nobody else has the lane, so a late word under the current fence is
harmless. Statements that change several lanes lock them in one order first, so that no two of them wait for each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Executable, Float, Integer, Text

from service.db import statement

_MINE = "trial_id = :trial_id AND seed = :seed AND fence = :fence AND state = 'leased'"

_LOOK = """
SELECT study.spec, study.reference, job.state AS job_state, job.cancel_requested,
  EXISTS (SELECT 1 FROM cliptune_lanes WHERE study_id = :study_id AND state = 'leased' AND client_id = :client_id)
    AS is_held,
  EXISTS (SELECT 1 FROM cliptune_lanes WHERE study_id = :study_id AND state = 'leased'
    AND lease_until < (SELECT {now})) AS has_expired,
  EXISTS (SELECT 1 FROM cliptune_lanes WHERE study_id = :study_id AND state = 'waiting'
    AND run_after <= (SELECT {now})) AS has_waiting
FROM cliptune_studies AS study JOIN cliptune_jobs AS job ON job.id = study.job_id
WHERE study.id = :study_id AND study.tenant_id = :tenant_id
"""

# What was reported under earlier leases stays in the reports' table, under its own fence.
_LEASE_SET = """state = 'leased', fence = fence + 1, token_sha256 = :token_sha256, client_id = :client_id,
  lease_until = {now} + :ttl, leased_at = {now}, step = NULL, value = NULL, initial = NULL"""
_LEASE_RETURNING = "trial_id, seed, fence, is_probe, num_steps, lease_until"

_REENTER = f"""
UPDATE cliptune_lanes SET {_LEASE_SET}
WHERE study_id = :study_id AND client_id = :client_id AND state = 'leased' RETURNING {_LEASE_RETURNING}
"""

_READY = "study_id = :study_id AND state = 'waiting' AND run_after <= (SELECT {now})"
_LEASE = {
    # BEGIN IMMEDIATE already makes this transaction the only writer.
    "sqlite": f"""
UPDATE cliptune_lanes SET {_LEASE_SET}
WHERE (trial_id, seed) = (SELECT trial_id, seed FROM cliptune_lanes WHERE {_READY} ORDER BY position LIMIT 1)
RETURNING {_LEASE_RETURNING}
""",
    "postgresql": f"""
WITH candidate AS MATERIALIZED (SELECT trial_id AS its_trial, seed AS its_seed FROM cliptune_lanes
  WHERE {_READY} ORDER BY position LIMIT 1 FOR UPDATE SKIP LOCKED)
UPDATE cliptune_lanes SET {_LEASE_SET} FROM candidate WHERE trial_id = its_trial AND seed = its_seed
RETURNING {_LEASE_RETURNING}
""",
}

_HOLD = """
SELECT lane.trial_id, lane.study_id, lane.seed, lane.state, lane.fence, lane.token_sha256, lane.is_probe,
  lane.num_steps, lane.attempt, lane.lost_count, lane.step, lane.value, lane.initial, lane.rungs,
  lane.num_reports,
  study.spec, job.state AS job_state, job.cancel_requested
FROM cliptune_lanes AS lane JOIN cliptune_studies AS study ON study.id = lane.study_id
  JOIN cliptune_jobs AS job ON job.id = study.job_id
WHERE lane.trial_id = :trial_id AND lane.seed = :seed AND lane.tenant_id = :tenant_id {for_update_of_lane}
"""

_RENEW = f"UPDATE cliptune_lanes SET lease_until = {{now}} + :ttl WHERE {_MINE} RETURNING lease_until"

_ADD_REPORT = """
INSERT INTO cliptune_lane_reports (trial_id, seed, step, fence, has_value, value, norms, created_at)
VALUES (:trial_id, :seed, :step, :fence, :has_value, :value, :norms, {now})
ON CONFLICT DO NOTHING RETURNING step
"""

_FIND_REPORT = """
SELECT has_value, value, norms FROM cliptune_lane_reports
WHERE trial_id = :trial_id AND seed = :seed AND step = :step AND fence = :fence
"""

_COMPLETE_REPORT = """
UPDATE cliptune_lane_reports SET has_value = TRUE, value = :value, norms = :norms
WHERE trial_id = :trial_id AND seed = :seed AND step = :step AND fence = :fence
"""

_TELL = f"""
UPDATE cliptune_lanes SET step = :step, value = :value, initial = :initial, rungs = :rungs,
  num_reports = num_reports + :num_new, lease_until = {{now}} + :ttl
WHERE {_MINE} RETURNING lease_until
"""

_END = f"""
UPDATE cliptune_lanes SET state = :state, step = :step, value = :value, initial = :initial,
  num_reports = num_reports + :num_new, record = coalesce(:record, record), lease_until = 0, finished_at = {{now}}
WHERE {_MINE} RETURNING state
"""

_KEEP_RECORD = """
UPDATE cliptune_lanes SET record = :record
WHERE trial_id = :trial_id AND seed = :seed AND fence = :fence AND record IS NULL
"""

_GIVE_UP = f"""
UPDATE cliptune_lanes SET state = :state, attempt = :attempt, lost_count = :lost_count, last_cause = :cause,
  last_error = :error, run_after = {{now}} + :delay, lease_until = 0,
  finished_at = CASE WHEN CAST(:state AS varchar) = 'fail' THEN {{now}} END
WHERE {_MINE} RETURNING state
"""

# A lane that nobody has begun says nothing, and one of a seed that this trial has not begun is not compared.
_RIVALS = """
SELECT trial.id AS trial_id, trial.method, trial.threshold, trial.learning_rate_scale, trial.stage,
  lane.seed, lane.state, lane.step, lane.rungs,
  EXISTS (SELECT 1 FROM cliptune_lanes AS its
    WHERE its.trial_id = trial.id AND its.state IN ('pruned', 'fail')) AS is_over
FROM cliptune_lanes AS lane JOIN cliptune_trials AS trial ON trial.id = lane.trial_id
WHERE lane.study_id = :study_id AND lane.state IN ('leased', 'complete', 'pruned', 'diverged')
  AND trial.stage = 'search'
  AND lane.seed IN (SELECT seed FROM cliptune_lanes WHERE trial_id = :trial_id AND fence > 0)
ORDER BY trial.number, lane.seed
"""

_FIND_TRIAL = (
    "SELECT number, stage, method, threshold, learning_rate_scale FROM cliptune_trials WHERE id = :trial_id"
)

_FIND_EXPIRED = "SELECT 1 FROM cliptune_lanes WHERE state = 'leased' AND lease_until < (SELECT {now}) LIMIT 1"

_REAP_SET = """lost_count = lost_count + 1, token_sha256 = NULL, lease_until = 0,
  state = CASE WHEN lost_count + 1 >= :max_lost THEN 'fail' ELSE 'waiting' END,
  last_cause = 'worker_lost', last_error = :error,
  finished_at = CASE WHEN lost_count + 1 >= :max_lost THEN {now} END,
  run_after = {now} + CASE WHEN lost_count = 0 THEN 0 ELSE :delay END"""
_EXPIRED = """state = 'leased' AND lease_until < (SELECT {now})
  AND (CAST(:study_id AS varchar) IS NULL OR study_id = :study_id)"""
_REAP_RETURNING = "study_id, trial_id, seed, state, fence, lost_count"
_REAP = {
    "sqlite": f"UPDATE cliptune_lanes SET {_REAP_SET} WHERE {_EXPIRED} RETURNING {_REAP_RETURNING}",
    # SKIP LOCKED: the holder of a locked row is heard at this moment, or another reap has it.
    "postgresql": f"""
UPDATE cliptune_lanes SET {_REAP_SET}
WHERE state = 'leased' AND (trial_id, seed) IN (SELECT trial_id, seed FROM cliptune_lanes WHERE {_EXPIRED}
  ORDER BY trial_id, seed FOR UPDATE SKIP LOCKED)
RETURNING {_REAP_RETURNING}
""",
}

_IN_ORDER = "ORDER BY trial_id, seed {for_update}"

_PRUNE = f"""
UPDATE cliptune_lanes SET state = CASE WHEN fence = 0 THEN 'closed' ELSE 'pruned' END, lease_until = 0,
  finished_at = {{now}}
WHERE state IN ('waiting', 'leased') AND (trial_id, seed) IN (SELECT trial_id, seed FROM cliptune_lanes
  WHERE trial_id = :trial_id AND state IN ('waiting', 'leased') {_IN_ORDER})
"""

_CLOSE = f"""
UPDATE cliptune_lanes SET state = 'closed', lease_until = 0, finished_at = {{now}}
WHERE state IN ('waiting', 'leased') AND (trial_id, seed) IN (SELECT trial_id, seed FROM cliptune_lanes
  WHERE study_id = :study_id AND (CAST(:trial_id AS varchar) IS NULL OR trial_id = :trial_id)
  AND state IN ('waiting', 'leased') {_IN_ORDER})
RETURNING trial_id, seed
"""


@dataclass(frozen=True, slots=True)
class Statements:
    """The statements of one dialect, ready to execute; the parameters are named as the columns.

    All take ``now``: NULL, or the milliseconds that replace the database's clock in tests.
    """

    look: Executable
    """A study of a tenant, and whether a client could be given one of its lanes."""
    reenter: Executable
    """Lease the lane that a client holds once more, under the next fence."""
    lease: Executable
    """Lease the first lane that waits, in the order of asking."""
    hold: Executable
    """Lock a lane's row for the rest of the transaction, and read it with its study and job."""
    renew: Executable
    """Move the expiry of a lease."""
    add_report: Executable
    """Store a report; returns no row if the step has one."""
    find_report: Executable
    """The report of a step under a fence."""
    complete_report: Executable
    """Add an objective to a report that only brought norms."""
    tell: Executable
    """Note what was reported, and move the expiry."""
    end: Executable
    """End a lease with a final state."""
    keep_record: Executable
    """Add the figures of a run that was ended from here."""
    give_up: Executable
    """End a lease with an error: waiting again after a delay, or failed."""
    rivals: Executable
    """The trials that search with their lanes that were ever leased, and what these reached at the rungs."""
    find_trial: Executable
    """What a lane's trial is."""
    find_expired: Executable
    """A row if a lease could be reaped now."""
    reap: Executable
    """End every expired lease, of one study or of all."""
    prune: Executable
    """End a trial's open lanes: what was ever begun is pruned, what never was is closed."""
    close: Executable
    """Close the open lanes of a study, or of one trial."""


_BIG = ("now", "fence", "ttl", "delay", "step")
_SMALL = ("seed", "attempt", "lost_count", "max_lost", "num_new")
_TYPES: dict[str, Any] = (
    dict.fromkeys(_BIG, BigInteger())
    | dict.fromkeys(_SMALL, Integer())
    | dict.fromkeys(("value", "initial"), Float())
    | {
        "norms": JSON(),
        "rungs": JSON(),
        "record": JSON(none_as_null=True),
        "error": Text(),
        "has_value": Boolean(),
    }
)
_COLUMNS: dict[str, Any] = dict.fromkeys(("spec", "reference", "norms", "rungs"), JSON()) | dict.fromkeys(
    ("cancel_requested", "is_held", "has_expired", "has_waiting", "is_over", "is_probe", "has_value"),
    Boolean(),
)


@cache
def statements_for(dialect: str) -> Statements:
    """Build the statements.

    Args:
        dialect: ``sqlite`` or ``postgresql``.

    Returns:
        The statements of that dialect.
    """

    def prepare(source: str) -> Executable:
        return statement.prepare(
            source,
            dialect,
            parameters=_TYPES,
            columns=_COLUMNS,
            for_update_of_lane="FOR UPDATE OF lane" if dialect == "postgresql" else "",
        )

    return Statements(
        look=prepare(_LOOK),
        reenter=prepare(_REENTER),
        lease=prepare(_LEASE[dialect]),
        hold=prepare(_HOLD),
        renew=prepare(_RENEW),
        add_report=prepare(_ADD_REPORT),
        find_report=prepare(_FIND_REPORT),
        complete_report=prepare(_COMPLETE_REPORT),
        tell=prepare(_TELL),
        end=prepare(_END),
        keep_record=prepare(_KEEP_RECORD),
        give_up=prepare(_GIVE_UP),
        rivals=prepare(_RIVALS),
        find_trial=prepare(_FIND_TRIAL),
        find_expired=prepare(_FIND_EXPIRED),
        reap=prepare(_REAP[dialect]),
        prune=prepare(_PRUNE),
        close=prepare(_CLOSE),
    )
