"""Alembic's entry point: runs on the connection that `service.db.migrate` opened."""

from __future__ import annotations

from alembic import context

from service.db.migrate import VERSION_TABLE
from service.db.models import PREFIX, Base

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
    # Optuna's tables may live in the same database.
    include_name=lambda name, kind, parents: kind != "table" or (name or "").startswith(PREFIX),
    render_as_batch=connection.dialect.name == "sqlite",
    transactional_ddl=True,
)
context.run_migrations()
