"""Two transactions that meet: the first stands before its commit, the second runs into it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from service.db.session import Database

#: Longest wait for a thread that must come by, in seconds: a test that gets here has failed.
PATIENCE_SECONDS = 20


class KilledError(Exception):
    """Stands for the death of the process."""


class PausedDatabase(Database):
    """Stops a write transaction where all its statements are executed and nothing is committed yet.

    Attributes:
        reached: set when the transaction stands there.
        go_on: what it waits for.
        is_doomed: whether it then fails instead of committing, as if its process had been killed.
    """

    is_doomed = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.reached, self.go_on = threading.Event(), threading.Event()

    @contextmanager
    def write(self) -> Iterator[Session]:
        with super().write() as session:
            yield session
            self.reached.set()
            assert self.go_on.wait(PATIENCE_SECONDS)
            if self.is_doomed:
                raise KilledError


class WatchedDatabase(Database):
    """Tells when a write transaction is about to begin."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.arrived = threading.Event()

    @contextmanager
    def write(self) -> Iterator[Session]:
        self.arrived.set()
        with super().write() as session:
            yield session


class Meeting:
    """Two connections to what a bench holds: `first` stops before its commit, and `second` runs into it.

    Args:
        bench: gives databases and queues.
    """

    def __init__(self, bench: Any) -> None:
        self.bench = bench
        self.paused = bench.open_database(PausedDatabase)
        self.watched = bench.open_database(WatchedDatabase)
        self.first, self.second = bench.another_queue(self.paused), bench.another_queue(self.watched)
        self.threads = ThreadPoolExecutor(2)

    def go(
        self, first: Callable[[Any], Any], second: Callable[[Any], Any], is_doomed: bool
    ) -> list[Future[Any]]:
        self.paused.is_doomed = is_doomed
        futures = [self.threads.submit(first, self.first)]
        assert self.paused.reached.wait(PATIENCE_SECONDS)
        futures.append(self.threads.submit(second, self.second))
        assert self.watched.arrived.wait(PATIENCE_SECONDS)
        self._wait_until_blocked_or_done(futures[1])
        self.paused.go_on.set()
        for future in futures:
            future.exception(PATIENCE_SECONDS)
        return futures

    def _wait_until_blocked_or_done(self, future: Future[Any]) -> None:
        """PostgreSQL shows who waits for a lock; on SQLite the second can't even begin before the first ends."""
        if self.bench.database.dialect == "sqlite":
            return
        waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted AND pid <> pg_backend_pid()")
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not future.done() and time.monotonic() < deadline:
            with self.bench.database.read() as session:
                if session.execute(waiting).scalar_one():
                    return
            time.sleep(0.002)

    def close(self) -> None:
        self.threads.shutdown()
        self.paused.close()
        self.watched.close()
