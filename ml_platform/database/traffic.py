"""Traffic plans, the servers that follow them, and the servers' counts for each version."""

import json
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from ml_platform.database.engine import DatabaseEngine
from ml_platform.database.tables import candidates, ledger, servers, traffic_figures, traffic_plans
from ml_platform.errors import ConflictError
from ml_platform.records.canonical import canonical_json, now
from ml_platform.records.traffic import ServerHeartbeat, TrafficPlan, TrafficStats

# Age at which a server's row is deleted when another server starts: each start adds one. A live server adds it again.
FORGOTTEN_AFTER = timedelta(days=7)


class TrafficRecords(DatabaseEngine):
    """Records of traffic plans, servers and traffic figures."""

    def traffic_plan(self, model: str) -> TrafficPlan | None:
        """Return the newest plan; ``None`` before the first."""
        newest = sa.select(traffic_plans.c.document).where(traffic_plans.c.model == model)
        row = self._row(newest.order_by(traffic_plans.c.sequence.desc()).limit(1))
        return TrafficPlan.from_document(row["document"]) if row else None

    def traffic_mark(self, model: str) -> tuple[object, ...]:
        """Return a value that changes with what servers follow: ledger, traffic plan, served files, the SQLite file."""
        entries = sa.select(ledger.c.sequence, ledger.c.digest).where(ledger.c.model == model)
        plan = sa.select(traffic_plans.c.sequence, traffic_plans.c.decision).where(traffic_plans.c.model == model)
        named = sa.select(ledger.c.candidate).where(ledger.c.model == model)
        served = sa.select(candidates.c.id, candidates.c.served_digest).where(candidates.c.id.in_(named))
        with self._transaction() as connection:
            head = connection.execute(entries.order_by(ledger.c.sequence.desc()).limit(1)).first()
            newest = connection.execute(plan.order_by(traffic_plans.c.sequence.desc()).limit(1)).first()
            files = connection.execute(served.order_by(candidates.c.id)).all()
        return (self._file, head and tuple(head), newest and tuple(newest), tuple(tuple(row) for row in files))

    def traffic_plans(self, model: str, salt: str | None = None) -> list[TrafficPlan]:
        """Return the last hundred plans, newest first.

        Parameters
        ----------
        model : str
        salt : str or None
            Salt of one rollout; ``None`` selects all rollouts.
        """
        newest = sa.select(traffic_plans.c.document).where(traffic_plans.c.model == model)
        with self._transaction() as connection:
            documents = connection.scalars(newest.order_by(traffic_plans.c.sequence.desc()).limit(100)).all()
        plans = [TrafficPlan.from_document(document) for document in documents]
        return [plan for plan in plans if salt in {None, plan.salt}]

    def append_traffic_plan(self, plan: TrafficPlan) -> None:
        """Store a plan if it follows the newest one (compare and set).

        Raises
        ------
        ConflictError
            Its sequence does not follow that of the newest plan.
        """
        newest = sa.select(sa.func.max(traffic_plans.c.sequence)).where(traffic_plans.c.model == plan.model)
        row = {"model": plan.model, "sequence": plan.sequence, "decision": plan.decision, "document": plan.document}
        with self._transaction() as connection:
            follows = (connection.scalar(newest) or 0) + 1
            try:
                if plan.sequence == follows:
                    connection.execute(traffic_plans.insert().values(**row, made_at=plan.since))
            except sa.exc.IntegrityError:  # in PostgreSQL two writers can read the same newest plan
                follows += 1
        if plan.sequence != follows:
            raise ConflictError(
                f"The traffic plan of {plan.model!r} changed meanwhile: the next one has the sequence {follows}. Got "
                f"{plan.sequence} instead. Check `ml-platform rollout status {plan.model}` and try again."
            )

    def beat(self, beat: ServerHeartbeat) -> None:
        """Store a server's heartbeat, which replaces its earlier one, with the time of the database."""
        number = {} if beat.number is None else {"beat": beat.number}
        values = {"admin_address": beat.admin_address, "document": canonical_json({**beat.says, **number})}
        with self._transaction() as connection:
            at = self._read_clock(connection)
            old = sa.or_(servers.c.seen_at < at - FORGOTTEN_AFTER, servers.c.seen_at > at + FORGOTTEN_AFTER)
            if beat.number == 1:
                connection.execute(servers.delete().where(servers.c.model == beat.model, old))
            _put(connection, servers, {"model": beat.model, "name": beat.server}, {**values, "seen_at": at})

    def servers(self, model: str) -> list[ServerHeartbeat]:
        """Return the newest heartbeat of every server of the last days, by name; the server may have ended since."""
        rows = sa.select(servers).where(servers.c.model == model).order_by(servers.c.name)
        with self._transaction() as connection:
            at, found = self._read_clock(connection), connection.execute(rows).all()
        says = [json.loads(row.document) for row in found]
        return [
            ServerHeartbeat(
                model=model,
                server=row.name,
                admin_address=row.admin_address,
                number=document.pop("beat", None),
                says=document,
                age=(at - row.seen_at).total_seconds(),
            )
            for row, document in zip(found, says, strict=True)
        ]

    def _read_clock(self, connection: sa.Connection) -> datetime:
        """Return the time of PostgreSQL's server, one for all hosts; with SQLite, that of this host, the only one."""
        return connection.execute(sa.select(sa.func.clock_timestamp())).scalar_one() if self._is_server else now()

    def count_traffic(self, figures: TrafficStats) -> None:
        """Store a server's counts for a version under a plan, which replace its earlier ones."""
        key = {"model": figures.model, "plan": figures.plan, "server": figures.server, "version": figures.version}
        with self._transaction() as connection:
            _put(connection, traffic_figures, key, {"document": figures.document, "counted_at": now()})

    def traffic_figures(self, model: str, plan: int) -> list[TrafficStats]:
        """Return the counts of all servers under one plan, one record for each server and version."""
        counted = sa.select(traffic_figures.c.document)
        counted = counted.where(traffic_figures.c.model == model, traffic_figures.c.plan == plan)
        with self._transaction() as connection:
            return [TrafficStats.from_document(document) for document in connection.scalars(counted)]


def _put(connection: sa.Connection, table: sa.Table, key: dict[str, Any], values: dict[str, Any]) -> None:
    this = sa.and_(*(table.c[name] == value for name, value in key.items()))
    if connection.execute(table.update().where(this).values(**values)).rowcount == 0:
        connection.execute(table.insert().values(**key, **values))
