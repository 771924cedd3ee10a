"""Alembic's entry point; `ml_platform.database.PlatformDatabase` passes an open connection."""

from alembic import context

from ml_platform.database.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    transaction_per_migration=False,
)
context.run_migrations()
