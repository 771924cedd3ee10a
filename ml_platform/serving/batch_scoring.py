"""Scores a file in bulk, with the contract and the predictor that a server uses for requests.

A file is read a few thousand rows at a time, so memory does not depend on its size. Rows that violate the contract are
reported and skipped. The output has one row per scored row: its number in the file from 0, its entity (empty if the
file has none), prediction and score (``score``, or ``scores`` for more than two classes), the anomaly score, and model,
version and digest.
"""

import csv
import gzip
import itertools
import json
import math
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import msgspec

from ml_platform.data.validation.size_limits import require_bounded
from ml_platform.data.validation.text_patterns import BOOLEAN, INTEGER, NUMBER
from ml_platform.errors import (
    MAX_PROBLEMS,
    ConfigurationError,
    ModelError,
    RequestError,
    RequestProblem,
    UnreadableFileError,
)
from ml_platform.inference.column_check import ColumnCheck
from ml_platform.inference.predictor import Answers
from ml_platform.inference.request_contract import Field, Record, RequestContract
from ml_platform.platform import Platform
from ml_platform.serving.supervisor.version_selection import VersionSelector
from ml_platform.serving.worker.batching import is_finite
from ml_platform.serving.worker.model_loader import load_version
from ml_platform.storage import atomic_files

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

ROWS_AT_ONCE = 5_000
# Rows of Parquet files and Delta tables, which are checked by columns; fewer invalid ones are checked one by one.
TYPED_ROWS_AT_ONCE, FEW_ROWS = 20_000, 500
NOT_FINITE = "has no prediction: the score is not finite"
LONGEST_LINE = BUFFER = 2**20
INPUTS = (".parquet", ".csv", ".csv.gz", ".jsonl")
OUTPUTS = (".parquet", ".csv", ".jsonl")
# By the grammar of validation; Python's conversions take more, such as 1_000 and digits of other scripts.
PATTERNS = {"int": re.compile(INTEGER), "float": re.compile(NUMBER), "bool": re.compile(BOOLEAN)}
# Python refuses longer integers with an error of its own.
LONGEST_NUMBER = 400
NAN = re.compile("[+-]?nan", re.IGNORECASE)  # a missing value, as in pandas

# A row's values by name, or the reason why a line is not a row.
Row = dict[str, Any] | RequestProblem
Chunk: TypeAlias = "list[Row] | pa.RecordBatch"


@dataclass(frozen=True, kw_only=True)
class BulkModel:
    """A version that scores files.

    Parameters
    ----------
    contract : RequestContract
    version : int
    digest : str
        Hex sha256 of the model's bytes.
    predict : callable
        Takes records of the contract and returns their `Answers`.
    predict_frame : callable or None
        Takes a DataFrame of the contract's features and returns arrays of scores and predictions, the same as
        `predict`. ``None`` predicts records only.
    """

    contract: RequestContract
    version: int
    digest: str
    predict: Callable[[list[Record]], Answers]
    predict_frame: "Callable[[pd.DataFrame], tuple[NDArray[Any], NDArray[Any]]] | None" = None


@dataclass(kw_only=True)
class Scored:
    """The result of scoring a file.

    Parameters
    ----------
    rows : int
        Number of scored rows.
    refused : int
        Number of other rows.
    problems : list of str
        The first `MAX_PROBLEMS` problems of those; ``record`` counts the file's rows from 0.
    ignored : list of str
        Columns of the file that the contract does not have.
    """

    rows: int = 0
    refused: int = 0
    problems: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    def refuse(self, problems: Sequence[RequestProblem]) -> None:
        """Count a row that cannot be scored."""
        self.refused += 1
        self.problems += [str(problem) for problem in problems[: MAX_PROBLEMS - len(self.problems)]]


def load_model(platform: Platform, model: str, version: int | None) -> BulkModel:
    """Load a version as a server does: verify its evidence and its files, and replay its golden requests.

    Parameters
    ----------
    platform : Platform
    model : str
    version : int or None
        The champion or an earlier champion; ``None`` is the champion.

    Raises
    ------
    EvidenceError
        The version never was champion, or its evidence is missing or not valid.
    LedgerError
        The ledger does not verify.
    ModelError
        Its files are missing or do not match their digests, or its answers to the golden requests differ from those of
        its evaluation.
    """
    # Not the server's folder: a server removes the copies that it does not use.
    with tempfile.TemporaryDirectory(prefix="ml-platform-") as folder:
        served = VersionSelector(platform, model, Path(folder)).store_champion(version)
        loaded = load_version(Path(folder), model, served)
    return BulkModel(
        contract=loaded.contract,
        version=served.version,
        digest=served.model_digest,
        predict=loaded.predict,
        predict_frame=loaded.predict_frame,
    )


