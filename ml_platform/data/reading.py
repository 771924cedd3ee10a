"""Read stored bytes of arrivals in a process of their own, so that a file that ends its reader ends nothing else.

The process reads and validates; its result is a report without the bytes, and the valid rows as an Arrow file that has
no name and is mapped by this process. One process serves all arrivals of a run, and another one replaces it after a
death.
"""

import atexit
import base64
import importlib
import json
import mmap
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ml_platform.data import datasets
from ml_platform.data import preview as previews
from ml_platform.data.erasure import Entities
from ml_platform.data.validation import validate
from ml_platform.data.validation.validate import Violation
from ml_platform.errors import (
    ConfigurationError,
    DataError,
    DatasetError,
    PlatformError,
    ReaderEndedError,
    StorageError,
    one_line,
    shorten,
)
from ml_platform.model_spec import ModelSpec
from ml_platform.records.data import RawBatch
from ml_platform.settings import Settings
from ml_platform.storage import atomic_files
from ml_platform.system.limited_process import LimitedProcess
from ml_platform.system.memory import read_machine_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

MIN_MEMORY_BYTES = 2**30
# Rows of fewer bytes come back with the report and need no space on the disk.
INLINE_BYTES = 2**20
PREVIEW_SECONDS = 60.0
# Limits of what a report keeps of any file.
RULES = 100
VIOLATIONS_OF_FILE = 1_000
LONGEST_SENTENCE = 1_000
HEAVY_MODULES = (
    "ml_platform.data.validation.schema_scan",
    "ml_platform.data.quarantined_rows",
    "pyarrow.csv",
    "pyarrow.json",
    "pandera.pandas",
    "deltalake",
)

_reader = LimitedProcess("ml_platform.data.reading", HEAVY_MODULES)


def start_early() -> None:
    """Start the process that reads files, so that its imports overlap with other work of this process."""
    _reader.start()


@atexit.register
def stop_reader() -> None:
    """End the process that reads files, if it runs."""
    _reader.close()


def reader_pid() -> int | None:
    """Return the number of the process that reads files; ``None`` if none runs."""
    return _reader.pid


@dataclass(frozen=True, kw_only=True)
class ReadReport:
    """Result of the validation of stored bytes, as the process that read them reports it.

    Parameters
    ----------
    rows, quarantined_rows, passed_over_rows : int
        Numbers of rows in the file, of those that must not be published, and of those that are published already.
    problem : str or None
        Reason for quarantining the whole file; ``None`` if its valid rows may be published.
    rules, examples, violations
        As of `validate.Report`, with shortened texts.
    published_since : int
        Number of quarantined rows of a batch that another arrival has published since, apart from `rows`.
    valid : pyarrow Table
        The rows that may be published; no rows or columns if the whole file is quarantined.
    """

    rows: int
    quarantined_rows: int
    passed_over_rows: int
    problem: str | None
    rules: dict[str, dict[str, int]]
    examples: dict[str, list[str]]
    violations: list[Violation]
    published_since: int = 0
    stored: "Callable[[], pa.Table] | None" = field(default=None, compare=False)

    @property
    def valid_rows(self) -> int:
        """Number of rows that may be published."""
        return self.rows - self.quarantined_rows - self.passed_over_rows

    @cached_property
    def valid(self) -> "pa.Table":
        """The rows that may be published."""
        import pyarrow as pa

        return pa.table({}) if self.stored is None else self.stored()


def make_unreadable(problem: str, check: str = "schema") -> ReadReport:
    """Return the report on a file that cannot be read, whose `problem` counts as a violation of a data check."""
    return _make_report(_summarize(validate.unreadable(problem, check)))


# In the process of the platform


