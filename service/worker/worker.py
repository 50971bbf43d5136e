"""The worker process: acquire a job, drive its study, finish, release or let go; then the next.

`Worker.run` returns when it has been asked to stop (first SIGTERM or SIGINT: the training is stopped and the
lease released, so that another worker goes on at once; a second signal kills). The identity that owns leases is
drawn at the start and never reused, so a restarted worker can't mistake an old lease for its own.
"""

from __future__ import annotations

import contextlib
import os
import platform
import random
import signal
import threading
import time
import traceback
import uuid
from importlib.metadata import version
from types import FrameType

import structlog
from sqlalchemy import delete, update
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError

from service.db.clock import database_now
from service.db.migrate import wait_for_schema
from service.db.models import WorkerRow
from service.db.session import Database
from service.errors import DatabaseError, LeaseLostError, TrainingError
from service.jobs.lease import Lease
from service.jobs.queue import Queue
from service.jobs.retry import Cause, decide
from service.launchers.local import LocalLauncher
from service.launchers.process import TrainingProcess
from service.launchers.protocol import Catalogue
from service.settings import Settings
from service.states import JobState
from service.worker import checkpoints
from service.worker.external import ExternalStudies
from service.worker.heartbeat import Heartbeat
from service.worker.runner import (
    CancelRequestedError,
    ShutdownRequestedError,
    StudyFailedError,
    StudyRunner,
)
from service.workloads import publish_workloads

log = structlog.get_logger(__name__)

#: Kinds of job this worker knows; others stay queued for a worker that knows them.
KINDS = ("study",)
#: How long a training process may take to import torch, in seconds.
_START_SECONDS = 120.0
#: How often the worker says in its row that it is alive, in seconds.
_SEEN_SECONDS = 10.0
#: How often a waiting worker looks whether the schema is there, in seconds.
_SCHEMA_SECONDS = 0.5
#: Workers that were not seen for so long are deleted, in milliseconds (a week).
_FORGET_MILLISECONDS = 7 * 24 * 3600 * 1000
#: The heartbeat's own wait for SQLite's lock, five times at most: the usual 30 s would outlive the lease. In seconds.
_RENEW_BUSY_SECONDS = 1.0


class _Signals:
    """What the runner looks at between messages."""

    def __init__(self, lease: Lease, heartbeat: Heartbeat, stopping: threading.Event) -> None:
        self._lease = lease
        self._heartbeat = heartbeat
        self._stopping = stopping

    def check(self) -> None:
        # In this order: nothing may be written, not even a cancel, once the lease is lost.
        if self._heartbeat.lost.is_set():
            raise LeaseLostError(self._lease.job_id, self._lease.fence)
        if self._heartbeat.cancel_requested.is_set():
            raise CancelRequestedError
        if self._stopping.is_set():
            raise ShutdownRequestedError


