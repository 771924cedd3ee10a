"""Whether a candidate's compiled preprocessing says what its pipeline says, to the bit: only then a server takes it.

Both are asked about the holdout, in batches as serving makes them, and about records that stand on the edges of the
request contract: the bounds of every rule, missing values, values that nobody in the training rows had.
"""

import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from ml_platform.compiled import Compiled, Order, compile_pipeline, compiler_digest
from ml_platform.errors import UncompiledError
from ml_platform.predictor import Predictor, RecordPredictor
from ml_platform.records import canonical_json
from ml_platform.request_contract import Field, Record, RequestContract

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

PARITY_FILE = "parity.json"
MOST_ROWS = 2_048
ORDERS: tuple[Order, ...] = ("C", "F")
BATCH = 32
ALONE = 8
FEW = 5
# What scikit-learn raises of values that it refuses.
REFUSED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
NUMBERS = (0, 1, -1, 0.5, -0.0, 1e-300, 2**53 + 1, 1e30)

Answered = tuple[bytes, list[Any]]


@dataclass(frozen=True, kw_only=True)
class Parity:
    """What a comparison of the two ways to predict found.

    Parameters
    ----------
    passed : bool
        No difference.
    why : str or None
        The first difference, or what cannot be compiled; ``None`` if it passed.
    rows, cases : int
        Rows of the holdout, and records on the contract's edges, that both were asked about.
    refused : int
        Those of them that both refuse, though the contract lets them through.
    compiler : str
        Digest of the compiler; what it found says nothing of another one.
    model_digest : str
        Of the model's file.
    order : str
        The order in memory, ``C`` or ``F``, of the array that agreed.
    """

    passed: bool
    why: str | None
    rows: int = 0
    cases: int = 0
    refused: int = 0
    compiler: str
    model_digest: str
    order: Order = "C"

    @property
    def document(self) -> str:
        """The finding as canonical JSON."""
        return canonical_json(asdict(self))

    @classmethod
    def from_document(cls, text: str) -> "Parity":
        """Read a finding back from its canonical JSON."""
        return cls(**json.loads(text))

    def allows(self, model_digest: str) -> bool:
        """Whether a model may go by what this compiler makes of it."""
        return self.passed and self.model_digest == model_digest and self.compiler == compiler_digest()


def compare(predictor: Predictor, contract: RequestContract, features: "pd.DataFrame") -> Parity:
    """Compare the compiled preprocessing of a model with its pipeline.

    Parameters
    ----------
    predictor : Predictor
    contract : RequestContract
    features : DataFrame of shape (n_samples, n_features)
        Rows of the holdout; the first `MOST_ROWS` are taken.
    """
    found = Parity(passed=False, why=None, compiler=compiler_digest(), model_digest=predictor.digest)
    for order in ORDERS:  # which one scikit-learn's own arrays have depends on the columns' types
        found = _compared(replace(found, why=None, order=order), predictor, contract, features.head(MOST_ROWS))
        if found.passed:
            break
    return found


def _compared(found: Parity, predictor: Predictor, contract: RequestContract, features: "pd.DataFrame") -> Parity:
    try:
        both = _Both(predictor, compile_pipeline(predictor.pipeline, contract, found.order))
    except UncompiledError as error:
        return replace(found, why=str(error))
    records = contract.records_of(features)
    cases = edges(contract, records[0]) if records else []
    found = replace(found, rows=len(records), cases=len(cases))
    try:
        for part in _parts(len(records)):
            both.ask(records[part], features.iloc[part])
        for start in range(0, len(cases), BATCH):
            both.ask_each(cases[start : start + BATCH])
    except _DifferError as difference:
        return replace(found, refused=both.refused, why=str(difference))
    return replace(found, passed=True, refused=both.refused)


def way_to_predict(predictor: Predictor, contract: RequestContract, found: Parity | None) -> RecordPredictor:
    """Return the fast way where a parity check says that it may be taken, else the one through DataFrames."""
    allowed = found is not None and found.allows(predictor.digest)
    return predictor.for_records(contract, found.order if found is not None and allowed else None)


class _DifferError(Exception):
    """The two ways say different things."""


