"""Known-bad candidates: each is a small real change to a platform with an honest champion, and the expected refusal.

The platform has version 1 as champion, and version 2, equally honest, staged and not yet promoted: its successor. A
mutant changes one thing; then one step of a model's life is attempted, which must fail with the expected message.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from math import inf, nan
from pathlib import Path
from typing import Any
from unittest.mock import patch

import sqlalchemy as sa
from mlflow import MlflowClient

from ml_platform.data.ingest import publish_batches, store_raw_batches
from ml_platform.data.landing import waiting_arrivals
from ml_platform.data.pin import pin_dataset
from ml_platform.database import tables
from ml_platform.errors import EvidenceError
from ml_platform.evaluation import gates
from ml_platform.evaluation.judge import Judgement, judge_candidate
from ml_platform.inference import golden_requests
from ml_platform.model_spec import Approval, Comparison, Gate, ModelSpec, Rollout
from ml_platform.orchestration import metadata
from ml_platform.platform import Platform
from ml_platform.records.canonical import canonical_json, now, sha256_text
from ml_platform.records.ledger import Action, LedgerEntry, Person, Registration, approval_audience
from ml_platform.records.traffic import ServerHeartbeat
from ml_platform.records.verdict import Candidate, Evaluation, GateOutcome, Measurement, Reference, Verdict
from ml_platform.release import authentication, github_token, integration_test, rollback
from ml_platform.release.ledger import decisions
from ml_platform.release.ledger.follow import promotion_lock, sync_alias
from ml_platform.release.promote import approve_version, promote_version
from ml_platform.release.register import register_candidate, stage_version
from ml_platform.release.rollout.traffic import plan_in_force
from ml_platform.storage.mlflow_registry import LEDGER_TAG, MLMODEL, MODEL_FOLDER
from ml_platform.storage.model_files import MODEL_FILE
from ml_platform.training.train import current_candidate, train_candidate
from ml_platform_tests.support import fakes
from ml_platform_tests.support.github_issuer import ENVIRONMENT, REPOSITORY, GithubIssuer

SPEC = fakes.visits_spec()
MANUAL = fakes.visits_spec(approval=Approval(authenticated_by=("os_user", "token"), expires_after_hours=24))
BOUND = fakes.visits_spec(gates=(Gate(metric="auc_roc", at_least=0.8, on="confidence_bound"),))
SLICED = fakes.visits_spec(slices=("plan",), gates=(Gate(metric="auc_roc", at_least=0.8, slices=("plan",)),))
TIMED = fakes.visits_spec(gates=(Gate(metric="inference_time_ms", at_most=100),))
CANARY = fakes.visits_spec(rollout=Rollout(kind="canary"))
GAIN = fakes.visits_spec(comparison=Comparison(min_gain=0.02))
BOB = Person(name="bob@desk", authenticated_by="os_user", identity={"uid": "7"})

Change = Callable[[Platform], object]
Attempt = Callable[[Platform, ModelSpec], object]
Measured = Callable[[Evaluation], Evaluation]


# The honest platform


def honest_home(folder: Path, mlflow: Path) -> Path:
    """Return the home of a platform with a champion and its staged successor; `mlflow` is an empty database of it."""
    platform = fakes.platform_in(folder)
    shutil.copy(mlflow, folder / "mlflow.db")
    for number in (1, 2):
        fakes.drop(platform, f"{number}.parquet", fakes.visits(600, first=number * 1_000, day=number, seed=number))
        candidate = judged(platform)
        register_candidate(platform, SPEC, candidate)
        stage_version(platform, candidate)
        if number == 1:
            promote(platform, SPEC)
    platform.database.close()
    return folder


def judged(platform: Platform) -> Candidate:
    keys = [arrival.key for arrival in waiting_arrivals(platform, "visits")]
    store_raw_batches(platform, "visits", keys)
    publish_batches(platform, SPEC, keys)
    pin_dataset(platform, SPEC)
    candidate = train_candidate(platform, SPEC, reason="schedule", actor="ada@desk")
    judge_candidate(platform, SPEC, candidate)
    return platform.database.candidate(candidate.id)


def successor(platform: Platform) -> Candidate:
    """Return the newest candidate."""
    return current_candidate(platform, "visits")


def champion(platform: Platform) -> LedgerEntry:
    found = platform.database.champion("visits")
    assert found is not None
    return found


def verdict_on(platform: Platform) -> Verdict:
    found = platform.database.verdict_on(successor(platform).id)
    assert found is not None
    return found


def nothing(_: Platform) -> None:
    """Change nothing: the attempt is wrong, or the author's current declaration."""


# Attempts


def promote(platform: Platform, spec: ModelSpec) -> LedgerEntry:
    return promote_version(platform, spec, successor(platform), reason="schedule", actor="test")


def register(platform: Platform, spec: ModelSpec) -> object:
    return register_candidate(platform, spec, successor(platform))


def stage(platform: Platform, _: ModelSpec) -> None:
    problem = stage_version(platform, successor(platform))[1]
    if problem is not None:
        raise EvidenceError(f"the integration test failed: {problem}")


def serve(platform: Platform, _: ModelSpec, *, max_ms: float = 60_000) -> None:
    """Time the successor through the real server, as its integration test does for a gate on time."""
    candidate = successor(platform)
    folder = platform.candidate_folder(candidate)
    problem = integration_test.server_problem(registered_file(platform), candidate, folder, max_ms)
    if problem is not None:
        raise EvidenceError(f"the server's test failed: {problem}")


