"""Score a file in bulk, by the contract and the predictor that a server answers requests with.

A file is read a few thousand rows at a time, so that memory depends on no file's size. Rows that break the contract are
named and left out; the others are scored. What comes out has a row for each: the row's number in the file from 0, the
entity where the file has one, prediction and score (``score``, or ``scores`` of more than two classes), the anomaly
score, and model, version and digest.
"""

import csv
import gzip
import json
import math
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec

from ml_platform import durable
from ml_platform.errors import (
    MOST_PROBLEMS,
    ConfigurationError,
    ModelError,
    RequestError,
    RequestProblem,
    UnreadableFileError,
)
from ml_platform.predictor import Answers
from ml_platform.request_contract import Record, RequestContract
from ml_platform.serving.deciding import Decisions
from ml_platform.serving.loading import load_version
from ml_platform.volumes import require_bounded
from ml_platform.workflows import Platform

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_AT_ONCE = 5_000
LONGEST_LINE = BUFFER = 2**20
INPUTS = (".parquet", ".csv", ".csv.gz", ".jsonl")
OUTPUTS = (".parquet", ".csv", ".jsonl")
WORDS = {"true": True, "false": False}
NUMBERS = {
    "int": re.compile(r"[+-]?[0-9]{1,400}"),
    "float": re.compile(r"[+-]?([0-9]{1,400}\.?[0-9]{0,400}|\.[0-9]{1,400})([eE][+-]?[0-9]{1,3})?"),
}

# A row's values by name, or what keeps it from being a row.
Row = dict[str, Any] | RequestProblem


@dataclass(frozen=True, kw_only=True)
class BulkModel:
    """A version that is asked in bulk.

    Parameters
    ----------
    contract : RequestContract
    version : int
    digest : str
        Hex sha256 of the model's bytes.
    predict : callable
        Takes records of the contract and returns their `Answers`.
    """

    contract: RequestContract
    version: int
    digest: str
    predict: Callable[[list[Record]], Answers]


@dataclass(kw_only=True)
class Scored:
    """What came of a file.

    Parameters
    ----------
    rows : int
        Rows that were scored.
    refused : int
        Rows that were not.
    problems : list of str
        Why, of the first `MOST_PROBLEMS`; ``record`` counts the file's rows from 0.
    ignored : list of str
        Columns of the file that the model does not know.
    """

    rows: int = 0
    refused: int = 0
    problems: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    def refuse(self, problems: Sequence[RequestProblem]) -> None:
        """Count a row that cannot be scored."""
        self.refused += 1
        self.problems += [str(problem) for problem in problems[: MOST_PROBLEMS - len(self.problems)]]


def load_model(platform: Platform, model: str, version: int | None) -> BulkModel:
    """Load a version as a server does: proved by the ledger, its files by their digests, its golden requests replayed.

    Parameters
    ----------
    platform : Platform
    model : str
    version : int or None
        One that is or was champion; ``None`` is the champion.

    Raises
    ------
    EvidenceError
        It never was champion, or its evidence does not hold.
    LedgerError
        The ledger does not verify.
    ModelError
        Its files are nowhere, or not what was judged, or do not answer as they did then.
    """
    # A folder of its own: a server that tidies up its copies would take this one away.
    with tempfile.TemporaryDirectory(prefix="ml-platform-") as folder:
        served = Decisions(platform, model, Path(folder)).bring(version)
        loaded = load_version(Path(folder), model, served)
    return BulkModel(
        contract=loaded.contract, version=served.version, digest=served.model_digest, predict=loaded.predict
    )


