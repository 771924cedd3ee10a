"""Any order of arrivals, candidates, promotions, crashes, tampering and rollbacks keeps the promises.

The registry is MLflow on SQLite, the bytes of a version are those of its name, and a crash is an error that nobody
catches, from one call on until the process is gone.
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
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from mlflow import MlflowClient
from pydantic import SecretStr

from ml_platform import records, workflows
from ml_platform.database import Database
from ml_platform.errors import PlatformError
from ml_platform.predictor import MODEL_FILE
from ml_platform.records import Findings, LedgerEntry, Registration, sha256_text
from ml_platform.stages import gates, promotion
from ml_platform.stages.ledger import HeadsLog
from ml_platform.stages.registry import Registry
from ml_platform.workflows import Platform, evidence
from ml_platform_tests import fakes
from ml_platform_tests.guards import guards_of, switched_off

SPEC = fakes.visits_spec()
CLOCK = "now"
CALLS: list[tuple[type, str]] = [
    (Registry, "fetch"),
    (Database, "append_to_ledger"),
    (MlflowClient, "set_registered_model_alias"),
    (HeadsLog, "append"),
    (MlflowClient, "set_registered_model_tag"),
]


class Killed(BaseException):
    """The process is gone: nobody catches this, and nothing that follows in the process happens."""


class Life(RuleBasedStateMachine):
    """One model's life, by anybody, in any order."""

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
        setattr(promotion, CLOCK, self._now)
        for _ in range(2):
            self.train(0.9, "new")
            self._promote(self.platform, self.versions[-1])
            self.there_is_one_champion_and_it_is_never_unset()
        assert [entry.version for entry in self.platform.database.history("visits")] == [1, 2]
        self.train(0.9, "new")

    def teardown(self) -> None:
        setattr(promotion, CLOCK, records.now)
        self.platform.database.close()
        shutil.rmtree(self.folder)

    def _now(self) -> datetime:
        return records.now() + self.offset

    # What happens

    @rule(again=st.booleans())
    def arrive(self, again: bool) -> None:
        """A file comes, or the last one once more under another name."""
        if not again or not self.files:
            self.files += 1
            self.rows += 5
        name = f"{self.files}-{len(list((self.folder / 'landing' / 'visits').iterdir()))}.parquet"
        fakes.drop(self.platform, name, fakes.visits(5, first=self.files * 10))
        keys = [arrival.key for arrival in workflows.waiting_arrivals(self.platform, "visits")]
        workflows.keep_raw_batches(self.platform, "visits", keys)
        workflows.publish_batches(self.platform, SPEC, keys)

    @rule(auc=st.sampled_from([0.9, 0.9, 0.9, 0.5, 79.0, float("nan"), None]), of=st.sampled_from(["new", "old"]))
    def train(self, auc: float | None, of: str) -> None:
        """A candidate is judged, whatever comes of it, registered and staged as if nobody had looked."""
        digest = sha256_text(f"rows {len(self.versions) if of == 'new' else 0}")
        lineage = replace(fakes.candidate().lineage, dataset_digest=digest)
        version = fakes.staged_version(self.platform, lineage=lineage)
        candidate = self.platform.database.candidate(version.candidate)
        verdict = gates.judge(candidate, self._findings(auc), SPEC)
        self.platform.database.record_verdict(verdict)
        self.versions.append(version)
        if not verdict.passed:
            self.bad.add(version.version)

    def _findings(self, auc: float | None) -> Findings:
        champion = self.platform.database.champion("visits")
        found = fakes.findings(SPEC, auc_roc=auc)
        if champion is None:
            return found
        number = champion.version
        theirs = {"version": number, "model_digest": champion.candidate, "name": f"version {number}"}
        return replace(found, champion=number, rival=fakes.beaten(SPEC, kind="champion", **theirs))

    @rule()
    def retrain(self) -> None:
        """A good candidate comes and is promoted, as in a week without trouble."""
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
        """Two processes, as far as databases and locks can tell."""
        both = [(Platform(self.platform.settings), self._any(data)) for _ in range(2)]
        threads = [threading.Thread(target=self._promote, args=each) for each in both]
        for thread in threads:
            thread.start()
        for (other, _), thread in zip(both, threads, strict=True):
            thread.join()
            other.database.close()

    @rule(data=st.data(), call=st.sampled_from(CALLS), after=st.booleans(), back=st.booleans())
    def crash(self, data: st.DataObject, call: tuple[type, str], after: bool, back: bool) -> None:
        """A promotion or a rollback dies at a call; somebody else starts with what is on the disk."""
        with dying(*call, after=after), suppress(Killed):
            if back:
                self._roll_back(self.platform, None)
            else:
                self._promote(self.platform, self._any(data))
        self.platform.database.close()
        self.platform = Platform(self.platform.settings)

    @rule(data=st.data(), kept=st.booleans())
    def tamper(self, data: st.DataObject, kept: bool) -> None:
        """A version's bytes change in the registry, or those that are kept on the host."""
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
        """MLflow does not answer: nothing is promoted; a rollback needs it only for bytes that are gone here."""
        down = self.platform.settings.model_copy(update={"mlflow_tracking_uri": SecretStr("http://127.0.0.1:9")})
        alone = Platform(down)
        before = self.platform.database.champion("visits")
        if back:
            self._roll_back(alone, None)
        else:
            self._promote(alone, self._any(data))
            assert self.platform.database.champion("visits") == before
        alone.database.close()

    @rule(hours=st.sampled_from([-30, 0, 30]))
    def set_clock(self, hours: int) -> None:
        self.offset = timedelta(hours=hours)

    @rule(data=st.data(), named=st.booleans())
    def roll_back(self, data: st.DataObject, named: bool) -> None:
        self._roll_back(self.platform, self._any(data).version if named and self.versions else None)

    @rule()
    def roll_back_and_promote_again(self) -> None:
        """The champion goes, and a run that was slow, or is started again, promotes it once more."""
        champion = self.platform.database.champion("visits")
        assert champion is not None
        self._roll_back(self.platform, None)
        self._promote(self.platform, next(one for one in self.versions if one.version == champion.version))

    @rule()
    def reconcile(self) -> None:
        """After a reconciliation the alias says what the ledger says, unless MLflow lost that version."""
        champion = self.platform.database.champion("visits")
        if champion is not None and champion.version in self.deleted:
            return
        workflows.show_champion(self.platform, "visits")
        shown = self.platform.registry.alias("visits", "champion")
        assert shown == (champion.version if champion else None)

    def _any(self, data: st.DataObject) -> Registration:
        """Return the newest version as often as all others together."""
        return data.draw(st.one_of(st.just(self.versions[-1]), st.sampled_from(self.versions)))

    def _promote(self, platform: Platform, version: Registration) -> None:
        candidate = platform.database.candidate(version.candidate)
        with suppress(PlatformError):
            workflows.promote_version(platform, SPEC, candidate, reason="schedule", actor="test")

    def _roll_back(self, platform: Platform, to: int | None) -> None:
        with suppress(PlatformError):
            workflows.roll_back(platform, "visits", lambda: SPEC, to=to, reason="it is worse", actor="ada")

    # What holds

    @invariant()
    def there_is_one_champion_and_it_is_never_unset(self) -> None:
        now = self.platform.database.champion("visits")
        assert self.champion is None or now is not None
        new = self.platform.database.history("visits")[-1:]
        assert new == ([now] if now else [])
        if now != self.champion and now is not None:
            self._is_new(now)
        self.champion = now

    def _is_new(self, champion: LedgerEntry) -> None:
        """Whoever becomes champion has evidence for its bytes, and was not rolled back, or a person brought it back."""
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
            assert champion.version not in promotion.standing(earlier)[1]

    @invariant()
    def the_ledger_verifies_and_is_linear(self) -> None:
        assert workflows.verify_ledger(self.platform, "visits").problems == ()
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
            assert workflows.pin_dataset(self.platform, SPEC).dataset.rows == self.rows


