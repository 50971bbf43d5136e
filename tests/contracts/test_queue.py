"""Conformance of the queue (T14): every operation in every state, on SQLite and PostgreSQL alike."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest
from sqlalchemy import delete, event, text
from sqlalchemy.exc import IntegrityError

from service.db.models import JobRow
from service.db.session import Database
from service.errors import LeaseLostError
from service.jobs.queue import MAX_ERROR_CHARACTERS, Queue
from service.states import JobState

TTL_MS = 60_000
BACKOFF_MS = 5_000
START_MS = 1_000_000_000_000
OUTCOMES = [JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED]

#: Every way a lease holder can touch its job, by name.
WRITES = {
    "renew": lambda bench, lease: bench.queue.renew(lease),
    "finish": lambda bench, lease: bench.queue.finish(lease, JobState.SUCCEEDED),
    "release": lambda bench, lease: bench.queue.release(lease),
    "fail": lambda bench, lease: bench.queue.fail(lease, "late", delay_seconds=0),
    "held": lambda bench, lease: _write_held(bench, lease),
}


def _write_held(bench: Any, lease: Any) -> None:
    with bench.queue.held(lease) as session:
        bench.queue.append_event(session, lease, "report", {"step": 1})


# --- enqueue and acquire ---


def test_enqueued_job_is_queued_with_its_event(bench: Any) -> None:
    job_id = bench.submit(payload={"a": [1, None, "x"]}, priority=3)
    row = bench.row(job_id)
    assert (row["state"], row["fence"], row["attempt"], row["lost_count"]) == ("queued", 0, 0, 0)
    assert (row["owner"], row["lease_until"], row["run_after"]) == (None, 0, START_MS)
    assert [(one["kind"], one["fence"], one["created_at"]) for one in bench.events(job_id)] == [
        ("queued", 0, START_MS)
    ]


def test_enqueue_rolled_back_leaves_neither_job_nor_event(bench: Any) -> None:
    with pytest.raises(RuntimeError, match="changed my mind"), bench.database.write() as session:
        bench.queue.enqueue(session, job_id="j", study_id="s", tenant_id="t")
        raise RuntimeError("changed my mind")
    assert bench.events("j") == []
    assert bench.queue.acquire("worker-1", ["study"]) is None


def test_second_live_job_of_a_study_is_refused(bench: Any) -> None:
    bench.submit(study_id="s")
    with pytest.raises(IntegrityError):
        bench.submit(study_id="s")


def test_finished_study_may_be_enqueued_again(bench: Any) -> None:
    bench.submit("first", study_id="s")
    bench.queue.finish(bench.acquire(), JobState.SUCCEEDED)
    bench.submit("second", study_id="s")
    assert bench.acquire().job_id == "second"


def test_acquire_gives_the_lease_and_its_event(bench: Any) -> None:
    job_id = bench.submit(payload={"a": [1, None]}, max_attempts=7)
    lease = bench.acquire("owner")
    assert (lease.job_id, lease.tenant_id, lease.kind, lease.payload) == (
        job_id,
        "tenant",
        "study",
        {"a": [1, None]},
    )
    assert (lease.fence, lease.owner, lease.attempt, lease.max_attempts, lease.lost_count) == (
        1,
        "owner",
        1,
        7,
        0,
    )
    row = bench.row(job_id)
    assert (row["state"], row["owner"], row["lease_until"]) == ("running", "owner", START_MS + TTL_MS)
    newest = bench.events(job_id)[-1]
    assert (newest["kind"], newest["fence"], newest["payload"]) == (
        "acquired",
        1,
        {"owner": "owner", "attempt": 1},
    )


def test_empty_queue_gives_no_lease(bench: Any) -> None:
    assert bench.queue.acquire("worker-1", ["study"]) is None


def test_acquire_of_no_kind_gives_no_lease(bench: Any) -> None:
    bench.submit()
    assert bench.queue.acquire("worker-1", []) is None


def test_leased_job_is_not_acquired_again(bench: Any) -> None:
    bench.submit()
    bench.acquire()
    assert bench.queue.acquire("worker-2", ["study"]) is None


def test_unknown_kind_stays_queued_and_blocks_nobody(bench: Any) -> None:
    unknown = bench.submit(kind="from-the-future", priority=9)
    known = bench.submit()
    assert bench.acquire().job_id == known
    assert bench.queue.acquire("worker-2", ["study", "export"]) is None
    assert bench.row(unknown)["state"] == "queued"
    assert bench.acquire("worker-3", ["study", "from-the-future"]).job_id == unknown


def test_order_is_priority_then_run_after_then_id(bench: Any) -> None:
    for job_id, priority, run_after in [
        ("d", 0, START_MS - 1),
        ("c", 0, START_MS),
        ("b", 0, START_MS),
        ("a", 1, START_MS),
        ("e", 5, START_MS + 1),  # not ready yet
    ]:
        bench.submit(job_id, priority=priority)
        bench.put(job_id, run_after=run_after)
    assert [bench.acquire().job_id for _ in range(4)] == ["a", "d", "b", "c"]
    assert bench.queue.acquire("worker-1", ["study"]) is None
    bench.clock.advance(0.001)
    assert bench.acquire().job_id == "e"


def test_fences_strictly_grow_whatever_ends_the_lease(bench: Any) -> None:
    job_id = bench.submit(max_attempts=10)
    fences = [0]
    for end in ("release", "lose", "fail", "release", "lose", "fail"):
        bench.clock.advance(60)
        lease = bench.acquire()
        fences.append(lease.fence)
        if end == "lose":
            bench.lose()
        else:
            WRITES[end](bench, lease)
    assert fences == [0, 1, 2, 3, 4, 5, 6]
    assert [one["fence"] for one in bench.events(job_id)] == sorted(
        one["fence"] for one in bench.events(job_id)
    )


# --- renew, finish, release, fail ---


def test_renewal_moves_the_expiry(bench: Any) -> None:
    job_id = bench.submit()
    lease = bench.acquire()
    bench.clock.advance(15)
    assert bench.queue.renew(lease) is False
    assert bench.row(job_id)["lease_until"] == START_MS + 15_000 + TTL_MS


def test_renewed_lease_is_not_reaped_however_old(bench: Any) -> None:
    bench.submit()
    lease = bench.acquire()
    for _ in range(20):
        bench.clock.advance(60)
        assert bench.queue.reap() == []
        bench.queue.renew(lease)


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_finish_ends_the_lease_and_the_open_trials(bench: Any, outcome: JobState) -> None:
    job_id = bench.submit(trials=["complete", "running", "waiting", "pruned"])
    bench.clock.advance(1)
    bench.queue.finish(bench.acquire(), outcome, "why" if outcome is JobState.FAILED else None)
    row = bench.row(job_id)
    assert (row["state"], row["owner"], row["lease_until"]) == (outcome, None, 0)
    assert row["finished_at"] == START_MS + 1000
    assert row["last_error"] == ("why" if outcome is JobState.FAILED else None)
    assert bench.kinds_of_events(job_id)[-1] == outcome.value
    assert [state for state, _ in bench.trials(job_id)] == ["complete", "fail", "fail", "pruned"]
    assert bench.trials(job_id)[1][1].startswith("the study ")


def test_finish_in_commits_or_rolls_back_with_its_transaction(bench: Any) -> None:
    job_id = bench.submit(trials=["running"])
    lease = bench.acquire()
    with pytest.raises(RuntimeError), bench.queue.held(lease) as session:
        bench.queue.finish_in(session, lease, JobState.SUCCEEDED)
        raise RuntimeError
    assert bench.row(job_id)["state"] == "running"
    assert bench.trials(job_id) == [("running", None)]
    with bench.queue.held(lease) as session:
        bench.queue.append_event(session, lease, "recommendation", {})
        bench.queue.finish_in(session, lease, JobState.SUCCEEDED)
    assert bench.kinds_of_events(job_id) == ["queued", "acquired", "recommendation", "succeeded"]


@pytest.mark.parametrize("outcome", [JobState.QUEUED, JobState.RUNNING])
def test_finish_refuses_a_state_that_is_not_final(bench: Any, outcome: JobState) -> None:
    bench.submit()
    with pytest.raises(ValueError, match=outcome.value):
        bench.queue.finish(bench.acquire(), outcome)


def test_release_counts_nothing_and_requeues_at_once(bench: Any) -> None:
    job_id = bench.submit(trials=["running"])
    assert bench.queue.release(bench.acquire()) is JobState.QUEUED
    row = bench.row(job_id)
    assert (row["attempt"], row["lost_count"], row["run_after"]) == (0, 0, START_MS)
    assert bench.trials(job_id) == [("running", None)]
    assert bench.acquire().attempt == 1
    assert bench.kinds_of_events(job_id) == ["queued", "acquired", "released", "acquired"]


def test_error_counts_an_attempt_and_waits(bench: Any) -> None:
    job_id = bench.submit()
    assert bench.queue.fail(bench.acquire(), "boom", delay_seconds=2.5) is JobState.QUEUED
    row = bench.row(job_id)
    assert (row["attempt"], row["run_after"], row["last_error"]) == (1, START_MS + 2500, "boom")
    assert bench.events(job_id)[-1]["payload"] == {"error": "boom", "attempt": 1, "delay_seconds": 2.5}
    assert bench.queue.acquire("worker-1", ["study"]) is None
    bench.clock.advance(2.5)
    assert bench.acquire().attempt == 2


def test_last_attempt_fails_the_job_and_its_trials(bench: Any) -> None:
    job_id = bench.submit(max_attempts=2, trials=["running"])
    states = [bench.queue.fail(bench.acquire(), f"boom {number}", delay_seconds=0) for number in (1, 2)]
    assert states == [JobState.QUEUED, JobState.FAILED]
    row = bench.row(job_id)
    assert (row["last_error"], row["finished_at"]) == ("boom 2", START_MS)
    assert bench.kinds_of_events(job_id) == ["queued", "acquired", "error", "acquired", "failed"]
    assert bench.trials(job_id) == [("fail", "the study failed")]


def test_attempts_count_errors_only(bench: Any) -> None:
    # release and loss take back the +1 of the acquisition: 2 errors among 6 executions leave attempt = 2.
    job_id = bench.submit(max_attempts=3)
    for end in ("release", "fail", "lose", "release", "fail", "release"):
        bench.clock.advance(10)
        lease = bench.acquire()
        if end == "lose":
            bench.lose()
        else:
            WRITES[end](bench, lease)
    assert bench.row(job_id)["attempt"] == 2
    assert bench.row(job_id)["fence"] == 6


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        ("nul \x00 byte", "nul \\x00 byte"),
        ("lone \ud800 surrogate", "lone \\ud800 surrogate"),
        ("x" * 100_000 + "the end", None),
    ],
)
def test_odd_error_texts_are_stored(bench: Any, error: str, kept: str | None) -> None:
    job_id = bench.submit(max_attempts=1)
    bench.queue.fail(bench.acquire(), error, delay_seconds=0)
    stored = bench.row(job_id)["last_error"]
    assert stored == kept or (
        kept is None and stored.endswith("the end") and len(stored) == MAX_ERROR_CHARACTERS
    )


# --- reap ---


def test_lease_is_valid_until_its_last_millisecond(bench: Any) -> None:
    bench.submit()
    bench.acquire()
    bench.clock.advance(60)
    assert bench.queue.reap() == []
    bench.clock.advance(0.001)
    assert len(bench.queue.reap()) == 1


def test_expired_lease_is_reaped_once(bench: Any) -> None:
    job_id = bench.submit(trials=["running"])
    bench.acquire()
    bench.clock.advance(61)
    (reaped,) = bench.queue.reap()
    assert (reaped.job_id, reaped.state, reaped.fence, reaped.lost_count) == (job_id, JobState.QUEUED, 1, 1)
    assert bench.queue.reap() == []
    row = bench.row(job_id)
    assert (row["state"], row["owner"], row["lease_until"], row["attempt"]) == ("queued", None, 0, 0)
    assert bench.trials(job_id) == [("running", None)]
    assert bench.events(job_id)[-1]["payload"] == {"lost_count": 1}


def test_first_loss_is_requeued_at_once_the_second_waits(bench: Any) -> None:
    job_id = bench.submit()
    bench.acquire()
    bench.lose()
    assert bench.row(job_id)["run_after"] == bench.clock()
    bench.acquire()
    bench.lose()
    assert bench.row(job_id)["run_after"] == bench.clock() + BACKOFF_MS


def test_third_loss_in_a_row_fails_the_job(bench: Any) -> None:
    job_id = bench.submit(trials=["waiting"])
    for _ in range(3):
        bench.clock.advance(5)
        bench.acquire()
        bench.lose()
    row = bench.row(job_id)
    assert (row["state"], row["lost_count"], row["attempt"]) == ("failed", 3, 0)
    assert row["finished_at"] == bench.clock()
    assert "lost 3 times in a row" in row["last_error"]
    assert bench.kinds_of_events(job_id) == ["queued", *["acquired", "reaped"] * 2, "acquired", "failed"]
    assert bench.trials(job_id) == [("fail", "the study failed")]


def test_progress_forgives_earlier_losses(bench: Any) -> None:
    job_id = bench.submit()
    for _ in range(10):
        bench.clock.advance(5)
        lease = bench.acquire()
        with bench.queue.held(lease) as session:
            bench.queue.forget_losses(session, lease)
        bench.lose()
        assert bench.row(job_id)["lost_count"] == 1
    assert bench.row(job_id)["state"] == "queued"


def test_release_and_error_do_not_forgive_losses(bench: Any) -> None:
    job_id = bench.submit()
    bench.acquire()
    bench.lose()
    bench.queue.release(bench.acquire())
    bench.queue.fail(bench.acquire(), "boom", delay_seconds=0)
    assert bench.row(job_id)["lost_count"] == 1


def test_reap_ends_all_expired_leases_and_only_those(bench: Any) -> None:
    expired = sorted(bench.submit() for _ in range(3))
    for number in range(3):
        bench.acquire(f"dead-{number}")
    bench.clock.advance(30)
    fresh = bench.submit()
    bench.acquire("alive")
    bench.clock.advance(31)
    assert [one.job_id for one in bench.queue.reap()] == expired
    assert bench.row(fresh)["owner"] == "alive"


def test_reap_spares_the_lease_that_ends_this_very_millisecond(bench: Any) -> None:
    expired = bench.submit()
    bench.acquire()
    bench.clock.advance(0.001)
    bench.submit()
    bench.acquire()
    bench.clock.advance(60)
    assert [one.job_id for one in bench.queue.reap()] == [expired]


def test_reap_of_nothing_takes_no_write_lock(bench: Any) -> None:
    impatient = bench.open_database(busy_seconds=0.01)
    with bench.database.write():
        assert bench.another_queue(impatient).reap() == []
        assert bench.another_queue(impatient).acquire("worker-1", ["study"]) is None
    impatient.close()


# --- late writes ---


@pytest.mark.parametrize("write", WRITES)
def test_write_of_an_expired_lease_is_accepted_until_the_reap(bench: Any, write: str) -> None:
    bench.submit()
    lease = bench.acquire()
    bench.clock.advance(3600)
    WRITES[write](bench, lease)


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(
    "after", ["reap", "other_acquires", "same_owner_acquires", "release", "finish", "other_owner"]
)
def test_write_of_a_lost_lease_changes_nothing(bench: Any, write: str, after: str) -> None:
    job_id = bench.submit(trials=["running"])
    lease = bench.acquire()
    if after == "release":
        bench.queue.release(lease)
    elif after == "finish":
        bench.queue.finish(lease, JobState.SUCCEEDED)
    elif after == "other_owner":
        # A restored backup could repeat a fence; the owner is drawn at each start and tells them apart.
        bench.put(job_id, owner="somebody-else")
    else:
        bench.lose()
    if after.endswith("acquires"):
        # The same owner again is told apart by the fence alone.
        bench.acquire("worker-2" if after == "other_acquires" else lease.owner)
    before = (dict(bench.row(job_id)), bench.events(job_id), bench.trials(job_id))
    with pytest.raises(LeaseLostError, match=job_id):
        WRITES[write](bench, lease)
    assert (dict(bench.row(job_id)), bench.events(job_id), bench.trials(job_id)) == before


def test_progress_of_a_lost_lease_is_refused(bench: Any) -> None:
    bench.submit()
    lease = bench.acquire()
    bench.lose()
    with pytest.raises(LeaseLostError), bench.database.write() as session:
        bench.queue.forget_losses(session, lease)


# --- cancel ---


def _cancel(bench: Any, job_id: str) -> JobState | None:
    with bench.database.write() as session:
        return bench.queue.cancel(session, job_id)


def test_cancel_of_a_queued_job_ends_it(bench: Any) -> None:
    job_id = bench.submit(trials=["waiting"])
    assert _cancel(bench, job_id) is JobState.CANCELLED
    assert bench.row(job_id)["finished_at"] == START_MS
    assert bench.trials(job_id) == [("fail", "the study was cancelled")]
    assert bench.kinds_of_events(job_id) == ["queued", "cancelled"]
    assert bench.queue.acquire("worker-1", ["study"]) is None


def test_cancel_of_a_running_job_reaches_the_next_renewal(bench: Any) -> None:
    job_id = bench.submit(trials=["running"])
    lease = bench.acquire()
    assert bench.queue.renew(lease) is False
    assert _cancel(bench, job_id) is JobState.RUNNING
    assert bench.trials(job_id) == [("running", None)]
    assert bench.queue.renew(lease) is True


def test_repeated_cancel_leaves_one_event(bench: Any) -> None:
    job_id = bench.submit()
    bench.acquire()
    assert [_cancel(bench, job_id) for _ in range(3)] == [JobState.RUNNING] * 3
    assert bench.kinds_of_events(job_id) == ["queued", "acquired", "cancel_requested"]


@pytest.mark.parametrize("end", ["release", "fail", "lose"])
def test_cancel_wins_over_a_requeue(bench: Any, end: str) -> None:
    job_id = bench.submit(trials=["running"])
    lease = bench.acquire()
    _cancel(bench, job_id)
    if end == "lose":
        bench.lose()
    else:
        WRITES[end](bench, lease)
    assert bench.row(job_id)["state"] == "cancelled"
    assert bench.row(job_id)["finished_at"] == bench.clock()
    assert bench.kinds_of_events(job_id)[-2:] == ["cancel_requested", "cancelled"]
    assert bench.trials(job_id) == [("fail", "the study was cancelled")]


def test_result_wins_over_a_cancel_that_came_too_late(bench: Any) -> None:
    job_id = bench.submit()
    lease = bench.acquire()
    _cancel(bench, job_id)
    bench.queue.finish(lease, JobState.SUCCEEDED)
    assert bench.row(job_id)["state"] == "succeeded"


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_cancel_of_a_finished_job_changes_nothing(bench: Any, outcome: JobState) -> None:
    job_id = bench.submit()
    bench.queue.finish(bench.acquire(), outcome)
    before = dict(bench.row(job_id))
    assert _cancel(bench, job_id) is None
    assert dict(bench.row(job_id)) == before


def test_cancel_of_an_unknown_job_finds_none(bench: Any) -> None:
    assert _cancel(bench, "nobody") is None


# --- invariants of the tables ---


@pytest.mark.parametrize("requeue", ["release", "fail", "lose"])
def test_requeue_keeps_its_row_and_the_unique_index(bench: Any, requeue: str) -> None:
    # procrastinate#1446: a retry that inserts a new row collides with its own unique key, stuck for ever.
    job_id = bench.submit(study_id="s")
    lease = bench.acquire()
    if requeue == "lose":
        bench.lose()
    else:
        WRITES[requeue](bench, lease)
    with pytest.raises(IntegrityError):
        bench.submit(study_id="s")
    assert bench.acquire().job_id == job_id


@pytest.mark.parametrize(
    "values",
    [{"state": "lost"}, {"state": "running", "owner": None}, {"state": "queued", "owner": "somebody"}],
)
def test_database_refuses_impossible_rows(bench: Any, values: dict[str, Any]) -> None:
    job_id = bench.submit()
    with pytest.raises(IntegrityError):
        bench.put(job_id, **values)


@pytest.mark.parametrize(
    "options",
    [{"lease_seconds": 0}, {"lease_seconds": float("nan")}, {"max_lost": 0}, {"backoff_seconds": -1}],
)
def test_queue_refuses_settings_out_of_range(bench: Any, options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=name):
        bench.another_queue(**options)


def test_enqueue_and_fail_refuse_numbers_out_of_range(bench: Any) -> None:
    with pytest.raises(ValueError, match="max_attempts"):
        bench.submit(max_attempts=0)
    bench.submit()
    with pytest.raises(ValueError, match="delay_seconds"):
        bench.queue.fail(bench.acquire(), "boom", delay_seconds=-1)


def test_without_injection_the_database_clock_is_used(bench: Any) -> None:
    queue = Queue(bench.database, lease_seconds=1000)
    with bench.database.write() as session:
        queue.enqueue(session, job_id="j", study_id="s", tenant_id="t")
    assert queue.acquire("worker-1", ["study"]) is not None
    assert queue.reap() == []
    row = bench.row("j")
    assert row["lease_until"] - row["created_at"] in range(1_000_000, 1_060_000)


# --- query plans ---


#: Made by the database itself: sent row by row they would take most of the tests' time.
BACKLOG = f"""
INSERT INTO cliptune_jobs (id, study_id, tenant_id, kind, payload, max_attempts, attempt, priority, lost_count,
  cancel_requested, created_at, run_after, state, owner, lease_until)
