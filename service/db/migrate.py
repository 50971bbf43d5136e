"""Bring a database to this version's schema, or say why not.

Alembic with its own version table, because Optuna owns ``alembic_version``: with default names each side's
upgrade fails on the other's revision. Every API process upgrades at its start; workers wait for the schema.
"""

from __future__ import annotations

import time
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from service.db.session import Database
from service.errors import DatabaseError

VERSION_TABLE = "cliptune_alembic_version"
#: Number of the advisory lock that lets one of several starting API replicas migrate; drawn once, kept for ever.
_MIGRATION_LOCK = 7_042_318_001


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration, without a file; ``connection`` is handed to ``env.py``."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


def upgrade(database: Database) -> None:
    """Create or upgrade the schema; several processes may call it at once.

    Args:
        database: a reachable database.

    Raises:
        DatabaseError: ``schema_mismatch`` if the schema is newer than this program.
    """
    with database.engine.connect() as connection, connection.begin():
        if database.dialect == "postgresql":
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SET LOCAL lock_timeout = 0"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
        _refuse_newer(connection)
        command.upgrade(alembic_config(connection), "head")


def current_revision(connection: Connection) -> str | None:
    """The schema's revision; None in an empty database."""
    return MigrationContext.configure(
        connection, opts={"version_table": VERSION_TABLE}
    ).get_current_revision()


def head_revision() -> str:
    """The revision this program works with."""
    head = ScriptDirectory.from_config(alembic_config()).get_current_head()
    assert head is not None, "the package ships at least one migration"
    return head


def wait_for_schema(database: Database, seconds: float) -> None:
    """Return once the schema is this program's; workers call it, the API migrates.

    Args:
        database: a reachable database.
        seconds: how long to wait, >= 0.

    Raises:
        DatabaseError: ``schema_mismatch`` if it is still another one.
    """
    deadline = time.monotonic() + seconds
    head = head_revision()
    while True:
        with database.read() as session:
            revision = current_revision(session.connection())
        if revision == head:
            return
        if time.monotonic() >= deadline:
            raise DatabaseError(
                f"the database's schema is at revision {revision or 'none'}, this program needs {head}: "
                "start `cliptune api` of this version once, it upgrades the schema",
                code="schema_mismatch",
            )
        time.sleep(0.2)


def _refuse_newer(connection: Connection) -> None:
    revision = current_revision(connection)
    known = {script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions()}
    if revision is not None and revision not in known:
        raise DatabaseError(
            f"the database's schema is at revision {revision}, which this program does not know: "
            "it was made by a newer cliptune; upgrade this installation",
            code="schema_mismatch",
        )
