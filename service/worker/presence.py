"""A worker's row: that it lives, what its slots do, how many steps it took. Told, never decided on."""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
from collections.abc import Iterable
from importlib.metadata import version

from sqlalchemy import delete, update
from sqlalchemy.exc import SQLAlchemyError

from service.db.clock import database_now
from service.db.models import WorkerRow
from service.db.session import Database
from service.worker.pool import SlotPool
from service.workloads import publish_workloads
from tuner.parameters import WorkloadDescription

#: How often the worker says in its row that it is alive, and how often at most what its slots do, in seconds.
_SEEN_SECONDS, _CHANGED_SECONDS = 10.0, 1.0
#: Workers that were not seen for so long are deleted, in milliseconds (a week).
_FORGET_MILLISECONDS = 7 * 24 * 3600 * 1000


class Presence:
    """What ``/v1/workers``, ``/readyz`` and ``/metrics`` know of a worker; safe from all of its threads.

    Args:
        database: apart from the one that studies are driven on, so that it answers while those are busy.
        worker_id: of the row.
        pool: its slots.
    """

    def __init__(self, database: Database, worker_id: str, pool: SlotPool) -> None:
        self._database = database
        self._worker_id = worker_id
        self._pool = pool
        self._lane_steps = 0
        self._seen_at = 0.0
        self._version = -1
        self._lock = threading.Lock()

    def register(self, workloads: Iterable[WorkloadDescription], *, device: str) -> None:
        """Write the row, publish the workloads, and forget workers that are long gone.

        Args:
            workloads: that can be trained.
            device: kinds of devices, in words.
        """
        with self._database.write() as session:
            now = database_now(session)
            session.execute(delete(WorkerRow).where(WorkerRow.seen_at < now - _FORGET_MILLISECONDS))
            publish_workloads(session, workloads, now)
            session.add(
                WorkerRow(
                    id=self._worker_id,
                    hostname=platform.node(),
                    pid=os.getpid(),
                    version=version("cliptune"),
                    device=device,
                    slots=self._pool.to_json(),
                    started_at=now,
                    seen_at=now,
                )
            )

    def count_steps(self, num_steps: int) -> None:
        """Add optimizer steps over all lanes; written with the next sign of life."""
        with self._lock:
            self._lane_steps += num_steps

    def say_seen(self) -> None:
        """Tell that the worker lives, if it is time; sooner if a slot changed."""
        with self._lock:
            now, pool_version = time.monotonic(), self._pool.version
            wait = _SEEN_SECONDS if pool_version == self._version else _CHANGED_SECONDS
            if now - self._seen_at < wait:
                return
            self._seen_at, self._version = now, pool_version
            lane_steps = self._lane_steps
        with self._database.write() as session:
            values = {
                "seen_at": database_now(session),
                "slots": self._pool.to_json(),
                "lane_steps": lane_steps,
            }
            session.execute(update(WorkerRow).where(WorkerRow.id == self._worker_id).values(**values))

    def say_stopped(self) -> None:
        """Tell that the worker has ended, if the database answers."""
        with contextlib.suppress(SQLAlchemyError), self._database.write() as session:
            values = {
                "stopped_at": database_now(session),
                "slots": self._pool.to_json(),
                "lane_steps": self._lane_steps,
            }
            session.execute(update(WorkerRow).where(WorkerRow.id == self._worker_id).values(**values))
