"""Binary data of the Open Inference Protocol's binary extension, converted to JSON.

A body is JSON, whose length the header ``inference-header-content-length`` names, and then the data of each input with
a parameter ``binary_data_size``, in the order of the inputs. The clients of Triton and of KServe send arrays so.
"""

import math
from typing import Any

import msgspec

from ml_platform.errors import RequestError, RequestProblem
from ml_platform.inference.request_contract import LONGEST_SHOWN, malformed, read_again, shown
from ml_platform.serving.http.wire_formats import MAX_RECORDS

HEADER = b"inference-header-content-length"
# The NumPy type of each datatype, little-endian. BYTES is apart: each element follows its length of four bytes.
TYPES = {
    "BOOL": "?",
    **{f"INT{8 * size}": f"<i{size}" for size in (1, 2, 4, 8)},
    **{f"UINT{8 * size}": f"<u{size}" for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": f"<f{size}" for size in (2, 4, 8)},
}


def inline_binary_data(body: bytes, length: bytes) -> bytes:
    """Return a body of JSON alone, in which ``data`` has the values of the binary data.

    Parameters
    ----------
    body : bytes
    length : bytes
        The header `HEADER`: the number of bytes of the JSON.

    Raises
    ------
    RequestError
        400 for a wrong length or JSON of another form, 413 for too many values, 422 for data that disagree with
        datatype or shape.
    """
    if not length.isdigit() or len(length) > LONGEST_SHOWN or int(length) > len(body):
        rule = f"must be the number of bytes of the JSON, at most {len(body):,}, the size of the body"
        raise RequestError(400, [_make_problem(rule, HEADER.decode(), length[:LONGEST_SHOWN].decode("latin-1"))])
    head, data = body[: int(length)], memoryview(body)[int(length) :]
    try:
        inference = msgspec.json.decode(head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        read_again(head)
        raise malformed(error) from error
    inputs = inference.get("inputs") if isinstance(inference, dict) else None
    if not isinstance(inputs, list) or not all(isinstance(tensor, dict) for tensor in inputs):
        raise RequestError(400, [_make_problem("must be a list of tensors", "inputs", None)])
    for tensor in inputs:
        parameters = tensor.get("parameters")
        size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
        if size is None:
            continue
        if type(size) is not int or not 0 <= size <= len(data) or "data" in tensor:
            rule = f"must have a binary_data_size of at most {len(data):,}, the remaining bytes, and no data"
            raise RequestError(422, [_make_problem(rule, tensor.get("name"), shown(size))])
        tensor["data"], data = _read_values(tensor, data[:size]), data[size:]
    if data:
        rule = f"must end with the data of its inputs; {len(data):,} bytes follow"
        raise RequestError(400, [_make_problem(rule, "body", None)])
    return msgspec.json.encode(inference)


def _read_values(tensor: dict[str, Any], data: memoryview) -> list[Any]:
    import numpy as np

    name, shape, datatype = tensor.get("name"), tensor.get("shape"), tensor.get("datatype")
    if not isinstance(shape, list) or not all(type(length) is int and length >= 0 for length in shape):
        raise RequestError(422, [_make_problem("must have a shape of integers", name, shown(shape))])
    count = math.prod(shape)
    if count > MAX_RECORDS:
        rule = f"must hold at most {MAX_RECORDS:,} values"
        raise RequestError(413, [_make_problem(rule, name, shown(count))])
    if datatype == "BYTES":
        return _read_texts(name, count, data)
    kind = np.dtype(TYPES[datatype]) if isinstance(datatype, str) and datatype in TYPES else None
    if kind is None:
        return []  # the datatype is refused when the request is read
    if len(data) != count * kind.itemsize:
        rule = f"must have {count * kind.itemsize:,} bytes for its shape and datatype"
        raise RequestError(422, [_make_problem(rule, name, len(data))])
    values = np.frombuffer(data, kind)
    if kind.kind == "f" and np.isinf(values).any():
        raise RequestError(422, [_make_problem("must have finite numbers", name, "infinity")])
    return values.tolist()  # type: ignore[no-any-return] # NaN becomes null in JSON: a missing value


def _read_texts(name: Any, count: int, data: memoryview) -> list[str]:
    texts, place = list[str](), 0
    while place < len(data) and len(texts) < count:
        end = place + 4 + int.from_bytes(data[place : place + 4], "little")
        try:
            texts.append(bytes(data[place + 4 : end]).decode())
        except UnicodeDecodeError as error:
            raise RequestError(422, [_make_problem(f"must be text in UTF-8: {error.reason}", name, None)]) from error
        place = end
    if place != len(data) or len(texts) != count:
        rule = f"must have {count:,} texts for its shape, each after its length of four bytes"
        raise RequestError(422, [_make_problem(rule, name, len(texts))])
    return texts


def _make_problem(rule: str, name: Any, value: Any) -> RequestProblem:
    return RequestProblem(rule=rule, field=name[:LONGEST_SHOWN] if isinstance(name, str) else None, value=value)
