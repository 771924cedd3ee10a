"""The tables for SQLAlchemy; the migrations create them."""

import re
from datetime import UTC, datetime

import sqlalchemy as sa


class UtcDateTime(sa.TypeDecorator[datetime]):
    """A timezone-aware time in UTC, also in SQLite, which stores no zone."""

    impl = sa.DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:  # noqa: ARG002
        """Return the time as stored: UTC without a zone."""
        return value.astimezone(UTC).replace(tzinfo=None) if value else None

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:  # noqa: ARG002
        """Return a stored time, timezone-aware in UTC."""
        return value.replace(tzinfo=UTC) if value else None


class AnyText(sa.TypeDecorator[str]):
    """Text of any origin: characters that a database refuses, NUL and lone surrogates, become U+FFFD."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:  # noqa: ARG002
        """Return the text as stored."""
        return None if value is None else UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", value)


UNSTORABLE = re.compile("[\0\ud800-\udfff]")
metadata = sa.MetaData()

arrivals = sa.Table(
    "arrivals",
    metadata,
    sa.Column("model", sa.String(40), primary_key=True),
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("mtime_ns", sa.BigInteger, nullable=False),
    sa.Column("etag", sa.String(255), nullable=False, default=""),
    sa.Column("sha256", sa.String(64), nullable=False, index=True),
    sa.Column("promised_sha256", sa.String(64)),
    sa.Column("raw_path", sa.Text, nullable=False),
    sa.Column("found_at", UtcDateTime, nullable=False),
    sa.Column("outcome", sa.String(16)),
    sa.Column("rows", sa.BigInteger, nullable=False, default=0),
    sa.Column("quarantined_rows", sa.BigInteger, nullable=False, default=0),
    sa.Column("passed_over_rows", sa.BigInteger, nullable=False, default=0, server_default="0"),
    sa.Column("dataset_version", sa.BigInteger),
    sa.Column("reason", AnyText, nullable=False, default=""),
    sa.Column("rules", sa.Text, nullable=False, default="{}"),
    sa.Column("examples", sa.Text, nullable=False, default="{}"),
    sa.Column("recorded_at", UtcDateTime),
    sa.Column("released_rows", sa.BigInteger, nullable=False, default=0),
    sa.Column("removed", sa.Text, nullable=False, default="[]"),
    sa.Column("ctime_ns", sa.BigInteger, nullable=False, default=0),
    sa.Column("changed_ns", sa.BigInteger, nullable=False, default=0),
    sa.Column("readings", sa.Integer, nullable=False, default=0),
    sa.Column("reader_deaths", sa.Text, nullable=False, default="[]"),
    sa.Column("quarantined_by", sa.String(255)),
    sa.Column("corrects", sa.Boolean, nullable=False, default=False, server_default=sa.false()),
)

releases = sa.Table(
    "releases",
    metadata,
    sa.Column("model", sa.String(40), primary_key=True),
    sa.Column("arrival", sa.String(64), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("dataset_version", sa.BigInteger),
    sa.Column("actor", sa.String(255), nullable=False),
    sa.Column("released_at", UtcDateTime, nullable=False),
)

datasets = sa.Table(
    "datasets",
    metadata,
    sa.Column("model", sa.String(40), primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("pinned_at", UtcDateTime, nullable=False),
    sa.Column("forgotten_at", UtcDateTime),
)

candidates = sa.Table(
    "candidates",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("model", sa.String(40), nullable=False, index=True),
    sa.Column("model_digest", sa.String(64), nullable=False),
    sa.Column("dataset_version", sa.BigInteger, nullable=False),
    sa.Column("dataset_digest", sa.String(64), nullable=False),
    sa.Column("code_revision", sa.String(160), nullable=False),
    sa.Column("lock_digest", sa.String(64), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("run_id", sa.String(64), index=True),
    sa.Column("mlflow_run_id", sa.String(64)),
    sa.Column("trained_at", UtcDateTime, nullable=False),
    sa.Column("forgotten_at", UtcDateTime),
    sa.Column("actor", sa.String(255)),
    sa.Column("served_digest", sa.String(64)),
    sa.Column("trained_by", sa.String(255)),
    sa.Column("requested_at", UtcDateTime),
)

tombstones = sa.Table(
    "tombstones",
    metadata,
    sa.Column("model", sa.String(40), primary_key=True),
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("key_digest", sa.String(64), nullable=False),
    sa.Column("reason", AnyText, nullable=False),
    sa.Column("actor", sa.String(255), nullable=False),
    sa.Column("asked_at", UtcDateTime, nullable=False),
    sa.Column("completed_at", UtcDateTime),
    sa.Column("figures", sa.Text, nullable=False),
)

verdicts = sa.Table(
    "verdicts",
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("candidate", sa.String(32), sa.ForeignKey("candidates.id"), nullable=False, index=True),
    sa.Column("passed", sa.Boolean, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("judged_at", UtcDateTime, nullable=False),
)

registrations = sa.Table(
    "registrations",
    metadata,
    sa.Column("model", sa.String(40), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("candidate", sa.String(32), sa.ForeignKey("candidates.id"), nullable=False, unique=True),
    sa.Column("staged_at", UtcDateTime),
)

ledger = sa.Table(
    "ledger",
    metadata,
    sa.Column("model", sa.String(40), primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("action", sa.String(16), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("previous_version", sa.Integer),
    sa.Column("candidate", sa.String(32), nullable=False),
    sa.Column("verdict_digest", sa.String(64), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("actor", sa.String(255), nullable=False),
    sa.Column("recorded_at", UtcDateTime, nullable=False),
    sa.Column("details", sa.Text, nullable=False),
    sa.Column("previous_digest", sa.String(64), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
)

traffic_plans = sa.Table(
    "traffic_plans",
    metadata,
    sa.Column("model", sa.String(40), primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("decision", sa.Integer, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("made_at", UtcDateTime, nullable=False),
)

servers = sa.Table(
    "servers",
    metadata,
    sa.Column("model", sa.String(40), primary_key=True),
    sa.Column("name", sa.String(255), primary_key=True),
    sa.Column("admin_address", sa.Text, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("seen_at", UtcDateTime, nullable=False),
)

traffic_figures = sa.Table(
    "traffic_figures",
    metadata,
    sa.Column("model", sa.String(40), primary_key=True),
    sa.Column("plan", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("server", sa.String(255), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("counted_at", UtcDateTime, nullable=False),
)

retraining_slots = sa.Table(
    "retraining_slots",
    metadata,
    sa.Column("model", sa.String(40), primary_key=True),
    sa.Column("reason", sa.String(255), primary_key=True),
    sa.Column("slot", sa.String(64), primary_key=True),
    sa.Column("holder", sa.String(64), nullable=False),
    sa.Column("claimed_at", UtcDateTime, nullable=False),
)


def this_arrival(model: str, key: str) -> sa.ColumnElement[bool]:
    """Return the condition on `arrivals` that selects one arrival of a model."""
    return sa.and_(arrivals.c.model == model, arrivals.c.key == key)
