"""Requests and answers as MLflow's ``/invocations`` and the Open Inference Protocol v2 write them.

Whatever the format, what comes out is a list of records that keep the version's contract, or a `RequestError` that
names what is wrong. NaN and Infinity are no JSON: a missing value is null.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ml_platform.errors import MOST_PROBLEMS, RequestError, RequestProblem
from ml_platform.predictor import Answers
from ml_platform.request_contract import Field, Record, RequestContract, malformed, read_again, shown

MOST_RECORDS = 10_000
LONGEST_KEY = 256
KEY = "key"
PREDICTIONS, SCORES = "predictions", "scores"
OUTPUTS = (PREDICTIONS, SCORES)
INTEGERS = frozenset(f"{sign}INT{size}" for sign in ("", "U") for size in (8, 16, 32, 64))
# Which tensors hold values of a field, by its kind; the first is what the metadata say.
DATATYPES: dict[str, tuple[str, ...]] = {
    "int": ("INT64", *sorted(INTEGERS)),
    "float": ("FP64", "FP32", "FP16", *sorted(INTEGERS)),
    "str": ("BYTES",),
    "bool": ("BOOL",),
    "time": ("BYTES",),
    "any": ("BYTES", "FP64", "FP32", "BOOL", *sorted(INTEGERS)),
}


@dataclass(frozen=True, kw_only=True)
class Requests:
    """What one body asks for.

    Parameters
    ----------
    records : list of tuple
        Values in the contract's order, None for a missing one; at least one record.
    entities : list or None
        Whom each record is about; ``None`` where no record says so.
    sticky_key : str or None
        What the client wants the version to be chosen by: ``params.key``, or ``parameters.key``.
    id : str or None
        The client's own name for an inference of the Open Inference Protocol; it comes back in the answer.
    outputs : tuple of str
        What is to be answered, of ``predictions`` and ``scores``.
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
    parameters: dict[str, Any] | None = None
    outputs: list[_Output] | None = None


_INVOCATION, _INFERENCE = msgspec.json.Decoder(_Invocation), msgspec.json.Decoder(_Inference)
_MAPPING = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ENCODER = msgspec.json.Encoder()
FORMS = ("dataframe_split", "dataframe_records", "inputs", "instances")


class Formats:
    """Reads bodies that ask one version; make it once a version, it costs milliseconds.

    Parameters
    ----------
    contract : RequestContract
    most_records : int
        A body with more is refused with 413.

    Attributes
    ----------
    decoder : RequestDecoder
        Reads records without a format around them.
    """

    def __init__(self, contract: RequestContract, most_records: int = MOST_RECORDS) -> None:
        self.contract = contract
        self.most_records = most_records
        self.decoder = contract.decoder()
        self._fields = {of.name: of for of in (*contract.features, contract.entity)}

    def read_invocation(self, body: bytes) -> Requests:
        """Read a body as MLflow's scoring server takes it.

        It is an object with one of ``dataframe_split``, ``dataframe_records``, ``inputs`` and ``instances`` (the last
        two a list of records, or a list of values for each column, or one record), and maybe ``params``.

        Raises
        ------
        RequestError
            400 for what is no such JSON, 413 for too many records, 422 for fields that break the contract.
        """
        asked = _decode(_INVOCATION, body)
        given = [name for name in FORMS if getattr(asked, name) is not msgspec.UNSET]
        if len(given) != 1:
            rule = f"the body must have exactly one of {', '.join(FORMS)}"
            raise RequestError(400, [RequestProblem(rule=rule, value=", ".join(given) or None)])
        key = _sticky_key(asked.params, "params")
        records, entities = self._read(given[0], getattr(asked, given[0]))
        return Requests(records=self._few(records), entities=entities, sticky_key=key)

    def _read(self, form: str, said: Any) -> tuple[list[Record], list[Any] | None]:
        if form == "dataframe_split":
            return self.decoder.rows(said.columns, said.data)
        if form == "dataframe_records" or not bytes(said).startswith(b"{"):
            return self.decoder.records(said)
        columns = _decode(_MAPPING, said)
        if columns and not any(bytes(raw).startswith(b"[") for raw in columns.values()):
            return self.decoder.records(b"[" + bytes(said) + b"]")
        return self.decoder.columns(columns)

    def _few(self, records: list[Record]) -> list[Record]:
        if len(records) > self.most_records:
            rule = f"must hold at most {self.most_records:,} records"
            raise RequestError(413, [RequestProblem(rule=rule, value=len(records))])
        return records

    def read_inference(self, body: bytes) -> Requests:
        """Read a body of the Open Inference Protocol: a tensor of shape [n] or [n, 1] for each field.

        Raises
        ------
        RequestError
            As of `read_invocation`.
        """
        asked = _decode(_INFERENCE, body)
        key = _sticky_key(asked.parameters, "parameters", binding=False)
        outputs = tuple(one.name for one in asked.outputs) if asked.outputs else OUTPUTS
        unknown = [name for name in outputs if name not in OUTPUTS]
        if unknown:
            rule = f"must be one of {', '.join(OUTPUTS)}"
            raise RequestError(422, [RequestProblem(rule=rule, field="outputs", value=shown(unknown[0]))])
        problems = [problem for tensor in asked.inputs if (problem := self._wrong(tensor))]
        if problems:
            raise RequestError(422, problems[:MOST_PROBLEMS])
        names = [tensor.name for tensor in asked.inputs]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise RequestError(422, [RequestProblem(rule="must come once", field=twice[:LONGEST_KEY])])
        records, entities = self.decoder.columns({tensor.name: _flat(tensor) for tensor in asked.inputs})
        _require_shapes(asked.inputs, len(records))
        return Requests(records=self._few(records), entities=entities, sticky_key=key, id=asked.id, outputs=outputs)

    def _wrong(self, tensor: _Tensor) -> RequestProblem | None:
        of = self._fields.get(tensor.name)
        name = tensor.name[:LONGEST_KEY]
        if of is None:
            return RequestProblem(rule="is not a column of this model", field=name)
        if tensor.datatype not in DATATYPES[of.kind]:
            rule = f"must have a datatype of {', '.join(dict.fromkeys(DATATYPES[of.kind]))}"
            return RequestProblem(rule=rule, field=name, value=shown(tensor.datatype))
        if tensor.data is msgspec.UNSET:
            return RequestProblem(rule="must have data; the binary extension is not spoken here", field=name)
        return None


