"""The worker process: acquire a job, drive its study, finish, release or let go; then the next.

`Worker.run` returns when it has been asked to stop (first SIGTERM or SIGINT: the training is stopped and the
lease released, so that another worker goes on at once; a second signal kills). The identity that owns leases is
drawn at the start and never reused, so a restarted worker can't mistake an old lease for its own.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
import traceback
import uuid
from types import FrameType

import structlog
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError

from service.db.migrate import wait_for_schema
from service.db.session import Database
from service.devices import parse_devices
from service.errors import DatabaseError, LeaseLostError
from service.jobs.lease import Lease
from service.jobs.queue import Queue
from service.jobs.retry import Cause, decide
from service.settings import Settings
from service.states import JobState
from service.worker import checkpoints
from service.worker.driving import Driving
from service.worker.endings import (
    CancelRequestedError,
    NoDeviceError,
    ShutdownRequestedError,
    StudyFailedError,
)
from service.worker.heartbeat import Heartbeat
from service.worker.opening import Opening, open_slots
from service.worker.presence import Presence
from service.worker.runner import StudyRunner

log = structlog.get_logger(__name__)

#: Kinds of job this worker knows; others stay queued for a worker that knows them.
TRAINED, EXTERNAL = ("study",), ("external",)
#: How often a waiting worker looks whether the schema is there, in seconds.
_SCHEMA_SECONDS = 0.5
#: Devices that a machine is expected to have at most, for the number of connections.
_MANY_DEVICES = 16
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
        self._opening: Opening | None = None
        self._presence: Presence | None = None
        self._stopping = threading.Event()

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
        if self._stopping.is_set():
            return
        opening = self._opening = open_slots(self._settings)
        presence = self._presence = Presence(self._heartbeat_database, self.id, opening.pool)
        try:
            presence.register(opening.catalogue.workloads, device=opening.device)
            self._tell_opening(opening)
            checkpoints.sweep(self._database, self._settings.checkpoint_root)
            self._drive_all(opening, presence)
        finally:
            self._stopping.set()
            opening.pool.close()
            presence.say_stopped()

    def _drive_all(self, opening: Opening, presence: Presence) -> None:
        """Look for studies of both kinds, and show signs of life, until `stop`."""
        pool = opening.pool
        trained = Driving(
            self.id,
            self._queue,
            TRAINED,
            self._drive,
            stopping=self._stopping,
            limit=self._settings.studies or len(pool),
            poll_seconds=self._settings.poll_seconds,
            may_take=lambda: pool.num_usable > 0,
        )
        external = Driving(
            self.id,
            self._queue,
            EXTERNAL,
            lambda lease, sent_at: self._drive(lease, sent_at, trains=False),
            stopping=self._stopping,
            limit=self._settings.external_studies,
            poll_seconds=self._settings.poll_seconds,
        )
        trained.start()
        external.start()
        try:
            while not self._stopping.is_set():
                pool.tend()
                try:
                    self._queue.reap()
                    presence.say_seen()
                except SQLAlchemyError as error:
                    log.warning("database away", action="database_away", worker_id=self.id, error=str(error))
                self._stopping.wait(self._settings.poll_seconds * random.uniform(0.8, 1.2))
        finally:
            self._stopping.set()
            trained.join()
            external.join()

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

    def _tell_opening(self, opening: Opening) -> None:
        """Say which slots there are, which registered workloads can't be trained, and if none can."""
        for each in opening.catalogue.refused:
            log.warning(
                "workload refused",
                action="workload_refused",
                worker_id=self.id,
                workload=each.name,
                target=each.target,
                reason=each.reason,
            )
        if not opening.catalogue.workloads:
            log.warning(
                "no workload can be trained: register some with CLIPTUNE_WORKLOADS or CLIPTUNE_WORKLOAD_SOURCES",
                action="no_workloads",
                worker_id=self.id,
            )
        names = [each["name"] for each in opening.pool.to_json()]
        log.info(
            "worker ready",
            action="worker_ready",
            worker_id=self.id,
            device=opening.device,
            slots=names,
        )

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
        )
        opening, presence = self._opening, self._presence
        assert opening is not None
        assert presence is not None
        runner = StudyRunner(
            database=self._database,
            queue=self._queue,
            lease=lease,
            pool=opening.pool if trains else None,
            settings=self._settings,
            signals=_Signals(lease, heartbeat, self._stopping),
            functions=opening.functions,
            on_steps=presence.count_steps,
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
                if trains:
                    opening.pool.enter(lease.study_id, tenant_id=lease.tenant_id, priority=lease.priority)
                self._conclude(lease, runner)
        except LeaseLostError:
            log.warning("job lost", action="lease_lost", job_id=lease.job_id, fence=lease.fence)
        except (OperationalError, InterfaceError) as error:
            # Nothing can be written now; the lease runs out and the next worker goes on.
            log.error("job left", action="job_left", job_id=lease.job_id, error=str(error))
        finally:
            runner.stop_training()
            if trains:
                opening.pool.leave(lease.study_id)
        if trains:
            checkpoints.sweep(self._database, self._settings.checkpoint_root)

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
        except NoDeviceError as error:
            log.error("job handed back", action="no_device", job_id=lease.job_id, error=str(error))
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


def run_worker(settings: Settings, *, until_stdin_closes: bool = False) -> None:
    """The worker's entry point: runs until SIGTERM or SIGINT; the second one ends it at once.

    Args:
        settings: of this process.
        until_stdin_closes: stop also when standard input ends, which tells that the parent is gone.

    Raises:
        DatabaseError: if the database can't be reached or its schema is another version's.
    """
    url, mode = settings.resolved_database_url, settings.sqlite_journal_mode
    database = Database(url, journal_mode=mode, pool_size=10 + _num_studies(settings))
    # Each study that this worker looks after renews its lease on a connection of its own.
    connections = 2 + settings.external_studies + _num_studies(settings)
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


def _num_studies(settings: Settings) -> int:
    """Studies that a worker trains at the same time, before it is known how many devices there are."""
    named = parse_devices(settings.devices, threads=1)
    slots = settings.ray_slots if settings.launcher == "ray" else len(named) if named else _MANY_DEVICES
    return settings.studies or slots


def _stop_at_end_of_input(worker: Worker) -> None:
    # The file descriptor, not sys.stdin: a buffered reader would hold its lock while the interpreter ends.
    while os.read(0, 4096):
        pass
    worker.stop()
