"""Request and response formats of MLflow's ``/invocations`` and of the Open Inference Protocol v2.

Reading either format gives a list of records that satisfy the version's contract, or raises a `RequestError` with the
problems. JSON has no NaN and no Infinity: a missing value is null.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import msgspec

from ml_platform.errors import MAX_PROBLEMS, RequestError, RequestProblem
from ml_platform.inference.predictor import Answers
from ml_platform.inference.request_contract import (
    KIND_WORDS,
    Record,
    RequestContract,
    RequestDecoder,
    malformed,
    read_again,
    shown,
)

MAX_RECORDS = 10_000
# A malformed body of more bytes is not read again for a better message.
MAX_EXPLAINED = 2**20
LONGEST_KEY = 256
KEY = "key"
PREDICTIONS, SCORES = "predictions", "scores"
OUTPUTS = (PREDICTIONS, SCORES)
# Greater floats may not be the integer that the client wrote.
MAX_WHOLE = 2**53
UNCOUNTED = (b"\\", b" :", b"\t:", b"\n:", b"\r:")
Decoded = tuple[list[Record], list[Any] | None]
INTEGERS = frozenset(f"{sign}INT{size}" for sign in ("", "U") for size in (8, 16, 32, 64))
# Tensor datatypes accepted for a field, by the field's kind; the metadata have the first.
DATATYPES: dict[str, tuple[str, ...]] = {
    "int": ("INT64", *sorted(INTEGERS), "FP64", "FP32", "FP16"),
    "float": ("FP64", "FP32", "FP16", *sorted(INTEGERS)),
    "str": ("BYTES",),
    "bool": ("BOOL",),
    "time": ("BYTES",),
    "any": ("BYTES", "FP64", "FP32", "BOOL", *sorted(INTEGERS)),
}


@dataclass(frozen=True, kw_only=True)
class Requests:
    """The contents of one body.

    Parameters
    ----------
    records : list of tuple
        Values in the contract's order, None for a missing one; at least one record.
    entities : list or None
        Entity of each record; ``None`` if no record has one.
    sticky_key : str or None
        The client's key that selects the version: ``params.key``, or ``parameters.key``.
    id : str or None
        The client's id for an inference of the Open Inference Protocol; the response repeats it.
    outputs : tuple of str
        Requested outputs, of ``predictions`` and ``scores``.
    """

    records: list[Record]
    entities: list[Any] | None = None
    sticky_key: str | None = None
    id: str | None = None
    outputs: tuple[str, ...] = OUTPUTS


class _Split(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    columns: list[str]
    data: msgspec.Raw
    index: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Invocation(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    dataframe_split: _Split | msgspec.UnsetType = msgspec.UNSET
    dataframe_records: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    inputs: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    instances: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    params: dict[str, Any] | None = None


class _Tensor(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    name: str
    shape: list[int]
    datatype: str
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    parameters: dict[str, Any] | None = None


class _Output(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    name: str
    parameters: dict[str, Any] | None = None


class _Inference(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    inputs: list[_Tensor]
    id: str | None = None
    model_name: str | None = None  # KServe's client sends it
    parameters: dict[str, Any] | None = None
    outputs: list[_Output] | None = None


_INVOCATION, _INFERENCE = msgspec.json.Decoder(_Invocation), msgspec.json.Decoder(_Inference)
_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])
_MAPPING = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ENCODER = msgspec.json.Encoder()
FORMS = ("dataframe_split", "dataframe_records", "inputs", "instances")


class Formats:
    """Reads request bodies for one version. Creating it takes milliseconds: create one per version.

    Parameters
    ----------
    contract : RequestContract
    max_records : int
        A body with more raises 413.
    ignored : collection of str
        Columns of other versions, which a body may have and this version does not read.

    Attributes
    ----------
    decoder : RequestDecoder
        Decodes the records inside a format.
    """

    def __init__(
        self, contract: RequestContract, max_records: int = MAX_RECORDS, ignored: Collection[str] = ()
    ) -> None:
        self.contract = contract
        self.max_records = max_records
        self.decoder = RequestDecoder(contract, ignored)
        self._ignored = frozenset(ignored) - {*contract.names, contract.entity.name}
        self._fields = {field.name: field for field in (*contract.features, contract.entity)}
        self._optional = [place for place, feature in enumerate(contract.features) if not feature.required]
        self._integers = frozenset(name for name, field in self._fields.items() if field.kind == "int")

    def read_invocation(self, body: bytes) -> Requests:
        """Read a body in the format of MLflow's scoring server.

        The body is an object with one of ``dataframe_split``, ``dataframe_records``, ``inputs`` and ``instances`` (the
        last two are a list of records, a list of values per column, or one record), and optionally ``params``.

        Raises
        ------
        RequestError
            400 for another format, 413 for too many records, 422 for fields that break the contract.
        """
        invocation = _decode(_INVOCATION, body)
        forms = [name for name in FORMS if getattr(invocation, name) is not msgspec.UNSET]
        if len(forms) != 1:
            rule = f"the body must have exactly one of {', '.join(FORMS)}"
            raise RequestError(400, [RequestProblem(rule=rule, value=", ".join(forms) or None)])
        key = _read_sticky_key(invocation.params, "params")
        form, data = forms[0], getattr(invocation, forms[0])
        names = 1 + (0 if invocation.params is None else 1 + len(invocation.params))
        if form == "dataframe_split":
            self._require_few(data.data)
            columns, names = data.columns, names + 2 + (data.index is not msgspec.UNSET)
            places = [place for place, name in enumerate(columns) if name in self._integers]
            records, entities = _read_whole(lambda raw: self.decoder.rows(columns, raw), data.data, places)
        elif form == "dataframe_records" or not bytes(data).startswith(b"{"):
            self._require_few(data)
            records, entities = _read_whole(self.decoder.records, data, self._integers)
            names += self._count_names(records, entities)
        else:
            by_column = _decode(_MAPPING, data)
            names += len(by_column)
            one_record = by_column and not any(bytes(raw).startswith(b"[") for raw in by_column.values())
            if one_record and len(by_column) <= len(self._fields) + len(self._ignored):
                records, entities = _read_whole(self.decoder.records, b"[" + bytes(data) + b"]", self._integers)
            else:
                records, entities = self._read_columns(by_column)
        _require_unique_names(body, names)
        return Requests(records=records, entities=entities, sticky_key=key)

    def _count_names(self, records: list[Record], entities: list[Any] | None) -> int:
        """Return the number of names in a list of records in which optional fields without a value are absent."""
        present = sum(record[place] is not None for place in self._optional for record in records)
        named = 0 if entities is None else len(entities) - entities.count(None)
        return len(records) * (len(self.contract.features) - len(self._optional)) + present + named

    def _read_columns(self, columns: dict[str, Any]) -> Decoded:
        for name in self._fields.keys() & columns.keys():
            self._require_few(columns[name])
        try:
            return self.decoder.columns(columns)
        except RequestError as error:
            if not _has_whole_numbers(error):
                raise
        for name in self._integers & columns.keys():
            values = read_again(columns[name])
            _convert_whole_numbers(values, range(len(values)) if isinstance(values, list) else ())
            columns[name] = json.dumps(values).encode()
        return self.decoder.columns(columns)

    def _require_few(self, raw: Any) -> None:
        """Refuse a list of too many records before they are built; other invalid bytes are left to the decoder."""
        data = bytes(raw)
        # A list of many items has many bytes and commas: most requests are not read twice.
        if len(data) // 2 > self.max_records and data.count(b",") >= self.max_records:
            try:
                records = len(_ITEMS.decode(data))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                return
            if records > self.max_records:
                rule = f"must hold at most {self.max_records:,} records"
                raise RequestError(413, [RequestProblem(rule=rule, value=records)])

    def read_inference(self, body: bytes) -> Requests:
        """Read a body of the Open Inference Protocol: a tensor of shape [n] or [n, 1] for each field.

        Raises
        ------
        RequestError
            400, 413 and 422 as for `read_invocation`.
        """
        inference = _decode(_INFERENCE, body)
        if inference.model_name not in {None, self.contract.model}:
            rule = f"must be {self.contract.model!r}, the model of this server, or be left out"
            raise RequestError(422, [RequestProblem(rule=rule, field="model_name", value=shown(inference.model_name))])
        key = _read_sticky_key(inference.parameters, "parameters", only_key=False)
        outputs = tuple(output.name for output in inference.outputs) if inference.outputs else OUTPUTS
        unknown = [name for name in outputs if name not in OUTPUTS]
        if unknown:
            rule = f"must be one of {', '.join(OUTPUTS)}"
            raise RequestError(422, [RequestProblem(rule=rule, field="outputs", value=shown(unknown[0]))])
        found = (problem for tensor in inference.inputs if (problem := self._find_problem(tensor)))
        if problems := list(islice(found, MAX_PROBLEMS)):
            raise RequestError(422, problems)
        repeated = [name for name, count in Counter(tensor.name for tensor in inference.inputs).items() if count > 1]
        if repeated:
            raise RequestError(422, [RequestProblem(rule="must come once", field=repeated[0][:LONGEST_KEY])])
        for tensor in inference.inputs:
            self._require_few(tensor.data)
        known = [tensor for tensor in inference.inputs if tensor.name not in self._ignored]
        records, entities = self._read_columns({tensor.name: _flatten(tensor) for tensor in known})
        shapes = [len(records)], [len(records), 1]
        wrong = [tensor for tensor in known if tensor.shape not in shapes]
        if wrong:
            rule = f"must have the shape {shapes[0]} or {shapes[1]} of its data"
            values = {tensor.name: str(tensor.shape)[:LONGEST_KEY] for tensor in wrong[:MAX_PROBLEMS]}
            problems = [RequestProblem(rule=rule, field=name, value=shape) for name, shape in values.items()]
            raise RequestError(422, problems)
        names = sum(value is not None for value in (inference.inputs, inference.id, inference.model_name))
        names += sum(4 + _count_parameters(tensor) for tensor in inference.inputs) + _count_parameters(inference)
        if inference.outputs is not None:
            names += 1 + sum(1 + _count_parameters(output) for output in inference.outputs)
        _require_unique_names(body, names)
        return Requests(records=records, entities=entities, sticky_key=key, id=inference.id, outputs=outputs)

    def _find_problem(self, tensor: _Tensor) -> RequestProblem | None:
        field = self._fields.get(tensor.name)
        name = tensor.name[:LONGEST_KEY]
        if name in self._ignored:
            return None
        if field is None:
            return RequestProblem(rule="is not a column of this model", field=name)
        if tensor.datatype not in DATATYPES[field.kind]:
            rule = f"must have a datatype of {', '.join(dict.fromkeys(DATATYPES[field.kind]))}"
            return RequestProblem(rule=rule, field=name, value=shown(tensor.datatype))
        if tensor.data is msgspec.UNSET:
            rule = "must have data; before binary data the header inference-header-content-length is required"
            return RequestProblem(rule=rule, field=name)
        return None


def _read_whole(read: Callable[[Any], Decoded], raw: Any, places: Any) -> Decoded:
    """Decode records; whole numbers of integer columns may have the form of floats, as pandas writes them: 107.0.

    Parameters
    ----------
    read : callable
    raw : bytes or msgspec.Raw
        A JSON list of records.
    places : collection of str or int
        Keys of the integer columns in a record.
    """
    try:
        return read(raw)
    except RequestError as error:
        if not _has_whole_numbers(error):
            raise
    records = read_again(raw)
    for record in records:
        _convert_whole_numbers(record, places)
    # Python's writer keeps an infinity, which `read` refuses; msgspec's writes null for it.
    return read(json.dumps(records).encode())


def _has_whole_numbers(error: RequestError) -> bool:
    return any(
        problem.rule == KIND_WORDS["int"] and isinstance(problem.value, float) and problem.value.is_integer()
        for problem in error.problems
    )


def _convert_whole_numbers(record: Any, places: Any) -> None:
    for place in places:
        try:
            value = record[place]
        except (LookupError, TypeError):  # an absent column, or a record of another form, which is refused later
            continue
        if isinstance(value, float) and value.is_integer() and abs(value) < MAX_WHOLE:
            record[place] = int(value)


def _decode(decoder: Any, body: Any) -> Any:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise RequestError(400, [RequestProblem(rule=f"the body must have a known format: {error}")]) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # Python's reader is slow, keeps other threads waiting, and here the number of records is not known yet.
        if not isinstance(error, RecursionError) and memoryview(body).nbytes <= MAX_EXPLAINED:
            read_again(body)  # raises an error with the position, unless Python's reader accepts the body: NaN
            rule = "the body must be JSON, which has no NaN and no Infinity: send null for a missing value"
            raise RequestError(400, [RequestProblem(rule=rule)]) from error
        raise malformed(error) from error


def _count_parameters(part: Any) -> int:
    return 0 if part.parameters is None else 1 + len(part.parameters)


def _require_unique_names(body: bytes, names: int) -> None:
    """Refuse a body with an object that has a name twice: programs on its way may have read the other value.

    The decoders keep the last value. Usually counting shows that no name is repeated; other bodies are read again.

    Parameters
    ----------
    body : bytes
        A valid body.
    names : int
        The number of names in the body if none is repeated.
    """
    # Each name has a colon: if no text has one, and this is the usual case, the count is exact.
    if body.count(b":") == names:
        return
    # Times have colons. Without escapes and white space before a colon, only names end with these two characters.
    if body.count(b'":') == names and not any(text in body for text in UNCOUNTED):
        return

    def require_unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            name = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
            raise RequestError(422, [RequestProblem(rule="must come once in its object", field=name[:LONGEST_KEY])])
        return values

    try:
        json.loads(body, object_pairs_hook=require_unique)
    except (ValueError, RecursionError) as error:
        raise malformed(error) from error


def _read_sticky_key(parameters: dict[str, Any] | None, name: str, *, only_key: bool = True) -> str | None:
    """Return a request's key; ``None`` if it has none. `only_key` refuses other parameters."""
    if not parameters:
        return None
    unknown = next((parameter for parameter in parameters if parameter != KEY), None) if only_key else None
    if unknown is not None:
        raise RequestError(422, [RequestProblem(rule=f"{name} may only have {KEY!r}", field=unknown[:LONGEST_KEY])])
    key = parameters.get(KEY)
    if key is None or (isinstance(key, str | int) and not isinstance(key, bool) and 0 < len(str(key)) <= LONGEST_KEY):
        return None if key is None else str(key)
    rule = f"must be text of 1 to {LONGEST_KEY} characters, or an integer"
    raise RequestError(422, [RequestProblem(rule=rule, field=f"{name}.{KEY}", value=shown(key))])


