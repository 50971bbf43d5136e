"""Connections of a database: none is left open once it has been closed."""

from __future__ import annotations

import gc
import weakref

from sqlalchemy import event, text

from service.db.session import Database


def test_connection_that_comes_back_after_the_end_is_closed(database_url: str) -> None:
    """A thread that still reads while the process ends gives its connection back to a pool that is gone."""
    closed: list[object] = []
    database = Database(database_url)
    event.listen(database.engine, "close", lambda connection, record: closed.append(connection))
    with database.engine.connect() as late:
        assert late.execute(text("SELECT 1")).scalar_one() == 1
        driver = weakref.ref(late.connection)
        database.close()
        assert closed == []
    assert len(closed) == 1
    del late
    gc.collect()
    assert driver() is None
