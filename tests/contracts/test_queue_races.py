"""Races: many real processes on one queue (T2), and the reap against everything a lease holder does (T4)."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from meeting import KilledError, Meeting
from sqlalchemy import text

from service.db.session import WAL_SAFE
from service.errors import LeaseLostError
from service.jobs.lease import Lease
from service.jobs.queue import Queue
from service.states import JobState

ROOT = Path(__file__).resolve().parents[2]
#: Short jobs in the acquisition race, and the processes that race for them. A release run takes 100,000.
RACE_JOBS = int(os.environ.get("CLIPTUNE_TEST_RACE_JOBS", "2000"))
RACE_PROCESSES = 16


# --- T2 ---


def test_racing_processes_share_the_jobs_without_doubles_losses_or_errors(bench: Any) -> None:
    url = bench.database.engine.url.render_as_string(hide_password=False)
    mode = "auto"
    if bench.database.dialect == "sqlite":
        with bench.database.read() as session:
            mode = session.execute(text("PRAGMA journal_mode")).scalar_one()
    if mode == "wal" and sqlite3.sqlite_version_info < WAL_SAFE:
        pytest.skip(
            f"SQLite {sqlite3.sqlite_version} can corrupt a WAL database that several processes write"
        )
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "queue_cycles.py"),
        "--url",
        url,
        "--journal-mode",
        mode,
    ]
    done = subprocess.run(
        [*command, "--jobs", str(RACE_JOBS), "--processes", str(RACE_PROCESSES)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=RACE_JOBS / 10 + 60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # A retry that was scheduled is told before.
    figures = json.loads(done.stdout.splitlines()[-1])
    assert (figures["jobs"], figures["processes"]) == (RACE_JOBS, RACE_PROCESSES)
    assert (figures["claimed_twice"], figures["lost"], figures["errors"]) == (0, 0, [])


# --- T4 ---


def _write_held(queue: Queue, lease: Lease) -> None:
    with queue.held(lease) as session:
        queue.append_event(session, lease, "report", {})


OPERATIONS: dict[str, Callable[[Queue, Lease], Any]] = {
    "finish": lambda queue, lease: queue.finish(lease, JobState.SUCCEEDED),
    "renew": lambda queue, lease: queue.renew(lease),
    "release": lambda queue, lease: queue.release(lease),
    "fail": lambda queue, lease: queue.fail(lease, "boom", delay_seconds=0),
    "held": _write_held,
}
#: What each operation leaves when it comes before the reap: state, attempt, lost_count, last event.
AFTER_OPERATION = {
    "finish": ("succeeded", 1, 0, "succeeded"),
    "renew": ("running", 1, 0, "acquired"),
    "release": ("queued", 0, 0, "released"),
    "fail": ("queued", 1, 0, "error"),
    "held": ("queued", 0, 1, "reaped"),  # a report does not extend the lease
}
AFTER_REAP = ("queued", 0, 1, "reaped")


class Race(Meeting):
    """Two connections to one job whose lease has just expired."""

    def __init__(self, bench: Any) -> None:
        super().__init__(bench)
        self.job_id = bench.submit()
        self.lease = bench.acquire()
        bench.clock.advance(60.001)

    def cancel(self, queue: Queue) -> JobState | None:
        database = self.paused if queue is self.first else self.watched
        with database.write() as session:
            return queue.cancel(session, self.job_id)

    def outcome(self) -> tuple[str, int, int, str]:
        row = self.bench.row(self.job_id)
        assert row["fence"] == 1
        return row["state"], row["attempt"], row["lost_count"], self.bench.kinds_of_events(self.job_id)[-1]


@pytest.fixture
def race(bench: Any) -> Iterator[Race]:
    prepared = Race(bench)
    yield prepared
    prepared.close()


def _reap(queue: Queue) -> Any:
    return queue.reap()


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_that_meets_an_uncommitted_reap_is_refused(race: Race, name: str) -> None:
    reap, operation = race.go(_reap, lambda queue: OPERATIONS[name](queue, race.lease), is_doomed=False)
    assert [one.job_id for one in reap.result()] == [race.job_id]
    assert isinstance(operation.exception(), LeaseLostError)
    assert race.outcome() == AFTER_REAP


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_that_meets_a_dying_reap_is_accepted(race: Race, name: str) -> None:
    reap, operation = race.go(_reap, lambda queue: OPERATIONS[name](queue, race.lease), is_doomed=True)
    assert isinstance(reap.exception(), KilledError)
    assert operation.exception() is None
    race.bench.queue.reap()
    assert race.outcome() == AFTER_OPERATION[name]


@pytest.mark.parametrize("name", OPERATIONS)
def test_reap_that_meets_an_uncommitted_operation_spares_it(race: Race, name: str) -> None:
    operation, reap = race.go(lambda queue: OPERATIONS[name](queue, race.lease), _reap, is_doomed=False)
    assert operation.exception() is None
    # PostgreSQL skips a locked row until its next reap; SQLite waits and then decides on what was committed.
    reaped = reap.result() + race.bench.queue.reap()
    assert len(reaped) == (1 if name == "held" else 0)
    assert race.outcome() == AFTER_OPERATION[name]


@pytest.mark.parametrize("name", OPERATIONS)
def test_reap_that_meets_a_dying_operation_takes_the_job(race: Race, name: str) -> None:
    operation, reap = race.go(lambda queue: OPERATIONS[name](queue, race.lease), _reap, is_doomed=True)
    assert isinstance(operation.exception(), KilledError)
    assert [one.job_id for one in reap.result() + race.bench.queue.reap()] == [race.job_id]
    assert race.outcome() == AFTER_REAP
    assert "report" not in race.bench.kinds_of_events(race.job_id)


@pytest.mark.parametrize("is_doomed", [False, True])
def test_two_reaps_at_once_count_one_loss(race: Race, is_doomed: bool) -> None:
    race.go(_reap, _reap, is_doomed=is_doomed)
    race.bench.queue.reap()
    assert race.outcome() == AFTER_REAP
    assert race.bench.kinds_of_events(race.job_id).count("reaped") == 1


@pytest.mark.parametrize("is_doomed", [False, True])
def test_two_acquisitions_at_once_give_one_lease(race: Race, is_doomed: bool) -> None:
    race.bench.queue.reap()
    first, second = race.go(
        lambda queue: queue.acquire("A", ["study"]),
        lambda queue: queue.acquire("B", ["study"]),
        is_doomed=is_doomed,
    )
    leases = [one.result() for one in (first, second) if one.exception() is None and one.result() is not None]
    if not leases:  # PostgreSQL: the second skipped the row while the doomed first had it locked
        leases = [race.bench.acquire("C")]
    assert [lease.fence for lease in leases] == [2]
    assert race.bench.row(race.job_id)["owner"] == leases[0].owner


@pytest.mark.parametrize("name", ["finish", "renew", "release", "fail"])
@pytest.mark.parametrize("is_doomed", [False, True])
def test_cancel_and_operation_in_either_order_lose_nothing(race: Race, name: str, is_doomed: bool) -> None:
    race.go(lambda queue: OPERATIONS[name](queue, race.lease), race.cancel, is_doomed=is_doomed)
    row = race.bench.row(race.job_id)
    if is_doomed or name == "renew":
        expected = ("running", True)
    else:
        expected = {"finish": ("succeeded", False)}.get(name, ("cancelled", True))
    assert (row["state"], row["cancel_requested"]) == expected


def test_cancel_before_commit_blocks_nobody_for_ever(race: Race) -> None:
    answer, renewal = race.go(race.cancel, lambda queue: queue.renew(race.lease), is_doomed=False)
    assert (answer.result(), renewal.result()) == (JobState.RUNNING, True)


def test_event_ids_are_in_commit_order_within_a_job(race: Race) -> None:
    # The second writer must not draw its event's id before the first has committed: a reader that has seen the
    # larger id would never see the smaller one.
    race.go(
        lambda queue: _write_held(queue, race.lease),
        lambda queue: queue.finish(race.lease, JobState.FAILED),
        False,
    )
    events = race.bench.events(race.job_id)
    assert [one["kind"] for one in events] == ["queued", "acquired", "report", "failed"]
