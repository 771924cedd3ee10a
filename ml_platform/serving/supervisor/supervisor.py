"""The supervisor of a host's workers: it selects the versions that they serve; requests do not pass through it.

It binds the public socket, follows ledger and traffic plan, stores the versions' files, restarts workers, serves the
admin port, and reports the host's state and counters to the database. It loads no model, so it starts in a second, and
the workers continue to serve while the database is unavailable.
"""

import asyncio
import itertools
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from ml_platform.errors import (
    AlertError,
    ConflictError,
    DatabaseUnavailableError,
    EvidenceError,
    LedgerError,
    MissingFilesError,
    ModelError,
    PlatformError,
    PortInUseError,
    StorageError,
)
from ml_platform.monitoring.alerts import Alert, send, write_log
from ml_platform.platform import Platform
from ml_platform.records.canonical import now
from ml_platform.records.traffic import ServerHeartbeat
from ml_platform.release.admin_client import ADDRESS_FILE
from ml_platform.release.promote import require_reason
from ml_platform.release.rollback import roll_back
from ml_platform.serving import prometheus, version_cache
from ml_platform.serving.counters import Counts
from ml_platform.serving.http.connection_limits import bound, make_server
from ml_platform.serving.prometheus import ServerFacts
from ml_platform.serving.state import STATE_FILE, DesiredState, override_plan, read_state
from ml_platform.serving.supervisor import version_selection
from ml_platform.serving.supervisor.admin_api import AdminApp
from ml_platform.serving.supervisor.admin_tokens import local_tokens, read_tokens
from ml_platform.serving.supervisor.home_lock import PID_FILE, lock_home
from ml_platform.serving.supervisor.mlflow_probe import mlflow_responds
from ml_platform.serving.supervisor.pending_files import PendingFiles
from ml_platform.serving.supervisor.rollback_journal import (
    JOURNAL_FILE,
    AdminAuditLog,
    Journal,
    Rollback,
    set_invalid_lines_aside,
)
from ml_platform.serving.supervisor.version_selection import VersionSelector
from ml_platform.serving.supervisor.worker_pool import WorkerHandle, WorkerPool
from ml_platform.storage import atomic_files
from ml_platform.system.isolated_process import AS_SERVED

log = logging.getLogger("ml_platform.serving")

HOST = "127.0.0.1"
SECONDS_BETWEEN_POLLS = 1.0
# After a database query has taken this long, the served version is marked as possibly out of date.
SECONDS_UNTIL_STALE = 5.0
SECONDS_BETWEEN_BEATS = 5.0
SECONDS_BETWEEN_COUNTS = 2.0
SECONDS_BETWEEN_PROBES = 5.0
# Shorter than the timeout of callers, see ml_platform/release/admin_client.py.
SECONDS_FOR_A_SWAP = 4.0
UNCONFIRMED = "the state has not been compared with the ledger since the server started"


