"""What a request for predictions must look like: made with a version, kept beside it, and obeyed by whoever asks it.

msgspec reads types, ranges and patterns in C from types that are made from the contract. Only where it refuses is a
request looked at a second time, slowly, to name every field, the rule that it breaks and the value that was received.

A record is a tuple of the features' values in the contract's order, with None where a value is missing.
"""

import json
import math
import re
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

from ml_platform.errors import MOST_PROBLEMS, ConfigurationError, RequestError, RequestProblem
from ml_platform.model_spec import Task
from ml_platform.records import canonical_json

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["int", "float", "str", "bool", "time", "any"]
Record = tuple[Any, ...]

LONGEST_SHOWN = 100
# The names of pandera's built-in checks, as rules say them.
WORDS = {
    "eq": "must be",
    "ne": "must not be",
    "gt": "must be greater than",
    "ge": "must be at least",
    "lt": "must be less than",
    "le": "must be at most",
    "isin": "must be one of",
    "notin": "must be none of",
    "str_matches": "must match",
    "str_contains": "must contain",
    "str_startswith": "must start with",
    "str_endswith": "must end with",
    "str_length": "must have a length in",
}
KIND_IN_WORDS = {
    "int": "must be an integer",
    "float": "must be a finite number",
    "str": "must be text",
    "bool": "must be true or false",
    "time": "must be a time as RFC 3339 has it",
    "any": "must be a number, text, true or false",
}
THERE, UNKNOWN = "must be there", "is not a column of this model"
NOT_EMPTY = "must not be empty"
KEPT: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda value, bound: value == bound,
    "ne": lambda value, bound: value != bound,
    "gt": lambda value, bound: value > bound,
    "ge": lambda value, bound: value >= bound,
    "lt": lambda value, bound: value < bound,
    "le": lambda value, bound: value <= bound,
    "isin": lambda value, allowed: value in allowed,
    "notin": lambda value, forbidden: value not in forbidden,
    "str_matches": lambda value, pattern: re.match(pattern, value) is not None,
    "str_contains": lambda value, pattern: re.search(pattern, value) is not None,
    "str_startswith": lambda value, start: value.startswith(start),
    "str_endswith": lambda value, end: value.endswith(end),
    "str_length": lambda value, ends: (ends[0] or 0) <= len(value) <= (math.inf if ends[1] is None else ends[1]),
}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule of a field; a missing value keeps every rule.

    Parameters
    ----------
    name : str
        ``eq``, ``ne``, ``gt``, ``ge``, ``lt``, ``le``, ``isin``, ``notin``, ``str_matches`` (at its start, as
        `re.match`), ``str_contains`` (as `re.search`), ``str_startswith``, ``str_endswith`` or ``str_length``.
    value : number, str, list or datetime
        The bound; a list of values for ``isin`` and ``notin``; ``[least, most]`` for ``str_length``, None for no end.
    """

    name: str
    value: Any

    def keeps(self, value: Any) -> bool:
        """Whether a value of the field's kind keeps the rule."""
        return KEPT[self.name](value, self.value)

    def __str__(self) -> str:
        value = self.value.isoformat() if isinstance(self.value, datetime) else self.value
        return f"{WORDS[self.name]} {value}"


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of a record.

    Parameters
    ----------
    name : str
    kind : str
        ``int``, ``float`` (takes integers too), ``str``, ``bool``, ``time``, or ``any`` for a type that JSON does not
        tell from others.
    dtype : str
        The pandas type that the model was trained on.
    nullable : bool
        Whether it may be null.
    required : bool
        Whether it must be there at all; one that is not there counts as null.
    least, most : int or float or None
        The ends of the type itself; ``None`` where it has none that JSON could exceed.
    zone : bool
        Whether a time has a zone.
    rules : tuple of Rule
    """

    name: str
    kind: Kind
    dtype: str
    nullable: bool = False
    required: bool = True
    least: float | None = None
    most: float | None = None
    zone: bool = False
    rules: tuple[Rule, ...] = ()

    def broken(self, value: Any) -> str | None:
        """Return the first rule that a value breaks, in words; ``None`` if it keeps all."""
        if value is None:
            return None if self.nullable else NOT_EMPTY
        if not _is_of_kind(value, self):
            zone = "" if self.kind != "time" else " with a zone" if self.zone else " without a zone"
            return f"{KIND_IN_WORDS[self.kind]}{zone}"
        return next((str(rule) for rule in self._bounds if not rule.keeps(self._native(value))), None)

    @cached_property
    def _bounds(self) -> tuple[Rule, ...]:
        ends = [Rule(name=name, value=end) for name, end in (("ge", self.least), ("le", self.most)) if end is not None]
        return (*self.rules, *ends)

    def _native(self, value: Any) -> Any:
        return datetime.fromisoformat(value) if self.kind == "time" and isinstance(value, str) else value

    @cached_property
    def type(self) -> Any:
        """The type by which msgspec reads it."""
        read, _ = self._type_and_rest
        return read | None if self.nullable else read

    @cached_property
    def left_over(self) -> tuple[Rule, ...]:
        """The rules that msgspec does not know."""
        _, rest = self._type_and_rest
        return rest

    @cached_property
    def _type_and_rest(self) -> tuple[Any, tuple[Rule, ...]]:
        listed = next((rule for rule in self.rules if rule.name == "isin"), None)
        if listed is not None and self.kind in {"int", "str"}:
            allowed = tuple(value for value in listed.value if all(rule.keeps(value) for rule in self._bounds))
            if allowed:
                return Literal.__getitem__(allowed), ()
        return _annotated(self)


def _is_of_kind(value: Any, of: Field) -> bool:
    if of.kind == "float":
        # An integer of 400 digits is no float; NaN is not below anything.
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if of.kind == "time":
        moment = _moment(value)
        return moment is not None and (moment.tzinfo is not None) == of.zone
    kinds: dict[str, tuple[type, ...]] = {"int": (int,), "str": (str,), "bool": (bool,), "any": (int, float, str, bool)}
    return type(value) in kinds[of.kind]


def _moment(value: Any) -> datetime | None:
    if isinstance(value, datetime) or not isinstance(value, str):
        return value if isinstance(value, datetime) else None
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        return None


# What msgspec reads in C

PLAIN: dict[str, Any] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "time": datetime,
    "any": int | float | str | bool,
}


def _annotated(of: Field) -> tuple[Any, tuple[Rule, ...]]:
    """Return a field's type with as many of its rules as msgspec knows, and the other rules."""
    import msgspec

    if of.kind == "time":
        return Annotated[datetime, msgspec.Meta(tz=of.zone)], of.rules
    asked, rest = dict[str, Any](), list[Rule]()
    for rule in of._bounds:
        known = _meta(of.kind, rule)
        # One of each side: msgspec takes either gt or ge.
        if known is None or any(_side(name) in map(_side, asked) for name in known):
            rest.append(rule)
        else:
            asked.update(known)
    read = PLAIN[of.kind]
    return (Annotated[read, msgspec.Meta(**asked)] if asked else read), tuple(rest)


