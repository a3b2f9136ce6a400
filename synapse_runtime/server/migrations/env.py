"""What alembic runs: it migrates the database of the connection that `store` passes to it."""

from __future__ import annotations

from alembic import context

from synapse_runtime.server.schema import METADATA

if hasattr(context, "config"):  # only while alembic migrates
    context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
    with context.begin_transaction():
        context.run_migrations()
