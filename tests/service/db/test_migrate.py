"""The schema: built by migrations alone, equal to the models, at home beside Optuna's tables."""

from __future__ import annotations

import warnings
from typing import Any

import optuna
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text

from service.db.migrate import VERSION_TABLE, current_revision, head_revision, upgrade, wait_for_schema
from service.db.models import PREFIX, Base
from service.db.session import Database
from service.errors import DatabaseError


def test_migrations_from_empty_give_the_models(database: Database) -> None:
    # SQLite can't reflect the expression "priority DESC"; the next test looks at that index by name.
    unseen = {"ix_cliptune_jobs_queued"} if database.dialect == "sqlite" else set()

    def is_ours(thing: Any, name: str | None, kind: str, reflected: bool, other: Any) -> bool:
        return (kind != "table" or str(name).startswith(PREFIX)) and name not in unseen

    with database.engine.connect() as connection, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*expression-based index")
        context = MigrationContext.configure(
            connection, opts={"version_table": VERSION_TABLE, "include_object": is_ours}
        )
        assert compare_metadata(context, Base.metadata) == []
        assert current_revision(connection) == head_revision()


def test_every_index_of_the_models_exists(database: Database) -> None:
    catalogue = {
        "sqlite": "SELECT name FROM sqlite_master WHERE type = 'index'",
        "postgresql": "SELECT indexname FROM pg_indexes",
    }
    with database.read() as session:
        found = set(session.execute(text(catalogue[database.dialect])).scalars())
    wanted = {index.name for table in Base.metadata.tables.values() for index in table.indexes}
    assert wanted <= found


def test_upgrade_twice_changes_nothing(database: Database) -> None:
    upgrade(database)
    with database.read() as session:
        assert current_revision(session.connection()) == head_revision()


@pytest.mark.parametrize("optuna_first", [True, False])
def test_optuna_storage_lives_in_the_same_database(database_url: str, optuna_first: bool) -> None:
    database = Database(database_url)
    if optuna_first:
        optuna.storages.RDBStorage(database_url).engine.dispose()
        upgrade(database)
    else:
        upgrade(database)
        optuna.storages.RDBStorage(database_url).engine.dispose()
    upgrade(database)
    optuna.storages.RDBStorage(database_url).engine.dispose()
    tables = set(inspect(database.engine).get_table_names())
    database.close()
    assert {"studies", "alembic_version", f"{PREFIX}studies", VERSION_TABLE} <= tables


def test_newer_schema_is_refused_with_the_remedy(database: Database) -> None:
    with database.write() as session:
        session.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(DatabaseError, match=r"9999.*upgrade this installation") as caught:
        upgrade(database)
    assert caught.value.code == "schema_mismatch"


def test_worker_refuses_a_database_without_schema(database_url: str) -> None:
    empty = Database(database_url)
    with pytest.raises(DatabaseError, match=r"revision none.*cliptune api") as caught:
        wait_for_schema(empty, seconds=0)
    empty.close()
    assert caught.value.code == "schema_mismatch"
