"""How many jobs per second the queue gives out and takes back, and whether it gives any out twice.

Real processes acquire and finish short jobs until the queue is empty. Each keeps its own history of the leases
it was given; afterwards the histories are compared with the database. One JSON line per database:

    python benchmarks/queue_cycles.py      # 16 processes, 10,000 jobs; SQLite, then PostgreSQL
    python benchmarks/queue_cycles.py --url URL --jobs 2000 --processes 16

Goals: at least 200 cycles/s on SQLite and 500 on PostgreSQL, no job claimed twice. Measured:
``benchmarks/results/queue.jsonl``.
(Not called ``queue.py``: scripts in this folder would import it in place of the standard library's.)
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import platform
import sqlite3
import sys
import tempfile
import time
import uuid
from collections import Counter
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# In place of this folder, whose service.py would be imported instead of the package.
sys.path[0] = str(ROOT)

from sqlalchemy import text  # noqa: E402

from service.db.migrate import upgrade  # noqa: E402
from service.db.session import Database  # noqa: E402
from service.jobs.queue import Queue  # noqa: E402
from service.states import JobState  # noqa: E402

GOAL_PER_SECOND = {"sqlite": 200, "postgresql": 500}
#: How long a worker waits when every ready job is being acquired by others, in seconds.
POLL_SECONDS = 0.002


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure acquire + finish cycles of the queue.")
    parser.add_argument("--url", action="append", help="default: a new SQLite and a private PostgreSQL")
    parser.add_argument("--journal-mode", default="auto", choices=["auto", "wal", "truncate"])
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=16)
    given = parser.parse_args()
    is_clean = True
    if given.url:
        lines = (measure(url, given.journal_mode, given.jobs, given.processes) for url in given.url)
    else:
        lines = _measure_both(given.journal_mode, given.jobs, given.processes)
    for line in lines:
        print(json.dumps(line), flush=True)
        is_clean &= not (line["claimed_twice"] or line["lost"] or line["errors"])
    return 0 if is_clean else 1


def _measure_both(journal_mode: str, num_jobs: int, num_processes: int) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        yield measure(f"sqlite:///{folder}/cliptune.db", journal_mode, num_jobs, num_processes)
    postgres = _load_postgres()
    programs = postgres.find_postgres_programs()
    if programs is None:
        print("no PostgreSQL server programs on this machine", file=sys.stderr)
        return
    with postgres.private_cluster(programs) as cluster:
        yield measure(cluster.url, journal_mode, num_jobs, num_processes)


def measure(url: str, journal_mode: str, num_jobs: int, num_processes: int) -> dict[str, Any]:
    """Fill the queue, let the processes empty it, check what they did.

    Args:
        url: a database; its schema is made if it is missing.
        journal_mode: of SQLite.
        num_jobs: jobs to enqueue.
        num_processes: workers.

    Returns:
        The figures, the verdict and the machine.
    """
    database = Database(url, journal_mode=journal_mode)
    upgrade(database)
    queue = Queue(database, lease_seconds=600)
    job_ids = [str(uuid.uuid4()) for _ in range(num_jobs)]
    with database.write() as session:
        for job_id in job_ids:
            queue.enqueue(session, job_id=job_id, study_id=job_id, tenant_id="benchmark")
    load_before = os.getloadavg()[0]
    # Forked before they open anything: a connection must not be shared between processes.
    database.close()
    seconds, histories, errors = _race(url, journal_mode, num_processes)
    claims = Counter(job_id for history in histories for job_id, _ in history)
    figures = {
        "benchmark": "queue_cycles",
        "database": database.dialect,
        "jobs": num_jobs,
        "processes": num_processes,
        "cycles_per_second": round(num_jobs / seconds, 1),
        "goal_per_second": GOAL_PER_SECOND[database.dialect],
        "seconds": round(seconds, 2),
        "acquire_and_finish_ms": _quantiles([took for history in histories for _, took in history]),
        "claimed_twice": sum(count > 1 for count in claims.values()),
        "lost": len(set(job_ids) - set(claims)) + _count_wrong(database, job_ids),
        "errors": errors,
        "machine": _describe_machine(database) | {"load_1m_before": round(load_before, 2)},
    }
    database.close()
    return figures


def _race(
    url: str, journal_mode: str, num_processes: int
) -> tuple[float, list[list[tuple[str, float]]], list[str]]:
    """Let the processes work; returns the seconds it took, their histories and the errors they met."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(num_processes + 1)
    pipes = [context.Pipe(duplex=False) for _ in range(num_processes)]
    workers = [
        context.Process(target=_work, args=(url, journal_mode, barrier, sender), daemon=True)
        for _, sender in pipes
    ]
    for worker in workers:
        worker.start()
    barrier.wait(timeout=120)
    began = time.perf_counter()
    answers = [receiver.recv() for receiver, _ in pipes]
    seconds = time.perf_counter() - began
    for worker in workers:
        worker.join()
    return seconds, [history for history, _ in answers], [error for _, error in answers if error]