@contextmanager
def dying(owner: type, name: str, *, after: bool) -> Iterator[None]:
    """Let the process die before or behind its next call of one function, and at every later one of them."""
    called = getattr(owner, name)
    whole = {each: getattr(*each) for each in CALLS}

    def gone(*_: Any, **__: Any) -> None:
        raise Killed

    def last(*arguments: Any, **options: Any) -> None:
        if after:
            called(*arguments, **options)
        for each in CALLS:
            setattr(*each, gone)
        raise Killed

    setattr(owner, name, last)
    try:
        yield
    finally:
        for each, function in whole.items():
            setattr(*each, function)


def live(
    empty_mlflow: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    examples: int,
    steps: int,
    same: bool,
    phases: tuple[Phase, ...] = tuple(Phase),
) -> None:
    # A server that is down is asked once.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    Life.empty_mlflow = empty_mlflow
    asked = settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=same,
        phases=phases,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Life, settings=asked)


def test_any_order_of_events_keeps_the_promises(empty_mlflow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live(empty_mlflow, monkeypatch, examples=10, steps=12, same=True)


@pytest.mark.soak
@pytest.mark.timeout(7_200)
def test_many_orders_of_many_events_keep_the_promises(empty_mlflow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live(empty_mlflow, monkeypatch, examples=150, steps=40, same=False)


@pytest.mark.parametrize(
    ("function", "guard"), [(promotion.promote, "_require_not_rolled_back"), (evidence, "refusals")]
)
def test_a_promise_that_nobody_keeps_is_noticed(
    empty_mlflow: Path, monkeypatch: pytest.MonkeyPatch, function: Any, guard: str
) -> None:
    (found,) = [one for one in guards_of(function) if one.source == guard]

    # What is found is not made smaller: that it is found is enough.
    with switched_off(found), pytest.raises(AssertionError):
        live(empty_mlflow, monkeypatch, examples=10, steps=12, same=True, phases=(Phase.generate,))
