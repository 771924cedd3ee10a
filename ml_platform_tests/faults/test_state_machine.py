"""Any order of arrivals, candidates, promotions, crashes, tampering and rollbacks keeps the promises.

The registry is MLflow on SQLite, and the bytes of a version are its name. A crash is an error that no code catches; it
is raised by one call and by every later one of the same process.
"""

import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.errors import FlakyFailure
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from mlflow import MlflowClient
from pydantic import SecretStr

from ml_platform.data.ingest import publish_batches, store_raw_batches
from ml_platform.data.landing import waiting_arrivals
from ml_platform.data.pin import pin_dataset
from ml_platform.database import PlatformDatabase
from ml_platform.errors import PlatformError
from ml_platform.evaluation import gates
from ml_platform.platform import Platform
from ml_platform.records import canonical
from ml_platform.records.canonical import sha256_text
from ml_platform.records.ledger import LedgerEntry, Registration
from ml_platform.records.verdict import Evaluation
from ml_platform.release import rollback
from ml_platform.release.ledger import champions
from ml_platform.release.ledger import decisions as ledger_decisions
from ml_platform.release.ledger.follow import sync_alias, verify_ledger
from ml_platform.release.promote import promote_version
from ml_platform.storage.ledger_anchor import LedgerAnchor
from ml_platform.storage.mlflow_registry import Registry
from ml_platform.storage.model_files import MODEL_FILE
from ml_platform_tests.support import fakes
from ml_platform_tests.support.guard_markers import read_guards, switched_off

pytestmark = pytest.mark.servers

SPEC = fakes.visits_spec()
CLOCK = "now"
CALLS: list[tuple[type, str]] = [
    (Registry, "fetch"),
    (PlatformDatabase, "append_to_ledger"),
    (MlflowClient, "set_registered_model_alias"),
    (LedgerAnchor, "append"),
    (MlflowClient, "set_registered_model_tag"),
]


class Killed(BaseException):
    """The process is killed: no code catches this error, and nothing more happens in the process."""