def stage_timed(platform: Platform, _: ModelSpec) -> None:
    problem = stage_version(platform, successor(platform), max_ms=1e-6)[1]
    if problem is not None:
        raise EvidenceError(f"the integration test failed: {problem}")


def judge(platform: Platform, spec: ModelSpec) -> object:
    return judge_candidate(platform, spec, successor(platform))


def train(platform: Platform, spec: ModelSpec) -> object:
    return train_candidate(platform, spec, reason="schedule")


def approve(
    platform: Platform,
    spec: ModelSpec,
    *,
    person: Person = BOB,
    reason: str = "fine",
    version: int = 2,
    looked_at: str | None = None,
) -> object:
    return approve_version(platform, spec, version, person, reason=reason, verdict_digest=looked_at)


def roll_back(
    platform: Platform,
    spec: ModelSpec,
    *,
    to: int | None = None,
    reason: str = "it is worse",
    instead_of: int | None = None,
) -> LedgerEntry:
    said: dict[str, Any] = {"reason": reason, "actor": "ada@desk", "instead_of": instead_of}
    return rollback.roll_back(platform, "visits", load_spec=lambda _: spec, to=to, **said)


def reconcile(platform: Platform, _: ModelSpec) -> None:
    sync_alias(platform, "visits")
    if platform.registry.alias("visits", "champion") == champion(platform).version:
        raise EvidenceError("the alias follows the ledger and no other writer")


def promote_again(platform: Platform, spec: ModelSpec) -> None:
    before = platform.database.ledger("visits")
    promote(platform, spec)
    if platform.database.ledger("visits") == before:
        raise EvidenceError("it is champion already: nothing was written")


def confirm_the_first(platform: Platform, _: ModelSpec) -> None:
    first, *_rest = platform.database.history("visits")
    if not decisions.confirm(platform.database, first):
        raise EvidenceError("what was overtaken is not confirmed")


def show_checks(platform: Platform, spec: ModelSpec) -> None:
    judgement = Judgement(
        verdict=verdict_on(platform),
        curves=None,
        page=Path("verdict.html"),
        mlflow_run_id="run",
        parity=fakes.parity(),
    )
    list(metadata.gate_checks(platform, spec, judgement))


def hold_token(platform: Platform, _: ModelSpec, *, token: str = "secret") -> object:  # noqa: S107 - of this test
    return authentication.token_holder("bob", token, tokens(platform))


def hold_no_token(*_: Any) -> None:
    authentication.token_holder("bob", "secret", None)


def hold_token_from_a_pipe(*_: Any) -> None:
    reading, writing = os.pipe()
    os.write(writing, BOBS_TOKEN.encode())
    os.close(writing)
    try:
        authentication.token_holder("bob", "secret", Path(f"/dev/fd/{reading}"))
    finally:
        os.close(reading)


def promote_beside_another(platform: Platform, spec: ModelSpec) -> None:
    other = Platform(platform.settings)
    with other.database.locked(promotion_lock("visits")):
        promote(platform, spec)


def ask_one_gate(_: Platform, spec: ModelSpec, *, value: float) -> None:
    """Judge one measurement without a verdict, which would store NaN as None."""
    result = gates.judge_gate(spec.gates[0], [Measurement(metric="auc_roc", value=value)], spec)
    if result.outcome is not GateOutcome.PASS:
        raise EvidenceError(result.why)


def write_a_verdict(platform: Platform, spec: ModelSpec, *, value: float) -> None:
    """Write a verdict on one measurement; canonical JSON cannot express NaN."""
    found = Evaluation(measurements=[Measurement(metric="auc_roc", value=value)], reference=None)
    verdict = gates.judge(successor(platform), found, spec)
    assert verdict.document
    if not verdict.passed:
        raise EvidenceError(verdict.results[0].why)


def approve_by_job(
    platform: Platform, _: ModelSpec, *, claims: dict[str, Any] | None = None, in_github: bool = True, **changes: str
) -> object:
    """Approve by a token that GitHub issued for a job, with some claims or settings changed."""
    with GithubIssuer("ES256").running() as issuer:
        names = {"github_environment": ENVIRONMENT, "github_repository": REPOSITORY, "github_reviewer": "carl"}
        settings = platform.settings.model_copy(update={"github_issuer": issuer.address, **names, **changes})
        token = issuer.issue(AUDIENCE, **(claims or {}))
        github_token.verify_token(token, issuer.keys, settings, AUDIENCE)
    variables = {"GITHUB_ACTIONS": "true", "GITHUB_ACTOR": "ada", "GITHUB_RUN_ID": "17"} if in_github else {}
    with patch.dict(os.environ, variables):
        return authentication.github_person(settings, AUDIENCE)


def approve_by_unknown_key(platform: Platform, _: ModelSpec) -> None:
    issuer = GithubIssuer("ES256")
    github_token.verify_token(issuer.issue(AUDIENCE), {"keys": []}, platform.settings, AUDIENCE)


def ask_for_no_object(*_: Any) -> None:
    github_token._read_object(b"[]", "GitHub's issuer")


def authenticate_without_verdict(platform: Platform, _: ModelSpec) -> None:
    authentication.authenticate(platform, "github_environment")


