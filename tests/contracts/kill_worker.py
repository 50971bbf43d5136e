"""A worker for the kill test: acquires jobs, gives each open trial its result under the fence, finishes.

Arguments: database URL, journal mode, lease in seconds, and a file: once that exists, the worker ends when no job
is live.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from sqlalchemy import func, select

from service.db.clock import database_now
from service.db.models import JobRow, TrialResultRow, TrialRow
from service.db.session import Database
from service.errors import LeaseLostError
from service.jobs.lease import Lease
from service.jobs.queue import Queue
from service.states import JobState


def drive(database: Database, queue: Queue, lease: Lease) -> None:
    with database.read() as session:
        query = select(TrialRow.id).where(TrialRow.study_id == lease.study_id, TrialRow.state == "waiting")
        open_trials = session.scalars(query.order_by(TrialRow.number)).all()
    for trial_id in open_trials:
        time.sleep(0.1)
        with queue.held(lease) as session:
            now = database_now(session)
            session.add(TrialResultRow(trial_id=trial_id, fence=lease.fence, lanes=[], created_at=now))
            session.get_one(TrialRow, trial_id).state = "complete"
            queue.forget_losses(session, lease)
            queue.append_event(session, lease, "trial", {"trial_id": trial_id})
    queue.finish(lease, JobState.SUCCEEDED)


def main() -> None:
    url, journal_mode, lease_seconds, last_call = (
        sys.argv[1],
        sys.argv[2],
        float(sys.argv[3]),
        Path(sys.argv[4]),
    )
    database = Database(url, journal_mode=journal_mode)
    queue = Queue(database, lease_seconds=lease_seconds, max_lost=1000, backoff_seconds=0)
    owner = str(os.getpid())
    live = select(func.count()).select_from(JobRow).where(JobRow.state.in_(["queued", "running"]))
    while True:
        queue.reap()
        lease = queue.acquire(owner, ["study"])
        if lease is None:
            with database.read() as session:
                if session.scalar(live) == 0 and last_call.exists():
                    return
            time.sleep(0.02)
            continue
        try:
            drive(database, queue, lease)
        except LeaseLostError:
            continue


main()
