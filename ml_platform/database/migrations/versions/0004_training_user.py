"""The operating system's user who trained a candidate, and the time of the request."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the two columns; both stay empty for older candidates."""
    op.add_column("candidates", sa.Column("trained_by", sa.String(255)))
    op.add_column("candidates", sa.Column("requested_at", sa.DateTime))


def downgrade() -> None:
    """Remove the two columns."""
    op.drop_column("candidates", "requested_at")
    op.drop_column("candidates", "trained_by")
