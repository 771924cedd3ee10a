"""Alembic's entry: it is handed an open connection by `ml_platform.database.Database`."""

from alembic import context

from ml_platform.database import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    transaction_per_migration=False,
)
context.run_migrations()