def score_file(source: Path, model: BulkModel, out: Path | IO[bytes], max_bytes: int) -> Scored:
    """Score all rows of a file that satisfy the contract.

    Parameters
    ----------
    source : Path
        A Parquet, CSV, CSV.GZ or JSON Lines file, or the folder of a Delta table, whose newest version is read. Text
        is converted to the contract's types.
    model : BulkModel
    out : Path or binary stream
        A path is written atomically, as Parquet, CSV or JSON Lines by its suffix; a stream gets JSON Lines.
    max_bytes : int
        Maximum size of the file, also after decompression.

    Raises
    ------
    ConfigurationError
        The output's suffix is not one of `OUTPUTS`.
    UnreadableFileError
        The file does not have the format of its suffix, or lacks a feature. No output was written.
    TooLargeError
        The file has more than `max_bytes` bytes.
    ModelError
        The model raised; no output was written.
    StorageError
        The output could not be written.
    """
    if not isinstance(out, Path):
        return _score(source, model, max_bytes, _LineWriter(out))
    if out.suffix not in OUTPUTS:
        raise ConfigurationError(f"--out must end in one of {', '.join(OUTPUTS)}. Got {out.name!r} instead.")
    with atomic_files.temporary_beside(out) as temporary:
        lines = out.suffix == ".jsonl"
        with _LineWriter(temporary.open("wb")) if lines else _TableWriter(temporary, out.suffix, model) as writer:
            scored = _score(source, model, max_bytes, writer)
        atomic_files.atomic_replace(temporary, out)
    return scored


def _score(source: Path, model: BulkModel, max_bytes: int, writer: "_Writer") -> Scored:
    scored, number = Scored(), 0
    decode, columns = model.contract.decoder().mappings, ColumnCheck(model.contract)
    for chunk in _read_chunks(source, model.contract, scored, max_bytes):
        for part in _split_chunk(chunk, columns, by_columns=model.predict_frame is not None):
            if not isinstance(part, list):
                writer.write_table(_predict_columns(part, number, model, columns, scored))
            else:
                numbered = [(number + place, row) for place, row in enumerate(part) if isinstance(row, dict)]
                refused = {number + place: [row] for place, row in enumerate(part) if isinstance(row, RequestProblem)}
                valid = list(_decode_rows(numbered, decode, refused))
                for refused_number in sorted(refused):
                    problems = refused[refused_number]
                    scored.refuse([replace(problem, record=refused_number) for problem in problems])
                if valid:
                    writer.write(_predict(valid, model, scored))
            number += len(part)
    return scored


def _split_chunk(chunk: Chunk, columns: ColumnCheck, *, by_columns: bool) -> Iterator[Chunk]:
    """Yield a chunk in parts: Arrow data whose rows are all valid, and lists of rows to be checked one by one."""
    if isinstance(chunk, list) or (by_columns and columns.accepts(chunk)):
        yield chunk
    elif not by_columns or chunk.num_rows <= FEW_ROWS:
        yield chunk.to_pylist()
    else:
        half = chunk.num_rows // 2
        for part in (chunk.slice(0, half), chunk.slice(half)):
            yield from _split_chunk(part, columns, by_columns=by_columns)


# Reading


def _read_chunks(source: Path, contract: RequestContract, scored: Scored, max_bytes: int) -> Iterator[Chunk]:
    """Yield a file's rows in chunks, with the columns of the contract."""
    import pyarrow as pa

    if source.is_dir():
        yield from _read_delta(source, contract, scored)
        return
    readers = {".parquet": _read_parquet, ".csv": _read_csv, ".csv.gz": _read_csv, ".jsonl": _read_json_lines}
    suffix = next((suffix for suffix in INPUTS if source.name.endswith(suffix)), None)
    if suffix is None:
        raise UnreadableFileError(f"{source} must be a Delta table's folder, or end in one of {', '.join(INPUTS)}.")
    try:
        require_bounded(source, sys.maxsize, max_bytes)
        yield from readers[suffix](source, contract, scored)
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise UnreadableFileError(
            f"{source} could not be read as a {suffix[1:]} file: {str(error).splitlines()[0]}"
        ) from error