def _side(name: str) -> str:
    return name[0] if name in {"gt", "ge", "lt", "le"} else name


def _meta(kind: str, rule: Rule) -> dict[str, Any] | None:
    if rule.name in {"gt", "ge", "lt", "le"}:
        return {rule.name: rule.value} if _bounds_in_c(kind, rule.value) else None
    if kind != "str":
        return None
    if rule.name == "str_length":
        ends = {"min_length": rule.value[0], "max_length": rule.value[1]}
        return {name: end for name, end in ends.items() if end is not None}
    # msgspec searches; flags within a pattern must stand at its very start.
    if rule.name == "str_matches" and "(?" not in rule.value:
        return {"pattern": rf"\A(?:{rule.value})"}
    return {"pattern": rule.value} if rule.name == "str_contains" else None


def _bounds_in_c(kind: str, value: Any) -> bool:
    if kind == "int":
        return type(value) is int and -(2**63) <= value < 2**63
    return kind == "float" and type(value) in {int, float}


# The contract


@dataclass(frozen=True, kw_only=True)
class RequestContract:
    """What the requests for one version of a model must look like, and what is known of its answers.

    Parameters
    ----------
    model : str
    task : str
        ``binary``, ``multiclass`` or ``regression``.
    features : tuple of Field
        In the order in which the model was trained on them.
    entity : Field
        Whom a record is about: it may be given, is never shown to the model, and goes into the prediction log.
    classes : tuple
        What the model's predictions may be, in the order of its probabilities; empty for a regression.
    positive : str, int or None
        The label's value that the prediction 1 stands for; ``None`` for other tasks than ``binary``.
    score_ends : tuple of float
        Upper ends of the buckets in which scores are counted, growing; one more bucket holds what is above.
    ranges : dict of str to (float, float)
        Between which values 99 of 100 training rows lay, by numeric feature.
    categories : dict of str to tuple
        The values that were often enough in the training rows, by feature of text or truth values.
    logged : tuple of str
        The features whose values may stand in the prediction log.
    unchecked : tuple of str
        The rules of the table that are Python code, or about several rows: nobody checks them at a request.
    """

    model: str
    task: Task
    features: tuple[Field, ...]
    entity: Field
    classes: tuple[Any, ...] = ()
    positive: str | int | None = None
    score_ends: tuple[float, ...] = ()
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    categories: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    logged: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The features' names, in the order of a record's values."""
        return tuple(one.name for one in self.features)

    @property
    def document(self) -> str:
        """The contract as canonical JSON."""
        return canonical_json(_plain(asdict(self)))

    @classmethod
    def from_document(cls, text: str) -> "RequestContract":
        """Read a contract back from its canonical JSON.

        Raises
        ------
        ConfigurationError
            The text is no contract that this version reads.
        """
        try:
            said = json.loads(text)
            lists = {name: tuple(said[name]) for name in ("classes", "score_ends", "logged", "unchecked")}
            return cls(
                **{
                    **said,
                    **lists,
                    "features": tuple(_field(one) for one in said["features"]),
                    "entity": _field(said["entity"]),
                    "ranges": {name: (ends[0], ends[1]) for name, ends in said["ranges"].items()},
                    "categories": {name: tuple(values) for name, values in said["categories"].items()},
                }
            )
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ConfigurationError(
                f"The request contract cannot be read: {error!r}. Judge the candidate again."
            ) from (error)

    def decoder(self) -> "RequestDecoder":
        """Return what reads records of this contract from JSON; make it once, it costs milliseconds."""
        return RequestDecoder(self)

    def values(self, record: Record, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Return a record's values by name, of some features or, for ``None``, of all."""
        every = dict(zip(self.names, record, strict=True))
        return every if names is None else {name: every[name] for name in names}

    def frame(self, records: Sequence[Record]) -> "pd.DataFrame":
        """Return records as a DataFrame with the types that the model was trained on; shape (n_records, n_features)."""
        import pandas as pd

        columns = zip(*records, strict=True) if records else [()] * len(self.features)
        return pd.DataFrame(
            {
                of.name: pd.Series(values, dtype=_dtype(of, values))
                for of, values in zip(self.features, columns, strict=True)
            }
        )

    def records_of(self, frame: "pd.DataFrame") -> list[Record]:
        """Return a DataFrame's rows as records, as if they had come as JSON; the inverse of `frame`."""
        columns = [[_from_frame(of, value) for value in frame[of.name].tolist()] for of in self.features]
        return list(zip(*columns, strict=True))

    def bucket_of(self, score: float | Sequence[float]) -> int:
        """Return the bucket of a score, 0 to ``len(score_ends)``; of several probabilities the greatest counts."""
        return bisect_left(self.score_ends, score if isinstance(score, int | float) else max(score))

    def anomaly(self, record: Record) -> float:
        """Return the share of features outside their range or their known values, 0 to 1; a missing value is inside."""
        ranges, categories = self._watched
        outside = 0
        for place, least, most in ranges:
            value = record[place]
            outside += value is not None and not least <= value <= most
        for place, known in categories:
            value = record[place]
            outside += value is not None and value not in known
        return outside / (len(ranges) + len(categories)) if outside else 0.0

    @cached_property
    def _watched(self) -> tuple[list[tuple[int, float, float]], list[tuple[int, frozenset[Any]]]]:
        places = {name: place for place, name in enumerate(self.names)}
        ranges = [(places[name], least, most) for name, (least, most) in self.ranges.items()]
        return ranges, [(places[name], frozenset(known)) for name, known in self.categories.items()]


