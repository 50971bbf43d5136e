"""The one clock: the database's, in integer milliseconds since 1970.

Workers on different machines disagree about the time; the database does not disagree with itself. Every lease
is computed from this expression. Tests move it by passing ``now`` (milliseconds), which wins over the clock.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, bindparam, text
from sqlalchemy.orm import Session

# PostgreSQL's now() is frozen at the transaction's start, so time spent waiting for a lock would back-date a
# lease. SQLite's unixepoch('subsec') returns NULL before 3.42, without an error.
_NOW = {
    "sqlite": "CAST(ROUND((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER)",
    "postgresql": "(extract(epoch FROM clock_timestamp()) * 1000)::bigint",
}


def now_sql(dialect: str) -> str:
    """The SQL expression of the current time, overridden by the parameter ``:now`` unless that is NULL.

    Args:
        dialect: ``sqlite`` or ``postgresql``.

    Returns:
        An expression in milliseconds.
    """
    parameter = "CAST(:now AS bigint)" if dialect == "postgresql" else ":now"
    return f"coalesce({parameter}, {_NOW[dialect]})"


def database_now(session: Session, now: int | None = None) -> int:
    """Read the database's clock.

    Args:
        session: an open session.
        now: a value to return instead, in milliseconds.

    Returns:
        Milliseconds since 1970.
    """
    dialect = session.get_bind().dialect.name
    clock = text(f"SELECT {now_sql(dialect)} AS now").bindparams(bindparam("now", now, BigInteger()))
    return int(session.execute(clock.columns(now=BigInteger())).scalar_one())