def validate_file(settings: Settings, spec: ModelSpec, batch: RawBatch, table: Path, version: int) -> ReadReport:
    """Validate a batch's stored bytes against one version of the model's published rows.

    Parameters
    ----------
    settings : Settings
        Limits of bytes, memory and time.
    spec : ModelSpec
        Declares the contract, which must be importable by name.
    batch : RawBatch
    table : Path
        Folder of the Delta table of the published rows.
    version : int
        Its version; -1 if there is no table.

    Raises
    ------
    ReaderEndedError
        The file ended its reader.
    StorageError
        The stored bytes cannot be opened, or the disk for the valid rows is full.
    """
    request = {"do": "validate", "table": str(table), "version": version}
    return _ask_for_report(settings, spec, batch, request)


def validate_again(
    settings: Settings, spec: ModelSpec, batch: RawBatch, table: Path, version: int, *, known: int | None
) -> ReadReport:
    """Validate the quarantined rows of a batch; numbers of rows are those before any erasure.

    Parameters
    ----------
    settings, spec, batch, table, version
        As of `validate_file`.
    known : int or None
        Number of the batch's rows that were published or passed over before; the others are validated. ``None`` for a
        batch that was quarantined whole.

    Raises
    ------
    ReaderEndedError, StorageError
        As `validate_file`.
    """
    request = {"do": "validate_again", "table": str(table), "version": version, "known": known}
    return _ask_for_report(settings, spec, batch, request)


def preview_file(settings: Settings, batch: RawBatch) -> previews.Preview | None:
    """Return the first rows of a batch's stored bytes; ``None`` if they cannot be read.

    A preview never fails a run, also if the bytes end their reader.
    """
    seconds = min(PREVIEW_SECONDS, settings.reader_seconds)
    try:
        with _result_file(settings, batch.arrival.model) as file:
            answer = _ask(settings, {"do": "preview", "spec": None, "path": batch.path}, file, seconds)
    except PlatformError:  # the validation reports it
        return None
    return None if answer is None else previews.Preview(**answer)


def remove_entities(settings: Settings, spec: ModelSpec, path: Path, entities: Entities) -> tuple[bytes, list[int]]:
    """Read a file without the rows of some entities, as `row_removal.read_without_entities` does.

    Raises
    ------
    DataError
        The file cannot be searched, or it ended its reader.
    StorageError
        The file cannot be opened, or the disk for the other rows is full.
    """
    request = {"do": "remove", "spec": _describe_spec(spec), "path": str(path), "entities": entities.to_json()}
    with _result_file(settings, spec.name) as file:
        try:
            answer = _ask(settings, request, file, settings.reader_seconds)
        except ReaderEndedError as error:
            raise DataError(f"{path} cannot be searched: it ended the process that read it: {error}.") from error
        file.seek(0)
        return file.read(answer["bytes"]), answer["removed"]


def _ask_for_report(settings: Settings, spec: ModelSpec, batch: RawBatch, request: dict[str, Any]) -> ReadReport:
    request |= {"spec": _describe_spec(spec), "path": batch.path, "removed": list(batch.removed)}
    request |= {"corrects": batch.corrects}
    with _result_file(settings, batch.arrival.model) as file:
        answer = _ask(settings, request, file, settings.reader_seconds)
        size, inline = answer.pop("bytes"), base64.b64decode(answer.pop("inline", ""))
        data = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else inline
    report = _make_report(answer)
    return replace(report, stored=lambda: _read_valid(data, report.valid_rows)) if data else report


def _make_report(summary: dict[str, Any], stored: "Callable[[], pa.Table] | None" = None) -> ReadReport:
    violations = [Violation(*one) for one in summary["violations"]]
    return ReadReport(**{**summary, "violations": violations}, stored=stored)