def _from_frame(of: Field, value: Any) -> Any:
    if value is None or value != value or type(value).__name__ in {"NAType", "NaTType"}:
        return None
    if of.kind == "int":
        return int(value)  # a column with missing ones holds floats
    return value.to_pydatetime() if hasattr(value, "to_pydatetime") else value


def _dtype(of: Field, values: Sequence[Any]) -> str:
    # The training rows of such a column had none missing.
    if of.dtype.lstrip("u").startswith("int") and None in values:
        return "float64"
    return "object" if of.dtype == "bool" and None in values else of.dtype


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return {"time": value.isoformat()} if isinstance(value, datetime) else value


def _field(said: dict[str, Any]) -> Field:
    return Field(
        **{**said, "rules": tuple(Rule(name=one["name"], value=_value(one["value"])) for one in said["rules"])}
    )


def _value(said: Any) -> Any:
    if isinstance(said, list):
        return [_value(one) for one in said]
    return datetime.fromisoformat(said["time"]) if isinstance(said, dict) else said


# Reading


class RequestDecoder:
    """Reads records of one contract from JSON, in three shapes.

    Each method returns the records, and whom they are about: a list as long, or None where no record says so.

    Parameters
    ----------
    contract : RequestContract
    """

    def __init__(self, contract: RequestContract) -> None:
        import msgspec

        self.contract = contract
        self._fields = {of.name: of for of in (*contract.features, contract.entity)}
        self._width = len(contract.features)
        self._list = _list_of(_struct(contract))
        self._records = msgspec.json.Decoder(self._list)
        self._columns = {name: msgspec.json.Decoder(_list_of(of.type)) for name, of in self._fields.items()}
        self._columns[contract.entity.name] = msgspec.json.Decoder(_list_of(contract.entity.type | None))
        self._checks = [(place, rule) for place, of in enumerate(contract.features) for rule in of.left_over]
        self._rows = lru_cache(maxsize=64)(self._decoder_of_rows)

    def records(self, raw: Any) -> tuple[list[Record], list[Any] | None]:
        """Read a JSON list of objects.

        Parameters
        ----------
        raw : bytes or msgspec.Raw

        Raises
        ------
        RequestError
            It is none, or a field breaks a rule.
        """
        import msgspec

        try:
            found = self._records.decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise self._refused(error, _objects(raw, error)) from error
        return self._checked(list(map(msgspec.structs.astuple, found)), range(self._width), self._width)

    def rows(self, columns: Sequence[str], raw: Any) -> tuple[list[Record], list[Any] | None]:
        """Read a JSON list of lists, whose values stand in the order of some columns; as `records`."""
        import msgspec

        self._require_columns(columns)
        try:
            found = self._rows(tuple(columns)).decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise self._refused(error, _lists(raw, columns, error)) from error
        places = {name: place for place, name in enumerate(columns)}
        order = [places.get(name, -1) for name in self.contract.names]
        return self._checked(found, order, places.get(self.contract.entity.name))

    def columns(self, raws: Mapping[str, Any]) -> tuple[list[Record], list[Any] | None]:
        """Read a JSON list of values for each column; as `records`."""
        import msgspec

        self._require_columns(list(raws))
        found = dict[str, list[Any]]()
        for name, raw in raws.items():
            try:
                found[name] = self._columns[name].decode(raw)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise self._refused(error, _objects_of(raws)) from error
        lengths = {len(values) for values in found.values()}
        if len(lengths) > 1:
            sizes = ", ".join(f"{name} {len(values)}" for name, values in list(found.items())[:MOST_PROBLEMS])
            raise RequestError(422, [RequestProblem(rule="columns must have one length", value=sizes)])
        rows = list(zip(*found.values(), strict=True))
        places = {name: place for place, name in enumerate(found)}
        order = [places.get(name, -1) for name in self.contract.names]
        return self._checked(rows, order, places.get(self.contract.entity.name))

    def mappings(self, rows: Sequence[Mapping[str, Any]]) -> tuple[list[Record], list[Any] | None]:
        """Take records that are Python values by name already, as a file's rows are; NaN counts as missing."""
        import msgspec

        plain = [{name: None if value != value else value for name, value in row.items()} for row in rows]
        # Infinity is no JSON, so the types do not ask for it.
        finite = all(not isinstance(value, float) or math.isfinite(value) for row in plain for value in row.values())
        try:
            found = msgspec.convert(plain, self._list) if finite else None
        except msgspec.ValidationError as error:
            raise self._refused(error, enumerate(plain)) from error
        if found is None:
            raise self._refused(ValueError("a number is not finite"), enumerate(plain))
        return self._checked(list(map(msgspec.structs.astuple, found)), range(self._width), self._width)

    def _checked(
        self, rows: list[Record], order: Sequence[int], entity: int | None
    ) -> tuple[list[Record], list[Any] | None]:
        """Return rows in the contract's order, with the entities apart, if they keep the rules that are Python's."""
        if not rows:
            raise RequestError(422, [RequestProblem(rule="must hold at least one record")])
        entities = None if entity is None else [row[entity] for row in rows]
        if list(order) != list(range(self._width)):
            rows = [tuple(None if place < 0 else row[place] for place in order) for row in rows]
        elif len(rows[0]) > self._width:
            rows = [row[: self._width] for row in rows]
        for place, rule in self._checks:
            if not all(row[place] is None or rule.keeps(row[place]) for row in rows):
                named = ((number, self.contract.values(row)) for number, row in enumerate(rows))
                raise self._refused(ValueError(str(rule)), named)
        return rows, None if entities is None or all(one is None for one in entities) else entities

    def _require_columns(self, columns: Sequence[str]) -> None:
        problems = [
            RequestProblem(rule=UNKNOWN, field=name[:LONGEST_SHOWN]) for name in columns if name not in self._fields
        ]
        twice = {name for name in columns if list(columns).count(name) > 1} if len(set(columns)) < len(columns) else ()
        problems += [RequestProblem(rule="must come once", field=name[:LONGEST_SHOWN]) for name in sorted(twice)]
        problems += [
            RequestProblem(rule=THERE, field=of.name)
            for of in self.contract.features
            if of.required and of.name not in columns
        ]
        if problems:
            raise RequestError(422, problems[:MOST_PROBLEMS])

    def _decoder_of_rows(self, columns: tuple[str, ...]) -> Any:
        import msgspec

        entity = self.contract.entity.name
        types = [of.type | None if of.name == entity else of.type for of in map(self._fields.__getitem__, columns)]
        return msgspec.json.Decoder(_list_of(tuple.__class_getitem__(tuple(types))))

    # The second look

    def _refused(self, error: Exception, records: Iterable[tuple[int, Any]]) -> RequestError:
        problems = list[RequestProblem]()
        for problem in self._problems(records):
            problems.append(problem)
            if len(problems) == MOST_PROBLEMS:
                break
        # msgspec refused, and what it refused is not found again: its own words are better than none.
        return RequestError(422, problems or [RequestProblem(rule=f"is refused: {error}")])

    def _problems(self, records: Iterable[tuple[int, Any]]) -> Iterator[RequestProblem]:
        entity = self.contract.entity.name
        for number, record in records:
            if not isinstance(record, dict):
                yield RequestProblem(rule="must be an object", value=shown(record), record=number)
                continue
            for name, value in record.items():
                of = self._fields.get(name)
                broken = UNKNOWN if of is None else None if name == entity and value is None else of.broken(value)
                if broken:
                    yield RequestProblem(rule=broken, field=name[:LONGEST_SHOWN], value=shown(value), record=number)
            for of in self.contract.features:
                if of.required and of.name not in record:
                    yield RequestProblem(rule=THERE, field=of.name, record=number)