class Worker:
    """One worker; `run` is its life.

    Args:
        settings: of this process.
        database: reachable; the worker waits for its schema.
        heartbeat_database: another one on the same URL, for renewals alone.
    """

    def __init__(self, settings: Settings, database: Database, heartbeat_database: Database) -> None:
        self.id = str(uuid.uuid4())
        self._settings = settings
        self._database = database
        self._queue = self._queue_on(database)
        self._heartbeat_database = heartbeat_database
        self._heartbeat_queue = self._queue_on(heartbeat_database)
        self._launcher = LocalLauncher.of(settings)
        self._warm: TrainingProcess | None = None
        self._stopping = threading.Event()
        self._seen_at = 0.0

    def _queue_on(self, database: Database) -> Queue:
        return Queue(database, lease_seconds=self._settings.lease_seconds, max_lost=self._settings.max_lost)

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Ask `run` to return; safe from a signal handler and from other threads."""
        self._stopping.set()

    def run(self) -> None:
        """Register, then work until `stop`."""
        self._wait_for_schema()
        if not self._stopping.is_set():
            self._register()
            checkpoints.sweep(self._database, self._settings.checkpoint_path)
        external = ExternalStudies(
            self.id,
            self._queue,
            lambda lease, sent_at: self._drive(lease, sent_at, trains=False),
            stopping=self._stopping,
            limit=self._settings.external_studies,
            poll_seconds=self._settings.poll_seconds,
        )
        external.start()
        try:
            while not self._stopping.is_set():
                if not self._work_once():
                    self._stopping.wait(self._settings.poll_seconds * random.uniform(0.8, 1.2))
        finally:
            self._stopping.set()
            external.join()
            if self._warm is not None:
                self._warm.stop()
            self._say_stopped()

    def _wait_for_schema(self) -> None:
        """Wait as long as the settings say, in short pieces, so that a stop is heeded.

        Raises:
            DatabaseError: ``schema_mismatch`` if the schema is still another version's.
        """
        deadline = time.monotonic() + self._settings.database_wait_seconds
        while not self._stopping.is_set():
            try:
                return wait_for_schema(self._database, 0)
            except DatabaseError:
                if time.monotonic() >= deadline:
                    raise
                self._stopping.wait(_SCHEMA_SECONDS)

    def _register(self) -> None:
        """Learn the workloads from a training process, tell the API, keep the process for the first study.

        Raises:
            TrainingError: if this installation can't train at all.
        """
        self._warm = process = self._launcher.launch()
        try:
            catalogue = self._launcher.describe(process, _START_SECONDS)
        except TrainingError as error:
            process.stop()
            self._warm = None
            log.warning(
                "workloads are described one by one",
                action="describe_failed",
                worker_id=self.id,
                error=str(error).splitlines()[0],
            )
            catalogue = self._launcher.describe_apart(_START_SECONDS)
        device = process.ready.device if process.ready else "unknown"
        with self._database.write() as session:
            now = database_now(session)
            long_gone = WorkerRow.seen_at < now - _FORGET_MILLISECONDS
            session.execute(delete(WorkerRow).where(long_gone))
            publish_workloads(session, catalogue.workloads, now)
            session.add(
                WorkerRow(
                    id=self.id,
                    hostname=platform.node(),
                    pid=os.getpid(),
                    version=version("cliptune"),
                    device=device,
                    started_at=now,
                    seen_at=now,
                )
            )
        self._tell_catalogue(catalogue)
        log.info("worker ready", action="worker_ready", worker_id=self.id, device=device)

    def _tell_catalogue(self, catalogue: Catalogue) -> None:
        """Say which registered workloads can't be trained, and if none can."""
        for each in catalogue.refused:
            log.warning(
                "workload refused",
                action="workload_refused",
                worker_id=self.id,
                workload=each.name,
                target=each.target,
                reason=each.reason,
            )
        if not catalogue.workloads:
            log.warning(
                "no workload can be trained: register some with CLIPTUNE_WORKLOADS or CLIPTUNE_WORKLOAD_SOURCES",
                action="no_workloads",
                worker_id=self.id,
            )

    def _work_once(self) -> bool:
        """Poll; drive the job if there was one. Whether there was."""
        sent_at = time.monotonic()
        try:
            self._queue.reap()
            self._say_seen()
            lease = self._queue.acquire(self.id, KINDS)
        except SQLAlchemyError as error:
            log.warning("database away", action="database_away", worker_id=self.id, error=str(error))
            return False
        if lease is None:
            return False
        self._drive(lease, sent_at)
        return True

    def _drive(self, lease: Lease, sent_at: float, *, trains: bool = True) -> None:
        """Drive a study until it ends or the lease is given back; without training if others do that."""
        runner: StudyRunner
        heartbeat = Heartbeat(
            self._heartbeat_queue,
            lease,
            sent_at=sent_at,
            renew_seconds=self._settings.renew_seconds,
            deadline_seconds=self._settings.lease_seconds - self._settings.lease_margin_seconds,
            on_lost=lambda: runner.stop_training(),
            on_renewed=self._say_seen,
        )
        runner = StudyRunner(
            database=self._database,
            queue=self._queue,
            lease=lease,
            launch=self._take_process if trains else None,
            settings=self._settings,
            signals=_Signals(lease, heartbeat, self._stopping),
        )
        log.info(
            "job acquired",
            action="job_acquired",
            job_id=lease.job_id,
            fence=lease.fence,
            attempt=lease.attempt,
        )
        try:
            with heartbeat:
                self._conclude(lease, runner)
        except LeaseLostError:
            log.warning("job lost", action="lease_lost", job_id=lease.job_id, fence=lease.fence)
        except (OperationalError, InterfaceError) as error:
            # Nothing can be written now; the lease runs out and the next worker goes on.
            log.error("job left", action="job_left", job_id=lease.job_id, error=str(error))
        finally:
            runner.stop_training()
        if trains:
            checkpoints.sweep(self._database, self._settings.checkpoint_path)
        if trains and not self._stopping.is_set():
            self._warm_up()

    def _conclude(self, lease: Lease, runner: StudyRunner) -> None:
        """Run the study and write down how it ended.

        Raises:
            LeaseLostError: another worker may have it.
            OperationalError: the database is away.
            InterfaceError: likewise.
        """
        try:
            outcome = runner.run()
        except CancelRequestedError:
            # The training goes first: once the job is cancelled nobody looks for it any more.
            runner.stop_training()
            self._queue.finish(lease, JobState.CANCELLED)
            outcome = JobState.CANCELLED
        except ShutdownRequestedError:
            runner.stop_training()
            outcome = self._queue.release(lease)
        except StudyFailedError as error:
            runner.stop_training()
            self._queue.finish(lease, JobState.FAILED, error=str(error))
            outcome = JobState.FAILED
        except (LeaseLostError, OperationalError, InterfaceError):
            raise
        except Exception:
            # The one place that catches everything: a bug of ours must cost an attempt, not the worker.
            log.exception("driving the study failed", action="job_error", job_id=lease.job_id)
            runner.stop_training()
            decision = decide(
                Cause.WORKER_ERROR,
                attempt=lease.attempt,
                max_attempts=lease.max_attempts,
                jitter=random.random(),
            )
            report = traceback.format_exc(limit=20)
            outcome = self._queue.fail(lease, report, delay_seconds=decision.delay_seconds)
        log.info("job done", action=f"job_{outcome}", job_id=lease.job_id, fence=lease.fence)

    def _take_process(self) -> TrainingProcess:
        """The warm training process, or a new one; the next is warmed up when the study has ended."""
        process, self._warm = self._warm, None
        if process is not None and process.is_alive:
            return process
        return self._launcher.launch()

    def _warm_up(self) -> None:
        if self._warm is None:
            self._warm = self._launcher.launch()

    def _say_seen(self) -> None:
        """Tell ``/v1/workers`` and ``/readyz`` that this worker lives; called by the poll and by renewals."""
        if time.monotonic() - self._seen_at < _SEEN_SECONDS:
            return
        self._seen_at = time.monotonic()
        with self._heartbeat_database.write() as session:
            session.execute(
                update(WorkerRow).where(WorkerRow.id == self.id).values(seen_at=database_now(session))
            )

    def _say_stopped(self) -> None:
        with contextlib.suppress(SQLAlchemyError), self._database.write() as session:
            session.execute(
                update(WorkerRow).where(WorkerRow.id == self.id).values(stopped_at=database_now(session))
            )