WITH RECURSIVE jobs (number) AS (SELECT 0 UNION ALL SELECT number + 1 FROM jobs WHERE number < 25019)
SELECT 'j-' || number, 's-' || number, 't', 'study', '{{}}', 3, 0, 0, 0, FALSE, {START_MS}, {START_MS} - number,
  CASE WHEN number < 20000 THEN 'succeeded' WHEN number < 25000 THEN 'queued' ELSE 'running' END,
  CASE WHEN number >= 25000 THEN 'dead' END, CASE WHEN number >= 25000 THEN 1 ELSE 0 END FROM jobs
"""


@pytest.fixture(params=["fresh statistics", "stale statistics"])
def backlog(bench: Any, request: pytest.FixtureRequest) -> Any:
    """20,000 finished, 5,000 queued and 20 expired jobs; the statistics may be those of an empty table."""

    with bench.database.write() as session:
        session.execute(text(BACKLOG))
    if request.param == "fresh statistics":
        with bench.database.write() as session:
            session.execute(text("ANALYZE"))
    yield bench
    with bench.database.write() as session:
        session.execute(delete(JobRow))
        session.execute(text("ANALYZE"))


def _queue_on_the_real_clock(bench: Any) -> Queue:
    # With an injected time PostgreSQL folds the clock to a constant, and any form of the statement looks well.
    return Queue(bench.database, lease_seconds=60)


def _plans(bench: Any, operation: Any, part: str = "UPDATE cliptune_jobs") -> list[str]:
    """Plans of an operation's statements with a part, explained with their very parameters."""
    explain = {"sqlite": "EXPLAIN QUERY PLAN ", "postgresql": "EXPLAIN "}[bench.database.dialect]
    plans = []

    def before(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if part in statement:
            if connection.dialect.name == "postgresql":
                # The plan that a statement gets which was executed often.
                cursor.execute("SET plan_cache_mode = force_generic_plan")
            cursor.execute(explain + statement, parameters)
            plans.append("\n".join(str(row[-1]) for row in cursor.fetchall()))
            if connection.dialect.name == "postgresql":
                cursor.execute("RESET plan_cache_mode")

    # On SQLite the one that only glances is the same engine.
    engines = [bench.database.engine]
    engines += [bench.database._glancer] if bench.database.dialect == "postgresql" else []
    for engine in engines:
        event.listen(engine, "before_cursor_execute", before)
    operation()
    for engine in engines:
        event.remove(engine, "before_cursor_execute", before)
    return plans


def test_acquire_reads_the_queue_in_index_order(backlog: Any) -> None:
    queue = _queue_on_the_real_clock(backlog)
    (plan,) = _plans(backlog, lambda: queue.acquire("worker-1", ["study"]))
    assert "ix_cliptune_jobs_queued" in plan
    assert "Sort" not in plan and "TEMP B-TREE" not in plan
    assert "Seq Scan on cliptune_jobs" not in plan


def test_a_poll_in_vain_does_not_read_past_jobs_of_other_kinds(backlog: Any) -> None:
    queue = _queue_on_the_real_clock(backlog)
    plans = _plans(backlog, lambda: queue.acquire("worker-1", ["external"]), "FROM cliptune_jobs")
    assert len(plans) == 1, "nothing but the question whether there is one"
    assert "ix_cliptune_jobs_ready" in plans[0] and "kind" in plans[0]


def test_reap_looks_at_running_jobs_only(backlog: Any) -> None:
    (plan,) = _plans(backlog, _queue_on_the_real_clock(backlog).reap)
    bounded_by_time = {
        "sqlite": "USING INDEX ix_cliptune_jobs_running (lease_until<?)",
        "postgresql": "Index Cond: (lease_until < ",
    }
    assert "ix_cliptune_jobs_running" in plan
    assert bounded_by_time[backlog.database.dialect] in plan
    assert "Seq Scan on cliptune_jobs" not in plan


# --- SQLite's journal ---


def _journal_mode(database: Database) -> str:
    with database.read() as session:
        return str(session.execute(text("PRAGMA journal_mode")).scalar_one())


@pytest.mark.parametrize(
    ("version", "mode"),
    [
        ((3, 40, 1), "truncate"),
        ((3, 51, 2), "truncate"),
        ((3, 51, 3), "wal"),
        ((3, 52, 0), "truncate"),  # withdrawn
        ((3, 52, 1), "wal"),
    ],
)
def test_wal_is_used_only_where_it_can_not_corrupt(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int], mode: str
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
    database = Database(sqlite_url)
    assert _journal_mode(database) == mode
    database.close()


@pytest.mark.parametrize("mode", ["wal", "truncate"])
def test_journal_mode_can_be_overridden(sqlite_url: str, mode: str) -> None:
    database = Database(sqlite_url, journal_mode=mode)
    assert _journal_mode(database) == mode
    database.close()


def test_commit_delayed_by_a_reader_is_repeated(sqlite_url: str) -> None:
    # TRUNCATE mode: a commit waits for readers. This reader ends only after the busy timeout of 10 ms, just
    # before the second try.
    database = Database(sqlite_url, journal_mode="truncate", busy_seconds=0.01)
    with database.write() as session:
        session.execute(text("CREATE TABLE t (x)"))
    reader = sqlite3.connect(database.engine.url.database or "", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM t").fetchall()
    attempts = []

    def before(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        del connection, cursor
        if statement == "COMMIT":
            attempts.append(statement)
            if len(attempts) == 2:
                reader.execute("COMMIT")

    event.listen(database.engine, "before_cursor_execute", before)
    with database.write() as session:
        session.execute(text("INSERT INTO t VALUES (1)"))
    with database.read() as session:
        assert session.execute(text("SELECT x FROM t")).scalars().all() == [1]
    assert len(attempts) == 2
    reader.close()
    database.close()
