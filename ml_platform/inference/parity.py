"""Check that a candidate's compiled pipeline predicts the same bits as the pipeline itself; only then is it served.

Both predict the rows of the holdout, in batches as in serving, and records at the edges of the request contract: the
bounds of every rule, missing values, and values that do not occur in the training rows.
"""

import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from ml_platform.errors import UnsupportedPipelineError
from ml_platform.inference.pipeline_compiler import Compiled, Order, compile_pipeline, compiler_digest
from ml_platform.inference.predictor import Predictor, RecordPredictor
from ml_platform.inference.request_contract import Field, Record, RequestContract
from ml_platform.records.canonical import canonical_json

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

PARITY_FILE = "parity.json"
MAX_ROWS = 2_048
ORDERS: tuple[Order, ...] = ("C", "F")
BATCH = 32
SINGLE_ROWS = 8
FEW = 5
# The errors with which scikit-learn refuses values.
REFUSED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, UserWarning, ValueError)
NUMBERS = (0, 1, -1, 0.5, -0.0, 1e-300, 2**53 + 1, 1e30)

# Scores as bytes, which are equal only if every bit is, and predictions.
Outcome = tuple[bytes, list[Any]]


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The result of comparing a compiled pipeline with the pipeline itself.

    Parameters
    ----------
    passed : bool
        True if all predictions are equal to the bit.
    why : str or None
        The first difference, or the step that cannot be compiled; ``None`` if it passed.
    rows, cases : int
        Number of compared rows of the holdout, and of records at the contract's edges.
    refused : int
        Number of these records that the contract allows and both pipelines refuse.
    compiler : str
        Digest of the compiler, for which alone the result is valid.
    model_digest : str
        Hex sha256 of the model's file.
    order : str
        The memory layout of the compared array, ``C`` or ``F``.
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
        """The result as canonical JSON."""
        return canonical_json(asdict(self))

    @classmethod
    def from_document(cls, text: str) -> "Parity":
        """Read a result from its canonical JSON."""
        return cls(**json.loads(text))

    def allows(self, model_digest: str) -> bool:
        """Return True if a model's compiled pipeline may be served: it passed with these bytes and this compiler."""
        return self.passed and self.model_digest == model_digest and self.compiler == compiler_digest()


def compare(predictor: Predictor, contract: RequestContract, features: "pd.DataFrame") -> Parity:
    """Compare a model's compiled pipeline with the pipeline itself.

    Parameters
    ----------
    predictor : Predictor
    contract : RequestContract
    features : DataFrame of shape (n_samples, n_features)
        Rows of the holdout, of which the first `MAX_ROWS` are compared.
    """
    result = Parity(passed=False, why=None, compiler=compiler_digest(), model_digest=predictor.digest)
    for order in ORDERS:  # the layout of scikit-learn's own arrays depends on the columns' types
        result = _compare_order(replace(result, why=None, order=order), predictor, contract, features.head(MAX_ROWS))
        if result.passed:
            break
    return result


def _compare_order(result: Parity, predictor: Predictor, contract: RequestContract, features: "pd.DataFrame") -> Parity:
    try:
        comparison = _Comparison(predictor, compile_pipeline(predictor.pipeline, contract, result.order))
    except UnsupportedPipelineError as error:
        return replace(result, why=str(error))
    records = contract.convert_frame(features)
    rows, cases = len(records), edges(contract, records[0]) if records else []
    result = replace(result, rows=rows, cases=len(cases))
    # Serving predicts one record, some, or all that wait.
    single = [slice(row, row + 1) for row in range(min(rows, SINGLE_ROWS))]
    batches = [slice(start, start + BATCH) for start in range(0, rows, BATCH)]
    try:
        for part in [*single, *batches, slice(0, 8 * BATCH)] if rows else []:
            comparison.compare(records[part], features.iloc[part])
        for start in range(0, len(cases), BATCH):
            comparison.compare_cases(cases[start : start + BATCH])
    except _DifferenceError as difference:
        return replace(result, refused=comparison.refused, why=str(difference))
    return replace(result, passed=True, refused=comparison.refused)


def way_to_predict(predictor: Predictor, contract: RequestContract, found: Parity | None) -> RecordPredictor:
    """Return the compiled predictor if the parity check allows it, else the one through DataFrames.

    Parameters
    ----------
    predictor : Predictor
    contract : RequestContract
    found : Parity or None
        The stored result of the parity check; ``None`` if there is none.
    """
    allowed = found is not None and found.allows(predictor.digest)
    return predictor.for_records(contract, found.order if found is not None and allowed else None)


