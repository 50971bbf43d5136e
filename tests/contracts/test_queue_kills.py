"""Workers killed with SIGKILL at random moments (T1): nothing is lost, nothing happens twice.

Real processes, the database's own clock, short leases. Afterwards every job's history is checked against the
invariants: one terminal event, fences that strictly grow, one result per trial, no loss counted as an attempt.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text

from service.db.models import JobEventRow, JobRow, TrialResultRow, TrialRow
from service.db.session import WAL_SAFE

ROOT = Path(__file__).resolve().parents[2]
#: Kills and jobs of one run. A release run takes 1,000 and 5,000.
KILLS = int(os.environ.get("CLIPTUNE_TEST_KILLS", "25"))
JOBS = int(os.environ.get("CLIPTUNE_TEST_KILL_JOBS", "150"))
PROCESSES = 4
LEASE_SECONDS = 1.0


def test_killed_workers_lose_nothing_and_repeat_no_effect(bench: Any, tmp_path: Path) -> None:
    mode = "auto"
    if bench.database.dialect == "sqlite":
        with bench.database.read() as session:
            mode = session.execute(text("PRAGMA journal_mode")).scalar_one()
    if mode == "wal" and sqlite3.sqlite_version_info < WAL_SAFE:
        pytest.skip(
            f"SQLite {sqlite3.sqlite_version} can corrupt a WAL database that several processes write"
        )
    jobs = [bench.submit(trials=["waiting", "waiting"]) for _ in range(JOBS)]
    statuses = kill_at_random(bench, mode, tmp_path / "last-call")
    assert set(statuses) <= {0, -signal.SIGKILL}, "a worker ended by an error of its own"
    assert statuses.count(-signal.SIGKILL) == KILLS
    losses = sum(check_history(bench, job_id) for job_id in jobs)
    assert losses >= KILLS / 2, "most kills hit a worker that held a lease"


def kill_at_random(bench: Any, mode: str, last_call: Path) -> list[int]:
    """Exit statuses of all workers: killed ones are replaced, and at the end the last ones drain the queue."""
    command = [sys.executable, str(Path(__file__).parent / "kill_worker.py"), bench.database.url, mode]
    command += [str(LEASE_SECONDS), str(last_call)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    # The seed fixes the choices; the instant within a worker's work is chance.
    chance = random.Random(1)
    statuses = []
    workers = [subprocess.Popen(command, env=environment) for _ in range(PROCESSES)]
    try:
        for _ in range(KILLS):
            pid = chance.choice(wait_for_holders(bench, [worker.pid for worker in workers]))
            time.sleep(chance.uniform(0.0, 0.1))
            victim = next(number for number, worker in enumerate(workers) if worker.pid == pid)
            workers[victim].kill()
            statuses.append(workers[victim].wait())
            workers[victim] = subprocess.Popen(command, env=environment)
        last_call.touch()
        statuses += [worker.wait(timeout=120) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    return statuses


def wait_for_holders(bench: Any, pids: list[int]) -> list[int]:
    """The processes that hold a lease, as soon as one does: interpreters start slowly on a busy machine."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with bench.database.read() as session:
            owners = session.scalars(select(JobRow.owner).where(JobRow.state == "running")).all()
        if holders := sorted({int(owner) for owner in owners} & set(pids)):
            return holders
        time.sleep(0.02)
    raise AssertionError("no worker acquired a job within 60 s")


def check_history(bench: Any, job_id: str) -> int:
    """Check one job; how often its worker was lost."""
    with bench.database.read() as session:
        job = session.get_one(JobRow, job_id)
        events = session.scalars(
            select(JobEventRow).where(JobEventRow.job_id == job_id).order_by(JobEventRow.id)
        ).all()
        results = session.execute(
            select(TrialRow.state, TrialResultRow.fence)
            .join(TrialResultRow, TrialResultRow.trial_id == TrialRow.id)
            .where(TrialRow.study_id == job.study_id)
        ).all()
    kinds = [event.kind for event in events]
    assert job.state == "succeeded"
    assert kinds[0] == "queued" and kinds[-1] == "succeeded" and kinds.count("succeeded") == 1
    acquired = [event.fence for event in events if event.kind == "acquired"]
    assert acquired == sorted(set(acquired)) and acquired[-1] == job.fence
    assert kinds.count("reaped") == len(acquired) - 1, "each lost lease was ended once"
    assert job.attempt == 1, "a lost worker is no attempt"
    assert kinds.count("trial") == len(results) == 2
    assert {state for state, _ in results} == {"complete"}
    assert {fence for _, fence in results} <= set(acquired)
    fences = [event.fence for event in events]
    assert fences == sorted(fences), "nothing was written under an old fence"
    return kinds.count("reaped")
