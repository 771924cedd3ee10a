"""Tests of content codings, and of the binary extension of the Open Inference Protocol."""

import asyncio
import gzip
import json
import math
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_platform.errors import RequestError
from ml_platform.serving.http.binary_tensors import inline_binary_data
from ml_platform.serving.http.request_body import MAX_MEMBERS, read_body

BODY = b'{"inputs": []}'

# Names of tests contain these bytes, so that they must not depend on the time.
compress = partial(gzip.compress, mtime=0)


def read(body: bytes, *codings: bytes, max_bytes: int = 10_000) -> bytes:
    """Read a body that arrives in one part, with a header for each of `codings`."""

    async def receive() -> dict[str, Any]:
        return {"body": body}

    headers = [(b"content-encoding", coding) for coding in codings]
    return asyncio.run(read_body({"headers": headers}, receive, max_bytes))


def catch(action: Callable[[], object]) -> RequestError:
    with pytest.raises(RequestError) as caught:
        action()
    return caught.value


@pytest.mark.parametrize(
    ("codings", "body"),
    [
        ([], BODY),
        ([b"identity"], BODY),
        ([b""], BODY),
        ([b"gzip"], compress(BODY)),
        ([b"GZip"], compress(BODY)),
        ([b"x-gzip"], compress(BODY)),
        ([b"deflate"], zlib.compress(BODY)),
        ([b" gzip , identity"], compress(BODY)),
        ([b"deflate, gzip"], compress(zlib.compress(BODY))),
        ([b"deflate", b"gzip"], compress(zlib.compress(BODY))),
        ([b"gzip"], compress(BODY[:5]) + compress(b"") + compress(BODY[5:])),
    ],
)
def test_each_coding_is_decoded(codings: list[bytes], body: bytes) -> None:
    assert read(body, *codings) == BODY


@pytest.mark.parametrize(
    ("codings", "body", "status"),
    [
        (b"br", BODY, 415),
        (b"gzip, br", BODY, 415),
        (b"gzip;q=1", BODY, 415),
        (b"\xff", BODY, 415),
        (b"gzip, gzip, gzip, gzip, gzip", BODY, 415),
        (b"gzip", BODY, 400),
        (b"gzip", b"", 400),
        (b"gzip", zlib.compress(BODY), 400),
        (b"deflate", compress(BODY), 400),
        (b"gzip", compress(BODY)[:-1], 400),
        (b"gzip", compress(BODY) + b"rest", 400),
        (b"deflate", zlib.compress(BODY) + zlib.compress(BODY), 400),
        (b"gzip", compress(b" " * 10_001), 413),
        (b"gzip", compress(b" " * 5_001) * 2, 413),
        (b"gzip, gzip", compress(compress(b" " * 1_000_000)), 413),
    ],
)
def test_wrong_coding_is_refused(codings: bytes, body: bytes, status: int) -> None:
    assert catch(lambda: read(body, codings)).status == status


def test_too_many_members_are_refused() -> None:
    assert read(compress(b"") * MAX_MEMBERS, b"gzip", max_bytes=10**5) == b""
    assert catch(lambda: read(compress(b"") * (MAX_MEMBERS + 1), b"gzip", max_bytes=10**5)).status == 400


def test_body_of_largest_size_is_decoded() -> None:
    members = [b" " * 4_000, b"x" * 6_000]

    assert read(b"".join(map(gzip.compress, members)), b"gzip") == b"".join(members)


# The binary extension


def make_binary(*inputs: tuple[str, str, Any, bytes], **changes: Any) -> tuple[bytes, bytes]:
    """Return a body with the data of some inputs (name, datatype, shape, data), and its header."""
    tensors = [
        {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(data)}} | changes
        for name, datatype, shape, data in inputs
    ]
    head = json.dumps({"id": "a", "inputs": tensors}).encode()
    return head + b"".join(data for *_, data in inputs), str(len(head)).encode()


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        *[(f"{sign}INT{size}", [0, 1, 2**7 - 1]) for sign in ("", "U") for size in (8, 16, 32, 64)],
        ("INT64", [-(2**63), 2**63 - 1]),
        ("UINT64", [2**64 - 1]),
        *[(f"FP{size}", [0.5, -2.0]) for size in (16, 32, 64)],
        ("BOOL", [True, False]),
    ],
)
def test_binary_values_become_json(datatype: str, values: list[Any]) -> None:
    kind = datatype.lower().replace("fp", "float").replace("bool", "bool_")
    data = np.array(values, kind).tobytes()
    tensors = json.loads(inline_binary_data(*make_binary(("x", datatype, [len(values)], data))))["inputs"]

    assert tensors[0]["data"] == values


def test_binary_texts_and_missing_numbers_are_read() -> None:
    texts = b"".join(len(text).to_bytes(4, "little") + text for text in (b"paid", "é".encode(), b""))
    numbers = np.array([1.5, math.nan, 3.0]).tobytes()
    body, length = make_binary(("plan", "BYTES", [3], texts), ("seconds", "FP64", [3, 1], numbers))

    read = json.loads(inline_binary_data(body, length))
    assert [tensor["data"] for tensor in read["inputs"]] == [["paid", "é", ""], [1.5, None, 3.0]]
    assert read["id"] == "a"


@pytest.mark.parametrize(
    ("tensor", "status"),
    [
        (("x", "INT64", [2], b"12345678"), 422),
        (("x", "INT64", [1], b"1234567"), 422),
        (("x", "INT64", [-1], b"12345678"), 422),
        (("x", "INT64", "1", b"12345678"), 422),
        (("x", "BYTES", [10_001], b"\0" * 40_004), 413),
        (("x", "BYTES", [1], b"\4\0\0\0ab"), 422),
        (("x", "BYTES", [1], b"\1\0\0\0\xff"), 422),
        (("x", "BYTES", [2], b"\0\0\0\0"), 422),
        (("x", "FP64", [1], np.array([math.inf]).tobytes()), 422),
    ],
)
def test_binary_data_against_shape_is_refused(tensor: tuple[str, str, Any, bytes], status: int) -> None:
    error = catch(lambda: inline_binary_data(*make_binary(tensor)))

    assert (error.status, error.problems[0].field) == (status, "x")


@pytest.mark.parametrize("length", [b"", b"x", b"-1", b"9999", b"3", b"9" * 5_000, b"\xb2"])
def test_wrong_header_length_is_refused(length: bytes) -> None:
    body, _ = make_binary(("x", "INT64", [1], b"12345678"))

    assert catch(lambda: inline_binary_data(body, length)).status == 400


def test_bytes_that_no_input_names_are_refused() -> None:
    body, length = make_binary(("x", "INT64", [1], b"12345678"))

    assert catch(lambda: inline_binary_data(body + b"1", length)).status == 400
    assert catch(lambda: inline_binary_data(*make_binary(("x", "INT64", [1], b"12345678"), data=[1]))).status == 422


@given(st.binary(max_size=40), st.binary(max_size=4), st.integers(-2, 60))
@settings(max_examples=200, deadline=None, derandomize=True)
@pytest.mark.fault("R25")
def test_any_binary_body_is_read_or_refused(data: bytes, rubbish: bytes, size: int) -> None:
    for datatype in ("BYTES", "INT32", "FP16", "x"):
        body, length = make_binary(("x", datatype, [max(size, 0)], data))
        for sent, header in ((body, length), (body[len(rubbish) :], length), (rubbish + body, length), (data, b"0")):
            status = 400
            try:
                json.loads(inline_binary_data(sent, header))
            except RequestError as error:
                status = error.status
            assert status in {400, 413, 422}