def _select_columns(names: Sequence[str], contract: RequestContract, scored: Scored, source: Path) -> list[str]:
    """Return a file's columns that the contract has; the others are added to ``scored.ignored``."""
    if len(set(names)) < len(names):
        raise UnreadableFileError(f"{source} must have unique column names. Got {list(names)} instead.")
    missing = [feature.name for feature in contract.features if feature.required and feature.name not in names]
    if missing:
        raise UnreadableFileError(f"{source} must have the features of {contract.model!r}. It lacks {missing}.")
    known = {*contract.names, contract.entity.name}
    scored.ignored += [name for name in names if name not in known]
    return [name for name in names if name in known]


def _read_parquet(source: Path, contract: RequestContract, scored: Scored) -> Iterator[Chunk]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(source, page_checksum_verification=True, buffer_size=BUFFER) as file:
        columns = _select_columns(file.schema_arrow.names, contract, scored, source)
        yield from file.iter_batches(batch_size=TYPED_ROWS_AT_ONCE, columns=columns)


def _read_delta(source: Path, contract: RequestContract, scored: Scored) -> Iterator[Chunk]:
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    try:
        rows = DeltaTable(source).to_pyarrow_dataset()
        columns = _select_columns(rows.schema.names, contract, scored, source)
        # One file and one batch ahead at most, to bound the memory.
        yield from rows.to_batches(
            columns=columns, batch_size=TYPED_ROWS_AT_ONCE, batch_readahead=1, fragment_readahead=1
        )
    except (DeltaError, OSError) as error:
        raise UnreadableFileError(
            f"{source} could not be read as a Delta table: {str(error).splitlines()[0]}"
        ) from error


def _read_csv(source: Path, contract: RequestContract, scored: Scored) -> Iterator[Chunk]:
    opened = gzip.open if source.suffix == ".gz" else open
    csv.field_size_limit(sys.maxsize)  # the file's size is bounded
    with opened(source, "rt", encoding="utf-8-sig", newline="") as text:
        lines = csv.reader(text, strict=True)
        names = next(lines, [])
        fields = {field.name: field for field in (*contract.features, contract.entity)}
        columns = [(names.index(name), fields[name]) for name in _select_columns(names, contract, scored, source)]
        while chunk := list(itertools.islice(filter(None, lines), TYPED_ROWS_AT_ONCE)):
            yield from _convert_lines(chunk, len(names), columns)


def _convert_lines(lines: list[list[str]], width: int, columns: list[tuple[int, Field]]) -> Iterator[Chunk]:
    """Yield lines as Arrow data, and parts with a line or cell that must be named or kept as rows."""
    kinds = {field.kind for _, field in columns}
    if kinds <= {"int", "float", "bool", "str"}:
        batch = _convert_cells(lines, width, columns)
        if batch is not None:
            yield batch
            return
        if len(lines) > FEW_ROWS:
            half = len(lines) // 2
            yield from _convert_lines(lines[:half], width, columns)
            yield from _convert_lines(lines[half:], width, columns)
            return
    yield [
        {field.name: parse_value(line[position], field.kind) for position, field in columns}
        if len(line) == width
        else RequestProblem(rule=f"must have {width} values, one for each column", value=len(line))
        for line in lines
    ]


