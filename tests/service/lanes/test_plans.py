"""The statements that are asked most read an index, however many lanes there are."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from sqlalchemy import event

from service.db.session import Database
from service.lanes import LaneQueue

NUM_TRIALS, SEEDS = 2000, range(3)


@pytest.fixture(
    params=["sqlite_database", pytest.param("untouched_postgres_database", marks=pytest.mark.postgres)]
)
def database(request: pytest.FixtureRequest) -> Database:
    """A database of the test's own: plans depend on statistics, and those outlive rows."""
    opened: Database = request.getfixturevalue(request.param)
    return opened


@pytest.fixture
def backlog(bench: Any) -> Any:
    """A study with thousands of lanes, and two more; on the database's own clock."""
    bench.queue = LaneQueue(bench.database, lease_seconds=60)
    bench.studies = [bench.study() for _ in range(3)]
    for study_id in bench.studies:
        bench.put_up(study_id, [str(uuid.uuid4()) for _ in range(NUM_TRIALS)], seeds=SEEDS, is_probe=True)
    return bench


def plans(bench: Any, word: str, operation: Any) -> list[str]:
    """Plans of an operation's statements that hold a word, explained with their very parameters."""
    explain = {"sqlite": "EXPLAIN QUERY PLAN ", "postgresql": "EXPLAIN "}[bench.database.dialect]
    found = []

    def before(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        del connection
        if word in statement:
            cursor.execute(explain + statement, parameters)
            found.append("\n".join(str(row[-1]) for row in cursor.fetchall()))

    event.listen(bench.database.engine, "before_cursor_execute", before)
    operation()
    event.remove(bench.database.engine, "before_cursor_execute", before)
    return found


def test_a_lane_is_found_in_the_order_of_asking(backlog: Any) -> None:
    study_id = backlog.studies[1]
    (plan,) = plans(backlog, "ORDER BY position LIMIT 1", lambda: backlog.ask(study_id))
    assert "ix_cliptune_lanes_ask" in plan
    assert "Seq Scan" not in plan and "SCAN cliptune_lanes" not in plan


def test_a_report_finds_its_own_lane_by_an_index(backlog: Any) -> None:
    lease = backlog.ask(backlog.studies[0])
    (hold,) = plans(backlog, "FROM cliptune_lanes AS lane", lambda: backlog.report(lease, 1, 1.0))
    (tell,) = plans(backlog, "SET step", lambda: backlog.report(lease, 2, 1.0))
    # With one lane leased, PostgreSQL finds it as fast by the index of the leased ones as by its key.
    indexes = {
        "sqlite": ["sqlite_autoindex_cliptune_lanes_1"],
        "postgresql": ["pk_cliptune_lanes", "ix_cliptune_lanes_leased"],
    }
    for plan in (hold, tell):
        assert any(index in plan for index in indexes[backlog.database.dialect]), plan
        assert "Seq Scan" not in plan and "SCAN cliptune_lanes" not in plan, plan


def test_a_reap_looks_at_leased_lanes_only(backlog: Any) -> None:
    lease = backlog.ask(backlog.studies[0])
    (plan,) = plans(backlog, "LIMIT 1", backlog.queue.reap)
    assert "ix_cliptune_lanes_leased" in plan and "Seq Scan on cliptune_lanes" not in plan
    assert backlog.heartbeat(lease).go_on