def append(platform: Platform, _: ModelSpec, *, behind: int = 0, **changes: Any) -> None:
    """Append a promotion by a process that read the ledger `behind` entries ago."""
    head = platform.database.ledger("visits")[-1 - behind]
    entry = replace(
        champion(platform),
        sequence=head.sequence + 1,
        previous_digest=head.digest,
        version=2,
        previous_version=1,
        candidate=successor(platform).id,
    )
    platform.database.append_to_ledger(replace(entry, **changes))


# Changes of measurements


def measured(edit: Measured, spec: ModelSpec = SPEC) -> Change:
    """Change the evaluation of the successor, and judge it again."""

    def change(platform: Platform) -> None:
        verdict = gates.judge(successor(platform), edit(verdict_on(platform).evaluation), spec)
        platform.database.record_verdict(verdict)

    return change


def measurement(metric: str = "auc_roc", **changes: Any) -> Measured:
    """Change one measurement on all rows of the holdout, or add it."""

    def edit(found: Evaluation) -> Evaluation:
        others = [f for f in found.measurements if (f.metric, f.slice) != (metric, "")]
        this = [f for f in found.measurements if (f.metric, f.slice) == (metric, "")]
        was = this[0] if this else Measurement(metric=metric, value=None)
        return replace(found, measurements=[*others, replace(was, **changes)])

    return edit


def sliced(**of_paid: Any) -> Measured:
    """Measure the two plans, of which the paid one is changed; None leaves it out."""
    parts = [Measurement(metric="auc_roc", value=0.9, rows=100, slice=f"plan = {plan}") for plan in ("free", "paid")]
    kept = [parts[0], replace(parts[1], **of_paid)] if of_paid else parts[:1]
    return lambda found: replace(found, measurements=[*found.measurements, *kept])


def without(metric: str) -> Measured:
    return lambda found: replace(found, measurements=[f for f in found.measurements if f.metric != metric])


def twice(found: Evaluation) -> Evaluation:
    auc = next(f for f in found.measurements if f.metric == "auc_roc")
    return replace(found, measurements=[*found.measurements, replace(auc, value=0.99)])


def reference(**changes: Any) -> Measured:
    def edit(found: Evaluation) -> Evaluation:
        assert found.reference is not None
        return replace(found, reference=replace(found.reference, **changes))

    return edit


def baseline(**changes: Any) -> Measured:
    return lambda found: replace(
        found, reference=replace(fakes.beaten(SPEC) or Reference(kind="", name="", metric=""), **changes)
    )


def itself(platform: Platform) -> None:
    measured(reference(model_digest=successor(platform).model_digest))(platform)


def barely_beaten_baseline(platform: Platform) -> None:
    digest = successor(platform).model_digest
    measured(baseline(model_digest=digest, version=1, low=0.0))(platform)


def without_reference(found: Evaluation) -> Evaluation:
    return replace(found, reference=None)


# Changes of verdicts


def recorded(**changes: Any) -> Change:
    """Store another verdict of the successor, consistent and with its digest."""
    return lambda platform: platform.database.record_verdict(replace(verdict_on(platform), **changes))


def outcome(edit: Callable[[Any], object], *, digest: str | None = None) -> Change:
    """Change the stored document of the successor's verdict, as the database's owner could."""

    def change(platform: Platform) -> None:
        was = verdict_on(platform)
        document = json.loads(was.document)
        edit(document)
        text = canonical_json(document)
        row = {"digest": digest or sha256_text(text), "document": text, "passed": True, "judged_at": now()}
        row["candidate"] = was.candidate
        with platform.database._transaction() as connection:
            connection.execute(tables.verdicts.insert().values(row))

    return change


def result(value: Any) -> Change:
    """Replace the first gate's outcome by an invalid value."""
    return outcome(lambda document: document["results"][0].update(outcome=value))


def failed_and_edited(platform: Platform) -> None:
    measured(measurement(value=0.5))(platform)
    failed = verdict_on(platform)
    passed = [replace(result, outcome=GateOutcome.PASS) for result in failed.results]
    platform.database.record_verdict(replace(failed, results=passed))


def a_gate_dropped(platform: Platform) -> None:
    recorded(results=verdict_on(platform).results[1:])(platform)


def champions_verdict(platform: Platform) -> None:
    theirs = platform.database.verdict_on(champion(platform).candidate)
    assert theirs is not None
    platform.database.record_verdict(replace(theirs, candidate=successor(platform).id))


# Changes of records


def execute(statement: str, **values: Any) -> Change:
    def change(platform: Platform) -> None:
        with platform.database._transaction() as connection:
            connection.execute(sa.text(statement), values)

    return change


def relabelled(**changes: Any) -> Change:
    """Change the successor's record."""

    def change(platform: Platform) -> None:
        its = tables.candidates.c.id == successor(platform).id
        with platform.database._transaction() as connection:
            connection.execute(sa.update(tables.candidates).where(its).values(**changes))

    return change


def trained(**by: Any) -> Change:
    """Change who trained the successor, and judge it again: a verdict binds the record of the training."""

    def change(platform: Platform) -> None:
        evaluation = verdict_on(platform).evaluation
        relabelled(**by)(platform)
        fakes.store_verdict(platform, gates.judge(successor(platform), evaluation, SPEC))

    return change


def forged_champion(platform: Platform) -> None:
    """Replace the champion's file on this host, and its digest in the database."""
    candidate = platform.database.candidate(champion(platform).candidate)
    platform.model_file(candidate).write_bytes(b"forged")
    digest = sha256_text("forged")
    execute("UPDATE candidates SET model_digest = :digest WHERE id = :id", digest=digest, id=candidate.id)(platform)


