"""The digest of a candidate's served files, traffic plans, servers and their counts."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables of serving."""
    op.add_column("candidates", sa.Column("served_digest", sa.String(64)))
    op.create_table(
        "traffic_plans",
        sa.Column("model", sa.String(40), primary_key=True),
        sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("decision", sa.Integer, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("made_at", sa.DateTime, nullable=False),
    )
    op.create_table(
        "servers",
        sa.Column("model", sa.String(40), primary_key=True),
        sa.Column("name", sa.String(255), primary_key=True),
        sa.Column("admin_address", sa.Text, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("seen_at", sa.DateTime, nullable=False),
    )
    op.create_table(
        "traffic_figures",
        sa.Column("model", sa.String(40), primary_key=True),
        sa.Column("plan", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("server", sa.String(255), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("counted_at", sa.DateTime, nullable=False),
    )


def downgrade() -> None:
    """Remove the tables of serving."""
    for table in ("traffic_figures", "servers", "traffic_plans"):
        op.drop_table(table)
    op.drop_column("candidates", "served_digest")