class _Both:
    """Asks both ways; `refused` counts the records that both refuse."""

    def __init__(self, predictor: Predictor, compiled: Compiled) -> None:
        self.predictor, self.compiled, self.refused = predictor, compiled, 0

    def ask(self, some: list[Record], frame: "pd.DataFrame") -> bool:
        """Ask both about rows; return whether both answer."""
        slow = _said(lambda: (self.predictor.scores(frame), self.predictor.predictions(frame)))
        fast = _said(lambda: self.compiled.answer(some))
        if slow != fast:
            raise _DifferError(_difference(len(some), slow, fast))
        return slow is not None

    def ask_each(self, cases: list[Record]) -> None:
        """Ask both about records together and, where they refuse them, about each alone: one may spoil the others."""
        frame = self.compiled.contract.frame
        if self.ask(cases, frame(cases)):
            return
        self.refused += sum(not self.ask([case], frame([case])) for case in cases)


def _parts(rows: int) -> list[slice]:
    """Return what is asked together: as in serving one record, some, or everything that waited."""
    alone = [slice(place, place + 1) for place in range(min(rows, ALONE))]
    some = [slice(start, start + BATCH) for start in range(0, rows, BATCH)]
    return [*alone, *some, slice(0, 8 * BATCH)] if rows else []


def _said(ask: "Callable[[], tuple[NDArray[Any], NDArray[Any]]]") -> Answered | None:
    """Return answers so that equal ones are equal to the bit; None where the model refuses."""
    import numpy as np

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it makes of unknown categories: that is compared
            scores, predictions = ask()
    except REFUSED:
        return None
    return np.ascontiguousarray(scores, dtype=np.float64).tobytes(), predictions.tolist()


def _difference(records: int, slow: Answered | None, fast: Answered | None) -> str:
    # Values of the holdout are people's, and are not shown.
    what = "refuses" if fast is None else "answers what the pipeline refuses" if slow is None else "answers otherwise"
    return f"Compiled, it {what}: in a call of {records} records."


# Records on the edges


def edges(contract: RequestContract, record: Record) -> list[Record]:
    """Return records that the contract lets through, each with one field on an edge of it.

    Parameters
    ----------
    record : tuple
        What the other fields are taken from.
    """
    made = list[Record]()
    for place, of in enumerate(contract.features):
        values = [value for value in _values(of, contract.categories.get(of.name, ())) if of.broken(value) is None]
        made += [(*record[:place], value, *record[place + 1 :]) for value in values]
    empty = tuple(None if of.nullable else value for of, value in zip(contract.features, record, strict=True))
    return [*made, empty]


def _values(of: Field, known: Sequence[Any]) -> Iterator[Any]:
    if of.nullable:
        yield None
    for rule in of.rules:
        yield from _around(of, rule.value)
    if of.kind in {"int", "float"}:
        yield from (_as(of, value) for value in (of.least, of.most, *NUMBERS) if value is not None)
    elif of.kind == "bool":
        yield from (False, True)
    elif of.kind == "time":
        zone = UTC if of.zone else None
        yield from (datetime(year, 1, 1, tzinfo=zone) for year in (1970, 2000, 2200))
    elif of.kind == "str":
        yield from (*known[:FEW], *known[-FEW:], *_unknown(known))


def _around(of: Field, bound: Any) -> Iterator[Any]:
    for value in bound[: 4 * FEW] if isinstance(bound, list) else [bound]:
        if of.kind == "int" and isinstance(value, int | float):
            yield from (int(value) - 1, int(value), int(value) + 1)
        elif of.kind == "float" and isinstance(value, int | float):
            yield from (math.nextafter(value, -math.inf), float(value), math.nextafter(value, math.inf))
        elif of.kind == "time" and isinstance(value, datetime):
            yield from (value - timedelta(microseconds=1), value, value + timedelta(microseconds=1))
        elif of.kind == "str" and isinstance(value, str):
            yield value


def _as(of: Field, value: float) -> Any:
    return int(value) if of.kind == "int" else float(value)


def _unknown(known: Sequence[Any]) -> Iterator[str]:
    """Return texts that are no known value; where a pattern asks for a form, one letter more or less keeps it."""
    for value in [str(one) for one in known[:2]]:
        for place in range(len(value)):
            for letter in "ZQX09z":
                changed = value[:place] + letter + value[place + 1 :]
                if changed not in known:
                    yield changed
                    break
    yield from ("", "unknown", "ünbekannt ", "nan")