def _flatten(tensor: _Tensor) -> Any:
    """Return a tensor's data as a flat list; data of shape [n, 1] may be nested."""
    if len(tensor.shape) < 2:
        return tensor.data
    data = read_again(tensor.data)
    nested = isinstance(data, list) and bool(data) and all(isinstance(row, list) and len(row) == 1 for row in data)
    return _ENCODER.encode([row[0] for row in data]) if nested else tensor.data


# Responses


def invocation_answer(contract: RequestContract, answers: Answers) -> bytes:
    """Return a response in MLflow's format: the predictions and, except for a regression, the scores."""
    if contract.task == "regression":
        return _ENCODER.encode({PREDICTIONS: answers.predictions})
    return _ENCODER.encode({PREDICTIONS: answers.predictions, SCORES: answers.scores})


def inference_answer(contract: RequestContract, requests: Requests, answers: Answers, *, version: int) -> bytes:
    """Return a response of the Open Inference Protocol: the requested tensors, in the requested order."""
    values = {PREDICTIONS: answers.predictions, SCORES: answers.scores}
    tensors = []
    for name in requests.outputs:
        shape, data = [len(values[name])], values[name]
        if data and isinstance(data[0], list):
            shape, data = [len(data), len(data[0])], [value for row in data for value in row]
        tensors.append({"name": name, "datatype": _get_datatype(contract, name), "shape": shape, "data": data})
    response = {"model_name": contract.model, "model_version": str(version), "outputs": tensors}
    return _ENCODER.encode({**response, "id": requests.id} if requests.id is not None else response)