def forgotten_dataset(platform: Platform) -> None:
    execute("UPDATE datasets SET forgotten_at = :now, digest = 'x'", now="2024-01-01 00:00:00.000000")(platform)


def leaking(platform: Platform) -> None:
    rows = fakes.visits(3_000, first=10_000, day=3)
    fakes.drop(platform, "leak.parquet", rows.assign(pages=(rows["bought"] == "yes").astype("int64") * 1_000))
    keys = [arrival.key for arrival in waiting_arrivals(platform, "visits")]
    store_raw_batches(platform, "visits", keys)
    publish_batches(platform, SPEC, keys)
    pin_dataset(platform, SPEC)


# Changes of bytes and of the registry


def registered_file(platform: Platform, version: int = 2) -> Path:
    (file,) = [path for path in shown_files(platform) if platform_owns(platform, path, version)]
    return file


def shown_files(platform: Platform) -> list[Path]:
    return sorted(platform.settings.artifacts.rglob(f"{MODEL_FOLDER}/{MODEL_FILE}"))


def platform_owns(platform: Platform, path: Path, version: int) -> bool:
    registration = platform.database.registration("visits", version)
    assert registration is not None
    return str(platform.database.candidate(registration.candidate).mlflow_run_id) in str(path)


def one_byte(file: Callable[[Platform], Path]) -> Change:
    def change(platform: Platform) -> None:
        path = file(platform)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    return change


def kept_file(platform: Platform) -> Path:
    return platform.model_file(successor(platform))


def champions_file(platform: Platform) -> Path:
    return platform.model_file(platform.database.candidate(champion(platform).candidate))


def another_model(file: Callable[[Platform], Path]) -> Change:
    """Replace the successor's bytes by the champion's."""
    return lambda platform: shutil.copyfile(champions_file(platform), file(platform))


def lost(file: Callable[[Platform], Path]) -> Change:
    return lambda platform: file(platform).unlink()


def client(platform: Platform) -> MlflowClient:
    return MlflowClient(platform.settings.tracking_uri, platform.settings.tracking_uri)


def deleted_version(platform: Platform) -> None:
    client(platform).delete_model_version("visits", "2")


def moved_alias(platform: Platform) -> None:
    platform.registry.set_alias("visits", "champion", 2)


def edited_answers(platform: Platform) -> None:
    path = platform.candidate_folder(successor(platform)) / golden_requests.GOLDEN_ANSWERS
    path.write_text(json.dumps({**json.loads(path.read_text()), "predictions": [1] * 50}))


def another_signature(platform: Platform) -> None:
    """Let MLflow tell clients to send a number as text."""
    path = registered_file(platform).with_name(MLMODEL)
    path.write_text(path.read_text().replace('"double"', '"string"', 1))


def no_signature(platform: Platform) -> None:
    registered_file(platform).with_name(MLMODEL).write_text("flavors: {}")


# Changes of the ledger


def behind_the_triggers(*statements: str) -> Change:
    return lambda platform: fakes.behind_the_triggers(platform.database, *statements)


def promoted_and_forged(platform: Platform) -> None:
    """Promote the successor by a forged first entry with a valid digest."""
    forged = replace(champion(platform), version=2, candidate=successor(platform).id)
    line = f"UPDATE ledger SET version = 2, candidate = '{forged.candidate}', digest = '{forged.digest}'"  # noqa: S608
    fakes.behind_the_triggers(platform.database, f"{line} WHERE sequence = 1", "DELETE FROM ledger WHERE sequence > 1")


def relinked(platform: Platform) -> None:
    """Change the previous digest of the second entry, and its own digest with it."""
    second = replace(platform.database.ledger("visits")[1], previous_digest="0" * 64)
    line = f"UPDATE ledger SET previous_digest = '{'0' * 64}', digest = '{second.digest}' WHERE sequence = 2"  # noqa: S608
    fakes.behind_the_triggers(platform.database, line)


def no_anchor(platform: Platform) -> None:
    platform.settings.ledger_anchor_file.unlink()
    client(platform).delete_registered_model_tag("visits", LEDGER_TAG)


def follow(platform: Platform) -> None:
    """Store the digest of the champion's bytes in the successor's record."""
    theirs = platform.database.candidate(champion(platform).candidate).model_digest
    relabelled(model_digest=theirs)(platform)


def first_file(platform: Platform) -> Path:
    first = platform.database.registration("visits", 1)
    assert first is not None
    return platform.model_file(platform.database.candidate(first.candidate))


def spoilt_first(platform: Platform) -> None:
    """Change the bytes of version 1 here and in the registry."""
    one_byte(partial(registered_file, version=1))(platform)
    one_byte(first_file)(platform)


def promote_second(platform: Platform, spec: ModelSpec = SPEC) -> None:
    second = platform.database.registration("visits", 2)
    assert second is not None
    of = platform.database.candidate(second.candidate)
    promote_version(platform, spec, of, reason="schedule", actor="test")


def made_again(platform: Platform) -> None:
    rolled_back(platform)
    twin(platform, requested_at=now())


def made_again_by_hand(platform: Platform, **changes: Any) -> None:
    """Stage a manual retraining that was requested before the rollback."""
    rolled_back(platform)
    twin(platform, lineage=replace(successor(platform).lineage, reason="manual: again"), **changes)


def same_bytes_again(platform: Platform) -> None:
    """Stage the bytes that were rolled back, made with another lock file."""
    rolled_back(platform)
    twin(platform, lineage=replace(successor(platform).lineage, lock_digest="1" * 64))