def _convert_cells(lines: list[list[str]], width: int, columns: list[tuple[int, Field]]) -> "pa.RecordBatch | None":
    """Return lines as Arrow data, by the grammar of `parse_value`; ``None`` if a cell has no value of its kind."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from ml_platform.data.validation.value_grammar import read_values

    types = {"int": pa.int64(), "float": pa.float64(), "bool": pa.bool_(), "str": pa.string()}
    if any(len(line) != width for line in lines):
        return None
    cells, arrays = list(zip(*lines, strict=True)), list[Any]()
    for position, column in columns:
        texts = pa.array(cells[position], pa.string())
        if isinstance(texts, pa.ChunkedArray):  # more than 2 GiB of text
            return None
        texts = pc.if_else(pc.equal(texts, pa.scalar("")), pa.scalar(None, pa.string()), texts)
        values, unread = read_values(texts, types[column.kind])
        if unread.any() or (column.kind == "float" and pc.any(pc.is_inf(values)).as_py()):
            return None
        arrays.append(values)
    return pa.RecordBatch.from_arrays(arrays, names=[column.name for _, column in columns])


def parse_value(text: str, kind: str) -> Any:
    """Return a text as a value of its field's kind; other text is returned unchanged, and the contract refuses it."""
    if text == "":
        return None
    if kind == "float" and NAN.fullmatch(text):
        return None
    if kind not in PATTERNS or len(text) > LONGEST_NUMBER or not PATTERNS[kind].fullmatch(text):
        return text
    if kind == "bool":
        return text.lower() in {"true", "1"}
    value = int(text) if kind == "int" else float(text)
    return text if value in {math.inf, -math.inf} else value  # 1e400 is beyond the range of a float


def _read_json_lines(source: Path, contract: RequestContract, scored: Scored) -> Iterator[Chunk]:
    known, ignored = {*contract.names, contract.entity.name}, dict[str, None]()

    def rows(file: IO[bytes]) -> Iterator[Row]:
        while line := file.readline(LONGEST_LINE):
            if not line.endswith(b"\n") and len(line) == LONGEST_LINE:
                raise UnreadableFileError(f"{source} has a line of more than {LONGEST_LINE:,} bytes.")
            if not line.strip():
                continue
            try:
                row = msgspec.json.decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                yield RequestProblem(rule="must be a JSON object in UTF-8")
                continue
            if isinstance(row, dict):
                ignored.update(dict.fromkeys(name for name in row if name not in known))
                yield {name: value for name, value in row.items() if name in known}
            else:
                yield RequestProblem(rule="must be a JSON object")

    with source.open("rb") as file:
        yield from _split_into_chunks(rows(file))
    scored.ignored += ignored


def _split_into_chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while chunk := list(itertools.islice(rows, ROWS_AT_ONCE)):
        yield chunk


# Checking rows against the contract


@dataclass(frozen=True)
class _ValidRow:
    number: int
    record: Record
    entity: Any


Decode = Callable[[Sequence[Mapping[str, Any]]], tuple[list[Record], list[Any] | None]]


def _decode_rows(
    rows: list[tuple[int, dict[str, Any]]], decode: Decode, refused: dict[int, list[RequestProblem]]
) -> Iterator[_ValidRow]:
    """Yield the rows that satisfy the contract, and add the problems of the others to `refused`.

    Rows are decoded together and halved after an error, so one invalid row costs a few calls, not one call per row.
    """
    if not rows:
        return
    try:
        records, entities = decode([row for _, row in rows])
    except RequestError as error:
        if len(rows) == 1:
            refused[rows[0][0]] = error.problems
            return
        half = len(rows) // 2
        yield from _decode_rows(rows[:half], decode, refused)
        yield from _decode_rows(rows[half:], decode, refused)
        return
    for position, (number, _) in enumerate(rows):
        yield _ValidRow(number, records[position], entities[position] if entities else None)


# Predicting


def _predict(valid: list[_ValidRow], model: BulkModel, scored: Scored) -> list[dict[str, Any]]:
    """Return the output's rows; rows whose score is not finite are counted as refused."""
    with _name_failure(model, valid[0].number, valid[-1].number):
        answers = model.predict([row.record for row in valid])
    output = []
    for row, score, prediction in zip(valid, answers.scores, answers.predictions, strict=True):
        if not is_finite(score):
            scored.refuse([RequestProblem(rule=NOT_FINITE, record=row.number)])
            continue
        output.append(
            {
                "row": row.number,
                "entity": row.entity,
                "prediction": prediction,
                "scores" if isinstance(score, list) else "score": score,
                "anomaly_score": model.contract.anomaly(row.record),
                "model": model.contract.model,
                "version": model.version,
                "digest": model.digest,
            }
        )
    scored.rows += len(output)
    return output