class Life(RuleBasedStateMachine):
    """One model's lifecycle: any operation by any process, in any order."""

    empty_mlflow: Path

    @initialize()
    def open(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.platform = fakes.platform_in(self.folder)
        shutil.copy(self.empty_mlflow, self.folder / "mlflow.db")
        self.versions = list[Registration]()
        self.bad, self.spoilt, self.deleted = set[int](), set[int](), set[int]()
        self.files, self.rows = 0, 0
        self.champion: LedgerEntry | None = None
        self.offset = timedelta()
        setattr(ledger_decisions, CLOCK, self._now)
        for _ in range(2):
            self.train(0.9, "new")
            self._promote(self.platform, self.versions[-1])
            self.one_champion_is_never_unset()
        assert [entry.version for entry in self.platform.database.history("visits")] == [1, 2]
        self.train(0.9, "new")

    def teardown(self) -> None:
        setattr(ledger_decisions, CLOCK, canonical.now)
        self.platform.database.close()
        shutil.rmtree(self.folder)

    def _now(self) -> datetime:
        return canonical.now() + self.offset

    # Operations

    @rule(again=st.booleans())
    def arrive(self, again: bool) -> None:
        """A file arrives, or the last one again under another name."""
        if not again or not self.files:
            self.files += 1
            self.rows += 5
        name = f"{self.files}-{len(list((self.folder / 'landing' / 'visits').iterdir()))}.parquet"
        fakes.drop(self.platform, name, fakes.visits(5, first=self.files * 10))
        keys = [arrival.key for arrival in waiting_arrivals(self.platform, "visits")]
        store_raw_batches(self.platform, "visits", keys)
        publish_batches(self.platform, SPEC, keys)

    @rule(auc=st.sampled_from([0.9, 0.9, 0.9, 0.5, 79.0, float("nan"), None]), of=st.sampled_from(["new", "old"]))
    def train(self, auc: float | None, of: str) -> None:
        """A candidate is judged, and then registered and staged even if its verdict fails."""
        digest = sha256_text(f"rows {len(self.versions) if of == 'new' else 0}")
        lineage = replace(fakes.candidate().lineage, dataset_digest=digest)
        version = fakes.staged_version(self.platform, lineage=lineage)
        candidate = self.platform.database.candidate(version.candidate)
        verdict = gates.judge(candidate, self._evaluation(auc), SPEC)
        fakes.store_verdict(self.platform, verdict)
        self.versions.append(version)
        if not verdict.passed:
            self.bad.add(version.version)

    def _evaluation(self, auc: float | None) -> Evaluation:
        champion = self.platform.database.champion("visits")
        evaluation = fakes.evaluation(SPEC, auc_roc=auc)
        if champion is None:
            return evaluation
        number = champion.version
        reference = {"version": number, "model_digest": champion.candidate, "name": f"version {number}"}
        return replace(evaluation, champion=number, reference=fakes.beaten(SPEC, kind="champion", **reference))

    @rule()
    def retrain(self) -> None:
        """A good candidate is trained and promoted."""
        self.train(0.9, "new")
        self._promote(self.platform, self.versions[-1])

    @rule(data=st.data(), tampered=st.booleans())
    def promote(self, data: st.DataObject, tampered: bool) -> None:
        version = self._any(data)
        if tampered:
            self._tamper(version, kept=False)
        self._promote(self.platform, version)

    @rule(data=st.data())
    def promote_two_at_once(self, data: st.DataObject) -> None:
        """Two platforms promote at once, as two processes for the database and its locks."""
        both = [(Platform(self.platform.settings), self._any(data)) for _ in range(2)]
        threads = [threading.Thread(target=self._promote, args=each) for each in both]
        for thread in threads:
            thread.start()
        for (other, _), thread in zip(both, threads, strict=True):
            thread.join()
            other.database.close()

    @rule(data=st.data(), call=st.sampled_from(CALLS), after=st.booleans(), back=st.booleans())
    def crash(self, data: st.DataObject, call: tuple[type, str], after: bool, back: bool) -> None:
        """A promotion or rollback is killed at a call; a new process continues from the stored state."""
        with killed_at_call(*call, after=after), suppress(Killed):
            if back:
                self._roll_back(self.platform, None)
            else:
                self._promote(self.platform, self._any(data))
        self.platform.database.close()
        self.platform = Platform(self.platform.settings)

    @rule(data=st.data(), kept=st.booleans())
    def tamper(self, data: st.DataObject, kept: bool) -> None:
        """A version's bytes change in the registry or on the host."""
        self._tamper(self._any(data), kept=kept)

    def _tamper(self, version: Registration, *, kept: bool) -> None:
        folder = self.platform.settings.artifacts / version.candidate
        if kept:
            folder = self.platform.candidate_folder(self.platform.database.candidate(version.candidate))
        else:
            self.spoilt.add(version.version)
        (folder / MODEL_FILE).write_text("other bytes")

    @rule(data=st.data())
    def delete_version(self, data: st.DataObject) -> None:
        version = self._any(data).version
        if version not in self.deleted:
            client = MlflowClient(self.platform.settings.tracking_uri, self.platform.settings.tracking_uri)
            client.delete_model_version("visits", str(version))
            self.deleted.add(version)

    @rule(data=st.data(), back=st.booleans())
    def lose_mlflow(self, data: st.DataObject, back: bool) -> None:
        """MLflow does not answer: nothing is promoted; a rollback needs it only for bytes that this host lost."""
        down = self.platform.settings.model_copy(update={"mlflow_tracking_uri": SecretStr("http://127.0.0.1:9")})
        offline = Platform(down)
        before = self.platform.database.champion("visits")
        if back:
            self._roll_back(offline, None)
        else:
            self._promote(offline, self._any(data))
            assert self.platform.database.champion("visits") == before
        offline.database.close()

    @rule(hours=st.sampled_from([-30, 0, 30]))
    def set_clock(self, hours: int) -> None:
        self.offset = timedelta(hours=hours)

    @rule(data=st.data(), named=st.booleans())
    def roll_back(self, data: st.DataObject, named: bool) -> None:
        self._roll_back(self.platform, self._any(data).version if named and self.versions else None)

    @rule()
    def roll_back_and_promote_again(self) -> None:
        """The champion is rolled back, and a late or repeated run tries to promote it again."""
        champion = self.platform.database.champion("visits")
        assert champion is not None
        self._roll_back(self.platform, None)
        self._promote(self.platform, next(one for one in self.versions if one.version == champion.version))

    @rule()
    def reconcile(self) -> None:
        """After a reconciliation, the alias follows the ledger, unless MLflow lost the champion."""
        champion = self.platform.database.champion("visits")
        if champion is not None and champion.version in self.deleted:
            return
        sync_alias(self.platform, "visits")
        shown = self.platform.registry.alias("visits", "champion")
        assert shown == (champion.version if champion else None)

    def _any(self, data: st.DataObject) -> Registration:
        """Draw a version: the newest one as often as all others together."""
        return data.draw(st.one_of(st.just(self.versions[-1]), st.sampled_from(self.versions)))

    def _promote(self, platform: Platform, version: Registration) -> None:
        candidate = platform.database.candidate(version.candidate)
        with suppress(PlatformError):
            promote_version(platform, SPEC, candidate, reason="schedule", actor="test")

    def _roll_back(self, platform: Platform, to: int | None) -> None:
        with suppress(PlatformError):
            rollback.roll_back(platform, "visits", load_spec=lambda _: SPEC, to=to, reason="it is worse", actor="ada")

    # Invariants

    @invariant()
    def one_champion_is_never_unset(self) -> None:
        now = self.platform.database.champion("visits")
        assert self.champion is None or now is not None
        new = self.platform.database.history("visits")[-1:]
        assert new == ([now] if now else [])
        if now != self.champion and now is not None:
            self._is_new(now)
        self.champion = now

    def _is_new(self, champion: LedgerEntry) -> None:
        """A new champion has evidence for its bytes, and was not rolled back unless a person restored it."""
        earlier = self.platform.database.history("visits")[:-1]
        reigned = {entry.version for entry in earlier}
        assert champion.version not in self.bad
        candidate = self.platform.database.candidate(champion.candidate)
        verdict = self.platform.database.verdict_on(candidate.id)
        assert verdict is not None
        assert verdict.digest == champion.verdict_digest
        assert gates.refusals(verdict, candidate, SPEC, candidate.model_digest) == []
        if champion.version not in reigned:
            assert champion.version not in self.spoilt | self.deleted
        if champion.action == "promotion":
            assert champion.version not in champions.champion_stack(earlier)[1]

    @invariant()
    def ledger_verifies_and_is_linear(self) -> None:
        assert verify_ledger(self.platform, "visits").problems == ()
        entries = self.platform.database.ledger("visits")
        assert [entry.sequence for entry in entries] == list(range(1, len(entries) + 1))
        decisions = self.platform.database.history("visits")
        assert [entry.previous_version for entry in decisions] == [None, *(e.version for e in decisions)][
            : len(decisions)
        ]

    @invariant()
    def every_file_is_published_once(self) -> None:
        outcomes = self.platform.database.arrival_outcomes("visits")
        assert sum(row["outcome"] == "published" for row in outcomes) == self.files
        assert all(row["outcome"] is not None for row in outcomes)
        if self.files:
            assert pin_dataset(self.platform, SPEC).dataset.rows == self.rows


@contextmanager
def killed_at_call(owner: type, name: str, *, after: bool) -> Iterator[None]:
    """Raise `Killed` before or after the next call of one function, and at every later call of `CALLS`."""
    original = getattr(owner, name)
    originals = {each: getattr(*each) for each in CALLS}

    def stay_dead(*_: Any, **__: Any) -> None:
        raise Killed

    def run_last_call(*arguments: Any, **options: Any) -> None:
        if after:
            original(*arguments, **options)
        for each in CALLS:
            setattr(*each, stay_dead)
        raise Killed

    setattr(owner, name, run_last_call)
    try:
        yield
    finally:
        for each, function in originals.items():
            setattr(*each, function)


def run_machine(
    empty_mlflow: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    examples: int,
    steps: int,
    same: bool,
    phases: tuple[Phase, ...] = tuple(Phase),
) -> None:
    # Send one request to a server that is down, without retries.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    Life.empty_mlflow = empty_mlflow
    options = settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=same,
        phases=phases,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Life, settings=options)


def test_any_order_of_events_keeps_promises(empty_mlflow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_machine(empty_mlflow, monkeypatch, examples=10, steps=12, same=True)


@pytest.mark.soak
@pytest.mark.timeout(7_200)
def test_many_orders_of_events_keep_promises(empty_mlflow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_machine(empty_mlflow, monkeypatch, examples=150, steps=40, same=False)


@pytest.mark.parametrize("guard", ["promotion-after-rollback", "refused-evidence"])
def test_broken_promise_is_noticed(empty_mlflow: Path, monkeypatch: pytest.MonkeyPatch, guard: str) -> None:
    guards, _ = read_guards()

    # Hypothesis need not shrink the example: one that fails is enough.
    with switched_off(guards[guard]), pytest.raises((AssertionError, FlakyFailure)) as noticed:
        run_machine(empty_mlflow, monkeypatch, examples=40, steps=12, same=True, phases=(Phase.generate,))
    # Two promotions at once race: Hypothesis may not see the same failure when it runs the example again.
    error = noticed.value
    assert not isinstance(error, ExceptionGroup) or error.subgroup(AssertionError)