def score_file(source: Path, model: BulkModel, out: Path | IO[bytes], most_bytes: int) -> Scored:
    """Score every row of a file that keeps the contract.

    Parameters
    ----------
    source : Path
        A Parquet, CSV, CSV.GZ or JSON Lines file, whose text has the types of the contract, or the folder of a Delta
        table, of which the newest version is read.
    model : BulkModel
    out : Path or binary stream
        A path is written whole or not at all, as Parquet, CSV or JSON Lines by its suffix; a stream gets JSON Lines.
    most_bytes : int
        The most bytes of the file, and of what it decompresses to.

    Raises
    ------
    ConfigurationError
        The output's suffix is of no known format.
    UnreadableFileError
        The file is not what its name says, or lacks a feature. No file was written.
    TooLargeError
        It has more bytes than are taken.
    ModelError
        The model raised; no file was written.
    StorageError
        The output could not be stored.
    """
    if not isinstance(out, Path):
        return _score(source, model, most_bytes, _Lines(out))
    if out.suffix not in OUTPUTS:
        raise ConfigurationError(f"--out must end in one of {', '.join(OUTPUTS)}. Got {out.name!r} instead.")
    with durable.temporary_beside(out) as temporary:
        with _writer(temporary, out.suffix, _columns(model.contract)) as writer:
            scored = _score(source, model, most_bytes, writer)
        durable.place(temporary, out)
    return scored


def _score(source: Path, model: BulkModel, most_bytes: int, writer: "_Writer") -> Scored:
    scored, decode = Scored(), model.contract.decoder().mappings
    number = 0
    for rows in _chunks(source, model.contract, scored, most_bytes):
        kept = _kept(rows, number, decode, scored)
        number += len(rows)
        if kept:
            writer.write(_answered(kept, model, scored))
    return scored


# Reading


def _chunks(source: Path, contract: RequestContract, scored: Scored, most_bytes: int) -> Iterator[list[Row]]:
    """Yield a file's rows, some at a time, with the columns that the contract knows."""
    import pyarrow as pa

    if source.is_dir():
        yield from _delta(source, contract, scored)
        return
    readers = {".parquet": _parquet, ".csv": _csv, ".csv.gz": _csv, ".jsonl": _json_lines}
    suffix = next((suffix for suffix in INPUTS if source.name.endswith(suffix)), None)
    if suffix is None:
        raise UnreadableFileError(f"{source} must be a Delta table's folder, or end in one of {', '.join(INPUTS)}.")
    try:
        require_bounded(source, sys.maxsize, most_bytes)
        yield from readers[suffix](source, contract, scored)
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise UnreadableFileError(f"{source} is no readable {suffix[1:]} file: {str(error).splitlines()[0]}") from error


def _known(names: Sequence[str], contract: RequestContract, scored: Scored, source: Path) -> list[str]:
    """Return the columns of a file that the contract knows; the others are noted."""
    if len(set(names)) < len(names):
        raise UnreadableFileError(f"{source} must have unique column names. Got {list(names)} instead.")
    missing = [of.name for of in contract.features if of.required and of.name not in names]
    if missing:
        raise UnreadableFileError(f"{source} must have the features of {contract.model!r}. It lacks {missing}.")
    known = {*contract.names, contract.entity.name}
    scored.ignored += [name for name in names if name not in known]
    return [name for name in names if name in known]


def _parquet(source: Path, contract: RequestContract, scored: Scored) -> Iterator[list[Row]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(source, page_checksum_verification=True, buffer_size=BUFFER) as file:
        columns = _known(file.schema_arrow.names, contract, scored, source)
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=columns):
            yield batch.to_pylist()


def _delta(source: Path, contract: RequestContract, scored: Scored) -> Iterator[list[Row]]:
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    try:
        rows = DeltaTable(source).to_pyarrow_dataset()
        columns = _known(rows.schema.names, contract, scored, source)
        # Of one file at a time, and without reading ahead.
        for batch in rows.to_batches(columns=columns, batch_size=ROWS_AT_ONCE, batch_readahead=1, fragment_readahead=1):
            yield batch.to_pylist()
    except (DeltaError, OSError) as error:
        raise UnreadableFileError(f"{source} is no readable Delta table: {str(error).splitlines()[0]}") from error