def _list_of(read: Any) -> Any:
    return list.__class_getitem__(read)


def _struct(contract: RequestContract) -> Any:
    import msgspec

    features = list[tuple[Any, ...]]()
    for place, of in enumerate(contract.features):
        features.append((f"f{place}", of.type) if of.required else (f"f{place}", of.type | None, None))
    # What must be there cannot stand behind what need not, unless it is given by name.
    names = {f"f{place}": of.name for place, of in enumerate(contract.features)}
    return msgspec.defstruct(
        "Record",
        [*features, ("entity", contract.entity.type | None, None)],
        rename={**names, "entity": contract.entity.name},
        forbid_unknown_fields=True,
        kw_only=True,
        gc=False,
    )


def shown(value: Any) -> str | float | bool | None:
    """Return a value as an error shows it: short, and nothing that JSON cannot say."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, bool | float) or value is None or (isinstance(value, int) and abs(value) < 2**53):
        return value
    # Python refuses to write an integer of more than 4,300 digits.
    text = "an integer of many digits" if isinstance(value, int) and abs(value) >= 10**LONGEST_SHOWN else str(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def read_again(raw: Any) -> Any:
    """Read JSON slowly, with numbers that are too great and with NaN, to say what is wrong with it.

    Raises
    ------
    RequestError
        It is no JSON at all, or nested too deeply.
    """
    try:
        return json.loads(bytes(raw))
    except (ValueError, RecursionError) as error:
        raise malformed(error) from error


def malformed(error: Exception) -> RequestError:
    """Return the refusal of what is no JSON."""
    why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:LONGEST_SHOWN]
    return RequestError(400, [RequestProblem(rule=f"the body must be JSON in UTF-8: {why}")])


def _objects(raw: Any, error: Exception) -> Iterator[tuple[int, Any]]:
    found = read_again(raw)
    if not isinstance(found, list):
        raise RequestError(422, [RequestProblem(rule="must be a list of records", value=shown(found))]) from error
    return enumerate(found)


def _lists(raw: Any, columns: Sequence[str], error: Exception) -> Iterator[tuple[int, Any]]:
    for number, row in _objects(raw, error):
        if not isinstance(row, list) or len(row) != len(columns):
            rule = f"must be a list of {len(columns)} values, one for each column"
            raise RequestError(422, [RequestProblem(rule=rule, value=shown(row), record=number)]) from error
        yield number, dict(zip(columns, row, strict=True))


def _objects_of(raws: Mapping[str, Any]) -> Iterator[tuple[int, Any]]:
    columns = {name: read_again(raw) for name, raw in raws.items()}
    for name, values in columns.items():
        if not isinstance(values, list):
            raise RequestError(
                422, [RequestProblem(rule="must be a list", field=name[:LONGEST_SHOWN], value=shown(values))]
            )
    rows = max(len(values) for values in columns.values())
    for number in range(rows):
        yield number, {name: values[number] for name, values in columns.items() if number < len(values)}