def _work(url: str, journal_mode: str, barrier: Barrier, answer: Connection) -> None:
    """Acquire and finish until nothing is queued; answers the history and the error that ended it, if any."""
    owner, history, failure = str(uuid.uuid4()), [], None
    database = Database(url, journal_mode=journal_mode, pool_size=1)
    queue = Queue(database, lease_seconds=600)
    _num_queued(database)  # connects
    barrier.wait(timeout=120)
    try:
        while True:
            began = time.perf_counter()
            lease = queue.acquire(owner, ["study"])
            if lease is not None:
                queue.finish(lease, JobState.SUCCEEDED)
                history.append((lease.job_id, (time.perf_counter() - began) * 1000))
            elif _num_queued(database) == 0:
                break
            else:
                time.sleep(POLL_SECONDS)
    except Exception as error:  # whatever reaches a caller counts
        failure = f"{type(error).__name__}: {error}"
    answer.send((history, failure))
    database.close()


def _num_queued(database: Database) -> int:
    with database.read() as session:
        return int(
            session.execute(text("SELECT count(*) FROM cliptune_jobs WHERE state = 'queued'")).scalar_one()
        )


def _count_wrong(database: Database, job_ids: list[str]) -> int:
    """Jobs whose row or history is not that of one acquisition and one success."""
    with database.read() as session:
        rows = session.execute(text("SELECT id, state, fence, attempt FROM cliptune_jobs")).all()
        events = session.execute(text("SELECT job_id, kind FROM cliptune_job_events ORDER BY id")).all()
    kinds: dict[str, list[str]] = {}
    for job_id, kind in events:
        kinds.setdefault(job_id, []).append(kind)
    right = {row.id for row in rows if (row.state, row.fence, row.attempt) == ("succeeded", 1, 1)}
    once = ["queued", "acquired", "succeeded"]
    return sum(job_id not in right or kinds.get(job_id) != once for job_id in job_ids)


def _quantiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        name: round(ordered[int(share * (len(ordered) - 1))], 2)
        for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
    }


def _describe_machine(database: Database) -> dict[str, Any]:
    facts: dict[str, Any] = {"cpus": os.cpu_count(), "python": platform.python_version()}
    with database.read() as session:
        if database.dialect == "sqlite":
            facts["sqlite"] = sqlite3.sqlite_version
            facts["journal_mode"] = session.execute(text("PRAGMA journal_mode")).scalar_one()
        else:
            facts["postgresql"] = session.execute(text("SHOW server_version")).scalar_one()
    return facts


def _load_postgres() -> Any:
    """The tests' own module, which is on no import path outside pytest."""
    spec = importlib.util.spec_from_file_location("postgres", ROOT / "tests" / "postgres.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses looks its module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main())