def run_worker(settings: Settings, *, until_stdin_closes: bool = False) -> None:
    """The worker's entry point: runs until SIGTERM or SIGINT; the second one ends it at once.

    Args:
        settings: of this process.
        until_stdin_closes: stop also when standard input ends, which tells that the parent is gone.

    Raises:
        DatabaseError: if the database can't be reached or its schema is another version's.
    """
    url, mode = settings.resolved_database_url, settings.sqlite_journal_mode
    database = Database(url, journal_mode=mode)
    # Each study that this worker looks after renews its lease on a connection of its own.
    connections = 2 + settings.external_studies
    heartbeat_database = Database(
        url, journal_mode=mode, busy_seconds=_RENEW_BUSY_SECONDS, pool_size=connections
    )
    database.wait_until_reachable(settings.database_wait_seconds)
    worker = Worker(settings, database, heartbeat_database)

    def on_signal(number: int, frame: FrameType | None) -> None:
        del frame
        if worker.is_stopping:
            os._exit(128 + number)  # closes the pipes, which ends the training process too
        worker.stop()

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, on_signal)
    if until_stdin_closes:
        threading.Thread(target=_stop_at_end_of_input, args=(worker,), daemon=True).start()
    try:
        worker.run()
    finally:
        database.close()
        heartbeat_database.close()


def _stop_at_end_of_input(worker: Worker) -> None:
    # The file descriptor, not sys.stdin: a buffered reader would hold its lock while the interpreter ends.
    while os.read(0, 4096):
        pass
    worker.stop()