def _ask(settings: Settings, request: dict[str, Any], file: IO[bytes], seconds: float) -> Any:
    request |= {"max_file_bytes": settings.max_file_bytes}
    limit = settings.reader_memory_bytes
    if limit is None:
        limit = min(max(4 * settings.max_file_bytes, MIN_MEMORY_BYTES), read_machine_bytes() * 3 // 4)
    return _reader.call(request, file, max_bytes=limit, seconds=seconds)


@contextmanager
def _result_file(settings: Settings, model: str) -> "Iterator[IO[bytes]]":
    """Yield a file without a name on the disk of the tables: a killed process leaves nothing behind."""
    folder = settings.model_home(model)
    with atomic_files.raise_storage_errors(folder):
        atomic_files.make_folder(folder)
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed below, without converting errors of the body
    with file:
        yield file


def _read_valid(data: mmap.mmap | bytes, rows: int) -> "pa.Table":
    """Return the rows in a reader's Arrow file, which was made from untrusted bytes: check it before it is used."""
    import pyarrow as pa

    try:
        table = pa.ipc.open_file(pa.py_buffer(data)).read_all()
        table.validate(full=True)
    except pa.ArrowException as error:
        raise DataError(f"The process that reads files returned rows that are not valid: {one_line(error)}.") from error
    if table.num_rows != rows:
        raise DataError(f"The process that reads files returned {table.num_rows:,} rows and reported {rows:,}.")
    return table


def _describe_spec(spec: ModelSpec) -> dict[str, Any]:
    """Return a description of a spec from which the reader makes its own: plain fields, and the contract by name."""
    module, name = spec.contract.__module__, spec.contract.__qualname__
    plain = {key: value for key, value in vars(spec).items() if isinstance(value, bool | int | float | str | None)}
    return {"contract": [module, name], "fields": plain}


# In the process that reads


def handle(request: dict[str, Any], file: IO[bytes], begin: Callable[[], None]) -> Any:
    """Answer one request in the process that reads files."""
    path = Path(request["path"])
    with atomic_files.raise_storage_errors(path):
        path.open("rb").close()
    if request["do"] == "preview":
        begin()
        try:
            first = previews.preview(path, request["max_file_bytes"])
        except _reader_errors():
            return None
        return None if first is None else asdict(first)
    spec = _load_spec(json.dumps(request["spec"]))
    if request["do"] == "remove":
        return _remove(path, spec, request, file, begin)
    before = datasets.PublishedState(table=Path(request["table"]), version=request["version"])
    max_bytes, corrects, since = request["max_file_bytes"], request["corrects"], 0
    begin()
    try:
        if request["do"] == "validate":
            report = validate.validate_file(path, spec, before, max_bytes, corrects=corrects)
        else:
            from ml_platform.data import quarantined_rows

            report, since = quarantined_rows.validate_again(
                path, spec, before, request["removed"], max_bytes, known=request["known"], corrects=corrects
            )
        summary, valid = _summarize(report), _use_types_of_contract(report.valid, spec)
    except (DatasetError, StorageError):  # of the published rows, not of the file
        raise
    except _reader_errors() as error:
        problem = f"reading it failed: {shorten(one_line(error), LONGEST_SENTENCE)}"
        return {**_summarize(validate.unreadable(problem)), "bytes": 0}
    return {**summary, "published_since": since, **_write_valid(valid, file)}


def _remove(
    path: Path, spec: ModelSpec, request: dict[str, Any], file: IO[bytes], begin: Callable[[], None]
) -> dict[str, Any]:
    from ml_platform.data import row_removal

    entities = Entities.from_json(request["entities"])
    begin()
    try:
        data, removed = row_removal.read_without_entities(path, spec, entities, request["max_file_bytes"])
    except DataError:
        raise
    except _reader_errors() as error:
        raise DataError(f"{path} cannot be searched: {shorten(one_line(error), LONGEST_SENTENCE)}.") from error
    with atomic_files.raise_storage_errors(Path("the folder of the model")):
        file.write(data)
        file.flush()
    return {"bytes": len(data), "removed": removed}


def _reader_errors() -> tuple[type[BaseException], ...]:
    """Return the errors that untrusted bytes can raise: any. Polars' panics are no ``Exception``."""
    import polars as pl

    return (Exception, pl.exceptions.PanicException)


@lru_cache(maxsize=8)
def _load_spec(description: str) -> ModelSpec:
    given = json.loads(description)
    module, name = given["contract"]
    try:
        contract: Any = importlib.import_module(module)
        for part in name.split("."):
            contract = getattr(contract, part)
    except Exception as error:
        raise ConfigurationError(
            f"The contract {module}.{name} of the model {given['fields']['name']!r} cannot be imported by its name: "
            f"{one_line(error)}. Declare the class at the top level of the model's file."
        ) from error
    return ModelSpec.model_construct(**given["fields"], contract=contract)


def _write_valid(valid: "pa.Table", file: IO[bytes]) -> dict[str, Any]:
    """Return few rows as text, or write them as an Arrow file and return its size in bytes; 0 without rows."""
    import pyarrow as pa

    if not valid.num_rows:
        return {"bytes": 0}
    if valid.nbytes < INLINE_BYTES:
        few = pa.BufferOutputStream()
        with pa.ipc.new_file(few, valid.schema) as writer:
            writer.write_table(valid)
        return {"bytes": 0, "inline": base64.b64encode(few.getvalue()).decode("ascii")}
    with atomic_files.raise_storage_errors(Path("the folder of the model")), pa.PythonFile(file, "w") as sink:
        with pa.ipc.new_file(sink, valid.schema) as writer:
            writer.write_table(valid)
        return {"bytes": int(sink.tell())}


def _use_types_of_contract(rows: "pa.Table", spec: ModelSpec) -> "pa.Table":
    """Give texts and times the Arrow types of the contract: Parquet has several for one type of pandas."""
    import pyarrow.types as types

    for wanted in validate.arrow_types(spec) if rows.num_columns else []:
        index = rows.schema.get_field_index(wanted.name)
        given = None if index < 0 else rows.schema.field(index).type
        several = types.is_timestamp(wanted.type) or types.is_string(wanted.type)
        if given not in {None, wanted.type} and (several or types.is_dictionary(given)):
            rows = rows.set_column(index, wanted, rows.column(index).cast(wanted.type))
    return rows


def _summarize(report: validate.Report) -> dict[str, Any]:
    """Return a report as JSON with bounded texts."""
    problem = None if report.problem is None else shorten(report.problem, LONGEST_SENTENCE)
    examples = {check: [shorten(one, LONGEST_SENTENCE) for one in some] for check, some in report.examples.items()}
    return {
        "rows": report.rows,
        "quarantined_rows": report.quarantined_rows,
        "passed_over_rows": report.passed_over_rows,
        "problem": problem,
        "rules": {check: _bound_rules(rules) for check, rules in report.rules.items()},
        "examples": examples,
        "violations": _bound_violations(report.violations),
    }


def _bound_rules(rules: dict[str, int]) -> dict[str, int]:
    bounded: dict[str, int] = {}
    for number, (rule, count) in enumerate(rules.items()):
        name = shorten(rule, LONGEST_SENTENCE) if number < RULES else f"{len(rules) - RULES:,} more rules"
        bounded[name] = bounded.get(name, 0) + count
    return bounded


def _bound_violations(violations: list[Violation]) -> list[list[Any]]:
    """Return violations as lists: those of rows, whose number is bounded, and some of those of the whole file."""
    whole = [one for one in violations if one.row is None]
    kept = [one for one in violations if one.row is not None] + whole[:VIOLATIONS_OF_FILE]
    if len(whole) > VIOLATIONS_OF_FILE:
        more = f"{len(whole) - VIOLATIONS_OF_FILE:,} more violations of the whole file"
        kept.append(Violation(None, "", whole[0].check, more, ""))
    return [[one.row, *(shorten(text, LONGEST_SENTENCE) for text in one[1:])] for one in kept]