def both(*changes: Change) -> Change:
    def change(platform: Platform) -> None:
        for one in changes:
            one(platform)

    return change


def crowned(platform: Platform) -> None:
    """Promote the successor."""
    promote(platform, SPEC)


def rolled_back(platform: Platform) -> None:
    crowned(platform)
    roll_back(platform, SPEC)


def twin(platform: Platform, **changes: Any) -> None:
    """Stage the successor again as a new candidate of the same rows and bytes."""
    of, verdict = successor(platform), verdict_on(platform)
    again = replace(of, id="twin", trained_at=now(), **changes)
    shutil.copytree(platform.candidate_folder(of), platform.candidate_folder(again))
    shown = client(platform).get_model_version("visits", "2")
    version = client(platform).create_model_version("visits", str(shown.source))
    registration = Registration(model="visits", version=int(version.version), candidate=again.id)
    platform.database.record_candidate(again)
    fakes.store_verdict(platform, gates.judge(again, verdict.evaluation, SPEC))
    platform.database.record_registration(registration)
    platform.database.mark_staged(registration)


def older_twin_behind(platform: Platform) -> None:
    """Promote the successor, and stage a candidate of older rows without a comparison."""
    twin(platform)
    execute("UPDATE candidates SET dataset_version = 0 WHERE id = 'twin'")(platform)
    again = platform.database.candidate("twin")
    evaluation = replace(verdict_on(platform).evaluation, champion=2)
    promote_second(platform)
    made = baseline(model_digest=again.model_digest, version=2)(evaluation)
    fakes.store_verdict(platform, gates.judge(again, made, SPEC))


def twin_behind_a_canary(platform: Platform) -> None:
    """Start a canary of the successor on a server, and stage another candidate."""
    twin(platform)
    again = platform.database.candidate("twin")
    evaluation = replace(verdict_on(platform).evaluation, champion=2)
    promote_second(platform, CANARY)
    plan = plan_in_force(platform, "visits")
    says = {"plan": plan.sequence if plan else None}
    platform.database.beat(ServerHeartbeat(model="visits", server="a", admin_address="http://127.0.0.1:9", says=says))
    made = baseline(model_digest=again.model_digest, version=2)(evaluation)
    fakes.store_verdict(platform, gates.judge(again, made, SPEC))


# Changes of approvals and of the clock


def approved(*, person: Person = BOB, verdict: Callable[[Platform], Verdict] = verdict_on, **details: Any) -> Change:
    """Write an approval into the ledger as the platform does, with some details changed."""

    def change(platform: Platform) -> None:
        head = platform.database.ledger_head("visits")
        assert head is not None
        said = {"name": person.name, "authenticated_by": person.authenticated_by, "identity": person.identity}
        entry = LedgerEntry(
            model="visits",
            sequence=head.sequence + 1,
            action=Action.APPROVAL.value,
            version=2,
            previous_version=1,
            candidate=successor(platform).id,
            verdict_digest=verdict(platform).digest,
            reason="fine",
            actor=person.name,
            recorded_at=now(),
            details={**said, "expires_at": (now() + timedelta(hours=24)).isoformat(), **details},
            previous_digest=head.digest,
        )
        platform.database.append_to_ledger(entry)

    return change


def another_verdict(platform: Platform) -> Verdict:
    verdict = platform.database.verdict_on(champion(platform).candidate)
    assert verdict is not None
    return verdict


def yesterday() -> str:
    return (now() - timedelta(seconds=1)).isoformat()


def tokens(platform: Platform) -> Path:
    return platform.settings.home / "tokens.json"


def keep_tokens(text: str, mode: int = 0o600) -> Change:
    def change(platform: Platform) -> None:
        tokens(platform).write_text(text)
        tokens(platform).chmod(mode)

    return change


BOBS_TOKEN = json.dumps({"bob": sha256_text("secret")})
AUDIENCE = approval_audience("visits", 2, "d" * 64)
IN_GITHUB = fakes.visits_spec(approval=Approval(authenticated_by=("github_environment",)))
CARL = Person(name="carl@github", authenticated_by="github_environment", identity={"aud": AUDIENCE})


@dataclass(frozen=True)
class Mutant:
    """One change of the honest platform, one attempt, and the message of its refusal.

    Parameters
    ----------
    why : str
        A regular expression that the message of the typed error holds.
    change : callable
    attempt : callable
    spec : ModelSpec
        What the author declares at the time of the attempt.
    """

    why: str
    change: Change = nothing
    attempt: Attempt = promote
    spec: ModelSpec = SPEC


def found(edit: Measured, why: str, spec: ModelSpec = SPEC) -> Mutant:
    return Mutant(why, measured(edit, spec), spec=spec)