def _csv(source: Path, contract: RequestContract, scored: Scored) -> Iterator[list[Row]]:
    opened = gzip.open if source.suffix == ".gz" else open
    with opened(source, "rt", encoding="utf-8-sig", newline="") as text:
        lines = csv.reader(text, strict=True)
        names = next(lines, [])
        read = {of.name: of.kind for of in (*contract.features, contract.entity)}
        kinds = [(names.index(name), name, read[name]) for name in _known(names, contract, scored, source)]
        yield from _in_chunks(_csv_row(line, len(names), kinds) for line in lines if line)


def _csv_row(line: list[str], width: int, kinds: Sequence[tuple[int, str, str]]) -> Row:
    if len(line) != width:
        return RequestProblem(rule=f"must have {width} values, one for each column", value=len(line))
    return {name: _value(line[place], kind) for place, name, kind in kinds}


def _value(text: str, kind: str) -> Any:
    """Return a text's value as its field's kind has it; what is none stays text, for the contract to refuse."""
    if text == "":
        return None
    if kind == "bool":
        return WORDS.get(text.lower(), text)
    numbers: dict[str, type[int] | type[float]] = {"int": int, "float": float}
    # Python reads more as a number than people write: 1_000, digits of other scripts, nan.
    return numbers[kind](text) if kind in numbers and NUMBERS[kind].fullmatch(text) else text


def _json_lines(source: Path, contract: RequestContract, scored: Scored) -> Iterator[list[Row]]:
    known, ignored = {*contract.names, contract.entity.name}, dict[str, None]()

    def rows(file: IO[bytes]) -> Iterator[Row]:
        while line := file.readline(LONGEST_LINE):
            if not line.endswith(b"\n") and len(line) == LONGEST_LINE:
                raise UnreadableFileError(f"{source} has a line of more than {LONGEST_LINE:,} bytes.")
            if line.strip():
                yield _json_row(line, known, ignored)

    with source.open("rb") as file:
        yield from _in_chunks(rows(file))
    scored.ignored += ignored


def _json_row(line: bytes, known: set[str], ignored: dict[str, None]) -> Row:
    try:
        found = msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return RequestProblem(rule="must be a JSON object in UTF-8")
    if not isinstance(found, dict):
        return RequestProblem(rule="must be a JSON object")
    ignored.update(dict.fromkeys(name for name in found if name not in known))
    return {name: value for name, value in found.items() if name in known}


def _in_chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    chunk = list[Row]()
    for row in rows:
        chunk.append(row)
        if len(chunk) == ROWS_AT_ONCE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


# Holding rows against the contract


@dataclass(frozen=True)
class _Kept:
    number: int
    record: Record
    entity: Any


Decode = Callable[[Sequence[Mapping[str, Any]]], tuple[list[Record], list[Any] | None]]


def _kept(rows: list[Row], first: int, decode: Decode, scored: Scored) -> list[_Kept]:
    """Return the rows that keep the contract; the others are counted, in the order of the file."""
    good = [(first + place, row) for place, row in enumerate(rows) if isinstance(row, dict)]
    refused = {first + place: [row] for place, row in enumerate(rows) if isinstance(row, RequestProblem)}
    kept = list(_decoded(good, decode, refused))
    for number in sorted(refused):
        scored.refuse([replace(problem, record=number) for problem in refused[number]])
    return kept


def _decoded(
    rows: list[tuple[int, dict[str, Any]]], decode: Decode, refused: dict[int, list[RequestProblem]]
) -> Iterator[_Kept]:
    """Yield the rows that keep the contract, by halves: a chunk with a bad row costs a few calls more, not each row."""
    if not rows:
        return
    try:
        records, entities = decode([row for _, row in rows])
    except RequestError as error:
        if len(rows) == 1:
            refused[rows[0][0]] = error.problems
            return
        half = len(rows) // 2
        yield from _decoded(rows[:half], decode, refused)
        yield from _decoded(rows[half:], decode, refused)
        return
    for place, (number, _) in enumerate(rows):
        yield _Kept(number, records[place], entities[place] if entities else None)


# Answering


