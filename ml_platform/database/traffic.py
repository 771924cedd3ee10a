"""Traffic plans, the servers that follow them, and the servers' counts for each version."""

import json
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from ml_platform.database.engine import DatabaseEngine
from ml_platform.database.tables import candidates, ledger, servers, traffic_figures, traffic_plans
from ml_platform.errors import ConflictError
from ml_platform.records.canonical import canonical_json, now
from ml_platform.records.traffic import ServerHeartbeat, TrafficPlan, TrafficStats


class TrafficRecords(DatabaseEngine):
    """Records of traffic plans, servers and traffic figures."""

    def traffic_plan(self, model: str) -> TrafficPlan | None:
        """Return the newest plan; ``None`` before the first."""
        newest = sa.select(traffic_plans.c.document).where(traffic_plans.c.model == model)
        row = self._row(newest.order_by(traffic_plans.c.sequence.desc()).limit(1))
        return TrafficPlan.from_document(row["document"]) if row else None

    def traffic_mark(self, model: str) -> tuple[object, ...]:
        """Return a value that changes with the ledger, the traffic plan or the served files, which servers follow."""
        entries = sa.select(ledger.c.sequence, ledger.c.digest).where(ledger.c.model == model)
        plan = sa.select(traffic_plans.c.sequence, traffic_plans.c.decision).where(traffic_plans.c.model == model)
        named = sa.select(ledger.c.candidate).where(ledger.c.model == model)
        served = sa.select(candidates.c.id, candidates.c.served_digest).where(candidates.c.id.in_(named))
        with self._transaction() as connection:
            head = connection.execute(entries.order_by(ledger.c.sequence.desc()).limit(1)).first()
            newest = connection.execute(plan.order_by(traffic_plans.c.sequence.desc()).limit(1)).first()
            files = connection.execute(served.order_by(candidates.c.id)).all()
        return (head and tuple(head), newest and tuple(newest), tuple(tuple(row) for row in files))

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
        """Store a server's heartbeat, which replaces its earlier one."""
        key = {"model": beat.model, "name": beat.server}
        values = {"admin_address": beat.admin_address, "document": canonical_json(beat.says), "seen_at": now()}
        self._put(servers, key, values)

    def servers(self, model: str, since: datetime) -> list[ServerHeartbeat]:
        """Return the newest heartbeat of every server that sent one after a time, by name."""
        alive = sa.select(servers).where(servers.c.model == model, servers.c.seen_at > since)
        with self._transaction() as connection:
            rows = connection.execute(alive.order_by(servers.c.name)).all()
        return [
            ServerHeartbeat(
                model=model,
                server=row.name,
                admin_address=row.admin_address,
                says=json.loads(row.document),
                seen_at=row.seen_at,
            )
            for row in rows
        ]

    def count_traffic(self, figures: TrafficStats) -> None:
        """Store a server's counts for a version under a plan, which replace its earlier ones."""
        key = {"model": figures.model, "plan": figures.plan, "server": figures.server, "version": figures.version}
        self._put(traffic_figures, key, {"document": figures.document, "counted_at": now()})

    def traffic_figures(self, model: str, plan: int) -> list[TrafficStats]:
        """Return the counts of all servers under one plan, one record for each server and version."""
        counted = sa.select(traffic_figures.c.document)
        counted = counted.where(traffic_figures.c.model == model, traffic_figures.c.plan == plan)
        with self._transaction() as connection:
            return [TrafficStats.from_document(document) for document in connection.scalars(counted)]

    def _put(self, table: sa.Table, key: dict[str, Any], values: dict[str, Any]) -> None:
        this = sa.and_(*(table.c[name] == value for name, value in key.items()))
        with self._transaction() as connection:
            if connection.execute(table.update().where(this).values(**values)).rowcount == 0:
                connection.execute(table.insert().values(**key, **values))