class Supervisor:
    """The server of one model on one host.

    Parameters
    ----------
    platform : Platform
    model : str
    host : str
        Address of both ports; loopback unless the server is behind a proxy.
    port, admin_port : int
        0 selects a free port.
    workers : int
        Number of worker processes.
    say : callable
        Called with each message for the terminal.

    Raises
    ------
    SecondServerError
        Another server of the model uses this home; nothing was started.
    PortInUseError
        A port is in use; nothing was started.
    ConfigurationError
        The admin tokens are not valid.
    """

    def __init__(
        self,
        platform: Platform,
        model: str,
        *,
        host: str = HOST,
        port: int = 8080,
        admin_port: int = 8081,
        workers: int = 1,
        say: Callable[[str], None] = print,
    ) -> None:
        self.platform, self.model, self.say = platform, model, say
        self.home = platform.settings.serving_home(model)
        atomic_files.make_folder(self.home)
        self._lock = lock_home(self.home)  # until this process ends
        self._public, self._admin = _bind("--port", host, port), _bind("--admin-port", host, admin_port)
        self.address, self.admin_address = _format_address(self._public), _format_address(self._admin)
        # Unique for each start: the counters begin at zero, and must not replace those of the last start.
        self.name = f"{socket.gethostname()[:60]}-{self._public.getsockname()[1]}-{secrets.token_hex(4)}"
        self.version_selector = VersionSelector(platform, model, self.home, on_fetched=self._wake_up)
        self.journal, self.audit_log = Journal(self.home), AdminAuditLog(self.home)
        tokens_file = platform.settings.admin_tokens_file
        self.tokens = read_tokens(tokens_file) if tokens_file is not None else local_tokens(self.home)
        state = read_last_state(self.home)
        self.state = state and replace(state, revision=state.revision + 1, stale=UNCONFIRMED)
        self.version_selector.seen = self.state.ledger_head if self.state else None
        self.problem = ""
        self._workers = workers
        self._swapping = asyncio.Lock()
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._mlflow_answers = True
        self._unsettled = ""
        self._beats = itertools.count(1)
        self._background: set[asyncio.Task[Any]] = set()
        self._files = PendingFiles()
        self._files.write(self.home / PID_FILE, f"{os.getpid()}\n".encode())

    async def run(self) -> None:
        """Serve until the process receives SIGTERM or SIGINT."""
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stopping.set)
        self.worker_pool = WorkerPool(
            self._public,
            self.home,
            model=self.model,
            name=self.name,
            number=self._workers,
            on_death=lambda summary: self._run_in_background(asyncio.to_thread(self._alert_worker_death, summary)),
            on_ask=lambda worker, request: self._run_in_background(self._send_metrics(worker, request)),
            max_silence=self.platform.settings.worker_silence_seconds,
        )
        if self.state is not None:
            self._send_state(self.state)
        self.worker_pool.start()
        self._files.write(self.home / ADDRESS_FILE, f"{self.admin_address}\n".encode())
        admin = make_server(AdminApp(self))
        serving = asyncio.create_task(admin.serve([self._admin]))
        parts = [
            asyncio.create_task(keep_running(part))
            for part in (self._poll, self._report_to_database, self._probe_mlflow, self.worker_pool.watch)
        ]
        self.say(f"{self.model}: {self.address}, admin {self.admin_address}, {self._workers} workers")
        stopping = asyncio.create_task(self._stopping.wait())
        # An admin port or a keeper that ends before the stop signal has failed: exit, to be restarted as a whole.
        ended, _ = await asyncio.wait(
            [stopping, serving, *parts, *self.worker_pool.keepers], return_when=asyncio.FIRST_COMPLETED
        )
        self.say("Stopping …")
        for part in (stopping, *parts):
            part.cancel()
        await asyncio.gather(stopping, *parts, return_exceptions=True)
        await self.worker_pool.stop()
        self._public.close()
        admin.should_exit = True
        await serving
        for part in ended - {stopping}:
            part.result()

    def _run_in_background(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # Selecting versions

    async def _poll(self) -> None:
        """Settle the journal, and poll ledger and plan, once a second."""
        while True:
            self._wake.clear()
            await self._update_state()
            self._files.store()
            if self.journal.unstored:
                self.journal.store()
            self.audit_log.store_omitted()
            with suppress(TimeoutError):
                async with asyncio.timeout(SECONDS_BETWEEN_POLLS):
                    await self._wake.wait()

    def _wake_up(self) -> None:
        """Poll now; may be called in another thread, also after the server has stopped."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._wake.set)

    async def _update_state(self) -> None:
        """Settle the journal, then update the state from ledger and plan.

        In this order the ledger's newest decision is never one of this server's own rollbacks that is open still. Both
        wait for the database alone: MLflow must not delay a decision.
        """
        query = asyncio.create_task(self._settle_and_read())
        done, _ = await asyncio.wait([query], timeout=SECONDS_UNTIL_STALE)
        if not done:
            await self._set_problem(f"the database has not answered for {SECONDS_UNTIL_STALE:g} s")
        try:
            state = await query
        except (PlatformError, sa.exc.SQLAlchemyError) as error:
            if str(error) != self.problem:
                log.warning("%s", error)
            await self._set_problem(str(error))
            return
        if self.problem and state is None:
            await self._set_problem("")
        if state is not None:
            await self._follow(state)

    async def _settle_and_read(self) -> DesiredState | None:
        await self._settle_journal()
        return await asyncio.to_thread(self.version_selector.read_changes)

    async def _set_problem(self, problem: str) -> None:
        """Mark the state as possibly out of date; an empty text marks it as confirmed."""
        self.problem = problem
        async with self._swapping:
            if self.state is not None:
                self._serve(replace(self.state, stale=self._get_staleness()))

    def _get_staleness(self) -> str:
        return self.problem or ("" if self._mlflow_answers else "MLflow does not answer")

    async def _follow(self, state: DesiredState) -> None:
        """Serve a state that was read from the ledger, changed by the journal's open rollback if there is one."""
        self.problem = ""
        async with self._swapping:
            rollback = self.journal.open_entry()
            # A newer decision of the ledger overtakes the rollback.
            if rollback is not None and rollback.decision == state.decision:
                # The workers keep the target in memory, also if its files have got lost since.
                here = [*state.known, *(self.state.arms.values() if self.state else ())]
                target = next((served for served in here if served.version == rollback.to), None)
                if target is not None:
                    state = override_plan(
                        state, target, journal=rollback.id, reason=rollback.reason, actor=rollback.actor
                    )
            self._serve(replace(state, stale=self._get_staleness()))
            kept = [*state.arms.values(), *state.known]
        missing = self.version_selector.missing
        await asyncio.to_thread(version_cache.remove_unused_versions, self.home, kept, missing)

    def _serve(self, state: DesiredState) -> None:
        """Send a state to the workers, unless it is the same as the last one."""
        if self.state is not None and state.same_as(self.state):
            return
        state = replace(state, revision=self.state.revision + 1 if self.state else 1)
        before = self.state
        self._send_state(state)
        if before is None or before.plan != state.plan:
            plan = state.plan
            successor = f", version {plan.successor} {plan.share:.0%}" if plan.successor is not None else ""
            log.info("plan %s: %s, version %s%s (%s)", plan.sequence, plan.mode, plan.stable, successor, plan.reason)

    def _send_state(self, state: DesiredState) -> None:
        """Send a state to the workers and store it for the next start; a full disk delays only that."""
        self.state = state
        self.worker_pool.send_state(state.document)
        self._files.write(self.home / STATE_FILE, state.document.encode())

    # Rollback

    async def roll_back(self, to: int | None, *, reason: str, actor: str) -> dict[str, Any]:
        """Send all traffic of this host to an earlier champion at once; the ledger is written afterwards.

        Parameters
        ----------
        to : int or None
            The version; ``None`` is the previous champion.
        reason, actor : str

        Returns
        -------
        dict
            The versions before and after, the journal's entry, ``stored``: False if the journal's entry is only in
            memory, and ``swapped``: True if all workers confirmed.

        Raises
        ------
        ConfigurationError
            The reason is blank or unprintable.
        EvidenceError
            This host has no earlier champion, or not the requested one.
        ConflictError
            The version gets all traffic already.
        """
        began = time.monotonic()
        require_reason(reason)
        async with self._swapping:
            state = self.state
            if state is None:
                raise EvidenceError(
                    f"This host serves no version of {self.model!r} yet: there is nothing to roll back."
                )
            back = version_selection.find_rollback_target(state, to)
            if state.plan.successor is None and state.plan.stable == back.target.version:
                raise ConflictError(f"Version {back.target.version} of {self.model!r} gets all traffic already.")
            entry = Rollback(
                id=secrets.token_hex(8),
                to=back.target.version,
                leaves=back.leaves,
                decision=state.decision,
                reason=reason,
                actor=actor,
                at=now().isoformat(),
            )
            self.journal.append(entry)
            self._serve(override_plan(state, back.target, journal=entry.id, reason=reason, actor=actor))
            revision = self.state.revision if self.state else 0
        confirmed = await self.worker_pool.wait_for_revision(revision, SECONDS_FOR_A_SWAP)
        answering = sorted({worker.state["stable"] for worker in self.worker_pool.workers.values()} - {None})
        # The ledger is written by the next poll: the rollback waits neither for the database nor for MLflow.
        self._wake.set()
        return {
            "journal": entry.id,
            "stored": not self.journal.unstored,
            "model": self.model,
            "version": entry.to,
            "instead_of": entry.leaves,
            "swapped": confirmed and answering == [entry.to],
            "answering": answering,
            "workers": len(self.worker_pool.workers),
            "seconds": round(time.monotonic() - began, 4),
        }

    async def _settle_journal(self) -> None:
        """Write an open rollback to the ledger and close it; it stays open while the ledger cannot be written."""
        entry = self.journal.open_entry()
        if entry is None:
            return
        try:
            outcome, decision = await asyncio.to_thread(self._write_to_ledger, entry)
        except (MissingFilesError, DatabaseUnavailableError, StorageError, sa.exc.SQLAlchemyError) as error:
            if str(error) != self._unsettled:
                log.warning("rollback %s is not in the ledger yet and will be retried: %s", entry.id, error)
            self._unsettled = str(error)
            return
        async with self._swapping:
            self.journal.close(entry, outcome, decision)
            # A rollback that is requested before the next reading leaves the champion that this one made.
            self.state = self.state and replace(self.state, decision=decision)
        log.info("rollback %s to version %s: %s", entry.id, entry.to, outcome)
        self._unsettled = ""
        self.version_selector.reset_mark()

    def _write_to_ledger(self, entry: Rollback) -> tuple[str, int]:
        """Write a rollback to the ledger; return its outcome, and the sequence of the decision that it leaves in force.

        MLflow is not asked: this host has verified the target's bytes, and the registry's sensor moves the alias.
        """
        version_selection.require_database(self.platform)
        champion = self.platform.database.champion(self.model)
        if champion is None:
            raise DatabaseUnavailableError(f"The ledger of {self.model!r} is empty; it had entries before.")
        if champion.version == entry.to:
            return f"recorded in the ledger as entry {champion.sequence}", champion.sequence
        if champion.sequence != entry.decision:
            return f"overtaken: entry {champion.sequence} made version {champion.version} champion", entry.decision

        def refuse(_: str) -> Any:
            raise EvidenceError(f"Version {entry.to} of {self.model!r} was never champion.")

        try:
            written = roll_back(
                self.platform,
                self.model,
                to=entry.to,
                reason=entry.reason,
                actor=entry.actor,
                instead_of=entry.decision,
                show=False,
                require_bytes=lambda _: self.version_selector.store_copy(entry.to),
                load_spec=refuse,
            )
        except MissingFilesError:
            raise
        except (ConflictError, EvidenceError, LedgerError, ModelError) as error:
            written = self.platform.database.champion(self.model) or champion
            if written.version != entry.to:  # otherwise the command that asked for the rollback wrote it meanwhile
                return f"refused: {error}", entry.decision
        return f"recorded in the ledger as entry {written.sequence}", written.sequence

    # Reporting

    @property
    def facts(self) -> dict[str, Any]:
        """The versions that this host serves and the reasons of its problems, for the admin port and the database."""
        reports = [worker.state for worker in self.worker_pool.workers.values()]
        state = self.state
        first = reports[0] if reports else {}
        refused = {version: reason for report in reports for version, reason in report["refused"].items()}
        missing = {str(version): reason for version, reason in state.problems.items()} if state else {}
        return {
            "plan": min((report["plan"] for report in reports), default=0),
            "revision": min((report["revision"] for report in reports), default=0),
            "stable": first.get("stable"),
            "successor": first.get("successor"),
            "versions": first.get("loaded", {}),
            "ways": first.get("ways", {}),
            "refused": {**missing, **refused},
            "workers": len(reports),
            "stale": bool(state and state.stale),
            "why_stale": state.stale if state else self.problem,
            "override": state.override if state else "",
            "address": self.address,
        }

    async def _report_to_database(self) -> None:
        """Write heartbeats and traffic counters to the database.

        Counters are totals since the start, so the next write makes up for those that fail.
        """
        beat_at, reported = 0.0, dict[str, Any]()
        while True:
            await asyncio.sleep(SECONDS_BETWEEN_COUNTS)
            facts = self.facts
            beat_due = time.monotonic() >= beat_at or facts != reported
            try:
                await asyncio.to_thread(self._write_report, facts if beat_due else None, self.worker_pool.counts)
            except (PlatformError, sa.exc.SQLAlchemyError) as error:
                log.debug("could not report to the database: %s", error)
                continue
            if beat_due:
                beat_at, reported = time.monotonic() + SECONDS_BETWEEN_BEATS, facts

    def _write_report(self, facts: dict[str, Any] | None, counts: Counts) -> None:
        version_selection.require_database(self.platform)
        database = self.platform.database
        if facts is not None:
            address, number = self.admin_address, next(self._beats)
            database.beat(
                ServerHeartbeat(model=self.model, server=self.name, admin_address=address, says=facts, number=number)
            )
        for plan in sorted(plan for plan in counts.arms if plan > 0)[-2:]:
            for stats in counts.traffic_stats(self.model, self.name, plan):
                database.count_traffic(stats)

    async def metrics(self) -> bytes:
        """Return the metrics of all processes of this host."""
        counts = await self.worker_pool.request_counts()
        facts = self.facts
        return prometheus.exposition(
            ServerFacts(
                model=self.model,
                counts=counts,
                loaded={int(version): digest for version, digest in facts["versions"].items()},
                refused={int(version): why for version, why in facts["refused"].items()},
                plan=facts["plan"],
                workers=facts["workers"],
                restarts=self.worker_pool.restarts,
                killed=self.worker_pool.killed,
                stale=facts["stale"],
            )
        )

    async def _send_metrics(self, worker: WorkerHandle, request: int) -> None:
        text = await self.metrics()
        worker.channel.send({"metrics": text.decode(), "asked": request})

    def _alert_worker_death(self, summary: str) -> None:
        alert = Alert(name="ServingWorkerDied", summary=summary, labels={"model": self.model, "server": self.address})
        write_log([alert])
        try:
            send([alert], self.platform.settings.alertmanager)
        except AlertError as error:
            log.warning("%s", error)

    async def _probe_mlflow(self) -> None:
        """Check MLflow at intervals; without it, files of a new version may be unavailable, so the state is stale."""
        while True:
            answers = await asyncio.to_thread(mlflow_responds, self.platform.settings.tracking_uri)
            if answers != self._mlflow_answers:
                self._mlflow_answers = answers
                log.log(
                    logging.INFO if answers else logging.WARNING,
                    "MLflow %s",
                    "answers again" if answers else "does not answer",
                )
                await self._set_problem(self.problem)
            await asyncio.sleep(SECONDS_BETWEEN_PROBES)


async def keep_running(part: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a background part, and start it again after an error: none of them may end the server."""
    while True:
        try:
            await part()
        except Exception:  # the boundary of a part: its error is logged, and the server goes on
            log.exception("%s failed and is started again", part.__name__)
        await asyncio.sleep(SECONDS_BETWEEN_POLLS)


def read_last_state(home: Path) -> DesiredState | None:
    """Return the last stored state; ``None`` if there is none or it is invalid. Invalid files are set aside."""
    try:
        set_invalid_lines_aside(home / JOURNAL_FILE)
    except StorageError as error:
        log.warning("%s Its invalid lines are ignored.", error)
    try:
        return read_state(home)
    except StorageError as error:
        log.warning("%s The server starts without it.", error)
        with suppress(OSError):
            (home / STATE_FILE).replace(home / f"{STATE_FILE}.invalid")
        return None


def _bind(option: str, host: str, port: int) -> socket.socket:
    try:
        return bound(host, port)
    except OSError as error:
        raise PortInUseError(
            f"Port {port} on {host} cannot be used: {error.strerror}. Stop the process that listens there, or choose "
            f"another port: ml-platform serve MODEL {option} NUMBER."
        ) from error


def _format_address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(platform: Platform, model: str, **options: Any) -> None:
    """Run a server until it receives a stop signal; the options are those of `Supervisor`.

    Raises
    ------
    PortInUseError, ConfigurationError, SecondServerError
        As `Supervisor`.
    """
    import uvloop

    for name, value in AS_SERVED.items():
        os.environ.setdefault(name, value)

    async def run() -> None:
        await Supervisor(platform, model, **options).run()

    uvloop.run(run())
