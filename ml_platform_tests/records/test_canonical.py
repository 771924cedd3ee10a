"""Digests cover a schema version and the fields that differ from their defaults."""

import json
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel

from ml_platform.database.candidates import _read_verdict
from ml_platform.errors import EvidenceError
from ml_platform.evaluation import gates
from ml_platform.model_spec import Comparison, Equals, Gate, GoldenSet, InRange
from ml_platform.records import ledger, verdict
from ml_platform.records.canonical import SCHEMA, drop_defaults
from ml_platform.records.ledger import LedgerEntry
from ml_platform.records.verdict import Measurement, Verdict
from ml_platform_tests.support import fakes

ENTRY: dict[str, Any] = {
    "model": "visits",
    "sequence": 1,
    "action": "promotion",
    "version": 1,
    "previous_version": None,
    "candidate": "c",
    "verdict_digest": "0" * 64,
    "reason": "schedule",
    "actor": "test",
    "recorded_at": datetime(2026, 1, 5, tzinfo=UTC),
}


@dataclass(frozen=True, kw_only=True)
class LaterEntry(LedgerEntry):
    ticket: str = ""


@dataclass(frozen=True, kw_only=True)
class LaterVerdict(Verdict):
    reviewers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LaterFigure(Measurement):
    unit: str = ""


class LaterGate(Gate):
    min_days: int = 0


def test_ledger_digest_ignores_an_added_default() -> None:
    before, later = LedgerEntry(**ENTRY), LaterEntry(**ENTRY)

    assert later.digest == before.digest
    assert LaterEntry(**ENTRY, ticket="OPS-1").digest != before.digest


def test_verdict_digest_ignores_added_defaults() -> None:
    before = fakes.verdict(fakes.candidate())
    fields = {name: getattr(before, name) for name in before.__dataclass_fields__}

    assert LaterVerdict(**fields).digest == before.digest
    assert LaterVerdict(**fields, reviewers=("ada",)).digest != before.digest


def test_verdict_digest_ignores_a_measurements_added_default() -> None:
    before = fakes.verdict(fakes.candidate())
    measurements = [asdict(measurement) for measurement in before.evaluation.measurements]

    def with_unit(unit: str) -> Verdict:
        later = [LaterFigure(**measurement, unit=unit) for measurement in measurements]
        return replace(before, evaluation=replace(before.evaluation, measurements=list(later)))

    assert with_unit("").digest == before.digest
    assert with_unit("ms").digest != before.digest


def test_gates_digest_ignores_an_added_default() -> None:
    spec = fakes.visits_spec()
    later = [LaterGate(**gate.model_dump()) for gate in spec.gates]

    assert gates.gates_digest(spec.model_copy(update={"gates": tuple(later)})) == gates.gates_digest(spec)
    asks = (later[0].model_copy(update={"min_days": 7}), *later[1:])
    assert gates.gates_digest(spec.model_copy(update={"gates": asks})) != gates.gates_digest(spec)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"holdout_share": 0.2}, {"holdout_share": 0.20000049}),
        ({"entity": "visitor"}, {"entity": "seconds"}),
        ({"slices": (Equals(column="pages", equals=1),)}, {"slices": (Equals(column="pages", equals=True),)}),
    ],
)
def test_gates_digest_tells_close_declarations_apart(one: dict[str, Any], other: dict[str, Any]) -> None:
    spec = fakes.visits_spec()

    assert gates.gates_digest(spec.model_copy(update=one)) != gates.gates_digest(spec.model_copy(update=other))


def test_gate_of_a_subclass_is_refused() -> None:
    with pytest.raises(ValueError, match="gates must be instances of Gate itself"):
        fakes.visits_spec(gates=(LaterGate(metric="auc_roc", at_least=0.8),))


@pytest.mark.parametrize(
    ("module", "name"), [(ledger, "LEDGER_SCHEMA"), (verdict, "VERDICT_SCHEMA"), (gates, "GATES_SCHEMA")]
)
def test_digest_covers_the_schema_version(module: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def digests() -> tuple[str, str, str]:
        return (
            LedgerEntry(**ENTRY).digest,
            fakes.verdict(fakes.candidate()).digest,
            gates.gates_digest(fakes.visits_spec()),
        )

    before = digests()
    monkeypatch.setattr(module, name, 2)

    assert digests() != before


def test_verdict_of_another_schema_is_refused() -> None:
    document = json.loads(fakes.verdict(fakes.candidate()).document)

    for other in (
        {**document, SCHEMA: 2},
        {**document, SCHEMA: True},
        {**document, SCHEMA: 1.0},
        {key: value for key, value in document.items() if key != SCHEMA},
    ):
        with pytest.raises(ValueError, match="its schema version must be 1"):
            Verdict.from_document(json.dumps(other))


# A digest depends on defaults: if one of these changes, increase GATES_SCHEMA, LEDGER_SCHEMA or VERDICT_SCHEMA and
# update this list.
DEFAULTS_OF_SCHEMA_1 = {
    Gate: {"at_least": None, "at_most": None, "on": "value", "slices": (), "dataset": "holdout", "min_rows": 30},
    Comparison: {"metric": "auc_roc", "margin": 0.01, "min_gain": None, "confidence": 0.95, "min_rows": 30},
    InRange: {"at_least": None, "below": None},
    Equals: {},
    GoldenSet: {},
}


@pytest.mark.parametrize("declared", DEFAULTS_OF_SCHEMA_1)
def test_defaults_of_gates_change_only_with_the_schema(declared: type[BaseModel]) -> None:
    defaults = {name: field.default for name, field in declared.model_fields.items() if not field.is_required()}

    assert (gates.GATES_SCHEMA, defaults) == (1, DEFAULTS_OF_SCHEMA_1[declared])


@dataclass
class Counted:
    rows: Any = 0
    names: Any = ()


@pytest.mark.parametrize("value", [False, 0.0, [], None])
def test_only_the_very_default_is_left_out(value: Any) -> None:
    assert drop_defaults(Counted(rows=0, names=())) == {}
    assert drop_defaults(Counted(rows=value)) == {"rows": value}
    assert drop_defaults(Counted(names=[])) == {"names": []}


def test_dropped_defaults_come_back_when_read() -> None:
    before = fakes.verdict(fakes.candidate())

    assert Verdict.from_document(before.document) == before
    assert None not in drop_defaults(before)["evaluation"]["measurements"][0].values()


@pytest.mark.parametrize("edit", [lambda text: f" {text}", lambda text: text.replace("{", '{"model":"evil",', 1)])
def test_verdict_in_another_form_is_refused(edit: Any) -> None:
    verdict = fakes.verdict(fakes.candidate())
    row = {"candidate": verdict.candidate, "document": verdict.document, "digest": verdict.digest, "passed": True}

    assert _read_verdict(row) == verdict
    with pytest.raises(EvidenceError, match="is not in its canonical form"):
        _read_verdict({**row, "document": edit(verdict.document)})
