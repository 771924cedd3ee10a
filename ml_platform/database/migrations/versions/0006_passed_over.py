"""The number of an arrival's rows that were published already, and the mark of a correction."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the number of rows that were passed over, and the mark of a correction: none, for earlier arrivals."""
    op.add_column("arrivals", sa.Column("passed_over_rows", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("arrivals", sa.Column("corrects", sa.Boolean, nullable=False, server_default=sa.false()))


def downgrade() -> None:
    """Remove both columns."""
    op.drop_column("arrivals", "corrects")
    op.drop_column("arrivals", "passed_over_rows")
