"""Arrivals, datasets, candidates, verdicts, registrations and the ledger."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# SQLite needs the third trigger: INSERT OR REPLACE deletes a row without firing the trigger on deletion.
APPEND_ONLY = {
    "sqlite": [
        "CREATE TRIGGER ledger_no_update BEFORE UPDATE ON ledger "
        "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END",
        "CREATE TRIGGER ledger_no_delete BEFORE DELETE ON ledger "
        "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END",
        "CREATE TRIGGER ledger_no_replace BEFORE INSERT ON ledger "
        "WHEN EXISTS (SELECT 1 FROM ledger WHERE model = NEW.model AND sequence = NEW.sequence) "
        "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END",
    ],
    "postgresql": [
        "CREATE FUNCTION ledger_is_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the ledger is append-only'; END $$",
        "CREATE TRIGGER ledger_no_change BEFORE UPDATE OR DELETE ON ledger "
        "FOR EACH ROW EXECUTE FUNCTION ledger_is_append_only()",
        "CREATE TRIGGER ledger_no_truncate BEFORE TRUNCATE ON ledger "
        "FOR EACH STATEMENT EXECUTE FUNCTION ledger_is_append_only()",
    ],
}


def upgrade() -> None:
    """Create all tables; triggers make the ledger append-only."""
    _make_arrivals()
    _make_candidates()
    _make_evidence()
    _make_ledger()


def _make_arrivals() -> None:
    op.create_table(
        "arrivals",
        sa.Column("model", sa.String(40), primary_key=True),
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("mtime_ns", sa.BigInteger, nullable=False),
        sa.Column("etag", sa.String(255), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("promised_sha256", sa.String(64)),
        sa.Column("raw_path", sa.Text, nullable=False),
        sa.Column("found_at", sa.DateTime, nullable=False),
        sa.Column("outcome", sa.String(16)),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("quarantined_rows", sa.BigInteger, nullable=False),
        sa.Column("dataset_version", sa.BigInteger),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("rules", sa.Text, nullable=False),
        sa.Column("examples", sa.Text, nullable=False),
        sa.Column("recorded_at", sa.DateTime),
        sa.Column("released_rows", sa.BigInteger, nullable=False),
        sa.Column("removed", sa.Text, nullable=False),
    )
    op.create_index("ix_arrivals_sha256", "arrivals", ["sha256"])
    op.create_table(
        "releases",
        sa.Column("model", sa.String(40), primary_key=True),
        sa.Column("arrival", sa.String(64), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("dataset_version", sa.BigInteger),
        sa.Column("actor", sa.String(255), nullable=False),
        sa.Column("released_at", sa.DateTime, nullable=False),
    )


def _make_candidates() -> None:
    op.create_table(
        "datasets",
        sa.Column("model", sa.String(40), primary_key=True),
        sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("pinned_at", sa.DateTime, nullable=False),
        sa.Column("forgotten_at", sa.DateTime),
    )
    op.create_table(
        "candidates",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("model", sa.String(40), nullable=False),
        sa.Column("model_digest", sa.String(64), nullable=False),
        sa.Column("dataset_version", sa.BigInteger, nullable=False),
        sa.Column("dataset_digest", sa.String(64), nullable=False),
        sa.Column("code_revision", sa.String(160), nullable=False),
        sa.Column("lock_digest", sa.String(64), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("run_id", sa.String(64)),
        sa.Column("mlflow_run_id", sa.String(64)),
        sa.Column("trained_at", sa.DateTime, nullable=False),
        sa.Column("forgotten_at", sa.DateTime),
        sa.Column("actor", sa.String(255)),
    )
    op.create_table(
        "tombstones",
        sa.Column("model", sa.String(40), primary_key=True),
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("key_digest", sa.String(64), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("actor", sa.String(255), nullable=False),
        sa.Column("asked_at", sa.DateTime, nullable=False),
        sa.Column("completed_at", sa.DateTime),
        sa.Column("figures", sa.Text, nullable=False),
    )
    op.create_index("ix_candidates_model", "candidates", ["model"])
    op.create_index("ix_candidates_run_id", "candidates", ["run_id"])


def _make_evidence() -> None:
    op.create_table(
        "verdicts",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("candidate", sa.String(32), sa.ForeignKey("candidates.id"), nullable=False),
        sa.Column("passed", sa.Boolean, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("judged_at", sa.DateTime, nullable=False),
    )
    op.create_index("ix_verdicts_candidate", "verdicts", ["candidate"])
    op.create_table(
        "registrations",
        sa.Column("model", sa.String(40), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("candidate", sa.String(32), sa.ForeignKey("candidates.id"), nullable=False, unique=True),
        sa.Column("staged_at", sa.DateTime),
    )


def _make_ledger() -> None:
    op.create_table(
        "ledger",
        sa.Column("model", sa.String(40), primary_key=True),
        sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("previous_version", sa.Integer),
        sa.Column("candidate", sa.String(32), nullable=False),
        sa.Column("verdict_digest", sa.String(64), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("actor", sa.String(255), nullable=False),
        sa.Column("recorded_at", sa.DateTime, nullable=False),
        sa.Column("details", sa.Text, nullable=False),
        sa.Column("previous_digest", sa.String(64), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
    )
    for statement in APPEND_ONLY[op.get_bind().dialect.name]:
        op.execute(sa.text(statement))


def downgrade() -> None:
    """Remove all tables."""
    dialect = op.get_bind().dialect.name
    for table in (
        "ledger",
        "registrations",
        "verdicts",
        "tombstones",
        "candidates",
        "datasets",
        "releases",
        "arrivals",
    ):
        op.drop_table(table)
    if dialect == "postgresql":
        op.execute(sa.text("DROP FUNCTION ledger_is_append_only()"))