MEASURED = {
    "an AUC just below its gate": found(measurement(value=0.7999), "auc_roc is 0.7999, the gate asks for >= 0.8"),
    "an AUC of an inverted label": found(measurement(value=0.05), "auc_roc is 0.05"),
    "a NaN": found(measurement(value=nan), "auc_roc was not computed, or is not finite"),
    "an infinite AUC": found(measurement(value=inf), "auc_roc was not computed, or is not finite"),
    "a metric that is missing": found(without("f1_score"), "f1_score was not computed"),
    "a metric without a value": found(
        measurement(value=None, reason="one class"), "not computed, or is not finite: one class"
    ),
    "79 instead of 0.79": found(
        measurement(value=79.0), "auc_roc is 79, which is not between 0 and 1: its unit is wrong"
    ),
    "a size below nothing": found(measurement("model_size_mb", value=-1.0), "its unit is wrong"),
    "two measurements of one metric": found(twice, "auc_roc was not computed"),
    "an empty holdout": found(measurement(rows=0), "auc_roc rests on 0 rows, 30 are asked for"),
    "a NaN that is written down": Mutant("auc_roc was not computed", attempt=partial(write_a_verdict, value=nan)),
    "a NaN that meets a gate": Mutant("or is not finite", attempt=partial(ask_one_gate, value=nan)),
    "a lower bound below its gate": found(measurement(low=0.79), "auc_roc .* 0.79 at its bound", BOUND),
    "no lower bound": found(measurement(low=None), "has no bounds", BOUND),
    "no upper bound": found(measurement(high=None), "has no bounds", BOUND),
    "bounds beside their value": found(
        measurement(value=0.9, low=0.95, high=0.99), "not between its own bounds", BOUND
    ),
    "a bad slice": found(sliced(value=0.7), "auc_roc on plan = paid is 0.7", SLICED),
    "a slice without a measurement": found(sliced(), "auc_roc on plan = paid was not computed", SLICED),
    "a slice of five rows": found(sliced(rows=5), "auc_roc on plan = paid rests on 5 rows", SLICED),
    "a slow answer": found(
        measurement("inference_time_ms", value=130.0, low=110.0, high=130.0), "time_ms is 130", TIMED
    ),
    "an answer within the noise": found(
        measurement("inference_time_ms", value=90.0, low=80.0, high=110.0), "time_ms is 90, 80 at its bound", TIMED
    ),
    "a time without its noise": found(measurement("inference_time_ms", value=50.0), "has no bounds", TIMED),
    "no comparison at all": found(without_reference, "was not compared with a reference"),
    "compared by another metric": found(reference(metric="f1_score"), "was not compared with a reference"),
    "a reference that gave no answer": found(reference(reason="it died"), "was not compared with version 1: it died"),
    "the champion compared with itself": Mutant("was compared with itself: version 1 has the same bytes", itself),
    "compared with a stranger": found(reference(version=7, name="version 7"), "version 7, which is not champion"),
    "compared with the baseline only": found(baseline(), "although version 1 is champion"),
    "the same bytes where a gain is asked for": Mutant(
        "although version 1 is champion", barely_beaten_baseline, spec=GAIN
    ),
    "a baseline that is just reached": Mutant(r"\+0 at the lower bound, .* must be above 0", barely_beaten_baseline),
    "compared on five rows": found(reference(rows=5), "was compared on 5 rows, 30 are asked for"),
    "a difference that is no number": found(reference(low=nan), "has no finite difference"),
    "a difference beside its bounds": found(reference(difference=-0.5), "not between its own bounds"),
    "worse than the champion": found(reference(difference=-0.02, low=-0.03, high=0.0), "must be above -0.01"),
    "a gain too small": found(
        reference(difference=0.03, low=0.01, high=0.05), "must be at least 0.02, and above", GAIN
    ),
}
JUDGED = {
    "a gate that returned None": Mutant("verdict on candidate .* cannot be read", result(None)),
    "a gate that returned False": Mutant("verdict on candidate .* cannot be read", result(False)),
    "a gate that returned a dict": Mutant("verdict on candidate .* cannot be read", result({"passed": True})),
    "a verdict without evaluation": Mutant("cannot be read", outcome(lambda document: document.pop("evaluation"))),
    "a verdict under another digest": Mutant(
        "has been changed since it was stored",
        outcome(lambda document: document["evaluation"]["measurements"].clear(), digest="0" * 64),
    ),
    "a verdict in another form": Mutant(
        "not in its canonical form", execute("UPDATE verdicts SET document = document || ' '")
    ),
    "a verdict whose columns were edited": Mutant(
        "other columns than its document", execute("UPDATE verdicts SET passed = FALSE")
    ),
    "a verdict that only the database has": Mutant(
        "log of heads does not have the verdict", measured(measurement(value=0.97, low=0.96, high=0.98))
    ),
    "the champion's digest edited with its file": Mutant(
        "was changed since its verdict: model_digest", forged_champion
    ),
    "a list of served files edited": Mutant("list of its served files was changed", relabelled(served_digest="0" * 64)),
    "a failed verdict edited to passed": Mutant("auc_roc is 0.5", failed_and_edited),
    "a result that does not follow": Mutant("does not follow from its own measurements", recorded(results=[])),
    "a gate dropped from the verdict": Mutant("does not follow from its own measurements", a_gate_dropped),
    "no verdict": Mutant(
        "has no verdict",
        execute("DELETE FROM verdicts WHERE candidate = (SELECT candidate FROM registrations WHERE version = 2)"),
    ),
    "the champion's verdict": Mutant("the model's bytes have sha256", champions_verdict),
    "a verdict of another dataset": Mutant("does not follow", recorded(dataset_digest="0" * 64)),
    "a verdict of other code": Mutant("does not follow", recorded(code_revision="1" * 40)),
    "a gate dropped since": Mutant("the gates were changed", spec=fakes.visits_spec(gates=SPEC.gates[1:])),
    "a gate lowered since": Mutant("the gates were changed", spec=BOUND),
    "the comparison dropped since": Mutant("the gates were changed", spec=fakes.visits_spec(comparison=None)),
    "checks without a gate": Mutant("Expected a result of each gate", a_gate_dropped, show_checks),
    "a comparison with an earlier champion": Mutant(
        "compared when version 1 was champion, and version 2 is now",
        both(twin, promote_second),
    ),
}
TAMPERED = {
    "one byte of the registered file": Mutant("the model's bytes have sha256", one_byte(registered_file)),
    "the champion's bytes under another name": Mutant("the model's bytes have sha256", another_model(registered_file)),
    "a record that follows other bytes": Mutant("the verdict is about", both(another_model(registered_file), follow)),
    "a record of other bytes alone": Mutant("the model's bytes have sha256", relabelled(model_digest="0" * 64)),
    "one byte of the kept file": Mutant("not the model that passed its gates", one_byte(kept_file), judge),
    "the champion's bytes, kept": Mutant("not the model that passed its gates", another_model(kept_file), judge),
    "the kept file at registration": Mutant("the model's bytes have sha256", one_byte(kept_file), register),
    "a registered file that is gone": Mutant("The bytes of version 2 of 'visits' are gone", lost(registered_file)),
    "a version deleted in MLflow": Mutant("MLflow at .* could not provide version 2", deleted_version),
    "a moved alias": Mutant("the alias follows the ledger", moved_alias, reconcile),
    "a candidate that says other rows": Mutant("does not follow", relabelled(dataset_digest="0" * 64)),
    "rows that changed under their version": Mutant(
        "its files were changed", execute("UPDATE datasets SET digest = :digest", digest="0" * 64), judge
    ),
    "an erased dataset": Mutant("a person's data was erased", forgotten_dataset, judge),
    "a feature that equals the label": Mutant("Dataset version 3 of 'visits' fails its checks", leaking, train),
    "no dataset": Mutant("No dataset version of 'visits' is pinned", execute("DELETE FROM datasets"), train),
    "no MLflow run": Mutant(
        "has no MLflow run",
        both(execute("DELETE FROM registrations WHERE version = 2"), relabelled(mlflow_run_id=None)),
        register,
    ),
    "a registration under another model": Mutant(
        "names the model 'other'", execute("UPDATE registrations SET model = 'other' WHERE version = 2")
    ),
    "a version that was never registered": Mutant(
        "is not registered", execute("DELETE FROM registrations WHERE version = 2")
    ),
    "a version that was never staged": Mutant(
        "has not passed its integration test", execute("UPDATE registrations SET staged_at = NULL")
    ),
    "answers that differ from the gated ones": Mutant("integration test failed: its answers", edited_answers, stage),
    "a signature that asks for something else": Mutant(
        "integration test failed: its signature", another_signature, stage
    ),
    "a version without a signature": Mutant("integration test failed: its signature", no_signature, stage),
    "a version that no server knows": Mutant(
        "Run its gates again", execute("UPDATE candidates SET served_digest = NULL"), serve
    ),
    "a version that is too slow behind the server": Mutant("the bound is 1e-06 ms", attempt=stage_timed),
    "a tampered file in the integration test": Mutant("DigestMismatchError", one_byte(registered_file), stage),
}
PROMOTED = {
    "an entry of the ledger edited": Mutant(
        "entry 1 was changed", behind_the_triggers("UPDATE ledger SET reason = 'manual: mine' WHERE sequence = 1")
    ),
    "an entry of the ledger removed": Mutant(
        "something was removed", behind_the_triggers("DELETE FROM ledger WHERE sequence = 1")
    ),
    "the ledger's end cut off": Mutant("its tail was cut off", behind_the_triggers("DELETE FROM ledger")),
    "an entry that follows nothing": Mutant("does not follow entry 1 by digest", relinked),
    "a forged first entry": Mutant("saw another entry 1 than the ledger holds", promoted_and_forged),
    "a promotion by an old look": Mutant("changed meanwhile", attempt=partial(append, behind=1)),
    "a promotion over another champion": Mutant("changed meanwhile", attempt=partial(append, previous_version=7)),
    "two promotions at once": Mutant("Another process is promoting", attempt=promote_beside_another),
    "a candidate of older rows": Mutant("trained on newer rows, or later", older_twin_behind),
    "a promotion during a rollout": Mutant("version 3 must wait", twin_behind_a_canary),
    "what was rolled back": Mutant("Version 2 of 'visits' was rolled back", rolled_back),
    "what was rolled back, made again": Mutant("same rows, code and lock as version 2", made_again),
    "what was rolled back, requested before": Mutant("same rows, code and lock as version 2", made_again_by_hand),
    "what was rolled back, requested at no time": Mutant(
        "same rows, code and lock as version 2", partial(made_again_by_hand, requested_at=None)
    ),
    "the bytes that were rolled back": Mutant("the same bytes as version 2", same_bytes_again),
    "the champion, promoted again": Mutant("nothing was written", crowned, promote_again),
    "a confirmation of what was overtaken": Mutant("not confirmed", crowned, confirm_the_first),
}
ROLLED_BACK = {
    "a rollback that says no reason": Mutant("--reason must say why", crowned, partial(roll_back, reason=" ")),
    "a rollback for an unprintable reason": Mutant("--reason must say why", crowned, partial(roll_back, reason="a\nb")),
    "a rollback in a ledger that was edited": Mutant(
        "entry 1 was changed",
        both(crowned, behind_the_triggers("UPDATE ledger SET reason = 'mine' WHERE sequence = 1")),
        roll_back,
    ),
    "a rollback before the first champion": Mutant("has no champion before version 1", attempt=roll_back),
    "a rollback of what never reigned": Mutant(
        "never had a champion", both(behind_the_triggers("DELETE FROM ledger"), no_anchor), roll_back
    ),
    "a rollback to a version that is not there": Mutant("There is no version 9", attempt=partial(roll_back, to=9)),
    "a rollback to the champion": Mutant("is champion already", attempt=partial(roll_back, to=1)),
    "an abort of what was decided again": Mutant(
        "has a newer decision than entry 1", crowned, partial(roll_back, instead_of=1)
    ),
    "a rollback to bytes that are lost": Mutant(
        "has other bytes than those that passed the gates", both(crowned, spoilt_first), roll_back
    ),
    "a rollback to bytes that are gone": Mutant(
        "has other bytes than those that passed the gates", both(crowned, spoilt_first, lost(first_file)), roll_back
    ),
    "a rollback to an unapproved version": Mutant("waits for approval", attempt=partial(roll_back, to=2), spec=MANUAL),
    "a rollback to what was never staged": Mutant(
        "has not passed its integration test",
        execute("UPDATE registrations SET staged_at = NULL"),
        partial(roll_back, to=2),
    ),
    "a rollback to a failed version": Mutant(
        "auc_roc is 0.5", measured(measurement(value=0.5)), partial(roll_back, to=2)
    ),
}
APPROVED = {
    "no approval": Mutant("waits for approval", spec=MANUAL),
    "an approval of another verdict": Mutant("waits for approval", approved(verdict=another_verdict), spec=MANUAL),
    "a stale approval": Mutant("The approval by bob@desk expired", approved(expires_at=yesterday()), spec=MANUAL),
    "an approval by who asked for it": Mutant(
        "asked for the training", approved(person=replace(BOB, name="Ada@phone")), spec=MANUAL
    ),
    "an approval in a way that does not count": Mutant(
        "accepts approvals by", approved(person=replace(BOB, authenticated_by="github_environment")), spec=MANUAL
    ),
    "an approval by the user who trained": Mutant(
        "bob@desk trained candidate",
        trained(actor="carl@github", trained_by="bob@desk"),
        approve,
        MANUAL,
    ),
    "one's own approval": Mutant(
        "asked for the training", attempt=partial(approve, person=replace(BOB, name="ada@token")), spec=MANUAL
    ),
    "an approval that is not required": Mutant("declares approval='automatic'", attempt=approve),
    "an approval that says no reason": Mutant("must say why", attempt=partial(approve, reason=" "), spec=MANUAL),
    "an approval of no version": Mutant("There is no version 9", attempt=partial(approve, version=9), spec=MANUAL),
    "an approval of an unseen verdict": Mutant(
        "--verdict must be the verdict on version 2", attempt=partial(approve, looked_at="0" * 64), spec=MANUAL
    ),
    "an approval in a ledger that was edited": Mutant(
        "entry 1 was changed",
        behind_the_triggers("UPDATE ledger SET reason = 'mine' WHERE sequence = 1"),
        approve,
        MANUAL,
    ),
    "an approval of a failed version": Mutant("auc_roc is 0.5", measured(measurement(value=0.5)), approve, MANUAL),
    "a wrong token": Mutant("not that of 'bob'", keep_tokens(BOBS_TOKEN), partial(hold_token, token="guessed")),  # noqa: S106
    "no file of tokens": Mutant("There are no tokens", attempt=hold_no_token),
    "tokens that others may read": Mutant("owner alone", keep_tokens(BOBS_TOKEN, 0o644), hold_token),
    "tokens in a list": Mutant("must be one JSON object", keep_tokens("[]"), hold_token),
    "tokens in plain text": Mutant("64 hex digits", keep_tokens('{"bob": "secret"}'), hold_token),
    "tokens from a pipe": Mutant("owner alone", attempt=hold_token_from_a_pipe),
    "no GitHub job": Mutant("not a job of a protected", attempt=partial(approve_by_job, in_github=False)),
    "a GitHub job without a token service": Mutant("cannot ask GitHub for a token", attempt=approve_by_job),
    "a GitHub job outside an environment": Mutant(
        "not a job of a protected", attempt=partial(approve_by_job, claims={"environment": ""}, github_environment="")
    ),
    "a GitHub job of no repository": Mutant(
        "not a job of a protected", attempt=partial(approve_by_job, claims={"repository": ""}, github_repository="")
    ),
    "a GitHub job without a reviewer": Mutant(
        "not a job of a protected", attempt=partial(approve_by_job, github_reviewer="")
    ),
    "a GitHub job of another repository": Mutant(
        "its repository must be 'ada/churn'", attempt=partial(approve_by_job, claims={"repository": "mallory/churn"})
    ),
    "a GitHub job without a run": Mutant(
        "its run_id must be a number", attempt=partial(approve_by_job, claims={"run_id": "x"})
    ),
    "a token by an unknown key": Mutant("has no single key '1'", attempt=approve_by_unknown_key),
    "a token service that returns a list": Mutant("must return one JSON object", attempt=ask_for_no_object),
    "an approval in GitHub of no verdict": Mutant(
        "needs the version and --verdict", attempt=authenticate_without_verdict
    ),
    "a token of GitHub for another verdict": Mutant(
        "issued for another approval", attempt=partial(approve, person=CARL), spec=IN_GITHUB
    ),
}
MUTANTS = {**MEASURED, **JUDGED, **TAMPERED, **PROMOTED, **ROLLED_BACK, **APPROVED}
