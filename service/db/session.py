"""Sessions on SQLite or PostgreSQL, with the transaction rules that the queue's promise rests on.

`Database.write` opens a transaction that may change rows: BEGIN IMMEDIATE on SQLite (a deferred BEGIN that
reads and then writes fails with SQLITE_BUSY_SNAPSHOT, which no timeout cures), READ COMMITTED on PostgreSQL.
`Database.read` opens one that only reads. Both commit at the end of the block and roll back on an exception.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import stamina
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from service.errors import DatabaseError

T = TypeVar("T")

#: A server that vanished without a word is noticed after some 25 s instead of the kernel's quarter of an hour.
_POSTGRES_PATIENCE = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
#: First SQLite whose WAL mode can't corrupt the file under concurrent checkpoints ("WAL-reset"); 3.52.0 was
#: withdrawn.
WAL_SAFE = (3, 51, 3)
_READ_ONLY = "cliptune_read_only"


class Database:
    """An engine with `read` and `write` transactions; `close` ends its connections.

    Args:
        url: ``sqlite:///FILE`` or ``postgresql://...``.
        journal_mode: SQLite only: ``auto``, ``wal`` or ``truncate``.
        busy_seconds: SQLite only: how long a statement waits for another writer, in seconds.
        pool_size: PostgreSQL only: connections kept open, at least 1.

    Raises:
        DatabaseError: if the URL names neither SQLite nor PostgreSQL, or can't be parsed.
    """

    def __init__(
        self, url: str, *, journal_mode: str = "auto", busy_seconds: float = 30.0, pool_size: int = 10
    ) -> None:
        self.url = url
        try:
            parsed = make_url(url)
            self.dialect = parsed.get_backend_name()
            if self.dialect not in ("sqlite", "postgresql"):
                raise DatabaseError(
                    f"CLIPTUNE_DATABASE_URL names {self.dialect!r}: use sqlite:///FILE or postgresql://...",
                    code="invalid_database_url",
                )
            self.engine = (
                _sqlite_engine(url, parsed.database, journal_mode, busy_seconds)
                if self.dialect == "sqlite"
                else _postgres_engine(url, pool_size)
            )
        except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
            raise DatabaseError(
                f"CLIPTUNE_DATABASE_URL can't be used ({error}): write sqlite:///FILE or "
                "postgresql://USER:PASSWORD@HOST/NAME, and install cliptune[postgres] for the latter",
                code="invalid_database_url",
            ) from None
        self._reader = self.engine.execution_options(**{_READ_ONLY: True})
        # One statement needs no transaction and no ping: on PostgreSQL those are three more round trips.
        self._glancer = self._reader if self.dialect == "sqlite" else _glancing_engine(url)

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that may change rows; commits at the end of the block."""
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            # Takes SQLite's write lock now, so that everything read below is still true at commit.
            session.connection()
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that only reads."""
        with Session(self._reader, expire_on_commit=False) as session, session.begin():
            yield session

    def glance(self, read: Callable[[Connection], T]) -> T:
        """Run independent SELECTs that are asked often; about half the cost of `read`.

        Args:
            read: executes them; runs a second time if the database had closed the connection meanwhile.

        Returns:
            What ``read`` returned.

        Raises:
            DBAPIError: what the database answered, if it did answer.
        """
        try:
            with self._glancer.connect() as connection:
                return read(connection)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
        with self._glancer.connect() as connection:
            return read(connection)

    def wait_until_reachable(self, seconds: float) -> None:
        """Return once the database answers.

        Args:
            seconds: how long to try, >= 0.

        Raises:
            DatabaseError: ``database_unreachable`` or ``database_not_writable`` if it does not.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                with self.write() as session:
                    _touch(session.connection())
                return
            except OperationalError as error:
                problem = self._explain(error)
            except sqlite3.OperationalError as error:
                problem = self._explain(error)
            if self.dialect == "sqlite" or time.monotonic() >= deadline:
                raise problem from None
            time.sleep(0.2)

    def _explain(self, error: Exception) -> DatabaseError:
        cause = str(getattr(error, "orig", error)).strip().splitlines()[0]
        where = make_url(self.url).render_as_string(hide_password=True)
        if self.dialect == "sqlite":
            return DatabaseError(
                f"the database {where} can't be written ({cause}): check that the folder exists and that "
                "this user may write the file and its folder, or set CLIPTUNE_DATABASE_URL or CLIPTUNE_HOME",
                code="database_not_writable",
            )
        if "FATAL:" in cause and "starting up" not in cause:
            return DatabaseError(
                f"the database {where} refuses the connection ({cause}): check the user, the password and the "
                "database's name in CLIPTUNE_DATABASE_URL",
                code="database_refused",
            )
        return DatabaseError(
            f"the database {where} does not answer ({cause}): check that PostgreSQL runs and that "
            "CLIPTUNE_DATABASE_URL is right",
            code="database_unreachable",
            exit_code=3,
        )

    def close(self) -> None:
        """Close every pooled connection; one that a thread still uses is closed when it comes back."""
        for engine in (self.engine, self._glancer):
            event.listen(engine, "checkin", _close_returned)
            engine.dispose()