def _predict_columns(
    batch: "pa.RecordBatch", first: int, model: BulkModel, columns: ColumnCheck, scored: Scored
) -> "pa.Table":
    """Return the output's rows for valid rows of a file, which begin with the number `first`, as `_predict` does."""
    import numpy as np
    import pyarrow as pa

    assert model.predict_frame is not None  # noqa: S101 - `_split_chunk` gives no Arrow data otherwise
    rows = batch.num_rows
    with _name_failure(model, first, first + rows - 1):
        scores, predictions = model.predict_frame(columns.frame(batch))
    entity = model.contract.entity.name
    several = np.ndim(scores) == 2
    table = pa.table(
        {
            "row": np.arange(first, first + rows),
            "entity": batch.column(entity) if entity in batch.schema.names else pa.nulls(rows),
            "prediction": pa.array(predictions.tolist() if predictions.dtype.kind in "OUT" else predictions),
            "scores" if several else "score": pa.array(list(scores) if several else np.asarray(scores, "float64")),
            "anomaly_score": columns.anomalies(batch),
            "model": pa.repeat(pa.scalar(model.contract.model, pa.string()), rows),
            "version": pa.repeat(pa.scalar(model.version, pa.int64()), rows),
            "digest": pa.repeat(pa.scalar(model.digest, pa.string()), rows),
        }
    )
    finite = np.isfinite(scores).reshape(rows, -1).all(axis=1)
    for place in np.flatnonzero(~finite).tolist():
        scored.refuse([RequestProblem(rule=NOT_FINITE, record=first + place)])
    scored.rows += int(finite.sum())
    return table if finite.all() else table.filter(pa.array(finite))


@contextmanager
def _name_failure(model: BulkModel, first: int, last: int) -> Iterator[None]:
    """Report an error of the model's code, which predicts the rows `first` to `last`."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ModelError(
            # Only the error's class: its text may quote a person's data.
            f"Version {model.version} of {model.contract.model!r} failed to predict rows {first:,} to {last:,}, which "
            f"satisfy its contract ({type(error).__name__}). They were not scored."
        ) from error


# Writing


class _Writer(AbstractContextManager["_Writer"]):
    """Writes the output's rows, a chunk at a time."""

    def write(self, rows: list[dict[str, Any]]) -> None:
        raise NotImplementedError

    def write_table(self, table: "pa.Table") -> None:
        """Write rows from Arrow; by default as `write` does."""
        self.write(table.to_pylist())


class _LineWriter(_Writer):
    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._encode = stream, msgspec.json.Encoder().encode_lines

    def write(self, rows: list[dict[str, Any]]) -> None:
        self._stream.write(self._encode(rows))
        self._stream.flush()

    def __exit__(self, *_: object) -> None:
        self._stream.close()


class _TableWriter(_Writer):
    """Writes Parquet or CSV through Arrow, with the contract's types of entity and prediction."""

    def __init__(self, path: Path, suffix: str, model: BulkModel) -> None:
        import pyarrow as pa
        import pyarrow.csv as pc
        import pyarrow.parquet as pq

        contract, self._as_text = model.contract, suffix == ".csv"
        types = {int: pa.int64(), float: pa.float64(), bool: pa.bool_(), str: pa.string()}
        kinds = {"int": pa.int64(), "float": pa.float64(), "bool": pa.bool_(), "time": pa.timestamp("us", "UTC")}
        prediction = types.get(type(contract.classes[0]), pa.string()) if contract.classes else pa.float64()
        scores = pa.string() if self._as_text else pa.list_(pa.float64())  # a CSV cell cannot contain a list
        self._schema = pa.schema(
            [
                ("row", pa.int64()),
                ("entity", kinds.get(contract.entity.kind, pa.string())),
                ("prediction", prediction),
                ("scores", scores) if len(contract.classes) > 2 else ("score", pa.float64()),
                ("anomaly_score", pa.float64()),
                ("model", pa.string()),
                ("version", pa.int64()),
                ("digest", pa.string()),
            ]
        )
        self._writer = (pc.CSVWriter if self._as_text else pq.ParquetWriter)(path, self._schema)

    def write(self, rows: list[dict[str, Any]]) -> None:
        import pyarrow as pa

        if self._as_text:
            rows = [{**row, "scores": json.dumps(row["scores"])} if "scores" in row else row for row in rows]
        self._writer.write_table(pa.Table.from_pylist(rows, schema=self._schema))

    def write_table(self, table: "pa.Table") -> None:
        if self._as_text and "scores" in table.column_names:
            super().write_table(table)
        else:
            self._writer.write_table(table.cast(self._schema))

    def __exit__(self, *_: object) -> None:
        self._writer.close()