def _answered(kept: list[_Kept], model: BulkModel, scored: Scored) -> list[dict[str, Any]]:
    answers = _ask(model, kept)
    rows = []
    for one, score, prediction in zip(kept, answers.scores, answers.predictions, strict=True):
        if not _finite(score):
            scored.refuse([RequestProblem(rule="has no answer: the model's score is not finite", record=one.number)])
            continue
        several = isinstance(score, list)
        rows.append(
            {
                "row": one.number,
                "entity": one.entity,
                "prediction": prediction,
                "scores" if several else "score": score,
                "anomaly_score": model.contract.anomaly(one.record),
                "model": model.contract.model,
                "version": model.version,
                "digest": model.digest,
            }
        )
    scored.rows += len(rows)
    return rows


def _ask(model: BulkModel, kept: list[_Kept]) -> Answers:
    try:
        return model.predict([one.record for one in kept])
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ModelError(
            # Its class alone: the text may quote a person's value.
            f"Version {model.version} of {model.contract.model!r} cannot answer rows {kept[0].number:,} to "
            f"{kept[-1].number:,}, which keep its contract ({type(error).__name__}). They were not scored."
        ) from error


def _finite(score: Any) -> bool:
    return all(map(math.isfinite, score)) if isinstance(score, list) else math.isfinite(score)


# Writing


class _Writer(AbstractContextManager["_Writer"]):
    """Takes the rows of what comes out, some at a time."""

    def write(self, rows: list[dict[str, Any]]) -> None:
        raise NotImplementedError


class _Lines(_Writer):
    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._encode = stream, msgspec.json.Encoder().encode_lines

    def write(self, rows: list[dict[str, Any]]) -> None:
        self._stream.write(self._encode(rows))
        self._stream.flush()

    def __exit__(self, *_: object) -> None:
        self._stream.close()


class _Tables(_Writer):
    """Parquet or CSV, through Arrow."""

    def __init__(self, opened: Any, schema: "pa.Schema", as_text: bool) -> None:
        self._opened, self._schema, self._as_text = opened, schema, as_text

    def write(self, rows: list[dict[str, Any]]) -> None:
        import pyarrow as pa

        if self._as_text:  # a cell of CSV holds no list
            rows = [{**row, "scores": json.dumps(row["scores"])} if "scores" in row else row for row in rows]
        self._opened.write_table(pa.Table.from_pylist(rows, schema=self._schema))

    def __exit__(self, *_: object) -> None:
        self._opened.close()


def _writer(path: Path, suffix: str, schema: "pa.Schema") -> _Writer:
    import pyarrow as pa
    import pyarrow.csv as pc
    import pyarrow.parquet as pq

    if suffix == ".jsonl":
        return _Lines(path.open("wb"))
    if suffix == ".parquet":
        return _Tables(pq.ParquetWriter(path, schema), schema, as_text=False)
    plain = pa.schema([(one.name, pa.string()) if one.name == "scores" else one for one in schema])
    return _Tables(pc.CSVWriter(path, plain), plain, as_text=True)


def _columns(contract: RequestContract) -> "pa.Schema":
    """Return the columns of what comes out, by what the contract says of entity and answers."""
    import pyarrow as pa

    types = {int: pa.int64(), float: pa.float64(), bool: pa.bool_(), str: pa.string()}
    of_kind = {"int": pa.int64(), "float": pa.float64(), "bool": pa.bool_(), "time": pa.timestamp("us", "UTC")}
    said = types.get(type(contract.classes[0]), pa.string()) if contract.classes else pa.float64()
    several = len(contract.classes) > 2
    return pa.schema(
        [
            ("row", pa.int64()),
            ("entity", of_kind.get(contract.entity.kind, pa.string())),
            ("prediction", said),
            ("scores", pa.list_(pa.float64())) if several else ("score", pa.float64()),
            ("anomaly_score", pa.float64()),
            ("model", pa.string()),
            ("version", pa.int64()),
            ("digest", pa.string()),
        ]
    )