class _DifferenceError(Exception):
    """The two pipelines predict differently."""


class _Comparison:
    """Predicts with both pipelines and counts in `refused` the records that both refuse."""

    def __init__(self, predictor: Predictor, compiled: Compiled) -> None:
        self.predictor, self.compiled, self.refused = predictor, compiled, 0

    def compare(self, records: list[Record], frame: "pd.DataFrame") -> bool:
        """Predict rows with both pipelines; return True if both accept them.

        Raises
        ------
        _DifferenceError
            Their predictions differ, or only one refuses the rows.
        """
        slow = _outcome(lambda: (self.predictor.scores(frame), self.predictor.predictions(frame)))
        fast = _outcome(lambda: self.compiled.answer(records))
        if slow != fast:
            other = "accepts records that the pipeline refuses" if slow is None else "predicts differently"
            # The message shows no values: those of the holdout are personal data.
            raise _DifferenceError(
                f"The compiled pipeline {'refuses records' if fast is None else other}, in a call of {len(records)}."
            )
        return slow is not None

    def compare_cases(self, cases: list[Record]) -> None:
        """Compare records together and, if they are refused, each one alone, because one may spoil the others."""
        frame = self.compiled.contract.frame
        if not self.compare(cases, frame(cases)):
            self.refused += sum(not self.compare([case], frame([case])) for case in cases)


def _outcome(predict: "Callable[[], tuple[NDArray[Any], NDArray[Any]]]") -> Outcome | None:
    """Return the scores and predictions in comparable form; None if the model refuses the records."""
    import numpy as np

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of unknown categories: their predictions are compared
            # A part of the compiled pipeline that was fitted on a DataFrame would warn of every call.
            warnings.filterwarnings("error", ".*valid feature names", UserWarning)
            scores, predictions = predict()
    except REFUSED:
        return None
    return np.ascontiguousarray(scores, dtype=np.float64).tobytes(), predictions.tolist()


# Records at the edges of the contract


def edges(contract: RequestContract, record: Record) -> list[Record]:
    """Return records that the contract allows, each with one field at an edge of the contract.

    Parameters
    ----------
    contract : RequestContract
    record : tuple
        A valid record, which gives the values of the other fields.
    """
    records = list[Record]()
    for place, field in enumerate(contract.features):
        values = _edge_values(field, contract.categories.get(field.name, ()))
        allowed = [value for value in values if field.broken(value) is None]
        records += [(*record[:place], value, *record[place + 1 :]) for value in allowed]
    empty = tuple(None if field.nullable else value for field, value in zip(contract.features, record, strict=True))
    return [*records, empty]


def _edge_values(field: Field, known: Sequence[Any]) -> Iterator[Any]:
    if field.nullable:
        yield None
    for rule in field.rules:
        yield from _values_around(field, rule.value)
    if field.kind in {"int", "float"}:
        convert = int if field.kind == "int" else float
        yield from (convert(value) for value in (field.least, field.most, *NUMBERS) if value is not None)
    elif field.kind == "bool":
        yield from (False, True)
    elif field.kind == "time":
        zone = UTC if field.zone else None
        yield from (datetime(year, 1, 1, tzinfo=zone) for year in (1970, 2000, 2200))
    elif field.kind == "str":
        yield from (*known[:FEW], *known[-FEW:], *_unknown_texts(known))


def _values_around(field: Field, bound: Any) -> Iterator[Any]:
    for value in bound[: 4 * FEW] if isinstance(bound, list) else [bound]:
        if field.kind == "int" and isinstance(value, int | float):
            yield from (int(value) - 1, int(value), int(value) + 1)
        elif field.kind == "float" and isinstance(value, int | float):
            yield from (math.nextafter(value, -math.inf), float(value), math.nextafter(value, math.inf))
        elif field.kind == "time" and isinstance(value, datetime):
            yield from (value - timedelta(microseconds=1), value, value + timedelta(microseconds=1))
        elif field.kind == "str" and isinstance(value, str):
            yield value


def _unknown_texts(known: Sequence[Any]) -> Iterator[str]:
    """Yield unknown texts: two known ones with one letter changed, which may still match a pattern, and some others."""
    for value in [str(one) for one in known[:2]]:
        for place in range(len(value)):
            for letter in "ZQX09z":
                changed = value[:place] + letter + value[place + 1 :]
                if changed not in known:
                    yield changed
                    break
    yield from ("", "unknown", "ünbekannt ", "nan")