def _decode(decoder: Any, body: Any) -> Any:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise RequestError(400, [RequestProblem(rule=f"the body is of no known form: {error}")]) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if not isinstance(error, RecursionError):
            read_again(body)  # refuses what no reader takes
            rule = "the body must be JSON, which has no NaN and no Infinity: send null for a missing value"
            raise RequestError(400, [RequestProblem(rule=rule)]) from error
        raise malformed(error) from error


def _sticky_key(parameters: dict[str, Any] | None, name: str, *, binding: bool = True) -> str | None:
    """Return the key of a request; others than it are refused where the format leaves them to the model."""
    if not parameters:
        return None
    unknown = next((one for one in parameters if one != KEY), None) if binding else None
    if unknown is not None:
        raise RequestError(422, [RequestProblem(rule=f"{name} may only have {KEY!r}", field=unknown[:LONGEST_KEY])])
    key = parameters.get(KEY)
    if key is None or (isinstance(key, str | int) and not isinstance(key, bool) and 0 < len(str(key)) <= LONGEST_KEY):
        return None if key is None else str(key)
    rule = f"must be text of 1 to {LONGEST_KEY} characters, or an integer"
    raise RequestError(422, [RequestProblem(rule=rule, field=f"{name}.{KEY}", value=shown(key))])


def _flat(tensor: _Tensor) -> Any:
    """Return a tensor's data as a flat list: of shape [n, 1] they may be nested."""
    if len(tensor.shape) < 2:
        return tensor.data
    said = read_again(tensor.data)
    nested = isinstance(said, list) and bool(said) and all(isinstance(row, list) and len(row) == 1 for row in said)
    return _ENCODER.encode([row[0] for row in said]) if nested else tensor.data


def _require_shapes(tensors: Sequence[_Tensor], rows: int) -> None:
    wrong = [one for one in tensors if one.shape not in ([rows], [rows, 1])]
    if wrong:
        rule = f"must have the shape [{rows}] or [{rows}, 1] of its data"
        problems = [RequestProblem(rule=rule, field=one.name, value=str(one.shape)[:LONGEST_KEY]) for one in wrong]
        raise RequestError(422, problems[:MOST_PROBLEMS])


# Answers


def invocation_answer(contract: RequestContract, answers: Answers) -> bytes:
    """Write answers as MLflow's clients read them: what its ``pyfunc.predict`` says, with the probabilities beside."""
    if contract.task == "regression":
        return _ENCODER.encode({PREDICTIONS: answers.predictions})
    return _ENCODER.encode({PREDICTIONS: answers.predictions, SCORES: answers.scores})


def inference_answer(contract: RequestContract, asked: Requests, answers: Answers, *, version: int) -> bytes:
    """Write answers as tensors of the Open Inference Protocol, those that were asked for, in their order."""
    values = {PREDICTIONS: answers.predictions, SCORES: answers.scores}
    tensors = [{"name": name, "datatype": _datatype(contract, name), **_tensor(values[name])} for name in asked.outputs]
    said = {"model_name": contract.model, "model_version": str(version), "outputs": tensors}
    return _ENCODER.encode({**said, "id": asked.id} if asked.id is not None else said)


def _tensor(values: list[Any]) -> dict[str, Any]:
    if values and isinstance(values[0], list):
        return {"shape": [len(values), len(values[0])], "data": [value for row in values for value in row]}
    return {"shape": [len(values)], "data": values}


def _datatype(contract: RequestContract, output: str) -> str:
    if output == SCORES or contract.task == "regression":
        return "FP64"
    return "INT64" if all(isinstance(one, int) for one in contract.classes) else "BYTES"


def metadata(contract: RequestContract, versions: Sequence[int]) -> dict[str, Any]:
    """Return the metadata of the Open Inference Protocol: name, versions, and the tensors in and out."""
    classes = len(contract.classes)
    scores = [-1, classes] if contract.task == "multiclass" else [-1]
    return {
        "name": contract.model,
        "versions": [str(version) for version in versions],
        "platform": "scikit-learn",
        "inputs": [_described(of) for of in contract.features],
        "outputs": [
            {"name": PREDICTIONS, "datatype": _datatype(contract, PREDICTIONS), "shape": [-1]},
            {"name": SCORES, "datatype": "FP64", "shape": scores},
        ],
    }


def _described(of: Field) -> dict[str, Any]:
    return {"name": of.name, "datatype": DATATYPES[of.kind][0], "shape": [-1]}


def error_answer(error: RequestError) -> bytes:
    """Write what is wrong with a request: ``{"error": …, "problems": [{"field", "rule", "value", "record"}]}``."""
    problems = [
        {"field": one.field, "rule": one.rule, "value": one.value, "record": one.record} for one in error.problems
    ]
    return _ENCODER.encode({"error": str(error), "problems": problems})
