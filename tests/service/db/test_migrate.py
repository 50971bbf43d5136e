"""The schema: built by migrations alone, equal to the models, at home beside Optuna's tables."""

from __future__ import annotations

import warnings
from typing import Any

import optuna
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text
from sqlalchemy.exc import IntegrityError

from service.db.migrate import (
    VERSION_TABLE,
    alembic_config,
    current_revision,
    head_revision,
    upgrade,
    wait_for_schema,
)
from service.db.models import PREFIX, Base, RecommendationRow, StudyRow, WorkerRow
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


def step(database: Database, direction: str, revision: str) -> None:
    with database.engine.connect() as connection, connection.begin():
        getattr(command, direction)(alembic_config(connection), revision)


#: A study of the version before, with a trial that has a report and a result, a worker, and the recommendation.
ROWS_OF_0001 = (
    "INSERT INTO cliptune_studies (id, tenant_id, workload, spec, spec_sha256, fingerprint, job_id, created_at) "
    "VALUES ('s', 't', 'w', '{\"workload\": \"w\"}', 'd', 'f', 'j', 1)",
    "INSERT INTO cliptune_trials (id, study_id, number, cohort, method, threshold, state, attempt, lost_count, "
    "created_at) VALUES ('a', 's', 0, 0, 'global_norm', 0.5, 'complete', 0, 0, 1)",
    "INSERT INTO cliptune_trial_reports (trial_id, seed, step, fence, value, created_at) VALUES ('a', 0, 9, 1, 2.5, 1)",
    "INSERT INTO cliptune_trial_results (trial_id, fence, lanes, created_at) VALUES ('a', 1, '[]', 1)",
    "INSERT INTO cliptune_workers (id, hostname, pid, version, device, started_at, seen_at) "
    "VALUES ('w', 'here', 1, '0', 'cpu', 1, 1)",
    "INSERT INTO cliptune_recommendations (id, tenant_id, study_id, workload, fingerprint, verdict, method, body, "
    "created_at) VALUES ('r1', 't', 's', 'w', 'f', 'clip', 'global_norm', '{}', 1)",
)


def read(database: Database, query: str) -> list[tuple[Any, ...]]:
    with database.read() as session:
        return [tuple(row) for row in session.execute(text(query))]


def test_rows_of_the_version_before_survive_up_and_down(database_url: str) -> None:
    database = Database(database_url)
    step(database, "upgrade", "0001")
    with database.write() as session:
        for statement in ROWS_OF_0001:
            session.connection().exec_driver_sql(statement)
    upgrade(database)
    assert read(database, "SELECT stage, learning_rate_scale, seeds FROM cliptune_trials") == [
        ("search", 1.0, None)
    ]
    with database.read() as session:
        study = session.get_one(StudyRow, "s")
        assert (study.extensions, study.warm_start) == ([], None)
        assert (study.key_id, study.device_milliseconds) == (None, 0)
        worker = session.get_one(WorkerRow, "w")
        assert (worker.slots, worker.lane_steps) == ([], 0)
        assert session.get_one(RecommendationRow, "r1").version == 1
    with database.write() as session:
        for statement in (
            "UPDATE cliptune_studies SET extensions = '[4]', key_id = 'k', device_milliseconds = 9",
            "UPDATE cliptune_workers SET slots = '[{}]', lane_steps = 9",
            "INSERT INTO cliptune_trials (id, study_id, number, cohort, method, state, attempt, lost_count, "
            "created_at, stage, seeds) VALUES ('b', 's', 1, 1, 'none', 'complete', 0, 0, 1, 'confirm', '[3, 4]')",
            "INSERT INTO cliptune_trial_reports (trial_id, seed, step, fence, value, created_at) VALUES "
            "('b', 3, 9, 1, 2.5, 1)",
            "INSERT INTO cliptune_trial_results (trial_id, fence, lanes, created_at) VALUES ('b', 1, '[]', 1)",
            ROWS_OF_0001[-1].replace("created_at)", "created_at, version)").replace("'r1'", "'r2'")[:-1]
            + ", 2)",
        ):
            session.connection().exec_driver_sql(statement)
    step(database, "downgrade", "0001")
    assert read(database, "SELECT s.id, w.id FROM cliptune_studies s, cliptune_workers w") == [("s", "w")]
    assert read(database, "SELECT id, threshold FROM cliptune_trials") == [("a", 0.5)]
    assert read(database, "SELECT trial_id, value FROM cliptune_trial_reports") == [("a", 2.5)]
    assert read(database, "SELECT id FROM cliptune_recommendations") == [("r2",)]
    upgrade(database)
    assert read(database, "SELECT id, version FROM cliptune_recommendations") == [("r2", 1)]
    database.close()


def test_a_stage_is_one_of_two(database: Database) -> None:
    with database.write() as session:
        for statement in ROWS_OF_0001[:2]:
            session.connection().exec_driver_sql(statement)
    with pytest.raises(IntegrityError), database.write() as session:
        session.execute(text("UPDATE cliptune_trials SET stage = 'other'"))