def _get_datatype(contract: RequestContract, output: str) -> str:
    if output == SCORES or contract.task == "regression":
        return "FP64"
    return "INT64" if all(isinstance(label, int) for label in contract.classes) else "BYTES"


def metadata(contract: RequestContract, versions: Sequence[int]) -> dict[str, Any]:
    """Return a model's metadata in the Open Inference Protocol: name, versions, input and output tensors."""
    scores = [-1, len(contract.classes)] if contract.task == "multiclass" else [-1]
    return {
        "name": contract.model,
        "versions": [str(version) for version in versions],
        "platform": "scikit-learn",
        "inputs": [
            {"name": field.name, "datatype": DATATYPES[field.kind][0], "shape": [-1]} for field in contract.features
        ],
        "outputs": [
            {"name": PREDICTIONS, "datatype": _get_datatype(contract, PREDICTIONS), "shape": [-1]},
            {"name": SCORES, "datatype": "FP64", "shape": scores},
        ],
    }


def error_answer(error: RequestError) -> bytes:
    """Return the response to an invalid request.

    Its form is ``{"error": …, "problems": [{"field": …, "rule": …, "value": …, "record": …}]}``.
    """
    problems = [
        {name: _encodable(getattr(problem, name)) for name in ("field", "rule", "value", "record")}
        for problem in error.problems
    ]
    return _ENCODER.encode({"error": _encodable(str(error)), "problems": problems})


def _encodable(value: Any) -> Any:
    """Return a value that UTF-8 can express: half of a surrogate pair, which JSON can name, is shown as an escape."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
