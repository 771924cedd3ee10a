"""The process that stands above a host's workers: it decides what they serve, and nothing passes through it.

It binds the public socket, follows ledger and plan, keeps the files of the versions, restarts workers, answers on the
admin port, and tells the database what this host serves and counts. It holds no model: it starts in a second, and the
workers answer on when the database is gone.
"""

import asyncio
import logging
import os
import secrets
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa

from ml_platform import durable
from ml_platform.admin import ADDRESS_FILE
from ml_platform.errors import (
    AlertError,
    ConflictError,
    DatabaseUnavailableError,
    EvidenceError,
    LedgerError,
    ModelError,
    PlatformError,
    PortInUseError,
    RegistryError,
    StorageError,
)
from ml_platform.fresh import AS_SERVED
from ml_platform.monitoring.alerts import Alert, send, write_log
from ml_platform.records import now
from ml_platform.serving import copies, deciding, metrics
from ml_platform.serving.admin import AdminApp
from ml_platform.serving.deciding import Decisions
from ml_platform.serving.journal import Calls, Journal, Rollback
from ml_platform.serving.metrics import ServerFacts
from ml_platform.serving.protocol import bound, server_of
from ml_platform.serving.state import DesiredState, overridden, read_state, write_state
from ml_platform.serving.tokens import Tokens, local_tokens, read_tokens
from ml_platform.serving.workforce import Hand, Workforce
from ml_platform.traffic import ServerBeat
from ml_platform.workflows import Platform, roll_back
from ml_platform.workflows.promotion import require_reason

log = logging.getLogger("ml_platform.serving")

HOST = "127.0.0.1"
SECONDS_BETWEEN_LOOKS = 1.0
# A database that has not answered for so long leaves what is served unconfirmed.
SECONDS_UNTIL_STALE = 5.0
SECONDS_BETWEEN_BEATS = 5.0
SECONDS_BETWEEN_COUNTS = 2.0
SECONDS_BETWEEN_PROBES = 5.0
# What could not be had is looked for again, and again less often.
LONGEST_WAIT = 30.0
# Less than a caller waits for an answer, see ml_platform/admin.py.
SECONDS_FOR_A_SWAP = 4.0
UNCONFIRMED = "it has not been held against the ledger since the server started"


