"""SQL of our own for both dialects: filled in, its parameters and columns typed as the tables are.

The queue's and the lanes' statements are written by hand, because each one is a guard that must be read as it runs.
What SQLAlchemy would know of a table's columns is told here by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sqlalchemy import BindParameter, Executable, String, bindparam, text

from service.db.clock import now_sql

_PARAMETER = re.compile(r"(?<!:):(\w+)")


def prepare(
    source: str,
    dialect: str,
    *,
    parameters: Mapping[str, Any],
    columns: Mapping[str, Any],
    **fields: str | BindParameter[Any],
) -> Executable:
    """Fill in the dialect, and give parameters and returned columns their types.

    Args:
        source: with ``{now}`` for the database's clock, ``{for_update}`` for a lock that SQLite has no need of, and
            ``{name}`` for each further field.
        dialect: ``sqlite`` or ``postgresql``.
        parameters: types by name; every other parameter is a text.
        columns: types by name, of the columns that are returned.
        **fields: texts for the source; a `BindParameter` stands for the parameter of that name instead.

    Returns:
        The statement.

    Example:
        >>> str(prepare("SELECT 1 FROM t WHERE id = :id {for_update}", "postgresql", parameters={}, columns={}))
        'SELECT 1 FROM t WHERE id = :id FOR UPDATE'
    """
    bound = {name: value for name, value in fields.items() if isinstance(value, BindParameter)}
    texts = {name: value for name, value in fields.items() if name not in bound}
    lock = "FOR UPDATE" if dialect == "postgresql" else ""
    sql = source.format(now=now_sql(dialect), for_update=lock, **texts)
    names = dict.fromkeys(_PARAMETER.findall(sql))
    binds = [bound.get(name, bindparam(name, type_=parameters.get(name, String()))) for name in names]
    statement = text(sql).bindparams(*binds)
    types = {name: kind for name, kind in columns.items() if re.search(rf"\b{name}\b", _returned(sql))}
    return statement.columns(**types) if types else statement


def _returned(sql: str) -> str:
    """The list of what a statement gives back."""
    if "RETURNING" in sql:
        return sql.rpartition("RETURNING")[2]
    return sql.partition("\nFROM")[0] if sql.lstrip().startswith("SELECT") else ""
