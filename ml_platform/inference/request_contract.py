"""The request contract of a version: the fields, types and rules of the records that it predicts.

The contract is built and stored with the version. msgspec checks types, ranges and patterns in C, by types that are
built from the contract. If it refuses a request, the records are checked a second time, slowly, to name each field, the
rule that it breaks and the value received.

A record is a tuple of the features' values in the contract's order, with None for a missing value.
"""

import codecs
import json
import math
import re
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cached_property, lru_cache
from itertools import chain, islice
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from ml_platform.errors import MAX_PROBLEMS, ConfigurationError, RequestError, RequestProblem
from ml_platform.model_spec import Task
from ml_platform.records.canonical import canonical_json

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["int", "float", "str", "bool", "time", "any"]
Record = tuple[Any, ...]

LONGEST_SHOWN = 100
# The words of a message for each rule; the names are those of pandera's built-in checks.
RULE_WORDS = {
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
KIND_WORDS = {
    "int": "must be an integer",
    "float": "must be a finite number",
    "str": "must be text",
    "bool": "must be true or false",
    "time": "must be a time in RFC 3339 format",
    "any": "must be a number, text, true or false",
}
REQUIRED, UNKNOWN = "is required", "is not a column of this model"
NOT_EMPTY = "must not be empty"
CHECKS: dict[str, Callable[[Any, Any], bool]] = {
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
    """One rule of a field. Rules do not apply to missing values.

    Parameters
    ----------
    name : str
        ``eq``, ``ne``, ``gt``, ``ge``, ``lt``, ``le``, ``isin``, ``notin``, ``str_matches`` (at the start, as
        `re.match`), ``str_contains`` (as `re.search`), ``str_startswith``, ``str_endswith`` or ``str_length``.
    value : number, str, list or datetime
        The bound or the text; a list of values for ``isin`` and ``notin``; ``[minimum, maximum]`` for ``str_length``,
        with None for an open end.
    """

    name: str
    value: Any

    def accepts(self, value: Any) -> bool:
        """Return True if a value, which must be of the field's kind, conforms to the rule."""
        return CHECKS[self.name](value, self.value)

    def __str__(self) -> str:
        value = self.value.isoformat() if isinstance(self.value, datetime) else self.value
        return f"{RULE_WORDS[self.name]} {value}"


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of a record.

    Parameters
    ----------
    name : str
    kind : str
        ``int``, ``float`` (which accepts integers), ``str``, ``bool``, ``time``, or ``any`` for a type that JSON cannot
        express.
    dtype : str
        The pandas type of the column in the training rows.
    nullable : bool
        True if the value may be null.
    required : bool
        True if the field must be present; an optional field that is absent counts as null.
    least, most : int or float or None
        The smallest and the largest number of the type; ``None`` if JSON has no number outside.
    zone : bool
        True if a time must have a zone, False if it must not.
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
        """Return the text of the first rule that a value breaks; ``None`` if it conforms to all."""
        if value is None:
            return None if self.nullable else NOT_EMPTY
        zone = ""
        if self.kind == "time":
            zone = " with a zone" if self.zone else " without a zone"
            if isinstance(value, str):
                with suppress(ValueError):
                    value = datetime.fromisoformat(value)
            valid = isinstance(value, datetime) and (value.tzinfo is not None) == self.zone
        elif self.kind == "float":
            # No float holds an integer of 400 digits, and no comparison with NaN is true.
            number = isinstance(value, int | float) and not isinstance(value, bool)
            valid = number and abs(value) <= sys.float_info.max
        else:
            valid = type(value) in KIND_TYPES[self.kind]
        if not valid:
            return f"{KIND_WORDS[self.kind]}{zone}"
        return next((str(rule) for rule in self._bounds if not rule.accepts(value)), None)

    @cached_property
    def _bounds(self) -> tuple[Rule, ...]:
        ends = [Rule(name=name, value=end) for name, end in (("ge", self.least), ("le", self.most)) if end is not None]
        return (*self.rules, *ends)

    @cached_property
    def type(self) -> Any:
        """The field's type for msgspec."""
        plain, _ = self._type_and_rest
        return plain | None if self.nullable else plain

    @cached_property
    def left_over(self) -> tuple[Rule, ...]:
        """The rules that `type` does not express."""
        _, rest = self._type_and_rest
        return rest

    @cached_property
    def _type_and_rest(self) -> tuple[Any, tuple[Rule, ...]]:
        listed = next((rule for rule in self.rules if rule.name == "isin"), None)
        if listed is not None and self.kind in {"int", "str"}:
            allowed = tuple(value for value in listed.value if all(rule.accepts(value) for rule in self._bounds))
            if allowed:
                return Literal.__getitem__(allowed), ()
        return _annotate(self)


KIND_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "str": (str,),
    "bool": (bool,),
    "any": (int, float, str, bool),
}


# Types for msgspec

PLAIN: dict[str, Any] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "time": datetime,
    "any": int | float | str | bool,
}