def _close_returned(connection: Any, record: ConnectionPoolEntry) -> None:
    # Its pool is gone, so nobody else would.
    del connection
    record.close()


def _postgres_engine(url: str, pool_size: int) -> Engine:
    limits = "-c statement_timeout=10s -c lock_timeout=5s -c idle_in_transaction_session_timeout=30s"
    return create_engine(
        url,
        isolation_level="READ COMMITTED",
        pool_pre_ping=True,
        pool_size=pool_size,
        max_overflow=pool_size,
        connect_args=_POSTGRES_PATIENCE | {"options": limits},
    )


def _glancing_engine(url: str) -> Engine:
    return create_engine(
        url,
        isolation_level="AUTOCOMMIT",
        pool_reset_on_return=None,
        pool_size=4,
        connect_args=_POSTGRES_PATIENCE | {"options": "-c statement_timeout=10s"},
    )


def _sqlite_engine(url: str, file: str | None, journal_mode: str, busy_seconds: float) -> Engine:
    if not file or file == ":memory:":
        raise DatabaseError(
            "an in-memory SQLite database can't be shared between processes: give a file, sqlite:///FILE",
            code="invalid_database_url",
        )
    engine = create_engine(url, connect_args={"timeout": busy_seconds, "check_same_thread": False})
    mode = journal_mode if journal_mode != "auto" else _safe_journal_mode()
    event.listen(engine, "connect", lambda connection, entry: _on_connect(connection, entry, mode))
    event.listen(engine, "begin", _on_begin)
    event.listen(engine, "commit", _on_commit)
    return engine


def _safe_journal_mode() -> str:
    version = sqlite3.sqlite_version_info
    return "wal" if version >= WAL_SAFE and version != (3, 52, 0) else "truncate"


def _on_connect(connection: Any, entry: ConnectionPoolEntry, journal_mode: str) -> None:
    del entry
    # Python's own transaction handling opens deferred transactions; ours are opened in `_on_begin`.
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA mmap_size=0")
    _set_journal_mode(connection, journal_mode)


def _on_begin(connection: Connection) -> None:
    if connection.get_execution_options().get(_READ_ONLY):
        connection.exec_driver_sql("BEGIN")
        return
    _begin_immediate(connection)


def _on_commit(connection: Connection) -> None:
    # The driver's own commit comes after this one and finds nothing open.
    if not connection.get_execution_options().get(_READ_ONLY):
        _commit(connection)


def is_busy(error: Exception) -> bool:
    """Whether SQLite refused because another connection holds the file."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return getattr(cause, "sqlite_errorname", "").startswith("SQLITE_BUSY")


_retry_while_busy = stamina.retry(on=is_busy, attempts=5, wait_initial=0.05, wait_max=1.0, timeout=None)


@_retry_while_busy
def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


@_retry_while_busy
def _commit(connection: Connection) -> None:
    # A reader delays the commit in TRUNCATE mode. A COMMIT refused as busy leaves the transaction open, with
    # its changes and its lock, so it may be repeated; given up, it is rolled back and the caller is told.
    connection.exec_driver_sql("COMMIT")


@_retry_while_busy
def _set_journal_mode(connection: Any, journal_mode: str) -> None:
    # The busy timeout does not cover the switch of a new file to WAL by several processes at once.
    (current,) = connection.execute("PRAGMA journal_mode").fetchone()
    if current != journal_mode:
        connection.execute(f"PRAGMA journal_mode={journal_mode}")


def _touch(connection: Connection) -> None:
    """Find out whether the database takes writes: SQLite lets a write transaction begin on a read-only file."""
    if connection.dialect.name == "sqlite":
        version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
        connection.exec_driver_sql(f"PRAGMA user_version = {version}")
    else:
        connection.exec_driver_sql("SELECT 1")


def sqlite_file(url: str) -> Path | None:
    """The file of a SQLite URL; None for another database."""
    parsed = make_url(url)
    return Path(parsed.database) if parsed.get_backend_name() == "sqlite" and parsed.database else None