class Supervisor:
    """The server of one model on one host.

    Parameters
    ----------
    platform : Platform
    model : str
    host : str
        Address of both ports; loopback unless a proxy stands before it.
    port, admin_port : int
        0 takes a free one.
    workers : int
    say : callable
        Called with each sentence for the person at the terminal.

    Raises
    ------
    PortInUseError
        A port is taken; nothing was started.
    ConfigurationError
        The admin tokens cannot be used.
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
        durable.make_folder(self.home)
        self._public, self._admin = _bound("--port", host, port), _bound("--admin-port", host, admin_port)
        self.address, self.admin_address = _address(self._public), _address(self._admin)
        # Of its own at every start: what it counts begins at zero, and must not replace what was counted before.
        self.name = f"{socket.gethostname()[:60]}-{self._public.getsockname()[1]}-{secrets.token_hex(4)}"
        self.decisions = Decisions(platform, model, self.home)
        self.journal, self.calls = Journal(self.home), Calls(self.home)
        self.tokens = _tokens(platform, self.home)
        self.state = _unconfirmed(read_state(self.home))
        self.decisions.seen = self.state.ledger_head if self.state else None
        self.problem = ""
        self._workers = workers
        self._swapping = asyncio.Lock()
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._answered_at = time.monotonic()
        self._mlflow_answers = True
        self._settling = False
        self._background: set[asyncio.Task[Any]] = set()

    async def run(self) -> None:
        """Serve until a signal says to stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        self.workforce = Workforce(
            self._public,
            self.home,
            model=self.model,
            name=self.name,
            number=self._workers,
            on_death=self._worker_died,
            on_ask=lambda hand, number: self._later(self._tell_metrics(hand, number)),
        )
        if self.state is not None:
            write_state(self.home, self.state)
        self.workforce.start()
        durable.write(self.home / ADDRESS_FILE, f"{self.admin_address}\n".encode())
        admin = server_of(AdminApp(self))
        serving = asyncio.create_task(admin.serve([self._admin]))
        parts = [asyncio.create_task(part) for part in (self._follow(), self._tell_database(), self._probe_mlflow())]
        self.say(f"{self.model}: {self.address}, admin {self.admin_address}, {self._workers} workers")
        stopping = asyncio.create_task(self._stopping.wait())
        # A part that ends before it is told to has failed: better a server that is started again than half of one.
        ended, _ = await asyncio.wait(
            [stopping, serving, *parts, *self.workforce.keepers], return_when=asyncio.FIRST_COMPLETED
        )
        self.say("Stopping …")
        for part in (stopping, *parts):
            part.cancel()
        await asyncio.gather(stopping, *parts, return_exceptions=True)
        await self.workforce.stop()
        self._public.close()
        admin.should_exit = True
        await serving
        for part in ended - {stopping}:
            part.result()

    def _later(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # What is to be served

    async def _follow(self) -> None:
        """Follow ledger and plan: a look a second, fewer where the last one found what cannot be served."""
        pause, look_at = SECONDS_BETWEEN_LOOKS, 0.0
        while True:
            if time.monotonic() >= look_at or self._wake.is_set():
                self._wake.clear()
                fine = await self._look()
                pause = SECONDS_BETWEEN_LOOKS if fine else min(2 * pause, LONGEST_WAIT)
                look_at = time.monotonic() + pause
            self._later(self._settle_journal())
            with suppress(TimeoutError):
                async with asyncio.timeout(SECONDS_BETWEEN_LOOKS):
                    await self._wake.wait()

    async def _look(self) -> bool:
        """Look once; return whether what was found can be served."""
        looking = asyncio.create_task(asyncio.to_thread(self.decisions.look))
        done, _ = await asyncio.wait([looking], timeout=SECONDS_UNTIL_STALE)
        if not done:
            await self._mark(f"the database has not answered for {SECONDS_UNTIL_STALE:g} s")
        try:
            decided = await looking
        except (PlatformError, sa.exc.SQLAlchemyError) as error:
            await self._cannot(error)
            return isinstance(error, DatabaseUnavailableError)
        if self.problem and decided is None:
            await self._mark("")
        if decided is not None:
            await self._obey(decided)
        self._answered_at = time.monotonic()
        return not (self.state and self.state.problems)

    async def _cannot(self, error: Exception) -> None:
        if str(error) != self.problem:
            log.warning("%s", error)
        await self._mark(str(error))

    async def _mark(self, problem: str) -> None:
        """Mark what is served as out of date, or as confirmed again."""
        self.problem = problem
        async with self._swapping:
            if self.state is not None:
                self._serve(replace(self.state, stale=self._staleness()))

    def _staleness(self) -> str:
        return self.problem or ("" if self._mlflow_answers else "MLflow does not answer")

    async def _obey(self, decided: DesiredState) -> None:
        self.problem = ""
        async with self._swapping:
            following = self.journal.open_entry()
            # While the ledger is being written it may have moved on because of that very rollback.
            if following is not None and (self._settling or following.decision == decided.decision):
                target = next((one for one in decided.known if one.version == following.to), None)
                if target is not None:
                    said = {"journal": following.id, "reason": following.reason, "actor": following.actor}
                    decided = overridden(decided, target, **said)
            self._serve(replace(decided, stale=self._staleness()))
            kept = [*decided.arms.values(), *decided.known]
        await asyncio.to_thread(copies.tidy, self.home, kept)

    def _serve(self, state: DesiredState) -> None:
        """Leave a state for the workers, if it asks for something else than the last one."""
        if self.state is not None and state.same_as(self.state):
            return
        state = replace(state, revision=self.state.revision + 1 if self.state else 1)
        write_state(self.home, state)
        before, self.state = self.state, state
        self.workforce.nudge()
        if before is None or before.plan != state.plan:
            plan = state.plan
            to = f", version {plan.successor} {plan.share:.0%}" if plan.successor is not None else ""
            log.info("plan %s: %s, version %s%s (%s)", plan.sequence, plan.mode, plan.stable, to, plan.reason)

    # Rollback

    async def roll_back(self, to: int | None, *, reason: str, actor: str) -> dict[str, Any]:
        """Let an earlier champion answer everything on this host, now; the ledger hears of it afterwards.

        Parameters
        ----------
        to : int or None
            The version; ``None`` is the champion before the present one.
        reason, actor : str

        Returns
        -------
        dict
            What was done, and whether every worker confirmed it.

        Raises
        ------
        ConfigurationError
            The reason says nothing.
        EvidenceError
            There is nothing to go back to here.
        ConflictError
            The version answers everything already.
        StorageError
            The disk does not take it: nothing was changed.
        """
        began = time.monotonic()
        require_reason(reason)
        async with self._swapping:
            entry = self._begin_rollback(to, reason, actor)
            revision = self.state.revision if self.state else 0
        confirmed = await self.workforce.obeyed(revision, SECONDS_FOR_A_SWAP)
        answering = sorted({hand.says["stable"] for hand in self.workforce.hands.values()} - {None})
        # The ledger is written in the background: neither it nor MLflow is waited for.
        self._wake.set()
        return {
            "journal": entry.id,
            "model": self.model,
            "version": entry.to,
            "instead_of": entry.leaves,
            "swapped": confirmed and answering == [entry.to],
            "answering": answering,
            "workers": len(self.workforce.hands),
            "seconds": round(time.monotonic() - began, 4),
        }

    def _begin_rollback(self, to: int | None, reason: str, actor: str) -> Rollback:
        state = self.state
        if state is None:
            raise EvidenceError(f"Nothing of {self.model!r} is served here yet: there is nothing to roll back.")
        back = deciding.way_back(state, to)
        if state.plan.successor is None and state.plan.stable == back.target.version:
            raise ConflictError(f"Version {back.target.version} of {self.model!r} answers everything already.")
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
        self._serve(overridden(state, back.target, journal=entry.id, reason=reason, actor=actor))
        return entry

    async def _settle_journal(self) -> None:
        """Write an open rollback into the ledger, or close it with what the ledger says of it."""
        entry = self.journal.open_entry()
        if entry is None or self._settling:
            return
        self._settling = True
        try:
            outcome, decision = await asyncio.to_thread(self._write_to_ledger, entry)
            self.journal.close(entry, outcome, decision)
            log.info("rollback %s to version %s: %s", entry.id, entry.to, outcome)
        except (RegistryError, DatabaseUnavailableError, StorageError, sa.exc.SQLAlchemyError) as error:
            log.warning("rollback %s stands on this host; the ledger follows: %s", entry.id, error)
        finally:
            self._settling = False
        self.decisions.forget_mark()
        self._wake.set()

    def _write_to_ledger(self, entry: Rollback) -> tuple[str, int]:
        """Return what becomes of a rollback, and the sequence of the decision that stands then."""
        deciding.require_database(self.platform)
        champion = self.platform.database.champion(self.model)
        if champion is None:
            raise DatabaseUnavailableError(f"The ledger of {self.model!r} is empty, and it was not.")
        if champion.version == entry.to:
            return f"the ledger has it: entry {champion.sequence}", champion.sequence
        if champion.sequence != entry.decision:
            what = f"overtaken: version {champion.version} is champion by entry {champion.sequence}"
            return what, champion.sequence

        def declared() -> Any:
            raise EvidenceError(f"Version {entry.to} of {self.model!r} was never champion.")

        try:
            written = roll_back(
                self.platform, self.model, declared, to=entry.to, reason=entry.reason, actor=entry.actor
            )
        except (ConflictError, EvidenceError, LedgerError, ModelError) as error:
            return f"refused: {error}", entry.decision
        return f"the ledger has it: entry {written.sequence}", written.sequence

    # What others are told

    @property
    def facts(self) -> dict[str, Any]:
        """What this host serves, as the admin port and the database are told."""
        says = [hand.says for hand in self.workforce.hands.values()]
        state = self.state
        first = says[0] if says else {}
        refused = {version: why for one in says for version, why in one["refused"].items()}
        missing = {str(version): why for version, why in state.problems.items()} if state else {}
        return {
            "plan": min((one["plan"] for one in says), default=0),
            "revision": min((one["revision"] for one in says), default=0),
            "stable": first.get("stable"),
            "successor": first.get("successor"),
            "versions": first.get("loaded", {}),
            "ways": first.get("ways", {}),
            "refused": {**missing, **refused},
            "workers": len(says),
            "stale": bool(state and state.stale),
            "why_stale": state.stale if state else self.problem,
            "override": state.override if state else "",
            "address": self.address,
        }

    async def _tell_database(self) -> None:
        """Beat and hand over figures while the database answers; nothing is lost where it does not."""
        beat_at, told = 0.0, dict[str, Any]()
        while True:
            await asyncio.sleep(SECONDS_BETWEEN_COUNTS)
            facts = self.facts
            beating = time.monotonic() >= beat_at or facts != told
            counts = self.workforce.counted
            plans = sorted(plan for plan in counts.arms if plan > 0)[-2:]
            figures = [one for plan in plans for one in counts.figures(self.model, self.name, plan)]
            try:
                await asyncio.to_thread(self._tell, facts if beating else None, figures)
            except (PlatformError, sa.exc.SQLAlchemyError) as error:
                log.debug("the database is not told: %s", error)
                continue
            if beating:
                beat_at, told = time.monotonic() + SECONDS_BETWEEN_BEATS, facts

    def _tell(self, facts: dict[str, Any] | None, figures: list[Any]) -> None:
        deciding.require_database(self.platform)
        database = self.platform.database
        if facts is not None:
            beat = ServerBeat(model=self.model, server=self.name, admin_address=self.admin_address, says=facts)
            database.beat(beat)
        for one in figures:
            database.count_traffic(one)

    async def metrics(self) -> bytes:
        """Return the metrics of all processes of this host."""
        counts = await self.workforce.counts()
        facts = self.facts
        return metrics.exposition(
            ServerFacts(
                model=self.model,
                counts=counts,
                loaded={int(version): digest for version, digest in facts["versions"].items()},
                refused={int(version): why for version, why in facts["refused"].items()},
                plan=facts["plan"],
                workers=facts["workers"],
                restarts=self.workforce.restarts,
                stale=facts["stale"],
            )
        )

    async def _tell_metrics(self, hand: Hand, number: int) -> None:
        text = await self.metrics()
        hand.channel.say({"metrics": text.decode(), "asked": number})

    def _worker_died(self, what: str) -> None:
        alert = Alert(name="ServingWorkerDied", summary=what, labels={"model": self.model, "server": self.address})
        write_log([alert])
        self._later(asyncio.to_thread(self._alert, alert))

    def _alert(self, alert: Alert) -> None:
        try:
            send([alert], self.platform.settings.alertmanager)
        except AlertError as error:
            log.warning("%s", error)

    async def _probe_mlflow(self) -> None:
        """Know whether MLflow answers: what is served may be out of date where evidence cannot be shown or fetched."""
        while True:
            answers = await asyncio.to_thread(_answers, self.platform.settings.tracking_uri)
            if answers != self._mlflow_answers:
                self._mlflow_answers = answers
                log.log(logging.INFO if answers else logging.WARNING, "MLflow %s", "answers" if answers else "is gone")
                await self._mark(self.problem)
            await asyncio.sleep(SECONDS_BETWEEN_PROBES)


def _unconfirmed(state: DesiredState | None) -> DesiredState | None:
    """Return a state that was left by an earlier process, marked until the ledger is heard."""
    return state and replace(state, revision=state.revision + 1, stale=UNCONFIRMED)


def _tokens(platform: Platform, home: Path) -> Tokens:
    named = platform.settings.admin_tokens_file
    return read_tokens(named) if named is not None else local_tokens(home)


def _bound(option: str, host: str, port: int) -> socket.socket:
    try:
        return bound(host, port)
    except OSError as error:
        raise PortInUseError(
            f"Port {port} on {host} cannot be used: {error.strerror}. Stop what listens there, or choose another: "
            f"ml-platform serve MODEL {option} NUMBER."
        ) from error


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _answers(tracking_uri: str) -> bool:
    """Whether MLflow's server answers, or its file is there; MLflow's own client takes seconds to import."""
    parts = urlsplit(tracking_uri)
    if parts.scheme not in {"http", "https"}:
        return Path(str(sa.make_url(tracking_uri).database)).is_file()
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    netloc = f"{host}:{parts.port}" if parts.port else str(host)
    try:
        with urllib.request.urlopen(f"{parts.scheme}://{netloc}{parts.path.rstrip('/')}/health", timeout=3):  # noqa: S310
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False


def serve(platform: Platform, model: str, **options: Any) -> None:
    """Run a server until it is told to stop; options are those of `Supervisor`.

    Raises
    ------
    PortInUseError, ConfigurationError
        As `Supervisor`.
    """
    import uvloop

    for name, value in AS_SERVED.items():
        os.environ.setdefault(name, value)

    async def run() -> None:
        await Supervisor(platform, model, **options).run()

    uvloop.run(run())