def _annotate(field: Field) -> tuple[Any, tuple[Rule, ...]]:
    """Return a field's type with the rules that msgspec supports, and the other rules."""
    import msgspec

    if field.kind == "time":
        return Annotated[datetime, msgspec.Meta(tz=field.zone)], field.rules
    limits, rest = dict[str, Any](), list[Rule]()
    for rule in field._bounds:
        supported = _msgspec_limits(field.kind, rule)
        if supported and _are_implied(supported, limits):
            continue
        # msgspec takes one bound on each side, gt or ge.
        if supported is None or any(_side(name) in map(_side, limits) for name in supported):
            rest.append(rule)
        else:
            limits.update(supported)
    plain = PLAIN[field.kind]
    return (Annotated[plain, msgspec.Meta(**limits)] if limits else plain), tuple(rest)


def _are_implied(bounds: dict[str, Any], limits: dict[str, Any]) -> bool:
    """Tell whether limits keep every value from a bound of another rule, such as the type's own, or equal it."""
    lowest = max((limits[name] for name in ("gt", "ge") if name in limits), default=-math.inf)
    highest = min((limits[name] for name in ("lt", "le") if name in limits), default=math.inf)
    (name, bound), *others = bounds.items()
    return not others and ((name == "ge" and bound <= lowest) or (name == "le" and bound >= highest))


def _side(name: str) -> str:
    return name[0] if name in {"gt", "ge", "lt", "le"} else name


def _msgspec_limits(kind: str, rule: Rule) -> dict[str, Any] | None:
    """Return a rule as arguments of msgspec.Meta; None if msgspec does not support it."""
    value = rule.value
    if rule.name in {"gt", "ge", "lt", "le"}:
        whole = type(value) is int and -(2**63) <= value < 2**63
        supported = whole if kind == "int" else kind == "float" and type(value) in {int, float}
        return {rule.name: value} if supported else None
    if kind != "str":
        return None
    if rule.name == "str_length":
        ends = {"min_length": value[0], "max_length": value[1]}
        return {name: end for name, end in ends.items() if end is not None}
    # msgspec searches, so the start is anchored; a pattern with flags, which must come first, cannot be.
    if rule.name == "str_matches" and "(?" not in value:
        return {"pattern": rf"\A(?:{value})"}
    return {"pattern": value} if rule.name == "str_contains" else None


# The contract


