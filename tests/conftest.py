"""Shared fixtures: a private PostgreSQL cluster, and a migrated database on either engine.

A test that takes ``database`` runs twice, on SQLite and on PostgreSQL. PostgreSQL comes from
``CLIPTUNE_TEST_POSTGRES_URL`` or from the server programs on the machine; under CI its absence is a failure.
"""

from __future__ import annotations

import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import create_engine, delete, text
from sqlalchemy.engine import make_url

from service.db.migrate import upgrade
from service.db.models import Base
from service.db.session import Database

# pytest's importlib mode leaves sys.path alone. Appended, not inserted: `service` and `tuner` must not be
# looked for among the tests first.
sys.path.append(str(Path(__file__).parent))
from postgres import find_postgres_programs, private_cluster


@pytest.fixture(scope="session")
def postgres_programs() -> Path:
    programs = find_postgres_programs()
    if programs is None:
        reason = (
            "no PostgreSQL server programs (initdb, pg_ctl): "
            "install postgresql or set CLIPTUNE_TEST_POSTGRES_URL"
        )
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return programs


@pytest.fixture(scope="session")
def postgres_server(request: pytest.FixtureRequest) -> Iterator[str]:
    """URL of a server on which databases may be created."""
    given = os.environ.get("CLIPTUNE_TEST_POSTGRES_URL")
    if given:
        yield given
        return
    with private_cluster(request.getfixturevalue("postgres_programs")) as cluster:
        yield cluster.url


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """URL of an empty database of its own."""
    with _postgres_database(postgres_server) as url:
        yield url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """URL of a SQLite file that does not exist yet."""
    return f"sqlite:///{tmp_path / 'cliptune.db'}"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest) -> str:
    """URL of an empty database; the test runs on both engines."""
    return str(request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url"))


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file to copy: the migrations take ten times as long as a copy."""
    file = tmp_path_factory.mktemp("migrated") / "cliptune.db"
    _migrate(f"sqlite:///{file}")
    return file


@pytest.fixture(scope="session")
def migrated_url(postgres_server: str) -> Iterator[str]:
    """URL of a migrated PostgreSQL database: a copy for each test would take ten times as long as emptying it."""
    with _postgres_database(postgres_server) as url:
        _migrate(url)
        yield url


@pytest.fixture
def sqlite_database(sqlite_url: str, migrated_file: Path) -> Iterator[Database]:
    """A migrated SQLite database, for tests to which it is all the same which engine answers."""
    shutil.copyfile(migrated_file, str(make_url(sqlite_url).database))
    opened = Database(sqlite_url)
    yield opened
    opened.close()


@pytest.fixture
def postgres_database(migrated_url: str) -> Iterator[Database]:
    """A migrated PostgreSQL database, empty and with its sequences at their start."""
    opened = Database(migrated_url)
    _empty(opened)
    yield opened
    opened.close()


@pytest.fixture
def untouched_postgres_database(postgres_url: str) -> Iterator[Database]:
    """A migrated PostgreSQL database that no test had before, statistics included."""
    _migrate(postgres_url)
    opened = Database(postgres_url)
    yield opened
    opened.close()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest) -> Database:
    """A migrated database; the test runs on both engines."""
    name = "sqlite_database" if request.param == "sqlite" else "postgres_database"
    opened: Database = request.getfixturevalue(name)
    return opened


def _migrate(url: str) -> None:
    database = Database(url)
    upgrade(database)
    database.close()


def _empty(database: Database) -> None:
    """What a test before this one left behind: its connections, its rows, and how far it had counted."""
    with database.engine.connect() as connection:
        connection.execute(text(_END_OTHERS))
    with database.write() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(delete(table))
        session.execute(text(_COUNT_FROM_1))


_END_OTHERS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid != pg_backend_pid()"
)
_COUNT_FROM_1 = (
    "SELECT setval(format('%I.%I', schemaname, sequencename)::regclass, 1, false) FROM pg_sequences"
)


@contextmanager
def _postgres_database(server: str) -> Iterator[str]:
    """URL of a database of its own, gone after the block."""
    name = f"test_{uuid.uuid4().hex}"
    admin = create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield make_url(server).set(database=name).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()
