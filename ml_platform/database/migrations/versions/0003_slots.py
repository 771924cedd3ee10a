"""The slots of retrainings, so that two schedulers start one retraining."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table of slots."""
    op.create_table(
        "retraining_slots",
        sa.Column("model", sa.String(40), primary_key=True),
        sa.Column("reason", sa.String(255), primary_key=True),
        sa.Column("slot", sa.String(64), primary_key=True),
        sa.Column("holder", sa.String(64), nullable=False),
        sa.Column("claimed_at", sa.DateTime, nullable=False),
    )


def downgrade() -> None:
    """Remove the table of slots."""
    op.drop_table("retraining_slots")
