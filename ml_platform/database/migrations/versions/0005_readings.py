"""Readings of arrivals that ended their reader, arrivals quarantined by hand, and the change times of files."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; the change times of known files are recorded by the next ingestion."""
    for name in ("ctime_ns", "changed_ns"):
        op.add_column("arrivals", sa.Column(name, sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("arrivals", sa.Column("readings", sa.Integer, nullable=False, server_default="0"))
    op.add_column("arrivals", sa.Column("reader_deaths", sa.Text, nullable=False, server_default="[]"))
    op.add_column("arrivals", sa.Column("quarantined_by", sa.String(255)))


def downgrade() -> None:
    """Remove the columns."""
    for name in ("quarantined_by", "reader_deaths", "readings", "changed_ns", "ctime_ns"):
        op.drop_column("arrivals", name)