@dataclass(frozen=True, kw_only=True)
class RequestContract:
    """The contract for requests to one version of a model, and the distribution of its scores and features.

    Parameters
    ----------
    model : str
    task : str
        ``binary``, ``multiclass`` or ``regression``.
    features : tuple of Field
        The features in the order of the training rows.
    entity : Field
        The subject of a record. It is optional, goes into the prediction log and is not passed to the model.
    classes : tuple
        The possible predictions, in the order of the probabilities; empty for a regression.
    positive : str, int or None
        The label's value that a prediction of 1 means; ``None`` for other tasks than ``binary``.
    score_ends : tuple of float
        Upper ends, increasing, of the buckets in which scores are counted; one more bucket holds greater scores.
    ranges : dict of str to (float, float)
        For each numeric feature, the range of the middle 99 % of the training rows.
    categories : dict of str to tuple
        For each feature of text or truth values, the values that are frequent enough in the training rows.
    logged : tuple of str
        The features whose values are written to the prediction log.
    unchecked : tuple of str
        The rules of the model's contract that requests are not checked against: Python code, and rules about several
        rows.
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
        return tuple(feature.name for feature in self.features)

    @property
    def document(self) -> str:
        """The contract as canonical JSON."""
        return canonical_json(_to_json(asdict(self)))

    @classmethod
    def from_document(cls, text: str) -> "RequestContract":
        """Read a contract from its canonical JSON.

        Raises
        ------
        ConfigurationError
            The text is not a contract of a form that this version reads.
        """
        try:
            document = json.loads(text)
            lists = {name: tuple(document[name]) for name in ("classes", "score_ends", "logged", "unchecked")}
            return cls(
                **{
                    **document,
                    **lists,
                    "features": tuple(_read_field(feature) for feature in document["features"]),
                    "entity": _read_field(document["entity"]),
                    "ranges": {name: (ends[0], ends[1]) for name, ends in document["ranges"].items()},
                    "categories": {name: tuple(values) for name, values in document["categories"].items()},
                }
            )
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ConfigurationError(
                f"The request contract cannot be read: {error!r}. Judge the candidate again."
            ) from error

    def decoder(self) -> "RequestDecoder":
        """Return a decoder of this contract's records; reuse it, because building one takes milliseconds."""
        return RequestDecoder(self)

    def values(self, record: Record, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Return a record's values by feature; ``None`` selects all features."""
        every = dict(zip(self.names, record, strict=True))
        return every if names is None else {name: every[name] for name in names}

    def frame(self, records: Sequence[Record]) -> "pd.DataFrame":
        """Return records as a DataFrame with the types of the training rows; shape (n_records, n_features)."""
        import pandas as pd

        columns = zip(*records, strict=True) if records else [()] * len(self.features)
        series = dict[str, Any]()
        for feature, values in zip(self.features, columns, strict=True):
            dtype, missing = feature.dtype, None in values
            # The training rows of an integer or truth column had no missing values.
            if missing and dtype.lstrip("u").startswith("int"):
                dtype = "float64"
            elif missing and dtype == "bool":
                dtype = "object"
            series[feature.name] = pd.Series(values, dtype=dtype)
        return pd.DataFrame(series)

    def convert_frame(self, frame: "pd.DataFrame") -> list[Record]:
        """Return a DataFrame's rows as records, equal to those read from JSON; the inverse of `frame`."""
        columns = [
            [_convert_value(feature, value) for value in frame[feature.name].tolist()] for feature in self.features
        ]
        return list(zip(*columns, strict=True))

    def find_score_bucket(self, score: float | Sequence[float]) -> int:
        """Return the bucket of a score, 0 to ``len(score_ends)``; several probabilities count by their maximum."""
        return bisect_left(self.score_ends, score if isinstance(score, int | float) else max(score))

    def anomaly(self, record: Record) -> float:
        """Return the share of features, 0 to 1, outside their range or categories; missing values count as inside."""
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


def _convert_value(feature: Field, value: Any) -> Any:
    if value is None or value != value or type(value).__name__ in {"NAType", "NaTType"}:
        return None
    if feature.kind == "int":
        return int(value)  # a column with missing values holds floats
    return value.to_pydatetime() if hasattr(value, "to_pydatetime") else value


def _to_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _to_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    return {"time": value.isoformat()} if isinstance(value, datetime) else value


def _read_field(document: dict[str, Any]) -> Field:
    rules = tuple(Rule(name=rule["name"], value=_from_json(rule["value"])) for rule in document["rules"])
    return Field(**{**document, "rules": rules})


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    return datetime.fromisoformat(value["time"]) if isinstance(value, dict) else value


# Decoding


class _RowPlan(NamedTuple):
    """The decoder of rows of some columns, and the places of the features and of the entity in a row."""

    decode: Callable[[Any], list[Record]]
    order: list[int]
    entity: int | None


class RequestDecoder:
    """A decoder of one contract's records, from JSON in three layouts and from Python values.

    Each method returns the records and their entities: a list of the same length, or None if no record has one.

    Parameters
    ----------
    contract : RequestContract
    ignored : collection of str
        Columns of other versions, which a request may have and this contract does not read.
    """

    def __init__(self, contract: RequestContract, ignored: Collection[str] = ()) -> None:
        import msgspec

        self.contract = contract
        self._ignored = frozenset(ignored) - {*contract.names, contract.entity.name}
        self._fields = {field.name: field for field in (*contract.features, contract.entity)}
        self._width = len(contract.features)
        self._own_order = list(range(self._width))
        # msgspec's attributes are numbered, because a feature's name need not be a name in Python.
        attributes, names = list[tuple[Any, ...]](), {"entity": contract.entity.name}
        for place, feature in enumerate(contract.features):
            attribute = f"f{place}"
            names[attribute] = feature.name
            attributes.append((attribute, feature.type) if feature.required else (attribute, feature.type | None, None))
        # Behind the entity, where `_finish` cuts them off.
        others = [(f"other{place}", Any, None) for place in range(len(self._ignored))]
        names |= {attribute: name for (attribute, _, _), name in zip(others, sorted(self._ignored), strict=True)}
        record_type = msgspec.defstruct(
            "Record",
            [*attributes, ("entity", contract.entity.type | None, None), *others],
            rename=names,
            forbid_unknown_fields=True,
            kw_only=True,  # allows a required field after an optional one
            gc=False,
        )
        self._list = _make_list_type(record_type)
        self._records = msgspec.json.Decoder(self._list)
        self._columns = {
            name: msgspec.json.Decoder(_make_list_type(field.type)) for name, field in self._fields.items()
        }
        self._columns[contract.entity.name] = msgspec.json.Decoder(_make_list_type(contract.entity.type | None))
        self._checks = [(place, rule) for place, feature in enumerate(contract.features) for rule in feature.left_over]
        self._plan_rows = lru_cache(maxsize=64)(self._build_row_plan)

    def records(self, raw: Any) -> tuple[list[Record], list[Any] | None]:
        """Decode a JSON list of objects.

        Parameters
        ----------
        raw : bytes or msgspec.Raw

        Raises
        ------
        RequestError
            The bytes are not a JSON list of objects, or a field breaks a rule.
        """
        import msgspec

        try:
            structs = self._records.decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise self._explain(error, _iterate_objects(raw, error)) from error
        return self._finish(list(map(msgspec.structs.astuple, structs)), self._own_order, self._width)

    def rows(self, columns: Sequence[str], raw: Any) -> tuple[list[Record], list[Any] | None]:
        """Decode a JSON list of lists, whose values are in the order of `columns`; raises as `records` does."""
        import msgspec

        plan = self._plan_rows(tuple(columns))
        try:
            rows = plan.decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise self._explain(error, _iterate_lists(raw, columns, error)) from error
        return self._finish(rows, plan.order, plan.entity)

    def columns(self, raws: Mapping[str, Any]) -> tuple[list[Record], list[Any] | None]:
        """Decode a JSON list of values for each column; raises as `records` does."""
        import msgspec

        self._require_columns(list(raws))
        raws = {name: raw for name, raw in raws.items() if name not in self._ignored}
        columns = dict[str, list[Any]]()
        for name, raw in raws.items():
            try:
                columns[name] = self._columns[name].decode(raw)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise self._explain(error, _iterate_columns(raws)) from error
        lengths = {len(values) for values in columns.values()}
        if len(lengths) > 1:
            sizes = ", ".join(f"{name} {len(values)}" for name, values in list(columns.items())[:MAX_PROBLEMS])
            raise RequestError(422, [RequestProblem(rule="columns must have one length", value=sizes)])
        rows = list(zip(*columns.values(), strict=True))
        order, entity = self._find_places(list(columns))
        return self._finish(rows, order, entity)

    def mappings(self, rows: Sequence[Mapping[str, Any]]) -> tuple[list[Record], list[Any] | None]:
        """Convert rows of Python values, as read from a file, with NaN as a missing value; raises as `records` does."""
        import msgspec

        plain = [{name: None if value != value else value for name, value in row.items()} for row in rows]
        # JSON has no infinity, so that msgspec's types do not exclude it.
        finite = all(not isinstance(value, float) or math.isfinite(value) for row in plain for value in row.values())
        try:
            structs = msgspec.convert(plain, self._list) if finite else None
        except msgspec.ValidationError as error:
            raise self._explain(error, enumerate(plain)) from error
        if structs is None:
            raise self._explain(ValueError("a number is not finite"), enumerate(plain))
        return self._finish(list(map(msgspec.structs.astuple, structs)), self._own_order, self._width)

    def _finish(
        self, rows: list[Record], order: list[int], entity: int | None
    ) -> tuple[list[Record], list[Any] | None]:
        """Check the rules that msgspec does not, and return the rows in the contract's order and their entities.

        `order` has the place of each feature in a row, -1 for an absent one; `entity` is the entity's place.
        """
        if not rows:
            raise RequestError(422, [RequestProblem(rule="must hold at least one record")])
        entities = None if entity is None else [row[entity] for row in rows]
        if order != self._own_order:
            rows = [tuple(None if place < 0 else row[place] for place in order) for row in rows]
        elif len(rows[0]) > self._width:
            rows = [row[: self._width] for row in rows]
        for place, rule in self._checks:
            if not all(row[place] is None or rule.accepts(row[place]) for row in rows):
                named = ((number, self.contract.values(row)) for number, row in enumerate(rows))
                raise self._explain(ValueError(str(rule)), named)
        return rows, None if entities is None or all(value is None for value in entities) else entities

    def _require_columns(self, columns: Sequence[str]) -> None:
        # A request may name a column many thousand times: each step here takes time proportional to their number.
        counts = Counter(columns)
        unknown = (name for name in counts if name not in self._fields and name not in self._ignored)
        repeated = (name for name, count in counts.items() if count > 1)
        missing = (
            feature.name for feature in self.contract.features if feature.required and feature.name not in counts
        )
        problems = chain(
            (RequestProblem(rule=UNKNOWN, field=name[:LONGEST_SHOWN]) for name in unknown),
            (RequestProblem(rule="must come once", field=name[:LONGEST_SHOWN]) for name in repeated),
            (RequestProblem(rule=REQUIRED, field=name) for name in missing),
        )
        if first := list(islice(problems, MAX_PROBLEMS)):
            raise RequestError(422, first)

    def _find_places(self, columns: Sequence[str]) -> tuple[list[int], int | None]:
        """Return the place of each feature among columns, -1 for an absent one, and the entity's place."""
        places = {name: place for place, name in enumerate(columns)}
        return [places.get(name, -1) for name in self.contract.names], places.get(self.contract.entity.name)

    def _build_row_plan(self, columns: tuple[str, ...]) -> _RowPlan:
        import msgspec

        self._require_columns(columns)
        entity, types = self.contract.entity, list[Any]()
        for name in columns:
            kind = Any if name in self._ignored else self._fields[name].type
            types.append(kind | None if name == entity.name else kind)
        decoder = msgspec.json.Decoder(_make_list_type(tuple.__class_getitem__(tuple(types))))
        return _RowPlan(decoder.decode, *self._find_places(columns))

    # The second, slow check

    def _explain(self, error: Exception, records: Iterable[tuple[int, Any]]) -> RequestError:
        """Return the refusal of numbered records: their first problems or, if there are none, msgspec's error."""
        problems = list(islice(self._find_problems(records), MAX_PROBLEMS))
        return RequestError(422, problems or [RequestProblem(rule=f"is refused: {error}")])

    def _find_problems(self, records: Iterable[tuple[int, Any]]) -> Iterator[RequestProblem]:
        entity = self.contract.entity.name
        for number, record in records:
            if not isinstance(record, dict):
                yield RequestProblem(rule="must be an object", value=shown(record), record=number)
                continue
            for name, value in record.items():
                if name in self._ignored:
                    continue
                field = self._fields.get(name)
                broken = UNKNOWN if field is None else None if name == entity and value is None else field.broken(value)
                if broken:
                    yield RequestProblem(rule=broken, field=name[:LONGEST_SHOWN], value=shown(value), record=number)
            for feature in self.contract.features:
                if feature.required and feature.name not in record:
                    yield RequestProblem(rule=REQUIRED, field=feature.name, record=number)


def _make_list_type(item: Any) -> Any:
    return list.__class_getitem__(item)


def shown(value: Any) -> str | float | bool | None:
    """Return a value in the form of an error message: short, and valid in JSON."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, bool | float) or value is None or (isinstance(value, int) and abs(value) < 2**53):
        return value
    # Python does not convert an integer of more than 4,300 digits to text.
    text = "an integer of many digits" if isinstance(value, int) and abs(value) >= 10**LONGEST_SHOWN else str(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def read_again(raw: Any) -> Any:
    """Read JSON with Python's own reader, which accepts too great numbers and NaN, to find the value that is wrong.

    Raises
    ------
    RequestError
        The bytes are not JSON in UTF-8, or nested too deeply.
    """
    body = bytes(raw)
    # Python's reader would accept other encodings, which msgspec does not, and the error would name another cause.
    if body.startswith(codecs.BOM_UTF8):
        raise malformed(ValueError("it begins with a byte order mark; send it without one"))
    if body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in body[:4]:
        raise malformed(ValueError("it is in UTF-16 or UTF-32"))
    try:
        return json.loads(body.decode())
    except UnicodeDecodeError as error:
        # Without its position: `raw` may be a part of the body.
        raise malformed(ValueError(f"the byte 0x{body[error.start]:02x} is not UTF-8")) from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise malformed(error) from error
    except ValueError as error:  # Python reads no longer integers
        raise malformed(ValueError("an integer has more than 4,300 digits")) from error


def malformed(error: Exception) -> RequestError:
    """Return the refusal of a body that is not JSON."""
    why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:LONGEST_SHOWN]
    return RequestError(400, [RequestProblem(rule=f"the body must be JSON in UTF-8: {why}")])


def _iterate_objects(raw: Any, error: Exception) -> Iterator[tuple[int, Any]]:
    records = read_again(raw)
    if not isinstance(records, list):
        raise RequestError(422, [RequestProblem(rule="must be a list of records", value=shown(records))]) from error
    return enumerate(records)


def _iterate_lists(raw: Any, columns: Sequence[str], error: Exception) -> Iterator[tuple[int, Any]]:
    for number, row in _iterate_objects(raw, error):
        if not isinstance(row, list) or len(row) != len(columns):
            rule = f"must be a list of {len(columns)} values, one for each column"
            raise RequestError(422, [RequestProblem(rule=rule, value=shown(row), record=number)]) from error
        yield number, dict(zip(columns, row, strict=True))


def _iterate_columns(raws: Mapping[str, Any]) -> Iterator[tuple[int, Any]]:
    columns = {name: read_again(raw) for name, raw in raws.items()}
    for name, values in columns.items():
        if not isinstance(values, list):
            raise RequestError(
                422, [RequestProblem(rule="must be a list", field=name[:LONGEST_SHOWN], value=shown(values))]
            )
    rows = max(len(values) for values in columns.values())
    for number in range(rows):
        yield number, {name: values[number] for name, values in columns.items() if number < len(values)}
